"""Holds a wheel that was built for macOS on arm64 against what must be true of it:  gate.py WHEEL

The linker lets a Python module leave symbols open, to be found when it is loaded, so whatever else is missing would be
noticed on a Mac alone. Here every open symbol must be Python's, and every other be bound to the library that has it.
Needs file and llvm-19. Prints one line a check; exits with 1 where one fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SHADERS = Path(__file__).parents[2] / "metal"

#: What the core may be linked to: parts of macOS.
LIBRARIES = {
    "/System/Library/Frameworks/Accelerate.framework/Versions/A/Accelerate",
    "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation",
    "/System/Library/Frameworks/Metal.framework/Versions/A/Metal",
    "/usr/lib/libSystem.B.dylib",
    "/usr/lib/libc++.1.dylib",
    "/usr/lib/libobjc.A.dylib",
}


class Fault(Exception):
    """Why a check fails."""


@dataclass
class Wheel:
    path: Path
    files: Path  #: the folder it is unpacked in
    core: Path  #: the module that Python loads
    kind: str  #: of the core, in the words of `file`
    oldest_macos: str  #: that runs it
    libraries: set[str]  #: it is linked to
    imports: dict[str, str]  #: symbol to the library it is bound to
    unbound: set[str]  #: symbols that are bound to none


def read(path: Path, files: Path) -> Wheel:
    zipfile.ZipFile(path).extractall(files)
    cores = sorted(files.glob("russet/_core*.so"))
    if len(cores) != 1:
        raise Fault(f"expected one russet/_core.*.so, got {', '.join(core.name for core in cores) or 'none'}")
    core = cores[0]
    commands = said_by("llvm-otool-19", "-l", core)
    undefined = said_by("llvm-nm-19", "--format=darwin", "--undefined-only", core)
    return Wheel(
        path=path,
        files=files,
        core=core,
        kind=said_by("file", "--brief", core).strip(),
        oldest_macos="".join(re.findall(r"platform 1\n.*\n *minos (\S+)", commands)),
        libraries=set(re.findall(r"cmd LC_LOAD(?:_WEAK)?_DYLIB\n.*\n *name (\S+)", commands)),
        imports=dict(re.findall(r" external (\S+) \(from (\S+)\)$", undefined, re.M)),
        unbound=set(re.findall(r" external (\S+)(?: \(dynamically looked up\))?$", undefined, re.M)),
    )


def said_by(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- the checks: each returns what it saw, or raises Fault ----


def tag(wheel: Wheel) -> str:
    tag = wheel.path.stem.split("-", 2)[2]
    if not re.fullmatch(r"cp(\d+)-cp\1-macosx_14_0_arm64", tag):
        raise Fault(f"expected that of a CPython and macosx_14_0_arm64, got {tag}")
    return tag


def machine(wheel: Wheel) -> str:
    kind = wheel.kind.split(",")[0]
    if kind not in ("Mach-O 64-bit arm64 bundle", "Mach-O 64-bit arm64 dynamically linked shared library"):
        raise Fault(f"expected a Mach-O bundle or library for arm64, got {kind}")
    return f"{wheel.core.name}, {wheel.core.stat().st_size} bytes, {kind}"


def oldest_macos(wheel: Wheel) -> str:
    if wheel.oldest_macos != "14.0":
        raise Fault(f"expected 14.0, got {wheel.oldest_macos or 'none'}")
    return wheel.oldest_macos


def libraries(wheel: Wheel) -> str:
    none_of("macOS does not come with", wheel.libraries - LIBRARIES)
    return ", ".join(sorted(Path(name).name for name in wheel.libraries))


def blas(wheel: Wheel) -> str:
    return imported(wheel, "Accelerate", {"_cblas_sgemm", "_cblas_sgemv"})


def metal(wheel: Wheel) -> str:
    return imported(wheel, "Metal", {"_MTLCreateSystemDefaultDevice"})


def objc(wheel: Wheel) -> str:
    return imported(wheel, "libobjc", {"_objc_lookUpClass", "_objc_msgSend", "_sel_registerName"})


def symbols(wheel: Wheel) -> str:
    none_of("bound to nothing", {symbol for symbol in wheel.unbound if not re.match("__?Py", symbol)})
    return f"{len(wheel.imports)} bound to macOS, {len(wheel.unbound)} to the Python that loads the core"


def shaders(wheel: Wheel) -> str:
    sources = {path for path in SHADERS.rglob("*") if path.suffix in (".metal", ".h")}
    names = {str(path.relative_to(SHADERS)) for path in sources}
    installed = wheel.files / "russet/metal"
    none_of("not in russet/metal", {name for name in names if not (installed / name).is_file()})
    none_of(
        "with another text in russet/metal",
        {name for name in names if (installed / name).read_bytes() != (SHADERS / name).read_bytes()},
    )
    return f"{len(names)} files in russet/metal"


def imported(wheel: Wheel, library: str, symbols: set[str]) -> str:
    none_of(f"not imported from {library}", {symbol for symbol in symbols if wheel.imports.get(symbol) != library})
    n_all = list(wheel.imports.values()).count(library)
    return f"{', '.join(sorted(symbols))} from {library}, {n_all} in all"


def none_of(what: str, names: set[str]) -> None:
    if names:
        raise Fault(f"{what}: {', '.join(sorted(names))}")


CHECKS = (tag, machine, oldest_macos, libraries, blas, metal, objc, symbols, shaders)


def main(path: Path) -> int:
    n_faults = 0
    with tempfile.TemporaryDirectory() as files:
        print(path.name)
        try:
            wheel = read(path, Path(files))
        except Fault as fault:
            print(f"  FAIL  core: {fault}")
            return 1
        for check in CHECKS:
            try:
                verdict = f"ok    {check.__name__}: {check(wheel)}"
            except Fault as fault:
                verdict = f"FAIL  {check.__name__}: {fault}"
                n_faults += 1
            print(f"  {verdict}")
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
