"""Qwen3 (arXiv 2505.09388): q and k are normed head by head."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models import qwen2
from russet.models._decoder import LLAMA_IGNORED, LLAMA_LAYER, biased_by, decoder_config, decoder_sources
from russet.weights import Source

MODEL_TYPES = ("qwen3",)
DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    return decoder_config(hf, layer_window=qwen2.qwen_windows(hf))


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    layer = {
        **LLAMA_LAYER,
        "q_norm": Source("self_attn.q_norm", shape=(config.head_dim,)),
        "k_norm": Source("self_attn.k_norm", shape=(config.head_dim,)),
    }
    return decoder_sources(config, layer, biased=biased_by(hf, "attention_bias"))
