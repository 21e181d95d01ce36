"""How a generation ends: what is shown by then, why it did, and that the model goes on as a fresh one would."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import signal
import threading
import time
from contextlib import aclosing, suppress
from copy import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import russet
from random_model import random_config, random_weights
from russet import UsageError
from russet.backends.cpu import CpuBackend
from scripted import model_that_says
from text_data import every_tokenizer, load, odd_ids

PROMPT = "Once upon a time there was"
FREE = {"temperature": 0, "ignore_eos": True}


# ---- stop strings, over real tokenizers ----

TEXTS = [
    "Hello world. ",
    "你好世界𠮷",
    "👩‍👩‍👧‍👦 🇨🇳 👍🏿 ❤️ é",
    "안녕 नमस्ते مرحبا",
    "aaaabaaaab",
    "\n\nUser:",
]


def up_to_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Watches the text grow: the stop string that is complete first ends it."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text.endswith(stop, 0, end)]
        if begins:
            return text[: min(begins)], True
    return text, False


def without_a_beginning(text: str, stops: list[str]) -> str:
    """The text less the longest end of it that may go on as a stop string."""
    return next(text[:n] for n in range(len(text) + 1) if n == len(text) or begins_one(text[n:], stops))


def begins_one(text: str, stops: list[str]) -> bool:
    return any(stop.startswith(text) for stop in stops)


def cut_out(data: st.DataObject, text: str) -> str:
    begin = data.draw(st.integers(0, max(0, len(text) - 1)))
    return text[begin : begin + data.draw(st.integers(1, 6))]


@every_tokenizer
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_stream_is_its_text_up_to_the_stop_and_holds_back_no_more_than_it_must(name, data):
    tokenizer = load(name)
    plain = st.lists(st.sampled_from(TEXTS) | st.text(max_size=5), max_size=3).map("".join)
    text = data.draw(plain).encode("utf-8", "replace").decode()
    odd = data.draw(st.lists(st.sampled_from(odd_ids(name)), max_size=8))  # half characters and worse
    script = [*tokenizer.encode(text, add_special_tokens=False), *odd]
    script = [id for id in script if id not in tokenizer.eos_token_ids] or [odd_ids(name)[-1]]
    whole = tokenizer.decode(script, skip_special_tokens=True)
    common = st.sampled_from(["aab", "x", "👩\u200d👩\u200d👧", "\ufffd\n"])
    stops = [cut_out(data, whole or "x"), data.draw(common)]

    # As a reply, not behind a prompt: then all text is that of the script.
    model = model_that_says(with_template(tokenizer), script)
    pieces = list(model.stream([{"role": "user", "content": "a"}], stop=stops))
    shown, (expected, stopped) = "".join(p.text for p in pieces), up_to_first_stop(whole, stops)
    assert (shown, pieces[-1].finish_reason) == (expected, "stop" if stopped else "length")

    decoder, certain, shown = tokenizer.stream_decoder(skip_special_tokens=True), "", ""
    for piece, id in zip(pieces[:-1], script, strict=False):
        certain, shown = certain + decoder.push(id), shown + piece.text
        assert piece.token == id
        assert shown == without_a_beginning(certain, stops)


@functools.cache
def with_template(tokenizer):
    """One that makes a conversation its first message."""
    with_one = copy(tokenizer)
    with_one._files = dataclasses.replace(tokenizer._files, templates={"default": "{{ messages[0].content }}"})
    return with_one


# ---- token ids ----


def test_a_stop_token_ends_and_is_not_shown(stories):
    free = list(stories.stream(PROMPT, max_tokens=20, **FREE))
    at = next(
        i for i, piece in enumerate(free) if i > 4 and piece.text and piece.token not in {p.token for p in free[:i]}
    )
    for options in (FREE, {"temperature": 0}, FREE | {"speculate": "lookup"}):
        pieces = list(stories.stream(PROMPT, max_tokens=20, stop_token_ids=[free[at].token, 500], **options))
        assert [p.token for p in pieces] == [p.token for p in free[: at + 1]]
        assert [p.finish_reason for p in pieces] == [None] * at + ["stop"]
        assert "".join(p.text for p in pieces) == "".join(p.text for p in free[:at])


def test_stop_tokens_come_no_sooner_than_min_tokens(stories):
    first = stories.generate_tokens(PROMPT, max_tokens=1, **FREE)[0]
    assert stories.generate_tokens(PROMPT, stop_token_ids=[first], temperature=0) == [first]
    tokens = stories.generate_tokens(PROMPT, max_tokens=20, stop_token_ids=[first], min_tokens=5, **FREE)
    assert first not in tokens[:5]


def test_a_stop_token_that_is_none_is_refused(stories):
    with pytest.raises(UsageError, match="stop_token_ids: token ids go from 0 to 511, got 512"):
        stories.stream(PROMPT, stop_token_ids=[512])


# ---- time and cancelling ----


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""

    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("russet.limits.monotonic", clock)
    return clock


def check_usable(model, prompt=PROMPT) -> None:
    """The next text is that of a model which nothing has happened to."""
    expected = model.generate_tokens(prompt, max_tokens=15, use_cache=False, **FREE)
    for options in ({}, {"speculate": "lookup"}, {"temperature": 0.0, "top_k": 5}):
        assert model.generate_tokens(prompt, max_tokens=15, **(FREE | options)) == expected


@pytest.mark.parametrize(
    "options", [{}, {"speculate": "lookup"}, {"repetition_penalty": 1.1}, {"use_cache": False}], ids=str
)
@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_the_text_so_far_is_whole(demo, clock, reason, options):
    free = list(demo.stream(PROMPT, max_tokens=12, **FREE, **options))
    limit = {"timeout": 5.0, "cancel": threading.Event()}
    pieces = []
    for piece in demo.stream(PROMPT, max_tokens=12, **FREE, **options, **limit):
        pieces.append(piece)
        if reason == "timeout":
            clock.now += 1
        elif len(pieces) == 5:
            limit["cancel"].set()
    assert [p.token for p in pieces] == [*(p.token for p in free[:5]), None]
    assert [p.finish_reason for p in pieces] == [None] * 5 + [reason]
    assert pieces[-1].generated_tokens == 5
    ids = demo.tokenizer.encode(PROMPT)
    whole = demo.tokenizer.decode([*ids, *(p.token for p in free[:5])], skip_special_tokens=True)
    assert PROMPT + "".join(p.text for p in pieces) == whole
    assert pieces[-1].tokens_per_s == pieces[-2].tokens_per_s > 0
    check_usable(demo)


@pytest.mark.parametrize(
    ("stop", "last_text", "reason"),
    [
        (" endless", " end\ufffd", "cancelled"),
        (" end\ufffd", "", "stop"),  # which half a character completes
    ],
)
def test_what_was_held_back_comes_at_the_end(stop, last_text, reason):
    tokenizer = load("qwen3")
    script = [*tokenizer.encode("The end"), *tokenizer.encode("🫠")[:-1]]
    cancel, pieces = threading.Event(), []
    for piece in model_that_says(tokenizer, script).stream("a", cancel=cancel, stop=stop, max_tokens=50):
        pieces.append(piece)
        if len(pieces) == len(script):
            cancel.set()
    assert [p.text for p in pieces] == ["The", *[""] * (len(script) - 1), last_text]
    assert (pieces[-1].token, pieces[-1].finish_reason) == (None, reason)


def test_a_limit_that_is_not_reached_changes_nothing(demo):
    expected = list(demo.stream(PROMPT, max_tokens=12, **FREE))
    pieces = list(demo.stream(PROMPT, max_tokens=12, timeout=1e6, cancel=threading.Event(), **FREE))
    assert [(p.token, p.text, p.finish_reason) for p in pieces] == [
        (p.token, p.text, p.finish_reason) for p in expected
    ]


def test_time_runs_from_the_first_piece_on(demo, clock):
    pieces = demo.stream(PROMPT, max_tokens=3, timeout=5, **FREE)
    clock.now += 100
    assert [p.finish_reason for p in pieces] == [None, None, "length"]


@pytest.mark.parametrize("n_tokens", [0, 5])
def test_cancelled_before_it_begins(demo, n_tokens):
    cancel = threading.Event()
    cancel.set()
    [piece] = demo.stream(PROMPT, max_tokens=n_tokens, cancel=cancel)
    assert (piece.token, piece.text, piece.finish_reason, piece.generated_tokens) == (None, "", "cancelled", 0)
    assert demo.generate(PROMPT, max_tokens=n_tokens, cancel=cancel) == ""


def test_a_prompt_ends_between_its_chunks(stories, clock, monkeypatch):
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 50)
    stories.clear_cache()
    prompt = stories.tokenizer.encode("Lily saw a cat. " * 60)[:200]

    def progress(done, total):
        clock.now += 1

    [piece] = stories.stream(prompt, max_tokens=10, timeout=2.5, progress=progress)
    assert (piece.token, piece.text, piece.finish_reason) == (None, "", "timeout")
    assert piece.first_token_s > 0
    known = next(stories.stream(prompt, max_tokens=1))
    assert known.cached_tokens == 100  # what was computed is kept
    check_usable(stories, prompt)


@pytest.mark.parametrize("options", [{}, {"kv_window": 70}, {"kv_dtype": "int8"}, {"quantize": "int8"}], ids=str)
def test_a_prompt_that_was_cancelled_goes_on_where_it_was(options, monkeypatch):
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 50)
    model, cancel = russet.load(**options), threading.Event()
    prompt = model.tokenizer.encode("It is a truth universally acknowledged, that a single man in possession " * 20)[
        :300
    ]
    pieces = list(model.stream(prompt, cancel=cancel, progress=lambda done, total: done == 150 and cancel.set()))
    assert [piece.finish_reason for piece in pieces] == ["cancelled"]
    again = list(model.stream(prompt, max_tokens=20, **FREE))
    assert again[0].cached_tokens == 150
    assert [piece.token for piece in again] == russet.load(**options).generate_tokens(prompt, max_tokens=20, **FREE)
    check_all_is_given_back(model)


def test_a_draft_models_reading_of_the_prompt_ends_too(clock):
    model = russet.load(draft_model=russet.load())
    n_asked = 0

    class Cancel:
        def is_set(self):
            nonlocal n_asked
            n_asked += 1
            return n_asked > 8

    pieces = list(model.stream(PROMPT, max_tokens=100, cancel=Cancel(), **FREE))
    assert pieces[-1].finish_reason == "cancelled"
    assert len(pieces) < 20
    check_usable(model)


def test_processes_that_share_a_model_have_no_limits(demo, monkeypatch):
    monkeypatch.setattr(demo, "n_ranks", 2)
    for name, value in (("timeout", 1), ("cancel", threading.Event())):
        with pytest.raises(UsageError, match=f"{name}: not with shard"):
            demo.stream(PROMPT, **{name: value})


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("options", [{}, {"speculate": "lookup"}, {"temperature": 1.0, "seed": 1}], ids=str)
def test_what_is_raised_in_the_users_loop_leaves_the_model_as_a_fresh_one(stories_folder, raised, options):
    model, seen = russet.load(stories_folder / "hf"), []

    def talk():
        for piece in model.stream(PROMPT, max_tokens=None, **(FREE | options)):
            seen.append(piece)
            if len(seen) == 7 and raised is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            elif len(seen) == 7:
                raise raised

    with pytest.raises(raised):
        talk()
    assert len(seen) == 7
    expected = russet.load(stories_folder / "hf").generate_tokens(PROMPT, max_tokens=30, **(FREE | options))
    assert [piece.token for piece in seen] == expected[:7]
    assert model.generate_tokens(PROMPT, max_tokens=30, **(FREE | options)) == expected
    check_all_is_given_back(model)


# ---- inside one pass ----


@pytest.fixture(scope="module")
def slow():
    """A backend whose every layer takes a while: many layers, many tokens."""
    config = random_config(n_layers=150, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128)
    return CpuBackend(config, random_weights(config), threads=1)


PASS = np.random.default_rng(0).integers(0, 53, 400).tolist()


class Stopped(Exception):
    pass


def test_a_pass_can_be_given_up_between_layers(slow):
    session = slow.session(512)
    session.forward(PASS[:7])
    asked = []

    def interrupt():
        asked.append(time.perf_counter())
        raise Stopped

    start = time.perf_counter()
    with pytest.raises(Stopped):
        session.forward(PASS[7:], interrupt=interrupt)
    assert len(asked) == 1
    assert asked[0] - start >= 0.02  # not at once: most passes are shorter, and it takes the GIL
    assert session.n_tokens == 7
    fresh = slow.session(512)
    fresh.forward(PASS[:7])
    np.testing.assert_array_equal(session.forward(PASS[7:]), fresh.forward(PASS[7:]))


def test_ctrl_c_is_heard_between_layers(slow):
    session = slow.session(512)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            session.forward(PASS, interrupt=lambda: None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert session.n_tokens == 0
    np.testing.assert_array_equal(session.forward(PASS), slow.session(512).forward(PASS))


# ---- many cancels, many threads ----


def check_all_is_given_back(model) -> None:
    """Every block in use is a kept text's, and none is in use when the texts go."""
    heads = [(i, head) for i in range(model.config.n_layers) for head in range(model.config.n_kv_heads)]
    tables = [text.cache.table(*head) for _, text, _ in model._texts.texts() for head in heads]
    kept = set(np.concatenate(tables).tolist()) - {0}
    assert model.cache_info()["n_blocks"] == len(kept) > 0
    model.clear_cache()
    assert model.cache_info()["n_blocks"] == 0


def test_a_thousand_cancels_at_random_moments(stories_folder, monkeypatch):
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 20)
    model = russet.load(stories_folder / "hf", threads=1)
    rng = random.Random(0)
    prompts = [
        model.tokenizer.encode(text * 30)[:n] for text, n in (("Lily saw a cat. ", 200), ("Tom ran. ", 90), ("A ", 5))
    ]
    ways = [{}, {"speculate": "lookup"}, {"repetition_penalty": 1.2}]
    free = [[model.generate_tokens(p, max_tokens=30, use_cache=False, **FREE, **way) for way in ways] for p in prompts]
    seen = set()
    waiting: list[tuple[float, threading.Event]] = []
    bell = threading.Semaphore(0)

    def cancel_them():
        while bell.acquire() and waiting[-1] is not None:
            seconds, flag = waiting[-1]
            time.sleep(seconds)
            flag.set()

    thread = threading.Thread(target=cancel_them, daemon=True)
    thread.start()
    for i in range(1000):
        which, way = rng.randrange(len(prompts)), rng.randrange(len(ways))
        flag = threading.Event()
        waiting.append((rng.random() * 0.004, flag))
        if i % 10 == 0:
            model.clear_cache()
        bell.release()
        pieces = list(model.stream(prompts[which], max_tokens=30, cancel=flag, **FREE, **ways[way]))
        tokens = [piece.token for piece in pieces if piece.token is not None]
        assert tokens == free[which][way][: len(tokens)]
        assert pieces[-1].finish_reason == ("length" if len(tokens) == 30 else "cancelled")
        seen.add(min(len(tokens), 2) if pieces[-1].finish_reason == "cancelled" else "length")
        flag.wait()
    waiting.append(None)
    bell.release()
    thread.join()
    assert seen >= {0, 2}  # in prompts, and between tokens
    for which, prompt in enumerate(prompts):
        assert model.generate_tokens(prompt, max_tokens=30, **FREE) == free[which][0]
    check_all_is_given_back(model)


def test_threads_with_limits_of_their_own_share_a_model(stories_folder):
    model = russet.load(stories_folder / "hf", threads=2)
    prompts = [model.tokenizer.encode(text * 20)[:120] for text in ("Lily saw a cat. ", "Tom had a ball. ")]
    ways = [{}, {"speculate": "lookup"}, {"temperature": 1.0, "seed": 3}]
    free = [[model.generate_tokens(p, max_tokens=25, use_cache=False, **(FREE | way)) for way in ways] for p in prompts]
    wrong = []

    def ask(i):
        rng = random.Random(i)
        for _ in range(10):
            which, way, n = rng.randrange(2), rng.randrange(3), rng.randrange(1, 25)
            flag, tokens = threading.Event(), []
            for piece in model.stream(prompts[which], max_tokens=25, cancel=flag, **(FREE | ways[way])):
                tokens.append(piece.token)
                if len(tokens) == n:
                    flag.set()
            if tokens != [*free[which][way][:n], None]:
                wrong.append((which, way, n, tokens))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    check_all_is_given_back(model)


def test_one_stream_is_for_one_thread_at_a_time(demo):
    """Two that ask one stream at once: Python itself refuses the second."""
    inside, leave = threading.Event(), threading.Event()

    def progress(done, total):
        inside.set()
        leave.wait(10)

    stream = demo.stream(PROMPT, max_tokens=3, progress=progress, **FREE)
    thread = threading.Thread(target=next, args=(stream,))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ValueError, match="generator already executing"):
        next(stream)
    leave.set()
    thread.join()
    assert [piece.generated_tokens for piece in stream] == [2, 3]


# ---- async ----


def said(pieces):
    return [(p.text, p.token, p.finish_reason, p.generated_tokens) for p in pieces]


async def collected(stream):
    return [piece async for piece in stream]


def test_astream_gives_the_pieces_of_stream(demo):
    for options in ({}, {"stop": "e"}, {"temperature": 1.0, "seed": 1}, {"max_tokens": 0}):
        options = {"max_tokens": 12} | FREE | options
        assert said(asyncio.run(collected(demo.astream(PROMPT, **options)))) == said(demo.stream(PROMPT, **options))


def test_two_astreams_at_once_give_what_each_would_alone(demo):
    prompts = [PROMPT, "The sea was calm"]
    expected = [said(demo.stream(p, max_tokens=20, **FREE)) for p in prompts]

    async def both():
        return await asyncio.gather(*(collected(demo.astream(p, max_tokens=20, **FREE)) for p in prompts * 4))

    assert [said(pieces) for pieces in asyncio.run(both())] == expected * 4


def test_the_event_loop_goes_on_while_a_prompt_is_read(demo):
    async def main():
        loop, names = asyncio.get_running_loop(), set()

        async def lives():
            return threading.current_thread()

        def progress(done, total):
            names.add(threading.current_thread().name)
            assert asyncio.run_coroutine_threadsafe(lives(), loop).result(10) is threading.main_thread()

        await collected(demo.astream(PROMPT, max_tokens=2, progress=progress, **FREE))
        return names

    [name] = asyncio.run(main())
    assert name.startswith("russet-stream")


def streams_under_way() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("russet-stream")]


def check_no_stream_is_under_way() -> None:
    """A thread may take a moment to end."""
    deadline = time.monotonic() + 10
    while streams_under_way() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert streams_under_way() == []


def check_ended(model) -> None:
    check_no_stream_is_under_way()
    check_usable(model)
    check_all_is_given_back(model)


def test_a_cancelled_task_ends_the_generation(stories):
    stories.clear_cache()
    pieces = []

    async def main():
        async def talk():
            async for piece in stories.astream(PROMPT, max_tokens=None, **FREE):
                pieces.append(piece)
                if len(pieces) == 5:
                    asyncio.current_task().cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(talk())

    asyncio.run(main())
    assert len(pieces) == 5
    check_ended(stories)


def test_a_task_cancelled_in_the_middle_of_a_prompt_ends_there(stories, monkeypatch):
    monkeypatch.setattr("russet.generation.CHUNK_TOKENS", 20)
    stories.clear_cache()
    prompt = stories.tokenizer.encode("Lily saw a cat. " * 60)[:200]
    told = []

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(collected(stories.astream(prompt, max_tokens=5, progress=progress_for(loop))))
        tasks.append(task)
        with pytest.raises(asyncio.CancelledError):
            await task

    def progress_for(loop):
        def progress(done, total):
            told.append(done)
            if done == 60:
                loop.call_soon_threadsafe(tasks[0].cancel)
                for _ in range(5):  # by then the loop has told the task
                    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)

        return progress

    tasks = []
    asyncio.run(main())
    assert told == [0, 20, 40, 60]
    assert next(stories.stream(prompt, max_tokens=1)).cached_tokens == 60
    check_ended(stories)


def test_a_loop_that_is_left_ends_the_generation(stories):
    stories.clear_cache()

    async def main():
        async for _ in stories.astream(PROMPT, max_tokens=None, **FREE):
            break
        with suppress(ZeroDivisionError):
            async for _ in stories.astream(PROMPT, max_tokens=None, **FREE):
                raise ZeroDivisionError
        async with aclosing(stories.astream(PROMPT, max_tokens=None, **FREE)) as pieces:
            async for _ in pieces:
                break
        await asyncio.sleep(0)

    asyncio.run(main())
    check_ended(stories)


def test_astream_is_cancelled_by_its_own_flag_too(demo):
    flag, pieces = threading.Event(), []

    async def main():
        async for piece in demo.astream(PROMPT, max_tokens=20, cancel=flag, **FREE):
            pieces.append(piece)
            if len(pieces) == 3:
                flag.set()

    asyncio.run(main())
    assert [p.finish_reason for p in pieces] == [None, None, None, "cancelled"]


def test_astream_raises_what_stream_does(demo):
    for prompt, options, error in (
        ("", {}, UsageError),
        (PROMPT, {"top_p": 2}, UsageError),
        ([5] * 10**6, {}, russet.ContextFull),
    ):
        with pytest.raises(error):
            asyncio.run(collected(demo.astream(prompt, **options)))
    check_no_stream_is_under_way()
