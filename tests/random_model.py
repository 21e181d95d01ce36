"""Small models of any shape with random weights, for tests of the core alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels import stored
from russet.config import Config, Rope
from russet.weights import Weights


def random_config(**changes: Any) -> Config:
    """A two-layer Llama of awkward sizes: no width is a multiple of 16, and heads are wider than the model."""
    sizes: dict[str, Any] = {
        "family": "llama",
        "n_layers": 2,
        "dim": 20,
        "n_heads": 6,
        "n_kv_heads": 3,
        "head_dim": 14,
        "ffn_dim": 37,
        "vocab_size": 53,
        "max_ctx": 512,
    } | changes
    n_layers, head_dim = sizes["n_layers"], sizes["head_dim"]
    frequencies = 100.0 ** -(np.arange(head_dim // 2) / (head_dim // 2))
    defaults: dict[str, Any] = {
        "attention_scale": head_dim**-0.5,
        "ropes": (Rope(inv_freq=tuple(frequencies.tolist())),),
        "layer_rope": (0,) * n_layers,
        "layer_window": (0,) * n_layers,
    }
    return Config(**(defaults | sizes))


def random_weights(c: Config, dtype: str = "f32", *, biases: bool = False, **changes: bool) -> Weights:
    """Weights that keep activations near 1; `changes` adds (True) or drops (False) roles, as in q_norm=True."""
    rng = np.random.default_rng(0)
    q_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    has = {"up": True, "head": True, "positions": False, "q_norm": False, "attn_post_norm": False} | changes

    weights: Weights = {}

    def linear(role: str, n_outputs: int, n_inputs: int, bias: bool = biases) -> None:
        weights[f"{role}.w"] = stored(rng.normal(size=(n_outputs, n_inputs)) / n_inputs**0.5, dtype)
        if bias:
            weights[f"{role}.bias"] = stored(rng.normal(size=n_outputs) / 4, "f32")

    def norm(role: str, dim: int) -> None:
        weights[f"{role}.w"] = stored(1 + rng.normal(size=dim) / 4, "f32")
        if biases:
            weights[f"{role}.bias"] = stored(rng.normal(size=dim) / 4, "f32")

    weights["embed.w"] = stored(rng.normal(size=(c.vocab_size, c.dim)), dtype)
    if has["positions"]:
        weights["positions.w"] = stored(rng.normal(size=(c.max_ctx, c.dim)), dtype)
    for i in range(c.n_layers):
        layer = f"layers.{i}."
        norm(f"{layer}attn_norm", c.dim)
        norm(f"{layer}ffn_norm", c.dim)
        if has["attn_post_norm"]:
            norm(f"{layer}attn_post_norm", c.dim)
            norm(f"{layer}ffn_post_norm", c.dim)
        if has["q_norm"]:
            norm(f"{layer}q_norm", c.head_dim)
            norm(f"{layer}k_norm", c.head_dim)
        linear(f"{layer}q", q_dim, c.dim)
        linear(f"{layer}k", kv_dim, c.dim)
        linear(f"{layer}v", kv_dim, c.dim)
        linear(f"{layer}o", c.dim, q_dim)
        linear(f"{layer}gate", c.ffn_dim, c.dim)
        if has["up"]:
            linear(f"{layer}up", c.ffn_dim, c.dim)
        linear(f"{layer}down", c.dim, c.ffn_dim)
    norm("final_norm", c.dim)
    if has["head"]:
        linear("head", c.vocab_size, c.dim, bias=False)
    return weights
