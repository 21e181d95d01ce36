"""y = W x: every variant and stored type against numpy."""

import numpy as np
import pytest
import reference
from kernels import all_weight_variants, assert_close, misaligned, stored, sum_bound
from russet import _core

matvec = _core.kernels.matvec

# Rows go four at a time, columns 4, 8 or 16: below, at and above each, and real sizes.
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 31)
COLS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33, 100, 1023)


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
def test_sums_of_small_integers_are_exact(variant, dtype):
    # Every product and every partial sum is an integer below 2^24: any order of additions gives one result.
    rng = np.random.default_rng(1)
    for n_rows in ROWS:
        for n_cols in COLS:
            w = rng.integers(-8, 9, (n_rows, n_cols)).astype(np.float32)
            x = rng.integers(-100, 101, n_cols).astype(np.float32)
            y = matvec(variant, stored(w, dtype), x)
            np.testing.assert_array_equal(y, reference.matvec(w, x), f"{n_rows} x {n_cols}")


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
@pytest.mark.parametrize(("n_rows", "n_cols"), [(6, 17), (33, 1000), (128, 3072), (19, 12288)])
def test_matches_numpy(variant, dtype, n_rows, n_cols):
    rng = np.random.default_rng(n_cols)
    w, _ = stored(rng.normal(size=(n_rows, n_cols)), dtype)
    x = rng.normal(size=n_cols).astype(np.float32)
    wide = reference.widen(w, dtype)
    size = np.abs(wide).astype(np.float64) @ np.abs(x)
    assert_close(matvec(variant, (w, dtype), x), reference.matvec(wide, x), sum_bound(n_cols) * size)


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
def test_weights_may_lie_anywhere(variant, dtype):
    rng = np.random.default_rng(2)
    w, _ = stored(rng.normal(size=(21, 133)), dtype)
    x = rng.normal(size=133).astype(np.float32)
    np.testing.assert_array_equal(matvec(variant, (misaligned(w), dtype), x), matvec(variant, (w, dtype), x))


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
def test_a_rows_sum_does_not_depend_on_its_neighbours(variant, dtype):
    # Threads cut the rows where they like: the same bits must come out. (BLAS promises no such thing.)
    if variant == "blas":
        pytest.skip("BLAS chooses its loop by the number of rows")
    rng = np.random.default_rng(3)
    w, _ = stored(rng.normal(size=(11, 515)), dtype)
    x = rng.normal(size=515).astype(np.float32)
    whole = matvec(variant, (w, dtype), x)
    alone = [matvec(variant, (w[r : r + 1], dtype), x)[0] for r in range(11)]
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matvec"))
def test_damage_shows(variant, dtype):
    w = np.ones((6, 20), np.float32)
    w[2, 19], w[4, 0] = np.nan, np.inf
    y = matvec(variant, stored(w, dtype), np.ones(20, np.float32))
    np.testing.assert_array_equal(y, np.array([20, 20, np.nan, 20, np.inf, 20], np.float32))
