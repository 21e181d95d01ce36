"""A model that says what it is told to, with any tokenizer: what is left is how a text begins, is shown and ends."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

import russet
from random_model import random_config
from russet import GenerateOptions, Tokenizer


class Session:
    def __init__(self, script: Sequence[int], n_ctx: int, vocab_size: int) -> None:
        self.n_ctx = n_ctx
        self.n_tokens = 0
        self._script = script
        self._vocab_size = vocab_size
        self._n_prompt: int | None = None

    def forward(self, tokens: Sequence[int], **_: Any) -> np.ndarray[Any, Any]:
        self.n_tokens += len(tokens)
        logits = np.zeros((1, self._vocab_size), np.float32)
        logits[0, self._next()] = 1
        return logits

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        self.n_tokens += 1
        return self._next()

    def _next(self) -> int:
        if self._n_prompt is None:
            self._n_prompt = self.n_tokens
        return self._script[min(self.n_tokens - self._n_prompt, len(self._script) - 1)]

    def can_rewind(self, n_tokens: int) -> bool:
        return n_tokens <= self.n_tokens

    def rewind(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def fork(self, n_tokens: int) -> Session:
        other = copy(self)
        other.rewind(n_tokens)
        return other


class Backend:
    name = "scripted"
    n_threads = 1
    weight_bytes = 0
    block_tokens = 0
    few_tokens = 1
    refuses_drafts = None

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        self._script = script
        self._vocab_size = vocab_size

    def session(self, n_ctx: int) -> Session:
        return Session(self._script, n_ctx, self._vocab_size)

    def forward(self, parts: Sequence[tuple[Session, Sequence[int]]]) -> np.ndarray[Any, Any]:
        return np.concatenate([session.forward(tokens) for session, tokens in parts])

    def when_full(self, give_back: Any) -> None:
        pass


def model_that_says(tokenizer: Tokenizer, script: Sequence[int]) -> russet.Model:
    """The prompt may be anything; what follows it is the script, whose last token comes again and again."""
    vocab_size = tokenizer.vocab_size
    return russet.Model(
        config=replace(random_config(), vocab_size=vocab_size),
        tokenizer=tokenizer,
        backend=Backend(script, vocab_size),
        n_ctx=100_000,
        cache_bytes_per_token=1,
        prefix_cache_bytes=0,
        defaults=GenerateOptions(max_tokens=len(script)),
        checkpoint=None,  # type: ignore[arg-type]  # nothing is damaged
    )
