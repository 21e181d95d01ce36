"""The frequencies of rotary embeddings, in float32 as transformers computes them."""

from __future__ import annotations

import numpy as np

from russet.config import Reader, Rope


def rope_of(hf: Reader, rotary_dim: int, max_ctx: int, *, default_theta: float = 10000.0) -> Rope:
    """The rope of a config.json, in today's style (rope_parameters) or the older (rope_theta and rope_scaling)."""
    parameters = hf.section("rope_parameters") if "rope_parameters" in hf else hf.section("rope_scaling")
    theta = parameters.number("rope_theta", hf.number("rope_theta", default_theta))
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return Rope(inv_freq=plain(theta, rotary_dim))
    raise parameters.refuse("rope_type", "not a rope russet knows")


def plain(theta: float, rotary_dim: int) -> tuple[float, ...]:
    """1 / theta^(2 i / rotary_dim) (Su et al., arXiv 2104.09864)."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return tuple((np.float32(1) / np.float32(theta) ** exponents).tolist())
