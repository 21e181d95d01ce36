"""The strict pass: is this text Metal? clang compiles it against declarations that are as narrow as Metal's own.

Address spaces are real ones of clang's, math has no overloads for bfloat, there is no double and no std::. Metal's own
compiler alone has the last word: this pass knows no register limits, and refuses two things that Metal allows, which
C++ with address spaces does not: copying a whole struct out of device memory, and calling a method on one there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from russet.errors import ShaderError
from russet.metal_sim import toolchain
from russet.metal_sim.build import CXX, shortened
from russet.metal_sim.translate import closing, translated

_FLAGS = [
    "-std=c++17",
    "-cl-single-precision-constant",
    "-fsigned-char",
    "-fno-exceptions",
    "-fno-rtti",
    "-nostdinc++",
    "-w",
    "-ferror-limit=20",
    "-fno-color-diagnostics",
    "-fno-caret-diagnostics",
]

# Words that Metal's C++ has not, from section 1.5 of its specification.
_ABSENT = {
    r"\bdouble\b": "Metal has no double",
    r"\bstd\s*::": "Metal has no std::",
    r"\b(?:goto|dynamic_cast|typeid|thread_local|virtual|throw|try|catch|new)\b": "Metal has no {0}",
    r"(?<=[=(,{])\s*\[[&=\w,\s]*\]\s*\([^()]*\)\s*(?:->[^{]*)?\{": "Metal has no lambdas",
}
_ELEMENT = "float|half|bfloat|u?char|u?short|u?int|u?long|bool"
_VECTOR = rf"(?:(?:metal\s*::\s*)?(?:vec\s*<[^<>;(){{}}]*>|(?:{_ELEMENT})[234]))"
_ALIAS = re.compile(rf"\busing\s+(\w+)\s*=\s*(?:typename\s+)?{_VECTOR}\s*;|\btypedef\s+{_VECTOR}\s+(\w+)\s*;")
_MARKER = re.compile(r'^# (\d+) "([^"]*)".*$', re.M)


def check(source: str, *, name: str, defines: Iterable[str] = ()) -> None:
    """Raises ShaderError for what Metal's compiler would refuse, as far as this pass knows it; with file and line."""
    translation = translated(source, name, defines)
    said = list(_absent_words(translation.text))
    addresses = "\n".join(
        f"static auto instance_{number} = &{expression};"
        for number, (expression, _) in enumerate(translation.instances.values())
    )
    text = f'#include "strict.h"\n{_with_vectors_made(translation.text)}\n#line 1 "instances"\n{addresses}\n'
    if not said:  # otherwise clang would say the same in other words
        said = list(_refused(text))
    if said:
        spoken = "\n".join(said).replace("__bf16", "bfloat").replace("_Float16", "half")
        raise ShaderError(f"{name}: the strict pass refuses it:\n{spoken}")


def _refused(text: str) -> Iterator[str]:
    clang = toolchain.find()
    flags = ["-x", "c++", *_FLAGS, "-I", str(CXX)]
    with tempfile.TemporaryDirectory() as folder:  # zig does not know -fsyntax-only
        done = clang.run([*flags, "-c", "-", "-o", str(Path(folder) / "checked.o")], text=text)
        if done.returncode:
            yield shortened(done.stderr)
            return
        dump = clang.run([*flags, "-Xclang", "-ast-dump", "-c", "-", "-o", str(Path(folder) / "dumped.o")], text=text)
    yield from dict.fromkeys(_refused_conversions(dump.stdout))  # each once, though it is in every instance


def _refused_conversions(dump: str) -> Iterator[str]:
    """What C++ converts and Metal does not: pointers to another address space, and other floats to bfloat.

    `dump` is clang's, of the syntax tree; a row of it gives a location only where it differs from the one before.
    """
    file, line = "?", "?"
    rows = dump.splitlines()
    for row, next_row in zip(rows, [*rows[1:], ""], strict=True):
        unquoted = row.split(" '")[0]
        for location in re.finditer(r"(?:(?P<file>[^\s<>,:]+):)?(?P<line>\d+):\d+\b", unquoted):
            if location["file"] not in ("col", None):
                file = file if location["file"] == "line" else location["file"]
                line = location["line"]
        types = re.findall(r"'([^']*)'", row)
        if "<AddressSpaceConversion>" in row:
            yield f"{file}:{line}: a cast to another address space, to {types[0]}"
        if "part_of_explicit_cast" in row or "__bf16" not in row + next_row or not types:
            continue
        computed = re.search(r"CompoundAssignOperator.*ComputeResultTy='(\w+)'", row)
        if "ImplicitCastExpr" in row and "<FloatingCast>" in row:
            from_bfloat = "__bf16" in next_row and "__bf16" not in row
            if "__bf16" in row or (from_bfloat and types[0] == "half"):
                given = "bfloat" if from_bfloat else "another float"
                yield f"{file}:{line}: {given} becomes {types[0]} without a cast, which Metal does not do"
        elif computed and computed[1] not in ("bfloat", "__bf16"):
            yield f"{file}:{line}: {computed[1]} becomes {types[0]} without a cast, which Metal does not do"


def _absent_words(text: str) -> Iterator[str]:
    code = _MARKER.sub(lambda m: " " * len(m[0]), text)
    for pattern, message in _ABSENT.items():
        for match in re.finditer(pattern, code):
            yield f"{place(text, match.start())}: {message.format(match[0].strip())}"


def place(text: str, at: int) -> str:
    """The file and line that a position in preprocessed text comes from."""
    markers = list(_MARKER.finditer(text, 0, at))
    if not markers:
        return f"?:{text.count(chr(10), 0, at) + 1}"
    last = markers[-1]
    return f"{last[2]}:{int(last[1]) + text.count(chr(10), last.end() + 1, at)}"


def _with_vectors_made(text: str) -> str:
    """`float4(a, b)` as `::metal::make_vec<float4>(a, b)`: clang's vectors have no such constructors in C++."""
    aliases = {name for match in _ALIAS.finditer(text) for name in match.groups() if name}
    names = "|".join([rf"(?<![\w:]){_VECTOR}", *(rf"\b{alias}" for alias in sorted(aliases))])
    constructor = re.compile(rf"(?:{names})(?=\s*\()")
    pieces, at = [], 0
    for match in constructor.finditer(text):
        behind = text[closing(text, text.index("(", match.end())) :].lstrip()[:1]
        if behind == "(":  # a function type: float4 (*f)(int)
            continue
        pieces += [text[at : match.start()], f"::metal::make_vec<{match[0]}>"]
        at = match.end()
    return "".join(pieces) + text[at:]
