"""Speculation: tokens that may come next are drafted, and computed along with the one before them in a single pass.

Such a pass reads the weights once, as for one token alone, and where memory is what bounds it, it takes hardly longer.
The text stays what it would be: the sampler chooses every token from the model's own logits, in turn. Where it chooses
what was drafted, the logits after that are there already; where it does not, the rest of the draft is forgotten. So a
draft is rejected exactly as often as another token is drawn, and a seed gives the same text, whatever was drafted
("drafter-invariant", arXiv 2408.07978).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from russet import _core
from russet.errors import UsageError
from russet.tokenizer import Tokenizer

if TYPE_CHECKING:
    from russet.generation import Conversation

_N_FIRST = 2  # drafted at first, and when it is tried again
_N_GRAMS = (4, 3, 2)  # tokens that must have occurred before, the longest first
_PAUSE = 24  # tokens without drafts where these did not pay, twice as many each time
_MAX_PAUSE = 192


class Drafter(Protocol):
    """Guesses what comes next. A wrong guess costs time and nothing else."""

    def propose(self, text: Sequence[int], n: int, sampler: _core.Sampler) -> list[int]:
        """At most n tokens that may follow the text; none is a good answer. `sampler` will choose them; left as is."""
        ...

    def keep(self) -> None:
        """The text has ended: keep what helps with one that begins alike."""
        ...


class PromptLookup:
    """Drafts what followed the last tokens of the text where they stood before, the latest place first."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # of the n-grams of the text, where they stood last
        self._n_read = 0

    def propose(self, text: Sequence[int], n: int, sampler: _core.Sampler) -> list[int]:
        if len(text) < self._n_read:  # a full context has shifted
            self._ends.clear()
            self._n_read = 0
        for end in range(self._n_read, len(text)):
            for size in _N_GRAMS:
                if size <= end:
                    self._ends[tuple(text[end - size : end])] = end
        self._n_read = len(text)
        for size in _N_GRAMS:
            if begin := self._ends.get(tuple(text[-size:])):
                return list(islice(cycle(text[begin : begin + n]), n))  # near the end: it goes round and round
        return []

    def keep(self) -> None:
        pass


class DraftModel:
    """Drafts what a smaller model says, from its own logits with a copy of the sampler, and so with the same dice.

    conversation: with the smaller model
    n_ids: those below are tokens of both models
    """

    def __init__(self, conversation: Conversation, n_ids: int) -> None:
        self._conversation = conversation
        self._n_ids = n_ids
        self._n_text = len(conversation.tokens)

    def propose(self, text: Sequence[int], n: int, sampler: _core.Sampler) -> list[int]:
        own = self._conversation
        n = min(n, own.session.n_ctx + 1 - len(text))  # the last one drafted is not appended
        n_alike = min(_n_alike(own.tokens, text), len(text) - 1)
        if n < 1 or max(text[n_alike:]) >= self._n_ids:
            return []
        own.rewind(n_alike if own.session.can_rewind(n_alike) else 0)
        self._n_text = len(text)
        dice = copy(sampler)
        logits = own.append(text[len(own.tokens) :])
        drafted: list[int] = []
        while (token := dice.sample(logits)) < self._n_ids:
            drafted.append(token)
            if len(drafted) == n:
                break
            dice.append(token)
            logits = own.append([token])
        return drafted

    def keep(self) -> None:
        own = self._conversation
        n = min(self._n_text, len(own.tokens))
        if own.session.can_rewind(n):
            own.rewind(n)
            own.keep()


@dataclass(slots=True)
class _Round:
    """A pass with a draft, and the tokens that came of it."""

    n_drafted: int
    n_accepted: int = 0
    n_tokens: int = 0
    seconds: float = 0.0


class Speculation:
    """How many tokens to draft: twice as many where all were accepted, none for a while where plain steps are faster.

    What is faster is measured, with all that speculation costs: seconds a token, of the last rounds and plain steps.

    n_most: tokens to draft at once
    """

    def __init__(self, conversation: Conversation, drafter: Drafter, n_most: int) -> None:
        self.n_drafted = self.n_accepted = 0
        self._conversation = conversation
        self._drafter = drafter
        self._n_most = n_most
        self._n = min(_N_FIRST, n_most)  # to be drafted next
        self._n_plain = 2  # tokens to go without drafts, at first to know how long these take
        self._pause = _PAUSE  # how many that will be the next time
        self._begin: float | None = None  # of the step that chooses a token; None where it is part of a prompt
        self._round: _Round | None = None
        self._rounds: deque[_Round] = deque(maxlen=8)
        self._plain_s: deque[float] = deque(maxlen=16)

    def append(self, text: Sequence[int], sampler: _core.Sampler, n_left: int) -> np.ndarray[Any, Any] | None:
        """Append the text's last token; the logits after it, or None where nothing is drafted: then it is not appended.

        n_left: tokens that may still come
        """
        self._begin = time.perf_counter()
        if self._conversation.foresees(text[-1]):
            return self._conversation.append_foreseen()
        self._judge()
        if self._n_plain > 0:
            self._n_plain -= 1
            return None
        n = self._conversation.n_draftable(min(self._n, n_left - 1))
        draft = self._drafter.propose(text, n, sampler) if n > 0 else []
        if not draft:
            return None
        self.n_drafted += len(draft)
        self._round = _Round(len(draft))
        return self._conversation.append_with_draft(text[-1], draft)

    def chosen(self, token: int) -> bool:
        """To be told every token as soon as it is chosen; whether it had been drafted."""
        accepted = self._conversation.foresees(token)
        self.n_accepted += accepted
        if self._begin is None:
            return accepted
        seconds = time.perf_counter() - self._begin
        self._begin = None
        if self._round:
            self._round.n_tokens += 1
            self._round.n_accepted += accepted
            self._round.seconds += seconds
        else:
            self._plain_s.append(seconds)
        return accepted

    def keep(self) -> None:
        """The text has ended."""
        self._drafter.keep()

    def _judge(self) -> None:
        """What the round that has ended says about the next."""
        if self._round is None:
            return
        last, self._round = self._round, None
        all_accepted = last.n_accepted == last.n_drafted
        self._n = min(2 * last.n_drafted if all_accepted else last.n_accepted + 1, self._n_most)
        if last.n_drafted == self.n_drafted:
            return  # the very first: in it a draft model reads the prompt
        self._rounds.append(last)
        seconds = sum(r.seconds for r in self._rounds) / sum(r.n_tokens for r in self._rounds)
        if seconds < statistics.median(self._plain_s):
            self._pause = _PAUSE
            return
        self._n = min(_N_FIRST, self._n_most)
        self._n_plain, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
        self._rounds.clear()


_SAMPLE = "It doesn't cost 1234.5:\n\n    if (x != 0) { return 'größer'; }\t// 你好, мир 🙂 "


def check_same_tokens(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Raises UsageError where a draft model's ids mean other tokens, or its tokenizer cuts texts otherwise."""

    def need(same: bool, what: str) -> None:
        if not same:
            raise UsageError(f"draft_model: {what}; take a smaller model of the same family")

    sizes = tokenizer.vocab_size, draft.vocab_size
    need(sizes[0] == sizes[1], f"expected the model's {sizes[0]:,} tokens, got {sizes[1]:,}")
    for id in range(sizes[0]):
        tokens = tokenizer.id_to_token(id), draft.id_to_token(id)
        need(tokens[0] == tokens[1], f"expected token {id} to be {tokens[0]!r}, got {tokens[1]!r}")
    need(tokenizer.encode(_SAMPLE) == draft.encode(_SAMPLE), "the same tokens, but texts are cut otherwise")


def _n_alike(a: Sequence[int], b: Sequence[int]) -> int:
    """At the beginning of both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
