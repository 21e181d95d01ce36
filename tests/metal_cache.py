"""A KV cache as the kernels of metal/ take it: blocks of a pool in no order, and tables that name them."""

from __future__ import annotations

import numpy as np

import reference
from kernels import stored
from metal_args import CONSTANTS

BLOCK, NO_BLOCK = CONSTANTS["kCacheBlock"], CONSTANTS["kNoBlock"]


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 and a float32 scale of each row, as csrc/kernels/kv_store/kv_store.h has them."""
    scales = np.abs(x).max(axis=-1).astype(np.float32) / np.float32(127)
    codes = np.rint(x / np.where(scales > 0, scales, 1)[..., None].astype(np.float32))
    return codes.astype(np.int8), scales


class Cache:
    """Room for n_ctx positions of one layer among others, NaN where nothing has been stored.

    kept_as: f32, f16, bf16 or int8; the K of metal/args.h
    """

    def __init__(self, kept_as: str, n_ctx: int, n_kv_heads: int, head_dim: int, n_layers: int = 2, layer: int = 1):
        self.kept_as, self.n_kv_heads = kept_as, n_kv_heads
        is_int8 = kept_as == "int8"
        nan = np.int8(77) if is_int8 else stored(np.float32(np.nan), kept_as)[0]
        fields = []
        for rows, scales in (("keys", "key_scales"), ("values", "value_scales")):
            fields.append((rows, nan.dtype, (BLOCK, head_dim)))
            if is_int8:
                fields.append((scales, np.dtype(np.float32), (BLOCK,)))
        table_size = -(-n_ctx // BLOCK) + 1
        n_blocks = n_layers * n_kv_heads * table_size
        self.pool = np.zeros(1 + n_blocks, np.dtype(fields))
        for name in self.pool.dtype.names:
            self.pool[name][1:] = np.nan if name.endswith("scales") else nan
        order = 1 + np.random.default_rng(n_blocks).permutation(n_blocks)
        self.tables = order.astype(np.uint32).reshape(n_layers, n_kv_heads, table_size)
        self.table = self.tables[layer]  #: [n_kv_heads, table_size]
        self.args = {
            "first_table": layer * n_kv_heads,
            "table_size": table_size,
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
        }

    def put(self, k: np.ndarray, v: np.ndarray) -> None:
        """k and v [n, n_kv_heads, head_dim] become the first n positions."""
        pos = np.arange(len(k))
        blocks, rows = self.table[:, pos // BLOCK].T, pos[:, None] % BLOCK  # of each position and head
        for x, plane, scales in ((k, "keys", "key_scales"), (v, "values", "value_scales")):
            if self.kept_as == "int8":
                self.pool[plane][blocks, rows], self.pool[scales][blocks, rows] = quantized(x)
            else:
                self.pool[plane][blocks, rows] = stored(x, self.kept_as)[0]

    def codes(self) -> np.ndarray:
        """Of int8 keys and values, [2, n_positions, n_kv_heads, head_dim]."""
        return np.stack([self._of_layer(plane) for plane in ("keys", "values")])

    def scales(self) -> np.ndarray:
        """Of int8 keys and values, [2, n_positions, n_kv_heads]."""
        return np.stack([self._of_layer(plane) for plane in ("key_scales", "value_scales")])

    def rows(self) -> np.ndarray:
        """Keys and values [2, n_positions, n_kv_heads, head_dim], float64."""
        if self.kept_as == "int8":
            return self.codes() * self.scales()[..., None].astype(np.float64)
        return reference.widen(self.codes(), self.kept_as).astype(np.float64)

    def give_back(self, n_blocks: int) -> None:
        """The first blocks of every head are others' now."""
        self.pool[self.table[:, :n_blocks]] = self.pool[self.table[:, -1:]]

    def evict(self, head: int, block: int) -> None:
        """A block that nobody is to see."""
        self.pool[self.table[head, block]] = self.pool[self.table[head, -1]]
        self.table[head, block] = NO_BLOCK

    @property
    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """The pool and the tables, in place."""
        return self.pool.view(np.uint8), self.tables

    def _of_layer(self, plane: str) -> np.ndarray:
        blocks = self.pool[plane][self.table]  # [n_kv_heads, table_size, BLOCK, ...]
        return np.moveaxis(blocks.reshape(self.n_kv_heads, -1, *blocks.shape[3:]), 0, 1)
