"""A vocabulary in tokenizer.json, run by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from russet.errors import TokenizerError
from russet.tokenizer.clean_up import CleanUpStream, clean_up
from russet.tokenizer.detokenizer import ByteStream, GroupStream, Stream, WholeStream, find_anchor
from russet.tokenizer.files import TokenizerFiles


class TokenizerJson:
    def __init__(self, path: Path, files: TokenizerFiles) -> None:
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises no narrower type
            raise TokenizerError(f"{path}: not a tokenizer.json ({cause}); download it again") from cause
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = files.split_special
        self._library = library
        try:
            self._add_tokens(files)
        except Exception as cause:
            raise TokenizerError(f"{path}: cannot hold the tokens of tokenizer_config.json: {cause}") from cause

        # Once special, always special to the library, whatever the token itself says after it was added again.
        self.special_ids = frozenset(
            id
            for id, token in library.get_added_tokens_decoder().items()
            if token.special or library.decode([id]) != library.decode([id], skip_special_tokens=False)
        )
        self.vocab_size = library.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._named_id(files, "bos_token", files.bos_id)
        self.eos_id = self._named_id(files, "eos_token", *files.eos_ids[:1])
        self._clean_up = files.clean_up and type(library.model).__name__ != "BPE"  # BPE keeps its spaces itself
        self._decoder: Mapping[str, Any] | None = (
            json.loads(library.decoder.__getstate__()) if library.decoder else None
        )

    def _add_tokens(self, files: TokenizerFiles) -> None:
        """tokenizer_config.json may know more tokens, and has the last word on their flags."""
        from tokenizers import AddedToken

        tokens = [
            AddedToken(
                token.content,
                special=token.special or token.content in files.special,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=not token.special if token.normalized is None else token.normalized,
            )
            for _, token in sorted(files.added.items())
        ]
        known = {token.content for token in self._library.get_added_tokens_decoder().values()}
        known |= {token.content for token in tokens}
        tokens += [AddedToken(text, special=True, normalized=False) for text in files.special if text not in known]
        self._library.add_tokens(tokens)

    def _named_id(self, files: TokenizerFiles, name: str, model_id: int | None = None) -> int | None:
        """tokenizer.json names no tokens; config.json is asked where there is no tokenizer_config.json."""
        if files.silent:
            return model_id
        token = files.names.get(name)
        return None if token is None else self.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text = self._library.decode(ids, skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self._clean_up else text

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        return self._library.id_to_token(id)

    def token_bytes(self, id: int) -> bytes | None:
        """What it adds to the UTF-8 of a text that has begun; None where that depends on its neighbours."""
        if self._clean_up:
            return None
        if self._decoder is not None and self._decoder["type"] == "ByteLevel":
            return byte_level_bytes(self.id_to_token(id) or "")
        if not _is_groupwise(self._decoder):
            return None
        if self._is_byte(id):
            return byte_of(self.id_to_token(id) or "")
        return self._decode([*self._anchor, id])[len(self._decode(self._anchor)) :].encode()

    def stream(self) -> Stream:
        stream: Stream
        if self._decoder is not None and self._decoder["type"] == "ByteLevel":
            stream = ByteStream(lambda id: byte_level_bytes(self.id_to_token(id) or ""))
        elif _is_groupwise(self._decoder):
            stream = GroupStream(self._decode, self._is_byte, self._anchor)
        else:
            stream = WholeStream(self._decode)
        return CleanUpStream(stream) if self._clean_up else stream

    def _decode(self, ids: Sequence[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=False)

    @cached_property
    def _anchor(self) -> list[int]:
        plain = (id for id in range(self.vocab_size) if id not in self.special_ids)
        return find_anchor(self._decode, plain)

    def _is_byte(self, id: int) -> bool:
        token = self.id_to_token(id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def byte_of(token: str) -> bytes:
    """The byte that <0x0A> and its kin stand for."""
    return bytes([int(token[3:5], 16)])


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token in the byte-level alphabet; one with other characters is added, and is text."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def _byte_level_alphabet() -> dict[str, int]:
    """Printable Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = sorted({*range(256)} - printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()


def _is_groupwise(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a decoder keeps GroupStream's promise. No decoder does: it joins tokens by spaces."""
    if decoder is None:
        return True
    fused = False
    for step in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif not fused:
            if kind not in {"Replace", "ByteFallback", "Strip", "Metaspace", "WordPiece", "BPEDecoder"}:
                return False
        elif not (
            (kind == "Strip" and step["stop"] == 0)
            or (kind == "Replace" and len(step["pattern"].get("String", "")) == 1)
        ):
            return False
    return True
