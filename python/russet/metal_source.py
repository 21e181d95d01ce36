"""Metal sources: where they lie, and one of them as the single text that a GPU compiles.

Metal compiles shaders at run time from one text, which knows no folders: what a file includes is put in its place
first, once, with #line directives, so that a compiler names the file and the line that were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from russet.errors import ShaderError

_INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]+)"')
_PRAGMA_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def metal_folder() -> Path:
    """The folder of the shaders: metal/ of a checkout, or what was installed beside the core."""
    here = Path(__file__).resolve().parent
    for folder in (here / "metal", here.parents[1] / "metal"):
        if folder.is_dir():
            return folder
    raise ShaderError(f"no shaders: neither {here / 'metal'} nor {here.parents[1] / 'metal'} is a folder")


def inlined(path: str | Path, include_dirs: Iterable[str | Path] = ()) -> str:
    """The text of a shader with every `#include "..."` replaced by the file, at its first place.

    A file is looked for beside the one that includes it, then in include_dirs, by default metal_folder(). Includes in
    <...> stay. Raises ShaderError for a file that is not there.
    """
    folders = [Path(folder).resolve() for folder in include_dirs]
    if not folders:
        folders = [metal_folder()]
    seen: set[Path] = set()
    return "\n".join(_lines(Path(path).resolve(), folders, seen)) + "\n"


def _lines(file: Path, folders: list[Path], seen: set[Path]) -> list[str]:
    seen.add(file)
    name = _shown(file, folders)
    try:
        written = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ShaderError(f"{name}: cannot be read: {error.strerror}") from None
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(written, 1):
        include = _INCLUDE.match(line)
        if include:
            found = _find(include[1], file, folders)
            if found is None:
                looked_in = ", ".join(str(folder) for folder in (file.parent, *folders))
                raise ShaderError(f'{name}:{number}: #include "{include[1]}": no such file in {looked_in}')
            if found in seen:
                lines.append("")
            else:
                lines += [*_lines(found, folders, seen), f'#line {number + 1} "{name}"']
        else:
            lines.append("" if _PRAGMA_ONCE.match(line) else line)
    return lines


def _find(name: str, includer: Path, folders: list[Path]) -> Path | None:
    for folder in (includer.parent, *folders):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def _shown(file: Path, folders: list[Path]) -> str:
    """A short name for messages: metal/rms_norm.metal rather than where the checkout lies."""
    for folder in folders:
        if file.is_relative_to(folder):
            return str(file.relative_to(folder.parent))
    return file.name


def shaders() -> list[Path]:
    """The files of kernels, in the order of their names."""
    return sorted(metal_folder().glob("*.metal"))
