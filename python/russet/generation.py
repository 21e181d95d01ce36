"""Generation: prompt ids to a stream of pieces. Files, names and templates are model.py's business."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from russet import _core
from russet.backends import Backend, Interrupt, Session
from russet.config import Config
from russet.errors import NumericalError, UsageError
from russet.grammar import Grammar
from russet.limits import Ended, Limits
from russet.options import GenerateOptions
from russet.prefix_cache import PrefixCache, frequencies, is_long
from russet.speculation import Speculation
from russet.stop_strings import StopStrings
from russet.thinking import Thinking
from russet.tokenizer import Tokenizer

#: Prompt tokens computed at once: enough for the matrix products to run at full speed, few enough for the activations
#: to stay small and for a GPU, which does not leave off half way, to heed Ctrl-C, a timeout and cancel soon.
CHUNK_TOKENS = 512

#: Called between chunks of a prompt with (tokens done, tokens in all); what it raises ends the generation.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One generated token and the text it made certain; the texts of all pieces join to the whole text."""

    text: str  #: may be empty: part of a character, or held back as the possible beginning of a stop string
    token: int | None  #: its id; None where max_tokens=0, a full context, timeout or cancel left none to generate
    #: None until the last piece: "stop" (end of text or grammar, stop string or token), "length" (max_tokens, a full
    #: context), "timeout" or "cancelled"
    finish_reason: str | None
    prompt_tokens: int  #: tokens of the prompt
    cached_tokens: int  #: of these, how many were in the cache already
    cache_miss: str | None  #: why not all but the last were; None where they were
    generated_tokens: int  #: tokens generated so far
    first_token_s: float  #: seconds from the call to the first token, or to the end where none came
    tokens_per_s: float  #: speed since the first token; 0 before the second
    thought: str = ""  #: what it made certain of the thoughts before the answer, which are no part of any text
    #: where asked for, natural-log probability of the token in the model's own distribution, before any sampling option
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None  #: likewise of the likeliest tokens, (id, logprob), falling
    from_draft: bool = False  #: it had been drafted, and was computed together with the one before
    drafted_tokens: int = 0  #: drafted so far, see options.speculate
    accepted_tokens: int = 0  #: of these, how many are in the text


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


class Shown(NamedTuple):
    """What is certain now of a reply and was not before."""

    text: str
    thought: str
    stopped: bool  #: it ends here, before a stop string

    def then(self, more: Shown) -> Shown:
        return Shown(self.text + more.text, self.thought + more.thought, more.stopped)


_NOTHING = Shown("", "", False)


class ReplyText:
    """What is shown of a reply: the text of its tokens, thoughts apart, up to a stop string."""

    def __init__(self, detokenizer: TextStream, thinking: Thinking | None, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._thinking = thinking
        self._stops = StopStrings(stop)

    def push(self, token: int) -> Shown:
        return self._next(self._detokenizer.push(token), is_last=False)

    def finish(self) -> Shown:
        """What was still held back, when no more will come."""
        return self._next(self._detokenizer.finish(), is_last=True)

    def _next(self, text: str, *, is_last: bool) -> Shown:
        thought = ""
        if self._thinking:
            parts = [self._thinking.push(text), *([self._thinking.finish()] if is_last else [])]
            thought, text = ("".join(part) for part in zip(*parts, strict=True))
        text, stopped = self._stops.push(text)
        if is_last and not stopped:
            text += self._stops.finish()
        return Shown(text, thought, stopped)


class Conversation:
    """A session and the tokens in it, behind which the session may hold drafted ones.

    known: what the session holds already: these tokens, of a text that is to be as long as text_length
    texts: where keep() puts it; by default nowhere
    interrupt: called now and then while it computes; what it raises leaves the tokens that were computed by then
    """

    def __init__(
        self,
        session: Session,
        config: Config,
        *,
        known: Sequence[int] = (),
        text_length: int = 0,
        texts: PrefixCache | None = None,
        interrupt: Interrupt = lambda: None,
    ) -> None:
        self.session = session
        self.tokens = list(known)
        self._ropes = config.ropes
        self._has_windows = any(config.layer_window)
        self._text_length = text_length  # that the keys are rotated for
        self._texts = texts
        self.interrupt = interrupt
        self._ahead: deque[tuple[int, np.ndarray[Any, Any]]] = deque()  # drafted tokens, and the logits after each

    def append(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        wanted: _core.Wanted | None = None,
        progress: Progress = lambda done, total: None,
    ) -> np.ndarray[Any, Any]:
        """Logits of the last token, or of all. wanted: see Session.forward."""
        if not all_logits and self._ahead and [token for token, _ in self._ahead] == list(tokens):
            return [self.append_foreseen() for _ in tokens][-1]
        self._forget_draft()
        length = len(self.tokens) + len(tokens)
        if self._outgrows_rope(length):
            # The text has outgrown the frequencies its keys were stored with: compute it anew, as transformers does.
            tokens = [*self.tokens, *tokens]
            self.rewind(0)
        self._text_length = max(self._text_length, length)
        rows = []
        for begin in range(0, len(tokens), CHUNK_TOKENS):
            progress(len(self.tokens), length)
            self.interrupt()
            chunk = tokens[begin : begin + CHUNK_TOKENS]
            rows.append(
                self.session.forward(
                    chunk, all_logits=all_logits, text_length=length, interrupt=self.interrupt, wanted=wanted
                )
            )
            self.tokens.extend(chunk)
            if self._has_windows and len(self.tokens) < length:
                self.keep_prompt()  # what comes next makes windows give back what a text that leaves here would see
        return np.concatenate(rows) if all_logits else rows[-1]

    def append_greedy(self, token: int, *, is_last: bool = False) -> int:
        """Append a token; the likeliest one after it. See Session.append_greedy()."""
        self._forget_draft()
        if self._outgrows_rope(len(self.tokens) + 1):
            return _core.Sampler().sample(self.append([token]))
        likeliest = self.session.append_greedy(token, is_last=is_last)
        self._appended(token)
        return likeliest

    def append_with_draft(self, token: int, draft: Sequence[int]) -> np.ndarray[Any, Any]:
        """Append a token; the logits after it. Those after the draft are computed along, for append_foreseen()."""
        self._forget_draft()
        rows = self.session.forward([token, *draft], all_logits=True)
        self._ahead.extend(zip(draft, rows[1:], strict=True))
        self._appended(token)
        return rows[:1]

    def append_foreseen(self) -> np.ndarray[Any, Any]:
        """Append the first token of what is left of the draft; the logits after it."""
        token, logits = self._ahead.popleft()
        self._appended(token)
        return logits

    def foresees(self, token: int) -> bool:
        """Whether the draft goes on with this token."""
        return bool(self._ahead) and self._ahead[0][0] == token

    def may_look_ahead(self, n_tokens: int) -> bool:
        """Whether the session can take one token more that makes n_tokens, and nothing has to be computed anew."""
        fits = self.session.n_tokens + 1 == n_tokens <= self.session.n_ctx
        return fits and not self._outgrows_rope(n_tokens)

    def n_draftable(self, n: int) -> int:
        """How many of n tokens can be computed along with the next one, and be what they would be without it."""
        n = min(n, self.session.n_ctx - len(self.tokens) - 1)
        length = len(self.tokens) + 1 + n
        same_frequencies = not self._outgrows_rope(length) and frequencies(self._ropes, length) is not None
        return n if n > 0 and same_frequencies else 0

    def rewind(self, n_tokens: int) -> None:
        self._ahead.clear()
        self.session.rewind(n_tokens)
        del self.tokens[n_tokens:]
        if n_tokens == 0:
            self._text_length = 0

    def fork(self, logits: np.ndarray[Any, Any] | None = None) -> Conversation:
        """Another that goes on from here; with the last token's logits, one that is about to append that token."""
        self._forget_draft()
        other = copy.copy(self)
        other.session = self.session.fork(len(self.tokens))
        other.tokens = list(self.tokens)
        other._ahead = deque()
        if logits is not None:
            other._ahead.append((other.tokens.pop(), logits))
        return other

    def keep(self) -> None:
        """For the texts that begin alike."""
        self._forget_draft()
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

    def _appended(self, token: int) -> None:
        self.tokens.append(token)
        self._text_length = max(self._text_length, len(self.tokens))

    def _forget_draft(self) -> None:
        if self._ahead:
            self.rewind(len(self.tokens))

    def _outgrows_rope(self, length: int) -> bool:
        return bool(self.tokens) and is_long(self._ropes, self._text_length) != is_long(self._ropes, length)


def look_ahead(backend: Backend, nexts: Sequence[tuple[Conversation, int]]) -> None:
    """Compute the token that each conversation is about to append, all in one pass over the weights.

    A pass is of so few tokens that each has the bits it would have alone. Raises NotEnoughMemory.
    """
    for begin in range(0, len(nexts), backend.few_tokens):
        few = nexts[begin : begin + backend.few_tokens]
        rows = backend.forward([(conversation.session, [token]) for conversation, token in few])
        for i, (conversation, token) in enumerate(few):
            conversation._ahead.append((token, rows[i : i + 1]))


def generate(
    conversation: Conversation,
    prompt: Sequence[int],
    options: GenerateOptions,
    *,
    sampler: _core.Sampler,
    grammar: Grammar | None = None,
    miss: str | None,
    reply: ReplyText,
    limits: Limits,
    eos_token_ids: Sequence[int],
    diagnose: Callable[[], str | None],
    speculation: Speculation | None = None,
    progress: Progress = lambda done, total: None,
) -> Generator[Piece]:
    """Compute what the conversation lacks of the prompt, then token by token; one piece each.

    grammar: what the text is to follow; tokens that it forces are computed together, with the next one that is not
    miss: why it lacks more than the last token
    limits: heeded before every token, and by the conversation while it computes
    diagnose: says which weight is damaged, if one is
    speculation: of this conversation; it drafts what may come next
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
    ends = {*options.stop_token_ids, *(() if options.ignore_eos else eos_token_ids)}
    text = list(prompt)
    greedy = options.takes_likeliest and options.use_cache
    logprobs: tuple[float, list[tuple[int, float]]] | None = None  # of the last token
    over: str | None = None  # why there is no next token

    def after(tokens: Sequence[int], progress: Progress = lambda done, total: None, *, n_left: int) -> int | None:
        """Append the text's last tokens; the one chosen to follow them, first of n_left. None: a limit is reached."""
        nonlocal logprobs, over
        allowed = grammar.allowed() if grammar else None
        try:
            limits.check()
            logits = speculation.append(text, sampler, n_left) if speculation and len(tokens) == 1 else None
            if logits is None:
                if greedy and len(tokens) == 1:
                    return conversation.append_greedy(tokens[0], is_last=n_left <= 1)
                wanted = None if options.logprobs else sampler.wanted(allowed)
                logits = conversation.append(tokens, wanted=wanted, progress=progress)
            token = sampler.sample(logits, allowed)
            if options.logprobs:
                logprobs = _core.logprobs(logits, token, options.top_logprobs)
            return token
        except Ended as ended:
            over = ended.reason
            return None
        except NumericalError as error:
            raise NumericalError(diagnose() or str(error)) from None

    token = after(prompt[n_cached:], progress, n_left=n_most)
    first = now = time.perf_counter()
    if token is not None:
        conversation.keep_prompt()
        progress(len(prompt), len(prompt))

    def piece(shown: Shown, token: int | None, reason: str | None, n: int) -> Piece:
        return Piece(
            text=shown.text,
            thought=shown.thought,
            token=token,
            finish_reason=reason,
            prompt_tokens=len(prompt),
            cached_tokens=n_cached,
            cache_miss=miss,
            generated_tokens=n,
            first_token_s=first - start,
            tokens_per_s=(n - 1) / (now - first) if n > 1 else 0.0,
            logprob=logprobs[0] if logprobs and token is not None else None,
            top_logprobs=logprobs[1] if logprobs and token is not None and options.top_logprobs else None,
            from_draft=from_draft,
            drafted_tokens=speculation.n_drafted if speculation else 0,
            accepted_tokens=speculation.n_accepted if speculation else 0,
        )

    from_draft = False
    if n_most <= 0:
        yield piece(_NOTHING, None, over or "length", 0)
        return
    for n in itertools.count(1):
        if token is None:
            shown = reply.finish()
            yield piece(shown, None, "stop" if shown.stopped else over, n - 1)
            return
        now = time.perf_counter()
        from_draft = speculation is not None and speculation.chosen(token)
        text.append(token)
        sampler.append(token)
        if grammar:
            grammar.accept(token)
        ended = token in ends or (grammar is not None and grammar.finished)
        shown = _NOTHING if token in ends else reply.push(token)
        if not shown.stopped and (ended or n == n_most):
            shown = shown.then(reply.finish())
        if shown.stopped or ended:
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
        token = after(text[len(conversation.tokens) :], n_left=n_most - n) if forced is None else forced


def _shifted(text: Sequence[int], n_sinks: int) -> list[int]:
    """The first n_sinks tokens and the newer half of the others: what a full context goes on with.

    The first ones stay because attention leans on them whatever they say (arXiv 2309.17453).
    """
    n_newer = (len(text) - n_sinks) // 2
    return [*text[:n_sinks], *text[len(text) - n_newer :]]
