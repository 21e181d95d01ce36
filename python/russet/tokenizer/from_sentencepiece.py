"""A vocabulary in a bare tokenizer.model, run by the sentencepiece library.

The library neither finds special tokens in a text nor shows them in a decoded one. Here those that
tokenizer_config.json declares are found first, and what lies between them is the library's; without such a
file a text is all the library's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from russet.errors import TokenizerError
from russet.tokenizer.detokenizer import GroupStream, Stream, find_anchor
from russet.tokenizer.files import AddedToken, TokenizerFiles
from russet.tokenizer.from_json import byte_of

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# ModelProto.normalizer_spec (field 3) with add_dummy_prefix (field 3) = false. A message that occurs twice in
# protobuf's encoding is merged, so these bytes behind a model switch its dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class TokenizerSentencePiece:
    def __init__(self, path: Path, files: TokenizerFiles) -> None:
        self._path = path
        self._library = library = _load(path)
        self._n_pieces = library.get_piece_size()

        added = dict(files.added)
        for text in files.special:
            if (id := self._piece_id(text)) is not None:
                added.setdefault(id, AddedToken(content=text, special=True))
        self._ids = {token.content: id for id, token in added.items()}
        control = {id: library.id_to_piece(id) for id in range(self._n_pieces) if library.is_control(id)}
        self._shown = control | {id: token.content for id, token in added.items()}
        self.special_ids = frozenset(control) | {
            id for id, token in added.items() if token.special or token.content in files.special
        }
        self.vocab_size = len(self._shown.keys() | range(self._n_pieces))
        self.bos_id = self._end_id(files, "bos_token", library.bos_id())
        self.eos_id = self._end_id(files, "eos_token", library.eos_id())

        self._found = _pattern([] if files.split_special else [*added.values()])
        self._prefixed = files.add_prefix_space is not False
        self._legacy = files.legacy  # every stretch between special tokens is a text of its own
        self._bos = [self.bos_id] if self.bos_id is not None and files.add_bos is not False else []
        self._eos = [self.eos_id] if self.eos_id is not None and files.add_eos else []

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self._encode_with_added(text) if self._found else self._encode(text, at_start=True)
        return [*self._bos, *ids, *self._eos] if add_special_tokens else ids

    def _encode_with_added(self, text: str) -> list[int]:
        assert self._found
        ids = []
        done = 0
        for match in self._found.finditer(text):
            ids += self._encode(text[done : match.start()], at_start=done == 0)
            ids.append(self._ids[match[match.lastindex or 0]])
            done = match.end()
        return ids + self._encode(text[done:], at_start=done == 0)

    def _encode(self, text: str, at_start: bool) -> list[int]:
        prefixed = self._prefixed and (at_start or self._legacy)
        ids: list[int] = (self._library if prefixed else self._unprefixed).encode(text)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        if self._shown.keys().isdisjoint(ids) and max(ids, default=0) < self._n_pieces:
            return self._decode_run([*ids], at_start=True)
        parts: list[str] = []
        run: list[int] = []
        for id in ids:
            if id not in self._shown:
                if id < self._n_pieces:
                    run.append(id)
            elif not (skip_special_tokens and id in self.special_ids):
                parts += [self._decode_run(run, at_start=not parts), self._shown[id]]
                run = []
        return "".join([*parts, self._decode_run(run, at_start=not parts)])

    def _decode_run(self, run: list[int], at_start: bool) -> str:
        before = [] if at_start else self._anchor
        library = self._library if self._prefixed else self._unprefixed
        text: str = library.decode(before + run)
        return text[len(library.decode(before)) :]

    def token_to_id(self, token: str) -> int | None:
        return self._ids[token] if token in self._ids else self._piece_id(token)

    def id_to_token(self, id: int) -> str | None:
        if id in self._shown:
            return self._shown[id]
        return self._library.id_to_piece(id) if 0 <= id < self._n_pieces else None

    def token_bytes(self, id: int) -> bytes | None:
        """What it adds to the UTF-8 of a text that has begun."""
        if self._is_byte(id):
            return byte_of(self._library.id_to_piece(id))
        n_before = len(self._decode_all(self._anchor))
        return self._decode_all([*self._anchor, id])[n_before:].encode()

    def stream(self) -> Stream:
        return GroupStream(self._decode_all, self._is_byte, self._anchor)

    def _decode_all(self, ids: Sequence[int]) -> str:
        return self.decode(ids, skip_special_tokens=False)

    def _is_byte(self, id: int) -> bool:
        return id < self._n_pieces and self._library.is_byte(id)

    def _end_id(self, files: TokenizerFiles, name: str, own: int) -> int | None:
        """The id of a token that tokenizer_config.json names, else the model's own, -1 where it has none."""
        token = files.names.get(name, self._library.id_to_piece(own) if own >= 0 else None)
        return None if token is None else self.token_to_id(token)

    def _piece_id(self, piece: str) -> int | None:
        """The library answers with the unknown token's id for a piece it does not have."""
        id = self._library.piece_to_id(piece)
        return id if 0 <= id < self._n_pieces and self._library.id_to_piece(id) == piece else None

    @cached_property
    def _unprefixed(self) -> SentencePieceProcessor:
        """The same model, but a text gets no space put before it."""
        return _load(self._path, _NO_DUMMY_PREFIX)

    @cached_property
    def _anchor(self) -> list[int]:
        plain = (id for id in range(self._n_pieces) if id not in self._shown)
        return find_anchor(self._library.decode, plain)


def _load(path: Path, more: bytes = b"") -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(path.read_bytes() + more)
    except (OSError, RuntimeError) as cause:
        raise TokenizerError(f"{path}: not a SentencePiece model ({cause}); download it again") from cause
    return library


def _pattern(added: list[AddedToken]) -> re.Pattern[str] | None:
    """Finds the longest added token at each place; the token alone is the one group that matches."""

    def one(token: AddedToken) -> str:
        text = re.escape(token.content)
        if token.single_word:
            text = rf"(?<!\w){text}(?!\w)"
        return (r"\s*" if token.lstrip else "") + f"({text})" + (r"\s*" if token.rstrip else "")

    tokens = sorted((token for token in added if token.content), key=lambda token: -len(token.content))
    return re.compile("|".join(map(one, tokens))) if tokens else None
