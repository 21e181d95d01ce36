"""Backends: the devices a model can run on. Each is a Backend; one conversation on it is a Session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from russet import _core

#: Called now and then while a device computes, where it can leave off: the CPU between layers, a GPU not at all.
Interrupt = Callable[[], None]


class Session(Protocol):
    """One conversation on one device: a cache, and the tokens it holds."""

    n_ctx: int  #: tokens the cache can hold

    @property
    def n_tokens(self) -> int:
        """Tokens the cache holds."""
        ...

    def forward(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        text_length: int = 0,
        interrupt: Interrupt | None = None,
        wanted: _core.Wanted | None = None,
    ) -> np.ndarray[Any, Any]:
        """Append tokens; return logits [1, vocab_size] f32 of the last one, or [n_tokens, vocab_size] of all.

        `text_length` is the length of the whole text these tokens are part of, where it is already known: some ropes
        choose their frequencies by it. `wanted` says which logits of the last token matter: in place of others there
        may be minus infinity. Raises ContextFull when the cache has fewer free places than len(tokens), UsageError on
        an id out of range, and what `interrupt` raises; the session then holds the tokens it held.
        """
        ...

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        """Append a token; return the likeliest one after it. Raises NumericalError where a logit is NaN.

        Some backends begin the pass over that one before they are asked to; is_last: nobody will ask.
        """
        ...

    def rewind(self, n_tokens: int) -> None:
        """Forget the tokens from index n_tokens on. Raises UsageError where can_rewind() says no."""
        ...

    def can_rewind(self, n_tokens: int) -> bool:
        """Whether what a token after the first n_tokens sees is still there: layers with a window give keys back."""
        ...

    def fork(self, n_tokens: int) -> Session:
        """Another conversation that begins with the first n_tokens of this one. Raises as rewind() does."""
        ...

    def cache_bytes(self) -> int:
        """Bytes of keys and values held now."""
        ...


class Backend(Protocol):
    """A model on one device."""

    name: str
    n_threads: int  #: CPU threads it computes on; may be set between calls, sessions stay valid
    weight_bytes: int  #: bytes of weights that computing one more token reads
    block_tokens: int  #: whose keys and values forks have in common, as long as none writes; 0: a fork is a copy
    few_tokens: int  #: so many have the same bits in one pass as one by one; on a GPU the same but for rounding
    refuses_drafts: str | None  #: why a text would change if drafted tokens were computed along; None: it would not

    def session(self, n_ctx: int) -> Session: ...

    def when_full(self, give_back: Callable[[], bool]) -> None:
        """Have this called where the cache has no room left for a token, again and again until it says False."""
        ...

    def forward(self, parts: Sequence[tuple[Session, Sequence[int]]]) -> np.ndarray[Any, Any]:
        """One ragged batch: append each session's tokens; logits [n_sessions, vocab_size] of their last ones."""
        ...
