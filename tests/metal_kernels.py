"""What the tests of the shaders share: how one is run, and matrices in every way that metal/args.h has them stored."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import reference
from affine import Affine, random_affine
from kernels import DTYPES, U, assert_close, stored
from metal_args import METAL
from russet import metal_sim

#: In which order threads, SIMD-groups and threadgroups run: forward, reverse, shuffled.
SCHEDULES = (0, 1, 20)

#: The W of kernel names.
STORED_AS = (*DTYPES, *(f"int{bits}_{dtype}" for bits in (8, 4) for dtype in DTYPES))

#: Half the distance between 1 and the next number: what storing a result costs, as a share of it.
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}

#: By number, as Activation of csrc/kernels/gate/gate.h.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@functools.cache
def shader(op: str) -> metal_sim.Library:
    return metal_sim.compile_file(METAL / f"{op}.metal", [METAL])


@functools.cache
def counting_shader(op: str, kernel: str) -> metal_sim.Library:
    return metal_sim.compile_file(METAL / f"{op}.metal", [METAL], count=True, kernels=[kernel])


def run(
    op: str,
    kernel: str,
    buffers: Sequence[object],
    groups: tuple[int, ...],
    threads: tuple[int, ...],
    schedule: int = 0,
    count: bool = False,
) -> metal_sim.Report:
    """Runs a kernel of metal/<op>.metal; `buffers` from 0 on, None where one is absent and must not be touched.

    The report has the bytes read and written where they are to be counted.
    """
    if count and metal_sim.default_sanitizer():
        pytest.skip("a sanitizer's accesses would be counted too")
    library = counting_shader(op, kernel) if count else shader(op)
    absent = np.empty(0, np.uint8)
    bound = dict.fromkeys(library.kernels[kernel].buffers, absent)
    bound.update((i, buffer) for i, buffer in enumerate(buffers) if buffer is not None)
    return library.run(kernel, bound, groups=groups, threads=threads, schedule=schedule)


def empty(shape: Sequence[int], dtype: str) -> np.ndarray:
    """NaN everywhere: what a kernel leaves out shows."""
    return stored(np.full(shape, np.nan, np.float32), dtype)[0]


def rounded(y: np.ndarray, dtype: str) -> np.ndarray:
    """What a result becomes when it is stored, widened again."""
    with np.errstate(over="ignore"):  # beyond f16 lies inf
        return reference.widen(stored(y.astype(np.float32), dtype)[0], dtype)


def small_integers(rng, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(np.float32)


@dataclass
class Matrix:
    """A matrix as a kernel takes it, and what it stands for."""

    codes: np.ndarray
    scales: np.ndarray | None
    biases: np.ndarray | None
    group_size: int
    wide: np.ndarray  #: float64 [n_rows, n_cols]
    sizes: np.ndarray  #: what rounding errors are a share of, likewise

    @property
    def buffers(self) -> tuple[np.ndarray | None, ...]:
        return self.codes, self.scales, self.biases

    def sizes_with(self, x: np.ndarray) -> np.ndarray:
        """Of each sum of W x the sum of the sizes of its terms."""
        return np.abs(x).astype(np.float64) @ self.sizes.T


def check_close(y: np.ndarray, expected: np.ndarray, error: np.ndarray, dtype: str) -> None:
    """That y is within `error`, before it was rounded to dtype; 4 U are for the operations after the sum."""
    subnormal = 2.0**-25  # half of the smallest f16
    assert_close(y, expected, error + (ROUNDING[dtype] + 4 * U) * (np.abs(expected) + error) + subnormal)


def _of_affine(matrix: Affine) -> Matrix:
    wide, sizes = matrix.dequantized(), matrix.sizes()
    return Matrix(matrix.codes, matrix.scales, matrix.biases, matrix.group_size, wide, sizes)


def _of_floats(w: np.ndarray, dtype: str) -> Matrix:
    codes, _ = stored(w, dtype)
    wide = reference.widen(codes, dtype).astype(np.float64)
    return Matrix(codes, None, None, 0, wide, np.abs(wide))


def random_matrix(rng, n_rows: int, n_cols: int, stored_as: str, group_size: int) -> Matrix:
    if stored_as in DTYPES:
        return _of_floats(rng.normal(size=(n_rows, n_cols)), stored_as)
    bits, dtype = stored_as.removeprefix("int").split("_")
    return _of_affine(random_affine(rng, n_rows, n_cols, int(bits), group_size, dtype))


def integer_matrix(rng, n_rows: int, n_cols: int, stored_as: str, group_size: int) -> Matrix:
    """Integers of at most 8: with small integers for x, all sums are exact in any order."""
    if stored_as in DTYPES:
        return _of_floats(rng.integers(-8, 9, (n_rows, n_cols)).astype(np.float32), stored_as)
    bits, dtype = stored_as.removeprefix("int").split("_")
    top = 2 ** int(bits)
    q = rng.integers(0, 16, (n_rows, n_cols)) + rng.choice([0, top - 16], (n_rows, n_cols // group_size)).repeat(
        group_size, axis=1
    )  # both ends of the range of codes
    low = q.reshape(n_rows, -1, group_size).min(axis=2)
    scales = rng.choice([-1.0, 1.0, 0.5], low.shape)
    biases = -scales * (low - low % 2 + 8)
    return _of_affine(Affine(q, stored(scales, dtype)[0], stored(biases, dtype)[0], dtype, int(bits), group_size))


def columns(size: tuple[int, int, int, int], stored_as: str, group_size: int) -> int:
    """Of a matrix in a sweep's (rows, tokens, columns of floats, groups of affine)."""
    return size[2] if stored_as in DTYPES else size[3] * group_size
