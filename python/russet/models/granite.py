"""Granite 3 (multipliers after muP, arXiv 2203.03466): on embedding, attention, residuals and logits."""

from __future__ import annotations

from russet.config import Config, Reader
from russet.models._decoder import (
    LLAMA_DEFAULTS,
    LLAMA_IGNORED,
    biased_by,
    decoder_config,
    decoder_sources,
)
from russet.weights import Source

MODEL_TYPES = ("granite",)
DEFAULTS = LLAMA_DEFAULTS | {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    return decoder_config(
        hf,
        embed_scale=hf.number("embedding_multiplier"),
        residual_scale=hf.number("residual_multiplier"),
        attention_scale=hf.number("attention_multiplier"),
        logits_scale=1 / hf.number("logits_scaling", above=0),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, biased=biased_by(hf, "attention_bias", "mlp_bias"))
