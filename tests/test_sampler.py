"""The sampler against the textbook (reference/sampling.py): which tokens may come, how often, the same for a seed.

Chi-square tests have fixed seeds and so cannot fail by chance; with other seeds one in a million would.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reference import sampling as textbook
from russet import UsageError, _core
from russet.errors import NumericalError

#: option -> the step that takes it alone
STEPS = {
    "temperature": textbook.temperature,
    "top_k": textbook.top_k,
    "top_p": textbook.top_p,
    "min_p": textbook.min_p,
    "typical_p": textbook.typical_p,
    "top_n_sigma": textbook.top_n_sigma,
    "xtc": textbook.xtc,
    "mirostat": textbook.mirostat,
}
GRID = [
    {"temperature": 1.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.5},
    {"typical_p": 0.95},
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 2.0},
    {"xtc": 0.05},
    {"mirostat": 3.0},
    {"temperature": 0.3, "top_p": 0.9},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.2},
    {"temperature": 3.0, "top_k": 40, "typical_p": 0.9},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.7},
    {"min_p": 0.02, "xtc": 0.1, "temperature": 1.5, "mirostat": 2.0},
    {"top_n_sigma": 1.5, "temperature": 0.5, "top_p": 0.99, "xtc": 0.01},
]
SIZES = [3, 100, 5000]


def sampler(seed=0, prompt=(), **options):
    core = _core.SamplingOptions()
    core.temperature = options.pop("temperature", 1.0)
    for name, value in options.items():
        setattr(core, name, value)
    return _core.Sampler(core, seed, prompt)


def chain(options, seed=0):
    """A sampler of exactly these steps, in their order; xtc always acts, mirostat starts with a mu of its number."""
    numbers = dict(options)
    if "xtc" in numbers:
        numbers |= {"xtc_probability": 1.0, "xtc_threshold": numbers.pop("xtc")}
    if "mirostat" in numbers:
        numbers |= {"mirostat_tau": numbers.pop("mirostat") / 2, "mirostat_eta": 0.0}
    return sampler(seed, steps=list(options), **numbers)


def textbook_logits(logits, options):
    x = logits.astype(np.float64)
    for step, number in options.items():
        x = STEPS[step](x, number)
    return x


def splitmix64(seed):
    mask = 2**64 - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield ((z ^ (z >> 31)) >> 11) / 2**53


def random_logits(n, seed=0):
    return (2 * np.random.default_rng(seed).normal(size=n)).astype(np.float32)


def total_variation(p, q):
    return np.abs(p - q).sum() / 2


def assert_chi_square(tokens, p):
    """Counts of the tokens are drawn from p, at a false-alarm rate of 1e-6."""
    counts = np.bincount(tokens, minlength=len(p))
    expected = p * len(tokens)
    assert counts[p == 0].sum() == 0
    often = expected >= 5  # the test's own condition; the rest is one class
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(observed) - 1
    # Wilson and Hilferty (PNAS 17, 1931): the cube root of chi-square over its freedom is nearly normal; 4.75 sigma.
    variance = 2 / (9 * max(freedom, 1))
    assert statistic <= freedom * (1 - variance + 4.75 * np.sqrt(variance)) ** 3


# ---- greedy ----


def test_greedy_takes_the_likeliest_and_the_lowest_id_on_a_tie():
    logits = np.array([1, 5, 3, 5, 5, -np.inf], np.float32)
    assert sampler(temperature=0).sample(logits) == 1
    assert sampler(temperature=0, top_k=3, top_p=0.5, xtc_probability=1.0).sample(logits) == 1
    assert sampler(temperature=0).sample(np.full(1000, -7, np.float32)) == 0


def test_greedy_finds_the_likeliest_anywhere():
    draws = sampler(temperature=0)
    for at in range(300):
        logits = random_logits(300, at)
        logits[at] = 50
        assert draws.sample(logits) == at
        np.testing.assert_array_equal(draws.probabilities(logits), np.arange(300) == at)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-44, 1e-300])
def test_small_temperatures_approach_greedy(temperature):
    draws = sampler(temperature=temperature)
    for seed in range(50):
        logits = random_logits(500, seed)
        assert draws.sample(logits) == logits.argmax()


def test_large_temperatures_approach_chance():
    p = sampler(temperature=1e300).probabilities(random_logits(500))
    np.testing.assert_allclose(p, 1 / 500, rtol=1e-6)


# ---- damage, and what is no damage ----


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[1, np.nan, 2], [np.nan] * 3, [-np.inf] * 3, [1, np.inf]], ids=lambda x: str(x))
def test_damaged_logits_are_an_error(temperature, logits):
    with pytest.raises(NumericalError, match="NaN or infinity"):
        sampler(temperature=temperature).sample(np.array(logits, np.float32))


def test_no_logits_are_an_error():
    with pytest.raises(NumericalError, match="logits: expected numbers, got none"):
        sampler().sample(np.zeros(0, np.float32))


def test_damage_is_seen_wherever_it_is_and_before_it_is_banned():
    for at in range(0, 1000, 37):
        logits = random_logits(1000)
        logits[at] = np.nan
        with pytest.raises(NumericalError):
            sampler(top_k=1, logit_bias=[(at, -np.inf)]).sample(logits)


def test_a_sampler_goes_on_after_an_error():
    draws = sampler(temperature=0)
    with pytest.raises(NumericalError):
        draws.sample(np.array([np.nan], np.float32))
    assert draws.sample(np.array([1, 2], np.float32)) == 1


@pytest.mark.parametrize("options", GRID, ids=str)
def test_impossible_tokens_never_come(options):
    logits = np.full(1000, -np.inf, np.float32)
    logits[[10, 500, 999]] = [1, 1.5, 1.25]
    assert set(np.flatnonzero(chain(options).probabilities(logits))) <= {10, 500, 999}


@pytest.mark.parametrize("options", GRID, ids=str)
def test_one_token_always_comes(options):
    assert chain(options).sample(np.array([-5], np.float32)) == 0
    lone = np.full(300, -np.inf, np.float32)
    lone[200] = -3e38
    assert chain(options).sample(lone) == 200


@pytest.mark.parametrize("options", GRID, ids=str)
def test_extreme_logits_do_not_overflow(options):
    for logits in ([3e38, -3e38, 2e38], [1e30, -1e30, 0], [1e-40, -1e-40, 0, -1e38]):
        p = chain(options).probabilities(np.array(logits, np.float32))
        assert np.isfinite(p).all()
        assert p.sum() == pytest.approx(1)


def test_weights_too_small_for_a_float_are_no_weights():
    logits = np.array([0, -95, -103, -200], np.float32)  # e^-95 is subnormal
    draws = sampler()
    assert {draws.sample(logits) for _ in range(1000)} == {0}
    assert draws.probabilities(logits)[1:].max() < 1e-37


# ---- the distribution ----


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", GRID, ids=str)
def test_the_distribution_is_the_textbooks(options, n):
    for seed in range(3):
        logits = random_logits(n, seed)
        expected = textbook.softmax(textbook_logits(logits, options))
        p = chain(options).probabilities(logits)
        np.testing.assert_array_equal(p > 0, expected > 0)
        # weights are floats: their exponents are rounded twice (see test_sum_exp.py), and reach 10 / 0.3
        assert total_variation(p, expected) < 5e-6


CUTS = st.sampled_from(["top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc", "mirostat"])
NUMBERS = {
    "top_k": st.integers(1, 40),
    "top_p": st.floats(0.01, 0.999),
    "min_p": st.floats(0.001, 1.0),
    "typical_p": st.floats(0.01, 0.999),
    "top_n_sigma": st.floats(0.01, 4.0),
    "xtc": st.floats(0.001, 0.5),
    "mirostat": st.floats(0.1, 12.0),
}


@st.composite
def chains(draw):
    names = draw(st.lists(CUTS, unique=True, min_size=1, max_size=4))
    return {name: draw(NUMBERS[name]) for name in names}


def moved(options, share):
    """The same chain, its numbers a little less or more; min_p stays at most 1."""
    return {
        name: x if name == "top_k" else min(x * (1 + share), 1.0 if name == "min_p" else np.inf)
        for name, x in options.items()
    }


@settings(max_examples=300, deadline=None)
@given(
    # Few different logits, so that most cuts go through ties.
    logits=st.lists(st.sampled_from([-np.inf, -4, -1, 0, 0.5, 1, 3]), min_size=1, max_size=300),
    options=chains(),
)
def test_what_is_kept_is_what_the_textbook_keeps(logits, options):
    logits = np.array(logits, np.float32)
    assume(np.isfinite(logits).any())
    expected = textbook_logits(logits, options)
    # A cut within rounding of a probability may fall on either side of it.
    for share in (-1e-5, 1e-5):
        near = textbook_logits(logits, moved(options, share))
        assume(np.array_equal(np.isfinite(near), np.isfinite(expected)))
    p = chain(options).probabilities(logits)
    np.testing.assert_array_equal(p > 0, np.isfinite(expected))
    assert total_variation(p, textbook.softmax(expected)) < 5e-6


@pytest.mark.parametrize("n", [25, 1000])
@pytest.mark.parametrize("options", GRID, ids=str)
def test_frequencies_pass_chi_square(options, n):
    logits = random_logits(n)
    draws = chain(options, seed=n)
    tokens = [draws.sample(logits) for _ in range(10_000)]
    assert_chi_square(tokens, textbook.softmax(textbook_logits(logits, options)))


@pytest.mark.parametrize("options", GRID, ids=str)
def test_frequencies_of_ties_pass_chi_square(options):
    logits = np.repeat(np.array([2, 0, 1, -np.inf], np.float32), 50)
    draws = chain(options, seed=1)
    tokens = [draws.sample(logits) for _ in range(10_000)]
    assert_chi_square(tokens, textbook.softmax(textbook_logits(logits, options)))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", GRID, ids=str)
def test_draws_walk_the_textbooks_probabilities_in_order_of_id(options, n):
    # Draw by draw, which holds every platform to the same tokens for a seed.
    logits = random_logits(n)
    p = textbook.softmax(textbook_logits(logits, options))
    draws, uniform = chain(options, seed=1234), splitmix64(1234)
    cumulative = np.cumsum(p)
    for _ in range(300):
        if "xtc" in options:
            next(uniform)
        u = next(uniform)
        drawn = draws.sample(logits)
        if drawn != np.searchsorted(cumulative, u, side="right"):  # u within rounding of a boundary
            assert np.abs(cumulative - u).min() < 5e-6
            assert p[drawn] > 0


def test_ties_are_cut_in_order_of_id():
    logits = np.zeros(200, np.float32)
    for options in ({"top_k": 100}, {"top_p": 0.5}, {"typical_p": 0.5}):
        np.testing.assert_array_equal(chain(options).probabilities(logits) > 0, np.arange(200) < 100)


def test_a_negative_zero_is_a_zero():
    logits = np.array([-0.0, 0.0, -0.0, 0.0], np.float32)
    np.testing.assert_array_equal(chain({"top_k": 2}).probabilities(logits), [0.5, 0.5, 0, 0])


def test_order_matters_as_the_textbook_says():
    logits = random_logits(200)
    kept = {
        order: (chain(dict(order)).probabilities(logits) > 0).sum()
        for order in [(("temperature", 2.0), ("top_p", 0.9)), (("top_p", 0.9), ("temperature", 2.0))]
    }
    assert len(set(kept.values())) == 2
    for order, n_kept in kept.items():
        assert n_kept == np.isfinite(textbook_logits(logits, dict(order))).sum()


def test_a_step_that_is_left_out_is_not_taken():
    logits = random_logits(200)
    np.testing.assert_array_equal(
        sampler(steps=["top_k"], top_k=5, min_p=0.9, temperature=7.0).probabilities(logits),
        chain({"top_k": 5}).probabilities(logits),
    )
    assert sampler(steps=[], temperature=0, repetition_penalty=9.0, prompt=[1]).sample(np.array([1, 2], "f4")) == 1


@pytest.mark.parametrize(("names", "message"), [(["top_q"], "no step is called 'top_q'"), (["xtc"] * 2, "there twice")])
def test_unknown_and_doubled_steps_are_refused(names, message):
    with pytest.raises(UsageError, match=message):
        sampler(steps=names)


def test_same_seed_same_draws():
    logits = random_logits(1000)
    samplers = [sampler(seed) for seed in (1, 1, 2)]
    runs = [[s.sample(logits) for _ in range(100)] for s in samplers]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_every_instruction_set_draws_the_same():
    # Weights differ in their last bits: of so many draws one in ten thousand sets would show that.
    program = (
        "import numpy as np, sys; sys.path.insert(0, 'tests'); import test_sampler as t;"
        "x = t.random_logits(3000); print([[s.sample(x) for _ in range(40)] for s in map(t.chain, t.GRID)])"
    )
    said = {
        isa: subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"RUSSET_ISA": isa},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for isa in ("scalar", *{"avx2", "avx512", "neon"}.intersection(_core.cpu_features()))
    }
    assert len(set(said.values())) == 1


def test_xtc_acts_as_often_as_it_is_told():
    logits = np.array([1, 1, -9], np.float32)
    draws = sampler(steps=["xtc"], xtc_probability=0.25, xtc_threshold=0.1)
    tokens = [draws.sample(logits) for _ in range(10_000)]
    p = textbook.softmax(logits.astype(np.float64))
    left = textbook.softmax(textbook.xtc(logits.astype(np.float64), 0.1))
    assert_chi_square(tokens, 0.75 * p + 0.25 * left)


def test_mirostat_moves_mu_by_the_surprise_of_each_draw():
    logits, tau, eta = random_logits(500), 3.0, 0.2
    draws, uniform = sampler(7, steps=["mirostat"], mirostat_tau=tau, mirostat_eta=eta), splitmix64(7)
    mu, surprises = 2 * tau, []
    for _ in range(400):
        p = textbook.softmax(textbook.mirostat(logits.astype(np.float64), mu))
        np.testing.assert_array_equal(draws.probabilities(logits) > 0, p > 0)
        token = draws.sample(logits)
        assert token == np.searchsorted(np.cumsum(p), next(uniform), side="right")
        surprises.append(-np.log2(p[token]))
        mu -= eta * (surprises[-1] - tau)
    assert np.mean(surprises[100:]) == pytest.approx(tau, abs=0.1)  # what mirostat is for


# ---- against transformers ----


@pytest.mark.parametrize("seed", range(3))
def test_transformers_keeps_the_same(seed):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits(1000, seed)
    prompt = [3, 5, 5, 900]
    theirs = torch.tensor(logits)[None]
    for warper in (
        warpers.RepetitionPenaltyLogitsProcessor(1.3),
        warpers.TemperatureLogitsWarper(0.7),
        warpers.TopKLogitsWarper(400),
        warpers.TopPLogitsWarper(0.95),
        warpers.MinPLogitsWarper(0.01),
        warpers.TypicalLogitsWarper(0.9),
    ):
        theirs = warper(torch.tensor([prompt]), theirs)
    expected = torch.softmax(theirs, -1)[0].numpy()
    ours = sampler(
        prompt=prompt, repetition_penalty=1.3, temperature=0.7, top_k=400, top_p=0.95, min_p=0.01, typical_p=0.9
    ).probabilities(logits)
    np.testing.assert_array_equal(ours > 0, expected > 0)
    assert total_variation(ours, expected) < 1e-5  # both are floats


# ---- penalties, biases, bans ----

TEXTS = st.lists(st.integers(0, 5), max_size=25)


@settings(max_examples=150, deadline=None)
@given(
    prompt=TEXTS,
    generated=TEXTS,
    repetition=st.sampled_from([1.0, 1.3, 0.8]),
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25]),
    window=st.sampled_from([0, 1, 4, 100]),
)
def test_penalties_are_the_textbooks(prompt, generated, repetition, presence, frequency, window):
    draws = sampler(
        prompt=prompt,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_window=window,
    )
    for token in generated:
        draws.append(token)
    logits = random_logits(8)
    expected = textbook.penalties(
        logits.astype(np.float64),
        prompt,
        generated,
        repetition=repetition,
        presence=presence,
        frequency=frequency,
        window=window,
    )
    assert total_variation(draws.probabilities(logits), textbook.softmax(expected)) < 5e-6


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.integers(0, 3), max_size=40),
    multiplier=st.sampled_from([0.5, 2.0]),
    base=st.sampled_from([1.0, 1.75]),
    allowed_length=st.integers(1, 4),
    window=st.sampled_from([0, 5, 20]),
    breakers=st.sampled_from([(), (3,), (0, 2)]),
)
def test_dry_is_the_textbooks(text, multiplier, base, allowed_length, window, breakers):
    draws = sampler(
        prompt=text,
        dry_multiplier=multiplier,
        dry_base=base,
        dry_allowed_length=allowed_length,
        dry_window=window,
        dry_breakers=breakers,
    )
    logits = random_logits(5)
    expected = textbook.dry(
        logits.astype(np.float64),
        text,
        multiplier=multiplier,
        base=base,
        allowed_length=allowed_length,
        window=window,
        breakers=breakers,
    )
    # penalties reach 2 * 1.75^38: all the others' probability is then 0, to a float as to the textbook
    assert total_variation(draws.probabilities(logits), textbook.softmax(expected)) < 5e-6


def test_penalties_change_what_is_left_wherever_they_stand():
    logits = random_logits(300)
    seen = np.argsort(-logits)[[0, 3, 250]].tolist()
    penalised = lambda x: textbook.penalties(x, seen, [], repetition=1.5)  # noqa: E731
    for steps in (["temperature", "penalties", "top_k"], ["top_k", "temperature", "penalties"]):
        x = logits.astype(np.float64)
        for step in steps:
            x = penalised(x) if step == "penalties" else STEPS[step](x, {"temperature": 0.5, "top_k": 9}[step])
        p = sampler(prompt=seen, steps=steps, repetition_penalty=1.5, temperature=0.5, top_k=9).probabilities(logits)
        assert total_variation(p, textbook.softmax(x)) < 5e-6


def test_penalties_of_many_tokens_reach_every_block():
    logits = random_logits(5000)
    prompt = np.random.default_rng(0).integers(0, 5000, 700).tolist()
    options = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
    x = textbook.penalties(logits.astype(np.float64), prompt, [], repetition=1.7)
    for step, number in options.items():
        x = STEPS[step](x, number)
    p = sampler(prompt=prompt, repetition_penalty=1.7, **options).probabilities(logits)
    np.testing.assert_array_equal(p > 0, np.isfinite(x))
    assert total_variation(p, textbook.softmax(x)) < 5e-6


def test_the_row_itself_stays_as_it_is():
    logits = random_logits(5000)
    before = logits.copy()
    logits.flags.writeable = False
    sampler(prompt=[1, 2, 3], repetition_penalty=2.0, logit_bias=[(7, -np.inf)], top_p=0.9).sample(logits)
    np.testing.assert_array_equal(logits, before)


def test_ids_of_no_token_change_nothing():
    logits = random_logits(10)
    draws = sampler(prompt=[99, -1], repetition_penalty=2.0, logit_bias=[(10, 5.0)], bad_words=[[10]])
    np.testing.assert_array_equal(draws.probabilities(logits), sampler().probabilities(logits))


def test_biases_and_bans():
    logits = np.array([1, 2, 3, 4], np.float32)
    draws = sampler(temperature=0, logit_bias=[(0, 3.5), (3, -np.inf)], bad_words=[[1, 0], [2, 1, 3]])
    assert draws.sample(logits) == 0
    draws.append(1)
    assert draws.sample(logits) == 2  # 1, 0 would complete a bad word
    draws.append(1)
    draws.append(0)
    assert draws.sample(logits) == 0


def test_ends_come_only_after_min_tokens():
    logits = np.array([1, 2, 3, 4], np.float32)
    draws = sampler(temperature=0, min_tokens=2, ends=[3, 2], prompt=[0, 0, 0])
    tokens = []
    for _ in range(3):
        tokens.append(draws.sample(logits))
        draws.append(tokens[-1])
    assert tokens == [1, 1, 3]


def test_where_every_token_is_banned_that_is_said():
    draws = sampler(logit_bias=[(0, -np.inf), (1, -np.inf)])
    with pytest.raises(UsageError, match="every token that could come is banned"):
        draws.sample(np.array([1, 2], np.float32))


# ---- several rows, logprobs ----


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_rows_are_sampled_as_each_alone(n_threads):
    rows = np.stack([random_logits(2000, seed) for seed in range(7)])
    make = lambda i: chain(GRID[i], seed=i)  # noqa: E731
    together, alone = [make(i) for i in range(7)], [make(i) for i in range(7)]
    for _ in range(20):
        assert _core.sample_rows(together, rows, n_threads) == [s.sample(x) for s, x in zip(alone, rows, strict=True)]


def test_rows_and_samplers_must_fit():
    one = sampler()
    with pytest.raises(UsageError, match=r"expected logits \[1, vocab_size\]"):
        _core.sample_rows([one], np.zeros((2, 5), np.float32))
    with pytest.raises(UsageError, match="appears twice"):
        _core.sample_rows([one, one], np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("n", [1, 3, 500, 20_000])
def test_logprobs_are_the_models_own(n):
    logits = random_logits(n)
    logits[n // 2] = -np.inf if n > 1 else 0
    expected = np.log(textbook.softmax(logits.astype(np.float64)), where=np.isfinite(logits), out=np.full(n, -np.inf))
    order = np.lexsort((np.arange(n), -logits))[:20]
    for token in (0, n // 2, n - 1):
        chosen, top = _core.logprobs(logits, token, 20)
        assert chosen == pytest.approx(expected[token], abs=1e-5)
        assert [id for id, _ in top] == [id for id in order if np.isfinite(logits[id])]
        np.testing.assert_allclose([logprob for _, logprob in top], expected[[id for id, _ in top]], atol=1e-5)
    assert _core.logprobs(logits, 0)[1] == []


@pytest.mark.parametrize("n_tokens", [1, 3, 500, 20_000])
@pytest.mark.parametrize("n", [1, 2, 8, 300])
def test_the_best_tokens_are_those_of_a_sort(n_tokens, n):
    logits = random_logits(n_tokens)
    logits[: n_tokens // 3] = logits[: n_tokens // 3].round()  # many are equal: the lower ids come first
    if n_tokens > 1:
        logits[n_tokens // 2] = -np.inf
    expected = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    order = [id for id in np.lexsort((np.arange(n_tokens), -logits))[:n] if np.isfinite(logits[id])]
    best = sampler(temperature=0.3, top_k=1).best(logits, n)  # these two are not asked
    assert [id for id, _, _ in best] == order
    np.testing.assert_allclose([logprob for _, _, logprob in best], expected[order], atol=1e-5)
    assert all(score == logprob for _, score, logprob in best)


def test_biases_bans_and_penalties_change_scores_and_not_logprobs():
    logits = random_logits(1000)
    logprobs = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    likeliest = np.argsort(-logits)[:6].tolist()
    options = {"logit_bias": [(likeliest[0], -np.inf), (likeliest[5], 3.0)], "bad_words": [[likeliest[1]]]}
    one = sampler(prompt=[likeliest[2]], repetition_penalty=1.5, presence_penalty=0.5, **options)
    one.append(likeliest[3])
    scores = logprobs.copy()
    scores[likeliest[:2]] = -np.inf
    scores[likeliest[5]] += 3
    scores[likeliest[2:4]] *= 1.5  # a logprob is negative
    scores[likeliest[3]] -= 0.5
    order = np.argsort(-scores)[:20].tolist()
    best = one.best(logits, 20)
    assert [id for id, _, _ in best] == order
    np.testing.assert_allclose([score for _, score, _ in best], scores[order], atol=1e-5)
    np.testing.assert_allclose([logprob for _, _, logprob in best], logprobs[order], atol=1e-5)


def test_the_best_are_among_those_allowed():
    logits = random_logits(1000)
    allowed = np.zeros(1000, bool)
    allowed[[3, 500, 999]] = True
    best = sampler().best(logits, 8, bits(allowed))
    assert sorted(id for id, _, _ in best) == [3, 500, 999]
    assert [score for _, score, _ in best] == sorted((score for _, score, _ in best), reverse=True)
    banned = sampler(logit_bias=[(500, -np.inf)])
    assert {id for id, _, _ in banned.best(logits, 8, bits(allowed))} == {3, 999}
    with pytest.raises(UsageError, match="best: expected n from 1 on, got 0"):
        sampler().best(logits, 0)


# ---- allowed tokens ----


def bits(allowed):
    """A mask [n] as sample() takes it."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("size", [*SIZES, 31, 32, 33, 4097])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"top_k": 7}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_tokens_that_are_not_allowed_are_no_candidates(size, share, options):
    logits = random_logits(size, seed=size)
    allowed = np.random.default_rng(size).random(size) < share
    allowed[size // 2] = True
    masked = np.where(allowed, logits, -np.inf)
    draws = chain(options)
    p = draws.probabilities(logits, bits(allowed))
    assert p[~allowed].sum() == 0
    # The sums of the same weights, in another order: float32 rounding.
    np.testing.assert_allclose(p, textbook.softmax(textbook_logits(masked, options)), rtol=1e-4, atol=1e-7)
    assert allowed[draws.sample(logits, bits(allowed))]
    assert sampler(temperature=0).sample(logits, bits(allowed)) == masked.argmax()


def test_tokens_beyond_the_mask_are_not_allowed_and_bits_beyond_the_row_mean_nothing():
    logits = np.arange(100, dtype=np.float32)
    assert sampler(temperature=0).sample(logits, bits(np.ones(40, bool))) == 39
    assert sampler(temperature=0).sample(logits, np.full(9, -1, np.int32).view(np.uint32)) == 99


def test_bans_and_penalties_act_on_what_is_allowed():
    allowed = np.isin(np.arange(100), [3, 50])
    logits = np.arange(100, dtype=np.float32)
    assert sampler(temperature=0, logit_bias=[(50, -60.0), (99, 1e3)]).sample(logits, bits(allowed)) == 3
    assert sampler(temperature=0, repetition_penalty=50.0, prompt=[50]).sample(logits, bits(allowed)) == 3


def test_a_mask_of_nothing_is_refused():
    logits = np.zeros(100, np.float32)
    with pytest.raises(UsageError, match="none of the model's tokens is allowed"):
        sampler().sample(logits, bits(np.zeros(100, bool)))
    with pytest.raises(UsageError, match="allowed: expected one row of words"):
        sampler().sample(logits, np.zeros(0, np.uint32))
    with pytest.raises(UsageError, match="min_tokens or a grammar"):
        sampler(logit_bias=[(7, -np.inf)]).sample(logits, bits(np.arange(100) == 7))
