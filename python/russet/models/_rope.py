"""The frequencies of rotary embeddings, in float32 and in the order of operations transformers uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from russet.config import Reader, Rope
from russet.errors import ConfigError

Floats = NDArray[np.float32]


def rope_of(
    hf: Reader,
    head_dim: int,
    *,
    theta_key: str = "rope_theta",
    part_key: str = "partial_rotary_factor",
    rotates_parts: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Rope:
    """The one rope of a config.json, in today's style (rope_parameters) or the older (rope_scaling).

    theta_key, part_key: where the older style has the base, and which part of a head is rotated
    rotates_parts: whether the family can rotate less than all of a head
    renamed: kinds that the family has another name for
    """
    parameters = hf.section("rope_scaling")
    if not parameters.values:
        parameters = hf.section("rope_parameters")
    for layer_type in ("full_attention", "sliding_attention"):
        if layer_type in parameters:
            raise parameters.refuse(layer_type, "this family has one rope for all its layers")
    max_ctx = hf.size("max_position_embeddings")
    return rope(
        parameters,
        head_dim,
        max_ctx,
        original_ctx=hf.size(
            "original_max_position_embeddings",
            parameters.size("original_max_position_embeddings", max_ctx),
        ),
        theta=hf.number(theta_key, 10000.0),
        part=hf.number(part_key, 1.0),
        rotates_parts=rotates_parts,
        renamed=renamed,
    )


def rope(
    parameters: Reader,
    head_dim: int,
    max_ctx: int,
    *,
    original_ctx: int,
    theta: float,
    part: float = 1.0,
    rotates_parts: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Rope:
    """The rope that `parameters` describe; what they leave out is given by the other arguments."""
    part = parameters.number("partial_rotary_factor", part, above=0)
    if part > 1 or (part < 1 and not rotates_parts):
        expected = "at most 1" if rotates_parts else "1, as this family rotates whole heads"
        raise ConfigError(f"{parameters.where}: partial_rotary_factor: expected {expected}, got {part:g}")
    kind_key = "rope_type" if "rope_type" in parameters else "type"
    kind = parameters.text(kind_key, "default")
    kind = (renamed or {}).get(kind, kind)
    if kind not in KINDS:
        raise parameters.refuse(kind_key, f"russet knows the ropes {', '.join(KINDS)}")
    given = _Given(
        parameters,
        theta=parameters.number("rope_theta", theta, above=1),
        rotary_dim=int(head_dim * part),
        max_ctx=max_ctx,
        original_ctx=original_ctx,
    )
    if not 0 < 2 * given.n_frequencies <= head_dim:
        raise ConfigError(f"{parameters.where}: cannot rotate {given.rotary_dim} of {head_dim} in pairs")
    try:
        with np.errstate(all="ignore"):
            made = KINDS[kind](given)
        sound = all(map(math.isfinite, (*made.inv_freq, *made.long_inv_freq, made.scale)))
    except ArithmeticError:
        sound = False
    if not sound:
        raise parameters.refuse(kind_key, "its parameters give frequencies that are not finite")
    return made


@dataclass(frozen=True)
class _Given:
    """What the kinds below compute with."""

    parameters: Reader
    theta: float
    rotary_dim: int
    max_ctx: int
    original_ctx: int  #: context before it was stretched

    @property
    def n_frequencies(self) -> int:
        return (self.rotary_dim + 1) // 2

    def periods(self) -> Floats:
        """theta^(2 i / rotary_dim)"""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        return np.asarray(np.float32(self.theta) ** exponents, np.float32)

    def inv_freq(self) -> Floats:
        return np.asarray(np.float32(1) / self.periods(), np.float32)

    def factor(self) -> float:
        """How many times the context was stretched."""
        return self.parameters.number("factor", self.max_ctx / self.original_ctx, above=0)


def _default(given: _Given) -> Rope:
    """Su et al., arXiv 2104.09864."""
    return Rope(inv_freq=_tuple(given.inv_freq()))


def _linear(given: _Given) -> Rope:
    """Position interpolation: Chen et al., arXiv 2306.15595."""
    factor = given.parameters.number("factor", above=0)
    return Rope(inv_freq=_tuple(given.inv_freq() / np.float32(factor)))


def _dynamic(given: _Given) -> Rope:
    """Dynamic NTK (bloc97 and emozilla, 2023): the core grows theta with the length of the text."""
    if given.rotary_dim <= 2:
        raise given.parameters.refuse("rope_type", "needs at least 4 numbers of a head to rotate")
    return Rope(
        inv_freq=_tuple(given.inv_freq()),
        original_ctx=given.max_ctx,
        dynamic_factor=given.parameters.number("factor", above=0),
        theta=given.theta,
    )


def _llama3(given: _Given) -> Rope:
    """Llama 3.1 (arXiv 2407.21783): long wavelengths are stretched, short ones kept, others blended."""
    factor = np.float32(given.parameters.number("factor", above=0))
    low = given.parameters.number("low_freq_factor", above=0)
    high = given.parameters.number("high_freq_factor", above=low)
    inv_freq = given.inv_freq()
    wavelengths = np.float32(2 * math.pi) / inv_freq
    blend = (np.float32(given.original_ctx) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = (1 - blend) * inv_freq / factor + blend * inv_freq
    is_long = wavelengths > np.float32(given.original_ctx / low)
    is_short = wavelengths < np.float32(given.original_ctx / high)
    return Rope(inv_freq=_tuple(np.where(is_long, inv_freq / factor, np.where(is_short, inv_freq, blended))))


def _yarn(given: _Given) -> Rope:
    """YaRN: Peng et al., arXiv 2309.00071."""
    parameters, factor = given.parameters, given.factor()

    def attention_factor(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, mscale_all = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    scale = attention_factor(1)
    if mscale > 0 and mscale_all > 0:
        scale = attention_factor(mscale) / attention_factor(mscale_all)

    def dimension(n_rotations: float) -> float:
        """The dimension that turns n_rotations times within the original context."""
        turns = given.original_ctx / (n_rotations * 2 * math.pi)
        return given.rotary_dim * math.log(turns) / (2 * math.log(given.theta))

    low = dimension(parameters.number("beta_fast", 32.0, above=0))
    high = dimension(parameters.number("beta_slow", 1.0, above=0))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, given.rotary_dim - 1)
    if low == high:
        high += 0.001

    steps = (np.arange(given.n_frequencies, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(steps, 0, 1)
    stretched = np.float32(1) / (np.float32(factor) * given.periods())
    return Rope(
        inv_freq=_tuple(stretched * (1 - kept) + given.inv_freq() * kept),
        scale=parameters.number("attention_factor", scale),
    )


def _longrope(given: _Given) -> Rope:
    """LongRoPE: Ding et al., arXiv 2402.13753. The core takes the long frequencies once the text is long."""
    parameters, factor = given.parameters, given.factor()
    scale = math.sqrt(1 + math.log(factor) / math.log(given.original_ctx)) if factor > 1 else 1.0
    scale = parameters.number("attention_factor", scale)

    def inv_freq(key: str) -> tuple[float, ...]:
        factors = np.asarray(parameters.numbers(key, given.n_frequencies), np.float32)
        return _tuple(np.float32(1) / (factors * given.periods()))

    return Rope(
        inv_freq=inv_freq("short_factor"),
        long_inv_freq=inv_freq("long_factor"),
        scale=scale,
        long_scale=scale,
        original_ctx=given.original_ctx,
    )


def _tuple(frequencies: Floats) -> tuple[float, ...]:
    return tuple(np.asarray(frequencies, np.float32).tolist())


#: What config.json may call a rope's kind.
KINDS: dict[str, Callable[[_Given], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
