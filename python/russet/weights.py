"""Weights: from the checkpoint's tensor names to the core's roles, every one checked against the config.

A matrix that MLX has quantised is three tensors, X.weight, X.scales and X.biases: see quantization.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from russet.config import Config
from russet.errors import UsageError, WeightsError
from russet.quantization import BITS, GROUP_SIZES, Quantization, QuantizedTensor, quantize_matrix
from russet.safetensors import Tensor, aligned, release_pages, widened

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
    mlx_name: str | None = None  #: what mlx-lm calls it, where that is yet another name

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.other_names, *((self.mlx_name,) if self.mlx_name else ()))

    def whole(self) -> Source:
        """The same with all rows."""
        return replace(self, rows=None)

    def of(self, tensor: Tensor) -> Source:
        """The same, as this tensor holds it: what mlx-lm has named or quantised is stored outputs by inputs."""
        if self.transposed and (tensor.name == self.mlx_name or tensor.dtype == "u32"):
            return replace(self, transposed=False, shape=self.shape and self.shape[::-1])
        return self


def embed_dtype(tensors: Mapping[str, Tensor], sources: Mapping[str, Source]) -> str:
    """f32, f16 or bf16: what a checkpoint keeps its embedding in, or the embedding's scales; f32 where it has none."""
    for name in sources["embed.w"].names if "embed.w" in sources else ():
        for part in (*group_names(name), name):
            if part in tensors:
                return tensors[part].dtype
    return "f32"


#: tensor name -> how a matrix is to be quantised; None: it stays float
Plan = Mapping[str, Quantization | None]


@dataclass(frozen=True, slots=True)
class ToQuantize:
    """A float matrix that is quantised when its turn comes, so that only one at a time takes memory twice."""

    tensor: Tensor
    source: Source
    how: Quantization
    n_rows: int
    n_cols: int

    def quantize(self, n_threads: int = 1) -> QuantizedTensor:
        """Raises WeightsError, with the tensor's name, on NaN and infinity."""
        floats = aligned(floats_of(self.tensor, self.source))
        quantized = quantize_matrix(floats, self.tensor.dtype, self.how, name=self.tensor.name, n_threads=n_threads)
        release_pages(self.tensor.data)
        return quantized


#: (array, dtype): a matrix as stored (bf16 as uint16), or a vector widened to float32. Or a matrix in affine groups.
#: Views of the file, which MLX writes without regard to alignment: a backend copies such one by one (see aligned()).
Weight = tuple[np.ndarray[Any, Any], str] | QuantizedTensor | ToQuantize

Weights = dict[str, Weight]  #: by role


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
    plan: Plan | None = None,
    ignored: Sequence[str] = (),
    strict: bool = True,
) -> Weights:
    """Find, check and shape every role's weight; matrices stay views of the mapped file wherever they can.

    plan: tensor name -> how it is to be quantised, from plan_quantization()

    Raises WeightsError, naming the tensor, where one is missing, has another shape or dtype than the config
    says, or (strict) has no place in the model and matches none of the `ignored` patterns.
    """
    shapes = expected_shapes(config)
    weights: Weights = {}
    for role, source in sources.items():
        name = next((name for name in source.names if name in tensors), None)
        if name is not None:
            tensor, shape = tensors[name], _shape_of(role, shapes)
            source = source.of(tensor)
            if tensor.dtype == "u32" and shape is not None and len(shape) == 2:
                quantized = _quantized(tensors, tensor, source, shape)
                weights[role] = (quantized.dequantized(), "f32") if role == POSITIONS else quantized
                continue
            _check(tensor, source, shape, config)
            how = plan.get(name) if plan else None
            if how is not None and shape is not None:
                weights[role] = ToQuantize(tensor, source, how, *shape)
            else:
                weights[role] = _take(tensor, source)
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
    known |= {part for n in known & tensors.keys() if tensors[n].dtype == "u32" for part in group_names(n)}
    return [n for n in tensors if n not in known and not any(re.fullmatch(p, n) for p in ignored)]


def _shape_of(role: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    generic = re.sub(r"^layers\.\d+\.", "layers.", role)
    return shapes.get(generic)  # None: q_norm and k_norm, whose source says the shape


def _check(tensor: Tensor, source: Source, shape: tuple[int, ...] | None, config: Config) -> None:
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


def _take(tensor: Tensor, source: Source) -> tuple[np.ndarray[Any, Any], str]:
    array = floats_of(tensor, source)
    if array.ndim == 1:
        return widened(array, tensor.dtype) + np.float32(source.plus), "f32"
    return array, tensor.dtype


def floats_of(tensor: Tensor, source: Source) -> np.ndarray[Any, Any]:
    """The source's part of the tensor, outputs by inputs and contiguous: a view wherever it can be."""
    array = tensor.view()
    if source.transposed and array.ndim == 2:
        array = array.T
    if source.rows is not None:
        array = array[source.rows]
    return np.ascontiguousarray(array)


# ---- quantised weights ----

POSITIONS = "positions.w"  #: learned positions: a matrix, but read row by row and small, so never quantised by us


def group_names(name: str) -> tuple[str, str]:
    """What the scales and the biases of a quantised tensor are called."""
    stem = name.removesuffix("weight")
    return f"{stem}scales", f"{stem}biases"


def _quantized(tensors: Mapping[str, Tensor], codes: Tensor, source: Source, shape: tuple[int, ...]) -> QuantizedTensor:
    """MLX's three tensors. Bits and group size follow from their shapes, whatever config.json says."""
    groups = [tensors.get(name) for name in group_names(codes.name)]
    scales, biases = groups
    if scales is None or biases is None or scales.dtype not in DTYPES or biases.dtype != scales.dtype:
        found = ", ".join(f"{t.name} {t.dtype}" for t in groups if t) or "neither"
        raise WeightsError(
            f"{codes.name}: u32 codes need scales and biases of one type of {', '.join(DTYPES)}, got {found}; "
            "of MLX's modes russet reads 'affine': convert again with it"
        )
    n_rows, n_cols = source.shape or shape
    bits = codes.shape[1] * 32 / n_cols if len(codes.shape) == 2 else 0
    group_size = n_cols / scales.shape[1] if len(scales.shape) == 2 and scales.shape[1] else 0
    known = bits in BITS and group_size in GROUP_SIZES
    if not known and bits in (2, 3, 4, 5, 6, 8) and group_size in (16, *GROUP_SIZES):
        raise WeightsError(
            f"{codes.name}: quantised to {bits:g} bits in groups of {group_size:g}; russet reads 8 or 4 bits in groups "
            "of 32, 64 or 128: convert again with --q-bits 8 or 4, or run `russet quantize` on the float checkpoint"
        )
    if not known or codes.shape[0] != n_rows or not scales.shape == biases.shape == (n_rows, n_cols // group_size):
        raise WeightsError(
            f"{codes.name}: expected [{n_rows}, {n_cols}] in 8 or 4 bits and groups of 32, 64 or 128, got codes "
            f"{list(codes.shape)}, scales {list(scales.shape)}, biases {list(biases.shape)}"
        )
    quantized = QuantizedTensor(codes.view(), scales.view(), biases.view(), scales.dtype, int(bits), int(group_size))
    return quantized if source.rows is None else quantized.rows(source.rows)


def plan_quantization(tensors: Mapping[str, Tensor], sources: Mapping[str, Source], quantization: Quantization) -> Plan:
    """What becomes of every matrix but learned positions.

    Where the group size does not divide the inputs, a smaller one is taken; where none does, the matrix stays float.
    Raises UsageError for a checkpoint that is quantised already, for a pattern of `overrides` that fits no name, and
    where nothing is left to quantise.
    """
    matrices: dict[str, Source] = {}
    for role, source in sources.items():
        name = next((name for name in source.names if name in tensors), None)
        if name is not None and tensors[name].dtype == "u32":
            raise UsageError(
                f"quantize: {name} is quantised already; load it as it is, or quantise the checkpoint it was made from"
            )
        if name is not None and len(tensors[name].shape) == 2 and role != POSITIONS:
            matrices[name] = source.of(tensors[name])
    for pattern in quantization.overrides:
        if not any(fnmatchcase(name.removesuffix(".weight"), pattern) for name in matrices):
            example = next(iter(matrices), "model.embed_tokens.weight").removesuffix(".weight")
            raise UsageError(f"overrides: {pattern!r} fits no matrix of this model; a name is like {example!r}")
    plan: dict[str, Quantization | None] = {}
    for name, source in matrices.items():
        how = quantization.of_tensor(name)
        plan[name] = how and how.fitting(tensors[name].shape[0 if source.transposed else 1])
    if matrices and not any(plan.values()):
        raise UsageError(
            "quantize: none of this model's matrices would be; their inputs must make groups of 32 or more"
        )
    return plan


def needed_bytes(tensors: Mapping[str, Tensor], sources: Mapping[str, Source], plan: Plan) -> int:
    """Bytes of all that the sources take, once the plan is carried out."""
    names = {next((name for name in source.names if name in tensors), None) for source in sources.values()}
    return sum(_needed_bytes(tensors[name], plan.get(name)) for name in names if name)


def _needed_bytes(tensor: Tensor, how: Quantization | None) -> int:
    n_weights = math.prod(tensor.shape)
    if how is None or n_weights == 0:
        return tensor.nbytes
    return _quantized_bytes(n_weights, how, tensor)


def _quantized_bytes(n_weights: int, how: Quantization, tensor: Tensor) -> int:
    """Of so many of a tensor's weights."""
    item_bytes = tensor.nbytes // math.prod(tensor.shape)
    return n_weights * how.bits // 8 + 2 * (n_weights // how.group_size) * item_bytes


def held_bytes(weights: Weights) -> int:
    """Bytes of these weights in memory, once those are quantised that wait for it."""
    return sum(_held_bytes(weight) for weight in weights.values())


def _held_bytes(weight: Weight) -> int:
    if isinstance(weight, ToQuantize):
        return _quantized_bytes(weight.n_rows * weight.n_cols, weight.how, weight.tensor)
    return weight.n_bytes if isinstance(weight, QuantizedTensor) else weight[0].nbytes


def without_copied_head(
    tensors: Mapping[str, Tensor], sources: Mapping[str, Source], config: Config
) -> dict[str, Source]:
    """The sources but for a head that the checkpoint stores although it is the same as the embedding."""
    sources = dict(sources)
    if config.tied_head:
        embed, head = (
            next((tensors[name] for name in sources[role].names if name in tensors), None)
            for role in ("embed.w", "head.w")
        )
        if embed and head and embed.dtype == head.dtype and np.array_equal(embed.data, head.data):
            del sources["head.w"]
        for tensor in (embed, head):
            if tensor:
                release_pages(tensor.data)
    return sources


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
