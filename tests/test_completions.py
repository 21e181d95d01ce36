"""Several texts of one prompt: each is the one that generate() gives alone, computed in one pass with the others."""

import itertools
from collections import Counter
from threading import Event

import numpy as np
import pytest

import russet
from russet import NotEnoughMemory, UsageError
from russet.backends.cpu import CpuBackend

PROMPT = "Once upon a time there was"
N = 5


def alone(model, completion, **options):
    """The text of a completion's seed as stream() gives it, computed without the texts that were kept."""
    model.clear_cache()
    pieces = list(model.stream(PROMPT, **(options | {"seed": completion.seed})))
    return [piece.token for piece in pieces], "".join(piece.text for piece in pieces), pieces[-1].finish_reason


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
        {"temperature": 1.2, "xtc_probability": 0.5, "xtc_threshold": 0.05, "top_n_sigma": 2.0},
        {"temperature": 1.0, "mirostat_tau": 3.0},
        {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 1.0, "dry_multiplier": 0.8, "bad_words": ["the"], "logit_bias": {5: 2.0}},
        {"temperature": 1.0, "no_repeat_ngram_size": 2},
        {"temperature": 1.0, "stop": ["e", "king"], "min_tokens": 3},
        {"temperature": 1.0, "stop_token_ids": [199, 14, 12]},
        {"temperature": 1.0, "max_tokens": 1},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_text_is_the_one_that_its_seed_gives_alone(demo, options):
    options = {"max_tokens": 24} | options
    demo.clear_cache()
    completions = demo.generate_many(PROMPT, n=N, seed=2**64 - 2, **options)
    assert [c.seed for c in completions] == [2**64 - 2, 2**64 - 1, 0, 1, 2]
    for c in completions:
        assert (c.tokens, c.text, c.finish_reason) == alone(demo, c, **options)
    if options["max_tokens"] > 1 and options["temperature"]:
        assert len({c.text for c in completions}) > 1


@pytest.mark.parametrize(
    "loaded",
    [{"kv_dtype": "int8/int4"}, {"kv_window": 40}, {"kv_budget": 0.5}, {"attention": "sage"}, {"quantize": "int4"}],
    ids=str,
)
def test_every_cache_and_kind_of_weight_can_be_forked(loaded):
    model = russet.load(**loaded)
    options = {"temperature": 1.0, "max_tokens": 150, "ignore_eos": True}
    for c in model.generate_many(PROMPT, n=3, seed=3, **options):
        assert c.tokens == alone(model, c, **options)[0]


def test_no_tokens_are_empty_texts(demo):
    assert [(c.tokens, c.text, c.finish_reason, c.logprob) for c in demo.generate_many(PROMPT, n=2, max_tokens=0)] == [
        ([], "", "length", 0)
    ] * 2


def test_texts_of_different_lengths_leave_the_batch(stories, monkeypatch):
    sizes = []
    forward = CpuBackend.forward

    def spy(self, parts):
        sizes.append(len(parts))
        return forward(self, parts)

    monkeypatch.setattr(CpuBackend, "forward", spy)
    completions = stories.generate_many("Once", n=8, temperature=1.0, seed=1, stop=["."], max_tokens=60)
    lengths = sorted(len(c.tokens) for c in completions)
    assert len(set(lengths)) > 3
    assert sum(sizes) == sum(lengths) - 8  # the prompt gives the first token of each, and the last is not computed
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) == 8
    assert Counter(c.finish_reason for c in completions) == {"stop": 8}
    assert not any("." in c.text for c in completions)


def test_more_texts_than_have_the_same_bits_in_one_pass_take_several(demo):
    n = demo.backend.few_tokens + 3
    for c in demo.generate_many(PROMPT, n=n, temperature=1.0, seed=0, max_tokens=4):
        assert c.tokens == alone(demo, c, temperature=1.0, max_tokens=4)[0]


def test_a_shifted_context_goes_on_alone():
    model = russet.load(n_ctx=48)
    options = {"temperature": 1.0, "context_overflow": "shift", "max_tokens": 80, "ignore_eos": True}
    for c in model.generate_many(PROMPT, n=3, seed=4, **options):
        assert len(c.tokens) == 80
        assert c.tokens == alone(model, c, **options)[0]


def test_a_full_context_ends_all():
    model = russet.load(n_ctx=20)
    n_prompt = len(model.tokenizer.encode(PROMPT))
    completions = model.generate_many(PROMPT, n=3, seed=0, temperature=1.0, max_tokens=None, ignore_eos=True)
    assert [(len(c.tokens), c.finish_reason) for c in completions] == [(20 - n_prompt, "length")] * 3


@pytest.mark.parametrize("asked", [False, True])
def test_grammars_hold_every_text(demo, asked):
    pytest.importorskip("llguidance")
    options = {"temperature": 1.5, "regex": r"(The|A) (king|queen) of [A-Z][a-z]{2,12}\.", "logprobs": asked}
    completions = demo.generate_many(PROMPT, n=N, seed=7, **options)
    assert len({c.text for c in completions}) > 1
    for c in completions:
        assert (c.tokens, c.text, c.finish_reason) == alone(demo, c, **options)
        assert c.finish_reason == "stop"
        assert (c.logprob is None) == (not asked)


def test_a_timeout_ends_all_with_what_came(demo, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("russet.limits.monotonic", lambda: next(ticks))
    options = {"temperature": 1.0, "max_tokens": 40, "ignore_eos": True}
    completions = demo.generate_many(PROMPT, n=3, seed=0, timeout=30, **options)
    assert {c.finish_reason for c in completions} == {"timeout"}
    for c in completions:
        assert 0 < len(c.tokens) < 15
        assert c.logprob < 0
        assert c.tokens == alone(demo, c, **options)[0][: len(c.tokens)]
    info = demo.cache_info()
    assert info["bytes"] == info["text_bytes"]


def test_cancelled_before_it_began_it_has_no_tokens(demo):
    cancel = Event()
    cancel.set()
    demo.clear_cache()
    completions = demo.generate_many(PROMPT, n=2, seed=5, cancel=cancel)
    assert [(c.text, c.tokens, c.finish_reason, c.seed) for c in completions] == [
        ("", [], "cancelled", 5),
        ("", [], "cancelled", 6),
    ]
    assert demo.cache_info()["n_blocks"] == 0


def test_logprobs_are_those_that_score_gives(demo):
    ids = demo.tokenizer.encode(PROMPT)
    # The products of prefill and of decode sum in different orders: float32 rounding, the bound used everywhere.
    bound = 2e-4 * float(np.ptp(demo.logits(ids)))
    for c in demo.generate_many(PROMPT, n=3, seed=1, temperature=1.0, top_k=5, max_tokens=20, top_logprobs=2):
        expected = demo.score(ids + c.tokens)[-len(c.tokens) :]
        assert c.logprobs == pytest.approx(expected, abs=bound)
        assert c.logprob == pytest.approx(sum(c.logprobs))
        assert [len(top) for top in c.top_logprobs] == [2] * len(c.tokens)
    assert demo.generate_many(PROMPT, n=1, max_tokens=2)[0].logprobs is None


def test_a_conversation_is_answered_through_the_template(demo):
    messages = [{"role": "user", "content": "Hi"}]
    if not demo.tokenizer.has_chat_template:
        with pytest.raises(russet.TemplateError):
            demo.generate_many(messages, n=2)
        return
    completions = demo.generate_many(messages, n=2, temperature=0, max_tokens=5)
    assert [c.text for c in completions] == [demo.generate(messages, temperature=0, max_tokens=5)] * 2


def test_without_a_seed_texts_differ_and_can_be_had_again(demo):
    first, second = (
        demo.generate_many(PROMPT, n=1, temperature=1.0)[0],
        demo.generate_many(PROMPT, n=1, temperature=1.0)[0],
    )
    assert first.seed != second.seed
    assert first.tokens == demo.generate_tokens(PROMPT, temperature=1.0, seed=first.seed)


# ---- memory ----


def test_the_prompt_is_in_memory_once_and_afterwards_only_what_is_kept(demo):
    demo.clear_cache()
    long = PROMPT * 30  # a few blocks
    n_heads = demo.config.n_layers * demo.config.n_kv_heads
    n_prompt_blocks = len(demo.tokenizer.encode(long)) // 64
    assert n_prompt_blocks >= 2
    in_use = []
    forward = type(demo.backend).forward

    def spy(parts):
        logits = forward(demo.backend, parts)
        in_use.append(demo.cache_info()["n_blocks"] // n_heads)
        return logits

    demo.backend.forward = spy
    try:
        completions = demo.generate_many(long, n=6, temperature=1.0, seed=0, max_tokens=8)
    finally:
        del demo.backend.forward
    assert max(in_use) <= n_prompt_blocks + 1 + 6 * 2  # what goes on from it: in each text a block, or two
    info = demo.cache_info()
    assert info["bytes"] == info["text_bytes"]
    piece = next(demo.stream(demo.tokenizer.encode(long) + completions[3].tokens, max_tokens=1))
    assert piece.cached_tokens == piece.prompt_tokens - 1
    demo.clear_cache()
    assert demo.cache_info()["n_blocks"] == 0


@pytest.mark.parametrize("call", ["generate_many", "beam_search"])
def test_too_little_memory_says_so_and_gives_everything_back(call):
    free = russet.load()
    model = russet.load(n_ctx=64, max_memory=free.weight_bytes * 2)
    model.clear_cache()
    pool = model.backend.pool.info["n_blocks"] // (model.config.n_layers * model.config.n_kv_heads)
    count = {"n": pool + 2, "temperature": 1.0} if call == "generate_many" else {"num_beams": pool + 2}
    with pytest.raises(NotEnoughMemory, match="kB are in use") as raised:
        getattr(model, call)(PROMPT, max_tokens=40, ignore_eos=True, **count)
    info = model.cache_info()
    assert info["bytes"] == info["text_bytes"]
    assert raised.traceback  # whose frames had to give back what they still refer to
    assert len(model.generate_many(PROMPT, n=2, max_tokens=4)) == 2


# ---- what is refused ----


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_how_many_is_a_number_from_1_on(demo, n):
    with pytest.raises(UsageError, match="n: expected an integer from 1 on"):
        demo.generate_many(PROMPT, n=n)


def test_without_a_cache_there_is_nothing_to_share(demo):
    with pytest.raises(UsageError, match="use_cache: the texts are forks of one cache"):
        demo.generate_many(PROMPT, n=2, use_cache=False)


@pytest.mark.parametrize(
    ("keyword", "way_out"),
    [
        ("n", "generate_many"),
        ("num_beams", "beam_search"),
        ("num_return_sequences", "beam_search"),
        ("best_of", "logprob"),
    ],
)
def test_one_text_knows_where_several_are_to_be_had(demo, keyword, way_out):
    with pytest.raises(UsageError, match=way_out):
        demo.generate(PROMPT, **{keyword: 2})


def test_progress_is_told_and_can_end_it(demo):
    told = []
    demo.clear_cache()
    demo.generate_many(PROMPT, n=2, max_tokens=1, progress=lambda done, total: told.append((done, total)))
    n = len(demo.tokenizer.encode(PROMPT))
    assert told == [(0, n), (n, n)]

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.generate_many(PROMPT, n=2, progress=interrupt)
