"""Thoughts apart from the answer: however a reply is cut, with real templates, and what nobody sees of the tags."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from copy import copy
from itertools import takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from russet import Tokenizer, UsageError
from russet.thinking import Thinking, has_switch, tags_of
from russet.tool_calls import parse_tool_calls
from scripted import model_that_says
from text_data import data, load

OPEN, CLOSE = TAGS = ("<think>", "</think>")
MESSAGES = [{"role": "user", "content": "What does <think> mean?"}]

#: DeepSeek's way: the prompt ends with the tag, and the reply begins inside.
OPENS_ITSELF = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)


# ---- the text alone ----


def taken_apart(reply: str, is_open: bool) -> tuple[str, str]:
    """(thought, answer) of a reply that is complete."""
    begin = re.match(r"\s*<think>", reply)
    if not begin and not is_open:
        return "", reply
    thought, tag, answer = (reply if is_open else reply[begin.end() :]).partition(CLOSE)
    return (thought.strip(), answer.lstrip()) if tag else (thought.lstrip(), "")


def certain(reply: str, is_open: bool) -> tuple[str, str]:
    """What no continuation can change."""
    ends = [tag[n:] for tag in TAGS for n in range(len(tag))]
    replies = [taken_apart(reply + end + more, is_open) for end in ("", " ", *ends) for more in ("", "x", "y")]
    thoughts, answers = zip(*replies, strict=True)
    return common_beginning(thoughts), common_beginning(answers)


def common_beginning(texts: Sequence[str]) -> str:
    alike = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(character for character, *_ in alike)


chunks = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "/", "think", ">", "</thi", "nk>", " ", "\n", "a", "🐶", "<th"]), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(chunks=chunks, is_open=st.booleans())
@example(chunks=["<think>", "a", "\n", "</", "think>", "\n\n", "b"], is_open=False)
@example(chunks=["a", "</think>", "b", "<think>", "c", "</think>"], is_open=True)
def test_all_that_is_certain_is_shown_and_nothing_else(chunks, is_open):
    thinking = Thinking(TAGS, is_open=is_open)
    thought = answer = whole = ""
    for chunk in chunks:
        more_thought, more_answer = thinking.push(chunk)
        thought, answer, whole = thought + more_thought, answer + more_answer, whole + chunk
        assert (thought, answer) == certain(whole, is_open)
    rest = thinking.finish()
    assert (thought + rest[0], answer + rest[1]) == taken_apart(whole, is_open)


def test_which_templates_think():
    assert tags_of(data("chat_templates", "Qwen-Qwen3-0.6B.jinja").read_text()) == TAGS
    assert tags_of(data("chat_templates", "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()) is None
    assert tags_of("{{ '[THINK]' + m.thoughts + '[/THINK]' }}") == ("[THINK]", "[/THINK]")
    assert tags_of("") is None


def test_which_templates_have_a_switch():
    assert has_switch(data("chat_templates", "Qwen-Qwen3-0.6B.jinja").read_text())
    assert has_switch("{% if not thinking is defined %}{% set thinking = false %}{% endif %}")
    assert not has_switch(OPENS_ITSELF)
    assert not has_switch("{{ message.thinking }}{{ message['thinking'] }}")


# ---- real tokenizers and templates ----


def tokenizer_of(name: str, template: str | None = None, *, special: bool = False) -> Tokenizer:
    """special: whether the tags are special tokens, which texts leave out."""
    tokenizer = copy(load(name))
    if template:
        tokenizer._files = dataclasses.replace(tokenizer._files, templates={"default": template})
    if special:
        tokenizer._vocabulary = copy(tokenizer._vocabulary)
        tokenizer._vocabulary.special_ids |= {tokenizer.token_to_id(tag) for tag in TAGS}
        decoder = tokenizer.stream_decoder(skip_special_tokens=True)
        assert "".join(map(decoder.push, ids(tokenizer, "a<think>b"))) == "ab"
    return tokenizer


def ids(tokenizer: Tokenizer, *texts: str) -> list[int]:
    return [id for text in texts for id in tokenizer.encode(text, add_special_tokens=False)]


def answer(model, **options) -> tuple[str, str, str]:
    *_, last = pieces = list(model.stream(MESSAGES, **options))
    return "".join(p.thought for p in pieces), "".join(p.text for p in pieces), last.finish_reason


REAL = ("qwen3", "minimind")
REPLY = (OPEN, "\nA tag 🤔, <b>, </thin", "g>.\n", CLOSE, "\n\nIt begins <think>, ends </think>. 你好")
THOUGHT, ANSWER = "A tag 🤔, <b>, </thing>.", "It begins <think>, ends </think>. 你好"


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("special", [False, True])
def test_thoughts_are_apart_and_no_tag_is_shown(name, special):
    tokenizer = tokenizer_of(name, special=special)
    if name == "minimind":
        options = {"thinking": True}  # else its prompt ends with an empty section; so the reply begins inside
        said = ["\nA tag 🤔.\n", CLOSE, "\n\nIt begins <think>."]
    else:
        options = {}
        said = [OPEN, "\nA tag 🤔.\n", CLOSE, "\n\nIt begins <think>."]
    model = model_that_says(tokenizer, [*ids(tokenizer, *said), tokenizer.eos_token_ids[0]])
    assert answer(model, max_tokens=None, **options) == ("A tag 🤔.", "It begins <think>.", "stop")
    assert model.generate(MESSAGES, **options) == model.chat(MESSAGES, **options) == "It begins <think>."


@pytest.mark.parametrize("name", REAL)
def test_tags_of_ordinary_tokens_are_found_wherever_they_are_cut(name):
    tokenizer = tokenizer_of(name, OPENS_ITSELF.replace("<think>\n{% endif", "{% endif"))
    for first in range(1, len(OPEN)):
        for second in range(1, len(CLOSE)):
            said = [OPEN[:first], OPEN[first:], "\nWell.", "\n" + CLOSE[:second], CLOSE[second:] + " So", " it is."]
            assert answer(model_that_says(tokenizer, ids(tokenizer, *said))) == ("Well.", "So it is.", "length")


def test_several_texts_have_thoughts_of_their_own():
    tokenizer = tokenizer_of("qwen3")
    model = model_that_says(
        tokenizer, [*ids(tokenizer, OPEN, "\nA tag.\n", CLOSE, "\n\nYes."), tokenizer.eos_token_ids[0]]
    )
    texts = [*model.generate_many(MESSAGES, n=2), *model.beam_search(MESSAGES, num_beams=2)]
    # Whatever else beams try is less likely than the script.
    assert [(text.thought, text.text, text.finish_reason) for text in texts] == [("A tag.", "Yes.", "stop")] * 3


def test_a_prompt_that_opens_the_section():
    tokenizer = tokenizer_of("qwen3", OPENS_ITSELF)
    model = model_that_says(tokenizer, ids(tokenizer, "Well.\n", CLOSE, "\n\nYes."))
    assert answer(model) == ("Well.", "Yes.", "length")


def test_every_piece_says_what_is_thought_and_what_is_said():
    tokenizer = tokenizer_of("qwen3")
    script = ids(tokenizer, OPEN, "\n", "One", " two", "\n", CLOSE, "\n\n", "Three", " four")
    pieces = [(p.thought, p.text) for p in model_that_says(tokenizer, script).stream(MESSAGES)]
    thoughts = [("", ""), ("", ""), ("One", ""), (" two", ""), ("", ""), ("", "")]
    assert pieces == [*thoughts, ("", ""), ("", "Three"), ("", " four")]


def test_a_reply_that_is_cut_while_it_thinks_has_no_answer():
    tokenizer = tokenizer_of("qwen3")
    script = ids(tokenizer, OPEN, "\nHm, ", "</thi")
    model = model_that_says(tokenizer, script)
    assert answer(model) == ("Hm, </thi", "", "length")
    assert model.generate(MESSAGES) == ""


def test_a_reply_without_thoughts_is_an_answer():
    tokenizer = tokenizer_of("qwen3")
    for said in (" <b>bold</b>", "\n<thin", "It is </think> here"):
        assert answer(model_that_says(tokenizer, ids(tokenizer, said))) == ("", said, "length")


def test_stop_strings_end_the_answer_and_no_thought():
    tokenizer = tokenizer_of("qwen3")
    model = model_that_says(tokenizer, ids(tokenizer, OPEN, "\nFirst. Then.\n", CLOSE, "\n\nA. Then. B"))
    assert answer(model, stop=[" Then"]) == ("First. Then.", "A.", "stop")


def test_prompts_that_are_no_conversation_are_gone_on_with_as_they_are():
    tokenizer = tokenizer_of("qwen3")
    model = model_that_says(tokenizer, ids(tokenizer, *REPLY))
    for prompt in ("Hi", tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)):
        pieces = list(model.stream(prompt))
        assert "".join(p.text for p in pieces) == "".join(REPLY)
        assert not any(p.thought for p in pieces)


def test_a_template_without_thoughts_changes_nothing():
    tokenizer = tokenizer_of("qwen3", data("chat_templates", "Qwen-Qwen2.5-7B-Instruct.jinja").read_text())
    assert answer(model_that_says(tokenizer, ids(tokenizer, *REPLY))) == ("", "".join(REPLY), "length")


def test_tags_that_look_alike_are_text():
    tokenizer = tokenizer_of("qwen3")
    assert answer(model_that_says(tokenizer, ids(tokenizer, *REPLY))) == (THOUGHT, ANSWER, "length")


def test_tool_calls_are_found_behind_thoughts():
    tokenizer = tokenizer_of("qwen3")
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    model = model_that_says(tokenizer, ids(tokenizer, OPEN, "\nI could <tool_call>.\n", CLOSE, "\n\n", call))
    reply = model.parse_tool_calls(model.chat(MESSAGES))
    assert reply == {"content": "", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]}
    assert reply == parse_tool_calls(call, "hermes")


@pytest.mark.parametrize(
    ("name", "thinking", "end"),
    [
        ("qwen3", None, "assistant\n"),
        ("qwen3", True, "assistant\n"),
        ("qwen3", False, "<think>\n\n</think>\n\n"),
        ("minimind", None, "<think>\n\n</think>\n\n"),
        ("minimind", True, "<think>\n"),
        ("minimind", False, "<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_reaches_the_template(name, thinking, end):
    tokenizer = tokenizer_of(name)
    model = model_that_says(tokenizer, [0])
    assert tokenizer.decode(model._prompt_ids(MESSAGES, thinking=thinking)).endswith(end)


def test_thinking_without_a_switch_is_refused():
    tokenizer = tokenizer_of("qwen3", OPENS_ITSELF)
    model = model_that_says(tokenizer, [0])
    with pytest.raises(UsageError, match="thinking: this model's chat template leaves no choice"):
        model.chat("Hi", thinking=False)
    with pytest.raises(UsageError, match="thinking: the chat template is told of it; pass the prompt as a list"):
        model.generate("Hi", thinking=False)


def test_a_text_held_to_a_form_is_all_answer():
    pytest.importorskip("llguidance")
    tokenizer = tokenizer_of("qwen3", OPENS_ITSELF)
    script = [*ids(tokenizer, "blue"), tokenizer.eos_token_ids[0]]
    assert answer(model_that_says(tokenizer, script), choices=["blue", "red"])[:2] == ("", "blue")
