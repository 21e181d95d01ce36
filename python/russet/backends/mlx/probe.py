"""Is MLX here, and what does it compute on? Asked in a process of its own: importing it may end the one that does."""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from russet.errors import BackendError

TESTED = ("0.32",)  #: the minor versions that russet's tests have seen; as in pyproject.toml

_INSTALL = 'pip install "russet[mlx]"'

_TIMEOUT_S = 60

# Prints the version, then, if it can compute, on what. Its arguments are this process's sys.path.
_SCRIPT = """
import json, sys
sys.path[:] = sys.argv[1:]
import mlx.core as mx
print(json.dumps(mx.__version__), flush=True)
if not mx.array_equal(mx.ones((8, 8)) @ mx.ones((8, 8)), mx.full((8, 8), 8.0)).item():
    sys.exit("a product of two matrices of ones is wrong")
on_gpu, info = mx.default_device().type == mx.gpu, mx.device_info()
name, working_set = info.get("device_name", "a device"), info.get("max_recommended_working_set_size", 0)
print(json.dumps([on_gpu, str(name), int(working_set)]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Mlx:
    """An MLX that works."""

    version: str
    on_gpu: bool
    device: str  #: its name
    working_set: int  #: bytes that the GPU can hold; 0: it does not say

    def __str__(self) -> str:
        return f"MLX {self.version} on {self.device}" + ("" if self.on_gpu else ", a CPU: for tests, not for speed")


def find() -> Mlx:
    """The MLX that `import mlx.core` would bring. Asked once a process. Raises BackendError, with the reason."""
    found = _found()
    if isinstance(found, str):
        raise BackendError(f"mlx: {found}")
    return found


def find_gpu() -> Mlx | None:
    """The same where this is a Mac and MLX computes on its GPU; asks nothing elsewhere."""
    if sys.platform != "darwin":
        return None
    found = _found()
    return found if isinstance(found, Mlx) and found.on_gpu else None


@functools.cache
def _found() -> Mlx | str:
    """MLX, or why there is none."""
    import importlib.util  # slow to import, as is the next
    import subprocess

    if importlib.util.find_spec("mlx") is None:
        return f"not installed; {_INSTALL}"
    try:
        done = subprocess.run(
            [_python(), "-c", _SCRIPT, *map(os.path.abspath, sys.path)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"does not answer within {_TIMEOUT_S} seconds; install it again: {_INSTALL}"
    except OSError as error:
        return f"cannot be asked: {error}"
    said = _said(done.stdout)
    if said and not str(said[0]).startswith(tuple(f"{minor}." for minor in TESTED)):
        return f"version {said[0]} is not one that russet was tested with ({', '.join(TESTED)}); {_INSTALL}"
    if len(said) == 2 and done.returncode == 0:
        return Mlx(said[0], *said[1])
    does = "cannot compute here" if said else "cannot be imported"
    last_words = done.stderr.strip().splitlines()[-1:]
    why = last_words[0] if last_words else f"it ended with code {done.returncode}"
    return f"installed, but {does}: {why}; install it again: {_INSTALL}"


def _python() -> str:
    """An interpreter. Where Python is embedded sys.executable may be the host, which must not be started again."""
    if os.path.basename(sys.executable or "").lower().startswith("py"):
        return sys.executable
    return os.path.join(sys.base_exec_prefix, "bin", "python{}.{}".format(*sys.version_info))


def _said(stdout: str) -> list[Any]:
    said = []
    for line in stdout.splitlines():
        try:
            said.append(json.loads(line))
        except ValueError:
            return []
    return said
