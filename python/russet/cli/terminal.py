"""What goes to stderr: messages, and a spinner while something slow is going on."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from russet.errors import UsageError


def say(message: object) -> None:
    """One line beside the answer."""
    print("russet:", *str(message).splitlines(), file=sys.stderr, flush=True)


def murmur(text: str) -> None:
    """Thoughts beside the answer, dimmed where a terminal shows them."""
    dims = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    print(f"\x1b[2m{text}\x1b[22m" if dims else text, end="", file=sys.stderr, flush=True)


@contextmanager
def notices() -> Iterator[None]:
    """Says what the library logs and warns of."""

    class Say(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger, handler = logging.getLogger("russet"), Say()
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(message)
        try:
            yield
        finally:
            logger.removeHandler(handler)


@contextmanager
def status(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner, where stderr is a terminal; it can be told how far it is."""
    if not sys.stderr.isatty():
        yield lambda how_far: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{doing} ...")) as spinner:
        yield lambda how_far: spinner.update(Text(f"{doing}: {how_far} ..."))


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told the bytes done and those in all, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def reading_stdin() -> Iterator[None]:
    """Raises UsageError for what is not text."""
    try:
        yield
    except UnicodeDecodeError as error:
        got = f"the byte 0x{error.object[error.start]:02x}"
        raise UsageError(f"stdin: expected {error.encoding} text, got {got}; convert it first") from None
