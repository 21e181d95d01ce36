"""What the families share: the usual keys of config.json, and the usual tensor names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from russet.config import Config, Reader, activation_of
from russet.models._rope import rope_of
from russet.weights import Source

#: Transformers' defaults for keys that most families have; where it has None, the key is left out here.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

#: Buffers that old checkpoints carry, and that config.json says already.
LLAMA_IGNORED = (r".*\.rotary_emb\.inv_freq",)

#: Role -> the tensor it is, by its name inside a layer.
LLAMA_LAYER: Mapping[str, Source] = {
    "attn_norm": Source("input_layernorm"),
    "q": Source("self_attn.q_proj"),
    "k": Source("self_attn.k_proj"),
    "v": Source("self_attn.v_proj"),
    "o": Source("self_attn.o_proj"),
    "ffn_norm": Source("post_attention_layernorm"),
    "gate": Source("mlp.gate_proj"),
    "up": Source("mlp.up_proj"),
    "down": Source("mlp.down_proj"),
}

#: Key of config.json -> the roles it gives a bias.
BIASES = {"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")}

MOST_LAYERS = 1_000  # far above any model; what is built for each should stay small
MOST_WIDE = 2**20  # the widest vector the core multiplies


def decoder_config(
    hf: Reader,
    *,
    activation_key: str = "hidden_act",
    norm_eps_key: str = "rms_norm_eps",
    **changes: Any,
) -> Config:
    """Config from the usual keys; `changes` are what the family does differently."""
    n_layers = hf.size("num_hidden_layers", most=MOST_LAYERS)
    dim = hf.size("hidden_size", most=MOST_WIDE)
    n_heads = hf.size("num_attention_heads", most=MOST_WIDE)
    n_kv_heads = hf.size("num_key_value_heads", n_heads, most=n_heads)
    if n_heads % n_kv_heads:
        raise hf.refuse("num_key_value_heads", f"{n_heads} heads cannot share them evenly")
    head_dim = head_dim_of(hf)
    fields: dict[str, Any] = {
        "family": hf.text("model_type"),
        "n_layers": n_layers,
        "dim": dim,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "ffn_dim": hf.size("intermediate_size", most=MOST_WIDE),
        "vocab_size": hf.size("vocab_size"),
        "max_ctx": hf.size("max_position_embeddings"),
        "norm_eps": hf.number(norm_eps_key, above=0),
        "activation": activation_of(hf, activation_key),
        "attention_scale": head_dim**-0.5,
        "layer_rope": (0,) * n_layers,
        "layer_window": (0,) * n_layers,
        "tied_head": hf.flag("tie_word_embeddings", False),
    }
    if "ropes" not in changes:
        fields["ropes"] = (rope_of(hf, head_dim),)
    return Config(**(fields | changes))


def head_dim_of(hf: Reader) -> int:
    """The width of a head: as said, or an equal part of the model's width."""
    dim, n_heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    return hf.size("head_dim", max(1, dim // n_heads), most=MOST_WIDE)


def layer_windows(hf: Reader, has_window: Callable[[int], bool]) -> tuple[int, ...]:
    """Per layer how many keys a query sees, 0 for all: by layer_types, or else by has_window(layer)."""
    n_layers = hf.size("num_hidden_layers", most=MOST_LAYERS)
    if "layer_types" in hf:
        kinds = hf.texts("layer_types", n_layers)
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise hf.refuse("layer_types", f"russet knows full and sliding attention, not {kind:.80}")
        windowed = [kind == "sliding_attention" for kind in kinds]
    else:
        windowed = [has_window(layer) for layer in range(n_layers)]
    window = hf.size("sliding_window") if any(windowed) else 0
    return tuple(window if w else 0 for w in windowed)


def biased_by(hf: Reader, *keys: str) -> set[str]:
    """The roles that have a bias by these keys of config.json."""
    return {role for key in keys if hf.flag(key, False) for role in BIASES[key]}


def decoder_sources(
    config: Config,
    layer: Mapping[str, Source] = LLAMA_LAYER,
    *,
    prefixes: tuple[str, ...] = ("model.",),
    layers: str = "layers",
    embed: str = "embed_tokens",
    final_norm: str = "norm",
    heads: tuple[str, ...] = ("lm_head",),
    biased: Collection[str] = (),
    norm_plus: float = 0.0,
) -> dict[str, Source]:
    """Every role's source, from one layer's and the names around it.

    prefixes: what stands before every name but the head's, in all the ways it is saved
    heads: the head's name, in all the ways it is saved
    biased: roles that have a bias

    A tied checkpoint may hold the embedding, or the head, or both. Then each is taken as it is, even where
    they differ, as transformers does.
    """
    sources: dict[str, Source] = {}

    def add(role: str, names: list[str], module: Source, plus: float = 0.0) -> None:
        weight, *others = (f"{name}.weight" for name in names)
        sources[f"{role}.w"] = replace(module, name=weight, other_names=tuple(others), plus=plus)
        if role.rpartition(".")[2] in biased:
            bias, *others = (f"{name}.bias" for name in names)
            shape = module.shape and (module.shape[-1:] if module.transposed else module.shape[:1])
            sources[f"{role}.bias"] = replace(module, name=bias, other_names=tuple(others), shape=shape)

    def add_below(role: str, module: Source, plus: float = 0.0) -> None:
        add(role, [prefix + module.name for prefix in prefixes], module, plus)

    tied = config.tied_head
    add("embed", [prefix + embed for prefix in prefixes] + (list(heads) if tied else []), Source(embed))
    for i in range(config.n_layers):
        for role, module in layer.items():
            plus = norm_plus if role.endswith("norm") else 0.0
            add_below(f"layers.{i}.{role}", replace(module, name=f"{layers}.{i}.{module.name}"), plus)
    add_below("final_norm", Source(final_norm), norm_plus)
    add("head", list(heads), Source(heads[0], optional=tied))
    return sources
