"""Options: how the next token is chosen and when generation ends."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from russet.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from russet.config import Reader


_log = logging.getLogger("russet")


class GenerateKeywords(TypedDict, total=False):
    """The keywords of generate(), stream() and chat(); GenerateOptions says what they mean."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    use_cache: bool
    context_overflow: str
    n_sinks: int
    temp: float  #: the same as temperature
    max_new_tokens: int | None  #: the same as max_tokens


ALIASES = {"temp": "temperature", "max_new_tokens": "max_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How the next token is chosen and when generation ends; every field is a keyword of generate().

    >>> GenerateOptions(top_p=1.5)
    Traceback (most recent call last):
    russet.errors.UsageError: top_p: expected more than 0 and at most 1, got 1.5
    """

    max_tokens: int | None = 256  #: tokens to generate at most; None: until the model ends or the context is full
    temperature: float = 0.0  #: 0 always takes the likeliest token
    top_k: int = 0  #: keep this many of the likeliest tokens; 0 keeps all
    top_p: float = 1.0  #: keep the likeliest tokens up to this total probability
    min_p: float = 0.0  #: keep tokens at least this many times as likely as the likeliest
    repetition_penalty: float = 1.0  #: above 1 makes tokens of the text so far less likely (arXiv 1909.05858)
    seed: int | None = None  #: None draws a fresh one
    stop: tuple[str, ...] = ()  #: texts that end generation; they are not part of the result
    ignore_eos: bool = False  #: go on after the model's end-of-text token
    use_cache: bool = True  #: keep keys and values; without, every step computes the whole text again
    context_overflow: str = "error"  #: a full context ends the text; "shift": it goes on, see docs/cache.md
    n_sinks: int = 4  #: tokens at the text's beginning that a shift keeps

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise UsageError(f"{field}: expected {expected}, got {getattr(self, field)!r}")

        def number(field: str) -> float:
            value = getattr(self, field)
            need(not isinstance(value, bool) and isinstance(value, (int, float)), field, "a number")
            return float(value) if math.isfinite(value) else math.nan

        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        need(isinstance(self.stop, (list, tuple)), "stop", "a string or several")
        object.__setattr__(self, "stop", tuple(self.stop))
        need(all(isinstance(s, str) and s for s in self.stop), "stop", "strings that are not empty")
        if self.max_tokens is not None:
            need(_is_int(self.max_tokens) and self.max_tokens >= 0, "max_tokens", "an integer from 0 on, or None")
        need(number("temperature") >= 0, "temperature", "0 or more")
        need(_is_int(self.top_k) and 0 <= self.top_k < 2**31, "top_k", "an integer from 0 on")
        need(0 < number("top_p") <= 1, "top_p", "more than 0 and at most 1")
        need(0 <= number("min_p") <= 1, "min_p", "0 to 1")
        need(number("repetition_penalty") > 0, "repetition_penalty", "more than 0")
        if self.seed is not None:
            need(_is_int(self.seed) and 0 <= self.seed < 2**64, "seed", "an integer from 0 to 2^64 - 1, or None")
        need(self.context_overflow in ("error", "shift"), "context_overflow", "'error' or 'shift'")
        need(_is_int(self.n_sinks) and self.n_sinks >= 0, "n_sinks", "an integer from 0 on")
        for field in ("ignore_eos", "use_cache"):
            need(isinstance(getattr(self, field), bool), field, "True or False")

    def with_keywords(self, keywords: Mapping[str, Any]) -> GenerateOptions:
        """These options changed by keywords; raises UsageError on an unknown one, with the nearest known."""
        known = {field.name for field in dataclasses.fields(self)}
        changes: dict[str, Any] = {}
        for keyword, value in keywords.items():
            name = ALIASES.get(keyword, keyword)
            if name not in known:
                near = difflib.get_close_matches(keyword, [*known, *ALIASES], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise UsageError(f"{keyword}: no such option; {hint}")
            if name in changes:
                raise UsageError(f"{keyword}: given twice, {name!r} is the same option")
            changes[name] = value
        return dataclasses.replace(self, **changes) if changes else self


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


#: keys of generation_config.json that change what is generated and that russet does not have; value: no effect
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "penalty_alpha": (0, 0.0),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
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
    if hf.flag("do_sample", False):
        off = "top_k" in hf.values and not hf.values["top_k"]  # null or 0: keep all
        changes |= {
            "temperature": hf.number("temperature", 1.0),
            "top_k": 0 if off else hf.size("top_k", 50),  # 50: transformers' default where the file is silent
            "top_p": hf.number("top_p", 1.0),
            "min_p": hf.number("min_p", 0.0),
        }
    try:
        return GenerateOptions(**changes)
    except UsageError as error:
        raise ConfigError(f"{hf.where}: {error}") from error
