"""A KV cache as the kernels of metal/ take it: in blocks of kCacheBlock positions, one layer among others."""

from __future__ import annotations

import numpy as np

import reference
from kernels import stored
from metal_args import CONSTANTS
from metal_kernels import empty

BLOCK = CONSTANTS["kCacheBlock"]


class Cache:
    """Room for n_ctx positions, NaN where nothing has been stored."""

    def __init__(self, dtype: str, n_ctx: int, n_kv_heads: int, head_dim: int, n_layers: int = 2, layer: int = 1):
        self.dtype, self.layer = dtype, layer
        n_blocks = -(-n_ctx // BLOCK)
        self.blocks = empty((n_blocks, n_layers, 2, n_kv_heads, BLOCK, head_dim), dtype)
        self.args = {
            "block_stride": self.blocks[0].size,
            "layer_offset": layer * 2 * n_kv_heads * BLOCK,
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
        }

    def put(self, k: np.ndarray, v: np.ndarray) -> None:
        """k and v [n, n_kv_heads, head_dim] become the first n positions."""
        for i, rows in enumerate((k, v)):
            for pos, row in enumerate(rows):
                self.blocks[pos // BLOCK, self.layer, i, :, pos % BLOCK] = stored(row, self.dtype)[0]

    def rows(self) -> np.ndarray:
        """Keys and values [2, n_blocks * kCacheBlock, n_kv_heads, head_dim], widened."""
        of_layer = reference.widen(self.blocks[:, self.layer], self.dtype).transpose(1, 0, 3, 2, 4)
        return of_layer.reshape(2, -1, *of_layer.shape[3:])
