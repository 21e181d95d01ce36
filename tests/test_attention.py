"""Causal attention: every variant against numpy, and a query's bits against who shares its call."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, assert_close, sum_bound
from russet import _core

attention = _core.kernels.attention


def case(rng, n_queries, n_keys, head_dim):
    q = rng.normal(size=(n_queries, head_dim))
    k, v = rng.normal(size=(2, n_keys, head_dim))
    pos = [n_keys - 1, *rng.integers(0, n_keys, n_queries - 1).tolist()]
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32), pos


def check(variant, q, k, v, pos, *, scale, window=0, softcap=0.0):
    expected = reference.attention(q, k, v, pos, scale, window, softcap)
    # A score that is off by e changes its weight by the share e, and the sum of weights likewise; the largest
    # e counts. exp is within 2 ulp, tanh within 2e-7. The weighted sum of values then rounds as sums do.
    error = scale * sum_bound(q.shape[1]) * (np.abs(q).astype(np.float64) @ np.abs(k).T).max()
    error += softcap * 3e-7 + 4 * U * scale * np.abs(reference.matmul(q, k)).max()
    bound = (2 * error + 8 * U + 2 * sum_bound(len(k))) * np.abs(v).max(axis=0)
    actual = attention(variant, q, k, v, pos, scale=scale, window=window, softcap=softcap)
    assert_close(actual, expected, bound)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("head_dim", [1, 3, 7, 8, 9, 16, 17, 31, 33, 64, 80, 96, 128, 256, 511])
@pytest.mark.parametrize("n_queries", [1, 2, 3, 4])
def test_every_width(variant, head_dim, n_queries):
    rng = np.random.default_rng(head_dim)
    check(variant, *case(rng, n_queries, 77, head_dim), scale=head_dim**-0.5)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("n_keys", [1, 2, 63, 64, 65, 127, 128, 129, 1001])
@pytest.mark.parametrize("n_queries", [1, 4])
def test_every_length(variant, n_keys, n_queries):
    # Tiles are 64 keys.
    rng = np.random.default_rng(n_keys)
    check(variant, *case(rng, n_queries, n_keys, 40), scale=0.3)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("window", [1, 2, 5, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("softcap", [0.0, 2.0, 50.0])
def test_windows_and_soft_caps(variant, window, softcap):
    rng = np.random.default_rng(window)
    check(variant, *case(rng, 3, 301, 24), scale=0.5, window=window, softcap=softcap)


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_large_scores_do_not_overflow(variant):
    rng = np.random.default_rng(5)
    q, k, v, pos = case(rng, 4, 200, 32)
    # exp(500) is no float: only the distance to the largest score may go into it.
    check(variant, q, 20 * k, v, pos, scale=5.0)
    one_key = np.zeros_like(k)
    one_key[100] = 1e4 * q[0]
    out = attention(variant, q[:1], one_key, v, [150], scale=1.0)
    np.testing.assert_array_equal(out[0], v[100])


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("head_dim", [8, 31, 64])
@pytest.mark.parametrize("window", [0, 50])
def test_a_query_does_not_depend_on_its_company(variant, head_dim, window):
    rng = np.random.default_rng(head_dim)
    q, k, v, _ = case(rng, 4, 300, head_dim)
    for pos in ([0, 299, 130, 64], [63, 64, 65, 66], [7, 7, 298, 299], [10, 11, 12, 13]):

        def together(order, pos=pos):
            return attention(variant, q[order], k, v, [pos[i] for i in order], scale=0.2, window=window)

        alone = np.concatenate([together([i]) for i in range(4)])
        for order in ([0, 1], [1, 0], [0, 1, 2], [2, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0]):
            np.testing.assert_array_equal(together(order), alone[order])


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_keys_to_come_are_not_seen(variant):
    rng = np.random.default_rng(6)
    q, k, v, _ = case(rng, 2, 100, 16)
    before = attention(variant, q, k, v, [40, 41])
    k[42:], v[42:] = 1e30, np.nan
    np.testing.assert_array_equal(attention(variant, q, k, v, [40, 41]), before)


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_damage_shows(variant):
    rng = np.random.default_rng(7)
    q, k, v, _ = case(rng, 2, 100, 16)
    k[30] = np.nan
    out = attention(variant, q, k, v, [29, 30])
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
