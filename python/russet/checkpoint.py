"""A model folder as Hugging Face lays it out: config.json, generation_config.json and safetensors weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from russet.errors import CheckpointError, ConfigError, WeightsError
from russet.hub import resolve
from russet.safetensors import (
    INDEX_NAME,
    Tensor,
    read_index,
    read_json_object,
    read_safetensors,
    weight_files,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model folder holds, as it stands: nothing interpreted yet, no weight read before its use."""

    path: Path  #: the folder
    config: dict[str, Any]  #: config.json
    generation_config: dict[str, Any]  #: generation_config.json, empty where there is none
    files: tuple[Path, ...]  #: model.safetensors, or the shards
    n_bytes: int  #: of these files, on disk

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of every file by its name, mapped on first use.

        Raises CheckpointError for a damaged file, WeightsError where a shard lacks what the index promises.
        """
        if self.files == (self.path / "model.safetensors",):
            return read_safetensors(self.files[0])
        index = read_index(self.path / INDEX_NAME)
        shards = {file.name: read_safetensors(file) for file in self.files}
        for name, shard in index.items():
            if name not in shards[shard]:
                raise WeightsError(
                    f"{name}: expected in {shard}, as {INDEX_NAME} says, got no such tensor; download {self.path} again"
                )
        # Where two shards hold the same name, the index decides. Names it leaves out are welcome.
        return {
            name: tensor
            for file, tensors in shards.items()
            for name, tensor in tensors.items()
            if index.get(name, file) == file
        }


def open_checkpoint(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Checkpoint:
    """Open a model folder, or a hub id after downloading it; the options are those of hub.resolve().

    Raises CheckpointError for a folder that lacks something, ConfigError for a config that cannot be read,
    HubError for an id that cannot be had.
    """
    folder = resolve(model, revision=revision, local_files_only=local_files_only)
    if not folder.is_dir():
        way_out = _NO_GGUF if folder.suffix == ".gguf" else f"pass the folder that holds it: {folder.parent}"
        raise CheckpointError(f"{folder}: expected a model folder, got a file; {way_out}")
    if not os.path.isfile(folder / "config.json"):
        raise _incomplete(folder, ["config.json"])
    config = read_json_object(folder / "config.json", ConfigError)
    generation = folder / "generation_config.json"
    generation_config = read_json_object(generation, ConfigError) if os.path.isfile(generation) else {}
    files = weight_files(folder)
    if missing := [file.name for file in files if not os.path.isfile(file)]:
        raise _incomplete(folder, missing)
    return Checkpoint(folder, config, generation_config, files, sum(os.path.getsize(file) for file in files))


_NO_GGUF = "GGUF files are not read: pass the safetensors folder they were made from"


def _incomplete(folder: Path, missing: list[str]) -> CheckpointError:
    """Says what the folder lacks, and takes the way out from what it has instead."""
    names = []
    for place in (folder, folder / ".cache/huggingface/download"):  # `hf download` keeps parts there
        names += next(os.walk(place), ("", [], []))[2]  # never raises

    def has(*suffixes: str) -> bool:
        return any(name.endswith(suffixes) for name in names)

    if has(".incomplete", ".part", ".crdownload"):
        way_out = "a download broke off: run it again"
    elif has(".safetensors", ".safetensors.index.json"):
        way_out = "download the folder again"
    elif has(".gguf"):
        way_out = _NO_GGUF
    elif has(".bin", ".pth", ".pt"):
        way_out = (
            "convert the weights with transformers: "
            f'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("NEW_FOLDER")'
        )
    else:
        way_out = f"pass the folder with config.json and model.safetensors, or the shards and {INDEX_NAME}"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    said = f", as {INDEX_NAME} says" if INDEX_NAME in names and missing != ["config.json"] else ""
    return CheckpointError(f"{folder}: expected {', '.join(missing[:3])}{more}{said}, got no such file; {way_out}")
