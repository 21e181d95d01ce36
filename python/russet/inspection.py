"""What is in a checkpoint, and whether russet can load it: all that is wrong with it, not just the first thing.

Reads what names and describes the weights, hardly a weight itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from russet import memory
from russet.checkpoint import Checkpoint, open_checkpoint
from russet.config import Config, Reader
from russet.errors import CheckpointError, ConfigError, RussetError, UsageError, WeightsError
from russet.hub import resolve
from russet.kv_dtype import KvDtype
from russet.model import read_parts
from russet.models import family_of
from russet.options import options_of
from russet.quantization import QuantizedTensor
from russet.safetensors import Tensor, read_json_object, read_safetensors, weight_files
from russet.tokenizer import Tokenizer
from russet.weights import Source, bind, embed_dtype, extra_tensors, group_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a checkpoint. Where a part is None, the problems say why it is not known."""

    path: Path
    model_type: str | None  #: the family's name in config.json
    architecture: Architecture | None
    n_parameters: int
    dtypes: tuple[DtypeReport, ...]  #: the most bytes first
    quantizations: tuple[QuantizationReport, ...]  #: of the matrices in affine groups, the most bytes first
    files: tuple[FileReport, ...]
    tensors: TensorReport | None
    tokenizer: TokenizerReport | None
    memory: MemoryReport | None
    problems: tuple[str, ...]  #: what keeps russet from loading it, beside `tensors`: a sentence each

    @property
    def loads(self) -> bool:
        """Whether russet.load() takes it."""
        return not self.problems and self.tensors is not None and self.tensors.fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers of config.json; most are those of russet.config.Config."""

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_ctx: int
    norm: str
    activation: str
    tied_head: bool
    rope: str  #: its kind in config.json, or "none"
    rotary_dim: int  #: how much of a head it rotates; 0 where there is none
    n_rope_layers: int
    n_window_layers: int  #: layers whose tokens see only the nearest before them
    window: int  #: how many these see; 0 where no layer has a window


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeReport:
    """All tensors that are stored with one dtype."""

    dtype: str
    n_tensors: int
    n_parameters: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """All matrices in affine groups of one kind; each is three tensors: codes, scales and biases."""

    bits: int
    group_size: int
    n_matrices: int
    n_parameters: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One file of weights."""

    name: str
    n_bytes: int | None  #: None: there is no such file
    n_tensors: int | None  #: None: it cannot be read


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """How the tensors fit the model that config.json describes."""

    missing: tuple[str, ...]  #: the model needs them
    extra: tuple[str, ...]  #: the model has no place for them
    wrong: tuple[str, ...]  #: of another shape or dtype: a sentence each

    @property
    def fit(self) -> bool:
        return not (self.missing or self.extra or self.wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialToken:
    id: int
    token: str | None  #: None: the vocabulary has no token of this id


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    file: str
    kind: str  #: BPE, Unigram and so on
    vocab_size: int
    bos: SpecialToken | None
    eos: tuple[SpecialToken, ...]  #: all that end a generation
    has_chat_template: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What the model needs, in bytes, with a context of n_ctx tokens."""

    n_ctx: int
    weight_bytes: int
    cache_bytes_per_token: int
    cache_bytes: int
    total_bytes: int
    available_bytes: int  #: max_memory, or what is free now


def inspect(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    kv_dtype: str | None = None,
    n_ctx: int | None = None,
    max_memory: int | str | None = None,
) -> Inspection:
    """Look into a model folder, or a hub id after downloading it; the options are those of russet.load().

    Raises CheckpointError where there is no such folder, HubError for an id that cannot be had. What is wrong inside
    the folder is part of the answer.
    """
    KvDtype.of(kv_dtype, "f32")  # raises on one that is none
    folder = resolve(model, revision=revision, local_files_only=local_files_only)
    if not folder.is_dir():
        open_checkpoint(folder)  # raises, and says what it takes instead
    problems = _Problems()
    checkpoint = None
    with problems.noted():
        checkpoint = open_checkpoint(folder)
    files, tensors = _read_files(folder, problems)
    if checkpoint and not problems:
        with problems.noted():
            tensors = checkpoint.tensors  # the index may know better
    hf = _read_config(folder, checkpoint)
    config = tensor_report = memory_report = tokenizer = None
    sources: Mapping[str, Source] = {}
    quantized: dict[str, QuantizedTensor] = {}
    if hf.values:
        with problems.noted():
            family = family_of(hf)
            config = family.config(hf)
            sources = family.sources(hf, config)
            if tensors:
                tensor_report = _tensor_report(tensors, sources, config, family.IGNORED, quantized)
    if config:
        n_bytes = sum(file.n_bytes or 0 for file in files)
        per_token = KvDtype.of(kv_dtype, embed_dtype(tensors, sources)).bytes_per_token(config)
        memory_report = _memory_report(config, n_bytes, per_token, n_ctx, max_memory, problems)
    with problems.noted():
        tokenizer = _tokenizer_report(folder)
    with problems.noted():
        if tensor_report and tensor_report.fit and not problems:
            read_parts(folder, kv_dtype=kv_dtype, n_ctx=n_ctx, max_memory=max_memory)  # has the last word
        elif checkpoint:  # read_parts() would not come so far
            options_of(Reader(checkpoint.generation_config, str(folder / "generation_config.json")))
    model_type = hf.values.get("model_type")
    in_groups = {part for name in quantized for part in (name, *group_names(name))}
    plain = [tensor for name, tensor in tensors.items() if name not in in_groups]
    dtypes, quantizations = _dtype_reports(plain), _quantization_reports(quantized.values())
    return Inspection(
        path=folder,
        model_type=model_type if isinstance(model_type, str) else None,
        architecture=_architecture(hf, config) if config else None,
        n_parameters=sum(d.n_parameters for d in dtypes) + sum(q.n_parameters for q in quantizations),
        dtypes=dtypes,
        quantizations=quantizations,
        files=files,
        tensors=tensor_report,
        tokenizer=tokenizer,
        memory=memory_report,
        problems=tuple(dict.fromkeys(problems)),
    )


class _Problems(list[str]):
    @contextmanager
    def noted(self) -> Iterator[None]:
        """Takes note of an error of ours and goes on after the block."""
        try:
            yield
        except RussetError as error:
            self.append(str(error))


def _read_files(folder: Path, problems: _Problems) -> tuple[tuple[FileReport, ...], dict[str, Tensor]]:
    """Every file of weights there is to be, and the tensors of those that can be read."""
    paths: tuple[Path, ...] = ()
    with problems.noted():
        paths = weight_files(folder)
    reports, tensors = [], {}
    for path in paths:
        n_bytes = n_tensors = None
        if path.is_file():  # if not, opening the folder has said so
            n_bytes = path.stat().st_size
            with problems.noted():
                found = read_safetensors(path)
                n_tensors = len(found)
                tensors.update(found)
        reports.append(FileReport(name=path.name, n_bytes=n_bytes, n_tensors=n_tensors))
    return tuple(reports), tensors


def _read_config(folder: Path, checkpoint: Checkpoint | None) -> Reader:
    """config.json, empty where it cannot be read: opening the folder has said so."""
    path = folder / "config.json"
    values = checkpoint.config if checkpoint else {}
    if not checkpoint:
        with suppress(CheckpointError):
            values = read_json_object(path, ConfigError)
    return Reader(values, str(path))


def _tensor_report(
    tensors: Mapping[str, Tensor],
    sources: Mapping[str, Source],
    config: Config,
    ignored: Collection[str],
    quantized: dict[str, QuantizedTensor],
) -> TensorReport:
    """Binds the sources one by one, so as to tell all that is wrong; notes in `quantized` what is in affine groups."""
    missing, wrong = [], []
    for role, source in sources.items():
        names = [name for name in source.names if name in tensors]
        if names or source.optional:
            found = {part: tensors[part] for name in names for part in (name, *group_names(name)) if part in tensors}
            try:
                bound = bind(found, {role: source.whole()}, config, strict=False)  # without rows: no copy
                if isinstance(weight := bound.get(role), QuantizedTensor):
                    quantized[names[0]] = weight
            except WeightsError as error:
                wrong.append(str(error))
        else:
            missing.append(source.name)
    extra = extra_tensors(tensors, sources, ignored)
    return TensorReport(missing=tuple(dict.fromkeys(missing)), extra=tuple(extra), wrong=tuple(dict.fromkeys(wrong)))


def _architecture(hf: Reader, config: Config) -> Architecture:
    windows = [window for window in config.layer_window if window]
    return Architecture(
        n_layers=config.n_layers,
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        vocab_size=config.vocab_size,
        max_ctx=config.max_ctx,
        norm=config.norm,
        activation=config.activation,
        tied_head=config.tied_head,
        rope=_rope_kind(hf) if config.ropes else "none",
        rotary_dim=max((2 * len(rope.inv_freq) for rope in config.ropes), default=0),
        n_rope_layers=sum(rope >= 0 for rope in config.layer_rope),
        n_window_layers=len(windows),
        window=max(windows, default=0),
    )


def _rope_kind(hf: Reader) -> str:
    """As config.json calls it, in either style; several kinds where it tells layer types apart."""
    hf = hf.section("text_config") if "text_config" in hf else hf
    said = hf.section("rope_scaling")
    if not said.values:
        said = hf.section("rope_parameters")
    by_layer_type = [said.section(key) for key, value in said.values.items() if isinstance(value, Mapping)]
    kinds = (rope.text("rope_type", rope.text("type", "default")) for rope in by_layer_type or [said])
    return ", ".join(dict.fromkeys(kinds))


def _dtype_reports(tensors: Collection[Tensor]) -> tuple[DtypeReport, ...]:
    by_dtype: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    reports = (
        DtypeReport(
            dtype=dtype,
            n_tensors=len(group),
            n_parameters=sum(math.prod(tensor.shape) for tensor in group),
            n_bytes=sum(tensor.nbytes for tensor in group),
        )
        for dtype, group in by_dtype.items()
    )
    return tuple(sorted(reports, key=lambda report: -report.n_bytes))


def _quantization_reports(tensors: Collection[QuantizedTensor]) -> tuple[QuantizationReport, ...]:
    by_kind: dict[tuple[int, int], list[QuantizedTensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.bits, tensor.group_size), []).append(tensor)
    reports = (
        QuantizationReport(
            bits=bits,
            group_size=group_size,
            n_matrices=len(group),
            n_parameters=sum(tensor.n_rows * tensor.n_cols for tensor in group),
            n_bytes=sum(tensor.n_bytes for tensor in group),
        )
        for (bits, group_size), group in by_kind.items()
    )
    return tuple(sorted(reports, key=lambda report: -report.n_bytes))


def _memory_report(
    config: Config,
    weight_bytes: int,
    per_token: int,
    n_ctx: int | None,
    max_memory: int | str | None,
    problems: _Problems,
) -> MemoryReport:
    counted = n_ctx or config.max_ctx
    with problems.noted():
        counted = memory.choose_n_ctx(
            weight_bytes=weight_bytes,
            bytes_per_token=per_token,
            max_ctx=config.max_ctx,
            n_ctx=n_ctx,
            max_memory=max_memory,
        )
    return MemoryReport(
        n_ctx=counted,
        weight_bytes=weight_bytes,
        cache_bytes_per_token=per_token,
        cache_bytes=memory.in_blocks(counted) * per_token,
        total_bytes=weight_bytes + memory.in_blocks(counted) * per_token,
        available_bytes=memory.budget(max_memory),
    )


def _tokenizer_report(folder: Path) -> TokenizerReport:
    tokenizer = Tokenizer.from_pretrained(folder)

    def special(id: int) -> SpecialToken:
        try:
            return SpecialToken(id=id, token=tokenizer.id_to_token(id))
        except UsageError:
            return SpecialToken(id=id, token=None)

    file, kind = folder / "tokenizer.json", "SentencePiece"
    if file.is_file():
        kind = str(read_json_object(file)["model"].get("type", "BPE"))  # readable: the tokenizer came from it
    else:
        file = folder / "tokenizer.model"
    return TokenizerReport(
        file=file.name,
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        bos=None if tokenizer.bos_token_id is None else special(tokenizer.bos_token_id),
        eos=tuple(special(id) for id in tokenizer.eos_token_ids),
        has_chat_template=tokenizer.has_chat_template,
    )
