"""The forward pass in MLX's arrays: what csrc/model/forward.cpp and its operations say, for MLX to compute.

x, the residual stream, is float32, as on every device. What lies between is of the backend's dtype, and so are keys and
values. A pass is a graph: nothing is computed before its caller asks for numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from russet import _core
from russet.backends.core import core_config
from russet.backends.mlx.cache import Cache, Segment
from russet.backends.mlx.shard import Shard
from russet.backends.mlx.weights import MLX_DTYPES, Layer, Linear, MlxWeights, Norm
from russet.config import Config, Rope
from russet.weights import POSITIONS, Weights


class Forward:
    """The transformer of one Config and its weights.

    dtype: f32, f16 or bf16: of activations, keys and values
    fused: let MLX compile what goes element by element into one kernel each
    shard: what this process is of several that compute the model together; config and weights are those of its part
    """

    def __init__(
        self, config: Config, weights: Weights, dtype: str, *, fused: bool, shard: Shard | None = None
    ) -> None:
        self.config = config
        self.dtype = MLX_DTYPES[dtype]
        self.shard = shard or Shard()
        taken = MlxWeights(config, weights, self.dtype, self.shard)
        self.embed = taken.matrix("embed.w") if "embed.w" in taken else None
        embed_bytes = taken.n_bytes
        self.positions = taken.matrix(POSITIONS) if POSITIONS in taken else None
        is_tied = self.shard.is_last and "head.w" not in taken
        table_bytes = taken.n_bytes - embed_bytes if is_tied else taken.n_bytes
        before = taken.n_bytes
        self.layers = [Layer(taken, index) for index in range(config.n_layers)]
        self.layer_bytes = taken.n_bytes - before
        self.final_norm = taken.norm("final_norm", mx.float32)
        self.head = taken.linear("head") if "head.w" in taken else self.embed and Linear(self.embed, None)
        self.weight_bytes = taken.n_bytes - table_bytes  #: that computing one more token reads: of a table only a row
        self.ropes = [_Rope(rope, index) for index, rope in enumerate(config.ropes)]
        self._core_config = core_config(config)
        self._gate, self._add = (mx.compile(f, shapeless=True) if fused else f for f in _elementwise(config))

    def segment(self, cache: Cache, begin: int, n_tokens: int, text_length: int = 0) -> Segment:
        """The cache's next tokens, from row `begin` of a batch on, with room for their keys."""
        pos = cache.n_tokens
        cache.reserve(max(pos + n_tokens, min(text_length, cache.n_ctx)))
        tables = []
        if any(rope.freqs is None for rope in self.ropes):
            arrays = _core.rope_tables(self._core_config, pos, n_tokens, text_length)
            tables = [(mx.array(cos), mx.array(sin)) for cos, sin in arrays]
        return Segment(cache, begin, pos, n_tokens, tables)

    def hidden(self, tokens: mx.array, segments: Sequence[Segment]) -> mx.array:
        """One pass over a ragged batch: tokens [n_tokens] -> x [n_tokens, dim] f32 behind the last layer."""
        if self.shard.is_first:
            x = self.embedded(tokens, segments)
        else:
            x = self.shard.received((tokens.size, self.config.dim))
        return self.shard.handed_on(self.through(x, segments, 0, len(self.layers)))

    def embedded(self, tokens: mx.array, segments: Sequence[Segment]) -> mx.array:
        """tokens [n_tokens] -> x [n_tokens, dim] f32"""
        assert self.embed
        x = self.embed.rows(tokens)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if self.positions:
            x = x + self.positions.rows(mx.concatenate([mx.arange(s.pos, s.pos + s.n_tokens) for s in segments]))
        return x

    def through(self, x: mx.array, segments: Sequence[Segment], begin: int, end: int) -> mx.array:
        """x behind the layers from begin to end; their keys and values go to the segments' caches."""
        for index, layer in enumerate(self.layers[begin:end], begin):
            attended = self._attention(index, layer, self._input(layer.attn_norm, x), segments)
            if self.config.parallel_residual:
                hidden = self._hidden(layer, x)
                x = self._residual(layer.o, layer.attn_post_norm, attended, x)
            else:
                x = self._residual(layer.o, layer.attn_post_norm, attended, x)
                hidden = self._hidden(layer, x)
            x = self._residual(layer.down, layer.ffn_post_norm, hidden, x)
        return x

    def logits(self, x: mx.array) -> mx.array:
        """x [n_rows, dim] behind the last layer -> [n_rows, vocab_size] f32; zeros where this process has no head"""
        if not self.shard.is_last:
            nothing: mx.array = mx.depends([mx.zeros((x.shape[0], self.config.vocab_size))], [x])[0]
            return nothing
        assert self.head
        scale, softcap = self.config.logits_scale, self.config.logits_softcap
        logits = self.head(self._input(self.final_norm, x)).astype(mx.float32)
        if scale != 1:
            logits = logits * scale
        return mx.tanh(logits / softcap) * softcap if softcap > 0 else logits

    def _input(self, norm: Norm | None, x: mx.array) -> mx.array:
        return (norm(x) if norm else x).astype(self.dtype)

    def _hidden(self, layer: Layer, x: mx.array) -> mx.array:
        h = self._input(layer.ffn_norm, x)
        return self._gate(layer.gate(h), layer.up(h)) if layer.up else self._gate(layer.gate(h))

    def _residual(self, linear: Linear, post_norm: Norm | None, y: mx.array, x: mx.array) -> mx.array:
        y = self.shard.summed(linear(y))
        return self._add(x, post_norm(y.astype(self.dtype)) if post_norm else y)

    def _attention(self, index: int, layer: Layer, h: mx.array, segments: Sequence[Segment]) -> mx.array:
        """h [n_tokens, dim] -> [n_tokens, n_heads * head_dim]"""
        q, k, v = layer.q(h), layer.k(h), layer.v(h)
        if layer.q_norm:
            q = layer.q_norm.of_heads(q)
        if layer.k_norm:
            k = layer.k_norm.of_heads(k)
        attended = [self._attend(index, s, q[s.rows], k[s.rows], v[s.rows]) for s in segments]
        return attended[0] if len(attended) == 1 else mx.concatenate(attended)

    def _attend(self, index: int, segment: Segment, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """One segment's rows of q, k and v -> what they attend to."""
        c = self.config
        q, k, v = (x.reshape(1, segment.n_tokens, -1, c.head_dim).transpose(0, 2, 1, 3) for x in (q, k, v))
        if c.layer_rope[index] >= 0:
            rope = self.ropes[c.layer_rope[index]]
            q, k = rope(q, segment), rope(k, segment)
        cache, window = segment.cache, c.layer_window[index]
        cache.store(index, segment.pos, k, v)
        keys, values = (arrays[index][:, :, segment.keys(window)] for arrays in (cache.keys, cache.values))
        if c.attention_softcap > 0:
            out = _softcapped_attention(c, q, keys, values, segment.seen(window))
        else:
            mask = segment.mask(window)
            out = mx.fast.scaled_dot_product_attention(q, keys, values, scale=c.attention_scale, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(segment.n_tokens, -1)


class _Rope:
    """Turns the heads of q or k: by MLX where neither length nor scale come in, else by the core's tables."""

    def __init__(self, rope: Rope, index: int) -> None:
        self.index = index
        self.half = len(rope.inv_freq)
        self.freqs = None  #: as MLX has them: positions over angles
        if rope.scale == 1 and not rope.long_inv_freq and not rope.dynamic_factor:
            self.freqs = mx.array((1 / np.array(rope.inv_freq, np.float64)).astype(np.float32))

    def __call__(self, x: mx.array, segment: Segment) -> mx.array:
        """x [1, n_heads, n_tokens, head_dim]"""
        if self.freqs is not None:
            return mx.fast.rope(
                x, 2 * self.half, traditional=False, base=None, scale=1.0, offset=segment.pos, freqs=self.freqs
            )
        cos, sin = segment.tables[self.index]
        a, b, rest = mx.split(x, [self.half, 2 * self.half], axis=-1)
        return mx.concatenate([(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype), rest], axis=-1)


def _softcapped_attention(c: Config, q: mx.array, keys: mx.array, values: mx.array, seen: mx.array) -> mx.array:
    """As scaled_dot_product_attention() gives it, but with scores that no number can exceed (Gemma 2)."""
    q = (q * c.attention_scale).reshape(1, c.n_kv_heads, -1, *q.shape[2:])  # the heads of one key-value head together
    scores = (q @ keys[:, :, None].swapaxes(-1, -2)).astype(mx.float32)
    scores = mx.tanh(scores / c.attention_softcap) * c.attention_softcap
    probs = mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1).astype(q.dtype)
    return (probs @ values[:, :, None]).reshape(1, c.n_heads, *q.shape[3:])


_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "relu": lambda x: mx.maximum(x, 0),
}


def _elementwise(config: Config) -> tuple[Callable[..., mx.array], Callable[..., mx.array]]:
    """gate(g [, up]) and add(x, y): the steps of a layer that go element by element, in float32."""
    activation, scale = _ACTIVATIONS[config.activation], config.residual_scale

    def gate(g: mx.array, up: mx.array | None = None) -> mx.array:
        y = activation(g.astype(mx.float32))
        return (y if up is None else y * up.astype(mx.float32)).astype(g.dtype)

    def add(x: mx.array, y: mx.array) -> mx.array:
        y = y.astype(mx.float32)
        return x + (y if scale == 1 else y * scale)

    return gate, add
