"""Kernels under AddressSanitizer or ThreadSanitizer: a Python with the sanitizer's runtime in it.

    python -m russet.metal_sim thread -m pytest tests/test_metal_sim.py

runs Python with everything behind the sanitizer's name. In there, compile() builds for that sanitizer unless it is
told otherwise, so tests need not know. A fault is printed with the line of the .metal file, and the process fails: at
once under AddressSanitizer, at its end under ThreadSanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from russet.metal_sim import toolchain
from russet.metal_sim.build import Sanitizer

# What is said to the runtimes. Red zones are as large as a kernel may overshoot; CPython keeps some memory to its end
# on purpose; a stack of ASan's own for each of a million fibers takes minutes; and only kernels are looked at, because
# numpy's threads wait for each other in ways that no sanitizer sees.
_OPTIONS = {
    "address": ("ASAN_OPTIONS", "redzone=2048:max_redzone=2048:detect_leaks=0:detect_stack_use_after_return=0"),
    "thread": ("TSAN_OPTIONS", "report_signal_unsafe=0:ignore_noninstrumented_modules=1"),
}


def run_sanitized(
    arguments: Sequence[str], sanitizer: Sanitizer, *, capture: bool = True, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with `arguments` under a sanitizer; its returncode is 0 only if there was nothing to report.

    Raises BackendError where there is no clang with the sanitizer's runtime.
    """
    runtime = toolchain.find(needs_sanitizers=True).sanitizer_runtime(sanitizer)
    variable, options = _OPTIONS[sanitizer]
    environment = dict(os.environ, LD_PRELOAD=str(runtime), RUSSET_SIM_SANITIZE=sanitizer)
    environment["OPENBLAS_NUM_THREADS"] = "1"
    environment[variable] = ":".join(filter(None, (options, os.environ.get(variable))))
    # ThreadSanitizer wants the address space as it is without randomisation.
    prefix = [shutil.which("setarch") or "setarch", "-R"] if sanitizer == "thread" else []
    command = [*prefix, sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=capture, text=True, check=False, timeout=timeout_s)
