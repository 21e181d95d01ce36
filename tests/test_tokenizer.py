"""Ids and texts are those of the reference libraries; what is missing or damaged is named."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from russet.errors import CheckpointError, TemplateError, TokenizerError, UsageError
from russet.tokenizer import Tokenizer
from text_data import TOKENIZERS, data, every_tokenizer, load, vectors

SPECIAL = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


def folder(path, vocabulary, **files):
    """A model folder with this vocabulary file, and JSON or text files: tokenizer_config={...}."""
    source = data(vocabulary)
    shutil.copy(source, path / ("tokenizer.json" if source.suffix == ".json" else "tokenizer.model"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@every_tokenizer
def test_vectors(name):
    tokenizer = load(name)
    records, broken = vectors(name)
    assert set(broken) <= {"nbsp"}  # its line separators were written as newlines
    assert len(records) >= 37
    for record in records:
        text, ids = record["text"], record["ids"]
        assert tokenizer.encode(text, add_special_tokens=False) == ids, record["name"]
        assert tokenizer.decode(ids) == record["decoded"], record["name"]
        if "ids_with_special" in record:
            assert tokenizer.encode(text) == record["ids_with_special"], record["name"]


@every_tokenizer
@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40))
def test_any_text_is_encoded_as_the_library_does(name, text):
    path = data(TOKENIZERS[name])
    tokenizer = load(name)
    if path.suffix == ".model":
        sentencepiece = pytest.importorskip("sentencepiece")
        oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
        ids = oracle.encode(text)
        with_bos = [oracle.bos_id(), *ids]
        decoded = oracle.decode(ids)
    else:
        tokenizers = pytest.importorskip("tokenizers")
        oracle = _library(tokenizers, path / "tokenizer.json")
        ids = oracle.encode(text, add_special_tokens=False).ids
        with_bos = oracle.encode(text).ids
        decoded = oracle.decode(ids, skip_special_tokens=False)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert tokenizer.encode(text) == with_bos
    if name != "t5-small":  # this one cleans up after decoding
        assert tokenizer.decode(ids) == decoded


_libraries = {}


def _library(tokenizers, path):
    if path not in _libraries:
        _libraries[path] = tokenizers.Tokenizer.from_file(str(path))
    return _libraries[path]


@pytest.mark.parametrize("name", ["spm-mistral-v3", "spm-stories260K"])
def test_line_separators(name):
    """The record of the vectors that cannot be read, from the library itself."""
    sentencepiece = pytest.importorskip("sentencepiece")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(data(TOKENIZERS[name])))
    text = "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g"
    assert load(name).encode(text, add_special_tokens=False) == oracle.encode(text)


@every_tokenizer
def test_tokens_and_ids_are_inverse(name):
    tokenizer = load(name)
    for id in range(0, tokenizer.vocab_size, 7):
        assert tokenizer.token_to_id(tokenizer.id_to_token(id)) == id
    assert tokenizer.token_to_id("no such token") is None


CONFIGS = [
    {},
    {"bos_token": "<|endoftext|>", "add_bos_token": True, "add_eos_token": True},
    {"bos_token": None, "eos_token": {"__type": "AddedToken", "content": "the"}, "image_token": "<image>"},
    {"split_special_tokens": True, "eos_token": "<|endoftext|>"},
    {"added_tokens_decoder": {"50256": {**SPECIAL, "content": "<|endoftext|>", "special": False}}},
    {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<|im_end|>", "<img>"],
        "added_tokens_decoder": {
            "50256": {**SPECIAL, "content": "<|endoftext|>"},
            "50257": {**SPECIAL, "content": "<|im_end|>", "lstrip": True},
            "50258": {**SPECIAL, "content": "<tool>", "special": False, "normalized": True},
            "50259": {**SPECIAL, "content": "word", "special": False, "single_word": True},
        },
    },
]
TEXTS = ["a  <|im_end|> b <tool> <img> word sword the <image> <|endoftext|> end", " <tool>a", "word", ""]


def same_as_transformers(path):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.vocab_size == len(oracle)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (oracle.bos_token_id, oracle.eos_token_id)
    for text in TEXTS:
        ids = oracle.encode(text)
        assert tokenizer.encode(text) == ids
        for skip in (False, True):
            decoded = oracle.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == decoded
            decoder = tokenizer.stream_decoder(skip_special_tokens=skip)
            assert "".join(map(decoder.push, ids)) + decoder.finish() == decoded
    template = "{{ bos_token }}|{{ eos_token }}|{{ image_token }}|{{ pad_token is defined }}"
    arguments = {"chat_template": template, "tokenize": False}
    messages = [{"role": "user", "content": ""}]
    shown = tokenizer.apply_chat_template(messages, **arguments)
    assert shown == oracle.apply_chat_template(messages, **arguments)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_special_tokens_are_those_of_transformers(tmp_path, config):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    same_as_transformers(folder(tmp_path, "tokenizers/gpt2/tokenizer.json", tokenizer_config=config))


def test_older_files_are_read_as_transformers_does(tmp_path):
    same_as_transformers(
        folder(
            tmp_path,
            "tokenizers/gpt2/tokenizer.json",
            tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"},
            special_tokens_map={"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": ["<img>"]},
            added_tokens={"<|im_end|>": 50257, "<tool>": 50258},
        )
    )


def mistral(path, **config):
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    added = {str(id): {**SPECIAL, "content": token} for id, token in enumerate(tokens)}
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    config = {"tokenizer_class": "LlamaTokenizer", **named, **config}
    return folder(path, "sentencepiece/mistral-v3.model", tokenizer_config=config)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("prefix", [None, True, False])
def test_special_tokens_around_sentencepiece_are_those_of_transformers(tmp_path, bos, eos, prefix):
    transformers = pytest.importorskip("transformers")
    path = mistral(tmp_path, add_bos_token=bos, add_eos_token=eos, add_prefix_space=prefix, legacy=False)
    oracle = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer = Tokenizer.from_pretrained(path)
    texts = ["<s>[INST] Hello [/INST] there</s> x", "[INST]Hi", "Hello <s>", "a<unk>b", "", "<s> <s>", "你好"]
    for text in texts:
        ids = oracle.encode(text)
        assert tokenizer.encode(text) == ids, text
        for skip in (False, True):
            decoded = oracle.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip) == decoded
            decoder = tokenizer.stream_decoder(skip)
            assert "".join(map(decoder.push, ids)) + decoder.finish() == decoded


def test_legacy_sentencepiece_encodes_every_stretch_as_a_text(tmp_path):
    tokenizer = Tokenizer.from_pretrained(mistral(tmp_path, legacy=True))
    tokens = [tokenizer.id_to_token(id) for id in tokenizer.encode("Hi[INST] Hi")]
    assert tokens == ["<s>", "▁Hi", "[INST]", "▁", "▁Hi"]


def test_a_bare_model_finds_no_special_tokens_in_text():
    tokenizer = load("spm-mistral-v3")
    assert 1 not in tokenizer.encode("<s>", add_special_tokens=False)
    assert tokenizer.encode("<s>")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode([1, *tokenizer.encode("Hi", False), 2]) == "<s> Hi</s>"
    assert tokenizer.decode([1, *tokenizer.encode("Hi", False), 2], skip_special_tokens=True) == "Hi"


def test_flags_of_added_tokens_around_sentencepiece(tmp_path):
    added = {
        "32768": {**SPECIAL, "content": "<eat>", "lstrip": True, "rstrip": True},
        "32769": {**SPECIAL, "content": "cat", "single_word": True, "special": False},
    }
    tokenizer = Tokenizer.from_pretrained(mistral(tmp_path, added_tokens_decoder=added))
    assert tokenizer.vocab_size == 32770
    ids = tokenizer.encode("a  <eat>  b cat concat", False)
    assert ids.count(32768) == 1
    assert ids.count(32769) == 1
    assert tokenizer.decode(ids) == "a<eat>b cat concat"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab cat concat"


@pytest.mark.parametrize(
    ("config", "generation", "named", "expected"),
    [
        ({}, {}, "<|im_end|>", (151645,)),
        ({"eos_token_id": 7}, {}, "<|im_end|>", (7,)),
        ({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, "<|im_end|>", (8, 9)),
        ({"eos_token_id": [7]}, {"eos_token_id": None}, "<|im_end|>", (7,)),
        ({"text_config": {"eos_token_id": [5, 6]}}, {}, None, (5, 6)),
        ({}, {}, None, ()),
    ],
)
def test_eos_ids_come_from_the_model_first(tmp_path, config, generation, named, expected):
    tokenizer = Tokenizer.from_pretrained(
        folder(
            tmp_path,
            "tokenizers/qwen3/tokenizer.json",
            config=config,
            generation_config=generation,
            tokenizer_config={"eos_token": named},
        )
    )
    assert tokenizer.eos_token_ids == expected
    assert tokenizer.eos_token_id == (151645 if named else None)


def test_without_a_tokenizer_config_the_model_names_its_tokens(tmp_path):
    config = {"bos_token_id": 50256, "eos_token_id": [50256, 7]}
    path = folder(tmp_path, "tokenizers/gpt2/tokenizer.json", config=config)
    tokenizer = Tokenizer.from_pretrained(path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (50256, 50256)
    assert tokenizer.eos_token_ids == (50256, 7)


def test_ids_without_a_token_are_no_text(tmp_path):
    """Models have more rows than tokens, and may give the id of any row."""
    path = folder(tmp_path, "tokenizers/qwen3/tokenizer.json", config={"vocab_size": 151_936})
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.id_to_token(151_935) is None
    ids = tokenizer.encode("你好")
    assert tokenizer.decode([151_935, *ids, 151_700]) == "你好"
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, [151_935, *ids, 151_700])) + decoder.finish() == "你好"
    with pytest.raises(UsageError, match="expected 0 to 151935, got 151936"):
        tokenizer.decode([151_936])


@every_tokenizer
@pytest.mark.parametrize("ids", [[-1], [10**6], [2**32], [2**70], [1.5], ["1"], [None], 5, [[1]]], ids=str)
def test_foreign_ids_are_refused(name, ids):
    with pytest.raises(UsageError, match="id"):
        load(name).decode(ids)


@every_tokenizer
def test_ids_of_any_integer_type(name):
    tokenizer = load(name)
    ids = tokenizer.encode("Hello world")
    text = tokenizer.decode(ids)
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(tuple(ids)) == tokenizer.decode(iter(ids)) == text
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, np.array(ids))) + decoder.finish() == text
    assert tokenizer.decode([]) == ""


@every_tokenizer
def test_what_is_not_text_is_refused(name):
    tokenizer = load(name)
    for add_special_tokens in (True, False):
        with pytest.raises(UsageError, match=r"lone surrogate '\\ud800' at character 2"):
            tokenizer.encode("ab\ud800", add_special_tokens)
    for thing in (b"bytes", None, 5, ["text"]):
        with pytest.raises(UsageError, match="expected a str"):
            tokenizer.encode(thing)


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"chat_template": "{{ 'config' }}"}, {}, "config"),
        ({"chat_template": [{"name": "default", "template": "{{ 'list' }}"}]}, {}, "list"),
        ({}, {"chat_template.json": '{"chat_template": "{{ \'json\' }}"}'}, "json"),
        ({"chat_template": "{{ 'config' }}"}, {"chat_template.json": '{"chat_template": "{{ 1 }}"}'}, "config"),
        ({"chat_template": "{{ 'config' }}"}, {"chat_template.jinja": "{{ 'jinja' }}"}, "jinja"),
        ({}, {"chat_template.jinja": "{{ 1 }}", "chat_templates/tool_use.jinja": "{{ 'tools' }}"}, "1"),
    ],
    ids=["config", "list", "json", "config before json", "jinja", "several"],
)
def test_where_chat_templates_are_found(tmp_path, config, files, expected):
    folder(tmp_path, "tokenizers/minimind/tokenizer.json", tokenizer_config=config)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    if "chat_templates/tool_use.jinja" in files:
        assert tokenizer.apply_chat_template(messages, tools=[], tokenize=False) == "tools"
        assert tokenizer.apply_chat_template(messages, chat_template="tool_use", tokenize=False) == "tools"


def test_no_chat_template():
    tokenizer = load("gpt2")
    messages = [{"role": "user", "content": "x"}]
    assert not tokenizer.has_chat_template
    with pytest.raises(TemplateError, match="no chat template"):
        tokenizer.apply_chat_template(messages)
    assert tokenizer.apply_chat_template(messages, chat_template=TEMPLATE) == tokenizer.encode("x")


def test_a_chat_gets_its_special_tokens_from_the_template_alone():
    tokenizer = load("stories260K")
    messages = [{"role": "user", "content": "x"}]
    ids = tokenizer.apply_chat_template(messages, chat_template="{{ bos_token }}" + TEMPLATE)
    assert ids == [1, *tokenizer.encode("x", add_special_tokens=False)]


def test_options_of_transformers_that_would_change_the_result_are_refused():
    tokenizer = load("qwen3")
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages, return_dict=False, padding=False, max_length=None)
    with pytest.raises(UsageError, match="return_tensors"):
        tokenizer.apply_chat_template(messages, return_tensors="pt")


def test_no_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer; expected tokenizer\.json or tokenizer\.model"):
        Tokenizer.from_pretrained(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such"):
        Tokenizer.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "", "not a tokenizer.json"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "not a tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "not a tokenizer.json"),
        ("tokenizer.model", "", "not a SentencePiece model"),
        ("tokenizer.model", "garbage", "not a SentencePiece model"),
        ("tokenizer_config.json", "[]", "expected a JSON object, got list"),
        ("tokenizer_config.json", "{", "expected JSON"),
        ("tokenizer_config.json", "[" * 100_000, "expected JSON"),
        ("tokenizer_config.json", '{"bos_token": {"content": 5}}', "bos_token: expected a token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "added_tokens_decoder: expected a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}', "expected ids and tokens, got x"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template: expected a text"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "chat_template: expected a text"),
        ("tokenizer_config.json", b"\xff", "UTF-8"),
        ("chat_template.jinja", b"\xff", "UTF-8"),
        ("added_tokens.json", '{"x": "y"}', "expected the id of 'x'"),
        ("special_tokens_map.json", "5", "special_tokens_map.json: expected a JSON object"),
        ("generation_config.json", "null", "generation_config.json: expected a JSON object"),
        ("config.json", '{"text_config": 5}', "text_config: expected a JSON object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    vocabulary = "sentencepiece/mistral-v3.model" if name.endswith(".model") else "tokenizers/minimind/tokenizer.json"
    folder(tmp_path, vocabulary)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_import_is_light():
    heavy = ["tokenizers", "sentencepiece", "jinja2", "huggingface_hub", "transformers", "torch"]
    code = f"import sys, russet.tokenizer; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**40) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("content"), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "added_tokens_decoder", "additional_special_tokens", "bos_token", "chat_template", "eos_token_id",
    "extra_special_tokens", "legacy", "special", "text_config", "vocab_size",
]  # fmt: skip


@pytest.mark.parametrize("vocabulary", ["tokenizers/minimind/tokenizer.json", "weights/stories260K/hf/tokenizer.model"])
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), json_values, max_size=4))
def test_any_config_is_read_or_refused(tmp_path, vocabulary, said):
    path = folder(tmp_path, vocabulary, **dict.fromkeys(["tokenizer_config", "config", "generation_config"], said))
    try:
        tokenizer = Tokenizer.from_pretrained(path)
    except TokenizerError:
        return
    ids = tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) in ("Hello", "")
