"""From how many tokens on BLAS multiplies a quantised matrix faster than our int8 kernels: measured, never assumed.

Measured once per chip, library, number of threads and shape of matrix, when a model with such a matrix is first loaded,
and kept in crossover.json under the user's cache folder. RUSSET_CROSSOVER overrides it: "never", a number of tokens,
or "measure" to measure anew.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from russet import _core
from russet.errors import UsageError

SMALLEST = 2**18  #: weights; a smaller matrix is not worth a measurement, and keeps to int8


def choose(matrices: Iterable[_core.PackedMatrix], n_threads: int) -> None:
    """Set `blas_tokens` of each matrix. Raises UsageError where RUSSET_CROSSOVER has no meaning."""
    said = os.environ.get("RUSSET_CROSSOVER", "")
    fixed = _fixed(said)
    if _core.matmul_library() == "none":
        return
    measured = {} if said == "measure" else known()
    before = dict(measured)
    for matrix in matrices:
        if fixed is not None:
            matrix.blas_tokens = fixed
        elif matrix.n_rows * matrix.n_cols >= SMALLEST:
            key = _key(matrix, n_threads)
            if key not in measured:
                measured[key] = matrix.measure_crossover(n_threads)
            matrix.blas_tokens = measured[key]
    if fixed is None and measured != before:
        _keep(known() | measured)


def known() -> dict[str, int]:
    """What was measured on this chip so far: shape -> tokens, 0 for never. Empty where nothing can be read."""
    try:
        everything = json.loads(_file().read_bytes())
        mine = everything.get(_machine(), {})
        return {str(shape): tokens for shape, tokens in mine.items() if type(tokens) is int and tokens >= 0}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _fixed(said: str) -> int | None:
    if said in ("", "measure"):
        return None
    if said == "never":
        return 0
    if said.isascii() and said.isdigit() and 1 <= int(said) <= 10**6:
        return int(said)
    raise UsageError(f"RUSSET_CROSSOVER: expected 'never', 'measure' or a number of tokens from 1, got {said!r}")


def _key(matrix: _core.PackedMatrix, n_threads: int) -> str:
    shape = f"{matrix.n_rows} x {matrix.n_cols}, {matrix.bits} bits, groups of {matrix.group_size}"
    return f"{shape}, {n_threads} thread{'s' if n_threads > 1 else ''}"


def _machine() -> str:
    """What a measurement depends on, besides the shape."""
    features = " ".join(_core.cpu_features()) or "scalar"
    return f"{_core.cpu_name()} ({features}), {_core.matmul_library()}, layout 1"


def _file() -> Path:
    if platform.system() == "Darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "russet" / "crossover.json"


def _keep(measured: dict[str, int]) -> None:
    """A cache that cannot be written is no reason not to run: it is measured again next time."""
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        everything: dict[str, object] = {}
        with suppress(OSError, ValueError, RecursionError):
            read = json.loads(file.read_bytes())
            everything = read if isinstance(read, dict) else {}
        everything[_machine()] = measured
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(everything, indent=1, sort_keys=True))
        os.replace(part, file)
