"""How much memory there is, and how much a model will need."""

from __future__ import annotations

import os
import re
from pathlib import Path

from russet import _core
from russet.errors import NotEnoughMemory, UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def n_bytes(size: int | str, what: str = "max_memory") -> int:
    """A number of bytes from 8000000000, "8GB", "7.5 GiB" or "800M". Raises UsageError, naming what, on anything else.

    >>> n_bytes("7.5 GiB")
    8053063680
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    if not match or match[2] not in _UNITS or float(match[1]) == 0:
        raise UsageError(f"{what}: expected bytes or a size such as '8GB', got {size!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def available() -> int:
    """Bytes that can be used without swapping, by the system's own estimate; on macOS all of the machine's."""
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        limits.append(int(re.findall(r"^MemAvailable:\s*(\d+) kB", meminfo, re.M)[0]) * 1024)
    except (OSError, IndexError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:  # a container's own limit (cgroup v2)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, min(limits))


def budget(max_memory: int | str | None) -> int:
    """Bytes that weights and cache may take: as said, or what is free now."""
    return available() if max_memory is None else n_bytes(max_memory)


def in_blocks(n_tokens: int) -> int:
    """Tokens that the blocks of a cache with n_tokens have room for."""
    return -(-n_tokens // _core.BLOCK_TOKENS) * _core.BLOCK_TOKENS


def choose_n_ctx(
    *,
    weight_bytes: int,
    bytes_per_token: int,
    max_ctx: int,
    n_ctx: int | None,
    max_memory: int | str | None,
    part: str = "",
    way_out: str = "load with a smaller n_ctx or kv_dtype='int8'",
) -> int:
    """The context to reserve: n_ctx, or else all the model knows, or as much of it as fits beside the weights.

    part, way_out: for the message: what the sum is of, where it is not the whole model, and what to do

    Raises NotEnoughMemory, with the sum, where the weights and n_ctx tokens (at least 256 if not given) do not fit.
    """
    may_use = budget(max_memory)
    least = n_ctx if n_ctx is not None else min(max_ctx, 256)
    if n_ctx is not None and n_ctx < 1:
        raise UsageError(f"n_ctx: expected at least 1 token, got {n_ctx}")
    cache_bytes = in_blocks(least) * bytes_per_token
    needed = weight_bytes + cache_bytes
    if needed > may_use:
        raise NotEnoughMemory(
            f"{part}weights {gb(weight_bytes)} + cache {gb(cache_bytes)} for {least:,} tokens = {gb(needed)}, "
            f"but {gb(may_use)} {'may be used' if max_memory is not None else 'is free'}; "
            f"{way_out}, or raise max_memory to try all the same"
        )
    if n_ctx is not None:
        return n_ctx
    n_blocks = (may_use - weight_bytes) // (_core.BLOCK_TOKENS * max(1, bytes_per_token))
    return min(max_ctx, n_blocks * _core.BLOCK_TOKENS)


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
