"""Kept texts in a file: their tokens, and the blocks of their keys and values, each once.

A safetensors file (safetensors.py), so that any tool shows what is in it:

    blocks           u8   [n_blocks, block_bytes]          as csrc/kv_cache/kv_format.h draws them
    texts.0.tokens   u32  [n_tokens]
    texts.0.tables   u32  [n_layers, n_kv_heads, n]        which of the blocks, from 1 on; 0: a window gave it back
    texts.1.tokens   ...

Its metadata say which model the texts are of (identity()), and of each text how it is rotated, "short" or "long".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from russet import _core
from russet.checkpoint import Checkpoint
from russet.config import Config
from russet.errors import CheckpointError, ContextFull, UsageError
from russet.kv_dtype import KvDtype
from russet.quantization import Quantization
from russet.safetensors import Tensor, Writer, read_metadata, read_safetensors
from russet.whole_file import whole_file

LAYOUT = "1"  #: goes up whenever the same bytes would mean something else

_PART_BYTES = 64 * 2**20  # of blocks, copied at once
_SAMPLES, _SAMPLE_BYTES = 256, 4096

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SavedText:
    """Tokens, and the cache that holds their keys and values."""

    tokens: list[int]
    cache: _core.KvCache
    rotated: str  #: "short" or "long"; see prefix_cache.frequencies()


def identity(
    checkpoint: Checkpoint, config: Config, quantization: Quantization | None, kv_dtype: KvDtype, attention: str
) -> dict[str, str]:
    """What must be the same for a text's keys and values to be the same.

    Of the weights' files names, lengths and 1 MiB of bytes from all over them, so that a copy of a model is that model.
    """
    tokenizer = (checkpoint.path / name for name in ("tokenizer.json", "tokenizer.model"))
    others = replace(config, ropes=(), layer_rope=(), layer_window=(), n_sinks=0)
    return {
        "format": "russet cache",
        "layout": LAYOUT,
        "model": f"{config.family}, {_digest(repr(others).encode())}",
        "windows": f"{' '.join(map(str, config.layer_window))}, {config.n_sinks} sinks",
        "rope": _digest(repr((config.ropes, config.layer_rope)).encode()),
        "tokenizer": _digest(*(file.read_bytes() for file in tokenizer if file.is_file())),
        "weights": _digest(*(part for file in checkpoint.files for part in _samples(file))),
        "quantization": "as stored" if quantization is None else repr(quantization),
        "kv_dtype": str(kv_dtype),
        "keys": "by columns",
        "attention": attention,
    }


def save(path: Path, said: dict[str, str], pool: _core.BlockPool, config: Config, texts: Sequence[SavedText]) -> None:
    """Write texts: the whole file at once, or nothing. Raises CheckpointError."""
    tables = [_tables(text.cache, config) for text in texts]
    blocks = np.unique(np.concatenate([table[table > 0] for table in tables]))
    block_bytes = pool.info["block_bytes"]
    arrays = {}
    for i, (text, table) in enumerate(zip(texts, tables, strict=True)):
        arrays[f"texts.{i}.tokens"] = np.array(text.tokens, np.uint32)
        arrays[f"texts.{i}.tables"] = np.where(table > 0, np.searchsorted(blocks, table) + 1, 0).astype(np.uint32)
    shapes = {name: ("u32", array.shape) for name, array in arrays.items()}
    shapes["blocks"] = ("u8", (len(blocks), block_bytes))
    with whole_file(path, len(blocks) * block_bytes) as part:
        writer = Writer(part, shapes, said | {"rotated": " ".join(text.rotated for text in texts)})
        for name, array in arrays.items():
            writer.write(name, array)
        n = max(1, _PART_BYTES // block_bytes)
        writer.write_parts("blocks", (pool.read(blocks[i : i + n]) for i in range(0, len(blocks), n)))
        writer.close()


@dataclass(frozen=True, slots=True)
class SavedFile:
    """What a file holds, checked against the model; nothing is in the cache yet."""

    path: Path
    blocks: _Array
    texts: list[tuple[list[int], _Array, str]]  #: tokens, tables, how they are rotated

    def restore(self, pool: _core.BlockPool, model: _core.Model, n_ctx: int) -> list[SavedText]:
        """Every text in the cache, or none. Raises NotEnoughMemory where they do not fit, CheckpointError on holes."""
        sequences = [(len(tokens), tables) for tokens, tables, _ in self.texts]
        try:
            caches = _core.restore_caches(pool, model, n_ctx, self.blocks, sequences)
        except UsageError as error:
            raise CheckpointError(f"{self.path}: {error}; the file is damaged: save it anew") from error
        return [
            SavedText(tokens, cache, rotated) for (tokens, _, rotated), cache in zip(self.texts, caches, strict=True)
        ]


def read(path: Path, said: dict[str, str], block_bytes: int, config: Config, n_ctx: int) -> SavedFile:
    """Raises CheckpointError on a file that is damaged or of another model, ContextFull on a text beyond n_ctx."""
    tensors, metadata = read_safetensors(path), read_metadata(path)
    for field, expected in said.items():
        got = metadata.get(field)
        if got != expected:
            way_out = "load the model it was saved with, as it was loaded then, or save a new file"
            raise CheckpointError(f"{path}: {field}: expected {expected!r}, got {got!r:.200}; {way_out}")
    blocks = _taken(path, tensors, "blocks", "u8", 2)
    _check(path, blocks.shape[1] == block_bytes, f"blocks of {block_bytes} bytes", blocks.shape)
    texts = []
    rotated = metadata.get("rotated", "").split()
    _check(path, set(rotated) <= {"short", "long"}, "texts rotated short or long", rotated[:10])
    for i, how in enumerate(rotated):
        tokens = _taken(path, tensors, f"texts.{i}.tokens", "u32", 1)
        tables = _taken(path, tensors, f"texts.{i}.tables", "u32", 3)
        shape = config.n_layers, config.n_kv_heads, -(-tokens.size // _core.BLOCK_TOKENS)
        _check(path, tokens.size > 0 and tokens.max() < config.vocab_size, f"ids below {config.vocab_size:,}", "others")
        _check(path, tables.shape == shape, f"texts.{i}.tables of {list(shape)}", tables.shape)
        _check(path, tables.max() <= len(blocks), f"tables of {len(blocks)} blocks", tables.max())
        if tokens.size > n_ctx:
            raise ContextFull(
                f"{path}: a text of {tokens.size:,} tokens does not fit n_ctx={n_ctx:,}; load with a larger n_ctx"
            )
        texts.append((tokens.tolist(), tables, how))
    _check(path, not tensors, "no other tensors", list(tensors)[:3])
    return SavedFile(path, blocks, texts)


def _tables(cache: _core.KvCache, config: Config) -> _Array:
    return np.array([[cache.table(i, head) for head in range(config.n_kv_heads)] for i in range(config.n_layers)])


def _taken(path: Path, tensors: dict[str, Tensor], name: str, dtype: str, n_dims: int) -> _Array:
    tensor = tensors.pop(name, None)
    got = "no such tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
    ok = tensor is not None and tensor.dtype == dtype and len(tensor.shape) == n_dims
    _check(path, ok, f"{name}, {dtype} of {n_dims} dimensions", got)
    assert tensor
    return tensor.numpy()


def _check(path: Path, ok: object, expected: str, got: object) -> None:
    if not ok:
        raise CheckpointError(f"{path}: expected {expected}, got {got}; the file is damaged: save it anew")


def _samples(file: Path) -> Iterator[bytes]:
    """Its name and length, and bytes from all over it; of a small file all."""
    size = file.stat().st_size
    yield f"{file.name} {size}".encode()
    with file.open("rb") as opened:
        for begin in _places(size):
            opened.seek(begin)
            yield opened.read(_SAMPLE_BYTES)


def _places(size: int) -> Iterable[int]:
    if size <= _SAMPLES * _SAMPLE_BYTES:
        return range(0, size, _SAMPLE_BYTES)
    return (i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1) for i in range(_SAMPLES))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
