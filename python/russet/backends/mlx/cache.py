"""Keys and values in MLX's arrays, and which of them a token sees."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import mlx.core as mx

from russet.config import Config

_STEP = 256  # tokens by which a cache grows; every growth copies it


class Cache:
    """Keys and values of one sequence: [1, n_kv_heads, capacity, head_dim] each layer, of which n_tokens count."""

    def __init__(self, config: Config, n_ctx: int, dtype: mx.Dtype) -> None:
        self.n_ctx = n_ctx
        self.n_tokens = 0
        #: The pass begun for the token after the last: which token that was taken to be, and the likeliest after it.
        self.ahead: tuple[int, mx.array] | None = None
        self._shape = (1, config.n_kv_heads, 0, config.head_dim)
        self._dtype = dtype
        self._capacity = 0
        self.keys = [mx.zeros(self._shape, dtype)] * config.n_layers
        self.values = list(self.keys)

    def reserve(self, n_tokens: int) -> None:
        """Make room for so many tokens."""
        if n_tokens <= self._capacity:
            return
        capacity = min(-(-n_tokens // _STEP) * _STEP, self.n_ctx)
        batch, n_heads, _, head_dim = self._shape
        more = mx.zeros((batch, n_heads, capacity - self._capacity, head_dim), self._dtype)
        for arrays in (self.keys, self.values):
            arrays[:] = [mx.concatenate([array, more], axis=2) for array in arrays]
        self._capacity = capacity

    def fork(self, n_tokens: int) -> Cache:
        """Another with the first n_tokens of this one: views of the same arrays, until either writes."""
        fork = copy(self)
        fork.n_tokens, fork.ahead = n_tokens, None
        fork._capacity = end = min(-(-n_tokens // _STEP) * _STEP, self._capacity)
        fork.keys, fork.values = ([array[:, :, :end] for array in arrays] for arrays in (self.keys, self.values))
        return fork

    def store(self, layer: int, pos: int, k: mx.array, v: mx.array) -> None:
        """k, v [1, n_kv_heads, n, head_dim] of the positions from pos on."""
        end = pos + k.shape[2]
        self.keys[layer][:, :, pos:end] = k
        self.values[layer][:, :, pos:end] = v

    def clear(self) -> None:
        """Forget all: what a failed pass has left in the arrays is not to be trusted."""
        self.n_tokens = self._capacity = 0
        self.ahead = None
        self.keys[:] = self.values[:] = [mx.zeros(self._shape, self._dtype)] * len(self.keys)

    def bytes(self) -> int:
        """Of the keys and values that count."""
        _, n_heads, _, head_dim = self._shape
        item_bytes: int = self._dtype.size
        return self.n_tokens * len(self.keys) * 2 * n_heads * head_dim * item_bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence as part of a batch."""

    cache: Cache
    begin: int  #: row of the first in the batch
    pos: int  #: position of the first
    n_tokens: int
    tables: list[tuple[mx.array, mx.array]]  #: of every rope, cosines and sines f32 [n_tokens, rotary_dim / 2]; or none

    @property
    def rows(self) -> slice:
        """Its tokens in the batch."""
        return slice(self.begin, self.begin + self.n_tokens)

    def keys(self, window: int) -> slice:
        """Positions that any of its tokens sees; window: how many keys a token sees, 0 for all before it."""
        return slice(max(0, self.pos - window + 1) if window else 0, self.pos + self.n_tokens)

    def mask(self, window: int) -> mx.array | str | None:
        """Which of those keys each token sees, as scaled_dot_product_attention() takes it."""
        if self.n_tokens == 1:
            return None
        if window == 0 or self.pos + self.n_tokens <= window:
            return "causal"
        return self.seen(window)

    def seen(self, window: int) -> mx.array:
        """The same as booleans [n_tokens, n_keys]."""
        keys = self.keys(window)
        query = mx.arange(self.pos, keys.stop)[:, None]
        key = mx.arange(keys.start, keys.stop)[None]
        causal = key <= query
        return mx.logical_and(causal, key > query - window) if window else causal
