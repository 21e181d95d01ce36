"""Tiny checkpoints that can be quantised, and the floats that their quantised weights stand for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import safetensors.numpy

from russet.model import DEMO
from russet.quantization import QuantizedTensor
from russet.weights import ToQuantize, Weights
from tiny_models import CASES, make, older_style, read_json, write_json

#: Of every family one model whose inputs are whole groups of 32, and of 64 in part.
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
QUANTISABLE = {
    family: SIZES | ({} if family == "gpt_neox" else {"num_key_value_heads": 2}) for family in CASES if family != "gpt2"
} | {"gpt2": {"n_embd": 64, "n_head": 4}}
QUANTISABLE["granite"] |= {"attention_multiplier": 0.2, "residual_multiplier": 0.7}

#: mlx-lm runs no Gemma 3 of less than six layers, nor one whose vocabulary is small and that has an image half; no
#: GPT-NeoX that is not four times as wide inside; and of Granite it quantises some matrices in groups of 64 always.
FOR_MLX = {
    "granite": {"intermediate_size": 192},
    "gemma3_text": {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 512},
    "gpt_neox": {"intermediate_size": 256},
}
MLX_FAMILIES = [family for family in QUANTISABLE if family != "gemma3"]


def make_quantisable(folder: Path, family: str, **changes: Any):
    """A float checkpoint that loads everywhere: config.json in the older style, which mlx-lm reads too."""
    model = make(folder, family, gain=1.0, **(QUANTISABLE[family] | changes))
    values = older_style(read_json(folder / "config.json"))
    if family == "gpt2":
        values["n_ctx"] = values["n_positions"]
    write_json(folder / "config.json", values)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model


def name_as_published(folder: Path) -> None:
    """GPT-2's tensors as they were published, without a prefix: mlx-lm reads no other."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, path)


def dequantized(weights: Weights) -> Weights:
    """The same weights, with floats for what is quantised or is to be."""
    floats: Weights = {}
    for role, weight in weights.items():
        weight = weight.quantize() if isinstance(weight, ToQuantize) else weight
        floats[role] = (weight.dequantized(), "f32") if isinstance(weight, QuantizedTensor) else weight
    return floats
