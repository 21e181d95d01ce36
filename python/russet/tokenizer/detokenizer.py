"""Text from a growing list of ids.

The pieces always join to exactly what decoding all ids at once gives, and none ends inside a character. A
decoder looks beyond one token in few ways, and each has its stream here:

  ByteStream   byte-level BPE: tokens are bytes, a character may lie across any number of them
  GroupStream  SentencePiece and its kin: only the first token and runs of <0x..> tokens need their neighbours
  WholeStream  a decoder of no known shape: the text comes at the end

Each does a bounded amount of work per token, however many came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

Decode = Callable[[Sequence[int]], str]


class Stream(Protocol):
    def push(self, id: int) -> str:
        """The text that is certain now and was not before."""

    def finish(self) -> str:
        """The rest; the stream is then as new."""


class Detokenizer:
    """The text of one sequence, id by id: see Tokenizer.stream_decoder()."""

    def __init__(self, stream: Stream, has_text: Callable[[int], bool]) -> None:
        self._stream = stream
        self._has_text = has_text

    def push(self, id: int) -> str:
        """The text this id makes certain: often that of the id, sometimes none, sometimes that of several.

        Raises UsageError for an id the tokenizer does not have.
        """
        return self._stream.push(id) if self._has_text(id) else ""

    def finish(self) -> str:
        """The text still held back, such as the start of a character that never came; then starts anew."""
        return self._stream.finish()


class ByteStream:
    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._utf8.decode(self._token_bytes(id))

    def finish(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class GroupStream:
    """Decodes ids in groups that no neighbour can change, each behind ids that stand for all before.

    A run of byte tokens is one group: the next may complete a character, or spoil the whole run.
    """

    def __init__(self, decode: Decode, is_byte: Callable[[int], bool], anchor: list[int]) -> None:
        self._decode = decode
        self._is_byte = is_byte
        self._anchor = anchor  # what follows visible text is not the start of a text
        self._begin([])

    def _begin(self, before: list[int]) -> None:
        self._before = before
        self._held: list[int] = []
        self._n_patient = 0

    def push(self, id: int) -> str:
        self._held.append(id)
        if self._is_byte(id) or len(self._held) < self._n_patient:
            return ""
        text = self._text()
        if text or self._before:
            self._begin([*self._anchor, id])
        else:  # Still at the start, where spaces may vanish: look again when there is twice as much.
            self._n_patient = 2 * len(self._held)
        return text

    def finish(self) -> str:
        text = self._text()
        self._begin([])
        return text

    def _text(self) -> str:
        if not self._held:
            return ""
        n_known = len(self._decode(self._before)) if self._before else 0
        return self._decode(self._before + self._held)[n_known:]


class WholeStream:
    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []

    def push(self, id: int) -> str:
        self._ids.append(id)
        return ""

    def finish(self) -> str:
        text = self._decode(self._ids) if self._ids else ""
        self._ids = []
        return text


def find_anchor(decode: Decode, ids: Iterable[int]) -> list[int]:
    """The first id with visible text, for GroupStream; none in a vocabulary without any."""
    for id in ids:
        text = decode([id])
        if text.strip() and "\N{REPLACEMENT CHARACTER}" not in text:
            return [id]
    return []
