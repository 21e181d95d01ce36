"""Sampling: from the options of a generation to the core's sampler, texts to token ids on the way."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from russet import _core
from russet.errors import UsageError
from russet.options import GenerateOptions
from russet.tokenizer import Tokenizer

#: Options that the core's sampler has under the same name and with the same meaning.
_SAME = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
    "mirostat_tau", "mirostat_eta", "repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_window", "logit_bias", "sequence_bias",
    "no_repeat_ngram_size", "min_tokens",
)  # fmt: skip


def make_sampler(
    options: GenerateOptions, prompt: Sequence[int], tokenizer: Tokenizer, vocab_size: int
) -> _core.Sampler:
    """The sampler of one generation; without a seed it has 0. Raises UsageError on ids that are no token's."""
    core = _core.SamplingOptions()
    for name in _SAME:
        setattr(core, name, getattr(options, name))
    core.steps = options.samplers
    core.bad_words = [ids for word in options.bad_words for ids in _spellings(word, tokenizer)]
    core.ends = [*options.stop_token_ids, *(() if options.ignore_eos else tokenizer.eos_token_ids)]
    if options.dry_multiplier:
        core.dry_breakers = _tokens_with(options.dry_breakers, tokenizer)
    _check_ids("stop_token_ids", options.stop_token_ids, vocab_size)
    _check_ids("logit_bias", [id for id, _ in core.logit_bias], vocab_size)
    _check_ids("sequence_bias", [id for ids, _ in core.sequence_bias for id in ids], vocab_size)
    _check_ids("bad_words", [id for ids in core.bad_words for id in ids], vocab_size)
    return _core.Sampler(core, options.seed or 0, prompt)


def _check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    if ids and max(ids) >= vocab_size:
        raise UsageError(f"{field}: token ids go from 0 to {vocab_size - 1}, got {max(ids)}")


def _spellings(word: str | Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """A text's ids at the beginning of a line and after a space, which most tokenizers put into the word's token."""
    if not isinstance(word, str):
        return [list(word)]
    ids = (tokenizer.encode(text, add_special_tokens=False) for text in (word, " " + word))
    return [list(spelling) for spelling in {tuple(i) for i in ids if i}]


_known_tokens: WeakKeyDictionary[Tokenizer, dict[tuple[str, ...], list[int]]] = WeakKeyDictionary()


def _tokens_with(texts: tuple[str, ...], tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens whose text holds one of these; remembered, as it looks at the whole vocabulary."""
    known = _known_tokens.setdefault(tokenizer, {})
    if texts not in known:
        decoded = (tokenizer.decode([id], skip_special_tokens=True) for id in range(tokenizer.vocab_size))
        known[texts] = [id for id, token in enumerate(decoded) if any(text in token for text in texts)]
    return known[texts]
