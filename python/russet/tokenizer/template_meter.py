"""What one rendering of a chat template may use: seconds, and words of 8 bytes for all the values it makes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

MAX_SECONDS = 10.0  #: for one rendering; templates in use take milliseconds
MAX_WORDS = 1 << 26  #: for all the values one rendering makes: 512 MiB
MAX_WIDTH = 10_000  #: for an integer that sets the width, count or precision of a result
MAX_BITS = 1 << 12  #: for an integer

T = TypeVar("T")


class TooMuch(Exception):
    """A template wants more than its share."""


class Meter:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + MAX_SECONDS
        self._words = MAX_WORDS
        self._weights: dict[int, tuple[object, int]] = {}  # by id(); holding the object keeps the id its own

    def spend(self, words: int) -> None:
        self.expect(words)
        self._words -= words
        if time.monotonic() > self._ends:
            raise TooMuch(f"ran for more than {MAX_SECONDS:g} s")

    def expect(self, words: int) -> None:
        """Something of this size is about to be made."""
        if words > self._words:
            raise TooMuch(f"wants more than {MAX_WORDS * 8 >> 20} MiB of text and lists")

    def made(self, value: T, weight: int | None = None) -> T:
        """Something was made: a value the template has from a call, a filter or an operator."""
        if not isinstance(value, (list, tuple, dict)):
            self.spend(self.weight(value))
        elif id(value) in self._weights:
            self.spend(1)
        else:
            if weight is not None:  # saves looking at every item
                self._weights[id(value)] = value, weight
            self.expect(self.weight(value))
            self.spend(1 + len(value))
        return value

    def weight(self, value: object) -> int:
        """Words of a value written out in full: more than it takes where a list holds another many times."""
        if isinstance(value, (str, bytes)):
            return 1 + len(value) // 8
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TooMuch(f"wants an integer of more than {MAX_BITS} bits")
        if not isinstance(value, (list, tuple, dict)):
            return 1
        if id(value) not in self._weights:
            parts = (*value.keys(), *value.values()) if isinstance(value, dict) else value
            self._weights[id(value)] = value, 1 + sum(map(self.weight, parts))
        return self._weights[id(value)][1]

    def join(self, parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            self.spend(1 + len(part) // 8)
            kept.append(part)
        return "".join(kept)


METER: ContextVar[Meter] = ContextVar("METER")  #: of the rendering this thread is in


def expect_growth(
    growths: Mapping[str, Callable[..., int]], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a method or a filter, if it is one of `growths`, that could make more of its arguments than is left."""
    if growth := growths.get(name):
        try:
            words = growth(*args, **kwargs)
        except TypeError:  # not how it is called: it will say so itself
            return
        METER.get().expect(words)


def _padded_growth(value: object, *settings: object, **named: object) -> int:
    meter = METER.get()
    largest = 1
    for setting in (*settings, *named.values()):
        if isinstance(setting, int):
            check_widths([setting])
            largest = max(largest, setting)
        elif isinstance(setting, (str, bytes, dict)):
            largest = max(largest, 8 * meter.weight(setting))
    return meter.weight(value) * largest


def _replaced_growth(text: object, old: str, new: str, *_: object, **__: object) -> int:
    text = text if isinstance(text, bytes) else str(text)
    return (len(text) + text.count(old) * len(new)) // 8  # type: ignore[arg-type]


def _joined_growth(parts: object, separator: str = "", *_: object, **__: object) -> int:
    return _count(parts) * (1 + len(separator) // 8)


def _summed_growth(parts: object, attribute: object = None, start: object = 0) -> int:
    return 1 if isinstance(start, (int, float)) else _count(parts) * METER.get().weight(parts)


def percent_growth(text: str, *values: object) -> int:
    """printf's widths and precisions; those that values set are refused."""
    fields = re.findall(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?", str(text))
    for field in fields:
        check_widths(size for size in field if size)
    weight = sum(map(METER.get().weight, values))
    return len(fields) * (MAX_WIDTH // 8 + weight) if any(map(any, fields)) else (1 + len(fields)) * weight


def check_widths(widths: Iterable[int | str]) -> None:
    for width in widths:
        if width == "*" or int(width) > MAX_WIDTH:
            raise TooMuch(f"wants a width or count of {width}, above {MAX_WIDTH}")


def _count(parts: object) -> int:
    return len(parts) if isinstance(parts, Sized) else 1 << 20  # a generator


METHODS: dict[str, Callable[..., int]] = {
    "join": lambda separator, parts: _joined_growth(parts, separator),
    "replace": _replaced_growth,
    **dict.fromkeys(["center", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"], _padded_growth),
}
FILTERS: dict[str, Callable[..., int]] = {
    "format": percent_growth,
    "join": _joined_growth,
    "replace": _replaced_growth,
    "sum": _summed_growth,
    **dict.fromkeys(["batch", "center", "indent", "round", "slice", "tojson", "wordwrap"], _padded_growth),
}
