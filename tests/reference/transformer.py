"""A Llama-like transformer in numpy and float64: what forward() must compute, written as in the papers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reference.ops import attention, gate, layer_norm, matmul, rms_norm, rope, widen
from russet.config import Config
from russet.weights import Weights


def forward(c: Config, weights: Weights, tokens: list[int]) -> np.ndarray:
    """Logits [n_tokens, vocab_size] of a text from its beginning."""
    w = {role: widen(array, dtype) for role, (array, dtype) in weights.items()}
    pos = np.arange(len(tokens))
    x = c.embed_scale * w["embed.w"][tokens].astype(np.float64)
    if "positions.w" in w:
        x = x + w["positions.w"][pos]
    for i in range(c.n_layers):
        layer = _Layer(c, w, i)
        attended = layer.attend(layer.norm("attn_norm", x), pos)
        if c.parallel_residual:
            x = x + c.residual_scale * (attended + layer.mlp(layer.norm("ffn_norm", x)))
        else:
            x = x + c.residual_scale * layer.norm("attn_post_norm", attended)
            x = x + c.residual_scale * layer.norm("ffn_post_norm", layer.mlp(layer.norm("ffn_norm", x)))
    logits = c.logits_scale * matmul(_norm(c, w, "final_norm", x), w.get("head.w", w["embed.w"]))
    return c.logits_softcap * np.tanh(logits / c.logits_softcap) if c.logits_softcap else logits


class _Layer:
    def __init__(self, c: Config, w: Mapping[str, np.ndarray], i: int) -> None:
        self.c, self.w, self.prefix = c, w, f"layers.{i}."
        self.rope, self.window = c.layer_rope[i], c.layer_window[i]

    def norm(self, role: str, x: np.ndarray) -> np.ndarray:
        return _norm(self.c, self.w, self.prefix + role, x)

    def linear(self, role: str, x: np.ndarray) -> np.ndarray:
        return matmul(x, self.w[f"{self.prefix}{role}.w"]) + self.w.get(f"{self.prefix}{role}.bias", 0.0)

    def heads(self, role: str, x: np.ndarray, pos: np.ndarray) -> np.ndarray:
        """[n_heads, n_tokens, head_dim], normed and rotated."""
        y = self.linear(role, x).reshape(len(x), -1, self.c.head_dim)
        if role != "v":
            y = self.norm(f"{role}_norm", y)
            if self.rope >= 0:
                rope_ = self.c.ropes[self.rope]
                angles = pos[:, None, None] * np.asarray(rope_.inv_freq)
                y = rope(y, np.cos(angles) * rope_.scale, np.sin(angles) * rope_.scale)
        return y.swapaxes(0, 1)

    def attend(self, x: np.ndarray, pos: np.ndarray) -> np.ndarray:
        c, (q, k, v) = self.c, (self.heads(role, x, pos) for role in "qkv")
        group = c.n_heads // c.n_kv_heads
        options = pos, c.attention_scale, self.window, c.attention_softcap
        out = [attention(q[h], k[h // group], v[h // group], *options) for h in range(c.n_heads)]
        return self.linear("o", np.concatenate(out, axis=1))

    def mlp(self, x: np.ndarray) -> np.ndarray:
        up = self.linear("up", x) if f"{self.prefix}up.w" in self.w else None
        return self.linear("down", gate(self.c.activation, self.linear("gate", x), up))


def _norm(c: Config, w: Mapping[str, np.ndarray], role: str, x: np.ndarray) -> np.ndarray:
    if f"{role}.w" not in w:
        return x
    norm = {"rms": rms_norm, "layer": layer_norm}[c.norm]
    return norm(x, w[f"{role}.w"], c.norm_eps, w.get(f"{role}.bias"))
