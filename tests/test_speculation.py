"""Speculation: the text is what it would be without, whoever drafts; what is drafted, and when."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import russet
from random_model import random_config, random_weights
from russet import UsageError, speculation
from russet.backends.cpu import CpuBackend
from russet.model import DEMO
from russet.options import GenerateOptions
from russet.speculation import PromptLookup, Speculation
from test_sampler import assert_chi_square

PROMPT = "Once upon a time there was a king, and the king said to the king:"
KV_DTYPES = ("float32", "float16", "int8")
KINDS = ("lookup", "draft")

#: Every step, and everything that looks at the text so far.
SAMPLED = {
    "temperature": {"temperature": 0.9},
    "cuts": {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "top_n_sigma": 2.0},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    "dry": {"temperature": 0.5, "dry_multiplier": 0.8, "dry_breakers": ("\n",)},
    "xtc": {"temperature": 1.0, "xtc_probability": 0.5},
    "mirostat": {"temperature": 1.0, "mirostat_tau": 4.0, "mirostat_eta": 0.3},
    "bans": {"min_tokens": 30, "bad_words": [[5], [7, 8]], "logit_bias": {3: 1.5}},
    "greedy, penalised": {"repetition_penalty": 1.15, "logprobs": True, "top_logprobs": 3},
}


@pytest.fixture(autouse=True)
def drafts_always(request, monkeypatch):
    """How long a draft takes has no say here, except where that is the question."""
    if not request.node.name.startswith("test_pace"):
        monkeypatch.setattr(speculation.statistics, "median", lambda seconds: float("inf"))


def greedy(**options) -> russet.Model:
    """The demo, which by itself samples."""
    model = russet.load(**options)
    model.defaults = replace(model.defaults, temperature=0.0)
    return model


@pytest.fixture(scope="session")
def draft() -> russet.Model:
    """It often agrees with the demo, and not always."""
    return russet.load(quantize="int4")


@pytest.fixture(scope="session", params=KV_DTYPES)
def model(request, draft) -> russet.Model:
    return greedy(kv_dtype=request.param, draft_model=draft)


def prompts(n):
    """Beginnings of texts, each with something in it that stands there twice."""
    words = ["king", "sea", "ship", "night", "house", "queen", "horse", "stone", "letter", "fire"]
    beginnings = ["Once upon a time there was a", "It is a truth universally acknowledged, that a", "Call me", "O"]
    beginnings += ["In the middle of the journey I saw a"]
    return [f"{b} {w}, and the {w} said: {b} {w}" for b, w in itertools.islice(itertools.product(beginnings, words), n)]


def pieces(model, prompt, **options):
    """What each piece says of the text; and the last one."""
    all_of_them = list(model.stream(prompt, **options))
    fields = ("text", "token", "finish_reason", "prompt_tokens", "generated_tokens", "logprob", "top_logprobs")
    return [tuple(getattr(p, field) for field in fields) for p in all_of_them], all_of_them[-1]


def hand_made(config, *, draft=None, prefix_cache_bytes=10**8, **options):
    """A model of random weights, whose texts are token ids."""
    backend = CpuBackend(config, random_weights(config), cache_bytes=10**8, **options)
    demo = russet.load(n_ctx=64)
    return russet.Model(
        config=config,
        tokenizer=demo.tokenizer,
        backend=backend,
        n_ctx=config.max_ctx,
        cache_bytes_per_token=1000,
        prefix_cache_bytes=prefix_cache_bytes,
        defaults=GenerateOptions(ignore_eos=True),
        checkpoint=demo.checkpoint,
        draft=draft,
    )


class Prophet:
    """Knows the text, and is wrong at some of its places."""

    def __init__(self, text, wrong=lambda at: False):
        self.text, self.wrong = text, wrong

    def propose(self, text, n, sampler):
        places = range(len(text), min(len(text) + n, len(self.text)))
        return [1 if self.wrong(at) and self.text[at] != 1 else self.text[at] for at in places]

    def keep(self):
        pass


# ---- the same text ----


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_same(model, kind):
    n_drafted = 0
    for prompt in prompts(4):
        expected, _ = pieces(model, prompt, max_tokens=60, speculate=None)
        got, last = pieces(model, prompt, max_tokens=60, speculate=kind)
        assert got == expected
        n_drafted += last.drafted_tokens
    assert n_drafted > 10


@pytest.mark.slow
@pytest.mark.parametrize("n_draft", [1, 16, 31])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_the_same_for_fifty_prompts(model, kind, n_draft):
    n_drafted = 0
    for prompt in prompts(50):
        expected = model.generate_tokens(prompt, max_tokens=100, speculate=None)
        got, last = pieces(model, prompt, max_tokens=100, speculate=kind, n_draft=n_draft)
        assert [token for _, token, *_ in got] == expected
        n_drafted += last.drafted_tokens
    assert n_drafted > 50


@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_text(model, kind, options):
    if str(model.backend.kv_dtype) == "float16":
        pytest.skip("one of the others has it")
    expected, _ = pieces(model, PROMPT, max_tokens=50, seed=3, speculate=None, **options)
    got, _ = pieces(model, PROMPT, max_tokens=50, seed=3, speculate=kind, **options)
    assert got == expected


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_give_the_same_text(draft, quantize):
    model = greedy(quantize=quantize, draft_model=draft)
    expected = model.generate_tokens(PROMPT, max_tokens=60, speculate=None)
    assert [model.generate_tokens(PROMPT, max_tokens=60, speculate=kind) for kind in KINDS] == [expected] * 2


def test_a_draft_is_shorter_than_what_blas_computes_otherwise(monkeypatch):
    if russet._core.matmul_library() == "none":
        pytest.skip("a build without BLAS")
    for tokens, few in (("12", 11), ("64", 32)):
        monkeypatch.setenv("RUSSET_CROSSOVER", tokens)
        assert russet.load(quantize="int8").backend.few_tokens == few


@pytest.mark.parametrize("kv_dtype", [*KV_DTYPES, "int8/int4"])
@pytest.mark.parametrize("wrong", [lambda at: False, lambda at: at % 5 == 0, lambda at: at % 7 < 4])
def test_windows_give_keys_back_and_the_text_is_the_same(kv_dtype, wrong):
    config = random_config(n_layers=3, layer_window=(9, 0, 70), layer_rope=(0, 0, 0))
    model = hand_made(config, kv_dtype=kv_dtype)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, 90).tolist()
    expected = model.generate_tokens(prompt, max_tokens=300)
    model.clear_cache()
    prophet = Prophet(prompt + expected, wrong)
    model._speculation = lambda conversation, ids, options: Speculation(conversation, prophet, 31)
    got, last = pieces(model, prompt, max_tokens=300)
    assert [token for _, token, *_ in got] == expected
    assert last.accepted_tokens > 50
    (text, session, _) = max(model._texts.texts(), key=lambda text: len(text[0]))
    assert text == (prompt + expected)[:-1]
    assert np.array_equal(session.forward(expected[-1:]), hand_made_again(model, prompt + expected))


def hand_made_again(model, ids):
    """Logits after the last token, one by one behind the first 90."""
    session = model.session()
    session.forward(ids[:90])
    return [session.forward([id]) for id in ids[90:]][-1]


def test_frequencies_that_change_with_the_length():
    """A dynamic rope turns every key by the length of its text; a longrope changes once."""
    rope = random_config().ropes[0]
    long = tuple(f / 3 for f in rope.inv_freq)
    for changes in ({"dynamic_factor": 3.0, "theta": 100.0}, {"long_inv_freq": long}):
        model = hand_made(random_config(ropes=(replace(rope, original_ctx=60, **changes),)))
        expected = model.generate_tokens([5, 6, 7] * 10, max_tokens=80)
        model.clear_cache()
        assert model.generate_tokens([5, 6, 7] * 10, max_tokens=80, speculate="lookup") == expected


@pytest.mark.parametrize(("backend", "n_tokens"), [("mlx", 40), pytest.param("metal-sim", 40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_text_is_the_same_up_to_ties(backend, n_tokens, kind, draft):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    model = greedy(backend=backend, dtype="float32", draft_model=draft, n_ctx=256)
    for prompt in prompts(2):
        ids = model.tokenizer.encode(prompt)
        expected = model.generate_tokens(ids, max_tokens=n_tokens, speculate=None)
        got, last = pieces(model, ids, max_tokens=n_tokens, speculate=kind)
        assert last.drafted_tokens > 0  # how many are right says the text, how many are tried the clock
        for at, (a, (_, b, *_)) in enumerate(zip(expected, got, strict=False)):
            if a != b:  # float32 sums in another order: the bound of every test of logits
                logits = model.logits(ids + expected[:at])[-1]
                assert abs(logits[a] - logits[b]) < 2e-4 * np.ptp(logits)
                break


# ---- the same ends ----


@pytest.mark.parametrize("kind", KINDS)
def test_every_end_is_where_it_would_be(draft, kind, monkeypatch):
    model = greedy(draft_model=draft, n_ctx=90)
    whole = model.generate(PROMPT, max_tokens=40, speculate=None)
    tokens = model.generate_tokens(PROMPT, max_tokens=40, speculate=None)
    ends = [{"max_tokens": n} for n in range(14)] + [{"max_tokens": None, "ignore_eos": True}]
    ends += [{"stop": whole[at : at + 4], "max_tokens": 40} for at in range(3, len(whole) - 4, 13)]
    ends += [{"context_overflow": "shift", "n_sinks": 2, "max_tokens": 120, "ignore_eos": True}]
    for end in ends:
        check_end(model, kind, **end)
    for at in range(4, 24, 3):
        monkeypatch.setattr(model.tokenizer, "eos_token_ids", (tokens[at],))
        check_end(model, kind, max_tokens=40)


def check_end(model, kind, **options):
    """And what is kept of the text."""

    def kept(speculate):
        model.clear_cache()
        said, _ = pieces(model, PROMPT, speculate=speculate, **options)
        return said, [text for text, _, _ in model._texts.texts()]

    assert kept(kind) == kept(None)


def test_leaving_in_the_middle_of_a_draft_leaves_the_model_usable(model):
    expected = model.generate_tokens(PROMPT, max_tokens=30, speculate=None)
    for n in range(1, 25, 4):
        list(itertools.islice(model.stream(PROMPT, max_tokens=30, speculate="lookup"), n))
        assert model.generate_tokens(PROMPT, max_tokens=30, speculate="draft") == expected


# ---- the distribution ----


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_pairs_pass_chi_square(kind):
    """At a false-alarm rate of 1e-6: the third and fourth tokens, the first that are drafted."""
    n_ids, n_draws, temperature = 6, 800, 1.5
    config = random_config(vocab_size=n_ids)
    other = hand_made(random_config(vocab_size=n_ids, n_layers=1), prefix_cache_bytes=0)
    model = hand_made(config, draft=other, prefix_cache_bytes=0)
    prompt = np.random.default_rng(1).integers(0, n_ids, 30).tolist()

    def probabilities(ids):
        logits = model.session().forward(ids, all_logits=True)[len(prompt) - 1 :].astype(np.float64) / temperature
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    expected = np.zeros((n_ids, n_ids))
    for path in itertools.product(range(n_ids), repeat=3):
        p = probabilities(prompt + list(path))
        expected[path[2]] += p[0, path[0]] * p[1, path[1]] * p[2, path[2]] * p[3]
    pairs, n_accepted, n_drafted = [], 0, 0
    for seed in range(n_draws):
        said, last = pieces(model, prompt, max_tokens=6, temperature=temperature, seed=seed, speculate=kind)
        pairs.append(said[2][1] * n_ids + said[3][1])
        n_accepted += last.accepted_tokens
        n_drafted += last.drafted_tokens
    assert_chi_square(pairs, expected.ravel())
    assert 0 < n_accepted < n_drafted
    assert n_drafted > n_draws


# ---- what is drafted, and what is counted ----


def test_a_lookup_takes_the_longest_and_then_the_latest():
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3], 5, None) == []
    assert lookup.propose([1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3], 3, None) == [5, 8, 2]
    assert lookup.propose([1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3, 4, 1, 2, 3], 3, None) == [4, 9, 2]
    assert PromptLookup().propose([7, 8, 7, 8], 5, None) == [7, 8, 7, 8, 7]  # goes round
    assert lookup.propose([6, 6, 6], 2, None) == [6, 6]  # a shorter text is another


def test_a_lookup_reads_what_has_come_since():
    lookup, fresh = PromptLookup(), PromptLookup()
    text = np.random.default_rng(0).integers(0, 5, 200).tolist()
    for n in (50, 51, 52, 90, 200):
        drafted = lookup.propose(text[:n], 8, None)
    assert drafted == fresh.propose(text, 8, None) != []


def test_pieces_say_what_was_drafted():
    model = greedy()
    text = model.generate_tokens(PROMPT, max_tokens=40)
    model.clear_cache()
    ids = model.tokenizer.encode(PROMPT)
    wrong = {len(ids) + at for at in (9, 20)}
    prophet = Prophet(ids + text, wrong.__contains__)
    model._speculation = lambda conversation, ids, options: Speculation(conversation, prophet, 4)
    last = list(model.stream(PROMPT, max_tokens=40))
    assert [p.token for p in last] == text
    # Two plain tokens after the first; then rounds of 2, 4 and so on, each with one token more than was accepted.
    assert [p.from_draft for p in last[:9]] == [False] * 3 + [True] * 2 + [False] + [True] * 3
    assert not last[9].from_draft
    assert [p.accepted_tokens for p in last] == np.cumsum([p.from_draft for p in last]).tolist()
    assert last[-1].drafted_tokens > last[-1].accepted_tokens > 25
    plain = list(greedy().stream(PROMPT, max_tokens=5))
    assert {(p.from_draft, p.drafted_tokens, p.accepted_tokens) for p in plain} == {(False, 0, 0)}


def test_a_draft_model_like_the_model_is_always_right():
    model = greedy(draft_model=russet.load())
    for options in ({}, {"temperature": 1.0, "seed": 1, "top_p": 0.9, "xtc_probability": 0.5}):
        _, last = pieces(model, PROMPT, max_tokens=40, ignore_eos=True, **options)
        assert last.accepted_tokens == last.drafted_tokens > 20


def test_a_draft_model_keeps_its_texts(draft):
    model = greedy(draft_model=draft)
    draft.clear_cache()
    tokens = model.generate_tokens(PROMPT, max_tokens=20, ignore_eos=True)
    ids = model.tokenizer.encode(PROMPT) + tokens
    (text, _, _), *others = draft._texts.texts()
    assert others == []
    assert len(text) > len(ids) - 20
    assert text == ids[: len(text)]


# ---- when ----


class Clock:
    """Time as it would be: a plain step takes 1, each drafted token more."""

    def __init__(self, monkeypatch, per_draft):
        self.now, self.per_draft = 1.0, per_draft
        monkeypatch.setattr(speculation.time, "perf_counter", lambda: self.now)


def run(monkeypatch, clock, wrong, n_tokens):
    """Seconds that a text took whose drafts are wrong at some places; a conversation without a model."""

    class Told:
        ahead = ()

        def foresees(self, token):
            return self.ahead[:1] == (token,)

        def append_foreseen(self):
            self.ahead = self.ahead[1:]
            return ()

        def n_draftable(self, n):
            return n

        def append_with_draft(self, token, draft):
            self.ahead = tuple(draft)
            clock.now += 1 + clock.per_draft * len(draft)
            return ()

    begin, conversation = clock.now, Told()
    text = [*range(2, n_tokens + 2)]
    speculate = Speculation(conversation, Prophet(text, wrong), 16)
    for at in range(1, n_tokens):
        if speculate.append(text[:at], None, n_tokens - at) is None:
            conversation.ahead = ()
            clock.now += 1
        speculate.chosen(text[at])
    return clock.now - begin


@pytest.mark.parametrize("per_draft", [0.1, 0.3, 0.5])
def test_pace_loses_little_where_nothing_is_accepted(monkeypatch, per_draft):
    for n_tokens in (64, 128, 256, 1000):
        seconds = run(monkeypatch, Clock(monkeypatch, per_draft), lambda at: True, n_tokens)
        assert seconds <= 1.05 * (n_tokens - 1)


def test_pace_gains_where_all_is_accepted(monkeypatch):
    assert run(monkeypatch, Clock(monkeypatch, 0.1), lambda at: False, 256) < 256 / 4
    assert run(monkeypatch, Clock(monkeypatch, 0.5), lambda at: False, 256) < 256 / 1.6


def test_pace_stays_off_where_a_draft_costs_what_it_gains(monkeypatch):
    assert run(monkeypatch, Clock(monkeypatch, 1.1), lambda at: False, 1000) < 1.05 * 1000


def test_pace_comes_back_where_a_text_begins_to_repeat(monkeypatch):
    seconds = run(monkeypatch, Clock(monkeypatch, 0.1), lambda at: at < 300, 1300)
    assert seconds < 1.05 * 300 + 1000 / 2


# ---- refused ----


def test_another_vocabulary_is_refused(tmp_path):
    shutil.copytree(DEMO, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocab = values["model"]["vocab"]
    a, b = [token for token in vocab if len(token) > 3][:2]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"draft_model: expected token \d+ to be .*, got .*; take a smaller model"):
        russet.load(draft_model=tmp_path / "other")


def test_another_number_of_tokens_is_refused(stories):
    with pytest.raises(UsageError, match=r"draft_model: expected the model's 2,048 tokens, got \d+"):
        russet.load(draft_model=stories)


@pytest.mark.parametrize(
    ("load", "options", "message"),
    [
        ({}, {"speculate": "draft"}, "speculate: there is no draft model; load with draft_model="),
        ({}, {"speculate": "ngram"}, "speculate: expected 'lookup', 'draft' or None, got 'ngram'"),
        ({}, {"n_draft": 32}, "n_draft: expected an integer from 1 to 31, got 32"),
        ({"kv_budget": 0.5}, {"speculate": "lookup"}, "speculate: with kv_budget=0.5 drafted tokens have a say"),
        ({"attention": "sage"}, {"speculate": "lookup"}, "speculate: attention='sage' rounds keys by others"),
    ],
)
def test_what_cannot_be_the_same_is_refused(load, options, message):
    with pytest.raises(UsageError, match=message):
        russet.load(**load).stream(PROMPT, **options)


def test_without_a_cache_nothing_is_drafted(model):
    _, last = pieces(model, PROMPT, max_tokens=8, use_cache=False, speculate="lookup")
    assert last.drafted_tokens == 0
