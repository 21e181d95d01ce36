"""A model in MLX, and the conversations on it: passes begun, cut into chunks, evaluated; one caller at a time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from russet import _core
from russet.backends import Interrupt, Session
from russet.backends.dtypes import chosen_dtype
from russet.backends.mlx.cache import Cache, Segment
from russet.backends.mlx.forward import Forward
from russet.backends.mlx.shard import Shard
from russet.config import Config
from russet.errors import BackendError, ContextFull, NotEnoughMemory, NumericalError, UsageError
from russet.weights import Weights

_CHUNK_TOKENS = 512  # computed at once at most, so that activations stay small; as many as generation.py passes on

_Array = np.ndarray[Any, Any]

#: One sequence's part of a batch: its cache, its next tokens, the length of its whole text where that is known already
#: (else 0), and whether it wants the logits of all its tokens.
_Part = tuple[Cache, list[int], int, bool]

#: What becomes of rows of x behind the last layer.
_Head = Callable[[mx.array], mx.array]

# One stream for all models, whichever threads they are used from: MLX's other streams are their thread's alone.
_STREAM = mx.new_thread_unsafe_stream(mx.default_device())
_TURN = threading.Lock()


class MlxBackend:
    """A model in MLX.

    dtype: "float32", "float16" or "bfloat16": of activations, keys and values. By default the type of the checkpoint.
        The residual stream is float32 in any case.
    max_memory: bytes that MLX may hold in this process; by default its own limit
    fused: compile what goes element by element; by default on a GPU alone, as on a CPU MLX calls a C++ compiler for it
    shard: what this process is of several that compute the model together; config and weights are those of its part
    """

    name = "mlx"
    n_threads = 1  #: of the CPU: one says what MLX is to do
    block_tokens = 0  #: MLX's arrays are values: who writes into what a fork has too gets a copy
    few_tokens = 32
    refuses_drafts: str | None = None

    def __init__(
        self,
        config: Config,
        weights: Weights,
        *,
        dtype: str | None = None,
        max_memory: int | None = None,
        fused: bool | None = None,
        shard: Shard | None = None,
    ) -> None:
        self._config = config
        self._shard = shard or Shard()
        if shard:
            self.refuses_drafts = "how much is drafted goes by the clock, and the clocks of several processes differ"
        self.dtype = chosen_dtype(dtype, weights)
        if max_memory is not None:
            mx.set_memory_limit(max_memory)
        if fused is None:
            fused = mx.default_device().type == mx.gpu
        with _turn(self._shard):
            self._forward = Forward(config, weights, self.dtype, fused=fused, shard=self._shard)
        self.weight_bytes = self._forward.weight_bytes
        self.layer_bytes = self._forward.layer_bytes  #: of them those of the layers

    def session(self, n_ctx: int) -> MlxSession:
        if n_ctx < 1:
            raise UsageError(f"n_ctx: expected at least 1, got {n_ctx}")
        with _turn(self._shard):
            return MlxSession(self, Cache(self._config, n_ctx, self._forward.dtype))

    def when_full(self, give_back: Callable[[], bool]) -> None:
        """MLX has no bound of its own; where the system's is met, _turn() loses the session."""

    def fork(self, cache: Cache, n_tokens: int) -> MlxSession:
        with _turn(self._shard):
            return MlxSession(self, cache.fork(n_tokens))

    def forward(self, parts: Sequence[tuple[Session, Sequence[int]]]) -> _Array:
        """One ragged batch; see Backend.forward."""
        mlx_parts: list[_Part] = []
        for session, tokens in parts:
            if not isinstance(session, MlxSession) or session.backend is not self:
                raise TypeError(f"expected sessions of this backend, got {type(session).__name__}")
            mlx_parts.append((session.cache, list(tokens), 0, False))
        return self.run(mlx_parts)

    def run(self, parts: list[_Part]) -> _Array:
        """One pass over a ragged batch; logits of every token that wants them."""
        return self._run(parts, lambda x: self._shard.agreed(self._forward.logits(x)))

    def hidden(self, parts: list[_Part]) -> _Array:
        """The same, but x [n_tokens, dim] f32 behind the last layer, of every token: for another backend's layers."""
        return self._run([(cache, tokens, text_length, True) for cache, tokens, text_length, _ in parts], lambda x: x)

    def _run(self, parts: list[_Part], head: _Head) -> _Array:
        with _turn(self._shard, [cache for cache, *_ in parts]):
            self._check(parts)
            for cache, *_ in parts:
                cache.ahead = None
            if sum(len(tokens) for _, tokens, *_ in parts) < _CHUNK_TOKENS:
                return self._pass(parts, head)
            return np.concatenate([rows for part in parts for rows in self._in_chunks(*part, head)])

    def append_greedy(self, cache: Cache, token: int, *, is_last: bool = False) -> int:
        """Append a token; the likeliest one after it. While the host looks at that, MLX computes the next."""
        with _turn(self._shard, [cache]):
            self._check([(cache, [token], 0, False)])
            taken, likeliest = cache.ahead or (None, None)
            if likeliest is None or taken != token:
                likeliest = self._begin_greedy(cache, mx.array([token]))
            cache.n_tokens += 1
            goes_on = not is_last and cache.n_tokens < self._most_tokens(cache)
            ahead = self._begin_greedy(cache, likeliest) if goes_on else None
            id = int(np.array(likeliest)[0])
            if id < 0:
                raise NumericalError("the model computed logits that are not a number")
            cache.ahead = None if ahead is None else (id, ahead)
            return id

    def _begin_greedy(self, cache: Cache, token: mx.array) -> mx.array:
        """The likeliest token [1] after this one [1], once it is computed; -1 where a logit is NaN."""
        segment = self._forward.segment(cache, 0, 1)
        logits = self._forward.logits(self._forward.hidden(token, [segment]))
        is_nan = mx.isnan(logits).any(axis=-1)
        likeliest = self._shard.agreed(mx.where(is_nan, -1, logits.argmax(axis=-1).astype(mx.int32)))
        mx.async_eval(likeliest)
        return likeliest

    def _in_chunks(
        self, cache: Cache, tokens: list[int], text_length: int, all_logits: bool, head: _Head
    ) -> Iterator[_Array]:
        """Logits of each chunk, or of the last token; between two chunks MLX holds nothing but weights and caches."""
        text_length = max(text_length, cache.n_tokens + len(tokens))
        for begin in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = tokens[begin : begin + _CHUNK_TOKENS]
            is_last = begin + len(chunk) == len(tokens)
            yield self._pass([(cache, chunk, text_length, all_logits)], head, silent=not (is_last or all_logits))
            mx.clear_cache()

    def _pass(self, parts: list[_Part], head: _Head, *, silent: bool = False) -> _Array:
        """One pass, evaluated. silent: for its keys and values alone, no logits."""
        segments: list[Segment] = []
        tokens: list[int] = []
        rows: list[int] = []
        for cache, ids, text_length, all_logits in parts:
            segments.append(self._forward.segment(cache, len(tokens), len(ids), text_length))
            tokens += ids
            rows += range(len(tokens) - (len(ids) if all_logits else 1), len(tokens))
        x = self._forward.hidden(mx.array(tokens), segments)
        if silent:
            mx.eval([(s.cache.keys, s.cache.values) for s in segments], self._shard.owed(x))
            logits = np.empty((0, self._config.vocab_size), np.float32)
        else:
            logits = np.array(head(x[mx.array(rows)]))
        for segment in segments:
            segment.cache.n_tokens += segment.n_tokens
        return logits

    def _most_tokens(self, cache: Cache) -> int:
        """That the cache holds, and of which the model knows the positions."""
        return cache.n_ctx if self._config.ropes else min(cache.n_ctx, self._config.max_ctx)

    def _check(self, parts: list[_Part]) -> None:
        """What csrc/model/forward.cpp refuses, in the same words."""
        if not parts:
            raise UsageError("forward: a batch needs at least one sequence")
        if len({id(cache) for cache, *_ in parts}) < len(parts):
            raise UsageError("forward: one cache appears twice in a batch")
        vocab_size = self._config.vocab_size
        for cache, tokens, *_ in parts:
            if not tokens:
                raise UsageError("forward: a sequence has no tokens")
            wrong = next((id for id in tokens if not 0 <= id < vocab_size), None)
            if wrong is not None:
                raise UsageError(f"token id {wrong}: expected 0 to {vocab_size - 1}")
            held, new = cache.n_tokens, len(tokens)
            if held + new > cache.n_ctx:
                raise ContextFull(
                    f"{held} tokens in the context and {new} more make {held + new}, n_ctx is {cache.n_ctx}; "
                    "shorten the prompt, or load with a larger n_ctx"
                )
            if held + new > self._most_tokens(cache):
                raise ContextFull(
                    f"{held + new} tokens: the model knows only {self._config.max_ctx} positions; shorten the prompt"
                )


class MlxSession:
    """A conversation in MLX; see Session."""

    def __init__(self, backend: MlxBackend, cache: Cache) -> None:
        self.backend = backend
        self.cache = cache
        self.n_ctx = cache.n_ctx

    @property
    def n_tokens(self) -> int:
        return self.cache.n_tokens

    def forward(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        text_length: int = 0,
        interrupt: Interrupt | None = None,
        wanted: _core.Wanted | None = None,
    ) -> _Array:
        return self.backend.run([(self.cache, list(tokens), text_length, all_logits)])

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        return self.backend.append_greedy(self.cache, token, is_last=is_last)

    def rewind(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self.cache.n_tokens:
            raise UsageError(f"truncate: expected 0 to {self.cache.n_tokens} tokens, got {n_tokens}")
        if n_tokens < self.cache.n_tokens:
            self.cache.ahead = None
        self.cache.n_tokens = n_tokens

    def can_rewind(self, n_tokens: int) -> bool:
        return 0 <= n_tokens <= self.cache.n_tokens

    def fork(self, n_tokens: int) -> MlxSession:
        if not self.can_rewind(n_tokens):
            raise UsageError(f"fork: cannot take the first {n_tokens} of {self.cache.n_tokens} tokens")
        return self.backend.fork(self.cache, n_tokens)

    def cache_bytes(self) -> int:
        return self.cache.bytes()


@contextmanager
def _turn(shard: Shard, caches: Sequence[Cache] = ()) -> Iterator[None]:
    """MLX for one caller at a time. Where that fails the caches hold what they held before, or nothing."""
    with _TURN, mx.stream(_STREAM):
        before = [cache.n_tokens for cache in caches]
        try:
            with shard.waiting():
                yield
        except (RuntimeError, MemoryError) as error:
            for cache in caches:
                cache.clear()
            mx.clear_cache()
            raise _ours(error) from error
        except BaseException:
            for cache, n_tokens in zip(caches, before, strict=True):
                cache.n_tokens = n_tokens
            raise


def _ours(error: Exception) -> BackendError | NotEnoughMemory:
    """What MLX raised, as one of russet's errors."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or re.search(r"alloc|memory", message, re.IGNORECASE):
        return NotEnoughMemory(f"mlx: {message}; load with a smaller n_ctx, or quantised")
    return BackendError(f"mlx: {message}")
