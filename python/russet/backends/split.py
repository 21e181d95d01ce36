"""A model on two backends: its first layers in MLX, the others on the CPU, which takes over the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from russet import _core
from russet.backends import Interrupt, Session
from russet.backends.core import LIKELIEST, CoreSession
from russet.backends.cpu import CpuBackend
from russet.backends.mlx.backend import MlxBackend, MlxSession
from russet.backends.part import part_of
from russet.config import Config
from russet.errors import UsageError
from russet.kv_dtype import KvDtype
from russet.weights import Weights

_Array = np.ndarray[Any, Any]

#: Of a prompt, where the halves overlap, that each of them computes at once: of a pass of 512 a quarter.
_OVERLAP_TOKENS = 128

#: One sequence's part of a batch: its session, its next tokens, the length of its whole text where that is known
#: already (else 0), and whether it wants the logits of all its tokens.
_Part = tuple["SplitSession", list[int], int, bool]


class SplitBackend:
    """The embedding and the first `gpu_layers` layers in MLX; the other layers, the last norm and the head on the CPU.

    gpu_layers: at least 1, and fewer than the model has
    dtype, max_memory: see MlxBackend; both halves keep keys and values in this dtype
    threads, prefill_threads: see CpuBackend
    overlap_prefill: while the CPU is at one part of a prompt, MLX computes the next
    """

    name = "mlx+cpu"
    block_tokens = 0  #: of the first half, whose forks are copies
    few_tokens = 32
    refuses_drafts: str | None = None

    def __init__(
        self,
        config: Config,
        weights: Weights,
        gpu_layers: int,
        *,
        dtype: str | None = None,
        max_memory: int | None = None,
        threads: int | None = None,
        prefill_threads: int | None = None,
        overlap_prefill: bool = False,
    ) -> None:
        first = part_of(config, weights, 0, gpu_layers)
        others = part_of(config, weights, gpu_layers, config.n_layers)
        self._mlx = MlxBackend(*first, dtype=dtype, max_memory=max_memory)
        kv_dtype = str(KvDtype(self._mlx.dtype, self._mlx.dtype))
        self._cpu = CpuBackend(*others, threads=threads, prefill_threads=prefill_threads, kv_dtype=kv_dtype)
        self._overlap_prefill = overlap_prefill
        self.weight_bytes = self._mlx.layer_bytes + self._cpu.weight_bytes

    @property
    def n_threads(self) -> int:
        """Threads of the CPU's part."""
        return self._cpu.n_threads

    @n_threads.setter
    def n_threads(self, n_threads: int) -> None:
        self._cpu.n_threads = n_threads

    def session(self, n_ctx: int) -> SplitSession:
        return SplitSession(self, self._mlx.session(n_ctx), self._cpu.session(n_ctx))

    def when_full(self, give_back: Callable[[], bool]) -> None:
        self._cpu.when_full(give_back)

    def forward(self, parts: Sequence[tuple[Session, Sequence[int]]]) -> _Array:
        """One ragged batch; see Backend.forward."""
        split_parts: list[_Part] = []
        for session, tokens in parts:
            if not isinstance(session, SplitSession) or session.backend is not self:
                raise TypeError(f"expected sessions of this backend, got {type(session).__name__}")
            split_parts.append((session, list(tokens), 0, False))
        return self.run(split_parts)

    def run(
        self, parts: list[_Part], *, interrupt: Interrupt | None = None, wanted: _core.Wanted | None = None
    ) -> _Array:
        """One pass over a ragged batch; logits of every token that wants them. wanted: see Session.forward."""
        for session, *_ in parts:
            session.rewind(session.n_tokens)
        if self._overlap_prefill and len(parts) == 1 and len(parts[0][1]) > _OVERLAP_TOKENS:
            return self._overlapped(*parts[0], interrupt)
        x = self._mlx.hidden([(s.on_mlx.cache, tokens, length, wants_all) for s, tokens, length, wants_all in parts])
        on_cpu = [(s.on_cpu.cache, tokens, length, wants_all) for s, tokens, length, wants_all in parts]
        return self._cpu.run(on_cpu, x, interrupt, wanted=wanted)

    def _overlapped(
        self,
        session: SplitSession,
        tokens: list[int],
        text_length: int,
        wants_all: bool,
        interrupt: Interrupt | None,
    ) -> _Array:
        """The same of one sequence, in chunks: MLX computes them in a thread of its own, the CPU follows."""
        before = session.n_tokens
        text_length = max(text_length, before + len(tokens))
        chunks = [tokens[begin : begin + _OVERLAP_TOKENS] for begin in range(0, len(tokens), _OVERLAP_TOKENS)]
        rows = []
        with ThreadPoolExecutor(1, "russet-split") as mlx:
            xs = [mlx.submit(self._mlx.hidden, [(session.on_mlx.cache, c, text_length, True)]) for c in chunks]
            try:
                for chunk, x in zip(chunks, xs, strict=True):
                    part = (session.on_cpu.cache, chunk, text_length, wants_all)
                    rows.append(self._cpu.run([part], x.result(), interrupt))
            except BaseException:
                mlx.shutdown(cancel_futures=True)
                session.rewind(min(before, session.n_tokens))
                raise
        return np.concatenate(rows) if wants_all else rows[-1]


class SplitSession:
    """A conversation on both; see Session.

    It holds what both halves hold. Where a pass was cut short between them, the first has gone ahead, and goes back
    before the next pass.
    """

    def __init__(self, backend: SplitBackend, on_mlx: MlxSession, on_cpu: CoreSession) -> None:
        self.backend = backend
        self.on_mlx = on_mlx
        self.on_cpu = on_cpu
        self.n_ctx = on_cpu.n_ctx

    @property
    def n_tokens(self) -> int:
        return min(self.on_mlx.n_tokens, self.on_cpu.n_tokens)

    def forward(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        text_length: int = 0,
        interrupt: Interrupt | None = None,
        wanted: _core.Wanted | None = None,
    ) -> _Array:
        part = (self, list(tokens), text_length, all_logits)
        return self.backend.run([part], interrupt=interrupt, wanted=wanted)

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        return _core.Sampler().sample(self.forward([token], wanted=LIKELIEST))

    def rewind(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self.n_tokens:
            raise UsageError(f"truncate: expected 0 to {self.n_tokens} tokens, got {n_tokens}")
        self.on_mlx.rewind(n_tokens)
        self.on_cpu.rewind(n_tokens)

    def can_rewind(self, n_tokens: int) -> bool:
        return self.on_mlx.can_rewind(n_tokens) and self.on_cpu.can_rewind(n_tokens)

    def fork(self, n_tokens: int) -> SplitSession:
        return SplitSession(self.backend, self.on_mlx.fork(n_tokens), self.on_cpu.fork(n_tokens))

    def cache_bytes(self) -> int:
        return self.on_mlx.cache_bytes() + self.on_cpu.cache_bytes()
