"""Tool calls: what models write becomes plain dicts; what is broken is said, and raises nothing."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from russet import UsageError
from russet.tokenizer.chat_template import render_chat
from russet.tool_calls import FORMATS, format_of, parse_tool_calls
from text_data import data, load

PARIS = {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}
OSLO = {"name": "get_weather", "arguments": {"city": "</tool_call> [TOOL_CALLS] ; }"}}
NEEDS_ID = {"id": "abcdefghi"}


def said(format, *calls):
    """Calls as models of the format write them."""
    if format == "hermes":
        return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    if format == "llama3":
        return "; ".join(json.dumps({"name": call["name"], "parameters": call["arguments"]}) for call in calls)
    return f"[TOOL_CALLS]{json.dumps(calls)}"


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
        ("microsoft-Phi-3.5-mini-instruct", None),
    ],
)
def test_the_format_is_found_in_real_templates(name, format):
    template = data("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    assert format_of(template) == format


def test_other_formats_are_not_mistaken():
    assert format_of("{{ '<|python_tag|>' }}") == "llama3"
    assert format_of("{{ '<tool_call><function=' }}") is None
    assert load("qwen3").tool_format == "hermes"
    assert load("gpt2").tool_format is None


@pytest.mark.parametrize(
    ("name", "end"),
    [("Qwen-Qwen3-0.6B", "<|im_end|>"), ("mistralai-Mistral-Nemo-Instruct-2407", "</s>")],
)
def test_what_a_template_writes_is_read_back(name, end):
    template = data("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    tools = json.loads(data("chat_templates", "inputs.json").read_text(encoding="utf-8"))["tools"]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": PARIS, **NEEDS_ID}]},
    ]
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    before = render_chat(template, messages[:1], tools=tools, add_generation_prompt=True, variables=variables)
    text = render_chat(template, messages, tools=tools, variables=variables)
    reply = text[len(before) :].strip().removesuffix(end)
    (call,) = parse_tool_calls(reply, format_of(template))["tool_calls"]
    assert (call["name"], call["arguments"]) == (PARIS["name"], PARIS["arguments"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("calls", [[PARIS], [PARIS, PARIS]], ids=len)
def test_calls_become_dicts(format, calls):
    assert parse_tool_calls(said(format, *calls), format) == {"content": "", "tool_calls": calls}


@pytest.mark.parametrize("format", FORMATS)
def test_marks_inside_arguments_end_nothing(format):
    assert parse_tool_calls(said(format, OSLO), format)["tool_calls"] == [OSLO]


@pytest.mark.parametrize(
    ("format", "text", "content"),
    [
        ("hermes", "Let me see.\n" + said("hermes", PARIS), "Let me see."),
        ("hermes", "<think>a <tool_call>?</think>" + said("hermes", PARIS), "<think>a <tool_call>?</think>"),
        ("hermes", said("hermes", PARIS).removesuffix("</tool_call>"), ""),
        ("llama3", "<|python_tag|>" + said("llama3", PARIS) + "<|eom_id|>", ""),
        ("llama3", json.dumps({"type": "function", **PARIS}), ""),
        ("mistral", "Let me see." + said("mistral", PARIS) + "</s>", "Let me see."),
        ("mistral", json.dumps([PARIS]), ""),  # the marker is a special token, which text leaves out
        ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{json.dumps(PARIS['arguments'])}", ""),
        ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{json.dumps(PARIS['arguments'])}", ""),
        ("mistral", f"[TOOL_CALLS]get_weather{json.dumps(PARIS['arguments'])}", ""),
    ],
)
def test_every_way_of_writing_a_call_is_read(format, text, content):
    assert parse_tool_calls(text, format) == {"content": content, "tool_calls": [PARIS]}


def test_arguments_may_be_json_in_a_string():
    text = said("hermes", {"name": "f", "arguments": '{"x": 1}'})
    assert parse_tool_calls(text, "hermes")["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "text", ["It is sunny.", " \n", "", '{"sky": "blue"}', "[1, 2]", '{"name": "Emma"}', '[{"name": "Emma"}]']
)
def test_a_reply_without_calls_is_content(format, text):
    assert parse_tool_calls(text, format) == {"content": text, "tool_calls": []}


@pytest.mark.parametrize(
    ("format", "text", "error"),
    [
        ("hermes", '<tool_call>{"name": "f", </tool_call>', 'tool call: expected JSON, got \'{"name"'),
        ("hermes", '<tool_call>{"name": "f"} and', "tool call: expected </tool_call>, got ' and'"),
        ("hermes", "<tool_call>[1]</tool_call>", "tool call: expected an object with a name, got '[1]'"),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": 3}',
            "tool call: arguments of 'f': expected an object, got '3'",
        ),
        ("llama3", '{"name": "f", "parameters": {', "tool call: expected JSON"),
        ("llama3", "<|python_tag|>print(1)", "tool call: expected JSON"),
        ("mistral", '[TOOL_CALLS][{"name": "f"', "tool call: expected JSON"),
        (
            "mistral",
            "[TOOL_CALLS]what?",
            "tool call: expected a list of calls, or a name and its arguments, got 'what?'",
        ),
        (
            "mistral",
            said("mistral", PARIS) + " so",
            "tool call: expected a list of calls, or a name and its arguments, got 'so'",
        ),
    ],
)
def test_a_broken_call_is_content_with_an_error(format, text, error):
    reply = parse_tool_calls(text, format)
    assert (reply["content"], reply["tool_calls"]) == (text, [])
    assert reply["error"].startswith(error)


@given(text=st.text() | st.text(st.sampled_from('{}[]":,; f')), format=st.sampled_from([*FORMATS]))
def test_no_text_raises(text, format):
    for before in ("", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "f", "parameters": '):
        reply = parse_tool_calls(before + text, format)
        assert reply.keys() - {"error"} == {"content", "tool_calls"}


def test_an_unknown_format_is_refused(demo):
    with pytest.raises(UsageError, match="format: expected hermes, llama3, mistral, got 'xml'"):
        parse_tool_calls("", "xml")
    with pytest.raises(UsageError, match="format: the chat template does not say"):
        demo.parse_tool_calls("")
    assert demo.parse_tool_calls(said("hermes", PARIS), "hermes")["tool_calls"] == [PARIS]


def test_tools_need_a_conversation(demo):
    with pytest.raises(UsageError, match="tools: the chat template tells the model of them"):
        demo.generate("Hi", tools=[])


def test_tools_reach_the_template(demo, monkeypatch):
    template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}"
    files = dataclasses.replace(demo.tokenizer._files, templates={"default": template})
    monkeypatch.setattr(demo.tokenizer, "_files", files)
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    for options, prompt in (({"tools": tools}, "get_weather;Hi"), ({}, "Hi")):
        assert next(demo.stream([{"role": "user", "content": "Hi"}], max_tokens=0, **options)).prompt_tokens == len(
            demo.tokenizer.encode(prompt)
        )
        assert demo.chat("Hi", temperature=0, max_tokens=5, **options) == demo.generate(
            prompt, temperature=0, max_tokens=5
        )
