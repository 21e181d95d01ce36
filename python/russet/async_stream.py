"""A stream for asyncio: its pieces are computed in a thread of their own, until nobody waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from russet.generation import Piece


async def in_thread(start: Callable[[], Generator[Piece]], left: Event) -> AsyncGenerator[Piece]:
    """The pieces of the stream that `start` begins; setting `left` is to end it soon."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "russet-stream")
    pieces: Generator[Piece] | None = None
    try:
        pieces = await loop.run_in_executor(thread, start)
        while (piece := await loop.run_in_executor(thread, next, pieces, None)) is not None:
            yield piece
    finally:
        left.set()
        closed = loop.run_in_executor(thread, pieces.close) if pieces else None  # behind the step under way
        thread.shutdown(wait=False)
        if closed:
            await asyncio.shield(closed)
