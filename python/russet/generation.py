"""Generation: prompt ids to a stream of pieces. Files, names and templates are model.py's business."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from russet import _core
from russet.backends import Session
from russet.config import Config
from russet.errors import NumericalError
from russet.options import GenerateOptions
from russet.stop_strings import StopStrings
from russet.tokenizer import Tokenizer

#: Prompt tokens computed at once: enough for the matrix products to run at full speed, few enough for the activations
#: to stay small and for Ctrl-C to be heard.
CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One generated token and the text it made certain; the texts of all pieces join to the whole text."""

    text: str  #: may be empty: part of a character, or held back as the possible beginning of a stop string
    token: int | None  #: its id; None where max_tokens=0 or a full context left no token to generate
    finish_reason: str | None  #: None until the last piece: "stop" (end of text, stop string) or "length"
    prompt_tokens: int  #: tokens of the prompt
    cached_tokens: int  #: of these, how many were in the cache already
    generated_tokens: int  #: tokens generated so far
    first_token_s: float  #: seconds from the call to the first token
    tokens_per_s: float  #: speed since the first token; 0 before the second
    #: where asked for, natural-log probability of the token in the model's own distribution, before any sampling option
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None  #: likewise of the likeliest tokens, (id, logprob), falling


class TextStream(Protocol):
    """Ids to text, id by id: a Detokenizer, or a Continuation of one."""

    def push(self, id: int) -> str: ...

    def finish(self) -> str: ...


class Continuation:
    """The text of ids that go on where a prompt ends: decode(prompt + ids) without decode(prompt).

    Unlike decode(ids) it keeps the space between the two that SentencePiece tokenizers drop at a text's start.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._detokenizer = tokenizer.stream_decoder(skip_special_tokens=True)
        n_certain = sum(len(self._detokenizer.push(id)) for id in prompt)
        self._n_of_prompt = len(tokenizer.decode(prompt, skip_special_tokens=True)) - n_certain

    def push(self, id: int) -> str:
        return self._without_prompt(self._detokenizer.push(id))

    def finish(self) -> str:
        return self._without_prompt(self._detokenizer.finish())

    def _without_prompt(self, text: str) -> str:
        shown = text[self._n_of_prompt :]
        self._n_of_prompt = max(0, self._n_of_prompt - len(text))
        return shown


class Conversation:
    """A session and the tokens in it: what a new prompt shares with them need not be computed again."""

    def __init__(self, session: Session, config: Config) -> None:
        self.session = session
        self._ropes = config.ropes
        self._tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> int:
        """Keep what the cache shares with the prompt, forget the rest; how many tokens were kept."""
        n_shared = 0
        # The last one is computed, for its logits; and a session that failed may have lost what it held.
        most = min(len(self._tokens), self.session.n_tokens, len(prompt) - 1)
        while n_shared < most and self._tokens[n_shared] == prompt[n_shared]:
            n_shared += 1
        if not self._rotated_alike(len(self._tokens), len(prompt)):
            n_shared = 0
        self.rewind(n_shared)
        return n_shared

    def append(self, tokens: Sequence[int], *, all_logits: bool = False) -> np.ndarray[Any, Any]:
        """Logits of the last token, or of all."""
        length = len(self._tokens) + len(tokens)
        if self._outgrows_rope(length):
            # The text has outgrown the frequencies its keys were stored with: compute it anew, as transformers does.
            tokens = [*self._tokens, *tokens]
            self.rewind(0)
        rows = []
        for begin in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[begin : begin + CHUNK_TOKENS]
            logits = self.session.forward(chunk, all_logits=all_logits, text_length=length)
            self._tokens.extend(chunk)
            rows.append(logits)
        return np.concatenate(rows) if all_logits else rows[-1]

    def append_greedy(self, token: int) -> int:
        """Append a token; the likeliest one after it. Raises NumericalError where a logit is NaN."""
        if self._outgrows_rope(len(self._tokens) + 1):
            return _core.Sampler().sample(self.append([token]))
        likeliest = self.session.append_greedy(token)
        self._tokens.append(token)
        return likeliest

    def rewind(self, n_tokens: int) -> None:
        self.session.rewind(n_tokens)
        del self._tokens[n_tokens:]

    def _outgrows_rope(self, length: int) -> bool:
        return bool(self._tokens) and self._long_rope(len(self._tokens)) != self._long_rope(length)

    def _long_rope(self, length: int) -> bool:
        return any(rope.long_inv_freq and length > rope.original_ctx for rope in self._ropes)

    def _rotated_alike(self, length: int, other: int) -> bool:
        """Whether the keys of two texts of these lengths are rotated by the same frequencies."""
        grown = any(rope.dynamic_factor and max(length, other) > rope.original_ctx for rope in self._ropes)
        return not grown and self._long_rope(length) == self._long_rope(other)


def generate(
    conversation: Conversation,
    prompt: Sequence[int],
    options: GenerateOptions,
    *,
    sampler: _core.Sampler,
    detokenizer: TextStream,
    eos_token_ids: Sequence[int],
    diagnose: Callable[[], str | None],
) -> Generator[Piece]:
    """Compute the prompt, then token by token; one piece each. `diagnose` says which weight is damaged, if one is."""
    start = time.perf_counter()
    if not options.use_cache:
        conversation.rewind(0)
    n_cached = conversation.begin(prompt)
    room = conversation.session.n_ctx - len(prompt)
    n_most = room if options.max_tokens is None else min(options.max_tokens, room)
    ends = frozenset() if options.ignore_eos else frozenset(eos_token_ids)
    stops = StopStrings(options.stop)
    text = list(prompt)
    greedy = options.takes_likeliest and options.use_cache
    logprobs: tuple[float, list[tuple[int, float]]] | None = None  # of the last token

    def after(tokens: Sequence[int]) -> int:
        """Append tokens; the one chosen to follow them."""
        nonlocal logprobs
        try:
            if greedy and len(tokens) == 1:
                return conversation.append_greedy(tokens[0])
            logits = conversation.append(tokens)
            token = sampler.sample(logits)
            if options.logprobs:
                logprobs = _core.logprobs(logits, token, options.top_logprobs)
            return token
        except NumericalError as error:
            raise NumericalError(diagnose() or str(error)) from None

    token = after(prompt[n_cached:])
    first = now = time.perf_counter()

    def piece(shown: str, token: int | None, reason: str | None, n: int) -> Piece:
        return Piece(
            text=shown,
            token=token,
            finish_reason=reason,
            prompt_tokens=len(prompt),
            cached_tokens=n_cached,
            generated_tokens=n,
            first_token_s=first - start,
            tokens_per_s=(n - 1) / (now - first) if n > 1 else 0.0,
            logprob=logprobs[0] if logprobs and n else None,
            top_logprobs=logprobs[1] if logprobs and n and options.top_logprobs else None,
        )

    if n_most <= 0:
        yield piece("", None, "length", 0)
        return
    for n in range(1, n_most + 1):
        now = time.perf_counter()
        text.append(token)
        sampler.append(token)
        shown, stopped = stops.push(detokenizer.push(token))
        if not stopped and (token in ends or n == n_most):
            tail, stopped = stops.push(detokenizer.finish())
            shown += tail if stopped else tail + stops.finish()
        if stopped or token in ends:
            yield piece(shown, token, "stop", n)
            return
        yield piece(shown, token, "length" if n == n_most else None, n)
        if n < n_most:
            if not options.use_cache:
                conversation.rewind(0)
            token = after(text if not options.use_cache else [token])
