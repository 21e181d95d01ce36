"""Weights in MLX's memory: as they are stored, and what they are multiplied by.

MLX takes no memory of others, not even that of a mapped file: it copies. So every weight is copied once, its pages of
the file are given back at once, and it is in memory once all the same.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from russet import _core
from russet.backends.mlx.shard import Shard
from russet.config import Config
from russet.quantization import QuantizedTensor
from russet.safetensors import aligned, release_pages
from russet.weights import ToQuantize, Weights

MLX_DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


class Floats:
    """A matrix [n_rows, n_cols] of floats."""

    def __init__(self, w: mx.array) -> None:
        self.w = w

    def times(self, x: mx.array) -> mx.array:
        """x [n, n_cols] -> [n, n_rows]"""
        return x @ self.w.T

    def rows(self, indices: mx.array) -> mx.array:
        """f32 [n, n_cols]"""
        return self.w[indices].astype(mx.float32)


class Groups:
    """The same in affine groups."""

    def __init__(self, codes: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int) -> None:
        self.codes, self.scales, self.biases = codes, scales, biases
        self.bits, self.group_size = bits, group_size

    def times(self, x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, self.codes, self.scales, self.biases, group_size=self.group_size, bits=self.bits)

    def rows(self, indices: mx.array) -> mx.array:
        scales, biases = (part[indices].astype(mx.float32) for part in (self.scales, self.biases))
        return mx.dequantize(self.codes[indices], scales, biases, group_size=self.group_size, bits=self.bits)


class Linear:
    def __init__(self, w: Floats | Groups, bias: mx.array | None) -> None:
        self.w = w
        self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """x [n, n_inputs] -> [n, n_outputs], of x's type"""
        y = self.w.times(x).astype(x.dtype)
        return y if self.bias is None else y + self.bias


class Norm:
    def __init__(self, config: Config, w: mx.array, bias: mx.array | None) -> None:
        self.kind, self.eps = config.norm, config.norm_eps
        self.w, self.bias = w, bias

    def __call__(self, x: mx.array) -> mx.array:
        """Whole rows, of x's type where that is the weights' too."""
        if self.kind == "rms":
            return mx.fast.rms_norm(x, self.w, self.eps)
        return mx.fast.layer_norm(x, self.w, self.bias, self.eps)

    def of_heads(self, x: mx.array) -> mx.array:
        """The same of rows in pieces as wide as the norm: each head by itself, or all together."""
        return self(x.reshape(x.shape[0], -1, self.w.size)).reshape(x.shape)


class Layer:
    """One layer's products and norms; None: this model has none there.

    Norms of x are float32 as x is; those of q, k and what a product gave are of the activations' type.
    """

    def __init__(self, weights: MlxWeights, index: int) -> None:
        prefix, dtype = f"layers.{index}.", weights.dtype
        self.attn_norm = weights.norm(f"{prefix}attn_norm", mx.float32)
        self.q = weights.linear(f"{prefix}q")
        self.k = weights.linear(f"{prefix}k")
        self.v = weights.linear(f"{prefix}v")
        self.q_norm = weights.norm(f"{prefix}q_norm", dtype)
        self.k_norm = weights.norm(f"{prefix}k_norm", dtype)
        self.o = weights.linear(f"{prefix}o")
        self.attn_post_norm = weights.norm(f"{prefix}attn_post_norm", dtype)
        self.ffn_norm = weights.norm(f"{prefix}ffn_norm", mx.float32)
        self.gate = weights.linear(f"{prefix}gate")
        self.up = weights.linear(f"{prefix}up") if f"{prefix}up.w" in weights else None
        self.down = weights.linear(f"{prefix}down")
        self.ffn_post_norm = weights.norm(f"{prefix}ffn_post_norm", dtype)


class MlxWeights:
    """Takes weights, role by role, into MLX's memory.

    dtype: of activations, and so of what is added to them; matrices stay what they are
    shard: cuts its part from every weight
    """

    def __init__(self, config: Config, weights: Weights, dtype: mx.Dtype, shard: Shard) -> None:
        self.n_bytes = 0  #: of all that was taken
        self._config = config
        self._weights = weights
        self._shard = shard
        self.dtype = dtype

    def __contains__(self, role: str) -> bool:
        return role in self._weights

    def matrix(self, role: str) -> Floats | Groups:
        weight = self._weights[role]
        if isinstance(weight, ToQuantize):
            weight = weight.quantize(_core.default_threads())
        weight = self._shard.cut(role, weight)
        if isinstance(weight, QuantizedTensor):
            codes = self._take(weight.codes, "u32")
            scales, biases = (self._take(part, weight.dtype) for part in (weight.scales, weight.biases))
            return Groups(codes, scales, biases, weight.bits, weight.group_size)
        return Floats(self._take(*weight))

    def linear(self, role: str) -> Linear:
        return Linear(self.matrix(f"{role}.w"), self._vector(f"{role}.bias", self.dtype))

    def norm(self, role: str, dtype: mx.Dtype) -> Norm | None:
        w = self._vector(f"{role}.w", dtype)
        return None if w is None else Norm(self._config, w, self._vector(f"{role}.bias", dtype))

    def _vector(self, role: str, dtype: mx.Dtype) -> mx.array | None:
        weight = self._weights.get(role)
        if weight is None:
            return None
        assert not isinstance(weight, ToQuantize)
        weight = self._shard.cut(role, weight)
        assert isinstance(weight, tuple)
        return self._take(*weight).astype(dtype)

    def _take(self, array: np.ndarray[Any, Any], dtype: str) -> mx.array:
        copy = mx.array(aligned(array))
        release_pages(array)
        self.n_bytes += copy.nbytes
        return copy.view(mx.bfloat16) if dtype == "bf16" else copy
