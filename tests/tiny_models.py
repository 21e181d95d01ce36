"""Tiny random checkpoints of every family, saved by transformers, and the ways to run them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from russet.backends.cpu import CpuBackend
from russet.checkpoint import open_checkpoint
from russet.config import Config, Reader
from russet.models import family_of
from russet.quantization import Quantization
from russet.weights import Weights, bind, plan_quantization

logging.disable_progress_bar()

BASE = {
    "vocab_size": 101,
    "hidden_size": 30,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 160,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40}
LINEAR = {"rope_type": "linear", "rope_theta": 2000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}


def longrope(n_frequencies: int, original_ctx: int) -> dict:
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * i for i in range(n_frequencies)],
        "long_factor": [1.5 + 0.7 * i for i in range(n_frequencies)],
        "original_max_position_embeddings": original_ctx,
    }


#: family -> configs: heads 1, 3, 5, 6; one key-value head, some, as many; head_dim unlike dim / heads; tied or not;
#: windows shorter than the prompts below; every kind of rope, on texts longer than the original context.
CASES: dict[str, list[dict]] = {
    "llama": [
        {"num_key_value_heads": 1, "rope_parameters": LINEAR},
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
         "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
        {"hidden_size": 33, "num_attention_heads": 3, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh",
         "rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False}},
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "rope_parameters": DYNAMIC,
         "max_position_embeddings": 60},
        {"num_attention_heads": 1, "head_dim": 12, "rope_parameters": longrope(6, 20)},
    ],
    "mistral": [
        {"num_key_value_heads": 1, "sliding_window": 7},
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12, "sliding_window": 16,
         "tie_word_embeddings": True, "rope_parameters": YARN | {"beta_fast": 16, "beta_slow": 2}},
        {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8,
         "sliding_window": None, "rope_parameters": LINEAR},
        {"num_key_value_heads": 5, "sliding_window": 5, "head_dim": 6, "model_type": "ministral",
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    "qwen2": [
        {"num_key_value_heads": 1},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "hidden_size": 48,
         "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "rope_parameters": YARN},
        {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "use_sliding_window": True,
         "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ],
    "qwen3": [
        {"num_key_value_heads": 1, "head_dim": 16, "attention_bias": True},
        {"hidden_size": 33, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
         "tie_word_embeddings": True, "rope_parameters": YARN | {"attention_factor": 1.3}},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12, "use_sliding_window": True,
         "sliding_window": 8, "max_window_layers": 2, "rope_parameters": DYNAMIC,
         "max_position_embeddings": 50},
    ],
    "gemma2": [
        {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 11,
         "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
        {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5,
         "query_pre_attn_scalar": 7, "attn_logit_softcapping": None, "final_logit_softcapping": None,
         "tie_word_embeddings": False, "attention_bias": True, "rope_parameters": LINEAR},
        {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "sliding_window": 20,
         "query_pre_attn_scalar": 8, "num_hidden_layers": 4, "hidden_activation": "gelu"},
    ],
    "gemma3_text": [
        {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 11,
         "num_hidden_layers": 7},
        {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5,
         "query_pre_attn_scalar": 7, "tie_word_embeddings": False, "attention_bias": True,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": LINEAR, "sliding_attention":
                             {"rope_type": "default", "rope_theta": 500.0}}},
        {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "sliding_window": 12,
         "query_pre_attn_scalar": 8, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"],
         "rope_parameters": {"full_attention": YARN, "sliding_attention": LLAMA3}},
    ],
    "gemma3": [
        {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 11,
         "num_hidden_layers": 7},
        {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "sliding_window": 6,
         "query_pre_attn_scalar": 9, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
         "rope_parameters": {"full_attention": LINEAR, "sliding_attention":
                             {"rope_type": "default", "rope_theta": 500.0}}},
        {"num_attention_heads": 6, "hidden_size": 36, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 7,
         "query_pre_attn_scalar": 7, "num_hidden_layers": 2, "attention_bias": True},
    ],
    "phi3": [
        {"num_key_value_heads": 1, "sliding_window": 9, "hidden_size": 40},
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "original_max_position_embeddings": 32,
         "rope_parameters": longrope(6, 32) | {"partial_rotary_factor": 0.75}},
        {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3,
         "original_max_position_embeddings": 80, "rope_parameters": longrope(6, 80) | {"factor": 1.7}},
    ],
    "smollm3": [
        {"num_key_value_heads": 1, "num_hidden_layers": 5},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
         "attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 0, 1], "rope_parameters": YARN},
        {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "no_rope_layer_interval": 2,
         "use_sliding_window": True, "sliding_window": 6, "rope_parameters": LINEAR},
    ],
    "granite": [
        {"num_key_value_heads": 1, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
         "attention_multiplier": 0.3, "logits_scaling": 5.0},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
         "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.2, "residual_multiplier": 1.5,
         "rope_parameters": LLAMA3},
        {"hidden_size": 36, "num_attention_heads": 3, "embedding_multiplier": 0.5, "logits_scaling": 0.25,
         "attention_multiplier": 0.4, "rope_parameters": DYNAMIC, "max_position_embeddings": 48},
    ],
    "olmo2": [
        {"num_key_value_heads": 1},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
         "attention_bias": True, "rope_parameters": YARN},
        {"hidden_size": 36, "num_attention_heads": 3, "rope_parameters": LINEAR},
    ],
    "gpt2": [
        {"n_embd": 30, "n_head": 5},
        {"n_embd": 36, "n_head": 6, "n_inner": 50, "tie_word_embeddings": False, "activation_function": "relu"},
        {"n_embd": 33, "n_head": 3, "scale_attn_weights": False, "activation_function": "gelu"},
    ],
    "gpt_neox": [
        {"hidden_size": 40},
        {"hidden_size": 60, "num_attention_heads": 6, "use_parallel_residual": False, "tie_word_embeddings": True,
         "rope_parameters": LINEAR | {"partial_rotary_factor": 0.4}},
        {"hidden_size": 36, "num_attention_heads": 3, "attention_bias": False, "hidden_act": "gelu_new",
         "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0}},
    ],
}  # fmt: skip


def random_case(family: str, seed: int) -> dict:
    """A config as CASES has them, by chance."""
    rng = np.random.default_rng(seed)

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    n_heads, head_dim, n_layers = one_of(1, 2, 3, 5, 6, 7), 2 * int(rng.integers(2, 11)), int(rng.integers(1, 5))
    tied = {"tie_word_embeddings": one_of(True, False)}
    if family == "gpt2":
        return tied | {"n_head": n_heads, "n_embd": n_heads * int(rng.integers(4, 12)), "n_layer": n_layers}
    case: dict = tied | {
        "num_attention_heads": n_heads,
        "num_key_value_heads": one_of(*(n for n in range(1, n_heads + 1) if n_heads % n == 0)),
        "hidden_size": n_heads * int(rng.integers(4, 12)),
        "intermediate_size": int(rng.integers(5, 90)),
        "num_hidden_layers": n_layers,
        "head_dim": head_dim,
        "sliding_window": int(rng.integers(1, 80)),
        "attention_bias": one_of(True, False),
        "mlp_bias": one_of(True, False),
        "use_sliding_window": True,
        "max_window_layers": int(rng.integers(0, n_layers + 1)),
        "query_pre_attn_scalar": int(rng.integers(3, 20)),
        "attention_multiplier": float(rng.uniform(0.1, 0.5)),
        "residual_multiplier": float(rng.uniform(0.3, 1.5)),
        "use_parallel_residual": one_of(True, False),
    }
    stretched = {"factor": float(rng.uniform(1, 8)), "original_max_position_embeddings": int(rng.integers(8, 70))}
    bands = {"low_freq_factor": 1.0, "high_freq_factor": float(rng.uniform(2, 6))}
    ropes = [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": float(rng.uniform(1, 8))},
        {"rope_type": "yarn"} | stretched,
        {"rope_type": "llama3"} | stretched | bands,
    ]
    if not family.startswith("gemma3"):  # transformers mixes some things up where there are two ropes
        ropes.append({"rope_type": "dynamic", "factor": float(rng.uniform(1, 8))})
        ropes.append({"rope_type": "yarn", "truncate": False} | stretched)
    ropes = [rope | {"rope_theta": float(rng.uniform(50, 1e5))} for rope in ropes]
    rope = one_of(*ropes)
    if family in ("phi3", "gpt_neox"):
        case["hidden_size"] = n_heads * head_dim
        del case["head_dim"]
        n_frequencies = int(rng.integers(1, head_dim // 2 + 1))
        rope["partial_rotary_factor"] = (2 * n_frequencies + 0.01) / head_dim if n_frequencies < head_dim // 2 else 1.0
        if family == "phi3":
            case["original_max_position_embeddings"] = int(rng.integers(8, 100))
            rope = one_of(
                rope | {"rope_type": "default"},
                longrope(n_frequencies, case["original_max_position_embeddings"])
                | {"partial_rotary_factor": rope["partial_rotary_factor"]},
            )
    if family.startswith("gemma3"):
        case["rope_parameters"] = {"full_attention": rope, "sliding_attention": one_of(*ropes)}
    else:
        case["rope_parameters"] = rope
    if family in ("llama", "granite", "olmo2", "gpt_neox"):
        del case["sliding_window"]  # not in the model, but transformers' cache would have one
    elif family not in ("phi3", "mistral"):
        case["layer_types"] = [one_of("full_attention", "sliding_attention") for _ in range(n_layers)]
    return case


def hf_config(family: str, **changes):
    """transformers' config of a case."""
    changes = copy.deepcopy(changes)  # transformers writes into rope_parameters
    if family == "gpt2":
        base = {k: v for k, v in BASE.items() if k.endswith("token_id") or k == "vocab_size"}
        return AutoConfig.for_model("gpt2", **(base | {"n_layer": 3, "n_positions": 160} | changes))
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return AutoConfig.for_model(
            "gemma3",
            text_config=BASE | changes,
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            **dict.fromkeys(("image_token_index", "boi_token_index", "eoi_token_index"), 100),
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        )
    return AutoConfig.for_model(changes.pop("model_type", family), **(BASE | changes))


#: Case -> seed, where the seed of the same number gives a text that repeats itself or a choice between near equals.
SEEDS = {
    ("llama", 1): 2, ("mistral", 0): 2, ("mistral", 1): 2, ("mistral", 3): 5, ("qwen2", 2): 3, ("gemma2", 1): 2,
    ("gemma2", 2): 3, ("gemma3", 1): 9, ("gemma3", 2): 3, ("granite", 1): 2, ("granite", 2): 3, ("olmo2", 1): 18,
    ("gpt2", 0): 1, ("gpt_neox", 0): 7, ("gpt_neox", 2): 7,
}  # fmt: skip


def make_case(folder: Path, family: str, case: int, **changes):
    return make(folder, family, seed=SEEDS.get((family, case), case), **(CASES[family][case] | changes))


def make(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    gain: float = 1.7,
    dtype: torch.dtype = torch.float32,
    **changes,
):
    """Save a random checkpoint; return it as transformers loads it, its weights widened to float32."""
    model = AutoModelForCausalLM.from_config(hf_config(family, **changes))
    randomise(model, family, seed, gain)
    model.to(dtype).save_pretrained(folder)
    return transformers_model(folder)


def shift_weights(folder: Path) -> None:
    """By one byte, to odd addresses: MLX writes files without regard to alignment."""
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        file.write_bytes((begin - 8 + 1).to_bytes(8, "little") + data[8:begin] + b" " + data[begin:])


def transformers_model(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def randomise(model, family: str, seed: int, gain: float) -> None:
    """Weights with which nothing is flat: attention prefers some keys, every layer matters, norms are not 1.

    A matrix makes outputs `gain` times as large as its inputs; above 1 every rounding grows from layer to layer.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        n_inputs = parameter.shape[0 if family == "gpt2" else -1]
        if parameter.ndim == 1:
            is_norm = name.endswith("weight")
            noise = 0.3 * noise + (is_norm and not family.startswith("gemma"))
        elif any(part in name for part in ("embed", "wte", "wpe")):
            noise *= 0.4 * (n_inputs**-0.5 if family.startswith("gemma") else 1.0)
        else:
            noise *= gain * n_inputs**-0.5
        parameter.copy_(noise)
    model.tie_weights()


def prompt_of(n_tokens: int, *, vocab_size: int = 100, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, n_tokens).tolist()


def read_config(values: dict) -> Config:
    hf = Reader(values)
    return family_of(hf).config(hf)


def bound(folder: Path, *, quantize: str | None = None, **options) -> tuple[Config, Weights]:
    """The checkpoint's numbers, and its weights by role."""
    checkpoint = open_checkpoint(folder)
    hf = Reader(checkpoint.config)
    family = family_of(hf)
    config = family.config(hf)
    sources = family.sources(hf, config)
    if quantize:
        options["plan"] = plan_quantization(checkpoint.tensors, sources, Quantization.of(quantize))
    return config, bind(checkpoint.tensors, sources, config, ignored=family.IGNORED, **options)


def load(folder: Path, **options) -> tuple[Config, CpuBackend]:
    """The checkpoint as russet runs it, keys and values in float32."""
    config, weights = bound(folder, **options)
    return config, CpuBackend(config, weights, threads=1, kv_dtype="float32")


@torch.no_grad()
def expected_logits(model, tokens: list[int]) -> np.ndarray:
    return model(input_ids=torch.tensor([tokens])).logits[0].float().numpy()


def expected_greedy(model, prompt: list[int], n_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=False, use_cache=True
    )
    return text[0, len(prompt) :].tolist()


def greedy(config: Config, session, prompt: list[int], n_tokens: int) -> tuple[list[int], list[float]]:
    """The likeliest tokens as generation must compute them, and the lead of each in parts of the logits' spread.

    Where the text outgrows the short frequencies of a longrope, its keys are computed anew, as in transformers.
    """

    def is_long(length: int) -> bool:
        return any(rope.long_inv_freq and length > rope.original_ctx for rope in config.ropes)

    text, leads = list(prompt), []
    logits = session.forward(text)[0]
    while True:
        second, first = np.sort(logits)[-2:]
        leads.append(float((first - second) / np.ptp(logits)))
        text.append(int(logits.argmax()))
        if len(text) == len(prompt) + n_tokens:
            return text[len(prompt) :], leads
        if is_long(len(text)) and not is_long(session.n_tokens):
            session.rewind(0)
        logits = session.forward(text[session.n_tokens :])[0]


def older_style(values: dict) -> dict:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling, torch_dtype, no layer_types."""
    old = copy.deepcopy(values)
    if "text_config" in old:
        old["text_config"] = older_style(old["text_config"])
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None)
    model_type = old["model_type"]
    if model_type == "gemma3_text":
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        assert rope["sliding_attention"]["rope_type"] == "default"
        rope = rope["full_attention"]
        if old["layer_types"] == [
            "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(old["num_hidden_layers"])
        ]:
            old["sliding_window_pattern"] = 6
            del old["layer_types"]
    if rope is not None:
        neox = model_type == "gpt_neox"
        old["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old["rotary_pct" if neox else "partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type")
        rope.pop("type", None)
        if model_type == "phi3":
            rope.pop("original_max_position_embeddings", None)
            kind = {"longrope": "su"}.get(kind, kind)
        old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return old


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))
