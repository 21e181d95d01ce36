"""Affine groups in numpy: w = scale * q + bias, q unsigned, packed into uint32 as MLX packs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import reference
from kernels import stored
from russet import _core

GROUP_SIZES = (32, 64, 128)


@dataclass
class Affine:
    """A matrix as it is stored, and what it stands for."""

    q: np.ndarray  #: [n_rows, n_cols]
    scales: np.ndarray  #: [n_rows, n_groups] of dtype; biases likewise
    biases: np.ndarray
    dtype: str
    bits: int
    group_size: int

    @property
    def codes(self) -> np.ndarray:
        """uint32 [n_rows, n_cols * bits / 32], the first code in the lowest bits."""
        per_word = 32 // self.bits
        words = self.q.astype(np.uint32).reshape(len(self.q), -1, per_word)
        return (words << (np.arange(per_word, dtype=np.uint32) * self.bits)).sum(axis=2, dtype=np.uint32)

    def _of_columns(self, of_groups: np.ndarray) -> np.ndarray:
        return np.repeat(reference.widen(of_groups, self.dtype).astype(np.float64), self.group_size, axis=1)

    def dequantized(self) -> np.ndarray:
        """scale * q + bias, float64 [n_rows, n_cols]"""
        return self._of_columns(self.scales) * self.q + self._of_columns(self.biases)

    def sizes(self) -> np.ndarray:
        """What rounding errors are a share of: |scale * q| + |bias|, for the q and for the middle of its range."""
        most = np.maximum(self.q, 2 ** (self.bits - 1))
        return np.abs(self._of_columns(self.scales)) * most + np.abs(self._of_columns(self.biases))

    def packed(self, *, sliced: bool = False) -> _core.PackedMatrix:
        arena = _core.Arena(2 * (len(self.q) + 16) * self.q.shape[1])  # whole bands, and floats for every 32 codes
        arrays = (self.codes, self.scales, self.biases)
        return _core.PackedMatrix(arena, *arrays, self.dtype, self.bits, self.group_size, sliced=sliced)


def random_affine(rng, n_rows, n_cols, bits, group_size, dtype="f32", symmetric=False) -> Affine:
    """Codes that take their extremes more often than a uniform draw would."""
    center = 2 ** (bits - 1)
    q = rng.integers(-center // 2, 2**bits + center // 2, (n_rows, n_cols)).clip(0, 2**bits - 1)
    scales, _ = stored(rng.uniform(0.5, 1.5, (n_rows, n_cols // group_size)) / 2**bits, dtype)
    wide = reference.widen(scales, dtype)
    biases, _ = stored(-center * wide if symmetric else rng.normal(size=wide.shape), dtype)
    return Affine(q, scales, biases, dtype, bits, group_size)
