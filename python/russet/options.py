"""Options: how the next token is chosen and when generation ends."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from russet.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from russet.config import Reader
    from russet.limits import Flag


_log = logging.getLogger("russet")


class GenerateKeywords(TypedDict, total=False):
    """The keywords of generate(), stream() and chat(); GenerateOptions says what they mean."""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    mirostat_tau: float
    mirostat_eta: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    dry_breakers: str | Sequence[str]
    logit_bias: LogitBias
    sequence_bias: SequenceBias
    bad_words: BadWords
    no_repeat_ngram_size: int
    json_schema: JsonSchema | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    samplers: Sequence[str]
    seed: int | None
    logprobs: bool
    top_logprobs: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    timeout: float | None
    cancel: Flag | None
    thinking: bool | None
    use_cache: bool
    context_overflow: str
    n_sinks: int
    speculate: str | None
    n_draft: int
    temp: float  #: the same as temperature
    max_new_tokens: int | None  #: the same as max_tokens
    min_new_tokens: int  #: the same as min_tokens
    num_draft_tokens: int  #: the same as n_draft


ALIASES = {
    "temp": "temperature",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_draft_tokens": "n_draft",
}

#: Keywords that are no option of one text, and where they belong.
_ELSEWHERE = {
    "num_beams": "an option of beam_search(), which gives the likeliest texts",
    "length_penalty": "an option of beam_search(), which gives the likeliest texts",
    "early_stopping": "an option of beam_search(), which gives the likeliest texts",
    "num_return_sequences": "several texts of one prompt are generate_many(n=...), or beam_search()",
    "n": "several texts of one prompt are generate_many(n=...)",
    "best_of": "take the best by `logprob` of generate_many(n=...)",
}

#: The steps from logits to the tokens that one is drawn from, in their default order: transformers' where it has them.
SAMPLERS = (
    "penalties", "dry", "temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "xtc", "mirostat",
)  # fmt: skip
MAX_TOP_LOGPROBS = 20

#: The options that hold the text to a grammar; one of them at most.
GRAMMARS = ("json_schema", "regex", "choices", "grammar")

#: As a dict, as JSON text, as a pydantic class, or True for any JSON.
JsonSchema = Mapping[str, Any] | str | type | bool

#: Drafted at most, and computed with the token before them: up to 32 tokens have the same bits together as alone.
MAX_DRAFT = 31

LogitBias = Mapping[int, float] | Sequence[tuple[int, float]]
SequenceBias = Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]]
BadWords = str | Sequence[str | Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How the next token is chosen and when generation ends; every field is a keyword of generate().

    >>> GenerateOptions(top_p=1.5)
    Traceback (most recent call last):
    russet.errors.UsageError: top_p: expected more than 0 and at most 1, got 1.5
    """

    max_tokens: int | None = 256  #: tokens to generate at most; None: until the model ends or the context is full
    min_tokens: int = 0  #: the model does not end before so many; a stop string still does
    temperature: float = 0.0  #: 0 always takes the likeliest token, after penalties
    top_k: int = 0  #: keep this many of the likeliest tokens; 0 keeps all
    top_p: float = 1.0  #: keep the likeliest tokens up to this total probability
    min_p: float = 0.0  #: keep tokens at least this many times as likely as the likeliest
    typical_p: float = 1.0  #: keep tokens of nearly expected surprise up to this total probability (arXiv 2202.00666)
    top_n_sigma: float = 0.0  #: keep logits at most so many standard deviations below the largest; 0: off
    xtc_probability: float = 0.0  #: how often XTC leaves out all tokens above its threshold but the least likely
    xtc_threshold: float = 0.1  #: of probability; above 0.5 XTC has no effect
    mirostat_tau: float = 0.0  #: surprise that mirostat 2 aims at, in bits; 0: off (arXiv 2007.14966)
    mirostat_eta: float = 0.1  #: how fast it corrects itself
    repetition_penalty: float = 1.0  #: above 1 makes tokens of the text so far less likely (arXiv 1909.05858)
    presence_penalty: float = 0.0  #: taken from the logit of every token generated so far, as in OpenAI's API
    frequency_penalty: float = 0.0  #: the same, times how often it was generated
    penalty_window: int = 0  #: the last tokens these three look at, prompt included; 0: all
    dry_multiplier: float = 0.0  #: DRY: what a token loses that would go on with a repeat of n tokens; 0: off
    dry_base: float = 1.75  #: that is dry_multiplier * dry_base ** (n - dry_allowed_length)
    dry_allowed_length: int = 2  #: shorter repeats cost nothing
    dry_window: int = 0  #: the last tokens in which repeats are looked for; 0: all
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")  #: no repeat goes across a token with one of these
    logit_bias: LogitBias = ()  #: token id -> what its logit is raised by, before all else; -inf bans it
    sequence_bias: SequenceBias = ()  #: the same for the last of several token ids, where the others stand before it
    bad_words: BadWords = ()  #: texts or lists of token ids that must not come
    no_repeat_ngram_size: int = 0  #: no run of so many tokens comes twice, the prompt's included; 0: off
    json_schema: JsonSchema | None = None  #: the text is JSON that this schema describes; True: any JSON
    regex: str | None = None  #: the text as a whole matches this
    choices: Sequence[str] | None = None  #: the text is one of these
    grammar: str | None = None  #: the text follows this grammar, in Lark's notation; see docs/structure.md
    samplers: tuple[str, ...] = SAMPLERS  #: which steps, in which order; one that is left out is not taken
    seed: int | None = None  #: None draws a fresh one
    logprobs: bool = False  #: give the logprob of every token
    top_logprobs: int = 0  #: and of so many of the likeliest in its place, up to 20
    stop: tuple[str, ...] = ()  #: texts that end generation; they are not part of the result
    stop_token_ids: tuple[int, ...] = ()  #: tokens that end generation beside the model's own; their text is not shown
    ignore_eos: bool = False  #: go on after the model's end-of-text token
    timeout: float | None = None  #: seconds from the first piece being asked for; None: as long as it takes
    cancel: Flag | None = None  #: a threading.Event, or what has its is_set(): once that is true, generation ends
    thinking: bool | None = None  #: have the chat template ask for thoughts, or for none; None: as it does by itself
    use_cache: bool = True  #: keep keys and values; without, every step computes the whole text again
    context_overflow: str = "error"  #: a full context ends the text; "shift": it goes on, see docs/cache.md
    n_sinks: int = 4  #: tokens at the text's beginning that a shift keeps
    speculate: str | None = None  #: how tokens are drafted: "lookup", "draft" by load(draft_model=...), None not at all
    n_draft: int = 16  #: tokens drafted at once at most, up to 31; see docs/speculation.md

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise UsageError(f"{field}: expected {expected}, got {getattr(self, field)!r}")

        def number(field: str) -> float:
            value = getattr(self, field)
            need(not isinstance(value, bool) and isinstance(value, (int, float)), field, "a number")
            return float(value) if math.isfinite(value) else math.nan

        self._check_texts("stop", need)
        if self.max_tokens is not None:
            need(_is_int(self.max_tokens) and self.max_tokens >= 0, "max_tokens", "an integer from 0 on, or None")
        for field in (
            *("min_tokens", "top_k", "penalty_window", "dry_allowed_length", "dry_window", "top_logprobs"),
            "no_repeat_ngram_size",
        ):
            value = getattr(self, field)
            need(_is_int(value) and 0 <= value < 2**31, field, "an integer from 0 on")
        for field in ("temperature", "top_n_sigma", "xtc_threshold", "mirostat_tau", "mirostat_eta", "dry_multiplier"):
            need(number(field) >= 0, field, "0 or more")
        for field in ("top_p", "typical_p"):
            need(0 < number(field) <= 1, field, "more than 0 and at most 1")
        for field in ("min_p", "xtc_probability"):
            need(0 <= number(field) <= 1, field, "0 to 1")
        need(number("repetition_penalty") > 0, "repetition_penalty", "more than 0")
        for field in ("presence_penalty", "frequency_penalty"):
            need(not math.isnan(number(field)), field, "a number")
        need(number("dry_base") >= 1, "dry_base", "1 or more")
        need(self.top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"at most {MAX_TOP_LOGPROBS}")
        self._check_texts("dry_breakers", need)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "sequence_bias", _sequence_biases(self.sequence_bias))
        object.__setattr__(self, "bad_words", _words(self.bad_words))
        self._check_grammars(need)
        self._check_samplers()
        object.__setattr__(self, "stop_token_ids", _ids(self.stop_token_ids))
        if self.timeout is not None:
            need(number("timeout") > 0, "timeout", "a number of seconds above 0, or None")
        is_flag = self.cancel is None or callable(getattr(self.cancel, "is_set", None))
        need(is_flag, "cancel", "a threading.Event, what else has is_set(), or None")
        need(self.thinking is None or isinstance(self.thinking, bool), "thinking", "True, False or None")
        if self.seed is not None:
            need(_is_int(self.seed) and 0 <= self.seed < 2**64, "seed", "an integer from 0 to 2^64 - 1, or None")
        need(self.context_overflow in ("error", "shift"), "context_overflow", "'error' or 'shift'")
        need(_is_int(self.n_sinks) and self.n_sinks >= 0, "n_sinks", "an integer from 0 on")
        need(self.speculate in (None, "lookup", "draft"), "speculate", "'lookup', 'draft' or None")
        need(_is_int(self.n_draft) and 1 <= self.n_draft <= MAX_DRAFT, "n_draft", f"an integer from 1 to {MAX_DRAFT}")
        for field in ("ignore_eos", "use_cache", "logprobs"):
            need(isinstance(getattr(self, field), bool), field, "True or False")
        if self.top_logprobs:
            object.__setattr__(self, "logprobs", True)

    def _check_texts(self, field: str, need: Callable[[bool, str, str], None]) -> None:
        """One text or several become a tuple of texts."""
        texts = getattr(self, field)
        need(isinstance(texts, (str, list, tuple)), field, "a string or several")
        need(all(isinstance(s, str) for s in texts) and "" not in (texts, *texts), field, "strings that are not empty")
        object.__setattr__(self, field, (texts,) if isinstance(texts, str) else tuple(texts))

    def _check_grammars(self, need: Callable[[bool, str, str], None]) -> None:
        given = [name for name in GRAMMARS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: a text follows one grammar; leave out all but one")
        for field in ("regex", "grammar"):
            value = getattr(self, field)
            need(value is None or (isinstance(value, str) and value != ""), field, "a text that is not empty")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        if self.choices is not None:
            is_list = isinstance(self.choices, (list, tuple)) and len(self.choices) > 0
            need(is_list and all(isinstance(c, str) and c for c in self.choices), "choices", "a list of texts")
            object.__setattr__(self, "choices", tuple(self.choices))

    def _check_samplers(self) -> None:
        names = self.samplers
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise UsageError(f"samplers: expected a list of names, got {names!r}")
        for i, name in enumerate(names):
            if name not in SAMPLERS:
                near = difflib.get_close_matches(str(name), SAMPLERS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SAMPLERS)}"
                raise UsageError(f"samplers: no step is called {name!r}; {hint}")
            if name in names[:i]:
                raise UsageError(f"samplers: {name!r} is there twice")
        object.__setattr__(self, "samplers", tuple(names))

    @property
    def follows(self) -> str | None:
        """The name of the option that holds the text to a grammar, if one does."""
        return next((name for name in GRAMMARS if getattr(self, name) is not None), None)

    @property
    def takes_likeliest(self) -> bool:
        """Whether the largest of the model's logits decides, so that a device may choose and keep the others."""
        return (
            self.temperature == 0
            and (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) == (1, 0, 0)
            and self.dry_multiplier == 0
            and self.min_tokens == self.no_repeat_ngram_size == 0
            and not (self.logit_bias or self.sequence_bias or self.bad_words or self.logprobs or self.follows)
        )

    def with_keywords(self, keywords: Mapping[str, Any]) -> GenerateOptions:
        """These options changed by keywords; raises UsageError on an unknown one, with the nearest known."""
        known = {field.name for field in dataclasses.fields(self)}
        changes: dict[str, Any] = {}
        for keyword, value in keywords.items():
            name = ALIASES.get(keyword, keyword)
            if name not in known:
                if keyword in _ELSEWHERE:
                    raise UsageError(f"{keyword}: {_ELSEWHERE[keyword]}")
                near = difflib.get_close_matches(keyword, [*known, *ALIASES], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise UsageError(f"{keyword}: no such option; {hint}")
            if name in changes:
                raise UsageError(f"{keyword}: given twice, {name!r} is the same option")
            changes[name] = value
        return dataclasses.replace(self, **changes) if changes else self


def _schema_text(schema: Any) -> str:
    """A schema as JSON text; a pydantic class has one of its own."""
    if isinstance(schema, type) and callable(own := getattr(schema, "model_json_schema", None)):
        schema = own()
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if isinstance(parsed, Mapping):
            return json.dumps(dict(parsed), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"json_schema: not JSON: {error}") from error
    raise UsageError(
        f"json_schema: expected a schema as a dict or JSON text, a pydantic class or True, got {schema!r:.80}"
    )


def _biases(biases: Any) -> tuple[tuple[int, float], ...]:
    checked: list[tuple[int, float]] = []
    for token, bias in _pairs(biases):
        if not _is_id(token):
            raise UsageError(f"logit_bias: expected token ids from 0 on, got {token!r:.80}")
        checked.append((token, _bias("logit_bias", token, bias)))
    return tuple(checked)


def _sequence_biases(biases: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    checked: list[tuple[tuple[int, ...], float]] = []
    for ids, bias in _pairs(biases):
        if not isinstance(ids, Sequence) or len(ids) == 0 or not all(_is_id(id) for id in ids):
            raise UsageError(f"sequence_bias: expected lists of token ids, none of them empty, got {ids!r:.80}")
        checked.append((tuple(ids), _bias("sequence_bias", ids, bias)))
    return tuple(checked)


def _pairs(values: Any) -> list[tuple[Any, Any]]:
    """What a mapping, or a list of pairs, has; in a pair's place something else is a key without a value."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(values, Mapping):
        values = [*values.items()]
    for pair in values if isinstance(values, Sequence) else [values]:
        is_pair = isinstance(pair, Sequence) and len(pair) == 2
        pairs.append((pair[0], pair[1]) if is_pair else (pair, None))
    return pairs


def _bias(field: str, key: object, bias: Any) -> float:
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not bias <= 1e38:  # float32 holds 3e38
        what = f"token {key}" if _is_int(key) else f"tokens {key!r:.80}"
        raise UsageError(f"{field}: expected a number or -inf for {what}, got {bias!r:.80}")
    return float(bias)


def _ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or not all(_is_id(id) for id in ids):
        raise UsageError(f"stop_token_ids: expected a list of token ids, got {ids!r:.80}")
    return tuple(ids)


def _words(words: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(words, str):
        words = (words,)
    checked: list[str | tuple[int, ...]] = []
    for word in words if isinstance(words, Sequence) else (None,):
        is_text = isinstance(word, str)
        is_ids = isinstance(word, Sequence) and all(_is_id(id) for id in word)
        if not word or not (is_text or is_ids):
            raise UsageError(f"bad_words: expected texts or lists of token ids, none of them empty, got {words!r:.80}")
        checked.append(word if is_text else tuple(word))
    return tuple(checked)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2**31


#: keys of generation_config.json that change what is generated and that russet does not have; value: no effect
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "penalty_alpha": (0, 0.0),
    "encoder_repetition_penalty": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
}


def options_of(hf: Reader) -> GenerateOptions:
    """The defaults a model brings in generation_config.json, with transformers' meaning: greedy unless do_sample.

    Logs a warning about settings that would change the text and that russet does not have. Raises ConfigError on a
    value without meaning.
    """
    ignored = [k for k, neutral in _UNSUPPORTED.items() if k in hf and hf.values[k] not in neutral]
    if ignored:
        _log.warning("%s: %s not supported, left out", hf.where, ", ".join(ignored))
    changes: dict[str, Any] = {}
    if "max_new_tokens" in hf:
        changes["max_tokens"] = hf.size("max_new_tokens")
    if "repetition_penalty" in hf:
        changes["repetition_penalty"] = hf.number("repetition_penalty")
    if hf.values.get("min_new_tokens"):  # null or 0: none
        changes["min_tokens"] = hf.size("min_new_tokens")
    if hf.values.get("no_repeat_ngram_size"):
        changes["no_repeat_ngram_size"] = hf.size("no_repeat_ngram_size")
    if "bad_words_ids" in hf:
        changes["bad_words"] = _list(hf, "bad_words_ids")
        if any(isinstance(word, str) for word in changes["bad_words"]):
            raise ConfigError(f"{hf.where}: bad_words_ids: expected lists of token ids, got a text")
    if hf.values.get("sequence_bias"):
        changes["sequence_bias"] = _list(hf, "sequence_bias")
    if "suppress_tokens" in hf:
        changes["logit_bias"] = [(id, -math.inf) for id in _list(hf, "suppress_tokens")]
    if hf.flag("do_sample", False):
        off = "top_k" in hf.values and not hf.values["top_k"]  # null or 0: keep all
        changes |= {
            "temperature": hf.number("temperature", 1.0),
            "top_k": 0 if off else hf.size("top_k", 50),  # 50: transformers' default where the file is silent
            "top_p": hf.number("top_p", 1.0),
            "min_p": hf.number("min_p", 0.0),
            "typical_p": hf.number("typical_p", 1.0),
        }
    try:
        return GenerateOptions(**changes)
    except UsageError as error:
        raise ConfigError(f"{hf.where}: {error}") from error


def _list(hf: Reader, key: str) -> list[Any]:
    value = hf.values[key]
    if not isinstance(value, list):
        raise ConfigError(f"{hf.where}: {key}: expected a list, got {value!r:.80}")
    return value
