"""A quantised copy of a model folder, as MLX stores it: russet and mlx-lm load it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from russet import _core
from russet.checkpoint import Checkpoint, open_checkpoint
from russet.config import Reader
from russet.errors import CheckpointError, UsageError
from russet.hub import TEXT_FILES
from russet.memory import gb
from russet.models import family_of
from russet.quantization import Quantization, TensorError, error_of, quantize_matrix
from russet.safetensors import INDEX_NAME, Tensor, Writer, aligned, release_pages
from russet.weights import (
    Source,
    bind,
    floats_of,
    group_names,
    needed_bytes,
    plan_quantization,
    without_copied_head,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """What became of one matrix."""

    name: str
    n_rows: int
    n_cols: int
    bits: int | None  #: None: it stays float
    group_size: int | None
    note: str | None  #: where it is not as was asked for: why
    error: TensorError | None  #: against the float weights


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What became of a checkpoint."""

    source: Path
    path: Path  #: the new folder
    n_bytes_before: int  #: of the files of weights
    n_bytes: int
    bits_per_weight: float  #: of all weights, scales and biases included
    matrices: tuple[QuantizedMatrix, ...]


#: Called with (bytes of weights done, bytes of weights in all).
Progress = Callable[[int, int], None]


def save_quantized(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    quantize: str | Quantization = "int8",
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> QuantizeReport:
    """Write a quantised copy of a model (folder or hub id) to a new folder; memory holds one matrix at a time.

    The folder comes into being when it is complete: an error or Ctrl-C leaves nothing. Tensors without a part in the
    model, such as an image half, are left out.

    Raises CheckpointError as russet.load() does, and where the disk is too full; UsageError where the folder exists,
    or the checkpoint is quantised already.
    """
    quantization = Quantization.of(quantize)
    if quantization is None:
        raise UsageError("quantize: expected 'int8', 'int4' or a Quantization, got None")
    path = Path(path).expanduser().absolute()
    if os.path.lexists(path):
        raise UsageError(f"{path}: is there already; choose a new folder, or remove it first")
    checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
    job = _Job(checkpoint, quantization, _core.default_threads() if threads is None else threads)
    with _new_folder(path, job.n_bytes) as folder:
        n_bytes = job.write_weights(folder, progress)
        job.write_the_rest(folder)
    n_weights = sum(math.prod(tensor.shape) for tensor in job.tensors.values())
    return QuantizeReport(
        source=checkpoint.path,
        path=path,
        n_bytes_before=checkpoint.n_bytes,
        n_bytes=n_bytes,
        bits_per_weight=8 * job.n_bytes / n_weights,
        matrices=tuple(job.matrices),
    )


class _Job:
    """One checkpoint on its way."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization, n_threads: int) -> None:
        self.checkpoint, self.quantization, self.n_threads = checkpoint, quantization, n_threads
        hf = Reader(checkpoint.config, str(checkpoint.path / "config.json"))
        self.family = family_of(hf)
        config = self.family.config(hf)
        all_sources = self.family.sources(hf, config)
        self.plan = plan_quantization(checkpoint.tensors, all_sources, quantization)
        bind(checkpoint.tensors, all_sources, config, plan=self.plan, ignored=self.family.IGNORED)  # checks it all
        sources = without_copied_head(checkpoint.tensors, all_sources, config)
        found = ((next((n for n in s.names if n in checkpoint.tensors), None), s) for s in sources.values())
        self.sources: dict[str, Source] = {name: source for name, source in found if name}
        self.tensors: dict[str, Tensor] = {name: checkpoint.tensors[name] for name in self.sources}
        self.n_bytes = needed_bytes(checkpoint.tensors, sources, self.plan)
        self.matrices: list[QuantizedMatrix] = []

    def name_of(self, tensor: Tensor) -> str:
        """What it is called in the new folder: as mlx-lm writes it."""
        is_mlx = tensor.name == self.sources[tensor.name].mlx_name
        return tensor.name if is_mlx else self.family.mlx_name(tensor.name)

    def write_weights(self, folder: Path, progress: Progress) -> int:
        """File by file as in the checkpoint, tensor by tensor; the bytes of all files."""
        index: dict[str, str] = {}
        done, total, n_bytes = 0, sum(tensor.nbytes for tensor in self.tensors.values()), 0
        progress(0, total)
        for file in self.checkpoint.files:
            tensors = [tensor for tensor in self.tensors.values() if tensor.file == file]
            if not tensors:
                continue
            shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
            for tensor in tensors:
                shapes |= self._shapes_of(tensor)
            index |= dict.fromkeys(shapes, file.name)
            writer = Writer(folder / file.name, shapes, {"format": "mlx"})
            for tensor in tensors:
                self._write(writer, tensor)
                done += tensor.nbytes
                progress(done, total)
            writer.close()
            n_bytes += (folder / file.name).stat().st_size
        if set(index.values()) != {"model.safetensors"}:
            _write_json(folder / INDEX_NAME, {"metadata": {"total_size": self.n_bytes}, "weight_map": index})
        return n_bytes

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Outputs by inputs, as it is written."""
        return tensor.shape[::-1] if self.sources[tensor.name].of(tensor).transposed else tensor.shape

    def _shapes_of(self, tensor: Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What is written of a tensor: name -> dtype and shape."""
        name, how = self.name_of(tensor), self.plan.get(tensor.name)
        if how is None:
            return {name: (tensor.dtype, self._shape(tensor))}
        n_rows, n_cols = self._shape(tensor)
        scales, biases = group_names(name)
        groups = tensor.dtype, (n_rows, n_cols // how.group_size)
        return {name: ("u32", (n_rows, n_cols * how.bits // 32)), scales: groups, biases: groups}

    def _write(self, writer: Writer, tensor: Tensor) -> None:
        name, how = self.name_of(tensor), self.plan.get(tensor.name)
        floats = aligned(floats_of(tensor, self.sources[tensor.name].of(tensor).whole()))
        error = None
        if how is None:
            writer.write(name, floats)
        else:
            q = quantize_matrix(floats, tensor.dtype, how, name=tensor.name, n_threads=self.n_threads)
            error = error_of(floats, q, n_threads=self.n_threads)
            scales, biases = group_names(name)
            writer.write(name, q.codes)
            writer.write(scales, q.scales)
            writer.write(biases, q.biases)
        if floats.ndim == 2:
            self.matrices.append(self._matrix(tensor, how, error))
        release_pages(tensor.data)

    def _matrix(self, tensor: Tensor, how: Quantization | None, error: TensorError | None) -> QuantizedMatrix:
        n_rows, n_cols = self._shape(tensor)
        wanted = self.quantization.of_tensor(tensor.name)
        note = None
        if how is None:
            note = f"stays {tensor.dtype}"
            if wanted and not wanted.fitting(n_cols):
                note += f": its {n_cols} inputs make no groups of 32"
        elif wanted and how.group_size != wanted.group_size:
            note = f"in groups of {how.group_size}: its {n_cols} inputs make none of {wanted.group_size}"
        return QuantizedMatrix(
            name=tensor.name,
            n_rows=n_rows,
            n_cols=n_cols,
            bits=how.bits if how else None,
            group_size=how.group_size if how else None,
            note=note,
            error=error,
        )

    def write_the_rest(self, folder: Path) -> None:
        """config.json, and as they are all other files that a model has beside its weights."""
        kinds = {
            self.name_of(self.tensors[name]).removesuffix(".weight"): {"group_size": how.group_size, "bits": how.bits}
            for name, how in self.plan.items()
            if how and name in self.tensors
        }
        usual = max(kinds.values(), key=list(kinds.values()).count)
        said = {**usual, **{name: kind for name, kind in kinds.items() if kind != usual}}
        _write_json(
            folder / "config.json", {**self.checkpoint.config, "quantization": said, "quantization_config": said}
        )
        for file in sorted(self.checkpoint.path.rglob("*")):
            name = file.relative_to(self.checkpoint.path).as_posix()
            if file.is_file() and _is_text_file(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)


def _is_text_file(name: str) -> bool:
    if name in (INDEX_NAME, "config.json") or name.startswith("."):
        return False
    return any(fnmatchcase(name, pattern) for pattern in TEXT_FILES)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(path: Path, n_bytes: int) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end of the block, or else disappears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise CheckpointError(
            f"{path}: expected {gb(n_bytes)} of free disk space, got {gb(free)}; make room, or choose another disk"
        )
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    folder.mkdir()
    try:
        yield folder
        os.rename(folder, path)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise
