"""What the kernel tests share: the C++ tables, weights as they are stored, bounds from the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from russet import _core

U = 2.0**-24  #: the relative rounding error of one float32 operation

DTYPES = ("f32", "f16", "bf16")


def all_variants(op: str) -> list:
    """Every variant of the op by name; one this chip lacks is skipped, by name."""

    def skip_unless(runs_here: bool, name: str) -> pytest.MarkDecorator:
        return pytest.mark.skipif(not runs_here, reason=f"{op} {name}: not on this chip")

    return [
        pytest.param(name, marks=skip_unless(runs_here, name)) for name, runs_here, _ in _core.kernels.variants()[op]
    ]


def all_weight_variants(op: str) -> list:
    """(variant, dtype) for the ops that read weights. Some variants are for f32 alone."""
    tables = _core.kernels.variants()
    return [
        pytest.param(*variant.values, dtype, marks=variant.marks, id=f"{variant.values[0]}-{dtype}")
        for dtype in DTYPES
        for variant in all_variants(f"{op}_{dtype}" if f"{op}_{dtype}" in tables else op)
    ]


def active_variants(op: str) -> list[str]:
    return [name for name, _, active in _core.kernels.variants()[op] if active]


def stored(x: np.ndarray, dtype: str) -> tuple[np.ndarray, str]:
    """x rounded to a stored type, as the core takes it: bf16 is the rounded upper half of an f32."""
    if dtype == "bf16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), dtype
    return np.ascontiguousarray(x, {"f32": np.float32, "f16": np.float16}[dtype]), dtype


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same array at an address that is 2 bytes off any multiple of 64, as tensors lie in some files."""
    buffer = np.empty(x.nbytes + 66, np.uint8)
    start = (2 - buffer.ctypes.data) % 64
    y = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    assert y.ctypes.data % 64 == 2
    return y


def sum_bound(n: int) -> float:
    """How far a float32 sum of n products may be from the true one, as a share of the sum of their sizes.

    Each of n additions rounds by at most U; the errors are as good as independent, so they add like the steps
    of a random walk, sqrt(n) U and not n U (Higham & Mary, SISC 41(5), 2019). The 8 is for short sums.
    """
    return (8 + float(np.sqrt(n))) * U


def assert_close(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """|actual - expected| <= bound, element by element; NaN only where it is expected."""
    assert actual.shape == expected.shape
    excess = np.abs(actual - expected) - bound
    excess = np.where(np.isnan(actual) | np.isnan(expected), np.inf, excess)
    excess[np.isnan(actual) & np.isnan(expected)] = -np.inf
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[worst] <= 0, (
        f"at {tuple(map(int, worst))}: expected {expected[worst]!r}, got {actual[worst]!r}, "
        f"{excess[worst]:.3g} beyond the bound; {int((excess > 0).sum())} of {excess.size} are"
    )
