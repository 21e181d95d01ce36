"""Makes an SDK of macOS on Linux, as far as russet needs one:  sdk.py FOLDER MLX_METAL_WHEEL

Nothing of Apple's SDK is used, and nothing made here is kept:
- the headers of libc and the symbols of libSystem come with the ziglang wheel, which has them from Apple's open source;
- the symbols of libc++ are those of Debian's libc++, whose C++ names are the same;
- metal-cpp comes with the mlx-metal wheel, and with it libmlx.dylib, linked by Apple's linker against Apple's SDK: what
  it imports from Metal, Foundation and libobjc is there, and nothing else is taken to be;
- Accelerate has the two functions that russet calls.
A symbol that is missing here stays unbound in the wheel, where gate.py finds it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import ziglang

FRAMEWORKS = "System/Library/Frameworks"

#: What metal-cpp wants of Apple's headers.
HEADERS = {
    "CoreFoundation.framework/Headers/CoreFoundation.h": "#pragma once\ntypedef double CFTimeInterval;\n",
    "IOSurface.framework/Headers/IOSurfaceRef.h": "#pragma once\ntypedef struct __IOSurface* IOSurfaceRef;\n",
}

#: libc's math.h leaves these to the float.h of clang 20 and newer.
CLANG_19 = """\
#ifndef INFINITY
#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#endif
"""


def write(path: Path, text: str) -> None:
    """Leaves a file that says so already alone, and with it what was compiled from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_stub(path: Path, install_name: str, symbols: set[str]) -> None:
    """A library as the linker sees it: where macOS has it, and what is in it."""
    listed = ", ".join(f"'{symbol}'" for symbol in sorted(symbols))
    write(
        path.with_suffix(".tbd"),
        f"--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '{install_name}'\n"
        f"exports:\n  - targets: [ arm64-macos ]\n    symbols: [ {listed} ]\n...\n",
    )


def nm(*arguments: str | Path) -> list[str]:
    done = subprocess.run(["llvm-nm-19", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def imported_by(library: Path) -> dict[str, set[str]]:
    """From each library that this Mach-O one is linked to, the symbols that it imports."""
    imports: dict[str, set[str]] = {}
    for line in nm("--format=darwin", "--undefined-only", library):
        if found := re.search(r"external (\S+) \(from (\S+)\)$", line):
            imports.setdefault(found[2], set()).add(found[1])
    return imports


def exported_by(*libraries: str) -> set[str]:
    """The symbols of these ELF libraries, under the names that macOS gives them."""
    lines = nm("--dynamic", "--defined-only", "--extern-only", "--format=just-symbols", *libraries)
    return {"_" + line.split("@")[0] for line in lines if line and not line.endswith(":")}


def make(sdk: Path, mlx_metal: Path) -> None:
    sdk.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(mlx_metal) as wheel:
        wanted = ("mlx/include/metal_cpp/", "mlx/lib/libmlx.dylib")
        wheel.extractall(sdk, [name for name in wheel.namelist() if name.startswith(wanted)])

    libc = Path(ziglang.__file__).parent / "lib/libc"
    lib = sdk / "usr/lib"
    include = sdk / "usr/include"
    lib.mkdir(parents=True, exist_ok=True)
    if not include.exists():
        include.symlink_to(libc / "include/any-darwin-any")
    # lld 19 knows no arm64e.x1; arm64 itself is not listed.
    system = (libc / "darwin/libSystem.tbd").read_text().replace("arm64e.x1-macos", "arm64-macos")
    write(lib / "libSystem.tbd", re.sub(r",\s*arm64e\.x1-maccatalyst", "", system))
    cxx = exported_by("/usr/lib/llvm-19/lib/libc++.so.1", "/usr/lib/llvm-19/lib/libc++abi.so.1")
    cxx |= {name.replace("EPVKvi", "EPVKvx") for name in cxx if "atomic_wait" in name}  # atomics wait on 64 bits there
    write_stub(lib / "libc++", "/usr/lib/libc++.1.dylib", cxx)

    known = imported_by(sdk / "mlx/lib/libmlx.dylib")
    write_stub(lib / "libobjc", "/usr/lib/libobjc.A.dylib", known["libobjc"])
    accelerate = {"_cblas_sgemm", "_cblas_sgemv"}
    for name, version, symbols in (
        ("Accelerate", "A", accelerate),
        ("Foundation", "C", known["Foundation"]),
        ("Metal", "A", known["Metal"]),
    ):
        folder = f"{FRAMEWORKS}/{name}.framework"
        write_stub(sdk / folder / name, f"/{folder}/Versions/{version}/{name}", symbols)
    for path, text in HEADERS.items():
        write(sdk / FRAMEWORKS / path, text)
    write(sdk / "clang_19.h", CLANG_19)
    # libc++ 19 knows which macOS brought which of its symbols; on Linux it is told not to look.
    site = Path("/usr/lib/llvm-19/include/c++/v1/__config_site").read_text()
    write(sdk / "libcxx/__config_site", site.replace("#define _LIBCPP_HAS_NO_VENDOR_AVAILABILITY_ANNOTATIONS", ""))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
