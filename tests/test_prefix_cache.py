"""Texts that are kept: what is shared is what would have been computed, and memory stays within its bounds."""

import gc
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import russet
from random_model import random_config, random_weights
from russet import NotEnoughMemory, UsageError, saved_cache
from russet.backends.cpu import CpuBackend
from russet.config import Rope
from russet.generation import Conversation
from russet.prefix_cache import GIVEN_BACK, NEW_TEXT, OTHER_FREQUENCIES, TURNED_OFF, PrefixCache

BLOCK = 64
PROMPT = "Once upon a time there was"


def make_backend(config, n_blocks, kv_dtype="float32"):
    """On the CPU, with a pool of so many blocks for every head of every layer."""
    weights = random_weights(config)
    n_heads = config.n_layers * config.n_kv_heads
    block_bytes = CpuBackend(config, weights, threads=1, kv_dtype=kv_dtype, cache_bytes=1).pool.info["block_bytes"]
    return CpuBackend(config, weights, threads=1, kv_dtype=kv_dtype, cache_bytes=n_blocks * n_heads * block_bytes)


def make_texts(config, backend, n_ctx, *, n_blocks, block_tokens=BLOCK):
    """Kept texts of at most so many blocks for every head."""
    per_token = backend.kv_dtype.bytes_per_token(config)
    return PrefixCache(
        lambda: backend.session(n_ctx),
        config.ropes,
        bytes_per_token=per_token,
        block_tokens=block_tokens,
        budget=n_blocks * BLOCK * per_token,
    )


def append(session, tokens):
    """In chunks so short that every token has the bits it has alone, however they are cut."""
    for begin in range(0, len(tokens), 16):
        logits = session.forward(tokens[begin : begin + 16])
    return logits[0]


# ---- any program ----

# Three ids alone, so that texts are often alike; lengths around a block.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda ids: ids * 23)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "append", "rewind", "fork", "put", "evict", "reload", "drop"]),
        st.integers(0, 3),
        TOKENS,
        st.floats(0, 1),
    ),
    min_size=8,
    max_size=20,
)


@pytest.mark.parametrize(
    ("windows", "kv_dtype", "block_tokens"),
    [
        ((0, 0), "float32", BLOCK),
        ((0, 0), "float32", 0),  # as if forks were copies
        ((0, 70), "float32", BLOCK),
        ((5, 130), "float16", BLOCK),
        ((0, 0), "int8/int4", BLOCK),
    ],
)
def test_any_program_gives_what_a_fresh_run_gives(windows, kv_dtype, block_tokens, tmp_path_factory):
    n_ctx = 400
    config = random_config(layer_window=windows)
    backend = make_backend(config, 16, kv_dtype)
    alone = make_backend(config, 7, kv_dtype)  # to compare with; room for one text
    path = tmp_path_factory.mktemp("saved") / "texts"
    expected = {}

    def check(session, tokens, logits):
        assert session.n_tokens == len(tokens)
        key = tuple(tokens)
        if key not in expected:
            expected[key] = append(alone.session(n_ctx), tokens)
        np.testing.assert_array_equal(logits, expected[key])

    def play(steps, texts):
        running = {}  # number -> tokens, session
        for what, i, tokens, part in steps:
            held, session = running.get(i, ([], None))
            at = int(part * len(held))
            try:
                if what == "ask" or session is None:
                    session = texts.take(tokens).session
                    assert session.n_tokens < len(tokens)
                    running[i] = tokens, session
                    rest = tokens[session.n_tokens :]
                    check(session, tokens, append(session, rest))
                elif what == "append" and len(held) + len(tokens) <= n_ctx:
                    n = session.n_tokens
                    running[i] = [*held[:n], *tokens], session
                    check(session, running[i][0], append(session, tokens))
                elif what == "rewind" and session.can_rewind(at):
                    session.rewind(at)
                    running[i] = held[:at], session
                elif what == "fork" and session.can_rewind(at):
                    running[i + 4] = held[:at], session.fork(at)
                    running[i], running[i + 4] = running[i + 4], running[i]
                elif what == "put":
                    texts.put(held, session, "short")
                elif what == "evict":
                    texts.drop_oldest()
                elif what == "reload" and texts.n_texts:
                    kept = [saved_cache.SavedText(t, s.cache, r) for t, s, r in texts.texts()]
                    saved_cache.save(path, {}, backend.pool, config, kept)
                    del kept
                    texts.clear()
                    file = saved_cache.read(path, {}, backend.pool.info["block_bytes"], config, n_ctx)
                    for loaded, cache_session, rotated in backend.restore(file, n_ctx):
                        texts.put(loaded, cache_session, rotated)
                elif what == "drop":
                    del running[i]
            except NotEnoughMemory:
                tokens, session = running[i]
                running[i] = tokens[: session.n_tokens], session  # a chunk that did not fit is as if never begun
            assert texts.bytes() <= texts.budget
            assert backend.pool.info["n_peak"] <= backend.pool.info["n_blocks"]

    @settings(max_examples=12, deadline=None)
    @given(STEPS)
    def check_program(steps):
        texts = make_texts(config, backend, n_ctx, n_blocks=6, block_tokens=block_tokens)
        backend.when_full(texts.drop_oldest)
        play(steps, texts)
        texts.clear()
        assert backend.pool.info["n_in_use"] == 0

    check_program()
    assert len(expected) > 30


# ---- what is known, and why not ----


@pytest.fixture
def plain():
    """A model without windows, whose pool has room for 24 blocks of every head."""
    config = random_config()
    return config, make_backend(config, 24)


def kept(config, backend, *prompts, n_ctx=400, n_blocks=12):
    """Texts of these, each computed."""
    texts = make_texts(config, backend, n_ctx, n_blocks=n_blocks)
    for prompt in prompts:
        session = backend.session(n_ctx)
        append(session, prompt)
        texts.put(prompt, session, "short")
    return texts


def test_the_reason_of_every_miss(plain):
    texts = kept(*plain, [1, 2, 3, 4, 5])
    for prompt, n_known, miss in [
        ([1, 2, 3, 4, 5, 6], 5, None),
        ([1, 2, 3, 4, 5], 4, None),
        ([1, 2, 3], 2, None),
        ([1, 2, 3, 9, 9], 3, "first 3 of 5 tokens are known"),
        ([2, 2], 0, NEW_TEXT),
    ]:
        found = texts.take(prompt)
        assert (found.session.n_tokens, found.miss) == (n_known, miss)
    assert (texts.n_hits, texts.n_misses, texts.n_tokens_reused) == (4, 1, 14)
    off = kept(*plain, [1, 2, 3], n_blocks=0)
    assert (off.take([1, 2, 3]).miss, off.n_texts) == (TURNED_OFF, 0)


def test_a_window_gives_back_what_a_shorter_beginning_would_see():
    config = random_config(layer_window=(0, 70))
    text = [1, 2, 3] * 100
    texts = kept(config, make_backend(config, 24), text)
    assert texts.take([*text, 7]).miss is None
    assert texts.take([*text[:250], 7, 7]).session.n_tokens == 250  # a block behind the window is still there
    found = texts.take([*text[:100], 7, 7])
    assert (found.session.n_tokens, found.miss) == (0, GIVEN_BACK)
    texts = kept(config, make_backend(config, 24), text[:100], text)  # as generation does at a prompt's end
    found = texts.take([*text[:120], 7, 7])
    assert (found.session.n_tokens, found.miss) == (100, GIVEN_BACK)


def test_between_chunks_of_a_prompt_a_window_has_everything(monkeypatch):
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 50)
    config = random_config(layer_window=(0, 70))
    backend = make_backend(config, 24)
    texts = make_texts(config, backend, 400, n_blocks=12)
    system = [1, 2, 3] * 60
    for own, n_known in ([7] * 220, 0), ([8] * 220, 180):
        found = texts.take([*system, *own])
        assert found.session.n_tokens == n_known
        conversation = Conversation(found.session, config, known=[*system, *own][:n_known], texts=texts)
        logits = conversation.append([*system, *own][n_known:])
        expected = Conversation(backend.session(400), config).append([*system, *own])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.ptp(expected))


@pytest.mark.parametrize(
    ("rope", "alike", "unlike"),
    [
        ({"long_inv_freq": (0.5,) * 7, "original_ctx": 40}, (39, 20), 60),
        ({"dynamic_factor": 2.0, "original_ctx": 40}, (40, 20), 60),
    ],
    ids=["longrope", "dynamic"],
)
def test_keys_that_are_rotated_otherwise_are_not_shared(rope, alike, unlike):
    config = random_config()
    config = random_config(ropes=(Rope(inv_freq=config.ropes[0].inv_freq, **rope),))
    backend = make_backend(config, 12)
    texts = make_texts(config, backend, 200, n_blocks=6)

    def ask(tokens):
        """Logits as generation computes them, how many tokens were known, and why no more."""
        found = texts.take(tokens)
        n_known = found.session.n_tokens
        conversation = Conversation(found.session, config, known=tokens[:n_known], text_length=len(tokens), texts=texts)
        logits = conversation.append(tokens[n_known:])
        conversation.keep()
        np.testing.assert_allclose(logits, Conversation(backend.session(200), config).append(tokens), rtol=0, atol=1e-5)
        return n_known, found.miss

    tokens = [i % 50 for i in range(100)]
    assert ask(tokens[: alike[0]]) == (0, NEW_TEXT)
    assert ask([*tokens[: alike[1]], 51, 52]) == (alike[1], f"first {alike[1]} of {alike[1] + 2} tokens are known")
    assert ask(tokens[:unlike]) == (0, OTHER_FREQUENCIES)
    if "long_inv_freq" in rope:
        assert ask([*tokens[:20], *range(30)]) == (20, "first 20 of 50 tokens are known")


# ---- what stays ----


def test_a_shared_beginning_is_in_memory_once(plain):
    config, backend = plain
    system, n_heads = [1, 2] * 64, config.n_layers * config.n_kv_heads
    texts = make_texts(config, backend, 400, n_blocks=12)
    for i in range(5):
        found = texts.take([*system, i, 7])
        append(found.session, [*system, i, 7][found.session.n_tokens :])
        texts.put([*system, i, 7], found.session, "short")
        del found
    assert backend.pool.info["n_in_use"] == n_heads * (2 + 5)
    assert texts.bytes() == (2 + 5) * BLOCK * backend.kv_dtype.bytes_per_token(config)


@pytest.mark.parametrize("cuts", [[10], [10, 100], [64, 64, 90], [128, 30, 31, 100], [129, 128, 127]], ids=str)
def test_bytes_are_those_of_the_pool(cuts, plain):
    """Of texts that leave one another here and there, when they were computed from each other."""
    config, backend = plain
    texts = make_texts(config, backend, 400, n_blocks=20)
    for i, cut in enumerate([0, *cuts]):
        tokens = [1] * cut + [2 + i] * (140 - cut)
        found = texts.take(tokens)
        append(found.session, tokens[found.session.n_tokens :])
        texts.put(tokens, found.session, "short")
        del found
    info = backend.pool.info
    assert texts.bytes() == info["n_in_use"] * info["block_bytes"]


def test_a_prompt_shares_the_block_that_its_answer_begins_in(plain):
    config, backend = plain
    texts = make_texts(config, backend, 400, n_blocks=12)
    session = backend.session(400)
    for tokens in ([1] * 10, [2] * 10):
        append(session, tokens)
        texts.put([1] * 10 + [2] * (session.n_tokens - 10), session, "short")
    del session
    assert backend.pool.info["n_in_use"] == config.n_layers * config.n_kv_heads
    assert texts.take([1] * 10 + [3]).session.n_tokens == 10


def test_the_least_recently_used_text_goes_first(plain):
    texts = kept(*plain, [1] * 64, [2] * 64, [3] * 64, n_blocks=3)
    texts.take([1] * 64)
    session = plain[1].session(400)
    append(session, [4] * 64)
    texts.put([4] * 64, session, "short")
    assert [texts.take([id, id]).session.n_tokens for id in (1, 2, 3, 4)] == [1, 0, 1, 1]


def test_of_a_text_beyond_the_budget_its_beginning_is_kept(plain):
    texts = kept(*plain, [1, 2, 3] * 100, n_blocks=2)
    assert texts.take([1, 2, 3] * 100).session.n_tokens == 2 * BLOCK


def test_where_forks_are_copies_a_text_that_goes_on_is_taken_out(plain):
    config, backend = plain
    texts = make_texts(config, backend, 400, n_blocks=12, block_tokens=0)
    session = backend.session(400)
    append(session, [1, 2, 3])
    texts.put([1, 2, 3], session, "short")
    del session
    n_in_use = backend.pool.info["n_in_use"]
    found = texts.take([1, 2, 3, 4])
    assert (found.session.n_tokens, found.miss, texts.n_texts) == (3, None, 0)
    append(found.session, [4])
    assert backend.pool.info["n_in_use"] == n_in_use
    texts.put([1, 2, 3, 4], found.session, "short")
    assert texts.take([1, 2, 9]).session.n_tokens == 2
    assert texts.n_texts == 1


def test_a_chat_of_many_turns(plain):
    config, backend = plain
    texts = make_texts(config, backend, 1500, n_blocks=23)
    session, tokens = backend.session(1500), []
    for turn in range(1100):  # more than Python's limit of nested calls
        session.forward([turn % 50])
        tokens.append(turn % 50)
        texts.put(tokens, session, "short")
    assert texts.take([*tokens, 7]).miss is None
    assert texts.take([*tokens[:700], 60]).session.n_tokens == 700
    assert texts.n_texts == 1
    for _ in range(700):
        assert texts.drop_oldest()
    assert texts.take([*tokens, 7]).session.n_tokens == 400
    assert all(texts.drop_oldest() for _ in range(400))
    assert not texts.drop_oldest()
    del session
    assert backend.pool.info["n_in_use"] == 0


# ---- a model's memory ----


@pytest.fixture
def small(stories_folder):
    """A model that may keep as much as one full context takes, and no more."""
    probe = russet.load(stories_folder / "hf")
    n_bytes = probe.checkpoint.n_bytes + 512 * probe.cache_bytes_per_token
    return russet.load(stories_folder / "hf", max_memory=n_bytes)


def test_kept_texts_make_room_for_a_running_one(small, stories):
    prompts = [stories.tokenizer.encode(text)[:300] for text in ("Lily saw a cat. " * 60, "Tom had a red ball. " * 60)]
    for prompt in prompts * 2:
        tokens = small.generate_tokens(prompt, max_tokens=30, temperature=0, ignore_eos=True)
        assert tokens == stories.generate_tokens(prompt, max_tokens=30, temperature=0, ignore_eos=True)
    info = small.cache_info()
    assert (
        info["peak_bytes"]
        <= info["budget_bytes"]
        == info["block_bytes"] * (info["budget_bytes"] // info["block_bytes"])
    )
    assert 0 < info["text_bytes"] <= info["text_budget_bytes"] <= info["budget_bytes"]


def test_kept_texts_make_room_for_a_session_run_by_hand(small, stories):
    prompt = stories.tokenizer.encode("Lily saw a cat. " * 60)[:400]
    small.generate(prompt, max_tokens=1)
    assert small.cache_info()["n_texts"] == 1
    logits = small.session().forward(prompt[::-1])
    np.testing.assert_array_equal(logits, stories.session().forward(prompt[::-1]))
    assert small.cache_info()["n_texts"] == 0


def test_a_model_goes_with_the_last_who_holds_it(stories_folder):
    model = russet.load(stories_folder / "hf")
    model.generate(PROMPT, max_tokens=3)
    backend = weakref.ref(model.backend)
    gc.disable()
    try:
        del model
        assert backend() is None
    finally:
        gc.enable()


def test_a_prompt_without_room_is_refused_with_the_sum(small, stories):
    prompt = stories.tokenizer.encode("Lily saw a cat. " * 60)[:300]
    running = small.session()
    running.forward(prompt)
    with pytest.raises(NotEnoughMemory, match=r"cache: \d+ kB more .*, \d+ kB of \d+ kB are in use; end another"):
        small.generate(prompt)
    del running
    expected = stories.generate_tokens(prompt, max_tokens=20, temperature=0)
    assert small.generate_tokens(prompt, max_tokens=20, temperature=0) == expected


def test_a_context_that_cannot_fit_is_refused_with_the_sum(stories_folder):
    with pytest.raises(
        NotEnoughMemory, match=r"weights 1.04 MB \+ cache .* for 50,000 tokens = .*, but 8.00 MB may be"
    ):
        russet.load(stories_folder / "hf", n_ctx=50_000, max_memory="8MB")


@pytest.mark.parametrize(("said", "budget"), [("1MB", 10**6), (12345, 12345), (0, 0), ("0", 0)])
def test_the_budget_is_what_was_asked_for(said, budget, stories_folder):
    model = russet.load(stories_folder / "hf", prefix_cache=said)
    assert model.cache_info()["text_budget_bytes"] == budget
    pieces = [list(model.stream(PROMPT, max_tokens=3))[-1] for _ in range(2)]
    assert pieces[1].cache_miss == (None if budget == 10**6 else TURNED_OFF if budget == 0 else pieces[1].cache_miss)
    assert model.cache_info()["text_bytes"] <= budget


def test_a_budget_that_is_none_is_refused(stories_folder):
    with pytest.raises(UsageError, match="prefix_cache: expected bytes or a size such as '8GB', got 'lots'"):
        russet.load(stories_folder / "hf", prefix_cache="lots")


def test_info_counts_and_clearing_gives_all_back(stories_folder):
    model = russet.load(stories_folder / "hf")
    for _ in range(3):
        model.generate(PROMPT, max_tokens=5)
    info = model.cache_info()
    n_prompt = len(model.tokenizer.encode(PROMPT))
    assert (info["n_texts"], info["n_hits"], info["n_misses"]) == (1, 2, 1)
    assert info["n_tokens_reused"] == 2 * (n_prompt - 1)
    assert info["bytes"] == model.cache_bytes() == info["n_blocks"] * info["block_bytes"] > 0
    model.clear_cache()
    info = model.cache_info()
    assert (info["bytes"], info["n_texts"], info["text_bytes"]) == (0, 0, 0)
    assert info["peak_bytes"] > 0


# ---- the same tokens, whatever is known ----


def check_same_tokens(model, prompt, *, n_tokens=12):
    """A miss, a hit, a text that goes another way, two at once, and without keeping anything."""

    def ask(prompt, **options):
        return model.generate_tokens(prompt, max_tokens=n_tokens, temperature=0, ignore_eos=True, **options)

    model.clear_cache()
    expected = ask(prompt, use_cache=False)
    assert ask(prompt) == expected
    piece = next(model.stream(prompt, max_tokens=1))
    assert (piece.cached_tokens, piece.cache_miss) == (len(prompt) - 1, None)
    assert ask(prompt) == expected
    other = [*prompt[: len(prompt) // 2], *prompt[:9]]
    assert ask(other) == ask(other, use_cache=False)
    assert next(model.stream([*prompt[:20], *prompt[:20]], max_tokens=1)).cached_tokens == 20
    n_half = n_tokens // 2
    assert ask([*prompt, *expected[:n_half]])[: n_tokens - n_half] == expected[n_half:]
    streams = [model.stream(p, max_tokens=n_tokens, temperature=0, ignore_eos=True) for p in (prompt, other)]
    at_once = [[a.token, b.token] for a, b in zip(*streams, strict=True)]
    assert [a for a, _ in at_once] == expected


def prompt_ids(model):
    return model.tokenizer.encode("It is a truth universally acknowledged, that a single man in possession " * 4)[:90]


@pytest.mark.parametrize("options", [{}, {"kv_dtype": "float32"}, {"kv_dtype": "int8"}, {"quantize": "int8"}], ids=str)
def test_the_same_tokens_on_the_cpu(options):
    model = russet.load(**options)
    check_same_tokens(model, prompt_ids(model))


@pytest.mark.parametrize("options", [{"kv_window": 70}, {"kv_budget": 0.5}], ids=str)
def test_a_conversation_goes_on_with_what_lossy_tricks_have_left(options):
    model = russet.load(**options)
    prompt = prompt_ids(model) * 4
    tokens = model.generate_tokens(prompt, max_tokens=20, temperature=0, ignore_eos=True)
    last = next(model.stream([*prompt, *tokens, 5], max_tokens=1))
    assert last.cached_tokens >= len(prompt) + 19
    assert next(model.stream([*prompt[:100], 5, 6], max_tokens=1)).cached_tokens in (0, 100)


def test_the_same_tokens_in_mlx():
    pytest.importorskip("mlx.core")
    model = russet.load(backend="mlx", dtype="float32")
    check_same_tokens(model, prompt_ids(model)[:50], n_tokens=6)
    assert model.cache_bytes() > 0
    model.clear_cache()
    assert model.cache_bytes() == 0


@pytest.mark.slow
def test_the_same_tokens_on_both():
    pytest.importorskip("mlx.core")
    model = russet.load(backend="mlx", dtype="float32", gpu_layers=2)
    check_same_tokens(model, prompt_ids(model))


@pytest.mark.slow
def test_the_same_tokens_on_the_simulator():
    try:
        model = russet.load(backend="metal-sim", dtype="float32")
    except russet.BackendError as error:
        pytest.skip(str(error))
    check_same_tokens(model, prompt_ids(model), n_tokens=8)


def test_threads_that_ask_alike_get_the_same(demo):
    demo.clear_cache()
    prompts = [[*prompt_ids(demo)[: 20 + 10 * i], 5] for i in range(4)]
    expected = [demo.generate_tokens(p, max_tokens=15, temperature=0, use_cache=False) for p in prompts]
    found = {}

    def ask(i):
        found[i] = [demo.generate_tokens(prompts[i % 4], max_tokens=15, temperature=0) for _ in range(4)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [expected[i % 4]] * 4 for i in range(8)}


# ---- long prompts ----


@pytest.fixture
def in_chunks(stories, monkeypatch):
    """A model that takes prompts by 50 tokens, and one of 200."""
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 50)
    stories.clear_cache()
    return stories, stories.tokenizer.encode("Lily saw a cat. " * 60)[:200]


def test_progress_is_told_between_chunks(in_chunks):
    model, prompt = in_chunks
    told = []
    model.generate(prompt, max_tokens=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 200), (50, 200), (100, 200), (150, 200), (200, 200)]
    told.clear()
    model.generate(prompt[:130] + prompt[:70], max_tokens=1, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (130, 200)
    assert told[-1] == (200, 200)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError])
def test_what_was_computed_before_a_cancellation_is_kept(raised, in_chunks):
    model, prompt = in_chunks
    expected = model.generate_tokens(prompt, max_tokens=10, temperature=0, use_cache=False)

    def cancel(done, total):
        if done == 100:
            raise raised

    with pytest.raises(raised):
        model.generate(prompt, max_tokens=10, temperature=0, progress=cancel)
    pieces = list(model.stream(prompt, max_tokens=10, temperature=0))
    assert pieces[0].cached_tokens == 100
    assert pieces[0].cache_miss == "first 100 of 200 tokens are known"
    assert [piece.token for piece in pieces] == expected


def test_a_shifted_text_goes_on_as_a_fresh_one_would(stories_folder):
    """Every time the context is full: the first 4 tokens, the newer half of the others, and from there as if asked."""
    model = russet.load(stories_folder / "hf", n_ctx=64)
    prompt = model.tokenizer.encode("Once upon a time, there was a little girl named Lily.")

    def ask(prompt, n, **options):
        return model.generate_tokens(prompt, max_tokens=n, temperature=0, ignore_eos=True, **options)

    tokens = ask(prompt, 150, context_overflow="shift")
    assert len(tokens) == 150
    text, n = list(prompt), 0
    for _ in range(3):
        room = 65 - len(text)  # the last one is not in the cache yet
        model.clear_cache()
        assert tokens[n : n + room] == [*ask(text, room - 1), *tokens[n + room - 1 : n + room]]
        text, n = [*text, *tokens[n : n + room]], n + room
        text = text[:4] + text[4 + (len(text) - 4 + 1) // 2 :]
    assert n < 150
    assert ask(prompt, None)[-1:] == tokens[64 - len(prompt) - 1 : 64 - len(prompt)]  # "error": ends where it is full
    with pytest.raises(UsageError, match="n_sinks: expected fewer than half of n_ctx=64, got 32"):
        ask(prompt, 1, context_overflow="shift", n_sinks=32)
    with pytest.raises(russet.ContextFull, match="the prompt's 65 tokens do not fit n_ctx=64"):
        ask([5] * 65, 1, context_overflow="shift")


def test_a_shift_without_a_cache_is_the_same(stories_folder):
    model = russet.load(stories_folder / "hf", n_ctx=40)
    options = {"max_tokens": 60, "temperature": 0.0, "ignore_eos": True, "context_overflow": "shift", "n_sinks": 0}
    with_cache, without = (model.generate_tokens(PROMPT, use_cache=use, **options) for use in (True, False))
    assert with_cache == without
    assert len(Counter(with_cache)) > 10


@pytest.mark.slow
def test_a_prompt_of_50_000_tokens():
    n_tokens = 50_000
    config = random_config(n_layers=1, dim=8, n_heads=1, n_kv_heads=1, head_dim=8, ffn_dim=8, max_ctx=n_tokens + 10)
    backend = CpuBackend(config, random_weights(config), kv_dtype="int8", cache_bytes=n_tokens * 2 * 32)
    texts = make_texts(config, backend, n_tokens + 10, n_blocks=n_tokens // BLOCK + 1)
    prompt = np.random.default_rng(0).integers(0, 50, n_tokens).tolist()
    session = backend.session(n_tokens + 10)
    first = [session.forward(prompt[i : i + 512]) for i in range(0, n_tokens, 512)][-1]
    texts.put(prompt, session, "short")
    found = texts.take(prompt)
    assert found.miss is None
    np.testing.assert_allclose(found.session.forward(prompt[-1:]), first, rtol=0, atol=1e-4 * np.ptp(first))
