"""A cache that keeps a share of its blocks: what counts as looked at, which blocks go, and what stays exact."""

import dataclasses

import numpy as np
import pytest

from kernels import U, all_variants, sum_bound
from random_model import random_config, random_weights
from russet import _core
from russet.backends.cpu import CpuBackend
from russet.errors import UsageError

BLOCK = _core.BLOCK_TOKENS
N_CTX = 1024


def shares(q, k, scale, window, n_sinks, softcap, absent):
    """Softmax weights in float64: [n_tokens, n_heads, n_keys]."""
    scores = np.einsum("thc,jc->thj", q.astype(np.float64), k.astype(np.float64)) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    pos = np.arange(len(k) - len(q), len(k))[:, None]
    j = np.arange(len(k))[None]
    seen = (j <= pos) & ~np.isin(j // BLOCK, sorted(absent))
    if window:
        seen &= (j > pos - window) | (j < n_sinks)
    scores = np.where(seen[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("variant", all_variants("attention_mass"))
@pytest.mark.parametrize("keys", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize(
    ("n_tokens", "n_heads", "n_keys", "head_dim", "options"),
    [
        (1, 1, 1, 8, {}),
        (3, 2, 200, 33, {}),
        (16, 4, 129, 64, {"softcap": 3.0}),
        (2, 1, 500, 16, {"window": 100, "n_sinks": 5}),
        (2, 3, 400, 16, {"absent": {1, 4}}),
    ],
)
def test_mass(variant, keys, n_tokens, n_heads, n_keys, head_dim, options):
    rng = np.random.default_rng(n_keys)
    q = rng.normal(size=(n_tokens, n_heads, head_dim)).astype(np.float32)
    k = rng.normal(size=(n_keys, head_dim)).astype(np.float32)
    stored = _core.kernels.kv_store("ref", k, k, keys=keys)[0]
    said = {"window": 0, "n_sinks": 0, "softcap": 0.0, "absent": set()} | options
    p = shares(q, stored, 0.3, **said)
    padded = np.zeros((*p.shape[:2], -(-n_keys // BLOCK) * BLOCK))
    padded[..., :n_keys] = p
    expected = (padded.reshape(*p.shape[:2], -1, BLOCK) ** 2).sum(axis=(0, 1, 3))
    actual = _core.kernels.attention_mass(variant, q, k, scale=0.3, keys=keys, **said)
    # A score that is off by e changes its share by e, and its square by twice that; the sums of it round too.
    error = 0.3 * sum_bound(head_dim) * (np.abs(q).astype(np.float64) @ np.abs(stored).T).max() + 10 * U
    np.testing.assert_allclose(actual, expected, rtol=4 * error + 20 * U, atol=1e-30)


def backend(budget, **changes):
    config = random_config(n_layers=2, max_ctx=N_CTX, **changes)
    return CpuBackend(config, random_weights(config), threads=2, kv_budget=budget)


def text(n, seed=0):
    return np.random.default_rng(seed).integers(0, 20, n).tolist()


def tables(session):
    config = random_config(n_layers=2)
    return [session.cache.table(i, h) for i in range(config.n_layers) for h in range(config.n_kv_heads)]


def test_a_budget_of_one_changes_nothing():
    ids = text(600)
    np.testing.assert_array_equal(
        backend(1.0).session(N_CTX).forward(ids, all_logits=True),
        backend(1.0).session(N_CTX).forward(ids, all_logits=True),
    )
    with pytest.raises(UsageError, match="does not count"):
        backend(1.0).session(N_CTX).cache.mass(0, 0)


def test_a_budget_that_is_never_reached_changes_nothing():
    exact, small = backend(1.0).session(N_CTX), backend(0.1).session(N_CTX)
    ids = text(3 * BLOCK)  # the first block and the last two stay in any case
    np.testing.assert_array_equal(exact.forward(ids, all_logits=True), small.forward(ids, all_logits=True))


@pytest.mark.parametrize("budget", [0.8, 0.5, 0.4])
def test_the_budget_is_kept(budget):
    session = backend(budget).session(N_CTX)
    ids = text(N_CTX - 1)
    for begin in range(0, 900, 100):
        session.forward(ids[begin : begin + 100])
        kept, n_blocks = (sum(map(size, tables(session))) for size in (np.count_nonzero, len))
        assert kept <= max(np.ceil(budget * n_blocks), 3 * len(tables(session)))  # three of each head stay
    for id in ids[900:]:
        session.forward([id])
    kept = [np.flatnonzero(table).tolist() for table in tables(session)]
    assert sum(map(len, kept)) <= np.ceil(budget * 16 * len(kept))
    assert all(blocks[0] == 0 and blocks[-2:] == [14, 15] for blocks in kept)
    assert len({len(blocks) for blocks in kept}) > 1  # each head has a rate of its own


def test_the_least_looked_at_go():
    session = backend(0.5).session(N_CTX)
    session.forward(text(10 * BLOCK))
    gone, stay = [], []
    for table, (layer, head) in zip(tables(session), np.ndindex(2, random_config().n_kv_heads), strict=True):
        mass = session.cache.mass(layer, head)
        gone += mass[1:-2][table[1:-2] == 0].tolist()
        stay += mass[1:-2][table[1:-2] != 0].tolist()
    assert gone
    assert stay
    assert max(gone) <= min(stay)


def test_blocks_given_back_are_free_again():
    cpu = backend(0.4)
    session = cpu.session(N_CTX)
    session.forward(text(900))
    assert cpu.pool.info["n_in_use"] == sum(np.count_nonzero(table) for table in tables(session))
    assert session.cache_bytes() == cpu.pool.info["n_in_use"] * cpu.pool.info["block_bytes"]
    del session
    assert cpu.pool.info["n_in_use"] == 0


def test_what_was_given_back_cannot_be_rewound_to():
    session = backend(0.4).session(N_CTX)
    session.forward(text(900))
    at_end = session.forward([1])
    session.rewind(900)
    np.testing.assert_array_equal(session.forward([1]), at_end)
    with pytest.raises(UsageError, match="no longer kept"):
        session.rewind(500)
    session.rewind(0)
    np.testing.assert_array_equal(session.forward([3]), backend(0.4).session(N_CTX).forward([3]))


def test_sinks_beside_a_window():
    """Every query sees the first keys and the newest: as the textbook mask says, and the rest is given back."""
    plain = random_config(n_layers=2, max_ctx=N_CTX)
    config = dataclasses.replace(plain, layer_window=(70, 70), n_sinks=4)
    cpu = CpuBackend(config, random_weights(config), threads=2)
    session = cpu.session(N_CTX)
    session.forward(text(600))
    for layer in range(2):
        for head in range(config.n_kv_heads):
            table = session.cache.table(layer, head)
            np.testing.assert_array_equal(table != 0, [True, *[False] * 6, *(table[7:] != 0)])
            assert table[8:].all()


@pytest.mark.parametrize("budget", [0, -0.5, 1.5, float("nan")])
def test_bad_budgets(budget):
    with pytest.raises(UsageError, match="kv_budget: expected more than 0 and at most 1"):
        backend(budget)
