"""metal/rope_store.metal: every instantiation against numpy, and the cache number by number."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, assert_close, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_cache import BLOCK, Cache, quantized
from metal_kernels import ROUNDING, SCHEDULES, run

every_type = pytest.mark.parametrize(("t", "kept_as"), [(t, kept_as) for t in DTYPES for kept_as in (t, "int8")])

EPS = 1e-5

# (n_heads, n_kv_heads, head_dim, rotary_dim): lanes are 32 and take pairs.
SHAPES = [
    (1, 1, 2, 2),
    (3, 1, 4, 4),
    (2, 2, 6, 0),
    (4, 2, 10, 4),
    (3, 3, 20, 20),
    (2, 1, 31, 30),
    (2, 1, 33, 32),
    (8, 2, 64, 64),
    (2, 2, 80, 32),
    (5, 1, 96, 96),
    (16, 8, 128, 128),
    (4, 1, 256, 64),
    (2, 1, 256, 256),
]
POSITIONS = (0, 1, BLOCK - 2, BLOCK, 5 * BLOCK - 1)


def rope_store(t, q, k, v, cos, sin, cache, pos, q_norm=None, k_norm=None, schedule=0):
    """Stores into the cache; returns q, widened."""
    n_tokens, n_heads, _ = q.shape
    q = q.copy()
    args = pack(
        "RopeStoreArgs",
        cache=cache.args,
        n_heads=n_heads,
        pos=pos,
        rotary_dim=2 * cos.shape[1],
        has_q_norm=q_norm is not None,
        has_k_norm=k_norm is not None,
        eps=EPS,
    )
    buffers = [args, q, k, v, q_norm, k_norm, *((cos, sin) if cos.size else (None, None)), *cache.buffers]
    groups = (n_heads + 2 * k.shape[1], n_tokens)
    run("rope_store", f"rope_store_{t}_{cache.kept_as}", buffers, groups, (CONSTANTS["kSimd"],), schedule)
    return reference.widen(q, t)


def numpy_norm_rope(x, w, cos, sin):
    """What is expected of heads x [n_tokens, n, head_dim], and how far a float32 result may be from it.

    The norm is off as in test_metal_norm.py, by a share e of each number; a turn of two numbers rounds three
    times, each by at most U of the two sizes, and carries e along.
    """
    normed = x.astype(np.float64) if w is None else reference.rms_norm(x, w, EPS)
    error = 3 * U + (0 if w is None else sum_bound(x.shape[-1]) + 5 * U)
    size, half = np.abs(normed), cos.shape[1]
    size[..., :half], size[..., half : 2 * half] = (size[..., :half] + size[..., half : 2 * half],) * 2
    return reference.rope(normed, cos[:, None], sin[:, None]), error * size


def check(t, kept_as, shape, n_tokens, pos, has_norms, schedule):
    n_heads, n_kv_heads, head_dim, rotary_dim = shape
    rng = np.random.default_rng(head_dim + pos)
    q, k, v = (stored(rng.normal(size=(n_tokens, n, head_dim)), t)[0] for n in (n_heads, n_kv_heads, n_kv_heads))
    norms = [rng.uniform(0.5, 1.5, head_dim).astype(np.float32) if has else None for has in has_norms]
    turns = rng.uniform(0, 6.3, (n_tokens, rotary_dim // 2))
    cos, sin = np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)
    cache = Cache(kept_as, pos + n_tokens, n_kv_heads, head_dim)
    untouched = cache.pool.copy()

    turned_q = rope_store(t, q, k, v, cos, sin, cache, pos, *norms, schedule=schedule)
    keys, values = cache.rows()[:, pos : pos + n_tokens]
    expected, bound = numpy_norm_rope(reference.widen(q, t), norms[0], cos, sin)
    assert_close(turned_q, expected, bound + ROUNDING[t] * (np.abs(expected) + bound) + 2.0**-25)
    expected, bound = numpy_norm_rope(reference.widen(k, t), norms[1], cos, sin)
    if kept_as == "int8":
        # Half a step from what was quantised, which is a little more than that where the scale is a little off.
        step = cache.scales()[0, pos : pos + n_tokens, :, None]
        most, off = np.abs(expected).max(axis=-1, keepdims=True), bound.max(axis=-1, keepdims=True)
        assert_close(step, most / 127, (off + 2 * U * most) / 127)
        assert_close(keys, expected, step / 2 + bound + off + 128 * U * step)
        codes, scales = quantized(reference.widen(v, t))
        np.testing.assert_array_equal(cache.codes()[1, pos : pos + n_tokens], codes)
        np.testing.assert_array_equal(cache.scales()[1, pos : pos + n_tokens], scales)
    else:
        assert_close(keys, expected, bound + ROUNDING[t] * (np.abs(expected) + bound) + 2.0**-25)
        np.testing.assert_array_equal(values, reference.widen(v, t))

    for p in range(pos, pos + n_tokens):  # nothing else in the pool has changed
        blocks = cache.table[:, p // BLOCK]
        for name in cache.pool.dtype.names:
            cache.pool[name][blocks, p % BLOCK] = untouched[name][blocks, p % BLOCK]
    assert cache.pool.tobytes() == untouched.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@every_type
def test_matches_numpy(t, kept_as, shape):
    i = SHAPES.index(shape) + DTYPES.index(t)
    for n_tokens, pos in ((1, POSITIONS[i % 5]), (3, POSITIONS[(i + 2) % 5])):
        check(t, kept_as, shape, n_tokens, pos, (i % 2, i // 2 % 2), SCHEDULES[(i + n_tokens) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
@every_type
def test_matches_numpy_at_every_position(t, kept_as, shape, schedule):
    for pos in POSITIONS:
        for n_tokens in (1, 2, 5):
            for has_norms in ((0, 0), (1, 0), (0, 1), (1, 1)):
                check(t, kept_as, shape, n_tokens, pos, has_norms, schedule)


def test_position_zero_changes_nothing():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 48)).astype(np.float32)
    cache = Cache("f32", 1, 2, 48)
    turned = rope_store("f32", q, k, v, np.ones((1, 24), np.float32), np.zeros((1, 24), np.float32), cache, 0)
    np.testing.assert_array_equal(turned, q)
    np.testing.assert_array_equal(cache.rows()[:, :1], [k, v])


def store_values(v):
    """Values [n_tokens, head_dim] in an int8 cache: codes and scales."""
    cache = Cache("int8", len(v), 1, v.shape[1])
    v = v[:, None].astype(np.float32)
    no_turns = np.zeros((len(v), 0), np.float32)
    rope_store("f32", np.zeros_like(v), np.zeros_like(v), v, no_turns, no_turns, cache, 0)
    return cache.codes()[1, : len(v), 0], cache.scales()[1, : len(v), 0]


def test_int8_rounds_halves_to_even():
    halves = np.array([[127, 0.5, -0.5, 1.5, -1.5, 2.5, 126.5, -126.5]])
    codes, scales = store_values(halves)
    np.testing.assert_array_equal(codes, [[127, 0, 0, 2, -2, 2, 126, -126]])
    np.testing.assert_array_equal(scales, [1])


def test_int8_of_nothing_and_of_next_to_nothing():
    tiny = 2.0**-149
    codes, scales = store_values(np.array([[0.0, 0.0], [178 * tiny, -178 * tiny], [tiny, 0]]))
    np.testing.assert_array_equal(scales, [0, tiny, 0])
    np.testing.assert_array_equal(codes, [[0, 0], [127, -127], [0, 0]])


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_damage_shows_in_int8(damage):
    _, scales = store_values(np.array([[1.0, damage, 2.0], [1.0, 2.0, 3.0]]))
    assert np.isnan(scales).tolist() == [True, False]
