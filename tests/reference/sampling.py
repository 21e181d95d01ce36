"""The steps of csrc/sampler/sampler.h by their definitions: float64, sorts, logits in and logits out.

-inf is a token that is no candidate. Where equal tokens lie on a cut the lower ids stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def _only(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The logits where `kept`, a mask or ids, says so."""
    y = np.full_like(x, -np.inf)
    y[kept] = x[kept]
    return y


def _until(x: np.ndarray, order: np.ndarray, p: float) -> np.ndarray:
    """The first tokens of the order that together reach probability p."""
    reached = np.cumsum(softmax(x)[order]) >= p
    return _only(x, order[: reached.argmax() + 1] if reached.any() else order)


def _falling(keys: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(keys)), -keys))


def temperature(x: np.ndarray, t: float) -> np.ndarray:
    return x / t


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    return _only(x, _falling(x)[:k])


def top_p(x: np.ndarray, p: float) -> np.ndarray:
    return _until(x, _falling(x), p)


def min_p(x: np.ndarray, p: float) -> np.ndarray:
    return _only(x, softmax(x) >= p * softmax(x).max())


def top_n_sigma(x: np.ndarray, n: float) -> np.ndarray:
    return _only(x, x >= x.max() - n * np.std(x[np.isfinite(x)]))


def typical_p(x: np.ndarray, p: float) -> np.ndarray:
    probs = softmax(x)
    surprise = np.full_like(x, np.inf)
    surprise[probs > 0] = -np.log(probs[probs > 0])
    expected = (probs[probs > 0] * surprise[probs > 0]).sum()
    # As a float, as the core keeps it: tokens that differ by less are equal.
    return _until(x, _falling(-np.abs(surprise - expected).astype(np.float32)), p)


def xtc(x: np.ndarray, threshold: float) -> np.ndarray:
    """What is left where chance lets XTC act."""
    above = [i for i in _falling(x) if softmax(x)[i] >= threshold]
    out = above[:-1]
    return _only(x, np.setdiff1d(np.arange(len(x)), out))


def mirostat(x: np.ndarray, mu: float) -> np.ndarray:
    probs = softmax(x)
    return _only(x, probs >= min(2.0**-mu, probs.max()))


def penalties(
    x: np.ndarray,
    prompt: Sequence[int],
    generated: Sequence[int],
    *,
    repetition: float = 1,
    presence: float = 0,
    frequency: float = 0,
    window: int = 0,
) -> np.ndarray:
    y = x.copy()
    text = [(token, False) for token in prompt] + [(token, True) for token in generated]
    seen = text[-window:] if window else text
    for token in {token for token, _ in seen}:
        y[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
        n = seen.count((token, True))
        y[token] -= frequency * n + presence * (n > 0)
    return y


def dry(
    x: np.ndarray,
    text: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    window: int = 0,
    breakers: Sequence[int] = (),
) -> np.ndarray:
    text = list(text[-window:] if window else text)
    longest: dict[int, int] = {}
    for at in range(1, len(text)):  # would text[at] come again?
        length = 0
        while length < at and text[at - 1 - length] == text[-1 - length] and text[-1 - length] not in breakers:
            length += 1
        if length >= allowed_length:
            longest[text[at]] = max(longest.get(text[at], 0), length)
    y = x.copy()
    for token, length in longest.items():
        y[token] -= multiplier * base ** (length - allowed_length)
    return y
