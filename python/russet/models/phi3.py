"""Phi-3, 3.5, Phi-4-mini (arXiv 2404.14219, 2503.01743): q, k, v in one tensor, gate and up in another."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_DEFAULTS,
    LLAMA_IGNORED,
    LLAMA_LAYER,
    decoder_config,
    decoder_sources,
    head_dim_of,
    layer_windows,
)
from russet.models._rope import rope_of
from russet.weights import Source

MODEL_TYPES = ("phi3",)
DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    # Early Phi-3 configs call longrope "su" or, wrongly, "yarn".
    longrope = {"su": "longrope", "yarn": "longrope"}
    has_window = "sliding_window" in hf
    return decoder_config(
        hf,
        ropes=(rope_of(hf, head_dim_of(hf), rotates_parts=True, renamed=longrope),),
        layer_window=layer_windows(hf, lambda layer: has_window),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    q, kv, ffn = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim, config.ffn_dim

    def qkv(begin: int, n_rows: int) -> Source:
        return Source("self_attn.qkv_proj", rows=slice(begin, begin + n_rows), shape=(q + 2 * kv, config.dim))

    def gate_up(begin: int) -> Source:
        return Source("mlp.gate_up_proj", rows=slice(begin, begin + ffn), shape=(2 * ffn, config.dim))

    fused = {"q": qkv(0, q), "k": qkv(q, kv), "v": qkv(q + kv, kv), "gate": gate_up(0), "up": gate_up(ffn)}
    return decoder_sources(config, {**LLAMA_LAYER, **fused})
