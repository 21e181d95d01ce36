"""Weights: from the checkpoint's tensor names to the core's roles, every one checked against the config."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from russet.config import Config
from russet.errors import WeightsError
from russet.safetensors import Tensor

#: role -> (array, dtype): matrices as stored (bf16 as uint16), vectors widened to float32
Weights = dict[str, tuple[np.ndarray[Any, Any], str]]

DTYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a role's weight is found: a tensor, or some of its rows, and what to do with them."""

    name: str
    other_names: tuple[str, ...] = ()  #: what the tensor may be called instead
    optional: bool = False  #: it need not be there
    shape: tuple[int, ...] | None = None  #: of the whole tensor as stored, where the role does not say it
    transposed: bool = False  #: stored [n_inputs, n_outputs] (GPT-2)
    rows: slice | np.ndarray[Any, Any] | None = None  #: which of its n_outputs rows, all by default
    plus: float = 0.0  #: added to every value (Gemma stores norms as w - 1)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.other_names)


def expected_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every role's weight that a model may have; "layers." stands for each layer."""
    q_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    linears = {
        "q": (q_dim, c.dim),
        "k": (kv_dim, c.dim),
        "v": (kv_dim, c.dim),
        "o": (c.dim, q_dim),
        "gate": (c.ffn_dim, c.dim),
        "up": (c.ffn_dim, c.dim),
        "down": (c.dim, c.ffn_dim),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embed.w": (c.vocab_size, c.dim),
        "positions.w": (c.max_ctx, c.dim),
        "head.w": (c.vocab_size, c.dim),
        "head.bias": (c.vocab_size,),
        "final_norm.w": (c.dim,),
        "final_norm.bias": (c.dim,),
    }
    for name, shape in linears.items():
        shapes[f"layers.{name}.w"] = shape
        shapes[f"layers.{name}.bias"] = shape[:1]
    for name in ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm"):
        shapes[f"layers.{name}.w"] = shapes[f"layers.{name}.bias"] = (c.dim,)
    return shapes


def bind(
    tensors: Mapping[str, Tensor],
    sources: Mapping[str, Source],
    config: Config,
    *,
    ignored: Sequence[str] = (),
    strict: bool = True,
) -> Weights:
    """Find, check and shape every role's weight; matrices stay views of the mapped file wherever they can.

    Raises WeightsError, naming the tensor, where one is missing, has another shape or dtype than the config
    says, or (strict) has no place in the model and matches none of the `ignored` patterns.
    """
    shapes = expected_shapes(config)
    weights: Weights = {}
    for role, source in sources.items():
        name = next((name for name in source.names if name in tensors), None)
        if name is not None:
            weights[role] = _take(tensors[name], source, _shape_of(role, shapes), config)
        elif not source.optional:
            raise WeightsError(f"{source.name}: missing; a {config.family} model needs it")
    extra = extra_tensors(tensors, sources, ignored)
    if strict and extra:
        raise WeightsError(
            f"{extra[0]}: a {config.family} model has no such tensor"
            + (f" (nor {len(extra) - 1} more)" if len(extra) > 1 else "")
            + "; load with strict=False to leave it out"
        )
    return weights


def extra_tensors(tensors: Mapping[str, Tensor], sources: Mapping[str, Source], ignored: Collection[str]) -> list[str]:
    """Names that no source asks for and no pattern of `ignored` matches."""
    known = {name for source in sources.values() for name in source.names}
    return [n for n in tensors if n not in known and not any(re.fullmatch(p, n) for p in ignored)]


def _shape_of(role: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    generic = re.sub(r"^layers\.\d+\.", "layers.", role)
    return shapes.get(generic)  # None: q_norm and k_norm, whose source says the shape


def _take(
    tensor: Tensor, source: Source, shape: tuple[int, ...] | None, config: Config
) -> tuple[np.ndarray[Any, Any], str]:
    if tensor.dtype not in DTYPES:
        raise WeightsError(f"{tensor.name}: expected {', '.join(DTYPES)}, got {tensor.dtype}")
    stored = source.shape
    if stored is None and shape is not None:
        stored = shape[::-1] if source.transposed else shape
    if stored is not None and tensor.shape != stored:
        raise WeightsError(
            f"{tensor.name}: expected {list(stored)}, got {list(tensor.shape)} {tensor.dtype} "
            f"(by config.json: {config.dim} wide, {config.n_heads} heads, {config.n_kv_heads} key-value "
            f"heads of {config.head_dim}, ffn {config.ffn_dim}, vocabulary {config.vocab_size})"
        )
    array = tensor.numpy()
    if source.transposed and array.ndim == 2:
        array = array.T
    if source.rows is not None:
        array = array[source.rows]
    if array.ndim == 1:
        return widened(array, tensor.dtype) + np.float32(source.plus), "f32"
    return np.ascontiguousarray(array), tensor.dtype


def widened(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """float32 copy of an f32, f16 or (as uint16) bf16 array; exact."""
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def find_non_finite(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The first tensor that holds a NaN or an infinity; None if all are numbers."""
    n_at_once = 1 << 20  # values widened at a time
    for tensor in tensors.values():
        if tensor.dtype in DTYPES:
            values = tensor.numpy().reshape(-1)
            for begin in range(0, values.size, n_at_once):
                if not np.isfinite(widened(values[begin : begin + n_at_once], tensor.dtype)).all():
                    return tensor
    return None
