"""C++ text to a shared library, compiled once and kept under the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from russet.errors import ShaderError
from russet.metal_sim import toolchain

Sanitizer = Literal["address", "thread"]

CXX = Path(__file__).parent / "cxx"
KEPT_DAYS = 30  #: libraries that nobody asked for that long are deleted

COMMON = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-nostdlib++",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fsigned-char",
    "-gline-tables-only",
    "-fdebug-compilation-dir=.",
    "-Wno-everything",
    "-fno-color-diagnostics",
    "-fno-caret-diagnostics",
]

# What Metal's compiler does: contraction to fma, unsuffixed literals that are float, 16-bit floats rounded after every
# operation. Buffers may begin at any multiple of 4 (see metal_sim_allocate), so no vector may be taken for aligned. No
# GPU has 64 KiB for the variables of a thread, and its fiber (runtime.cpp) has not much more.
KERNELS = [
    "-O2",
    "-Wframe-larger-than=65536",
    "-Werror=frame-larger-than",
    "-ffp-contract=fast",
    "-cl-single-precision-constant",
    "-fmax-type-align=4",
    "-fno-sanitize=undefined",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
]

# Counted: no access may be merged into one that the callbacks have no width for, or into a call of memcpy.
COUNTED = ["-fsanitize-coverage=func,trace-loads,trace-stores", "-fno-vectorize", "-fno-slp-vectorize", "-fno-builtin"]

RUNTIME = ["-O2", "-fno-builtin", "-fno-sanitize=undefined"]


def built(text: str, name: str, sanitize: Sanitizer | None, count: bool) -> Path:
    """The library that was, or now is, compiled from a translated text with its table. Raises ShaderError."""
    clang = toolchain.find(needs_sanitizers=sanitize is not None)
    flags = [*COMMON, *clang.machine_flags, f"-DMETAL_SIM_COUNT={int(count)}"]
    kernel_flags = [*flags, *KERNELS, *(COUNTED if count else ())]
    link_flags = ["-shared", "-lm", "-lpthread", "-Wl,-z,nodelete"]  # its signal handler stays: see runtime.cpp
    if sanitize:
        kernel_flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"]
        link_flags += [f"-fsanitize={sanitize}", "-shared-libsan"]
    runtime_flags = [*flags, *RUNTIME]

    kernels_key = _key(text, *clang.command, clang.version, *kernel_flags, *link_flags, *runtime_flags, *_shim())
    library = _cache() / f"{kernels_key}.so"
    if library.exists():
        with suppress(OSError):
            os.utime(library)
        return library
    _forget_old(library.parent)
    runtime = _runtime(clang, runtime_flags)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = Path(folder) / "kernels.o"
        done = clang.run(["-x", "c++", *kernel_flags, "-I", str(CXX), "-c", "-", "-o", str(objects)], text=text)
        if done.returncode:
            raise ShaderError(f"{name}: clang refuses it:\n{shortened(done.stderr)}")
        linked = Path(folder) / "kernels.so"
        _must(clang.run([*flags, *link_flags, str(objects), str(runtime), "-o", str(linked)]))
        os.replace(linked, library)
    return library


def _runtime(clang: toolchain.Toolchain, flags: Sequence[str]) -> Path:
    """The scheduler, the same object in all libraries."""
    runtime = _cache() / f"runtime-{_key(*clang.command, clang.version, *flags, *_shim())}.o"
    if not runtime.exists():
        with tempfile.TemporaryDirectory(dir=runtime.parent) as folder:
            compiled = Path(folder) / "runtime.o"
            _must(clang.run([*flags, "-c", str(CXX / "runtime.cpp"), "-o", str(compiled)]))
            os.replace(compiled, runtime)
    return runtime


def _must(done: object) -> None:
    if getattr(done, "returncode", 1):
        raise ShaderError(f"the simulator itself does not compile:\n{shortened(getattr(done, 'stderr', ''))}")


def shortened(messages: str) -> str:
    """What clang says, without the candidates that it did not take and the macros that it came through."""
    noise = re.compile(
        r"note: (?:candidate|expanded from macro|previous|declared here)|^In file included from|^\s*(\d* \||$)"
    )
    lines = [line for line in messages.splitlines() if not noise.search(line)]
    return "\n".join([*lines[:40], *(["..."] if len(lines) > 40 else [])])


def _shim() -> list[str]:
    return [file.read_text(encoding="utf-8") for file in sorted(CXX.rglob("*")) if file.suffix in (".h", ".cpp")]


def _key(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()[:24]


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "russet" / "metal_sim"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _forget_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for file in folder.glob("*.so"):
        with suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()
