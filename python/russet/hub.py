"""From a path or a hub id to a folder on this disk.

The local cache is asked first: one look-up, no network; only what it lacks is downloaded. So a branch such as
main stays at the commit it had when it was downloaded. docs/loading.md says how to move on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

from russet.errors import CheckpointError, HubError
from russet.safetensors import INDEX_NAME, weight_files

#: All a model has beside its weights. Here a star also stands for slashes: chat_templates/tool.jinja.
TEXT_FILES = [
    "config.json", "generation_config.json", INDEX_NAME, "tokenizer*", "*.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
]  # fmt: skip


def resolve(model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder (or file) that `model` means, downloaded first if need be.

    model: a path, or a hub id such as "org/name"; a path that exists is never taken for an id
    revision: branch, tag or commit of a hub id; None means main
    local_files_only: use no network; HF_HUB_OFFLINE=1 in the environment says the same

    Raises CheckpointError for a path that does not exist, HubError for an id that cannot be had.
    """
    path = os.path.expanduser(model)
    if os.path.exists(path):
        return Path(path)
    if not isinstance(model, str) or model[:1] in {".", "/", "~"} or model.count("/") > 1 or "\\" in model:
        raise CheckpointError(f"{path}: no such folder; pass a model's folder, or a hub id like org/name")

    from huggingface_hub import constants

    with _hub_errors(model, revision):
        folder = _cached(model, revision)
        missing = _missing(folder) if folder else []
        if local_files_only or constants.HF_HUB_OFFLINE:
            way_out = "allow the network once (local_files_only=False, HF_HUB_OFFLINE=0)"
            if not folder:
                raise HubError(f"{model}: not in the cache {constants.HF_HUB_CACHE}; {way_out}")
            if missing:
                raise HubError(f"{model}: the download is incomplete, no {', '.join(missing)}; {way_out}")
            return folder
        if folder and not missing and any(folder.glob("tokenizer*")):
            return folder
        return _download(model, revision)


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder of this revision in the cache, complete or not."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except FileNotFoundError:
        return None


def _missing(folder: Path) -> list[str]:
    """The files without which no model can be built."""
    return [file.name for file in (folder / "config.json", *weight_files(folder)) if not file.exists()]


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        __init__ = partialmethod(tqdm.__init__, disable=None)  # None: silent where stderr is no terminal

    # Weights last, so that a cache with the weights has all the rest. They are asked for by commit, since a
    # branch may move in the meantime, and by name, since many repositories hold them in several formats.
    folder = Path(snapshot_download(model, revision=revision, allow_patterns=TEXT_FILES, tqdm_class=Bar))
    commit, names = folder.name, [file.name for file in weight_files(folder)]
    snapshot_download(model, revision=commit, allow_patterns=names, tqdm_class=Bar)
    for name in _missing(folder):  # snapshot_download() passes over these in silence: raise the reason
        hf_hub_download(model, name, revision=commit)
    return folder


@contextmanager
def _hub_errors(model: str, revision: str | None) -> Iterator[None]:
    """Turns whatever huggingface_hub raises into HubError; its network errors have no common base class."""
    from huggingface_hub import constants, utils

    errors: Any = utils  # where every version has its error classes
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        hub = constants.ENDPOINT
        login = "log in with `hf auth login` or set HF_TOKEN"
        unreachable = isinstance(error, errors.LocalEntryNotFoundError)
        cause = error.__cause__ if unreachable and error.__cause__ else error
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.HFValidationError):
            message = f"expected a folder, or a hub id like org/name, got neither ({cause})"
        elif isinstance(cause, errors.GatedRepoError):
            message = f"the model is gated; accept its terms on {hub}/{model}, then {login}"
        elif isinstance(cause, errors.RevisionNotFoundError):
            message = f"no branch, tag or commit {revision!r}; {hub}/{model}/tree/main lists them"
        elif isinstance(cause, errors.RepositoryNotFoundError):
            message = f"no such folder here, no such model on {hub}; correct it or, if it is private, {login}"
        elif status in (401, 403):
            message = f"{hub} refuses access ({status}); {login}"
        elif unreachable:
            message = f"not in the cache, and {hub} cannot be reached ({reason}); check the network"
        elif isinstance(cause, errors.EntryNotFoundError):
            name = str(cause.response.url).rpartition("/")[2]
            message = (
                f"expected a config.json and safetensors weights, got a repository without {name}; "
                "choose another (.bin, .pth and .gguf files are not read)"
            )
        else:
            message = f"the download broke off ({reason}); run it again: complete files are kept"
        raise HubError(f"{model}: {message}") from error
