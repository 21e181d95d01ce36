"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): q, k and v have biases; late layers may have a window."""

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

MODEL_TYPES = ("qwen2",)
DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    return decoder_config(hf, layer_window=qwen_windows(hf))


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, biased=("q", "k", "v"))


def qwen_windows(hf: Reader) -> tuple[int, ...]:
    """From layer max_window_layers on, where windows are in use at all."""
    if not hf.flag("use_sliding_window", False):
        hf = hf.changed({"sliding_window": None})
    has_window, first = "sliding_window" in hf, hf.number("max_window_layers")
    return layer_windows(hf, lambda layer: has_window and layer >= first)
