"""Llama 2, 3, 3.1, 3.2, and whoever else saves under this type (arXiv 2302.13971, 2307.09288, 2407.21783)."""

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

MODEL_TYPES = ("llama",)
DEFAULTS = LLAMA_DEFAULTS
IGNORED = LLAMA_IGNORED


def config(hf: Reader) -> Config:
    return decoder_config(hf)


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(config, biased=biased_by(hf, "attention_bias", "mlp_bias"))
