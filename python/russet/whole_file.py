"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from russet.errors import CheckpointError
from russet.memory import gb


@contextmanager
def whole_file(path: Path, n_bytes: int) -> Iterator[Path]:
    """An empty file in the same folder, to be written; at the end of the block it takes its place, or else disappears.

    n_bytes: that it is going to take

    Raises CheckpointError where the disk has less room, and for every OSError of the block.
    """
    part = ""
    try:
        free = shutil.disk_usage(path.parent).free
        if free < n_bytes:
            raise CheckpointError(f"{path}: {gb(n_bytes)} needed, {gb(free)} free on that disk; free some")
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".part", dir=path.parent)
        os.close(descriptor)
        yield Path(part)
        os.replace(part, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.unlink(part)  # still there only if something went wrong, Ctrl-C included
