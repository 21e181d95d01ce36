"""Beam search: the likeliest texts as wholes, not token by token; as transformers has it.

In every step the running beams are continued by each of their likeliest tokens, and of all these candidates the best
go on. Those that end compete for the result by score / n_tokens ** length_penalty, where a score is the sum of the
tokens' logprobs. Beams are forks of one cache, in blocks that they share: who goes on in two ways is forked by its
tables, and no key is copied but those of a block that both go on to write in.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from russet import _core
from russet.backends import Backend
from russet.errors import UsageError
from russet.generation import Conversation, look_ahead
from russet.grammar import Grammar

_ONLY_DRAWS = "beam search draws nothing, it keeps the likeliest; leave it out, or take generate_many(n=...)"

#: Options that a beam search has no use for, and what to do instead.
REFUSED = {
    "temperature": _ONLY_DRAWS,
    "top_k": _ONLY_DRAWS,
    "top_p": _ONLY_DRAWS,
    "min_p": _ONLY_DRAWS,
    "typical_p": _ONLY_DRAWS,
    "top_n_sigma": _ONLY_DRAWS,
    "xtc_probability": _ONLY_DRAWS,
    "mirostat_tau": _ONLY_DRAWS,
    "seed": _ONLY_DRAWS,
    "stop": "a beam search knows texts only when they end; cut them afterwards, or take generate_many(n=...)",
    "logprobs": "a beam search gives the logprob of whole texts; score() has those of single tokens",
    "top_logprobs": "a beam search gives the logprob of whole texts; generate() has those of single tokens",
    "timeout": "a beam search has no text before it ends; bound it by max_tokens",
    "cancel": "a beam search has no text before it ends; bound it by max_tokens",
    "use_cache": "beams are forks of a cache; leave it out",
    "context_overflow": "beams end where the context is full; leave it out, or load with a larger n_ctx",
    "speculate": "all beams are computed in one pass, without drafts; leave it out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamOptions:
    """How wide a beam search is and when it ends; names and meaning are transformers'."""

    num_beams: int = 4  #: texts that go on at the same time
    num_return_sequences: int = 1  #: of the best that are returned, up to num_beams
    length_penalty: float = 1.0  #: above 0 favours long texts, below 0 short ones; 0: the sum of logprobs decides
    #: False: until no running beam, at its length now, beats the num_beams that have ended; True: until so many have
    #: ended; "never": until none could beat them at any length up to max_tokens
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        def need(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise UsageError(f"{field}: expected {expected}, got {getattr(self, field)!r}")

        for name in ("num_beams", "num_return_sequences"):
            value = getattr(self, name)
            need(isinstance(value, int) and not isinstance(value, bool) and value >= 1, name, "an integer from 1 on")
        need(self.num_return_sequences <= self.num_beams, "num_return_sequences", f"at most num_beams={self.num_beams}")
        penalty = self.length_penalty
        is_number = isinstance(penalty, (int, float)) and not isinstance(penalty, bool)
        need(is_number and -20 <= penalty <= 20, "length_penalty", "a number from -20 to 20")
        is_known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        need(is_known, "early_stopping", "True, False or 'never'")


@dataclass(slots=True, eq=False)
class Beam:
    """A text that goes on."""

    conversation: Conversation
    sampler: _core.Sampler
    grammar: Grammar | None
    tokens: list[int]
    score: float  #: sum of its tokens' logprobs as biases, bans and penalties have changed them
    logprob: float  #: sum of the model's own


@dataclass(slots=True, eq=False)
class Candidate:
    """A beam and one more token."""

    beam: Beam
    token: int
    score: float
    logprob: float

    def grammar(self) -> Grammar | None:
        """The beam's, after the token."""
        if self.beam.grammar is None:
            return None
        grammar = self.beam.grammar.copy()
        grammar.accept(self.token)
        return grammar


@dataclass(frozen=True, slots=True, eq=False)
class EndedText:
    """A text that has ended."""

    tokens: list[int]
    score: float  #: over its length
    logprob: float
    finish_reason: str


def beam_search(
    backend: Backend,
    conversation: Conversation,
    logits: np.ndarray[Any, Any],
    options: BeamOptions,
    *,
    sampler: _core.Sampler,
    grammar: Grammar | None,
    n_most: int,
    ends: Collection[int],
) -> list[EndedText]:
    """The best texts that go on from a prompt, best first; fewer where there are not so many.

    conversation, logits: hold the prompt, and what follows it; the conversation is empty afterwards
    n_most: tokens that a text may have, from 1 on
    ends: tokens that end it
    """
    n_beams = options.num_beams
    n_candidates = n_beams * max(2, 1 + len(ends))  # of which n_beams go on, though all the others may end
    running = [Beam(conversation, sampler, grammar, [], 0.0, 0.0)]
    rows = [logits]
    best: list[EndedText] = []
    try:
        for length in range(1, n_most + 1):
            going_on: list[Candidate] = []
            for rank, candidate in enumerate(_candidates(running, rows, n_candidates)):
                after = candidate.grammar()
                stops = candidate.token in ends or (after is not None and after.finished)
                if not stops and length < n_most:
                    going_on.append(candidate)
                elif rank < n_beams:
                    score = candidate.score / length**options.length_penalty
                    tokens = [*candidate.beam.tokens, candidate.token]
                    best.append(EndedText(tokens, score, candidate.logprob, "stop" if stops else "length"))
                if len(going_on) == n_beams:
                    break
            best = heapq.nlargest(n_beams, best, key=lambda ended: ended.score)
            if not going_on or _is_over(options, going_on[0].score, best, length, n_most):
                break
            running = _continued(running, going_on)
            rows = _append_last(backend, running)
    finally:
        for beam in running:
            beam.conversation.rewind(0)
    return best[: options.num_return_sequences]


def _candidates(beams: Sequence[Beam], rows: Sequence[np.ndarray[Any, Any]], n: int) -> list[Candidate]:
    """The n best by which any of the beams can go on, best first. rows: logits after each beam."""
    found = []
    for beam, logits in zip(beams, rows, strict=True):
        allowed = beam.grammar.allowed() if beam.grammar else None
        for token, score, logprob in beam.sampler.best(logits, n, allowed):
            found.append(Candidate(beam, token, beam.score + score, beam.logprob + logprob))
    return heapq.nlargest(n, found, key=lambda candidate: candidate.score)


def _is_over(options: BeamOptions, score: float, best: Sequence[EndedText], length: int, n_most: int) -> bool:
    """Whether nothing better is to come. score: of the best running beam"""
    if len(best) < options.num_beams or options.early_stopping is True:
        return len(best) == options.num_beams
    favours_long = options.early_stopping == "never" and options.length_penalty > 0
    best_length = n_most if favours_long else length
    return bool(score / best_length**options.length_penalty <= best[-1].score)


def _continued(running: Sequence[Beam], chosen: Sequence[Candidate]) -> list[Beam]:
    """A beam of each candidate. The last one of a beam takes its conversation, those before it fork it."""
    last_of = {candidate.beam: candidate for candidate in chosen}
    for beam in running:
        if beam not in last_of:
            beam.conversation.rewind(0)
    beams = []
    for candidate in chosen:
        beam = candidate.beam
        conversation = beam.conversation if candidate is last_of[beam] else beam.conversation.fork()
        sampler = copy.copy(beam.sampler)
        sampler.append(candidate.token)
        tokens = [*beam.tokens, candidate.token]
        beams.append(Beam(conversation, sampler, candidate.grammar(), tokens, candidate.score, candidate.logprob))
    return beams


def _append_last(backend: Backend, beams: Sequence[Beam]) -> list[np.ndarray[Any, Any]]:
    """Append every beam's last token; the logits after each."""
    nexts = [(beam.conversation, beam.tokens[-1]) for beam in beams]
    look_ahead(backend, [(c, token) for c, token in nexts if c.may_look_ahead(len(c.tokens) + 1)])
    return [conversation.append([token]) for conversation, token in nexts]
