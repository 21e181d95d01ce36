"""Texts held to a grammar: what comes out fits it, what is forced is not computed one by one, faults are named.

The judges are json, jsonschema, re and pydantic.
"""

import json
import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from russet import GenerateOptions, TokenizerError, UsageError
from russet.cli import main
from russet.generation import Conversation
from russet.grammar import _Tokens, make_grammar
from text_data import TOKENIZERS, load

pytest.importorskip("llguidance", reason='llguidance is not installed: pip install "russet[grammar]"')

PROMPT = "Once upon a time there was"
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["old", "young", "wise"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
DIALOGUE = """\
start: line+ "THE END"
line: SPEAKER ": " WORD "\\n"
SPEAKER: "King" | "Queen"
WORD: /[a-z]{1,6}/
"""


def is_allowed(mask, token):
    return bool(mask[token // 32] >> np.uint32(token % 32) & np.uint32(1))


def closing(tokenizer, amount):
    """Biases that have a text closed soon which may go on for ever: of quotes, brackets and the end, half for commas.

    Without them a toy writes digits behind a decimal point until the context is full.
    """
    amounts = {b'"': amount, b"]": amount, b"}": amount, b",": amount / 2}
    closes = {id: amounts.get(token[:1], 0.0) for id, token in enumerate(tokenizer.token_bytes())}
    return closes | dict.fromkeys(tokenizer.eos_token_ids, amount)


@pytest.mark.parametrize("seed", range(5))
def test_json_is_what_the_schema_describes(demo, seed):
    jsonschema = pytest.importorskip("jsonschema")
    text = demo.generate(PROMPT, json_schema=PERSON, **(SAMPLED | {"seed": seed}))
    person = json.loads(text)
    jsonschema.validate(person, PERSON)
    assert text == json.dumps(person, ensure_ascii=False)
    assert [*person] == ["name", "age", "tags"]


def test_a_schema_may_be_text_and_true_is_any_json(demo):
    text = demo.generate(PROMPT, json_schema=PERSON, **SAMPLED)
    assert demo.generate(PROMPT, json_schema=json.dumps(PERSON), **SAMPLED) == text
    json.loads(demo.generate(PROMPT, json_schema=True, logit_bias=closing(demo.tokenizer, 8), **SAMPLED))


def test_a_schema_may_be_a_pydantic_class(demo):
    pydantic = pytest.importorskip("pydantic")

    class King(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=8)
        crowns: int = pydantic.Field(ge=1, le=9)

    king = King.model_validate_json(demo.generate(PROMPT, json_schema=King, **SAMPLED))
    assert 1 <= king.crowns <= 9


@pytest.mark.parametrize("pattern", [r"[A-Z][a-z]{2,8}", r"\d{4}-\d{2}-\d{2}", r"(yes|no), (my|your) \w{1,5}!"])
def test_the_whole_text_matches_a_regex(demo, pattern):
    for options in (SAMPLED, {"temperature": 0}):
        assert re.fullmatch(pattern, demo.generate(PROMPT, regex=pattern, **options))


def test_the_text_is_one_of_the_choices(demo):
    choices = ["king", "kingdom", 'a "quoted" \\ one', "zwei\nZeilen", "\N{SNOWMAN}"]
    for choice in choices:
        assert demo.generate(PROMPT, choices=[choice], **SAMPLED) == choice
    assert {demo.generate(PROMPT, choices=choices, **(SAMPLED | {"seed": seed})) for seed in range(20)} <= {*choices}


def test_the_text_follows_a_lark_grammar(demo):
    ends = dict.fromkeys(demo.tokenizer.encode("THE END", add_special_tokens=False), 3.0)
    text = demo.generate(PROMPT, grammar=DIALOGUE, logit_bias=ends, max_tokens=400, **SAMPLED)
    assert re.fullmatch(r"((King|Queen): [a-z]{1,6}\n)+THE END", text)


def test_a_text_ends_where_the_model_ends_it_and_the_grammar_lets_it(demo):
    (end,) = demo.tokenizer.eos_token_ids
    *before, last = demo.stream(PROMPT, regex="[a-z]+", logit_bias={end: 1000}, **SAMPLED)
    assert (last.token, last.finish_reason) == (end, "stop")
    assert len(before) == 1  # it could not end before there was a letter
    assert re.fullmatch("[a-z]+", before[0].text + last.text)


def test_a_complete_text_ends_without_another_token(demo):
    for options in ({}, {"ignore_eos": True}):
        *_, last = demo.stream(PROMPT, regex="[ab]{3}", **SAMPLED, **options)
        assert last.finish_reason == "stop"
        assert last.token not in demo.tokenizer.eos_token_ids


def test_forced_tokens_are_computed_together(demo, monkeypatch):
    appended = []
    append = Conversation.append

    def spy(self, tokens, **options):
        appended.append(len(tokens))
        return append(self, tokens, **options)

    monkeypatch.setattr(Conversation, "append", spy)
    choice = "The king rode to the castle, and nobody knew why he did so."
    tokens = demo.generate_tokens(PROMPT, choices=[f"{choice} {end}" for end in ("Adieu", "Bye")], **SAMPLED)
    n_forced = len(demo.tokenizer.encode(choice)) - 2  # the first is drawn with the prompt, the last may be another
    assert len(tokens) > n_forced
    assert len(appended) < len(tokens) - n_forced + 3
    assert max(appended[1:]) >= n_forced - 1


def test_neither_the_cache_nor_what_was_kept_of_another_text_changes_anything(demo):
    options = SAMPLED | {"json_schema": PERSON}
    tokens = demo.generate_tokens(PROMPT, **options)
    assert demo.generate_tokens(PROMPT, **options, use_cache=False) == tokens
    again = [*demo.stream(PROMPT, **options)]
    assert [piece.token for piece in again] == tokens
    assert again[0].cached_tokens > 0


def test_every_token_has_a_logprob_forced_ones_too(demo):
    pieces = [*demo.stream(PROMPT, json_schema=PERSON, top_logprobs=3, **SAMPLED)]
    ids = demo.tokenizer.encode(PROMPT)
    tokens = [piece.token for piece in pieces]
    expected = demo.score(ids + tokens)[-len(tokens) :]
    # The products of prefill and of decode sum in different orders: float32 rounding, the bound used everywhere.
    bound = 2e-4 * float(np.ptp(demo.logits(ids)))
    assert [piece.logprob for piece in pieces] == pytest.approx(expected, abs=bound)
    json.loads("".join(piece.text for piece in pieces))


def test_max_tokens_and_stop_strings_still_end_a_text(demo):
    whole = demo.generate(PROMPT, json_schema=PERSON, **SAMPLED)
    *_, last = pieces = [*demo.stream(PROMPT, json_schema=PERSON, max_tokens=5, **SAMPLED)]
    assert (len(pieces), last.finish_reason) == (5, "length")
    assert whole.startswith("".join(piece.text for piece in pieces))
    assert demo.generate(PROMPT, json_schema=PERSON, stop='"age"', **SAMPLED) == whole[: whole.index('"age"')]


def test_penalties_and_bans_act_inside_a_grammar(demo):
    plain = demo.generate(PROMPT, choices=["king", "queen"], temperature=0)
    token = demo.generate_tokens(PROMPT, choices=["king", "queen"], temperature=0)[0]
    bias = {
        id: -np.inf for id, text in enumerate(demo.tokenizer.token_bytes()) if text and plain.encode()[:1] == text[:1]
    }
    assert token in bias
    other = demo.generate(PROMPT, choices=["king", "queen"], temperature=0, logit_bias=bias)
    assert {plain, other} == {"king", "queen"}
    with pytest.raises(UsageError, match=r"every token that could come is banned, by .* or a grammar"):
        demo.generate(PROMPT, choices=[plain], logit_bias=bias)


FAULTS = [
    ({"json_schema": {"type": "strin"}}, "json_schema: .*strin"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "json_schema: .*[Uu]nsatisfiable"),
    ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema: .*"),
    ({"json_schema": {"not": {"type": "string"}}}, "json_schema: .*not"),
    ({"json_schema": "{"}, "json_schema: not JSON: "),
    ({"json_schema": {"const": {1, 2}}}, "json_schema: not JSON: "),
    ({"json_schema": 5}, "json_schema: expected a schema as a dict or JSON text, a pydantic class or True, got 5"),
    ({"json_schema": int}, "json_schema: expected a schema .*, got <class 'int'>"),
    ({"regex": "("}, "regex: .*"),
    ({"regex": "[a"}, "regex: .*"),
    ({"regex": ""}, "regex: expected a text that is not empty, got ''"),
    ({"regex": 5}, "regex: expected a text that is not empty, got 5"),
    ({"grammar": "start: word"}, "grammar: .*word"),
    ({"grammar": "start: ("}, "grammar: .*"),
    ({"choices": []}, r"choices: expected a list of texts, got \[\]"),
    ({"choices": "abc"}, "choices: expected a list of texts, got 'abc'"),
    ({"choices": ["a", 1]}, "choices: expected a list of texts"),
    ({"regex": "a", "choices": ["a"]}, "regex and choices: a text follows one grammar; leave out all but one"),
]


@pytest.mark.parametrize(("options", "message"), FAULTS, ids=str)
def test_a_fault_is_named_before_the_prompt_is_computed(demo, options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        demo.stream(PROMPT, **options)


def test_without_llguidance_the_error_says_how_to_get_it(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r'regex: llguidance is not installed; pip install "russet\[grammar\]"'):
        demo.stream(PROMPT, regex="a")


TEXT = '{"name": "K\N{LATIN SMALL LETTER O WITH DIAERESIS}nig \N{SNOWMAN}", "age": 7, "tags": ["old", "wise"]}'


@pytest.mark.parametrize("name", sorted({*TOKENIZERS} - {"t5-small", "spm-unigram-test_model"}))
def test_every_tokenizer_may_write_what_fits_and_nothing_else(name):
    tokenizer = load(name)
    grammar = make_grammar(GenerateOptions(json_schema=PERSON), tokenizer)
    tokens = tokenizer.token_bytes()
    ids = _Tokens(tokenizer)(TEXT)
    assert b"".join(tokens[id] for id in ids) == TEXT.encode()
    for id in ids:
        mask = grammar.allowed()
        assert is_allowed(mask, id), tokens[id]
        assert not any(is_allowed(mask, end) for end in tokenizer.eos_token_ids)
        grammar.accept(id)
    assert grammar.finished


@pytest.mark.parametrize("name", sorted({*TOKENIZERS} - {"t5-small", "spm-unigram-test_model"}))
def test_forced_tokens_spell_what_the_grammar_says_as_the_tokenizer_does(name):
    tokenizer = load(name)
    tokens = tokenizer.token_bytes()
    grammar = make_grammar(GenerateOptions(choices=[TEXT]), tokenizer)
    ids = []
    while not grammar.finished:
        token = grammar.forced()
        if token is None:
            break
        ids.append(token)
        grammar.accept(token)
    expected = _Tokens(tokenizer)(TEXT)
    n_alike = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(ids))
    assert n_alike == len(ids) >= len(expected) - 2  # the last ones might still be other tokens
    assert TEXT.encode().startswith(b"".join(tokens[id] for id in ids))


@pytest.mark.parametrize("name", sorted({*TOKENIZERS} - {"t5-small"}))
def test_the_bytes_of_tokens_join_to_the_text(name):
    tokenizer = load(name)
    tokens = tokenizer.token_bytes()
    for text in ("Hello, world!", "x = {1:  'a'}\n", "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{SNOWMAN}"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(tokens[id] for id in ids).decode().removeprefix(" ") == tokenizer.decode(ids)


def test_a_tokenizer_whose_text_is_cleaned_up_holds_no_grammar():
    with pytest.raises(TokenizerError, match="not that of its tokens one by one"):
        make_grammar(GenerateOptions(regex="a"), load("t5-small"))


def json_schemas():
    """Schemas of many kinds that something fits; what may be long is bounded, for the demo's context is small."""
    texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=6)
    bounds = st.tuples(st.integers(-1000, 1000), st.integers(0, 500)).map(
        lambda b: {"minimum": b[0], "maximum": sum(b)}
    )
    sizes = st.tuples(st.integers(0, 3), st.integers(0, 3))
    scalars = st.none() | st.booleans() | st.integers(-99, 99) | texts
    leaves = st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["boolean", "null"]}]),
        bounds.map(lambda b: {"type": "integer", **b}),
        bounds.map(lambda b: {"type": "number", **b}),
        sizes.map(lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]}),
        st.sampled_from(["^[a-f]{2,4}$", "^(on|off)$", "^[0-9]{3}-[0-9]{4}$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern}
        ),
        st.sampled_from(["date", "ipv4", "ipv6", "uuid"]).map(lambda name: {"type": "string", "format": name}),
        st.lists(scalars, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        scalars.map(lambda value: {"const": value}),
    )

    def deeper(inner):
        arrays = st.builds(
            lambda items, n: {"type": "array", "items": items, "minItems": n[0], "maxItems": n[0] + n[1]}, inner, sizes
        )
        tuples = st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        )
        names = texts.filter(bool)
        objects = st.dictionaries(names, inner, max_size=4).flatmap(
            lambda properties: (
                st.sets(st.sampled_from(sorted(properties))).map(
                    lambda required: {
                        "type": "object",
                        "properties": properties,
                        "required": sorted(required),
                        "additionalProperties": False,
                    }
                )
                if properties
                else st.just({"type": "object", "additionalProperties": False})
            )
        )
        return st.one_of(arrays, tuples, objects, st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}))

    nested = st.recursive(leaves, deeper, max_leaves=6)
    return nested | nested.map(lambda schema: {"$ref": "#/$defs/it", "$defs": {"it": schema}})


@pytest.mark.slow
@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=json_schemas(), seed=st.integers(0, 2**32))
def test_200_random_schemas_are_kept_to(schema, seed, demo):
    jsonschema = pytest.importorskip("jsonschema")
    draft = jsonschema.Draft202012Validator  # its own judges of formats: others are of older drafts
    validator = draft(schema, format_checker=draft.FORMAT_CHECKER)
    bias = closing(demo.tokenizer, 8.0)
    options = SAMPLED | {"seed": seed, "max_tokens": None, "logit_bias": bias}
    *before, last = demo.stream(PROMPT, json_schema=schema, **options)
    assert last.finish_reason == "stop"
    validator.validate(json.loads("".join(piece.text for piece in [*before, last])))


def test_the_command_line_takes_a_schema_from_a_file(tmp_path, capsys):
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON))
    assert main(["generate", PROMPT, "--json-schema", str(path), "--seed", "1"]) == 0
    assert {*json.loads(capsys.readouterr().out)} == {"name", "age", "tags"}
    assert main(["generate", PROMPT, "--choice", "king", "--choice", "queen"]) == 0
    assert capsys.readouterr().out in ("king\n", "queen\n")
    assert main(["generate", PROMPT, "--json-schema", str(tmp_path / "none.json")]) == 2
    assert "--json-schema: cannot be read" in capsys.readouterr().err


def test_what_is_held_to_a_grammar_is_not_drafted(demo):
    options = {"regex": "(ab ){20}", "max_tokens": 80, "temperature": 0.0}
    pieces = list(demo.stream("ab ab ab ab", speculate="lookup", **options))
    assert "".join(piece.text for piece in pieces) == demo.generate("ab ab ab ab", **options) == "ab " * 20
    assert pieces[-1].drafted_tokens == 0
