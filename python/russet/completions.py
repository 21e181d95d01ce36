"""Completions: several texts that go on from one prompt, computed together."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from russet.backends import Backend
from russet.generation import Conversation, Piece, ReplyText, look_ahead

if TYPE_CHECKING:
    from russet.beam_search import EndedText


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One of several texts that go on from a prompt."""

    text: str
    tokens: list[int]  #: the end-of-text token included where one came
    finish_reason: str  #: as of a Piece
    #: natural-log probability of all tokens in the model's own distribution, before any option; None with a grammar,
    #: which leaves tokens to no choice, unless logprobs=True asks for these too
    logprob: float | None
    thought: str = ""  #: thoughts before the answer, which are no part of its text
    logprobs: list[float] | None = None  #: of each token, where asked for
    top_logprobs: list[list[tuple[int, float]]] | None = None  #: and of the likeliest in its place, (id, logprob)
    seed: int | None = None  #: with which generate() gives this text alone; None from a beam search
    score: float | None = None  #: what beams compete by: logprob / n_tokens ** length_penalty; else None

    @classmethod
    def without_tokens(cls, finish_reason: str, seed: int) -> Completion:
        """One that ended before its first token."""
        return cls(text="", tokens=[], finish_reason=finish_reason, logprob=0.0, seed=seed)


def complete(
    backend: Backend,
    conversations: Sequence[Conversation],
    streams: Sequence[Generator[Piece]],
    prompt: Sequence[int],
) -> list[list[Piece]]:
    """All pieces of each stream, the i-th of which goes on in the i-th conversation.

    The streams are asked for a piece in turn, and the tokens that came are then computed together: where a stream
    appends its own, the logits are there. It appends others by itself, as after a shift of its context. The
    conversations are empty afterwards; the texts that ended are kept.
    """
    pieces: list[list[Piece]] = [[] for _ in streams]
    running = list(range(len(streams)))
    try:
        while running:
            nexts = []
            for i in tuple(running):
                pieces[i].append(next(streams[i]))
                token, conversation = pieces[i][-1].token, conversations[i]
                if token is None or pieces[i][-1].finish_reason:
                    running.remove(i)
                    _keep(conversation)
                elif conversation.may_look_ahead(len(prompt) + len(pieces[i])):
                    nexts.append((conversation, token))
            look_ahead(backend, nexts)
    finally:
        for conversation in conversations:
            conversation.rewind(0)
    return pieces


def _keep(conversation: Conversation) -> None:
    """Its text, for prompts that begin alike; the memory is free for the others."""
    if conversation.session.can_rewind(len(conversation.tokens)):  # behind what a grammar has forced
        conversation.keep()
    conversation.rewind(0)


def searched(ended: EndedText, reply: ReplyText, ends: Collection[int]) -> Completion:
    """What came of one beam. ends: tokens that end a text, and are not shown."""
    shown = [reply.push(token) for token in ended.tokens if token not in ends]
    shown.append(reply.finish())
    return Completion(
        text="".join(part.text for part in shown),
        thought="".join(part.thought for part in shown),
        tokens=ended.tokens,
        finish_reason=ended.finish_reason,
        logprob=ended.logprob,
        score=ended.score,
    )


def drawn(pieces: Sequence[Piece], *, seed: int, logprobs: bool) -> Completion:
    """What came of one stream. logprobs: whether those of each token were asked for."""
    tokens = [piece.token for piece in pieces if piece.token is not None]
    known = [piece.logprob for piece in pieces if piece.logprob is not None]
    top = [piece.top_logprobs for piece in pieces if piece.top_logprobs is not None]
    return Completion(
        text="".join(piece.text for piece in pieces),
        thought="".join(piece.thought for piece in pieces),
        tokens=tokens,
        finish_reason=pieces[-1].finish_reason or "length",
        logprob=sum(known, 0.0) if len(known) == len(tokens) else None,
        logprobs=known if logprobs else None,
        top_logprobs=top or None,
        seed=seed,
    )
