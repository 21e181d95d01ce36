"""The cache in front of encode() changes how fast it is, and nothing else."""

import threading

import pytest

from russet.errors import UsageError
from russet.tokenizer import Tokenizer, encode_cache
from russet.tokenizer.encode_cache import EncodeCache
from text_data import data, load


@pytest.fixture
def tokenizer():
    return Tokenizer.from_pretrained(data("tokenizers", "minimind"))


def test_hits_and_misses_are_counted(tokenizer):
    assert tokenizer.cache_info() == (0, 0, 0.0, 0, 10_000)
    for text in ("a", "b", "a", "a"):
        tokenizer.encode(text)
    info = tokenizer.cache_info()
    assert (info.hits, info.misses, info.rate, info.size, info.capacity) == (2, 2, 0.5, 2, 10_000)
    tokenizer.cache_clear()
    assert tokenizer.cache_info() == (0, 0, 0.0, 0, 10_000)


def test_a_hit_gives_the_same_ids_and_a_list_of_its_own(tokenizer):
    text = "你好 Hello"
    first = tokenizer.encode(text)
    expected = list(first)
    first.append(-1)
    second = tokenizer.encode(text)
    assert second == expected
    second.clear()
    assert tokenizer.encode(text) == expected
    assert tokenizer.cache_info().hits == 2


def test_special_tokens_are_part_of_the_key():
    tokenizer = load("stories260K")
    tokenizer.cache_clear()
    for _ in range(2):
        assert tokenizer.encode("a", add_special_tokens=True)[0] == 1
        assert tokenizer.encode("a", add_special_tokens=False)[0] != 1
    assert tokenizer.cache_info()[:2] == (2, 2)


def test_the_least_recently_used_text_goes_first(tokenizer):
    tokenizer.cache_capacity = 2
    for text in ("a", "b", "a", "c"):  # b goes
        tokenizer.encode(text)
    hits = tokenizer.cache_info().hits
    tokenizer.encode("a")
    assert tokenizer.cache_info().hits == hits + 1
    tokenizer.encode("b")
    assert tokenizer.cache_info().hits == hits + 1
    assert tokenizer.cache_info().size == 2


def test_capacity_can_change_and_zero_is_off(tokenizer):
    for text in "abcdef":
        tokenizer.encode(text)
    tokenizer.cache_capacity = 3
    assert tokenizer.cache_info().size == tokenizer.cache_info().capacity == tokenizer.cache_capacity == 3
    before = tokenizer.cache_info()
    tokenizer.cache_capacity = 0
    assert tokenizer.encode("f") == load("minimind").encode("f")
    assert tokenizer.cache_info() == before._replace(size=0, capacity=0)
    off = Tokenizer.from_pretrained(data("tokenizers", "minimind"), cache_capacity=0)
    assert off.encode("f") == off.encode("f")
    assert off.cache_info() == (0, 0, 0.0, 0, 0)


@pytest.mark.parametrize("capacity", [-1, 1.5, "9", None])
def test_capacity_is_a_number_of_texts(tokenizer, capacity):
    with pytest.raises(UsageError, match="cache_capacity: expected a number of texts"):
        tokenizer.cache_capacity = capacity
    assert tokenizer.cache_capacity == 10_000


def test_long_texts_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(encode_cache, "MAX_CHARS", 100)
    monkeypatch.setattr(encode_cache, "MAX_TEXT_CHARS", 40)
    cache = EncodeCache(1000)
    cache.put(("x" * 41, True), [1])
    assert cache.info().size == 0
    for i in range(9):
        cache.put((f"{i}" * 30, True), [i])
    assert cache.info().size == 3
    assert cache.get(("8" * 30, True)) == [8]
    assert cache.get(("5" * 30, True)) is None
    cache.clear()
    for i in range(9):
        cache.put((f"{i}" * 30, True), [i])
    assert cache.info().size == 3


def test_the_same_text_from_two_threads_is_counted_once():
    cache = EncodeCache(4)
    for _ in range(3):
        cache.put(("x" * (encode_cache.MAX_TEXT_CHARS), True), [1])
    assert cache._chars == encode_cache.MAX_TEXT_CHARS


def test_threads_share_a_cache(tokenizer):
    tokenizer.cache_capacity = 16
    texts = [f"{i} 你好" for i in range(24)]
    expected = {text: load("minimind").encode(text) for text in texts}
    wrong = []
    turns = 300

    def run(offset):
        for i in range(turns):
            text = texts[(i * (offset + 1) + offset) % len(texts)]
            if tokenizer.encode(text) != expected[text]:
                wrong.append(text)
            if i % 50 == offset:
                tokenizer.cache_capacity = 8 + offset

    threads = [threading.Thread(target=run, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = tokenizer.cache_info()
    assert not wrong
    assert info.hits + info.misses == 6 * turns
    assert info.size <= info.capacity
