"""Y = X W^T for several tokens: every variant and stored type against numpy."""

import numpy as np
import pytest

import reference
from kernels import all_weight_variants, assert_close, misaligned, stored, sum_bound
from russet import _core

matmul = _core.kernels.matmul

# A micro-tile is 6, 8 or 12 tokens by 8, 16 or 32 rows; a block 96 rows by 512 columns. One side at a time is
# walked over those edges, then all three together.
TOKENS = (1, 2, 5, 6, 7, 8, 9, 11, 12, 13, 24, 37)
ROWS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 95, 96, 97, 200)
COLS = (1, 2, 15, 16, 17, 511, 512, 513, 1025)
SHAPES = [
    *((t, 33, 20) for t in TOKENS),
    *((7, r, 20) for r in ROWS),
    *((5, 18, c) for c in COLS),
    (1, 1, 1),
    (13, 97, 513),
    (25, 193, 1030),
]


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matmul"))
def test_sums_of_small_integers_are_exact(variant, dtype):
    # As in test_matvec: integers below 2^24 leave no room for rounding.
    rng = np.random.default_rng(1)
    for n_tokens, n_rows, n_cols in SHAPES:
        w = rng.integers(-8, 9, (n_rows, n_cols)).astype(np.float32)
        x = rng.integers(-100, 101, (n_tokens, n_cols)).astype(np.float32)
        y = matmul(variant, stored(w, dtype), x)
        np.testing.assert_array_equal(y, reference.matmul(x, w), f"{n_tokens} x {n_rows} x {n_cols}")


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matmul"))
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_cols"), [(5, 3, 40), (17, 70, 1100), (64, 256, 1024)])
def test_matches_numpy(variant, dtype, n_tokens, n_rows, n_cols):
    rng = np.random.default_rng(n_cols)
    w, _ = stored(rng.normal(size=(n_rows, n_cols)), dtype)
    x = rng.normal(size=(n_tokens, n_cols)).astype(np.float32)
    wide = reference.widen(w, dtype)
    size = np.abs(x).astype(np.float64) @ np.abs(wide).T
    assert_close(matmul(variant, (w, dtype), x), reference.matmul(x, wide), sum_bound(n_cols) * size)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_blas_widens_a_large_matrix_in_parts(dtype):
    # 4 MiB of scratch hold 838 rows of 1,250: two parts, the second shorter.
    if "blas" not in [name for name, _, _ in _core.kernels.variants()["matmul"]]:
        pytest.skip("built without BLAS")
    rng = np.random.default_rng(4)
    w = rng.integers(-8, 9, (1201, 1250)).astype(np.float32)
    x = rng.integers(-100, 101, (3, 1250)).astype(np.float32)
    np.testing.assert_array_equal(matmul("blas", stored(w, dtype), x), reference.matmul(x, w))


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matmul"))
def test_weights_may_lie_anywhere(variant, dtype):
    rng = np.random.default_rng(2)
    w, _ = stored(rng.normal(size=(21, 133)), dtype)
    x = rng.normal(size=(7, 133)).astype(np.float32)
    np.testing.assert_array_equal(matmul(variant, (misaligned(w), dtype), x), matmul(variant, (w, dtype), x))


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matmul"))
def test_a_sum_does_not_depend_on_its_neighbours(variant, dtype):
    # Threads cut the rows, and chunks of a prompt the tokens, where they like: the same bits must come out.
    if variant == "blas":
        pytest.skip("BLAS chooses its loop by the shape: the last bits depend on it, and so on the thread count")
    rng = np.random.default_rng(3)
    w, _ = stored(rng.normal(size=(130, 600)), dtype)
    x = rng.normal(size=(27, 600)).astype(np.float32)
    whole = matmul(variant, (w, dtype), x)
    for rows, tokens in [(slice(0, 1), slice(26, 27)), (slice(16, 112), slice(3, 20)), (slice(97, 130), slice(0, 7))]:
        np.testing.assert_array_equal(matmul(variant, (w[rows], dtype), x[tokens]), whole[tokens, rows])


@pytest.mark.parametrize(("variant", "dtype"), all_weight_variants("matmul"))
def test_damage_shows(variant, dtype):
    # One damaged weight reaches its own column of y and no other, whatever padding a tile has.
    w = np.ones((18, 20), np.float32)
    w[17, 19] = np.nan
    y = matmul(variant, stored(w, dtype), np.ones((7, 20), np.float32))
    assert np.isnan(y[:, 17]).all()
    np.testing.assert_array_equal(y[:, :17], 20)
