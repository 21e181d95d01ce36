"""Y = X W^T for one token or a few: every variant and stored type against numpy."""

import numpy as np
import pytest

import reference
from kernels import all_weight_variants, assert_close, misaligned, stored, sum_bound
from russet import _core

matvec = _core.kernels.matvec

# Alone, a token takes 8 rows at a time; several go in tiles of 4 by 3 or 4 rows, in blocks of 12. Columns go 4, 8 or
# 16 at a time. Below, at and above each, and real sizes.
TOKENS = (1, 2, 3, 4, 5, 8, 11)
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31)
COLS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33, 100, 1023)


def case(rng, n_tokens, n_rows, n_cols, dtype):
    """x, w as stored, w as float32."""
    w, _ = stored(rng.normal(size=(n_rows, n_cols)), dtype)
    return rng.normal(size=(n_tokens, n_cols)).astype(np.float32), w, reference.widen(w, dtype)


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
@pytest.mark.parametrize("n_tokens", TOKENS)
def test_sums_of_small_integers_are_exact(variant, dtype, n_tokens):
    # Every product and every partial sum is an integer below 2^24: any order of additions gives one result.
    rng = np.random.default_rng(1)
    for n_rows in ROWS:
        for n_cols in COLS:
            w = rng.integers(-8, 9, (n_rows, n_cols)).astype(np.float32)
            x = rng.integers(-100, 101, (n_tokens, n_cols)).astype(np.float32)
            y = matvec(variant, stored(w, dtype), x)
            np.testing.assert_array_equal(y, reference.matmul(x, w), f"{n_rows} x {n_cols}")


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
@pytest.mark.parametrize("n_tokens", [1, 6])
@pytest.mark.parametrize(("n_rows", "n_cols"), [(6, 17), (33, 1000), (128, 3072), (19, 12288)])
def test_matches_numpy(variant, dtype, n_tokens, n_rows, n_cols):
    x, w, wide = case(np.random.default_rng(n_cols), n_tokens, n_rows, n_cols, dtype)
    size = np.abs(x).astype(np.float64) @ np.abs(wide).T
    assert_close(matvec(variant, (w, dtype), x), reference.matmul(x, wide), sum_bound(n_cols) * size)


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_weights_may_lie_anywhere(variant, dtype, n_tokens):
    x, w, _ = case(np.random.default_rng(2), n_tokens, 21, 133, dtype)
    np.testing.assert_array_equal(matvec(variant, (misaligned(w), dtype), x), matvec(variant, (w, dtype), x))


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
def test_a_sum_does_not_depend_on_its_neighbours(variant, dtype):
    # Threads cut the rows, and chunks of a prompt the tokens, where they like: the same bits must come out.
    if variant == "blas":
        pytest.skip("BLAS chooses its loop by the shape, and promises no such thing")
    x, w, _ = case(np.random.default_rng(3), 11, 27, 515, dtype)
    whole = matvec(variant, (w, dtype), x)
    for t in range(11):
        np.testing.assert_array_equal(matvec(variant, (w, dtype), x[t : t + 1])[0], whole[t])
    for r in range(27):
        np.testing.assert_array_equal(matvec(variant, (w[r : r + 1], dtype), x)[:, 0], whole[:, r])


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_damage_shows(variant, dtype, n_tokens):
    w = np.ones((6, 20), np.float32)
    w[2, 19], w[4, 0] = np.nan, np.inf
    y = matvec(variant, stored(w, dtype), np.ones((n_tokens, 20), np.float32))
    np.testing.assert_array_equal(y, np.tile(np.array([20, 20, np.nan, 20, np.inf, 20], np.float32), (n_tokens, 1)))
