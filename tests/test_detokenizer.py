"""Streamed pieces join to exactly what decoding all ids at once gives."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from russet.errors import UsageError
from russet.tokenizer import Tokenizer
from russet.tokenizer.clean_up import CleanUpStream, clean_up
from russet.tokenizer.detokenizer import ByteStream, GroupStream, WholeStream
from text_data import every_tokenizer, load, odd_ids, vectors

TEXTS = [
    "Hello world, it's n't 've been .  ' s",
    "你好世界今天天气怎么样𠮷𡃁",
    "👩‍👩‍👧‍👦 🇨🇳 👍🏿 ❤️ é",
    "\n\n  \t<s> <0x0A> ▁▁ [INST] \ufffd",
    "안녕 नमस्ते مرحبا",
]


def stream(tokenizer, ids, skip_special_tokens=False):
    decoder = tokenizer.stream_decoder(skip_special_tokens)
    return [*map(decoder.push, ids), decoder.finish()]


@every_tokenizer
@settings(deadline=None, max_examples=200)
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_decode(name, data, skip):
    tokenizer = load(name)
    id = st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(odd_ids(name))
    ids = data.draw(st.lists(id, max_size=30))
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@every_tokenizer
@settings(deadline=None, max_examples=50)
@given(text=st.lists(st.sampled_from(TEXTS) | st.text(max_size=10), max_size=5).map("".join))
def test_pieces_of_any_text_join_to_decode(name, text):
    tokenizer = load(name)
    ids = tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8"))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@every_tokenizer
def test_every_id_alone(name):
    tokenizer = load(name)
    ids = range(tokenizer.vocab_size)
    assert [id for id in ids if "".join(stream(tokenizer, [id])) != tokenizer.decode([id])] == []


@every_tokenizer
def test_text_comes_early_and_whole(name):
    """No piece ends inside a character, and not all text comes at the end."""
    tokenizer = load(name)
    for record in vectors(name)[0]:
        *pieces, rest = stream(tokenizer, record["ids"])
        assert "".join(pieces) + rest == record["decoded"]
        if "\ufffd" not in record["decoded"]:
            assert not any("\ufffd" in piece for piece in pieces)
        tokens = [tokenizer.id_to_token(id) for id in reversed(record["ids"])]
        run = [*itertools.takewhile(lambda token: token.startswith("<0x"), tokens)]
        assert len(rest) <= 2 + len(run), record["name"]


def test_a_character_waits_for_its_last_byte():
    tokenizer = load("qwen3")
    ids = tokenizer.encode("\U0001fae0")
    assert len(ids) > 1
    assert stream(tokenizer, ids) == [*[""] * (len(ids) - 1), "\U0001fae0", ""]
    assert stream(tokenizer, ids[:-1])[-1] == "\ufffd"


def test_a_byte_run_waits_for_its_end():
    """A later byte would turn the whole run into replacement characters."""
    tokenizer = load("phi-3-mini")
    run = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "你".encode()]
    a, wrong = tokenizer.token_to_id("a"), tokenizer.token_to_id("<0xFF>")
    assert stream(tokenizer, [*run, a]) == ["", "", "", "你a", ""]
    assert stream(tokenizer, [*run, wrong, a]) == ["", "", "", "", "\ufffd" * 4 + "a", ""]


@every_tokenizer
def test_finish_starts_anew(name):
    tokenizer = load(name)
    ids = tokenizer.encode(" Hello 你 world")
    decoder = tokenizer.stream_decoder()
    first, second = ("".join(map(decoder.push, ids)) + decoder.finish() for _ in range(2))
    assert first == second == tokenizer.decode(ids)


@every_tokenizer
def test_foreign_ids_are_refused(name):
    decoder = load(name).stream_decoder()
    for id in (-1, 10**7, 2**40, 1.5, "1", None):
        with pytest.raises(UsageError, match="token id"):
            decoder.push(id)


@pytest.mark.parametrize("name", ["phi-3-mini", "t5-small", "spm-unigram-test_model"])
def test_work_does_not_grow_with_length(name):
    """The library is asked to decode a bounded number of ids per token, whatever the ids."""
    tokenizer = load(name)
    for id in {tokenizer.token_to_id(token) for token in ("▁", "a", "<0xE4>", ".")} - {None}:
        decoder = tokenizer.stream_decoder()
        groups = getattr(decoder._stream, "_stream", decoder._stream)
        assert isinstance(groups, GroupStream)
        n_decoded = 0

        def counting(ids, decode=groups._decode):
            nonlocal n_decoded
            n_decoded += len(ids)
            return decode(ids)

        groups._decode = counting
        for _ in range(3000):
            decoder.push(id)
        decoder.finish()
        assert n_decoded <= 8 * 3000


pieces = st.lists(st.text(" ' '.,?!ntmvresa", max_size=4), max_size=12)


class Pieces:
    """A stream whose ids are texts."""

    def push(self, text):
        return text

    def finish(self):
        return ""


@settings(max_examples=2000)
@given(pieces)
def test_clean_up_in_pieces(texts):
    cleaned = CleanUpStream(Pieces())
    assert "".join(map(cleaned.push, texts)) + cleaned.finish() == clean_up("".join(texts))


def test_clean_up_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerBase.clean_up_tokenization
    for text in [*TEXTS, "a . b ? c ! d , e ' f don n't I 'm it 's we 've you 're  ..", " ' ' n ' t"]:
        assert clean_up(text) == oracle(None, text)


@settings(max_examples=2000)
@given(
    st.lists(
        st.binary(max_size=6) | st.sampled_from([text.encode() for text in TEXTS]).map(lambda b: b[3:]),
        max_size=8,
    )
)
def test_bytes_in_pieces(tokens):
    bytes_of = dict(enumerate(tokens)).__getitem__
    decoder = ByteStream(bytes_of)
    text = "".join(map(decoder.push, range(len(tokens)))) + decoder.finish()
    assert text == b"".join(tokens).decode("utf-8", "replace")


def made_of(decoder, vocab):
    """A tokenizer.json in which every token is a word."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(vocab)}))
    library.decoder = decoder
    return library


@pytest.mark.parametrize(
    ("kind", "stream_type"),
    [
        ("none", GroupStream),
        ("wordpiece", GroupStream),
        ("wordpiece, cleaned", GroupStream),
        ("metaspace", GroupStream),
        ("bpe", GroupStream),
        ("gemma", GroupStream),
        ("strip the end", WholeStream),
        ("ctc", WholeStream),
        ("regex after fuse", WholeStream),
        ("byte level in a sequence", WholeStream),
    ],
)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_every_kind_of_decoder(tmp_path_factory, kind, stream_type, data):
    decoders = pytest.importorskip("tokenizers").decoders
    decoder = {
        "none": lambda: None,
        "wordpiece": lambda: decoders.WordPiece(cleanup=False),
        "wordpiece, cleaned": lambda: decoders.WordPiece(cleanup=True),
        "metaspace": lambda: decoders.Metaspace(prepend_scheme="always"),
        "bpe": lambda: decoders.BPEDecoder(suffix="</w>"),
        "gemma": lambda: decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        "strip the end": lambda: decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        "ctc": lambda: decoders.CTC(pad_token="a"),
        "regex after fuse": lambda: decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        "byte level in a sequence": lambda: decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    }[kind]()
    vocab = [
        "a",
        "b",
        "▁",
        "▁a",
        "##a",
        " ",
        ".",
        "n't",
        "'m",
        "a</w>",
        "ab",
        "<0xE4>",
        "<0xBD>",
        "<0xA0>",
        "é",
        "|",
    ]
    tokenizer = _written(tmp_path_factory, kind, decoder, tuple(vocab))
    ids = data.draw(st.lists(st.integers(0, len(vocab) - 1), min_size=1, max_size=12))
    assert isinstance(tokenizer.stream_decoder()._stream, stream_type)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


_made = {}


def _written(tmp_path_factory, kind, decoder, vocab):
    if kind not in _made:
        path = tmp_path_factory.mktemp("decoder") / "tokenizer.json"
        made_of(decoder, vocab).save(str(path))
        _made[kind] = Tokenizer.from_pretrained(path)
    return _made[kind]
