"""Y = X W^T for affine groups and int8 activations: every variant to the bit, and against numpy in double."""

import numpy as np
import pytest

from affine import GROUP_SIZES, random_affine
from kernels import U, all_variants, assert_close
from russet import _core

qmatmul = _core.kernels.qmatmul
quantize = _core.kernels.quantize

# Bands have 16 rows and go alone or in pairs, tokens in blocks of up to 4, 12 or 16. Below, at and above each.
ROWS = (1, 2, 15, 16, 17, 31, 33, 50)
TOKENS = (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 31, 33, 70)


def random_x(rng, n_tokens, n_cols, group_size):
    """Codes, scales and sums of normal activations, with a token of extremes alone."""
    x = rng.normal(size=(n_tokens, n_cols)).astype(np.float32)
    x[-1] = rng.choice([-1, 1], n_cols)
    return quantize("ref", x, group_size)


@pytest.mark.parametrize("variant", all_variants("qmatmul"))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_matches_numpy(variant, bits, group_size, dtype, symmetric):
    rng = np.random.default_rng(bits + group_size)
    for n_tokens, n_rows, n_cols in ((1, 1, group_size), (3, 17, 5 * group_size), (20, 50, 1536)):
        w = random_affine(rng, n_rows, n_cols, bits, group_size, dtype, symmetric)
        codes, scales, sums = random_x(rng, n_tokens, n_cols, group_size)
        packed = w.packed()
        assert (packed.n_rows, packed.n_cols, packed.symmetric) == (n_rows, n_cols, symmetric)
        x = codes * np.repeat(scales.astype(np.float64), group_size, axis=1)
        # Sums inside a group are exact. Each group rounds scale * x_scale, zero, x_scale * x_sum and two additions;
        # each error is at most U of the sum of sizes so far.
        bound = (4 + 2 * n_cols // group_size) * U * (np.abs(x) @ w.sizes().T)
        assert_close(qmatmul(variant, packed, codes, scales, sums), x @ w.dequantized().T, bound)


@pytest.mark.parametrize("variant", all_variants("qmatmul")[:-1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_bits_are_the_references(variant, bits, group_size, symmetric):
    rng = np.random.default_rng(bits + group_size)
    for n_tokens in TOKENS:
        for n_rows in ROWS:
            n_cols = group_size * int(rng.integers(1, 4))
            dtype = ("f32", "f16", "bf16")[int(rng.integers(3))]
            w = random_affine(rng, n_rows, n_cols, bits, group_size, dtype, symmetric).packed()
            x = random_x(rng, n_tokens, n_cols, group_size)
            where = f"{n_tokens} tokens, {n_rows} x {n_cols} {dtype}"
            np.testing.assert_array_equal(qmatmul(variant, w, *x), qmatmul("ref", w, *x), where)


@pytest.mark.parametrize("variant", all_variants("qmatmul")[:-1])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_cols"), [(1, 40, 9728), (19, 40, 9728), (130, 96, 1024)])
def test_bits_are_the_references_at_real_sizes(variant, bits, n_tokens, n_rows, n_cols):
    rng = np.random.default_rng(n_cols)
    w = random_affine(rng, n_rows, n_cols, bits, 128, "bf16", bits == 8).packed()
    x = random_x(rng, n_tokens, n_cols, 128)
    np.testing.assert_array_equal(qmatmul(variant, w, *x), qmatmul("ref", w, *x))


@pytest.mark.parametrize("variant", all_variants("qmatmul"))
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_does_not_depend_on_its_neighbours(variant, bits):
    # Chunks of a prompt cut the tokens where they like: the same bits must come out.
    rng = np.random.default_rng(3)
    w = random_affine(rng, 40, 384, bits, 64, "f16").packed()
    x = random_x(rng, 40, 384, 64)
    whole = qmatmul(variant, w, *x)
    for size in (1, 7, 16):
        parts = [qmatmul(variant, w, *(each[t : t + size] for each in x)) for t in range(0, 40, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("variant", all_variants("qmatmul"))
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n_tokens", [2, 20])
def test_damage_shows(variant, bits, n_tokens):
    rng = np.random.default_rng(4)
    w = random_affine(rng, 20, 128, bits, 64)
    w.scales[3, 1] = np.nan
    codes, scales, sums = random_x(rng, n_tokens, 128, 64)
    scales[1, 0] = np.nan
    nan = np.zeros((n_tokens, 20), bool)
    nan[:, 3] = nan[1] = True
    np.testing.assert_array_equal(np.isnan(qmatmul(variant, w.packed(), codes, scales, sums)), nan)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_a_row_is_unpacked_as_it_was(bits, group_size):
    w = random_affine(np.random.default_rng(5), 19, 2 * group_size, bits, group_size, "f16")
    packed, wide = w.packed(), w.dequantized()
    for r in range(19):
        np.testing.assert_array_equal(packed.row(r), wide[r].astype(np.float32))
