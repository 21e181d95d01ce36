"""Reads .safetensors files through a read-only memory map, with no copy and no trust in what they say; and writes them.

A file is an 8-byte little-endian header length, a JSON header of that many bytes, then the tensors' bytes,
packed without gaps in the order of their offsets, which count from the end of the header:

    {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {"k": "text"}}

A model is one file, model.safetensors, or shards and an index that says which shard holds which tensor.

Accepted and refused are the same files as by the `safetensors` library, but for this:
- refused here: a key that occurs twice, a tensor written as a list, a dtype written as an object or sub-byte;
- accepted here: a field that neither knows, nested deeper than 128 levels.

A map shows the file as it is now: if another program truncates it, touching the lost pages ends this process.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from russet.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000  # the library's limit for a header, good enough for the JSON files around it

#: How each dtype looks in numpy; bf16 and the 8-bit floats, which numpy lacks, as their bits.
NUMPY_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "bool": "?", "u8": "u1", "i8": "i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4",
        "u64": "<u8", "i64": "<i8", "f16": "<f2", "bf16": "<u2", "f32": "<f4", "f64": "<f8", "c64": "<c8",
        "f8_e4m3": "u1", "f8_e5m2": "u1", "f8_e8m0": "u1", "f8_e4m3fnuz": "u1", "f8_e5m2fnuz": "u1",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named, shaped piece of a mapped file."""

    name: str
    dtype: str  #: a key of NUMPY_DTYPES
    shape: tuple[int, ...]
    data: np.ndarray = field(repr=False)  #: [nbytes] uint8, read-only; keeps the map alive
    file: Path

    @property
    def nbytes(self) -> int:
        return self.data.size

    def numpy(self) -> np.ndarray:
        """The tensor as numpy knows it: shaped, aligned, read-only; bf16 as uint16, 8-bit floats as uint8.

        A view of the map; a copy only where the file keeps the tensor off its natural alignment.
        """
        return aligned(self.view())

    def view(self) -> np.ndarray:
        """The same, but a view of the map wherever it begins: not always aligned."""
        array: np.ndarray = self.data.view(NUMPY_DTYPES[self.dtype])
        try:
            return array.reshape(self.shape)
        except ValueError as error:  # more than 64 dimensions, or a vast one in a tensor of no elements
            where = f"{self.file}: {_show(self.name)}"
            raise _damaged(where, "a shape that numpy can have", self.shape) from error


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a read-only copy where it lies off its natural alignment; the map's pages are then given back."""
    if array.flags.aligned:
        return array
    owner = array.copy()
    owner.flags.writeable = False
    release_pages(array)
    copy: np.ndarray = owner.view()  # which cannot be made writeable again
    return copy


def widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 copy of an f32, f16 or (as uint16) bf16 array; exact."""
    if dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def mapping_of(array: np.ndarray) -> np.ndarray | None:
    """All bytes of the mapped file that an array is a view of, uint8; None for an array of another kind."""
    mapped = _map_behind(array)
    return None if mapped is None else np.frombuffer(mapped, np.uint8)


def _map_behind(array: np.ndarray) -> mmap.mmap | None:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, mmap.mmap) else None


def release_pages(array: np.ndarray) -> None:
    """Lets the system take back the memory behind a view of a mapped file; it comes again when touched.

    Does nothing for an array of another kind, or where the system cannot do it.
    """
    mapped = _map_behind(array)
    if mapped is None or not array.flags.c_contiguous or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages alone: others hold a neighbour's bytes
    n_bytes = begin + array.nbytes - first
    if n_bytes > 0:
        mapped.madvise(mmap.MADV_DONTNEED, first, n_bytes)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of the file, in the order of its bytes. Raises CheckpointError."""
    path = Path(path)
    header, data = _read_header(path)
    header.pop("__metadata__", None)
    placed = [_place(path, name, entry, data) for name, entry in header.items()]
    placed.sort(key=lambda found: found[:2])

    n_bytes = 0
    for begin, end, tensor in placed:
        if begin != n_bytes:  # a hole or an overlap
            where = f"{path}: {_show(tensor.name)}"
            raise _damaged(where, f"data_offsets from {n_bytes} on, where the last tensor ends", [begin, end])
        n_bytes = end
    if n_bytes != data.size:
        raise _damaged(path, f"{n_bytes} bytes of tensors, as the header says", data.size)
    return {tensor.name: tensor for _, _, tensor in placed}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file's free-form metadata, empty where it has none. Raises CheckpointError."""
    header, _ = _read_header(Path(path))
    return header.get("__metadata__") or {}


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights, there or not: model.safetensors, or the shards in the index."""
    single, index = folder / "model.safetensors", folder / INDEX_NAME
    if os.path.exists(single) or not os.path.exists(index):
        return (single,)
    return tuple(folder / name for name in sorted(set(read_index(index).values())))


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of its shard, a file beside the index. Raises CheckpointError."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(path, "a weight_map from tensor names to file names", weight_map)
    for tensor, shard in weight_map.items():
        # No separators, no wildcards, nothing odd: the name is opened, and asked of the hub, as it stands.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w .+()-]{1,200}\.safetensors", shard):
            raise _damaged(f"{path}: {_show(tensor)}", "a .safetensors file in the same folder", shard)
    return weight_map


def read_json_object(path: Path, error: type[CheckpointError] = CheckpointError) -> dict[str, Any]:
    """A JSON file that holds one object; NaN and Infinity are allowed. Raises `error`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    if raw.startswith(_LFS_POINTER):
        raise error(_lfs_message(path))
    if len(raw) > MAX_JSON_BYTES:
        raise error(f"{path}: expected at most {MAX_JSON_BYTES} bytes of JSON, got more; pass another")
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as cause:
        got = f"{_show(raw[:80])} ({cause})"
        raise error(f"{path}: expected JSON, got {got}; correct it or download it again") from cause
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, got {_show(value)}; is it the right file?")
    return value


def _read_header(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The header, with its __metadata__ checked, and the bytes that follow it."""
    file = _map(path)
    if file[:64].tobytes().startswith(_LFS_POINTER):
        raise CheckpointError(_lfs_message(path))
    if file.size < 8:
        raise _damaged(path, "8 bytes that say how long the header is", file.size)
    n_bytes = int.from_bytes(file[:8].tobytes(), "little")
    if n_bytes > MAX_JSON_BYTES:
        raise _damaged(path, f"a safetensors header of at most {MAX_JSON_BYTES} bytes", n_bytes)
    if n_bytes > file.size - 8:
        raise _damaged(path, f"a header of {n_bytes} bytes, as its length says", file.size - 8)
    raw = file[8 : 8 + n_bytes].tobytes()
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct_keys,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_no_constant,
        )
        if b"\\u" in raw:
            json.dumps(header, ensure_ascii=False).encode("utf-8")  # fails on half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"a JSON header ({error})", raw[:80]) from error
    if not isinstance(header, dict):
        raise _damaged(path, "a JSON object as header", header)
    metadata = header.get("__metadata__")
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        raise _damaged(f"{path}: __metadata__", "an object of texts", metadata)
    return header, file[8 + n_bytes :]


def _map(path: Path) -> np.ndarray:
    """The whole file as read-only uint8."""
    if not os.path.isfile(path):  # a pipe would keep us waiting for its writer
        got = "something else" if os.path.exists(path) else "nothing of that name"
        raise CheckpointError(f"{path}: expected a safetensors file, got {got}")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # cannot be mapped
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _place(path: Path, name: str, entry: Any, data: np.ndarray) -> tuple[int, int, Tensor]:
    """Where the tensor begins and ends in the data, and the tensor."""
    where = f"{path}: {_show(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(where, "an object with dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype != dtype.upper() or dtype.lower() not in NUMPY_DTYPES:
        known = " ".join(NUMPY_DTYPES).upper()
        raise CheckpointError(f"{where}: expected a dtype of {known}, got {_show(dtype)}; convert the tensor")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise _damaged(where, "a shape of whole numbers", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise _damaged(where, "data_offsets of two whole numbers", offsets)
    begin, end = offsets
    if not begin <= end <= data.size:
        raise _damaged(where, f"data_offsets in order and inside the {data.size} bytes that follow", offsets)

    dtype = dtype.lower()
    n_elements = 1
    for n in shape:
        n_elements *= n
        if n_elements >= 2**64:
            raise _damaged(where, "a shape of fewer than 2^64 elements", shape)
    n_bytes = n_elements * NUMPY_DTYPES[dtype].itemsize
    if n_bytes != end - begin:
        raise _damaged(where, f"{n_bytes} bytes for {_show(shape)} {dtype}", end - begin)
    return begin, end, Tensor(name, dtype, tuple(shape), data[begin:end], path)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {_show(key)} occurs twice")
        result[key] = value
    return result


def _number(text: str) -> int | float:
    """A whole number below 2^64 as int; a sign, a fraction or an exponent makes it a float."""
    if len(text) <= 20 and text.isdigit() and int(text) < 2**64:
        return int(text)
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {_show(text)} is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


_LFS_POINTER = b"version https://git-lfs"


def _lfs_message(path: Path) -> str:
    return f"{path}: expected a file, got the git-lfs pointer to it; run `git lfs pull` in {path.parent}"


def _damaged(where: str | Path, expected: str, got: object) -> CheckpointError:
    way_out = "the file is damaged or incomplete: download or write it again"
    return CheckpointError(f"{where}: expected {expected}, got {_show(got)}; {way_out}")


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80
_brief.maxlist = _brief.maxtuple = 10
_show = _brief.repr  # what a file says, on one line and of bounded length


class Writer:
    """Writes a file whose tensors are named before and come one at a time, in any order.

    shapes: name -> (a key of NUMPY_DTYPES, shape)

    With the widest dtypes first, as the library has it, every tensor lies at a multiple of its dtype's size.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]):
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        begin = 0
        for name, (dtype, shape) in sorted(shapes.items(), key=lambda entry: -NUMPY_DTYPES[entry[1][0]].itemsize):
            end = begin + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        self._file = path.open("wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)
        self._begin = 8 + len(raw)
        self._offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}

    def write(self, name: str, array: np.ndarray) -> None:
        """The bytes of one of the tensors."""
        self.write_parts(name, [array])

    def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
        """The same, some rows after the others."""
        begin, end = self._offsets.pop(name)
        self._file.seek(self._begin + begin)
        n_bytes = 0
        for array in parts:
            n_bytes += array.nbytes
            if n_bytes <= end - begin:
                self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if n_bytes != end - begin:
            raise ValueError(f"{name}: expected {end - begin} bytes, got {n_bytes}")

    def close(self) -> None:
        """Raises ValueError where a tensor never came."""
        with self._file:
            if self._offsets:
                raise ValueError(f"{next(iter(self._offsets))}: never written")
            self._file.flush()
            os.fsync(self._file.fileno())
