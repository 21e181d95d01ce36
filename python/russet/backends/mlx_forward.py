"""The forward pass in MLX's arrays: what csrc/model/forward.cpp and its operations compute, for MLX to run.

x, the residual stream, is float32, as on every device. What lies between is of the backend's dtype, and so are keys and
values. Nothing here is evaluated: a pass is a graph until its caller asks for the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from russet import _core
from russet.backends.core import core_config
from russet.config import Config, Rope
from russet.quantization import QuantizedTensor
from russet.safetensors import release_pages
from russet.weights import POSITIONS, ToQuantize, Weight, Weights

#: numpy's names of the types, and the checkpoint's.
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

_MLX_DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}

_CACHE_STEP = 256  # tokens by which keys and values grow; every growth copies them

_CONST_TANH = math.sqrt(2 / math.pi)

_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + mx.tanh(_CONST_TANH * (x + 0.044715 * x * x * x))),
    "relu": lambda x: mx.maximum(x, 0),
}


class Cache:
    """Keys and values of one sequence, [1, n_kv_heads, capacity, head_dim] a layer; its first n_tokens count."""

    def __init__(self, config: Config, n_ctx: int, dtype: str) -> None:
        self.n_ctx = n_ctx
        self.n_tokens = 0
        #: The pass begun for the next token: the token it was fed, and the likeliest one after that.
        self.ahead: tuple[int, mx.array] | None = None
        self._shape = config.n_kv_heads, config.head_dim
        self._dtype = _MLX_DTYPES[dtype]
        self._capacity = 0
        self._bytes_per_token = config.n_layers * 2 * config.n_kv_heads * config.head_dim * self._dtype.size
        self.keys: list[mx.array] = [self._room(0)] * config.n_layers
        self.values = list(self.keys)

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many."""
        if n_tokens <= self._capacity:
            return
        capacity = min(-(-n_tokens // _CACHE_STEP) * _CACHE_STEP, self.n_ctx)
        more = self._room(capacity - self._capacity)
        for arrays in (self.keys, self.values):
            arrays[:] = [mx.concatenate([array[:, :, : self._capacity], more], axis=2) for array in arrays]
        self._capacity = capacity

    def _room(self, n_tokens: int) -> mx.array:
        n_heads, head_dim = self._shape
        return mx.zeros((1, n_heads, n_tokens, head_dim), self._dtype)

    def store(self, layer: int, pos: int, k: mx.array, v: mx.array) -> None:
        """k, v [1, n_kv_heads, n, head_dim] of the positions from pos on."""
        end = pos + k.shape[2]
        self.keys[layer][:, :, pos:end] = k
        self.values[layer][:, :, pos:end] = v

    def clear(self) -> None:
        """Forget all: after a pass that failed nothing in the arrays is to be trusted."""
        self.n_tokens = self._capacity = 0
        self.ahead = None
        self.keys[:] = self.values[:] = [self._room(0)] * len(self.keys)

    def bytes(self) -> int:
        return self.n_tokens * self._bytes_per_token


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence, as part of a batch."""

    cache: Cache
    begin: int  #: row of the first in the batch
    pos: int  #: position of the first
    n: int
    tables: list[tuple[mx.array, mx.array]]  #: of every rope, cosines and sines f32 [n, rotary_dim / 2]

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.begin + self.n)

    def first_key(self, window: int) -> int:
        """The first key that any of the tokens sees; window 0: all before it."""
        return max(0, self.pos - window + 1) if window else 0

    def mask(self, window: int) -> mx.array | str | None:
        """What scaled_dot_product_attention() takes: which keys from first_key() on each token sees."""
        if self.n == 1:
            return None
        if window == 0 or self.pos + self.n <= window:
            return "causal"
        return self.seen(window)

    def seen(self, window: int) -> mx.array:
        """The same as booleans [n, n_keys]."""
        query = mx.arange(self.pos, self.pos + self.n)[:, None]
        key = mx.arange(self.first_key(window), self.pos + self.n)[None]
        causal = key <= query
        return mx.logical_and(causal, key > query - window) if window else causal


class Forward:
    """The transformer of one Config and its weights.

    dtype: a name of weights.DTYPES: of activations, keys and values
    fused: let MLX compile elementwise steps into one kernel each
    """

    def __init__(self, config: Config, weights: Weights, dtype: str, *, fused: bool) -> None:
        self.config = config
        self.dtype = _MLX_DTYPES[dtype]
        self.embed = _Matrix(weights["embed.w"])
        self.positions = _Matrix(weights[POSITIONS]) if POSITIONS in weights else None
        self.layers = [_Layer(config, weights, f"layers.{i}.", self.dtype) for i in range(config.n_layers)]
        self.final_norm = _Norm.of(config, weights, "final_norm")
        self.head = _Linear(weights, "head", self.dtype) if "head.w" in weights else _Linear.tied(self.embed)
        self.ropes = [_Rope(rope, index) for index, rope in enumerate(config.ropes)]
        self._core_config = core_config(config)
        activation, scale = _ACTIVATIONS[config.activation], config.residual_scale
        f32 = mx.float32
        steps: tuple[Callable[..., mx.array], ...] = (
            lambda gate: activation(gate.astype(f32)).astype(gate.dtype),
            lambda gate, up: (activation(gate.astype(f32)) * up.astype(f32)).astype(gate.dtype),
            lambda x, y: x + (y.astype(f32) if scale == 1 else y.astype(f32) * scale),
        )
        if fused:
            steps = tuple(mx.compile(step, shapeless=True) for step in steps)
        self._activate, self._gate, self._add = steps

    def weight_bytes(self) -> int:
        """Bytes of weights that computing one more token reads: of a table only one row."""
        tables = [self.positions, None if self.head.w is self.embed else self.embed]
        arrays = {id(array): array for array in self.arrays()}
        for table in tables:
            for array in table.parts if table else ():
                del arrays[id(array)]
        return sum(array.nbytes for array in arrays.values())

    def arrays(self) -> list[mx.array]:
        """All weights."""
        linears = [self.head, *(linear for layer in self.layers for linear in layer.linears())]
        norms = [self.final_norm, *(norm for layer in self.layers for norm in layer.norms())]
        matrices = [self.embed, self.positions, *(linear.w for linear in linears)]
        vectors = [linear.bias for linear in linears] + [part for norm in norms if norm for part in (norm.w, norm.bias)]
        return [part for m in matrices if m for part in m.parts] + [v for v in vectors if v is not None]

    # ---- one pass ----

    def segment(self, cache: Cache, begin: int, pos: int, n: int, text_length: int = 0) -> Segment:
        """The cache's next n tokens from position pos on, with room for their keys."""
        cache.reserve(max(pos + n, min(text_length, cache.n_ctx)))
        tables: list[tuple[mx.array, mx.array]] = []
        if any(rope.freqs is None for rope in self.ropes):
            arrays = _core.rope_tables(self._core_config, pos, n, text_length)
            tables = [(mx.array(cos), mx.array(sin)) for cos, sin in arrays]
        return Segment(cache, begin, pos, n, tables)

    def logits(self, tokens: mx.array, segments: Sequence[Segment], rows: Sequence[int]) -> mx.array:
        """One pass over a ragged batch: tokens [n_tokens] in, logits f32 [n_rows, vocab_size] of some rows out."""
        x = self.hidden(tokens, segments)
        return self.scored(x if len(rows) == x.shape[0] else x[mx.array(rows)])

    def hidden(self, tokens: mx.array, segments: Sequence[Segment]) -> mx.array:
        """x [n_tokens, dim] f32 behind the last layer."""
        return self.through(self.embedded(tokens, segments), segments, 0, len(self.layers))

    def embedded(self, tokens: mx.array, segments: Sequence[Segment]) -> mx.array:
        """x [n_tokens, dim] f32."""
        x = self.embed.rows(tokens)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if self.positions:
            pos = mx.concatenate([mx.arange(s.pos, s.pos + s.n) for s in segments])
            x = x + self.positions.rows(pos)
        return x

    def through(self, x: mx.array, segments: Sequence[Segment], begin: int, end: int) -> mx.array:
        """x behind the layers from begin to end; their keys and values go to the caches of the segments."""
        for index, layer in enumerate(self.layers[begin:end], begin):
            h = self._input(layer.attn_norm, x)
            y = layer.o(self._attention(index, layer, h, segments))
            if self.config.parallel_residual:
                h = self._input(layer.ffn_norm, x)
                x = self._residual(x, y, layer.attn_post_norm)
            else:
                x = self._residual(x, y, layer.attn_post_norm)
                h = self._input(layer.ffn_norm, x)
            gate = layer.gate(h)
            hidden = self._gate(gate, layer.up(h)) if layer.up else self._activate(gate)
            x = self._residual(x, layer.down(hidden), layer.ffn_post_norm)
        return x

    def scored(self, x: mx.array) -> mx.array:
        """Logits f32 [n_rows, vocab_size]."""
        c = self.config
        logits = self.head(self._input(self.final_norm, x)).astype(mx.float32)
        if c.logits_scale != 1:
            logits = logits * c.logits_scale
        if c.logits_softcap > 0:
            logits = mx.tanh(logits / c.logits_softcap) * c.logits_softcap
        return logits

    def _input(self, norm: _Norm | None, x: mx.array) -> mx.array:
        return (norm(x) if norm else x).astype(self.dtype)

    def _residual(self, x: mx.array, y: mx.array, post_norm: _Norm | None) -> mx.array:
        return self._add(x, post_norm(y) if post_norm else y)

    # ---- attention ----

    def _attention(self, index: int, layer: _Layer, h: mx.array, segments: Sequence[Segment]) -> mx.array:
        """h [n_tokens, dim] -> [n_tokens, n_heads * head_dim]"""
        q, k, v = layer.q(h), layer.k(h), layer.v(h)
        if layer.q_norm:
            q = layer.q_norm.heads(q).astype(self.dtype)
        if layer.k_norm:
            k = layer.k_norm.heads(k).astype(self.dtype)
        attended = [self._attend(index, s, q[s.rows], k[s.rows], v[s.rows]) for s in segments]
        return attended[0] if len(attended) == 1 else mx.concatenate(attended)

    def _attend(self, index: int, segment: Segment, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        c = self.config
        q, k, v = (x.reshape(1, segment.n, -1, c.head_dim).transpose(0, 2, 1, 3) for x in (q, k, v))
        if c.layer_rope[index] >= 0:
            rope = self.ropes[c.layer_rope[index]]
            q, k = rope(q, segment), rope(k, segment)
        cache, window = segment.cache, c.layer_window[index]
        cache.store(index, segment.pos, k, v)
        seen = slice(segment.first_key(window), segment.pos + segment.n)
        keys, values = cache.keys[index][:, :, seen], cache.values[index][:, :, seen]
        if c.attention_softcap > 0:
            out = self._softcapped(q, keys, values, segment.seen(window))
        else:
            mask = segment.mask(window)
            out = mx.fast.scaled_dot_product_attention(q, keys, values, scale=c.attention_scale, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(segment.n, -1)

    def _softcapped(self, q: mx.array, keys: mx.array, values: mx.array, seen: mx.array) -> mx.array:
        c = self.config
        q = (q * c.attention_scale).reshape(1, c.n_kv_heads, -1, *q.shape[2:])  # the heads that share keys together
        scores = (q @ keys[:, :, None].swapaxes(-1, -2)).astype(mx.float32)
        scores = mx.tanh(scores / c.attention_softcap) * c.attention_softcap
        probs = mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1)
        out = probs.astype(q.dtype) @ values[:, :, None]
        return out.reshape(1, c.n_heads, *out.shape[3:])


# ---- parts ----


class _Rope:
    """Turns the heads of q or k. What length does not change and a scale does not stretch is MLX's own; tables else."""

    def __init__(self, rope: Rope, index: int) -> None:
        self.index = index
        self.half = len(rope.inv_freq)
        is_fixed = rope.scale == 1 and not rope.long_inv_freq and not rope.dynamic_factor
        inv_freq = np.array(rope.inv_freq, np.float64)
        self.freqs = mx.array((1 / inv_freq).astype(np.float32)) if is_fixed else None

    def __call__(self, x: mx.array, segment: Segment) -> mx.array:
        """x [1, n_heads, n, head_dim]"""
        if self.freqs is not None:
            return mx.fast.rope(
                x, 2 * self.half, traditional=False, base=None, scale=1.0, offset=segment.pos, freqs=self.freqs
            )
        cos, sin = segment.tables[self.index]
        a, b, rest = mx.split(x, [self.half, 2 * self.half], axis=-1)
        turned = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype), rest]
        return mx.concatenate(turned, axis=-1)


class _Norm:
    def __init__(self, kind: str, eps: float, w: mx.array | None, bias: mx.array | None) -> None:
        self.kind, self.eps, self.w, self.bias = kind, eps, w, bias

    @staticmethod
    def of(config: Config, weights: Weights, role: str) -> _Norm | None:
        if f"{role}.w" not in weights:
            return None
        w, bias = (_vector(weights.get(f"{role}.{part}")) for part in ("w", "bias"))
        return _Norm(config.norm, config.norm_eps, w, bias)

    def __call__(self, x: mx.array) -> mx.array:
        if self.kind == "rms":
            return mx.fast.rms_norm(x, self.w, self.eps)
        return mx.fast.layer_norm(x, self.w, self.bias, self.eps)

    def heads(self, x: mx.array) -> mx.array:
        """Rows of x in pieces as wide as the norm: heads one by one, or all together."""
        assert self.w is not None
        return self(x.reshape(x.shape[0], -1, self.w.size)).reshape(x.shape)


class _Matrix:
    """Weights as they are stored, in MLX's memory: one array of floats, or codes, scales and biases."""

    def __init__(self, weight: Weight) -> None:
        if isinstance(weight, ToQuantize):
            weight = weight.quantize(_core.default_threads())
        self.groups: dict[str, int] = {}
        if isinstance(weight, QuantizedTensor):
            self.groups = {"group_size": weight.group_size, "bits": weight.bits}
            scales, biases = (_array(part, weight.dtype) for part in (weight.scales, weight.biases))
            self.parts = [_array(weight.codes, "u32"), scales, biases]
        else:
            self.parts = [_array(*weight)]

    def times(self, x: mx.array) -> mx.array:
        """x [n, n_cols] -> [n, n_rows]"""
        if self.groups:
            return mx.quantized_matmul(x, *self.parts, transpose=True, **self.groups)
        return x @ self.parts[0].T

    def rows(self, indices: mx.array) -> mx.array:
        """f32 [n, n_cols]"""
        rows = [part[indices] for part in self.parts]
        if not self.groups:
            return rows[0].astype(mx.float32)
        codes, scales, biases = rows
        return mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **self.groups)


class _Linear:
    def __init__(self, weights: Weights, role: str, dtype: Any) -> None:
        self.w = _Matrix(weights[f"{role}.w"])
        bias = _vector(weights.get(f"{role}.bias"))
        self.bias = None if bias is None else bias.astype(dtype)

    @classmethod
    def tied(cls, table: _Matrix) -> _Linear:
        linear = cls.__new__(cls)
        linear.w, linear.bias = table, None
        return linear

    def __call__(self, x: mx.array) -> mx.array:
        """x [n, n_inputs] -> [n, n_outputs], of x's type."""
        y = self.w.times(x).astype(x.dtype)
        return y if self.bias is None else y + self.bias


class _Layer:
    def __init__(self, config: Config, weights: Weights, prefix: str, dtype: Any) -> None:
        def linear(name: str) -> _Linear:
            return _Linear(weights, prefix + name, dtype)

        def norm(name: str) -> _Norm | None:
            return _Norm.of(config, weights, prefix + name)

        self.q, self.k, self.v, self.o = linear("q"), linear("k"), linear("v"), linear("o")
        self.gate, self.down = linear("gate"), linear("down")
        self.up = linear("up") if f"{prefix}up.w" in weights else None
        self.attn_norm, self.attn_post_norm = norm("attn_norm"), norm("attn_post_norm")
        self.ffn_norm, self.ffn_post_norm = norm("ffn_norm"), norm("ffn_post_norm")
        self.q_norm, self.k_norm = norm("q_norm"), norm("k_norm")

    def linears(self) -> list[_Linear]:
        return [part for part in vars(self).values() if isinstance(part, _Linear)]

    def norms(self) -> list[_Norm]:
        return [part for part in vars(self).values() if isinstance(part, _Norm)]


def _vector(weight: Weight | None) -> mx.array | None:
    if weight is None:
        return None
    assert isinstance(weight, tuple)
    return _array(*weight)


def _array(array: np.ndarray[Any, Any], dtype: str) -> mx.array:
    """MLX takes no memory of others: it copies, and the pages of the file that were read for it are given back."""
    copy = mx.array(array)
    release_pages(array)
    return copy.view(mx.bfloat16) if dtype == "bf16" else copy
