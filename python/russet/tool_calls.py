"""Tool calls: what a model writes to have a function called, as plain dicts.

hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as Hermes and Qwen write
llama3   {"name": ..., "parameters": {...}} and nothing else, or behind <|python_tag|>
mistral  [TOOL_CALLS][{"name": ..., "arguments": {...}}], or since v11 [TOOL_CALLS]name[ARGS]{...}

A format's marker may be a special token, which generated text leaves out; so llama3 and mistral do without it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from russet.errors import UsageError

#: {"content": str, "tool_calls": [{"name": str, "arguments": dict}, ...]}, and "error" where a call is broken
Reply = dict[str, Any]


class _BrokenCall(Exception):
    pass


def format_of(template: str) -> str | None:
    """The format that a chat template has calls written in: a name of FORMATS; None where it is none of them."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template and "<function=" not in template:  # the XML of Qwen3-Coder
        return "hermes"
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters"' in template):
        return "llama3"
    return None


def parse_tool_calls(text: str, format: str) -> Reply:
    """A reply taken apart: {"content": its text, "tool_calls": [{"name": ..., "arguments": {...}}, ...]}.

    A broken call is no exception: the whole text is then the content, and "error" says what is wrong. What comes before
    </think> is content, whatever it says.

    format: a name of FORMATS

    Raises UsageError for another.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    thoughts, mark, said = text.rpartition("</think>")
    try:
        content, calls = FORMATS[format](said)
    except _BrokenCall as error:
        return {"content": text, "tool_calls": [], "error": f"tool call: {error}"}
    return {"content": (thoughts + mark + content) if calls else text, "tool_calls": calls}


def _hermes(text: str) -> tuple[str, list[dict[str, Any]]]:
    content, calls, done = [], [], 0
    while (begin := text.find("<tool_call>", done)) >= 0:
        value, end = _json(text, begin + len("<tool_call>"))
        calls.append(_call(value))
        content.append(text[done:begin])
        close = re.compile(r"\s*(</tool_call>|$)").match(text, end)
        if close is None:
            raise _BrokenCall(f"expected </tool_call>, got {text[end:]!r:.40}")
        done = close.end()
    return "".join([*content, text[done:]]).strip(), calls


def _llama3(text: str) -> tuple[str, list[dict[str, Any]]]:
    before, tag, said = text.rpartition("<|python_tag|>")
    said = re.sub(r"<\|e(om|ot)_id\|>\s*$", "", said).strip()
    if not tag and re.match(r'\{\s*"(name|type|parameters)"', said) is None:
        return text, []
    calls: list[dict[str, Any]] = []
    done = 0
    while done < len(said):
        value, done = _json(said, done)
        if not tag and not calls and not _is_call(value):
            return text, []  # JSON that was asked for
        calls.append(_call(value))
        done = _skip(said, done, r"\s*;?\s*")
    return before.strip(), calls


def _mistral(text: str) -> tuple[str, list[dict[str, Any]]]:
    before, tag, said = text.partition("[TOOL_CALLS]")
    if not tag:
        if re.match(r'\s*\[\s*\{\s*"(name|arguments|id)"', text) is None:
            return text, []
        before, said = "", text
    calls: list[dict[str, Any]] = []
    done = _skip(said, 0, r"\s*")
    while done < len(said):
        if said.startswith("[", done):
            values, done = _json(said, done)
            if not tag and not all(map(_is_call, values)):
                return text, []  # JSON that was asked for
            calls += map(_call, values)
        elif name := _NAME.match(said, done):
            arguments, done = _json(said, name.end())
            calls.append(_call({"name": name[1], "arguments": arguments}))
        else:
            raise _BrokenCall(f"expected a list of calls, or a name and its arguments, got {said[done:]!r:.40}")
        done = _skip(said, done, r"\s*(\[TOOL_CALLS\]|</s>)?\s*")
    return before.strip(), calls


_NAME = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")


#: name -> what takes a text apart into its content and its calls
FORMATS: dict[str, Callable[[str], tuple[str, list[dict[str, Any]]]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
}


def _json(text: str, begin: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends."""
    begin = _skip(text, begin, r"\s*")
    try:
        return json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
        raise _BrokenCall(f"expected JSON, got {text[begin:]!r:.40} ({error})") from None


def _skip(text: str, begin: int, pattern: str) -> int:
    match = re.compile(pattern).match(text, begin)
    return match.end() if match else begin


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and ("parameters" in value or "arguments" in value)


def _call(value: Any) -> dict[str, Any]:
    """A call in its one form, whichever way the model has written it."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise _BrokenCall(f"expected an object with a name, got {json.dumps(value)!r:.40}")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON inside JSON, as OpenAI's API has it
        arguments, _ = _json(arguments, 0)
    if not isinstance(arguments, dict):
        raise _BrokenCall(f"arguments of {value['name']!r}: expected an object, got {json.dumps(arguments)!r:.40}")
    call = {"name": value["name"], "arguments": arguments}
    return call | ({"id": value["id"]} if "id" in value else {})
