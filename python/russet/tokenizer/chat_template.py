"""A conversation written out as the model was trained to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from russet.errors import TemplateError, UsageError

Message = Mapping[str, Any]

# Names under which the thoughts of a model are passed. Templates read the first, gpt-oss's the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")

# Stands behind the words that continue_final_message goes on with. Where a template trims what it is given,
# the space is gone, and the spaces before the mark have to go too.
_MARK = "<<RUSSET-CONTINUES-HERE>> "


def choose_template(templates: Mapping[str, str], wanted: str | None, tools: Sequence[object] | None) -> str:
    """The text of the template that is meant: `wanted` is a name or a text, None the model's usual one.

    Raises TemplateError.
    """
    names = ", ".join(sorted(templates)) or "none"
    if wanted is not None:
        if wanted in templates:
            return templates[wanted]
        if "{" in wanted:
            return wanted
        raise TemplateError(f"chat_template: expected a template's text, or one of {names}; got {wanted!r}")
    if not templates:
        raise TemplateError("this model has no chat template; pass one as chat_template, or a plain prompt")
    if tools is not None and "tool_use" in templates:
        return templates["tool_use"]
    if "default" in templates:
        return templates["default"]
    raise TemplateError(f"this model has several chat templates: pass one as chat_template: {names}")


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    variables: Mapping[str, Any],
) -> str:
    """The text a template makes of a conversation.

    Raises TemplateError for a template that fails, UsageError for input that has no meaning.
    """
    from russet.tokenizer.template_sandbox import render

    conversation = [_with_reasoning(message) for message in _messages(messages)]
    field = "content" if continue_final_message is True else continue_final_message
    if field:
        if add_generation_prompt:
            raise UsageError(
                "continue_final_message goes on with the last message, add_generation_prompt starts one; pass only one"
            )
        words = _mark(conversation[-1], field, template)
    text = render(
        template,
        {
            **_plain(variables),
            "messages": conversation,
            "tools": _schemas(tools),
            "documents": _documents(documents),
            "add_generation_prompt": add_generation_prompt,
        },
    )
    return _until_mark(text, words) if field else text


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Our own copy, without the keys whose value is None: templates ask whether a key is there."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise UsageError(f"messages: expected a list of dicts, got {type(messages).__name__}")
    if not messages:
        raise UsageError("messages: expected at least one message, got none")
    plain = []
    for i, message in enumerate(messages):
        if isinstance(message, (list, tuple)):
            raise UsageError("messages: expected one conversation, got a list of them; pass them one by one")
        copy = _plain(message)
        if not isinstance(copy, dict):
            raise UsageError(f"messages[{i}]: expected a dict with a role, got {type(message).__name__}")
        plain.append({key: value for key, value in copy.items() if value is not None})
    return plain


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Thoughts under any of their names are found under those that templates read."""
    thoughts = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if thoughts is None:
        return message
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _schemas(tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    for tool in tools or []:
        if not isinstance(tool, Mapping):
            name = getattr(tool, "__name__", type(tool).__name__)
            raise UsageError(f"tools: expected JSON schemas, got {name}; pass the dict that describes the function")
    return None if tools is None else [_plain(tool) for tool in tools]


def _documents(documents: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    for document in documents or []:
        if not isinstance(document, Mapping):
            raise UsageError(f"documents: expected dicts with title and text, got {type(document).__name__}")
    return None if documents is None else [_plain(document) for document in documents]


def _mark(message: dict[str, Any], field: str, template: str) -> str:
    """Put the mark behind the last words of the message; returns those words."""
    value = message.get(field)
    if value is None:
        raise UsageError(f"continue_final_message: the last message has no {field!r} to go on with")
    names = [name for name in _REASONING if message.get(name) == value] if field in _REASONING else [field]
    if not any(name in template for name in names):
        raise UsageError(f"continue_final_message: the chat template does not use {field!r}")
    if isinstance(value, str):
        for name in names:
            message[name] = value + _MARK
        return value
    for part in reversed(value if isinstance(value, (list, tuple)) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            words: str = part["text"]
            part["text"] = words + _MARK
            return words
    raise UsageError(f"continue_final_message: expected text in the last message's {field!r}, got none")


def _until_mark(text: str, words: str) -> str:
    end = text.rfind(_MARK.strip())
    if end < 0 or words.strip() not in text:
        raise TemplateError(
            "continue_final_message: the chat template leaves out the end of the last message, or changes it"
        )
    return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone: other objects have methods that no sandbox knows.

    What JSON has no type for, such as an image, becomes its type's name: templates only ask if it is there.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, str):  # of a subclass, as in what follows
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, list):
        return [*map(_plain, value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic
        return _plain(dump())
    return f"<{type(value).__name__}>"
