"""Remembers what the latest texts were encoded to."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from russet.errors import UsageError

#: Texts of one cache hold at most this many characters together: what is oldest goes first.
MAX_CHARS = 1 << 24
#: A longer text is not kept: it would push out too many others, and is rarely seen twice.
MAX_TEXT_CHARS = MAX_CHARS // 16

Key = tuple[str, bool]  #: text, add_special_tokens


class CacheInfo(NamedTuple):
    hits: int
    misses: int
    rate: float  #: hits / (hits + misses), 0 before the first look-up
    size: int  #: texts held now
    capacity: int  #: texts it can hold; 0 is off


class EncodeCache:
    """The most recently used texts and their ids; any number of threads may use it at once.

    Ids are kept as arrays: 4 bytes each, and every caller gets a list of its own.
    """

    def __init__(self, capacity: int) -> None:
        self._lock = threading.Lock()
        self._ids: OrderedDict[Key, array[int]] = OrderedDict()
        self._chars = self._hits = self._misses = 0
        self.capacity = capacity

    @property
    def capacity(self) -> int:
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        if not isinstance(capacity, int) or capacity < 0:
            raise UsageError(f"cache_capacity: expected a number of texts, 0 or more, got {capacity!r}")
        with self._lock:
            self._capacity = capacity
            self._shrink()

    def get(self, key: Key) -> list[int] | None:
        with self._lock:
            ids = self._ids.get(key)
            if ids is None:
                self._misses += 1
                return None
            self._hits += 1
            self._ids.move_to_end(key)
        return ids.tolist()

    def put(self, key: Key, ids: Sequence[int]) -> None:
        if len(key[0]) > MAX_TEXT_CHARS:
            return
        kept = array("I", ids)
        with self._lock:
            if key not in self._ids:  # another thread may have been faster
                self._chars += len(key[0])
                self._ids[key] = kept
                self._shrink()

    def clear(self) -> None:
        """Forget texts and counts."""
        with self._lock:
            self._ids.clear()
            self._chars = self._hits = self._misses = 0

    def info(self) -> CacheInfo:
        with self._lock:
            asked = self._hits + self._misses
            rate = self._hits / asked if asked else 0.0
            return CacheInfo(self._hits, self._misses, rate, len(self._ids), self._capacity)

    def _shrink(self) -> None:
        while len(self._ids) > self._capacity or self._chars > MAX_CHARS:
            (text, _), _ = self._ids.popitem(last=False)
            self._chars -= len(text)
