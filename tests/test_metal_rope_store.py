"""metal/rope_store.metal: every instantiation against numpy, and the cache number by number."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, assert_close, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_cache import BLOCK, Cache
from metal_kernels import ROUNDING, SCHEDULES, run

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
    buffers = [args, q, k, v, q_norm, k_norm, *((cos, sin) if cos.size else (None, None)), cache.blocks]
    groups = (n_heads + 2 * k.shape[1], n_tokens)
    run("rope_store", f"rope_store_{t}", buffers, groups, (CONSTANTS["kSimd"],), schedule)
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


def check(t, shape, n_tokens, pos, has_norms, schedule):
    n_heads, n_kv_heads, head_dim, rotary_dim = shape
    rng = np.random.default_rng(head_dim + pos)
    q, k, v = (stored(rng.normal(size=(n_tokens, n, head_dim)), t)[0] for n in (n_heads, n_kv_heads, n_kv_heads))
    norms = [rng.uniform(0.5, 1.5, head_dim).astype(np.float32) if has else None for has in has_norms]
    turns = rng.uniform(0, 6.3, (n_tokens, rotary_dim // 2))
    cos, sin = np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)
    cache = Cache(t, pos + n_tokens, n_kv_heads, head_dim)
    untouched = cache.blocks.copy()

    turned_q = rope_store(t, q, k, v, cos, sin, cache, pos, *norms, schedule=schedule)
    keys, values = cache.rows()[:, pos : pos + n_tokens]
    for actual, x, w in ((turned_q, q, norms[0]), (keys, k, norms[1])):
        expected, bound = numpy_norm_rope(reference.widen(x, t), w, cos, sin)
        assert_close(actual, expected, bound + ROUNDING[t] * (np.abs(expected) + bound) + 2.0**-25)
    np.testing.assert_array_equal(values, reference.widen(v, t))

    for p in range(pos, pos + n_tokens):  # nothing else in the cache has changed
        cache.blocks[p // BLOCK, cache.layer, :, :, p % BLOCK] = untouched[0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(cache.blocks, untouched)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", DTYPES)
def test_matches_numpy(t, shape):
    i = SHAPES.index(shape) + DTYPES.index(t)
    for n_tokens, pos in ((1, POSITIONS[i % 5]), (3, POSITIONS[(i + 2) % 5])):
        check(t, shape, n_tokens, pos, (i % 2, i // 2 % 2), SCHEDULES[(i + n_tokens) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", DTYPES)
def test_matches_numpy_at_every_position(t, shape, schedule):
    for pos in POSITIONS:
        for n_tokens in (1, 2, 5):
            for has_norms in ((0, 0), (1, 0), (0, 1), (1, 1)):
                check(t, shape, n_tokens, pos, has_norms, schedule)


def test_position_zero_changes_nothing():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 48)).astype(np.float32)
    cache = Cache("f32", 1, 2, 48)
    turned = rope_store("f32", q, k, v, np.ones((1, 24), np.float32), np.zeros((1, 24), np.float32), cache, 0)
    np.testing.assert_array_equal(turned, q)
    np.testing.assert_array_equal(cache.rows()[:, :1], [k, v])
