"""What is typed in a chat: messages of one line or of several, and commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile

from russet.cli.terminal import reading_stdin

_BLOCK = '"""'
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)


def read_message() -> str | None:
    """The next message; None at the end of the input."""
    lines = _lines()
    message = next(lines, None)
    if message is not None and message.strip() == _BLOCK:
        return "\n".join(takewhile(lambda line: line.strip() != _BLOCK, lines))
    while message is not None and message.endswith("\\"):
        message = message[:-1] + "\n" + next(lines, "")
    return message


def split_command(message: str) -> tuple[str, str] | None:
    """("system", "You are ...") of "/system You are ..."; None of what is no command."""
    match = _COMMAND.fullmatch(message.strip())
    return match and (match[1], match[2] or "")


def _lines() -> Iterator[str]:
    prompt = "> "
    with suppress(EOFError), reading_stdin():
        while True:
            yield _ask(prompt)
            prompt = "... "


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        return input()
    if not sys.stdout.isatty():  # the answers go elsewhere, and the prompts are not to be among them
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()
    with suppress(ImportError):
        import readline  # noqa: F401  its import gives input() a history and editing
    return input(prompt)
