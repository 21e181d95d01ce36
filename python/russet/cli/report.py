"""Reports on stdout: aligned rows for people, or one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
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


def print_json(report: DataclassInstance | None, **more: Any) -> None:
    """`more`, and the fields of a dataclass."""
    values = more | (dataclasses.asdict(report) if report else {})
    print(json.dumps(values, default=str, ensure_ascii=False, indent=2))
