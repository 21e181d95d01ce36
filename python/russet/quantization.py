"""Quantisation: weights as 8 or 4 bits in groups that share a scale and a bias, as MLX stores them.

    w[r, c] = scales[r, g] * q[r, c] + biases[r, g],   g = c // group_size

Here is what to quantise and how, and a matrix in that form. The arithmetic is csrc/weights/affine.h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from russet import _core
from russet.errors import UsageError, WeightsError
from russet.safetensors import widened

BITS = (8, 4)
GROUP_SIZES = (128, 64, 32)

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How weights are quantised. "int8" and "int4" stand for the defaults of their bits.

    >>> Quantization.of("int4")
    Quantization(bits=4, group_size=64, symmetric=False, overrides={})
    >>> Quantization(bits=4, overrides={"*embed*": "int8", "lm_head": "int8", "*.v_proj": "float"})
    ...                                                             # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    Quantization(bits=4, group_size=64, symmetric=False, overrides={...})
    """

    bits: int = 8  #: 8 or 4
    group_size: int = 0  #: weights that share a scale: 32, 64 or 128; 0: 128 for 8 bits, 64 for 4
    symmetric: bool | None = None  #: zero is a code, and biases follow from scales; None: for 8 bits
    #: pattern of tensor names, without ".weight" -> what these are instead: another Quantization, or "int8", "int4",
    #: "float". The first pattern that fits counts.
    overrides: Mapping[str, Quantization | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise UsageError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        need(type(self.bits) is int and self.bits in BITS, "bits", "8 or 4")
        if self.group_size == 0:
            object.__setattr__(self, "group_size", 128 if self.bits == 8 else 64)
        need(type(self.group_size) is int and self.group_size in GROUP_SIZES, "group_size", "32, 64 or 128")
        if self.symmetric is None:
            object.__setattr__(self, "symmetric", self.bits == 8)
        need(isinstance(self.symmetric, bool), "symmetric", "True or False")
        need(isinstance(self.overrides, Mapping), "overrides", "patterns of names, and what these are instead")
        overrides = {pattern: self._override(pattern, said) for pattern, said in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)

    @staticmethod
    def _override(pattern: str, said: Quantization | str) -> Quantization | str:
        if said == "float":
            return said
        quantization = None
        if isinstance(said, (Quantization, str)):
            quantization = Quantization.of(said)
        if not isinstance(pattern, str) or quantization is None or quantization.overrides:
            raise UsageError(f"overrides: {pattern!r}: expected a name and 'int8', 'int4' or 'float', got {said!r}")
        return quantization

    @staticmethod
    def of(said: Quantization | str | None) -> Quantization | None:
        """What a caller means by "int8", "int4", a Quantization or None. Raises UsageError on anything else."""
        if said is None or isinstance(said, Quantization):
            return said
        if said == "int8":
            return Quantization(bits=8)
        if said == "int4":
            return Quantization(bits=4)
        raise UsageError(f"quantize: expected 'int8', 'int4' or a Quantization, got {said!r}")

    def of_tensor(self, name: str) -> Quantization | None:
        """How the tensor of this name is to be quantised; None: not at all."""
        name = name.removesuffix(".weight")
        for pattern, said in self.overrides.items():
            if fnmatchcase(name, pattern):
                return said if isinstance(said, Quantization) else None
        return self

    def fitting(self, n_cols: int) -> Quantization | None:
        """The same with a group size that divides n_cols, as large as can be; None: there is none."""
        for group_size in GROUP_SIZES:
            if group_size <= self.group_size and n_cols % group_size == 0:
                return replace(self, group_size=group_size)
        return None

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.bits} bits, groups of {self.group_size}, {kind}"


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix in affine groups, in MLX's arrays."""

    codes: _Array  #: uint32 [n_rows, n_cols * bits / 32], the first code in the lowest bits
    scales: _Array  #: [n_rows, n_cols / group_size] of dtype; bf16 as uint16
    biases: _Array  #: likewise
    dtype: str  #: of scales and biases: f32, f16 or bf16
    bits: int
    group_size: int

    @property
    def n_rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def n_cols(self) -> int:
        return int(self.codes.shape[1]) * 32 // self.bits

    @property
    def n_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.biases.nbytes

    def rows(self, rows: slice | _Array) -> QuantizedTensor:
        """Some of its rows: views where `rows` is a slice."""
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], biases=self.biases[rows])

    def dequantized(self) -> _Array:
        """What it stands for, float32 [n_rows, n_cols]: exact products, rounded once with the bias."""
        shifts = np.arange(32 // self.bits, dtype=np.uint32) * np.uint32(self.bits)
        q = (self.codes[:, :, None] >> shifts) & np.uint32(2**self.bits - 1)
        groups = q.reshape(self.n_rows, -1, self.group_size).astype(np.float64)
        scales, biases = (widened(part, self.dtype).astype(np.float64) for part in (self.scales, self.biases))
        values: _Array = scales[:, :, None] * groups + biases[:, :, None]
        return values.reshape(self.n_rows, self.n_cols).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """What a tensor lost, against its float weights."""

    max: float  #: the largest error of a weight
    rms: float  #: root mean square of all errors
    relative: float  #: the same, in parts of the weights' own root mean square
    cosine: float  #: between the weights before and after, 1 where they point the same way


def quantize_matrix(
    weights: _Array, dtype: str, how: Quantization, *, name: str, n_threads: int = 1
) -> QuantizedTensor:
    """Quantise a matrix [n_rows, n_cols] of f32, f16 or (as uint16) bf16; `how.group_size` must divide n_cols.

    Raises WeightsError, with the tensor's name, on NaN and infinity.
    """
    try:
        parts = _core.to_affine(weights, dtype, how.bits, how.group_size, bool(how.symmetric), n_threads)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}; download the file again") from None
    return QuantizedTensor(*parts, dtype, how.bits, how.group_size)


def error_of(weights: _Array, quantized: QuantizedTensor, *, n_threads: int = 1) -> TensorError:
    """What `quantized` lost of the weights [n_rows, n_cols], which are of the same dtype as its scales."""
    q = quantized
    parts = q.codes, q.scales, q.biases
    most, errors, ww, vv, wv = _core.affine_errors(weights, q.dtype, *parts, q.bits, q.group_size, n_threads)
    return TensorError(
        max=most,
        rms=math.sqrt(errors / weights.size),
        relative=math.sqrt(errors / ww) if ww else 0.0,
        cosine=wv / math.sqrt(ww * vv) if ww * vv else 1.0,
    )
