"""The compiler: clang 17 or newer, or the clang inside the ziglang wheel."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from russet.errors import BackendError

OLDEST = 17  #: the first clang with arithmetic on __bf16
SANITIZERS = {"address": "asan", "thread": "tsan"}  #: what compile() calls them, and what their runtime is called


@dataclass(frozen=True)
class Toolchain:
    """How clang is called on this machine."""

    command: tuple[str, ...]
    version: str
    is_zig: bool

    def __str__(self) -> str:
        return f"{'zig' if self.is_zig else 'clang'} {self.version}"

    @property
    def machine_flags(self) -> tuple[str, ...]:
        """One processor for all x86-64 machines that have AVX2, so that results do not depend on which it is."""
        if platform.machine() != "x86_64" or not _has_avx2():
            return ()
        return ("-mcpu=x86_64_v3",) if self.is_zig else ("-march=x86-64-v3",)

    def run(self, arguments: Sequence[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Call the compiler, with `text` as its input."""
        return subprocess.run([*self.command, *arguments], input=text, capture_output=True, text=True, check=False)

    def sanitizer_runtime(self, sanitizer: str) -> Path:
        """The library to preload into a process that loads sanitized kernels. Raises BackendError without one."""
        name = f"libclang_rt.{SANITIZERS[sanitizer]}-{platform.machine()}.so"
        if not self.is_zig:
            for candidate in (name, f"libclang_rt.{SANITIZERS[sanitizer]}.so"):
                found = Path(self.run(["-print-file-name=" + candidate]).stdout.strip())
                if found.is_absolute() and found.exists():
                    return found
        raise BackendError(
            f"{' '.join(self.command)} has no {name}; sanitizers need clang itself: "
            "apt install clang-19, or set RUSSET_SIM_CXX to one"
        )


@functools.cache
def find(needs_sanitizers: bool = False) -> Toolchain:
    """The first that is there: RUSSET_SIM_CXX, clang++, clang++-22 to -17, the ziglang wheel.

    Raises BackendError where none is, or where this machine is not one the simulator runs on.
    """
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise BackendError(
            f"the Metal simulator runs on Linux on x86-64 and arm64, not on {platform.system()} {platform.machine()}"
        )
    said = os.environ.get("RUSSET_SIM_CXX")
    if said:
        return _checked(tuple(said.split()), "RUSSET_SIM_CXX")
    for name in ("clang++", *(f"clang++-{version}" for version in range(22, OLDEST - 1, -1))):
        path = shutil.which(name)
        clang = path and _identify((path,))
        if clang and _major(clang.version) >= OLDEST:
            return clang
    if importlib.util.find_spec("ziglang") and not needs_sanitizers:
        return _checked((sys.executable, "-m", "ziglang", "c++"), "the ziglang wheel")
    way_out = "apt install clang-19" if needs_sanitizers else "pip install ziglang, or apt install clang-19"
    raise BackendError(f"the Metal simulator compiles with clang {OLDEST} or newer, and none is here; {way_out}")


def addr2line(library: Path, address: int) -> tuple[str, int] | None:
    """The file and line that an instruction was made from; None without binutils or LLVM's tools."""
    for name in ("addr2line", "llvm-addr2line", "llvm-addr2line-19", "llvm-symbolizer-19"):
        tool = shutil.which(name)
        if tool is None:
            continue
        arguments = ["--output-style=GNU"] if "symbolizer" in name else []
        command = [tool, *arguments, "-i", "-e", str(library), hex(address)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        for place in said.stdout.splitlines():  # innermost first: the shim's own files are not what is asked for
            file, _, line = place.split(" (")[0].rpartition(":")
            if line.isdigit() and int(line) and file != "??" and "/metal_sim/cxx/" not in file:
                return os.path.normpath(file), int(line)
    return None


def _checked(command: tuple[str, ...], where: str) -> Toolchain:
    found = _identify(command)
    if found is None or _major(found.version) < OLDEST:
        what = "nothing that is clang" if found is None else f"clang {found.version}"
        raise BackendError(f"{where}: expected clang {OLDEST} or newer, got {what}; pip install ziglang brings one")
    return found


def _identify(command: tuple[str, ...]) -> Toolchain | None:
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    version = re.search(r"clang version (\d+[\w.]*)", said.stdout)
    return Toolchain(command, version[1], "ziglang" in command or "zig" in said.stdout) if version else None


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _has_avx2() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return {"avx2", "fma", "f16c", "bmi2"} <= set(flags)
