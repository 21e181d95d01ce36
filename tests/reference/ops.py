"""One function per op, float64 throughout, in the order of the formulas in csrc/kernels/<op>/<op>.h."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """float32, exactly: bf16 (as uint16) is the upper half of a float32."""
    if dtype == "bf16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ w.astype(np.float64).T


def rms_norm(x: np.ndarray, w: np.ndarray, eps: float, bias: np.ndarray | None = None) -> np.ndarray:
    x = x.astype(np.float64)
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w
    return y if bias is None else y + bias


def layer_norm(x: np.ndarray, w: np.ndarray, eps: float, bias: np.ndarray | None = None) -> np.ndarray:
    x = x.astype(np.float64)
    return rms_norm(x - x.mean(axis=-1, keepdims=True), w, eps, bias)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [..., head_dim]; cos and sin [..., rotary_dim / 2] turn its first rotary_dim columns."""
    half = cos.shape[-1]
    lower, upper, rest = np.split(x.astype(np.float64), [half, 2 * half], axis=-1)
    return np.concatenate([lower * cos - upper * sin, upper * cos + lower * sin, rest], axis=-1)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    pos: Sequence[int],
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    n_sinks: int = 0,
    absent: Collection[int] = (),
) -> np.ndarray:
    """q [n_queries, head_dim], k and v [n_keys, head_dim]; query i sees the last `window` keys to pos[i].

    And the first n_sinks; but none of blocks of 64 keys that are `absent`. One that sees no key gives zeros.
    """
    scores = scale * matmul(q, k)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    key = np.arange(len(k))
    behind = np.asarray(pos)[:, None] - key
    hidden = (behind < 0) | ((window > 0) & (behind >= window) & (key >= n_sinks)) | np.isin(key // 64, list(absent))
    weights = np.where(hidden, 0.0, np.exp(scores - scores.max(axis=1, keepdims=True, where=~hidden, initial=-1e300)))
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v.astype(np.float64)


def gate(activation: str, x: np.ndarray, up: np.ndarray | None = None) -> np.ndarray:
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        y = {
            "silu": lambda: x / (1 + np.exp(-x)),
            "gelu": lambda: x / 2 * (1 + _erf(x / math.sqrt(2))),
            "gelu_tanh": lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "relu": lambda: np.maximum(x, 0),
        }[activation]()
    return y if up is None else y * up.astype(np.float64)
