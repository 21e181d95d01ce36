"""What the Llama-shaped families share: the usual keys of config.json and the usual tensor names."""

from __future__ import annotations

from typing import Any

from russet.config import Config, Reader, activation_of
from russet.models._rope import rope_of
from russet.weights import Source

#: role -> the name Llama-shaped checkpoints use for it, inside a layer
LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def decoder_config(hf: Reader, **changes: Any) -> Config:
    """Config from the usual keys; `changes` are what the family does differently."""
    n_layers = hf.size("num_hidden_layers")
    dim = hf.size("hidden_size")
    n_heads = hf.size("num_attention_heads")
    head_dim = hf.size("head_dim", max(1, dim // n_heads))
    max_ctx = hf.size("max_position_embeddings", 2048)
    fields: dict[str, Any] = {
        "family": hf.text("model_type"),
        "n_layers": n_layers,
        "dim": dim,
        "n_heads": n_heads,
        "n_kv_heads": hf.size("num_key_value_heads", n_heads),
        "head_dim": head_dim,
        "ffn_dim": hf.size("intermediate_size"),
        "vocab_size": hf.size("vocab_size"),
        "max_ctx": max_ctx,
        "norm_eps": hf.number("rms_norm_eps", 1e-6),
        "activation": activation_of(hf, "hidden_act", "silu"),
        "attention_scale": head_dim**-0.5,
        "layer_rope": (0,) * n_layers,
        "layer_window": (0,) * n_layers,
        "tied_head": hf.flag("tie_word_embeddings", False),
    }
    if "ropes" not in changes:
        fields["ropes"] = (rope_of(hf, head_dim, max_ctx),)
    return Config(**(fields | changes))


def decoder_sources(
    config: Config,
    *,
    names: dict[str, str] = LLAMA_NAMES,
    prefix: str = "model.",
    attention_bias: bool | tuple[str, ...] = False,
    mlp_bias: bool = False,
    norm_plus: float = 0.0,
) -> dict[str, Source]:
    """Sources from the usual tensor names. `attention_bias` may name the projections that have one."""
    biased: set[str] = set()
    if attention_bias:
        biased |= {"q", "k", "v", "o"} if attention_bias is True else set(attention_bias)
    if mlp_bias:
        biased |= {"gate", "up", "down"}
    sources = {"embed.w": Source(f"{prefix}embed_tokens.weight")}
    for i in range(config.n_layers):
        for role, name in names.items():
            plus = norm_plus if role.endswith("norm") else 0.0
            sources[f"layers.{i}.{role}.w"] = Source(f"{prefix}layers.{i}.{name}.weight", plus=plus)
            if role in biased:
                sources[f"layers.{i}.{role}.bias"] = Source(f"{prefix}layers.{i}.{name}.bias")
    sources["final_norm.w"] = Source(f"{prefix}norm.weight", plus=norm_plus)
    if not config.tied_head:
        sources["head.w"] = Source("lm_head.weight")
    return sources
