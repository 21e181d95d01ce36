"""metal/args.h as the tests read it: its constants, and its argument structs as bytes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

METAL = Path(__file__).resolve().parents[1] / "metal"

_TEXT = re.sub(r"//.*", "", (METAL / "args.h").read_text())
_FORMATS = {"uint32_t": "I", "int32_t": "i", "float": "f"}

#: kMatvecRows and its like
CONSTANTS = {
    name: int(value)
    for names in re.findall(r"enum : uint32_t \{(.*?)\};", _TEXT, re.S)
    for name, value in re.findall(r"(\w+) = (\d+)", names)
}


def _fields_of(struct_body: str) -> list[tuple[str, str, int]]:
    """(type, name, length) in order; length 0 for a field that is no array."""
    fields = []
    for field_type, names in re.findall(r"(\w+) ([^;]+);", struct_body):
        for declared in names.split(","):
            match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", declared.strip())
            assert match, f"args.h: {declared!r} is no field that is understood here"
            fields.append((field_type, match[1], int(match[2] or 0)))
    return fields


_STRUCTS = {name: _fields_of(body) for name, body in re.findall(r"struct (\w+) \{(.*?)\};", _TEXT, re.S)}


def pack(struct_name: str, /, **values: object) -> bytes:
    """The struct's bytes. A field not named is 0; arrays take a sequence, as far as it goes; structs a dict."""
    fields = _STRUCTS[struct_name]
    unknown = values.keys() - {name for _, name, _ in fields}
    assert not unknown, f"{struct_name} has no {sorted(unknown)}"
    parts = []
    for field_type, name, length in fields:
        if field_type in _STRUCTS:
            parts.append(pack(field_type, **values.get(name, {})))
            continue
        items = list(values.get(name, [])) if length else [values.get(name, 0)]
        assert len(items) <= max(length, 1), f"{struct_name}.{name} has {length} places"
        items += [0] * (length - len(items))
        parts.append(struct.pack(f"<{len(items)}{_FORMATS[field_type]}", *items))
    return b"".join(parts)
