"""GPT-NeoX, Pythia (arXiv 2204.06745, 2304.01373): attention and MLP side by side, heads rotated in part."""

from __future__ import annotations

from typing import Any

import numpy as np

from russet.config import Config, Reader
from russet.models._decoder import LLAMA_IGNORED, decoder_config, decoder_sources, head_dim_of
from russet.models._rope import rope_of
from russet.weights import Source

MODEL_TYPES = ("gpt_neox",)
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rotary_pct": 0.25,
    "attention_bias": True,
}
IGNORED = (*LLAMA_IGNORED, r".*\.attention\.(bias|masked_bias)")  # the causal mask


def config(hf: Reader) -> Config:
    dim = hf.size("hidden_size")
    if dim % hf.size("num_attention_heads"):
        raise hf.refuse("num_attention_heads", f"a width of {dim} cannot be cut into equal heads")
    hf = hf.changed({"num_key_value_heads": None, "head_dim": None})  # keys of other families
    return decoder_config(
        hf,
        norm="layer",
        norm_eps_key="layer_norm_eps",
        parallel_residual=hf.flag("use_parallel_residual", True),
        ropes=(rope_of(hf, head_dim_of(hf), theta_key="rotary_emb_base", part_key="rotary_pct", rotates_parts=True),),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    # Rows come head by head: q, k and v of the first head, then of the second.
    rows = np.arange(3 * config.dim).reshape(config.n_heads, 3, config.head_dim)

    def qkv(i: int) -> Source:
        shape = (3 * config.dim, config.dim)
        return Source("attention.query_key_value", rows=rows[:, i].reshape(-1), shape=shape)

    layer = {
        "attn_norm": Source("input_layernorm"),
        "q": qkv(0),
        "k": qkv(1),
        "v": qkv(2),
        "o": Source("attention.dense"),
        "ffn_norm": Source("post_attention_layernorm"),
        "gate": Source("mlp.dense_h_to_4h"),
        "down": Source("mlp.dense_4h_to_h"),
    }
    biased = {*layer, "final_norm"}
    if not hf.flag("attention_bias", True):
        biased -= {"q", "k", "v", "o"}
    return decoder_sources(
        config,
        layer,
        prefixes=("gpt_neox.",),
        embed="embed_in",
        final_norm="final_layer_norm",
        heads=("lm_head", "embed_out"),
        biased=biased,
    )


def mlx_name(name: str) -> str:
    return "model." + name.replace("gpt_neox.layers.", "h.").replace("gpt_neox.", "").replace("lm_head", "embed_out")
