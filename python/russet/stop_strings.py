"""Stop strings: end a stream of text before the first of them, and never show the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on, except for a tail that may yet become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is certain now, whether a stop string was found). After the first, push nothing more.

        The first is the one that is complete first, however the text is cut.
        """
        held = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)[1]], True
        n_kept = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - n_kept :]
        return held[: len(held) - n_kept], False

    def finish(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop, and is less than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
