"""Grammars: JSON schemas, regular expressions, choices and Lark grammars as the tokens that may come next.

llguidance does the parsing, over the bytes of the vocabulary's tokens; what it is asked and told is all here.
"""

from __future__ import annotations

import json
from copy import copy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, proxy

import numpy as np

from russet.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from russet.options import GenerateOptions
    from russet.tokenizer import Tokenizer

#: JSON as json.dumps() writes it. Free white space is where small models lose themselves, and few tokens are forced.
_JSON: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class Grammar:
    """One text's way through a grammar, from its first token to its last."""

    def __init__(self, name: str, matcher: LLMatcher) -> None:
        self._name = name  # of the option that asked for it
        self._matcher = matcher
        self._forced: list[int] = []
        self._check()

    def allowed(self) -> np.ndarray[Any, Any]:
        """The tokens that may come next: a bit each, in uint32 words of 32 tokens, lowest bit first.

        Where the text may end here, the tokens that end it are among them. Raises UsageError where the grammar is too
        large to follow.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return mask

    def copy(self) -> Grammar:
        """Another text that has come as far."""
        other = copy(self)
        other._matcher, other._forced = self._matcher.deep_copy(), list(self._forced)
        return other

    def forced(self) -> int | None:
        """The token that has to come next, whatever the model says; None where there is a choice."""
        if not self._forced:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced[0] if self._forced else None

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed. Raises UsageError on another."""
        self._forced = self._forced[1:]
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the text is complete, and nothing can follow."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"{self._name}: {' '.join(self._matcher.get_error().split()):.400}")


def make_grammar(options: GenerateOptions, tokenizer: Tokenizer) -> Grammar | None:
    """What the options hold a text to; None where it is free.

    Raises UsageError where llguidance is missing or finds a fault, TokenizerError where tokens have no bytes of their
    own.
    """
    name = options.follows
    if name is None:
        return None
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        raise UsageError(f'{name}: llguidance is not installed; pip install "russet[grammar]"') from None
    text: Any = getattr(options, name)
    if name == "json_schema":
        grammar = LLMatcher.grammar_from_json_schema(text, defaults=_JSON)
    elif name == "regex":
        grammar = LLMatcher.grammar_from_regex(text)
    elif name == "choices":
        one_of = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in text)
        grammar = LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {one_of}")
    else:
        grammar = LLMatcher.grammar_from_lark(text)
    limits = LLParserLimits(verbose_errors=False)
    return Grammar(name, LLMatcher(_known(tokenizer), grammar, log_level=0, limits=limits))


_known_tokenizers: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()


def _known(tokenizer: Tokenizer) -> LLTokenizer:
    """llguidance's view of a tokenizer; remembered, as it looks at the whole vocabulary."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if tokenizer not in _known_tokenizers:
        tokens = _Tokens(tokenizer)
        _known_tokenizers[tokenizer] = LLTokenizer(TokenizerWrapper(tokens), eos_token=tokens.eos_token_ids)
    return _known_tokenizers[tokenizer]


class _Tokens:
    """A vocabulary as llguidance's TokenizerWrapper asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = proxy(tokenizer)  # what is remembered by a tokenizer must not keep it
        self.tokens = tokenizer.token_bytes()
        self.special_token_ids = sorted(tokenizer.special_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_ids = [*tokenizer.eos_token_ids]
        if not self.eos_token_ids:  # llguidance needs one: an id that no model gives
            self.eos_token_ids = [len(self.tokens)]
            self.special_token_ids.append(len(self.tokens))
            self.tokens.append(b"<end>")
        self.eos_token_id = self.eos_token_ids[0]

    def __call__(self, text: str) -> list[int]:
        """The ids of a text in the middle of another: without the space that SentencePiece puts before a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if self._spell(ids) != text.encode():
            before: list[int] = self._tokenizer.encode("\n", add_special_tokens=False)
            ids = self._tokenizer.encode("\n" + text, add_special_tokens=False)[len(before) :]
        return ids if self._spell(ids) == text.encode() else []

    def _spell(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens[id] for id in ids)
