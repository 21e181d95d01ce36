"""Gemma 3, text alone (arXiv 2503.19786): of six layers five have a window, and a rope of their own."""

from __future__ import annotations

from russet.config import Config, Reader, Rope
from russet.models import gemma2
from russet.models._decoder import biased_by, decoder_sources, head_dim_of, layer_windows
from russet.models._rope import rope
from russet.weights import Source

MODEL_TYPES = ("gemma3_text",)
DEFAULTS = gemma2.DEFAULTS | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,  # and whatever it says, transformers does not look
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
IGNORED = gemma2.IGNORED


def config(hf: Reader) -> Config:
    pattern = hf.size("sliding_window_pattern")
    windows = layer_windows(hf, lambda layer: (layer + 1) % pattern != 0)
    return gemma2.gemma_config(
        hf,
        ropes=_ropes(hf),
        layer_rope=tuple(1 if window else 0 for window in windows),
        layer_window=windows,
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, layer(config), biased=biased_by(hf, "attention_bias"), norm_plus=1)


def layer(config: Config) -> dict[str, Source]:
    """What Gemma 2 has, and q and k normed head by head."""
    return {
        **gemma2.LAYER,
        "q_norm": Source("self_attn.q_norm", shape=(config.head_dim,)),
        "k_norm": Source("self_attn.k_norm", shape=(config.head_dim,)),
    }


def _ropes(hf: Reader) -> tuple[Rope, Rope]:
    """Of the layers without a window, and of those with one. The older rope_scaling is about the first."""
    parameters = hf.section("rope_parameters")
    if "rope_type" in parameters:
        raise hf.refuse("rope_parameters", "expected an object for each of the two layer types")
    everywhere = parameters.section("full_attention")
    everywhere = everywhere.changed(hf.section("rope_scaling").values)
    head_dim, max_ctx = head_dim_of(hf), hf.size("max_position_embeddings")

    def one(parameters: Reader, theta_key: str) -> Rope:
        original_ctx = parameters.size("original_max_position_embeddings", max_ctx)
        return rope(parameters, head_dim, max_ctx, original_ctx=original_ctx, theta=hf.number(theta_key, 1e4))

    return one(everywhere, "rope_theta"), one(parameters.section("sliding_attention"), "rope_local_base_freq")
