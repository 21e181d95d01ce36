"""metal/embed.metal: rows of the table and of the positions, every instantiation against numpy."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, assert_close, stored
from metal_args import CONSTANTS, pack
from metal_kernels import SCHEDULES, STORED_AS, empty, random_matrix, run

THREADS = CONSTANTS["kEmbedThreads"]
VOCAB_SIZE, N_POSITIONS = 37, 19


def check(w, p, dim, n_tokens, group_size, has_positions, schedule):
    rng = np.random.default_rng(dim)
    table = random_matrix(rng, VOCAB_SIZE, dim, w, group_size)
    positions, _ = stored(rng.normal(size=(N_POSITIONS, dim)), p)
    tokens = rng.integers(0, VOCAB_SIZE, n_tokens).astype(np.int32)
    tokens[-1] = VOCAB_SIZE - 1
    pos = rng.integers(0, N_POSITIONS, n_tokens).astype(np.int32)
    scale = np.float32(dim**0.5)
    x = empty((n_tokens, dim), "f32")
    args = pack("EmbedArgs", dim=dim, group_size=table.group_size, has_positions=has_positions, scale=scale)
    buffers = [args, *table.buffers, positions if has_positions else None, tokens, pos if has_positions else None, x]
    run("embed", f"embed_{w}_{p}", buffers, (-(-dim // THREADS), n_tokens), (THREADS,), schedule)

    expected = table.wide[tokens] * float(scale)
    size = table.sizes[tokens] * float(scale)
    if has_positions:
        expected += reference.widen(positions, p)[pos]
        size += np.abs(reference.widen(positions, p)[pos])
    assert_close(x, expected, 4 * U * size)  # four operations, each of which rounds once


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("p", DTYPES)
def test_matches_numpy(w, p):
    for i, (dim, n_groups) in enumerate([(1, 1), (7, 3), (31, 5), (255, 7), (256, 8), (257, 9), (896, 16)]):
        group_size = (32, 64, 128)[i % 3]
        n_cols = dim if w in DTYPES else n_groups * group_size
        check(w, p, n_cols, 1 + i % 4, group_size, i % 2 == 0, SCHEDULES[i % 3])


@pytest.mark.parametrize("w", STORED_AS)
def test_the_token_of_nan_is_nan(w):
    """argmax makes NaN a token of -1, which may reach embed before the host sees it."""
    table = random_matrix(np.random.default_rng(0), VOCAB_SIZE, 64, w, 32)
    tokens = np.array([2, -1], np.int32)
    x = np.zeros((2, 64), np.float32)
    args = pack("EmbedArgs", dim=64, group_size=table.group_size, scale=1.0)
    run("embed", f"embed_{w}_f32", [args, *table.buffers, None, tokens, None, x], (1, 2), (THREADS,))
    np.testing.assert_array_equal(np.isnan(x).all(axis=1), [False, True])
    assert np.isfinite(x[0]).all()
