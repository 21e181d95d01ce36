"""What lies beside a vocabulary: tokenizer_config.json, its older companions, chat templates, eos ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from russet.errors import TokenizerError


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is found in text before the vocabulary's own rules are applied."""

    content: str
    special: bool = False  #: left out by skip_special_tokens
    lstrip: bool = False  #: takes the white space before it along
    rstrip: bool = False  #: takes the white space after it along
    single_word: bool = False  #: not found inside a word
    normalized: bool | None = None  #: found in normalised text; None means unless special


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """Everything a folder says about its tokenizer, apart from the vocabulary. None: it says nothing."""

    silent: bool = True  #: there is no tokenizer_config.json
    names: dict[str, str | None] = field(default_factory=dict)  #: every ..._token; None: there is to be none
    extra: list[str] = field(default_factory=list)  #: further special tokens
    added: dict[int, AddedToken] = field(default_factory=dict)  #: by id
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool = False
    clean_up: bool = False
    split_special: bool = False
    templates: dict[str, str] = field(default_factory=dict)  #: chat templates by name; the usual one is "default"
    bos_id: int | None = None  #: from generation_config.json or config.json
    eos_ids: tuple[int, ...] = ()  #: likewise
    n_model_ids: int = 0  #: rows of the model's embedding: ids it can give, with or without a token

    @property
    def special(self) -> list[str]:
        """Named and further special tokens."""
        return [*(token for token in self.names.values() if token is not None), *self.extra]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Raises TokenizerError for a file that is not JSON, or says something of the wrong type."""
    config = _read(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _read(folder / "special_tokens_map.json")
    where = f"{folder / 'tokenizer_config.json'}"
    names: dict[str, str | None] = {}
    for key, value in config.items():
        if key.endswith("_token"):
            token = _token(value, where, key)
            if token or value is None:
                names[key] = token.content if token else None
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        names |= {key: str(value) for key, value in extra.items()}
        extra = []
    if not isinstance(extra, list):
        raise TokenizerError(f"{where}: additional_special_tokens: expected a list of tokens, got {extra!r}")
    model = _read(folder / "config.json")
    model = {**model, **_object(model.get("text_config") or {}, f"{folder / 'config.json'}: text_config")}
    generation = _read(folder / "generation_config.json")

    def said(key: str) -> Any:
        return model.get(key) if generation.get(key) is None else generation[key]

    eos, bos, rows = said("eos_token_id"), said("bos_token_id"), model.get("vocab_size")
    return TokenizerFiles(
        silent=not config,
        names=names,
        extra=[token.content for value in extra if (token := _token(value, where, "special token"))],
        added=_added_tokens(config, folder, special={*names.values()}, where=where),
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        add_prefix_space=config.get("add_prefix_space"),
        legacy=bool(config.get("legacy")),
        clean_up=bool(config.get("clean_up_tokenization_spaces")),
        split_special=bool(config.get("split_special_tokens")),
        templates=_templates(folder, config),
        bos_id=bos if isinstance(bos, int) else None,
        eos_ids=tuple(id for id in (eos if isinstance(eos, list) else [eos]) if isinstance(id, int)),
        n_model_ids=rows if isinstance(rows, int) else 0,
    )


def _added_tokens(
    config: Mapping[str, Any], folder: Path, special: set[str | None], where: str
) -> dict[int, AddedToken]:
    """From added_tokens_decoder, {"7": {"content": "<x>"}}, or the older added_tokens.json, {"<x>": 7}."""
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        where += ": added_tokens_decoder"
        for id, value in _object(config["added_tokens_decoder"], where).items():
            token = _token(value, where, id)
            if token is None or not id.isdecimal():
                raise TokenizerError(f"{where}: expected ids and tokens, got {id}: {value}")
            added[int(id)] = token
    else:
        path = folder / "added_tokens.json"
        for text, id in _read(path).items():
            if not isinstance(id, int) or id < 0:
                raise TokenizerError(f"{path}: expected the id of {text!r}, got {id!r}")
            added[id] = AddedToken(content=text, special=text in special)
    return added


def _token(value: object, where: str, key: str) -> AddedToken | None:
    """A token as the files write it: its text, or an object with a content; None for any other value."""
    if isinstance(value, str):
        return AddedToken(content=value)
    if not isinstance(value, dict):
        return None
    said = {name: value[name] for name in AddedToken.__slots__ if name in value}
    content = said.pop("content", None)
    if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in said.values()):
        raise TokenizerError(f"{where}: {key}: expected a token with a content and flags, got {value}")
    return AddedToken(content=content, **said)


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own win over tokenizer_config.json; chat_template.json is asked last."""
    files = {path.stem: path for path in sorted((folder / "chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _text(path) for name, path in files.items()}
    for name, said in [
        ("tokenizer_config.json", config),
        ("chat_template.json", _read(folder / "chat_template.json")),
    ]:
        templates = said.get("chat_template")
        if isinstance(templates, str):
            return {"default": templates}
        try:
            if isinstance(templates, list):
                templates = {template["name"]: template["template"] for template in templates}
        except (KeyError, TypeError):
            pass
        if isinstance(templates, dict) and all(isinstance(text, str) for text in templates.values()):
            return templates
        if templates is not None:
            raise TokenizerError(f"{folder / name}: chat_template: expected a text, or a list of name and template")
    return {}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as cause:
        raise TokenizerError(f"{path}: expected JSON, got something else ({cause}); download it again") from cause
    return _object(value, str(path))


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise TokenizerError(f"{path}: cannot be read as UTF-8 text: {cause}") from cause
