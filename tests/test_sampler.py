"""The sampler against its textbook: which tokens may come, how often, and in which order for a seed."""

import numpy as np
import pytest

from russet import _core
from russet.errors import NumericalError

GRID = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.2},
    {"temperature": 0.3, "top_p": 0.9},
    {"temperature": 3.0, "top_k": 40, "min_p": 0.05},
]


def sampler(*, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, repetition_penalty=1.0):
    return _core.Sampler(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )


def textbook(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """(ids, probabilities), in the order the draw walks: by id, or likeliest first once something was cut."""
    order = np.lexsort((np.arange(len(logits)), -logits))[: top_k or None]
    order = order[np.isfinite(logits[order])]
    p = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    if top_p < 1:
        reached = np.cumsum(p) >= top_p * p.sum()
        order, p = order[: reached.argmax() + 1], p[: reached.argmax() + 1]
    order, p = order[p >= min_p * p[0]], p[p >= min_p * p[0]]
    if top_p == 1 and not 0 < top_k < np.isfinite(logits).sum():
        by_id = np.argsort(order)
        order, p = order[by_id], p[by_id]
    return order, p / p.sum()


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


# ---- greedy ----


def test_greedy_takes_the_likeliest_and_the_lowest_id_on_a_tie():
    logits = np.array([1, 5, 3, 5, 5, -np.inf], np.float32)
    assert sampler(temperature=0).sample(logits) == 1
    assert sampler(temperature=0, top_k=3, top_p=0.5).sample(logits) == 1
    assert sampler(temperature=0).sample(np.full(10, -7, np.float32)) == 0


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-44])
def test_small_temperatures_approach_greedy(temperature):
    draws = sampler(temperature=temperature)
    for seed in range(50):
        logits = random_logits(500, seed)
        assert draws.sample(logits) == logits.argmax()


# ---- damage ----


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[1, np.nan, 2], [np.nan] * 3, [-np.inf] * 3, [1, np.inf], []], ids=lambda x: str(x))
def test_damaged_logits_are_an_error(temperature, logits):
    with pytest.raises(NumericalError, match="NaN or infinity"):
        sampler(temperature=temperature).sample(np.array(logits, np.float32))


def test_impossible_tokens_never_come():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[10, 500, 999]] = [1, 2, 3]
    draws = sampler(temperature=100.0)
    assert {draws.sample(logits) for _ in range(200)} == {10, 500, 999}


def test_extreme_logits_do_not_overflow():
    logits = np.array([3e38, -3e38, 2e38], np.float32)
    assert {sampler(seed=seed).sample(logits) for seed in range(20)} == {0}


# ---- which tokens, how often, in which order ----


@pytest.mark.parametrize("options", GRID, ids=str)
@pytest.mark.parametrize("n", [3, 100, 5000])
def test_draws_are_the_textbooks(options, n):
    # Draw by draw: the same uniform numbers walked through the same cumulative probabilities, which also holds every
    # platform to the same text for a seed.
    logits = random_logits(n)
    ids, p = textbook(logits, **options)
    draws, uniform = sampler(**options, seed=1234), splitmix64(1234)
    cumulative = np.cumsum(p)
    for _ in range(500):
        u = next(uniform)
        expected = ids[min(np.searchsorted(cumulative, u, side="right"), len(ids) - 1)]
        drawn = draws.sample(logits)
        if drawn != expected:  # u within rounding of a boundary
            assert np.abs(cumulative - u).min() < 1e-6
            assert drawn in ids


@pytest.mark.parametrize("options", GRID, ids=str)
def test_support_is_the_textbooks(options):
    logits = random_logits(30)
    ids, p = textbook(logits, **options)
    draws = sampler(**options, seed=5)
    seen = {draws.sample(logits) for _ in range(20_000)}
    assert seen <= set(ids.tolist())
    # A token of probability 1e-3 stays away 20,000 times with probability e^-20.
    assert seen >= set(ids[p > 1e-3].tolist())


@pytest.mark.parametrize("options", GRID, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_frequencies_pass_chi_square(options, seed):
    n_draws = 20_000
    logits = random_logits(25)
    ids, p = textbook(logits, **options)
    draws = sampler(**options, seed=seed)
    counts = np.bincount([draws.sample(logits) for _ in range(n_draws)], minlength=25)[ids]
    assert counts.sum() == n_draws
    often = p * n_draws >= 5  # the test's own condition; the rest is one class
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(p[often], p[~often].sum()) * n_draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(observed) - 1
    # Mean `freedom`, variance 2 freedom: 5 sigma. The seeds are fixed, so it cannot fail by chance.
    assert statistic <= freedom + 5 * np.sqrt(2 * freedom)


def test_ties_are_cut_in_order_of_id():
    logits = np.zeros(200, np.float32)
    for options in ({"top_k": 100}, {"top_p": 0.5}):
        draws = sampler(**options)
        assert {draws.sample(logits) for _ in range(3000)} == set(range(100))


def test_same_seed_same_draws():
    logits = random_logits(1000)
    samplers = [sampler(seed=seed) for seed in (1, 1, 2)]
    runs = [[s.sample(logits) for _ in range(100)] for s in samplers]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


# ---- repetition penalty ----


def test_repetition_penalty_lowers_what_was_seen():
    logits = np.array([4, 3, -1, -1.5], np.float32)
    draws = sampler(temperature=0, repetition_penalty=2.0)
    assert draws.sample(logits) == 0
    assert draws.sample(logits, [0]) == 1
    assert draws.sample(logits, [0, 0, 1]) == 0  # 2 and 1.5: once however often it was seen
    assert draws.sample(logits[2:], [0]) == 1  # -2 and -1.5: negative ones are multiplied
    assert draws.sample(logits, [0, -1, 99]) == 1  # ids of no token change nothing
    assert sampler(temperature=0).sample(logits, [0]) == 0
