"""Config: a model as plain numbers, and the one place where config.json is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from russet.errors import ConfigError, UsageError

_REQUIRED: Any = object()
_FLOAT32_MAX = 3.4028234e38


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One way of turning positions into angles; the fields are those of csrc/model/config.h."""

    inv_freq: tuple[float, ...]
    long_inv_freq: tuple[float, ...] = ()
    scale: float = 1.0
    long_scale: float = 1.0
    original_ctx: int = 0
    dynamic_factor: float = 0.0
    theta: float = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the forward pass must know about a model; the fields are those of csrc/model/config.h."""

    family: str  #: model_type of config.json
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_ctx: int  #: positions the model was made for
    norm: str = "rms"  #: "rms" or "layer"
    norm_eps: float = 1e-5
    activation: str = "silu"  #: "silu", "gelu", "gelu_tanh" or "relu"
    parallel_residual: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float
    attention_softcap: float = 0.0
    logits_scale: float = 1.0
    logits_softcap: float = 0.0
    ropes: tuple[Rope, ...] = ()
    layer_rope: tuple[int, ...]  #: per layer: index into ropes, -1 for none
    layer_window: tuple[int, ...]  #: per layer: keys a query sees, 0 for all before it
    n_sinks: int = 0  #: first keys of a text that every query sees, whatever the window
    tied_head: bool = False  #: the head is the embedding


def with_window(config: Config, window: int) -> Config:
    """The config of a model whose tokens see the newest `window` keys, or fewer where they did, and the first 4.

    Without the first keys, which attention leans on whatever they say, models lose their thread (StreamingLLM, Xiao et
    al., arXiv 2309.17453). Keys keep the positions they were stored with. Raises UsageError below 1.
    """
    if window < 1:
        raise UsageError(f"kv_window: expected at least 1 token, got {window}")
    windows = tuple(min(own, window) if own else window for own in config.layer_window)
    return replace(config, layer_window=windows, n_sinks=4)


class Reader:
    """config.json with types: every value is checked as it is taken, and an error names its key."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def _take(self, key: str, default: Any, kind: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ConfigError(f"{self.where}: expected {kind} for {key!r}, found no such key")
        return default

    def _wrong(self, key: str, expected: str, got: Any) -> ConfigError:
        return ConfigError(f"{self.where}: {key}: expected {expected}, got {got!r:.80}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Reader:
        """The same, with a value for each key that is not there; one that is there and null stays null."""
        return Reader({**defaults, **self.values}, self.where)

    def changed(self, values: Mapping[str, Any]) -> Reader:
        """The same but for these values."""
        return Reader({**self.values, **values}, self.where)

    def size(self, key: str, default: int = _REQUIRED, *, most: int = 2**31 - 1) -> int:
        """A positive count or width."""
        value = self._take(key, default, "a positive integer")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self._wrong(key, f"a positive integer up to {most:,}", value)
        return value

    def number(self, key: str, default: float = _REQUIRED, *, above: float = -math.inf) -> float:
        """A number that float32 can hold."""
        value = self._take(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _FLOAT32_MAX:
            raise self._wrong(key, "a finite number", value)
        if value <= above:
            raise self._wrong(key, f"a number above {above:g}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default, "true or false")
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str = _REQUIRED) -> str:
        value = self._take(key, default, "a string")
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def numbers(self, key: str, n: int) -> tuple[float, ...]:
        value = self._take(key, _REQUIRED, f"a list of {n} numbers")
        if not isinstance(value, Sequence) or len(value) != n:
            raise self._wrong(key, f"a list of {n} numbers", value)
        return tuple(Reader({key: x}, self.where).number(key) for x in value)

    def texts(self, key: str, n: int) -> tuple[str, ...]:
        value = self._take(key, _REQUIRED, f"a list of {n} strings")
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != n:
            raise self._wrong(key, f"a list of {n} strings", value)
        return tuple(Reader({key: x}, self.where).text(key) for x in value)

    def section(self, key: str) -> Reader:
        """A nested object; empty where there is none."""
        value = self._take(key, {}, "an object")
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object", value)
        return Reader(value, f"{self.where}: {key}")

    def refuse(self, key: str, reason: str) -> ConfigError:
        """An error about a value that is well-formed but asks for what russet does not do."""
        return ConfigError(f"{self.where}: {key}={self.values.get(key)!r:.80}: {reason}")


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_of(hf: Reader, key: str) -> str:
    """The activation that Hugging Face calls by the name under `key`."""
    name = hf.text(key)
    if name not in _ACTIVATIONS:
        raise hf.refuse(key, f"expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
