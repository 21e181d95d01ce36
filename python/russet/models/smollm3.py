"""SmolLM3 (huggingface.co/blog/smollm3): every fourth layer has no rope (NoPE: arXiv 2501.18795)."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_DEFAULTS,
    LLAMA_IGNORED,
    MOST_LAYERS,
    biased_by,
    decoder_config,
    decoder_sources,
    layer_windows,
)
from russet.weights import Source

MODEL_TYPES = ("smollm3",)
DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2_000_000.0,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    n_layers = hf.size("num_hidden_layers", most=MOST_LAYERS)
    if "no_rope_layers" in hf:
        has_rope = [flag != 0 for flag in hf.numbers("no_rope_layers", n_layers)]  # 0 is the layer without
    else:
        interval = hf.size("no_rope_layer_interval")
        has_rope = [(layer + 1) % interval != 0 for layer in range(n_layers)]
    has_window = hf.flag("use_sliding_window", False) and "sliding_window" in hf
    return decoder_config(
        hf,
        layer_rope=tuple(0 if rope else -1 for rope in has_rope),
        layer_window=layer_windows(hf, lambda layer: has_window and not has_rope[layer]),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, biased=biased_by(hf, "attention_bias", "mlp_bias"))
