"""Reports on stdout: aligned rows for people, or one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """A label that repeats is printed once."""
    rows = list(rows)
    width = max(len(label) for label, _ in rows)
    last = None
    for label, text in rows:
        print(f"{'' if label == last else label:<{width}}  {text}")
        last = label


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column left-aligned, the others right; as markdown, so that it can be pasted."""
    table = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines.insert(1, f"|{'|'.join(rule)}|")
    print("\n".join(lines))


def print_json(report: DataclassInstance | None, **more: Any) -> None:
    """`more`, and the fields of a dataclass."""
    values = more | (dataclasses.asdict(report) if report else {})
    print(json.dumps(values, default=str, ensure_ascii=False, indent=2))
