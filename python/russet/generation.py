"""Generation: prompt ids to a stream of pieces. Files, names and templates are model.py's business."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from russet import _core
from russet.backends import Session
from russet.config import Config
from russet.errors import NumericalError, UsageError
from russet.grammar import Grammar
from russet.options import GenerateOptions
from russet.prefix_cache import PrefixCache, frequencies, is_long
from russet.stop_strings import StopStrings
from russet.tokenizer import Tokenizer

#: Prompt tokens computed at once: enough for the matrix products to run at full speed, few enough for the activations
#: to stay small and for Ctrl-C to be heard.
CHUNK_TOKENS = 512

#: Called between chunks of a prompt with (tokens done, tokens in all); what it raises ends the generation.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One generated token and the text it made certain; the texts of all pieces join to the whole text."""

    text: str  #: may be empty: part of a character, or held back as the possible beginning of a stop string
    token: int | None  #: its id; None where max_tokens=0 or a full context left no token to generate
    finish_reason: str | None  #: None until the last piece: "stop" (end of text or grammar, stop string) or "length"
    prompt_tokens: int  #: tokens of the prompt
    cached_tokens: int  #: of these, how many were in the cache already
    cache_miss: str | None  #: why not all but the last were; None where they were
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
    """A session and the tokens in it.

    known: what the session holds already: these tokens, of a text that is to be as long as text_length
    texts: where keep() puts it; by default nowhere
    """

    def __init__(
        self,
        session: Session,
        config: Config,
        *,
        known: Sequence[int] = (),
        text_length: int = 0,
        texts: PrefixCache | None = None,
    ) -> None:
        self.session = session
        self.tokens = list(known)
        self._ropes = config.ropes
        self._has_windows = any(config.layer_window)
        self._text_length = text_length  # that the keys are rotated for
        self._texts = texts

    def append(
        self, tokens: Sequence[int], *, all_logits: bool = False, progress: Progress = lambda done, total: None
    ) -> np.ndarray[Any, Any]:
        """Logits of the last token, or of all."""
        length = len(self.tokens) + len(tokens)
        if self._outgrows_rope(length):
            # The text has outgrown the frequencies its keys were stored with: compute it anew, as transformers does.
            tokens = [*self.tokens, *tokens]
            self.rewind(0)
        self._text_length = max(self._text_length, length)
        rows = []
        for begin in range(0, len(tokens), CHUNK_TOKENS):
            progress(len(self.tokens), length)
            chunk = tokens[begin : begin + CHUNK_TOKENS]
            rows.append(self.session.forward(chunk, all_logits=all_logits, text_length=length))
            self.tokens.extend(chunk)
            if self._has_windows and len(self.tokens) < length:
                self.keep_prompt()  # what comes next makes windows give back what a text that leaves here would see
        return np.concatenate(rows) if all_logits else rows[-1]

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        """Append a token; the likeliest one after it. See Session.append_greedy()."""
        if self._outgrows_rope(len(self.tokens) + 1):
            return _core.Sampler().sample(self.append([token]))
        likeliest = self.session.append_greedy(token, is_last=is_last)
        self.tokens.append(token)
        self._text_length = max(self._text_length, len(self.tokens))
        return likeliest

    def rewind(self, n_tokens: int) -> None:
        self.session.rewind(n_tokens)
        del self.tokens[n_tokens:]
        if n_tokens == 0:
            self._text_length = 0

    def keep(self) -> None:
        """For the texts that begin alike."""
        if self._texts is not None:
            self._texts.put(self.tokens, self.session, self.rotated)

    def keep_prompt(self) -> None:
        """The same in the middle of a text, where that is no copy."""
        if self._texts is not None and self._texts.forks_share:
            self.keep()

    @property
    def rotated(self) -> str | None:
        """By which frequencies its keys are; see prefix_cache.frequencies()."""
        return frequencies(self._ropes, max(self._text_length, len(self.tokens)))

    def _outgrows_rope(self, length: int) -> bool:
        return bool(self.tokens) and is_long(self._ropes, self._text_length) != is_long(self._ropes, length)


def generate(
    conversation: Conversation,
    prompt: Sequence[int],
    options: GenerateOptions,
    *,
    sampler: _core.Sampler,
    grammar: Grammar | None = None,
    miss: str | None,
    detokenizer: TextStream,
    eos_token_ids: Sequence[int],
    diagnose: Callable[[], str | None],
    progress: Progress = lambda done, total: None,
) -> Generator[Piece]:
    """Compute what the conversation lacks of the prompt, then token by token; one piece each.

    grammar: what the text is to follow; tokens that it forces are computed together, with the next one that is not
    miss: why it lacks more than the last token
    diagnose: says which weight is damaged, if one is
    """
    start = time.perf_counter()
    n_cached = len(conversation.tokens)
    n_ctx = conversation.session.n_ctx
    shifts = options.context_overflow == "shift"
    if shifts and 2 * options.n_sinks >= n_ctx:
        raise UsageError(f"n_sinks: expected fewer than half of n_ctx={n_ctx:,}, got {options.n_sinks:,}")
    n_most = sys.maxsize if options.max_tokens is None else options.max_tokens
    if not shifts:
        n_most = min(n_most, n_ctx - len(prompt))
    ends = frozenset() if options.ignore_eos else frozenset(eos_token_ids)
    stops = StopStrings(options.stop)
    text = list(prompt)
    greedy = options.takes_likeliest and options.use_cache
    logprobs: tuple[float, list[tuple[int, float]]] | None = None  # of the last token

    def after(tokens: Sequence[int], progress: Progress = lambda done, total: None, *, is_last: bool) -> int:
        """Append tokens; the one chosen to follow them. is_last: it will not be appended itself."""
        nonlocal logprobs
        try:
            if greedy and len(tokens) == 1:
                return conversation.append_greedy(tokens[0], is_last=is_last)
            logits = conversation.append(tokens, progress=progress)
            token = sampler.sample(logits, grammar.allowed() if grammar else None)
            if options.logprobs:
                logprobs = _core.logprobs(logits, token, options.top_logprobs)
            return token
        except NumericalError as error:
            raise NumericalError(diagnose() or str(error)) from None

    token = after(prompt[n_cached:], progress, is_last=n_most <= 1)
    first = now = time.perf_counter()
    conversation.keep_prompt()
    progress(len(prompt), len(prompt))

    def piece(shown: str, token: int | None, reason: str | None, n: int) -> Piece:
        return Piece(
            text=shown,
            token=token,
            finish_reason=reason,
            prompt_tokens=len(prompt),
            cached_tokens=n_cached,
            cache_miss=miss,
            generated_tokens=n,
            first_token_s=first - start,
            tokens_per_s=(n - 1) / (now - first) if n > 1 else 0.0,
            logprob=logprobs[0] if logprobs and n else None,
            top_logprobs=logprobs[1] if logprobs and n and options.top_logprobs else None,
        )

    if n_most <= 0:
        yield piece("", None, "length", 0)
        return
    for n in itertools.count(1):
        now = time.perf_counter()
        text.append(token)
        sampler.append(token)
        if grammar:
            grammar.accept(token)
        ended = token in ends or (grammar is not None and grammar.finished)
        shown, stopped = stops.push(detokenizer.push(token))
        if not stopped and (ended or n == n_most):
            tail, stopped = stops.push(detokenizer.finish())
            shown += tail if stopped else tail + stops.finish()
        if stopped or ended:
            yield piece(shown, token, "stop", n)
            return
        yield piece(shown, token, "length" if n == n_most else None, n)
        if n == n_most:
            return
        if len(text) > n_ctx:
            text[:] = _shifted(text, options.n_sinks)
            conversation.rewind(0)
        elif not options.use_cache:
            conversation.rewind(0)
        forced = grammar.forced() if grammar and not options.logprobs else None
        token = after(text[len(conversation.tokens) :], is_last=n + 1 == n_most) if forced is None else forced


def _shifted(text: Sequence[int], n_sinks: int) -> list[int]:
    """The first n_sinks tokens and the newer half of the others: what a full context goes on with.

    The first ones stay because attention leans on them whatever they say (arXiv 2309.17453).
    """
    n_newer = (len(text) - n_sinks) // 2
    return [*text[:n_sinks], *text[len(text) - n_newer :]]
