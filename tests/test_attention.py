"""Causal attention: every variant against numpy, and a row's bits against who shares its call."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, assert_close, sum_bound
from random_model import random_config, random_weights
from russet import _core
from russet.backends.cpu import CpuBackend

attention, kv_store = _core.kernels.attention, _core.kernels.kv_store

KEY_TYPES = ("f32", "f16", "bf16", "int8")
VALUE_TYPES = (*KEY_TYPES, "int4")


def case(rng, n_tokens, n_heads, n_keys, head_dim):
    q = rng.normal(size=(n_tokens, n_heads, head_dim)).astype(np.float32)
    k, v = rng.normal(size=(2, n_keys, head_dim)).astype(np.float32)
    return q, k, v


def check(variant, q, k, v, *, scale=None, keys="f32", values="f32", **masks):
    """The last token sees all keys; numpy gets keys and values as a block gives them back."""
    n_tokens, n_heads, head_dim = q.shape
    scale = head_dim**-0.5 if scale is None else scale
    k_stored, v_stored = kv_store("ref", k, v, keys=keys, values=values)
    rows = q.reshape(-1, head_dim)
    pos = np.repeat(np.arange(len(k) - n_tokens, len(k)), n_heads)
    expected = reference.attention(rows, k_stored, v_stored, pos, scale, **masks)
    # A score that is off by e changes its weight by the share e, and the sum of weights likewise; the largest
    # e counts. exp is within 2 ulp, tanh within 2e-7. The weighted sum of values then rounds as sums do, and
    # as many runs as there are merge with an exp each.
    sizes = np.abs(rows).astype(np.float64) @ np.abs(k_stored).T
    error = scale * (sum_bound(head_dim) * sizes.max() + 4 * U * np.abs(reference.matmul(rows, k_stored)).max())
    error += masks.get("softcap", 0) * 3e-7
    share = 2 * error + 8 * U + 2 * sum_bound(len(k)) + (1 + len(k) // 1024) * 8 * U
    # int4: minima and what is above them are summed apart, up to one and two times the largest value.
    size = np.abs(v_stored).max() * (3 if values == "int4" else 1)
    actual = attention(variant, q, k, v, scale=scale, keys=keys, values=values, **masks)
    assert_close(actual.reshape(-1, head_dim), expected, share * size)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("head_dim", [1, 3, 8, 15, 16, 17, 33, 64, 80, 96, 128, 256, 511])
@pytest.mark.parametrize(("n_tokens", "n_heads"), [(1, 1), (1, 4), (5, 3)])
def test_every_width(variant, head_dim, n_tokens, n_heads):
    check(variant, *case(np.random.default_rng(head_dim), n_tokens, n_heads, 77, head_dim))


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("n_keys", [1, 2, 63, 64, 65, 129, 1023, 1024, 1025, 2100])
@pytest.mark.parametrize("n_tokens", [1, 7])
def test_every_length(variant, n_keys, n_tokens):
    # Blocks are 64 keys, runs 1,024.
    check(variant, *case(np.random.default_rng(n_keys), min(n_tokens, n_keys), 2, n_keys, 24), scale=0.3)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize(("n_tokens", "n_heads"), [(1, 16), (1, 6), (2, 3), (4, 16), (9, 7), (13, 2), (64, 1), (30, 2)])
def test_every_number_of_rows(variant, n_tokens, n_heads):
    check(variant, *case(np.random.default_rng(n_heads), n_tokens, n_heads, 150, 32))


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("keys", KEY_TYPES)
@pytest.mark.parametrize("values", VALUE_TYPES)
@pytest.mark.parametrize("head_dim", [64, 31])
@pytest.mark.parametrize(("n_tokens", "n_heads"), [(1, 2), (3, 5)])
def test_every_type(variant, keys, values, head_dim, n_tokens, n_heads):
    rng = np.random.default_rng(head_dim)
    check(variant, *case(rng, n_tokens, n_heads, 200, head_dim), keys=keys, values=values, softcap=4.0)


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("window", [0, 1, 2, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("n_sinks", [0, 1, 4, 70])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("absent", [set(), {1, 3}])
def test_masks(variant, window, n_sinks, softcap, absent):
    rng = np.random.default_rng(window)
    masks = {"window": window, "n_sinks": n_sinks, "softcap": softcap, "absent": absent}
    for n_tokens, types in ((1, {}), (9, {"keys": "int8", "values": "int4"})):
        check(variant, *case(rng, n_tokens, 2, 301, 24), scale=0.5, **types, **masks)


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_windows_and_sinks_over_several_runs(variant):
    rng = np.random.default_rng(1)
    for window, n_sinks in ((100, 0), (100, 4), (1500, 3), (1030, 1030)):
        check(variant, *case(rng, 3, 2, 3100, 8), window=window, n_sinks=n_sinks, absent={20})


@pytest.mark.slow
@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("seed", range(60))
def test_anything_at_all(variant, seed):
    rng = np.random.default_rng(seed)
    n_heads = int(rng.integers(1, 17))
    n_tokens = int(rng.integers(1, 64 // n_heads + 1))
    n_keys, head_dim = n_tokens + int(rng.integers(0, 2200)), int(rng.integers(1, 300))
    check(
        variant,
        *case(rng, n_tokens, n_heads, n_keys, head_dim),
        keys=str(rng.choice(KEY_TYPES)),
        values=str(rng.choice(VALUE_TYPES)),
        window=int(rng.choice([0, rng.integers(1, 2000)])),
        n_sinks=int(rng.choice([0, rng.integers(1, 200)])),
        softcap=float(rng.choice([0.0, 3.0])),
        absent=set(rng.integers(0, 35, 4).tolist()),
    )


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_who_sees_no_key_gets_zeros(variant):
    q, k, v = case(np.random.default_rng(2), 3, 2, 65, 8)
    out = attention(variant, q, k, v, window=1, absent={0})
    np.testing.assert_array_equal(out[:2], 0)
    np.testing.assert_array_equal(out[2], [v[64], v[64]])


@pytest.mark.parametrize("variant", all_variants("attention"))
def test_large_scores_do_not_overflow(variant):
    q, k, v = case(np.random.default_rng(5), 2, 2, 200, 32)
    # exp(500) is no float: only the distance to the largest score may go into it.
    check(variant, q, 20 * k, v, scale=5.0)
    one_key = np.zeros_like(k)
    one_key[100] = 1e4 * q[0, 0]
    np.testing.assert_array_equal(attention(variant, q[:1, :1], one_key, v)[0, 0], v[100])


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("head_dim", [31, 64])
@pytest.mark.parametrize(("keys", "values"), [("f32", "f32"), ("f16", "bf16"), ("int8", "int8"), ("int8", "int4")])
@pytest.mark.parametrize("masks", [{}, {"window": 50}, {"window": 9, "n_sinks": 5, "softcap": 2.0}])
def test_a_row_does_not_depend_on_its_company(variant, head_dim, keys, values, masks):
    q, k, v = case(np.random.default_rng(head_dim), 21, 3, 1100, head_dim)
    options = {"scale": 0.2, "keys": keys, "values": values, **masks}
    together = attention(variant, q, k, v, **options)

    def part(begin, end, heads):
        n_keys = len(k) - len(q) + end
        return attention(variant, q[begin:end, heads], k[:n_keys], v[:n_keys], **options)

    for begin, end in ((0, 1), (20, 21), (7, 8), (0, 21), (0, 5), (5, 21), (3, 13)):
        for heads in (slice(0, 1), slice(1, 3), slice(0, 3)):
            np.testing.assert_array_equal(part(begin, end, heads), together[begin:end, heads])


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("n_tokens", [2, 20])
def test_keys_to_come_are_not_seen(variant, n_tokens):
    q, k, v = case(np.random.default_rng(6), n_tokens, 2, 100, 16)
    before = attention(variant, q, k, v)
    k[-1], v[-1] = 1e30, np.nan
    after = attention(variant, q, k, v)
    np.testing.assert_array_equal(after[:-1], before[:-1])
    assert np.isnan(after[-1]).all()


@pytest.mark.parametrize("variant", all_variants("attention"))
@pytest.mark.parametrize("keys", KEY_TYPES)
def test_damage_shows(variant, keys):
    q, k, v = case(np.random.default_rng(7), 2, 2, 100, 16)
    k[99, 3] = np.nan
    out = attention(variant, q, k, v, keys=keys)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 1), (6, 3)])
@pytest.mark.parametrize("window", [0, 300])
def test_threads_and_chunks_change_no_bit(n_heads, n_kv_heads, window):
    # Few key-value heads: their keys are cut into runs. Up to 32 tokens no product depends on the others.
    config = random_config(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=8, layer_window=(window, 0))
    weights = random_weights(config)
    tokens = np.random.default_rng(8).integers(0, config.vocab_size, 2200).tolist()

    def logits(threads, chunk):
        session = CpuBackend(config, weights, threads=threads).session(len(tokens))
        for begin in range(0, len(tokens), chunk):
            last = session.forward(tokens[begin : begin + chunk])
        return last

    expected = logits(1, 32)
    for threads, chunk in ((2, 32), (3, 17), (5, 32), (4, 31), (7, 7)):
        np.testing.assert_array_equal(logits(threads, chunk), expected)
