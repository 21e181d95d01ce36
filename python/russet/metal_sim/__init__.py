"""A simulator for Metal compute kernels: the .metal text runs on this machine's CPU, under a strict scheduler.

>>> from russet import metal_sim
>>> library = metal_sim.compile_file("metal/rms_norm.metal")
>>> report = library.run("rms_norm_f16", {0: x, 1: w, 2: y, 3: args}, groups=(n_tokens,), threads=(256,))

It shows what a kernel computes, and what it does that no GPU allows; never how fast it is. docs/metal_sim.md says how
it works, what it detects, and what it does not model.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from russet.errors import ShaderError, SimulationError, UsageError
from russet.metal_sim.build import Sanitizer, built
from russet.metal_sim.library import Buffer, Constant, Kernel, Library, Report, Traffic
from russet.metal_sim.sanitized import run_sanitized
from russet.metal_sim.strict import check
from russet.metal_sim.translate import translated
from russet.metal_source import inlined

__all__ = [
    "Buffer",
    "Constant",
    "Kernel",
    "Library",
    "Report",
    "ShaderError",
    "SimulationError",
    "Traffic",
    "check",
    "compile",
    "compile_file",
    "default_sanitizer",
    "run_sanitized",
]


def compile(
    source: str,
    *,
    name: str,
    sanitize: Sanitizer | None = None,
    count: bool = False,
    defines: Iterable[str] = (),
    kernels: Collection[str] | None = None,
) -> Library:
    """Compile one self-contained Metal text, or take what was compiled from it before.

    name stands for the text in messages; defines are NAME or NAME=VALUE; kernels are those to compile, by default all.
    sanitize builds for AddressSanitizer or ThreadSanitizer, by default what RUSSET_SIM_SANITIZE says: the process must
    have its runtime preloaded, see run_sanitized(). count=True counts the bytes that are read and written, and is never
    sanitized, because sanitizers read and write, too.
    Raises ShaderError for what is not Metal, BackendError without a compiler, UsageError for count and sanitize.
    """
    if count and sanitize:
        raise UsageError(
            "count=True counts what a kernel reads and writes, not what a sanitizer does: expected no sanitize"
        )
    if sanitize is None and not count:
        sanitize = default_sanitizer()
    table = translated(source, name, defines).with_table(kernels)
    return Library(built(table, name, sanitize, count), name, counts=count)


def compile_file(
    path: str | Path,
    include_dirs: Iterable[str | Path] = (),
    *,
    sanitize: Sanitizer | None = None,
    count: bool = False,
    defines: Iterable[str] = (),
    kernels: Collection[str] | None = None,
) -> Library:
    """Compile a .metal file with what it includes: compile() of metal_source.inlined()."""
    source = inlined(path, include_dirs)
    return compile(source, name=Path(path).name, sanitize=sanitize, count=count, defines=defines, kernels=kernels)


def default_sanitizer() -> Sanitizer | None:
    """What RUSSET_SIM_SANITIZE says. Raises UsageError if that has no meaning."""
    said = os.environ.get("RUSSET_SIM_SANITIZE", "")
    known: dict[str, Sanitizer | None] = {"": None, "address": "address", "thread": "thread"}
    if said not in known:
        raise UsageError(f"RUSSET_SIM_SANITIZE: expected 'address' or 'thread', got {said!r}")
    return known[said]
