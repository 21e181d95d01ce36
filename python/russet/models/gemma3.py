"""Gemma 3 with its vision half (arXiv 2503.19786), of which only the text half is read."""

from __future__ import annotations

from dataclasses import replace

from russet.config import Config, Reader
from russet.models import gemma2, gemma3_text
from russet.models._decoder import biased_by, decoder_sources
from russet.weights import Source

MODEL_TYPES = ("gemma3",)
DEFAULTS = {"tie_word_embeddings": True}
IGNORED = (*gemma2.IGNORED, r"(model\.)?(vision_tower|multi_modal_projector)\..*")


def config(hf: Reader) -> Config:
    config = gemma3_text.config(_text(hf))
    return replace(config, family="gemma3", tied_head=hf.flag("tie_word_embeddings", True))


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    return decoder_sources(
        config,
        gemma3_text.layer(config),
        prefixes=("language_model.model.", "model.language_model."),
        heads=("language_model.lm_head", "lm_head"),
        biased=biased_by(_text(hf), "attention_bias"),
        norm_plus=1,
    )


def _text(hf: Reader) -> Reader:
    return hf.section("text_config").with_defaults({**gemma3_text.DEFAULTS, "model_type": "gemma3_text"})
