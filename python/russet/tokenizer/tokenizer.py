"""Text to token ids and back, chat conversations included."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, Literal, Protocol, overload

from russet.errors import TokenizerError, UsageError
from russet.thinking import has_switch, tags_of
from russet.tokenizer.chat_template import Message as Message
from russet.tokenizer.chat_template import choose_template, render_chat
from russet.tokenizer.detokenizer import Detokenizer, Stream
from russet.tokenizer.encode_cache import CacheInfo, EncodeCache
from russet.tokenizer.files import TokenizerFiles, read_tokenizer_files
from russet.tokenizer.from_json import TokenizerJson
from russet.tokenizer.from_sentencepiece import TokenizerSentencePiece
from russet.tool_calls import format_of

#: Options of Hugging Face's apply_chat_template that would give something else than a plain list of ids.
_REFUSED = {
    "max_length", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "sanitize_control_tokens", "tokenizer_kwargs", "truncation",
}  # fmt: skip


class Vocabulary(Protocol):
    """What a library knows: from_json and from_sentencepiece are two ways to be this."""

    vocab_size: int
    special_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def token_bytes(self, id: int) -> bytes | None: ...
    def stream(self) -> Stream: ...


class Tokenizer:
    """The tokenizer of a model folder, with Hugging Face's meaning throughout. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary, files: TokenizerFiles, *, cache_capacity: int = 10_000) -> None:
        self._vocabulary = vocabulary
        self._files = files
        self._cache = EncodeCache(cache_capacity)
        self._n_ids = max(vocabulary.vocab_size, files.n_model_ids)
        self.vocab_size = vocabulary.vocab_size  #: tokens, added ones included
        self.bos_token_id = vocabulary.bos_id
        self.eos_token_id = vocabulary.eos_id
        self.special_token_ids = vocabulary.special_ids  #: those that skip_special_tokens leaves out
        own = () if vocabulary.eos_id is None else (vocabulary.eos_id,)
        self.eos_token_ids: tuple[int, ...] = files.eos_ids or own  #: all that end a generation

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_capacity: int = 10_000,
    ) -> Tokenizer:
        """Read a model folder, a tokenizer.json or *.model alone, or a hub id after downloading it.

        cache_capacity: texts whose ids are remembered, 0 for none

        Raises TokenizerError where there is no tokenizer or it cannot be read.
        """
        folder = Path(path).expanduser()
        if not folder.exists():
            from russet.hub import resolve

            folder = resolve(path, revision=revision, local_files_only=local_files_only)
        files = read_tokenizer_files(folder) if folder.is_dir() else TokenizerFiles()
        return cls(_open_vocabulary(folder, files), files, cache_capacity=cache_capacity)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; add_special_tokens puts BOS and EOS where the model was trained with them.

        Raises UsageError for what is not text.
        """
        if not isinstance(text, str):
            raise UsageError(f"encode: expected a str, got {type(text).__name__}; decode bytes as UTF-8 first")
        key = (text, bool(add_special_tokens))
        if not self._cache.capacity:
            return self._encode(*key)
        ids = self._cache.get(key)
        if ids is None:
            ids = self._encode(*key)
            self._cache.put(key, ids)
        return ids

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise UsageError(
                f"encode: expected Unicode text, got the lone surrogate {text[cause.start]!r} at character "
                f"{cause.start}; read the text with errors='replace'"
            ) from cause
        return self._vocabulary.encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids. Ids that a model can give but that have no token are no text.

        Raises UsageError for what is not an id of this tokenizer.
        """
        try:
            checked = [*map(index, ids)]
        except TypeError as cause:
            raise UsageError(f"decode: expected a sequence of integer ids: {cause}") from cause
        if not checked:
            return ""
        if not 0 <= min(checked) <= max(checked) < self._n_ids:
            for id in checked:
                self._checked(id)
        return self._vocabulary.decode(checked, skip_special_tokens)

    def stream_decoder(self, skip_special_tokens: bool = False, but: Iterable[int] = ()) -> Detokenizer:
        """Decodes id by id: the pieces join to exactly what decode() gives for all ids.

        but: special tokens that are not skipped
        """
        skipped = self._vocabulary.special_ids - frozenset(but) if skip_special_tokens else frozenset[int]()

        def has_text(id: int) -> bool:
            plain = self._checked(id)
            return plain not in skipped and self._vocabulary.id_to_token(plain) is not None

        return Detokenizer(self._vocabulary.stream(), has_text)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it; None where there is no such token."""
        return self._vocabulary.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary writes it, None for an id without one. Raises as decode() does."""
        return self._vocabulary.id_to_token(self._checked(id))

    def token_bytes(self) -> list[bytes]:
        """Of every id that a model can give, what it adds to the UTF-8 of a text that has begun; b"" without a token.

        Special tokens, see special_token_ids, are here as the vocabulary writes them. Raises TokenizerError where what
        a token adds depends on those around it.
        """
        found = []
        for id in range(self._n_ids):
            token = self._vocabulary.id_to_token(id)
            if token is not None and id in self.special_token_ids:
                added: bytes | None = token.encode()
            else:
                added = b"" if token is None else self._vocabulary.token_bytes(id)
            if added is None:
                raise TokenizerError(
                    "this tokenizer's text is not that of its tokens one by one: no grammar can be held"
                )
            found.append(added)
        return found

    @property
    def has_chat_template(self) -> bool:
        return bool(self._files.templates)

    @property
    def tool_format(self) -> str | None:
        """How its chat template has tool calls written: a name of tool_calls.FORMATS; None where it does not say."""
        templates = self._files.templates
        return format_of(templates.get("tool_use", templates.get("default", "")))

    @property
    def thinking_tags(self) -> tuple[str, str] | None:
        """What its chat template has around thoughts; None where it knows of none."""
        return tags_of(self._files.templates.get("default", ""))

    @property
    def thinking_ids(self) -> tuple[int, ...]:
        """Those of these tags that are tokens."""
        ids = (self.token_to_id(tag) for tag in self.thinking_tags or ())
        return tuple(id for id in ids if id is not None)

    @property
    def can_switch_thinking(self) -> bool:
        """Whether its chat template can be told to have thoughts, or to have none."""
        return has_switch(self._files.templates.get("default", ""))

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: Literal[True] = True,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **template_arguments: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        *,
        tokenize: Literal[False],
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **template_arguments: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **template_arguments: Any,
    ) -> list[int] | str:
        """A conversation as the prompt the model was trained on: its ids, or with tokenize=False its text.

        messages: {"role": ..., "content": ...} and whatever else the template knows, in order
        tools: JSON schemas of the functions the model may call
        add_generation_prompt: end with the start of the assistant's answer
        documents: {"title": ..., "text": ...} to answer from
        chat_template: a template's text, or the name of one of the model's; None takes the model's usual one
        continue_final_message: end inside the last message, for the model to go on with it; a str names the
            field to go on with, else content
        template_arguments: the template's own switches, such as enable_thinking

        Raises TemplateError where there is no template or it fails, UsageError for input without meaning.
        """
        for name in sorted(_REFUSED & template_arguments.keys()):
            if template_arguments.pop(name):
                raise UsageError(f"apply_chat_template: gives a plain list of ids, or text; {name} has no meaning here")
        text = render_chat(
            choose_template(self._files.templates, chat_template, tools),
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._template_names(), **template_arguments},
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def cache_info(self) -> CacheInfo:
        return self._cache.info()

    def cache_clear(self) -> None:
        self._cache.clear()

    @property
    def cache_capacity(self) -> int:
        """Texts whose ids encode() remembers; 0 switches the cache off."""
        return self._cache.capacity

    @cache_capacity.setter
    def cache_capacity(self, capacity: int) -> None:
        self._cache.capacity = capacity

    def _checked(self, id: int) -> int:
        try:
            plain = index(id)
        except TypeError:
            plain = -1
        if 0 <= plain < self._n_ids:
            return plain
        if 0 <= plain < 1 << 32 and self._vocabulary.id_to_token(plain) is not None:
            return plain  # a vocabulary with holes
        raise UsageError(f"token id: expected 0 to {self._n_ids - 1}, got {id!r}; is it another model's?")

    def _template_names(self) -> dict[str, str]:
        """bos_token, eos_token and so on, which templates write into their text."""
        ids = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        known = {name: self._vocabulary.id_to_token(id) for name, id in ids.items() if id is not None}
        return {name: token for name, token in (known | self._files.names).items() if token is not None}


def _open_vocabulary(path: Path, files: TokenizerFiles) -> Vocabulary:
    if path.is_file():
        return TokenizerSentencePiece(path, files) if path.suffix == ".model" else TokenizerJson(path, files)
    if (path / "tokenizer.json").is_file():
        return TokenizerJson(path / "tokenizer.json", files)
    if (path / "tokenizer.model").is_file():
        return TokenizerSentencePiece(path / "tokenizer.model", files)
    raise TokenizerError(
        f"{path}: no tokenizer; expected tokenizer.json or tokenizer.model there; "
        "copy one from the model this was made from"
    )
