"""Packed weights kept beside a checkpoint, so that the next load computes nothing: FOLDER/.russet/NAME.packed.

A file is an 8-byte little-endian header length, a JSON header, zeros up to a multiple of 4,096 bytes, then the core's
arena as it was (csrc/weights/packed.h). The header says of which files of the checkpoint, and how, it was made: one
that was made of others is not used, and written anew when asked for. Only codes, scales and biases are in it; norms
and tensors that stay floats are read from the checkpoint.

The file is mapped. On Linux, whose page cache has pages of 4 KB, it is read into huge pages instead: 0.1 s for 600 MB,
and decode is a tenth faster ever after (docs/performance.md).
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from russet import _core
from russet.checkpoint import Checkpoint
from russet.errors import CheckpointError, WeightsError
from russet.quantization import Quantization
from russet.whole_file import whole_file

LAYOUT = 2  #: of csrc/weights/packed.h; goes up whenever the same bytes would mean something else

_ALIGNMENT = 4096
_MAX_HEADER_BYTES = 100_000_000
_FIELDS = ("offset", "n_rows", "n_cols", "bits", "group_size", "dtype", "symmetric", "sliced")
_log = logging.getLogger("russet")


class PackedFile:
    """Where the packed weights of a checkpoint, quantised in one way, are kept or would be."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization | None) -> None:
        how = "as stored" if quantization is None else repr(quantization)
        kind = "as-stored"
        if quantization is not None:
            kind = f"int{quantization.bits}-g{quantization.group_size}"
            kind += "-symmetric" if quantization.symmetric else ""
            kind += "-overrides" if quantization.overrides else ""
        self.path = checkpoint.path / ".russet" / f"{kind}.packed"
        self._like = checkpoint.files[0]
        stats = {file.name: os.stat(file) for file in checkpoint.files}
        self._origin = {
            "layout": LAYOUT,
            "how": how,
            "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        }

    def read(self, n_threads: int = 1) -> dict[str, _core.PackedMatrix] | None:
        """Every packed matrix by its role; None where there is no such file, or it was made of others.

        Raises CheckpointError where the file is damaged.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        with file:
            size = os.fstat(file.fileno()).st_size
            if size < _ALIGNMENT:
                raise self._damaged(f"at least {_ALIGNMENT} bytes", size)
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise self._damaged("a header inside the file", n_bytes)
            try:
                header = json.loads(file.read(n_bytes))
                if header["origin"] != self._origin:
                    _log.info("%s: made of another checkpoint or by another russet: not used", self.path)
                    return None
                data = _data(file, min(_aligned(8 + n_bytes), size), n_threads)
                return {role: self._matrix(data, entry) for role, entry in header["matrices"].items()}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WeightsError) as error:
                raise self._damaged("the header that russet writes", error) from error

    def _matrix(self, data: np.ndarray[Any, Any], entry: Mapping[str, Any]) -> _core.PackedMatrix:
        offset, *rest = (entry[name] for name in _FIELDS)
        return _core.PackedMatrix.at(data, offset, *rest)

    def write(self, arena: _core.Arena, matrices: Mapping[str, _core.PackedMatrix]) -> None:
        """Keep what lies in the arena: the whole file at once, or nothing. Raises CheckpointError."""
        entries = {role: {name: getattr(m, name) for name in _FIELDS} for role, m in matrices.items()}
        header = json.dumps({"origin": self._origin, "matrices": entries}).encode()
        padding = _aligned(8 + len(header)) - 8 - len(header)
        try:
            self.path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error.strerror}") from error
        with whole_file(self.path, _ALIGNMENT + len(header) + arena.used) as part:
            with part.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header + bytes(padding))
                file.write(arena.bytes().data)
            shutil.copymode(self._like, part)  # readable by whoever may read the checkpoint

    def _damaged(self, expected: str, got: object) -> CheckpointError:
        shown = re.sub(r"\s+", " ", str(got))[:120]
        return CheckpointError(f"{self.path}: expected {expected}, got {shown}; delete the file, it is only a copy")


def _data(file: BinaryIO, begin: int, n_threads: int) -> np.ndarray[Any, Any]:
    """What follows the header, uint8."""
    if sys.platform == "linux":
        size = os.fstat(file.fileno()).st_size
        return _core.Arena.from_file(file.fileno(), begin, size - begin, n_threads).bytes()
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[begin:]


def _aligned(n_bytes: int) -> int:
    return (n_bytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
