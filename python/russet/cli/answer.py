"""A model's answer: taken piece by piece, shown as it comes, and its speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import russet
from russet.cli.terminal import murmur, status
from russet.model import Prompt

if TYPE_CHECKING:
    from russet.options import GenerateKeywords


@dataclass
class Answer:
    """What came of it."""

    text: str = ""
    thought: str = ""  #: before the text, and no part of it
    last: russet.Piece | None = None  #: None: Ctrl-C came before the first token
    interrupted: bool = False

    @property
    def finish_reason(self) -> str | None:
        if self.interrupted:
            return "interrupted"
        return self.last.finish_reason if self.last else None


def take(model: russet.Model, prompt: Prompt, options: GenerateKeywords, *, show: bool) -> Answer:
    """Take all pieces, and show their text as it comes, thoughts on stderr. Ctrl-C ends the answer early."""
    answer = Answer()
    try:
        with status("reading the prompt") as tell:

            def progress(done: int, total: int) -> None:
                tell(f"{done:,} of {total:,} tokens")

            pieces = model.stream(prompt, progress=progress, **options)
            piece = next(pieces, None)
        while piece is not None:
            if show:
                _show(piece, answer)
            answer.text += piece.text
            answer.thought += piece.thought
            answer.last = piece
            piece = next(pieces, None)
    except KeyboardInterrupt:
        answer.interrupted = True
    if show and answer.text and not answer.text.endswith("\n"):
        print(flush=True)
    elif show and answer.thought and not answer.text:
        murmur("\n")
    return answer


def _show(piece: russet.Piece, before: Answer) -> None:
    if piece.thought:
        murmur(piece.thought)
    if piece.text and not before.text and (before.thought or piece.thought):
        murmur("\n\n")
    print(piece.text, end="", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How much was computed, and how fast."""

    prompt_tokens: int
    cached_tokens: int  #: of the prompt, in the cache already
    cache_miss: str | None  #: why not all but its last token were
    generated_tokens: int
    first_token_s: float  #: seconds to the first token
    prompt_tokens_per_s: float  #: of those that were not in the cache; 0 where not all were computed
    tokens_per_s: float  #: after the first token
    gb_per_s: float  #: weights read at that speed, all of them for each token, a screened head too; 1 GB = 1e9 bytes
    drafted_tokens: int  #: see docs/speculation.md
    accepted_tokens: int  #: of these, in the text

    def __str__(self) -> str:
        why = f" ({self.cache_miss})" if self.cache_miss else ""
        drafted = f", {self.accepted_tokens} of {self.drafted_tokens} drafted accepted" if self.drafted_tokens else ""
        return (
            f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} of them cached{why}, "
            f"first token after {self.first_token_s:.3f} s ({self.prompt_tokens_per_s:.1f} tokens/s); "
            f"generated {self.generated_tokens} tokens{drafted}, "
            f"{self.tokens_per_s:.1f} tokens/s, {self.gb_per_s:.2f} GB/s"
        )


def statistics(model: russet.Model, last: russet.Piece) -> Statistics:
    """From the last piece of an answer."""
    read = last.generated_tokens > 0 or last.finish_reason == "length"  # else the prompt was not read to its end
    return Statistics(
        prompt_tokens=last.prompt_tokens,
        cached_tokens=last.cached_tokens,
        cache_miss=last.cache_miss,
        generated_tokens=last.generated_tokens,
        first_token_s=last.first_token_s,
        prompt_tokens_per_s=(last.prompt_tokens - last.cached_tokens) / last.first_token_s if read else 0.0,
        tokens_per_s=last.tokens_per_s,
        gb_per_s=model.weight_bytes * last.tokens_per_s / 1e9,
        drafted_tokens=last.drafted_tokens,
        accepted_tokens=last.accepted_tokens,
    )
