"""Perplexity of a text under a model, and how far two settings of a model are apart.

>>> measured = perplexity(model, Path("book.txt").read_text(), positions=500)
>>> print(measured.perplexity, measured.perplexity_error)
>>> lost = compare(int4, bf16, text, positions=500)
>>> print(lost.kl_mean, lost.top1_agreement)

Which tokens are scored, and what each is given: windows of `n_ctx` tokens begin every `stride` tokens, and each scores
the tokens that none before it has. So the first window scores all its tokens but the first, which nothing comes before,
each given all tokens before it; every later window scores its last `stride` tokens, each given at least the
n_ctx - stride before it. This is the sliding window of transformers' documentation; with stride = n_ctx the windows are
side by side, and the first token of each is not scored. Standard errors take the scored tokens as independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from russet.errors import ContextFull, NumericalError, UsageError
from russet.model import Model

_Array = np.ndarray[Any, Any]

#: Tokens whose logits are held at once: with a vocabulary of 150,000 they take 80 MB in float64.
_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How well a model foresees a text. Errors are standard errors."""

    n_tokens: int  #: of the text
    n_scored: int  #: of these, tokens whose probability was taken
    n_ctx: int  #: tokens of a window
    stride: int  #: tokens from a window to the next
    nats_per_token: float  #: mean of -log p(token | tokens before it)
    nats_per_token_error: float
    perplexity: float  #: exp(nats_per_token)
    perplexity_error: float
    bits_per_byte: float  #: of the scored tokens' text in UTF-8
    bits_per_byte_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one setting of a model loses against another. Errors are standard errors."""

    model: Perplexity
    against: Perplexity
    relative_difference: float  #: perplexity of model / against - 1
    relative_difference_error: float  #: from the differences token by token, so far smaller than either's own
    kl_mean: float  #: nats, the mean over scored tokens of sum p_against (log p_against - log p_model)
    kl_mean_error: float
    kl_p99: float  #: 99 of 100 tokens are below it
    kl_max: float
    top1_agreement: float  #: share of tokens where both find the same one likeliest
    top1_agreement_error: float


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    n_ctx: int | None = None,
    stride: int | None = None,
    positions: int | None = None,
) -> Perplexity:
    """Score a text, or token ids; the module's docstring says which tokens are scored.

    n_ctx: tokens of a window; by default 512, or the model's context where that is smaller
    stride: tokens from a window to the next; by default half a window
    positions: score this many tokens from the text's beginning; by default all

    Raises UsageError on a text of fewer than three tokens and on values without meaning, ContextFull where n_ctx is
    more than the model was loaded with, NumericalError where the model computes NaN.
    """
    scored = _Scored([model], text, n_ctx, stride, positions)
    nats = [-_chosen(rows, ids) for ids, rows in _log_probs(model, scored)]
    return _summary(scored, np.concatenate(nats))


def compare(
    model: Model,
    against: Model,
    text: str | Sequence[int],
    *,
    n_ctx: int | None = None,
    stride: int | None = None,
    positions: int | None = None,
) -> Comparison:
    """Score a text by two models at once, token by token; options and errors are those of perplexity().

    Raises UsageError as well where the two have different vocabularies, or cut the text into different tokens.
    """
    if model.config.vocab_size != against.config.vocab_size:
        raise UsageError(
            f"compare: expected models of one vocabulary, got {model.config.vocab_size:,} and "
            f"{against.config.vocab_size:,} tokens"
        )
    if isinstance(text, str) and model.tokenizer.encode(text) != against.tokenizer.encode(text):
        raise UsageError("compare: the models' tokenizers cut the text into different tokens; pass token ids")
    scored = _Scored([model, against], text, n_ctx, stride, positions)
    columns: list[tuple[_Array, ...]] = []
    for (ids, p), (_, q) in zip(_log_probs(against, scored), _log_probs(model, scored), strict=True):
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        columns.append((-_chosen(q, ids), -_chosen(p, ids), kl, p.argmax(axis=1) == q.argmax(axis=1)))
    nats, nats_against, kl, agrees = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    kl = np.maximum(kl, 0)  # never negative but by rounding
    log_ratio, log_ratio_error = _mean(nats - nats_against)
    agreement = float(agrees.mean())
    return Comparison(
        model=_summary(scored, nats),
        against=_summary(scored, nats_against),
        relative_difference=math.expm1(log_ratio),
        relative_difference_error=math.exp(log_ratio) * log_ratio_error,
        kl_mean=_mean(kl)[0],
        kl_mean_error=_mean(kl)[1],
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1_agreement=agreement,
        top1_agreement_error=math.sqrt(agreement * (1 - agreement) / len(kl)),
    )


class _Scored:
    """Token ids, the windows over them, and what of them is scored."""

    def __init__(
        self,
        models: Sequence[Model],
        text: str | Sequence[int],
        n_ctx: int | None,
        stride: int | None,
        positions: int | None,
    ) -> None:
        self.tokenizer = models[0].tokenizer
        most = min(model.n_ctx for model in models)
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        self.n_ctx = min(512, most) if n_ctx is None else n_ctx
        self.stride = max(1, self.n_ctx // 2) if stride is None else stride
        if self.n_ctx < 2:
            raise UsageError(f"n_ctx: expected at least 2 tokens, got {self.n_ctx}")
        if self.n_ctx > most:
            raise ContextFull(f"windows of {self.n_ctx} tokens do not fit n_ctx={most}; load with a larger one")
        if not 1 <= self.stride <= self.n_ctx:
            raise UsageError(f"stride: expected 1 to n_ctx={self.n_ctx}, got {self.stride}")
        if positions is not None and positions < 2:
            raise UsageError(f"positions: expected at least 2, for an error to be known, got {positions}")
        self.n_tokens = len(ids)
        self.windows = list(_windows(len(ids), self.n_ctx, self.stride, positions))
        if sum(end - first for _, first, end in self.windows) < 2:
            raise UsageError(f"text: expected at least 3 tokens, the first of which is not scored, got {len(ids)}")
        self.ids = ids[: self.windows[-1][2]]

    def n_bytes(self) -> int:
        """Bytes of the scored tokens' text. A character that the end cuts may count for two more or less."""

        def size(begin: int, end: int) -> int:
            return len(self.tokenizer.decode(self.ids[begin:end], skip_special_tokens=True).encode())

        return sum(size(begin, end) - size(begin, first) for begin, first, end in self.windows)


def _windows(n_tokens: int, n_ctx: int, stride: int, positions: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): the tokens from `first` on are scored, given those from `begin` on."""
    left = n_tokens if positions is None else positions
    scored = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + n_ctx, n_tokens)
        first = max(scored, begin + 1)
        end = min(end, first + left)
        if first < end:
            yield begin, first, end
        left -= end - first
        scored = end
        if end == n_tokens or left <= 0:
            return


def _log_probs(model: Model, scored: _Scored) -> Iterator[tuple[list[int], _Array]]:
    """Scored ids and, for each, log p of every token in its place: float64 [n_ids, vocab_size]."""
    session = model.session()
    for begin, first, end in scored.windows:
        session.rewind(0)
        n = end - begin  # tokens of the window; what comes after a token is known from the row before
        if first - 1 > begin:
            session.forward(scored.ids[begin : first - 1], text_length=n)
        for at in range(first, end, _ROWS):
            ids = scored.ids[at : min(at + _ROWS, end)]
            rows = session.forward(scored.ids[at - 1 : at - 1 + len(ids)], all_logits=True, text_length=n)
            yield ids, _log_softmax(rows, at)


def _log_softmax(logits: _Array, first: int) -> _Array:
    """log p in float64; `first` is the position of the first row's token."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        at = first + int(finite.argmin())
        raise NumericalError(
            f"token {at} of the text: expected finite logits, got NaN or infinity; a weight is damaged: "
            "download the model again"
        )
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def _chosen(rows: _Array, ids: Sequence[int]) -> _Array:
    chosen: _Array = rows[np.arange(len(ids)), ids]
    return chosen


def _mean(values: _Array) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def _summary(scored: _Scored, nats: _Array) -> Perplexity:
    mean, error = _mean(nats)
    value = math.exp(mean) if mean < 700 else math.inf
    bits_per_nat_byte = len(nats) / math.log(2) / max(1, scored.n_bytes())
    return Perplexity(
        n_tokens=scored.n_tokens,
        n_scored=len(nats),
        n_ctx=scored.n_ctx,
        stride=scored.stride,
        nats_per_token=mean,
        nats_per_token_error=error,
        perplexity=value,
        perplexity_error=value * error,
        bits_per_byte=mean * bits_per_nat_byte,
        bits_per_byte_error=error * bits_per_nat_byte,
    )
