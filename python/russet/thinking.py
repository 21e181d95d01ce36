"""Thinking: a reply taken apart, as it comes, into what a model has thought and what it answers.

A reply begins with its thoughts or has none; what looks like a tag later on is part of the answer. The tags, and white
space beside them, belong to neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from russet.stop_strings import overlap

#: What chat templates put around thoughts: Qwen3, SmolLM3, DeepSeek and most others; Magistral.
TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))

#: The variables by which chat templates are told whether there are to be thoughts.
SWITCHES = ("enable_thinking", "open_thinking", "thinking")

_READS_A_SWITCH = re.compile(rf"""(?<![\w.'"])({"|".join(SWITCHES)})(?!\w)""")


def tags_of(template: str) -> tuple[str, str] | None:
    """What a chat template has around thoughts; None where it knows of none."""
    return next((tags for tags in TAGS if tags[1] in template), None)


def has_switch(template: str) -> bool:
    """Whether a chat template can be told to have thoughts, or to have none."""
    return _READS_A_SWITCH.search(template) is not None


class Thinking:
    """Passes text on, except for a tail that may yet become a tag.

    is_open: the prompt ends with the opening tag
    """

    def __init__(self, tags: tuple[str, str], *, is_open: bool) -> None:
        self._open, self._close = tags
        self._held = ""
        self._part: Callable[[], tuple[str, str]] = self._begin_thought if is_open else self._begin

    def push(self, text: str) -> tuple[str, str]:
        """(thought, answer) that are certain now."""
        self._held += text
        return self._part()

    def finish(self) -> tuple[str, str]:
        """The same of what is still held back, when no more will come."""
        held, self._held = self._held, ""
        if self._part == self._begin_answer:
            return "", ""  # white space behind the closing tag
        return ("", held) if self._part in (self._begin, self._answer) else (held, "")

    def _begin(self) -> tuple[str, str]:
        said = self._held.lstrip()
        if said.startswith(self._open):
            return self._go_on(self._begin_thought, said[len(self._open) :])
        if self._open.startswith(said):
            return "", ""
        return self._go_on(self._answer, self._held)

    def _begin_thought(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        return self._go_on(self._thought, self._held) if self._held else ("", "")

    def _thought(self) -> tuple[str, str]:
        thought, tag, behind = self._held.partition(self._close)
        if tag:
            return thought.rstrip(), self._go_on(self._begin_answer, behind)[1]
        thought = self._held[: len(self._held) - overlap(self._held, self._close)].rstrip()
        self._held = self._held[len(thought) :]
        return thought, ""

    def _begin_answer(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        return self._go_on(self._answer, self._held) if self._held else ("", "")

    def _answer(self) -> tuple[str, str]:
        answer, self._held = self._held, ""
        return "", answer

    def _go_on(self, part: Callable[[], tuple[str, str]], behind: str) -> tuple[str, str]:
        self._part, self._held = part, behind
        return part()
