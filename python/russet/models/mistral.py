"""Mistral, Ministral (arXiv 2310.06825): a sliding window in every layer, or in those layer_types names."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_DEFAULTS,
    LLAMA_IGNORED,
    decoder_config,
    decoder_sources,
    layer_windows,
)
from russet.weights import Source

MODEL_TYPES = ("mistral", "ministral")
DEFAULTS = LLAMA_DEFAULTS | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    has_window = "sliding_window" in hf
    return decoder_config(hf, layer_window=layer_windows(hf, lambda layer: has_window))


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config)
