"""OLMo 2 (arXiv 2501.00656): norms behind attention and MLP, not before; q and k normed over all heads."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_DEFAULTS,
    LLAMA_IGNORED,
    LLAMA_LAYER,
    biased_by,
    decoder_config,
    decoder_sources,
)
from russet.weights import Source

MODEL_TYPES = ("olmo2",)
DEFAULTS = LLAMA_DEFAULTS | {"vocab_size": 50304, "rms_norm_eps": 1e-5}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    return decoder_config(hf)


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    layer = {role: module for role, module in LLAMA_LAYER.items() if not role.endswith("norm")} | {
        "q_norm": Source("self_attn.q_norm", shape=(config.n_heads * config.head_dim,)),
        "k_norm": Source("self_attn.k_norm", shape=(config.n_kv_heads * config.head_dim,)),
        "attn_post_norm": Source("post_attention_layernorm"),
        "ffn_post_norm": Source("post_feedforward_layernorm"),
    }
    return decoder_sources(config, layer, biased=biased_by(hf, "attention_bias"))
