"""What the backends on the C++ core share: the model's numbers, sessions, and ragged batches."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from russet import _core
from russet.backends import Interrupt, Session
from russet.config import Config
from russet.errors import NotEnoughMemory
from russet.weights import POSITIONS

#: One sequence's part of a batch: its cache, its next tokens, the length of its whole text where that is known already
#: (else 0), and whether it wants the logits of all its tokens.
Part = tuple[_core.KvCache, list[int], int, bool]

#: A weight as the core takes it: floats and their type, or affine groups as the CPU or a GPU reads them.
InCore = tuple[np.ndarray[Any, Any], str] | _core.PackedMatrix | _core.AffineMatrix

#: What choosing the likeliest token has a use for.
LIKELIEST = _core.Wanted(1)

_Result = TypeVar("_Result")


class CoreBackend(ABC):
    """A model on a device of the C++ core."""

    block_tokens = _core.BLOCK_TOKENS
    few_tokens = 32
    refuses_drafts: str | None = None
    pool: _core.BlockPool  #: the memory of all its caches
    _give_back: Callable[[], bool] = staticmethod(lambda: False)

    @abstractmethod
    def session(self, n_ctx: int) -> CoreSession: ...

    @abstractmethod
    def run(
        self, parts: list[Part], *, interrupt: Interrupt | None = None, wanted: _core.Wanted | None = None
    ) -> np.ndarray[Any, Any]:
        """One pass over a ragged batch; logits of every token that wants them. wanted: see Session.forward."""

    def when_full(self, give_back: Callable[[], bool]) -> None:
        self._give_back = give_back

    def with_room(self, step: Callable[[], _Result]) -> _Result:
        """What a step gives, tried anew as long as something is given back. Raises NotEnoughMemory, with the sum."""
        while True:
            try:
                return step()
            except NotEnoughMemory:
                if not self._give_back():
                    raise

    def append_greedy(self, cache: _core.KvCache, token: int) -> int:
        """Append a token; the likeliest one after it."""
        return _core.Sampler().sample(self.run([(cache, [token], 0, False)], wanted=LIKELIEST))

    def forward(self, parts: Sequence[tuple[Session, Sequence[int]]]) -> np.ndarray[Any, Any]:
        """One ragged batch; see Backend.forward."""
        core_parts: list[Part] = []
        for session, tokens in parts:
            if not isinstance(session, CoreSession):
                raise TypeError(f"expected sessions of a backend of the core, got {type(session).__name__}")
            core_parts.append((session.cache, list(tokens), 0, False))
        return self.run(core_parts)


class CoreSession:
    """A conversation on a backend of the core; see Session."""

    def __init__(self, backend: CoreBackend, cache: _core.KvCache) -> None:
        self.backend = backend
        self.cache = cache
        self.n_ctx: int = cache.n_ctx

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
    ) -> np.ndarray[Any, Any]:
        part = (self.cache, list(tokens), text_length, all_logits)
        return self.backend.run([part], interrupt=interrupt, wanted=wanted)

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        return self.backend.append_greedy(self.cache, token)

    def rewind(self, n_tokens: int) -> None:
        self.cache.truncate(n_tokens)

    def can_rewind(self, n_tokens: int) -> bool:
        return self.cache.can_truncate(n_tokens)

    def fork(self, n_tokens: int) -> CoreSession:
        return CoreSession(self.backend, self.cache.fork(n_tokens))

    def cache_bytes(self) -> int:
        return self.cache.bytes()


def weight_bytes(in_core: Mapping[str, InCore]) -> int:
    """Bytes of weights that computing one more token reads: all, but of a table only one row."""
    tables = {POSITIONS, "embed.w"} if "head.w" in in_core else {POSITIONS}
    return sum(w[0].nbytes if isinstance(w, tuple) else w.n_bytes for role, w in in_core.items() if role not in tables)


def core_config(config: Config) -> _core.Config:
    """The same numbers on the core's side; both classes have the same fields."""
    core = _core.Config()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("family", "tied_head"):
            continue
        if field.name == "ropes":
            value = [_core_rope(rope) for rope in value]
        elif field.name == "norm":
            value = getattr(_core.NormKind, value)
        elif field.name == "activation":
            value = getattr(_core.Activation, value)
        setattr(core, field.name, value)
    return core


def _core_rope(rope: Any) -> _core.Rope:
    core = _core.Rope()
    for field in dataclasses.fields(rope):
        setattr(core, field.name, getattr(rope, field.name))
    return core
