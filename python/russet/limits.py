"""Limits: what ends a generation from outside, its time or somebody who cancels it."""

from __future__ import annotations

from time import monotonic
from typing import Protocol


class Flag(Protocol):
    """What somebody else sets to cancel a generation: a threading.Event, or anything with its is_set()."""

    def is_set(self) -> bool: ...


class AnyOf:
    """Set where one of several flags is."""

    def __init__(self, *flags: Flag | None) -> None:
        self._flags = [flag for flag in flags if flag is not None]

    def is_set(self) -> bool:
        return any(flag.is_set() for flag in self._flags)


class Ended(Exception):
    """A generation is to end here; `reason` is its finish_reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Limits:
    """Looks at the clock and at the flag whenever it is asked to.

    timeout: seconds from now on
    """

    def __init__(self, timeout: float | None, cancel: Flag | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout
        self._cancel = cancel

    def check(self) -> None:
        """Raises Ended, with "cancelled" or "timeout"."""
        if self._cancel is not None and self._cancel.is_set():
            raise Ended("cancelled")
        if self._end is not None and monotonic() >= self._end:
            raise Ended("timeout")
