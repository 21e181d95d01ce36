"""Models whose head is screened draw the same tokens: what samplers say they need, and thousands of steps."""

import shutil
from functools import partial

import numpy as np
import pytest

import russet
from quantisable_models import QUANTISABLE, make_quantisable
from russet import Quantization, _core
from russet.errors import BackendError, UsageError
from russet.model import DEMO
from russet.options import GenerateOptions
from russet.sampling import make_sampler
from wanted import OUT, check_wanted

Wanted = _core.Wanted


# ---- what samplers want ----

CHAINS = [
    {},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9},
    {"temperature": 0.7, "min_p": 0.1},
    {"temperature": 2.5, "min_p": 0.3, "top_k": 3, "samplers": ["min_p", "temperature", "top_k"]},
    {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 0.9, "top_k": 20, "repetition_penalty": 0.7},
    {"repetition_penalty": 1.5, "logit_bias": {3: 4.0, 9: -2.0, 11: float("-inf")}},
    {"temperature": 0.9, "min_p": 0.2, "bad_words": [[4], [1, 2, 7]], "min_tokens": 5},
    {"temperature": 0.9, "top_k": 9, "no_repeat_ngram_size": 2, "sequence_bias": {(7,): 3.0, (1, 2): -5.0}},
    {"temperature": 0.9, "top_k": 9, "dry_multiplier": 1.0, "dry_breakers": []},
    {"temperature": 0.9, "top_k": 12, "xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"temperature": 0.9, "top_k": 12, "mirostat_tau": 3.0},
]


@pytest.mark.parametrize("options", CHAINS, ids=lambda o: "-".join(o) or "greedy")
def test_a_sampler_draws_the_same_from_what_it_wants(options, demo_whole):
    """With minus infinity wherever it may stand, the distribution is the same to the last bit."""
    rng = np.random.default_rng(13)
    tokenizer = demo_whole.tokenizer
    for n_vocab, spread in ((500, 2.0), (2048, 4.0), (2048, 0.1)):
        logits = np.float32(spread * rng.normal(size=n_vocab))
        logits[rng.integers(n_vocab, size=50)] = logits.max()  # ties at the top
        for allowed in (None, np.uint32(rng.integers(2**32, size=n_vocab // 32 + 1))):
            text = rng.integers(n_vocab, size=30).tolist()
            samplers = [make_sampler(GenerateOptions(seed=1, **options), text, tokenizer, 2048) for _ in range(3)]
            for token in [*text[:4], *text[:3]]:
                for sampler in samplers:
                    sampler.append(token)
            wanted = samplers[0].wanted(allowed)
            assert wanted.k >= 1
            may = np.full(n_vocab, True)
            if allowed is not None:
                may = np.unpackbits(allowed.view(np.uint8), bitorder="little")[:n_vocab].astype(bool)
            largest = np.sort(logits[may])[::-1]
            floor = largest[wanted.k - 1] - wanted.margin if wanted.k <= len(largest) else OUT
            keep = may & (logits >= floor)
            keep[wanted.ids] = True
            least = np.where(keep, logits, np.float32(OUT))
            expected, got = (
                s.probabilities(row, allowed) for s, row in zip(samplers[1:], (logits, least), strict=True)
            )
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "samplers": ["top_p", "top_k"]},
        {"temperature": 1.0, "top_n_sigma": 1.0, "top_k": 40},
        {"temperature": 1.0, "typical_p": 0.5},
        {"temperature": 1.0, "xtc_probability": 0.1},
        {"temperature": 1.0, "mirostat_tau": 5.0},
        {"temperature": 1.0, "top_k": 5000},
    ],
)
def test_samplers_that_look_at_every_logit_say_so(options, demo_whole):
    sampler = make_sampler(GenerateOptions(**options), [1], demo_whole.tokenizer, 2048)
    assert sampler.wanted().k == 0


# ---- models ----


@pytest.fixture(scope="module")
def demo_whole():
    return russet.load(quantize="int8", head="whole", n_ctx=2048, prefix_cache=0)


@pytest.fixture(scope="module")
def demo_screened():
    return russet.load(quantize="int8", head="screened", n_ctx=2048, prefix_cache=0)


@pytest.mark.parametrize("n_steps", [700, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wanted", [Wanted(1), Wanted(40), Wanted(1, 2.0)], ids=["greedy", "top-40", "min-p"])
def test_steps_of_the_demo(demo_whole, demo_screened, wanted, n_steps):
    """Every one: the wanted logits to the bit. The text is drawn at random, so that it comes by many states."""
    rng = np.random.default_rng(14)
    whole, screened = demo_whole.session(), demo_screened.session()
    token, before = 1, demo_screened.head_info()
    for _ in range(n_steps):
        row = whole.forward([token])[0]
        got = screened.forward([token], wanted=wanted)[0]
        check_wanted(row, got, wanted)
        p = np.exp(row - row.max())
        token = int(rng.choice(len(p), p=p / p.sum()))
    after = demo_screened.head_info()
    assert after["tokens"] - before["tokens"] == n_steps
    assert after["bytes"] - before["bytes"] < after["whole_bytes"] - before["whole_bytes"]
    assert after["rows"] - before["rows"] < after["whole_rows"] - before["whole_rows"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {"temperature": 1.2, "min_p": 0.1, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_p": 0.9},
        {"logprobs": True, "top_logprobs": 5},
        {"choices": ["yes", "no", "maybe so"]},
        {"speculate": "lookup"},
    ],
    ids=lambda o: "-".join(o) or "greedy",
)
def test_texts_are_the_same(demo_whole, demo_screened, options):
    asked = {"temperature": 0.0, "max_tokens": 150, "seed": 3, **options}
    pieces = [
        [(piece.token, piece.logprob, piece.top_logprobs) for piece in model.stream("The king said that", **asked)]
        for model in (demo_whole, demo_screened)
    ]
    assert pieces[0] == pieces[1]
    assert len(pieces[0]) >= 1


@pytest.mark.parametrize("family", QUANTISABLE)
def test_every_family(tmp_path, family):
    """Tied heads and others, scaled logits; where there is a softcap, or a bias, the whole head is read."""
    make_quantisable(tmp_path, family)
    how = Quantization(bits=8, group_size=32)
    whole = russet.load(tmp_path, quantize=how, head="whole")
    if whole.config.logits_softcap:
        with pytest.raises(UsageError, match="a softcap"):
            russet.load(tmp_path, quantize=how, head="screened")
        return
    screened = russet.load(tmp_path, quantize=how, head="screened")
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 4}, {"temperature": 1.0, "min_p": 0.3}):
        asked = {"max_tokens": 25, "ignore_eos": True, "seed": 1, **options}
        assert screened.generate_tokens([1, 2, 3], **asked) == whole.generate_tokens([1, 2, 3], **asked)
    assert screened.head_info()["tokens"] >= 75


def test_a_kept_file_is_read_only_by_the_head_it_was_written_for(tmp_path):
    shutil.copytree(DEMO, tmp_path / "demo")
    load = partial(russet.load, tmp_path / "demo", quantize="int8", keep_packed=True)
    expected = load(head="screened").generate_tokens("Once", max_tokens=20, temperature=0)
    file = next((tmp_path / "demo/.russet").iterdir())
    written = file.stat().st_mtime_ns
    assert load(head="likely").generate_tokens("Once", max_tokens=20, temperature=0) == expected
    assert file.stat().st_mtime_ns == written
    assert load(head="whole").generate_tokens("Once", max_tokens=20, temperature=0) == expected
    assert file.stat().st_mtime_ns > written


def test_what_can_be_screened_and_what_not():
    with pytest.raises(UsageError, match="'whole'"):
        russet.load(head="screened")  # float weights
    with pytest.raises(UsageError, match="4 bits"):
        russet.load(quantize="int4", head="likely")
    with pytest.raises(UsageError, match="head: expected auto"):
        russet.load(quantize="int8", head="half")
    with pytest.raises(UsageError, match="head: the CPU"):
        russet.load(backend="metal-sim", head="screened")
    assert russet.load(quantize="int4", head="auto").generate("A", max_tokens=2, temperature=0)
    for head in ("whole", "auto"):  # so small a head lies in the cache
        with pytest.raises(BackendError, match="not screened"):
            russet.load(quantize="int8", head=head).head_info()


def test_likely_says_what_it_read(demo_whole):
    model = russet.load(quantize="int8", head="likely", n_ctx=512)
    asked = {"max_tokens": 200, "temperature": 0.0, "ignore_eos": True}
    assert model.generate_tokens("Once", **asked) == demo_whole.generate_tokens("Once", **asked)
    info = model.head_info()
    assert info["tokens"] == 200
    assert 0.5 * info["whole_bytes"] < info["bytes"] < info["whole_bytes"]
