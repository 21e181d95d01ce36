"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, matrices stored [n_inputs, n_outputs]."""

from __future__ import annotations

from typing import Any

from russet.config import Config, Reader, activation_of
from russet.models._decoder import MOST_LAYERS, MOST_WIDE, decoder_sources
from russet.weights import Source

MODEL_TYPES = ("gpt2",)
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
IGNORED = (r".*\.attn\.(bias|masked_bias)",)  # the causal mask


def config(hf: Reader) -> Config:
    if hf.flag("scale_attn_by_inverse_layer_idx", False):
        raise hf.refuse("scale_attn_by_inverse_layer_idx", "russet scales attention alike in all layers")
    n_layers = hf.size("n_layer", most=MOST_LAYERS)
    dim = hf.size("n_embd", most=MOST_WIDE)
    n_heads = hf.size("n_head", most=dim)
    if dim % n_heads:
        raise hf.refuse("n_head", f"a width of {dim} cannot be cut into equal heads")
    return Config(
        family="gpt2",
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=dim // n_heads,
        ffn_dim=hf.size("n_inner", 4 * dim, most=MOST_WIDE),
        vocab_size=hf.size("vocab_size"),
        max_ctx=hf.size("n_positions"),
        norm="layer",
        norm_eps=hf.number("layer_norm_epsilon", above=0),
        activation=activation_of(hf, "activation_function"),
        attention_scale=(dim // n_heads) ** -0.5 if hf.flag("scale_attn_weights", True) else 1.0,
        layer_rope=(-1,) * n_layers,
        layer_window=(0,) * n_layers,
        tied_head=hf.flag("tie_word_embeddings", True),
    )


def sources(hf: Reader, config: Config) -> dict[str, Source]:
    dim = config.dim

    def qkv(i: int) -> Source:
        rows = slice(i * dim, (i + 1) * dim)
        return Source("attn.c_attn", rows=rows, shape=(dim, 3 * dim), transposed=True)

    layer = {
        "attn_norm": Source("ln_1"),
        "q": qkv(0),
        "k": qkv(1),
        "v": qkv(2),
        "o": Source("attn.c_proj", transposed=True),
        "ffn_norm": Source("ln_2"),
        "gate": Source("mlp.c_fc", transposed=True),
        "down": Source("mlp.c_proj", transposed=True),
    }
    prefixes = ("transformer.", "")  # without, where the model was saved without its head
    sources = decoder_sources(
        config,
        layer,
        prefixes=prefixes,
        layers="h",
        embed="wte",
        final_norm="ln_f",
        biased={*layer, "final_norm"},
    )
    name, *others = (f"{prefix}wpe.weight" for prefix in prefixes)
    return {**sources, "positions.w": Source(name, other_names=tuple(others))}


def mlx_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name.removeprefix('transformer.')}"
