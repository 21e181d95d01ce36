"""Gemma 2 (arXiv 2408.00118): soft-caps, a window in every other layer, norms around each half-layer."""

from __future__ import annotations

from typing import Any

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_IGNORED,
    LLAMA_LAYER,
    biased_by,
    decoder_config,
    decoder_sources,
    layer_windows,
)
from russet.weights import Source

MODEL_TYPES = ("gemma2",)
DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
IGNORED = LLAMA_IGNORED

LAYER = {
    **LLAMA_LAYER,
    "attn_post_norm": Source("post_attention_layernorm"),
    "ffn_norm": Source("pre_feedforward_layernorm"),
    "ffn_post_norm": Source("post_feedforward_layernorm"),
}


def config(hf: Reader) -> Config:
    return gemma_config(
        hf,
        attention_softcap=softcap(hf, "attn_logit_softcapping"),
        layer_window=layer_windows(hf, lambda layer: layer % 2 == 0),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, LAYER, biased=biased_by(hf, "attention_bias"), norm_plus=1)


def gemma_config(hf: Reader, **changes: Any) -> Config:
    """What Gemma 2 and 3 have in common."""
    return decoder_config(
        hf,
        activation_key="hidden_activation",
        embed_scale=hf.size("hidden_size") ** 0.5,
        attention_scale=hf.number("query_pre_attn_scalar", above=0) ** -0.5,
        logits_softcap=softcap(hf, "final_logit_softcapping"),
        **changes,
    )


def softcap(hf: Reader, key: str) -> float:
    return hf.number(key, above=0) if key in hf else 0.0
