"""A sliced head and its screening: exact where it matters, and nothing that matters is missed."""

import itertools

import numpy as np
import pytest

import russet
from affine import GROUP_SIZES, random_affine
from kernels import U, all_variants
from russet import _core
from russet.errors import NumericalError
from wanted import OUT, check_wanted

kernels = _core.kernels
Wanted = _core.Wanted


def random_head(rng, n_rows, n_cols, group_size=128, dtype="f32", symmetric=True):
    return random_affine(rng, n_rows, n_cols, 8, group_size, dtype, symmetric)


def quantized(x, group_size):
    """A token as the kernels take it, and the numbers that it stands for, in float64."""
    codes, scales, sums = kernels.quantize("ref", np.float32(x)[None], group_size)
    return (codes, scales, sums), codes[0] * np.repeat(scales[0].astype(np.float64), group_size)


def whole_and_screened(w, x, wanted, **options):
    token, _ = quantized(x, w.group_size)
    whole = kernels.qmatmul(kernels.variants()["qmatmul"][-1][0], w.packed(), *token)[0]
    screened, n_bytes, n_rows = kernels.screen(w.packed(sliced=True), *token, wanted, **options)
    return whole, screened, n_bytes, n_rows


# ---- the slices ----


@pytest.mark.parametrize("variant", all_variants("slice_dot"))
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_sums_of_slices_are_those_of_their_bits(variant, group_size):
    rng = np.random.default_rng(group_size)
    w = random_head(rng, 20, 3 * group_size, group_size)
    packed = w.packed(sliced=True)
    codes = rng.integers(-127, 128, 3 * group_size).astype(np.int8)
    codes[:group_size] = 127  # and the largest sums there are
    for band, (index, bits) in itertools.product(range(2), enumerate((0xF0, 0x0C, 0x03))):
        q = np.full((16, 3 * group_size), 128)  # rows past the last have codes that are zero after the center
        rows = w.q[band * 16 : band * 16 + 16]
        q[: len(rows)] = rows
        products = (q & bits) * codes.astype(np.int64)
        expected = products.reshape(16, 3, group_size).sum(axis=2).T
        sums = kernels.slice_dot(variant, packed, band, index, codes)
        np.testing.assert_array_equal(sums[:, : len(rows)], expected[:, : len(rows)])


@pytest.mark.parametrize("variant", all_variants("merge"))
def test_merged_slices_are_the_tiles(variant):
    w = random_head(np.random.default_rng(1), 20, 160, 32)
    packed = w.packed(sliced=True)
    for band in range(2):
        tiles = kernels.merge(variant, packed, band).reshape(-1, 16, 4)  # column, row, column
        rows = w.q[band * 16 : band * 16 + 16]
        q = tiles.transpose(1, 0, 2).reshape(16, -1) ^ 0x80
        np.testing.assert_array_equal(q[: len(rows)], rows)


@pytest.mark.parametrize("variant", all_variants("scale_sums"))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_products_of_all_slices_are_those_of_the_tiles(variant, group_size, dtype, symmetric):
    rng = np.random.default_rng(2)
    w = random_head(rng, 40, 4 * group_size, group_size, dtype, symmetric)
    token, _ = quantized(rng.normal(size=4 * group_size), group_size)
    packed = w.packed(sliced=True)
    expected = kernels.qmatmul("ref", w.packed(), *token)[0]
    for band in range(3):
        sums = sum(kernels.slice_dot("ref", packed, band, index, token[0][0]) for index in range(3))
        y = kernels.scale_sums(variant, packed, band, sums, 128, token[1][0], token[2][0])
        n = min(16, 40 - 16 * band)
        np.testing.assert_array_equal(y[:n], expected[16 * band : 16 * band + n])


@pytest.mark.parametrize("n_slices", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_radii_bound_every_estimate_and_are_no_larger_than_they_must_be(group_size, symmetric, n_slices):
    rng = np.random.default_rng(3)
    n_cols = 6 * group_size
    w = random_head(rng, 16, n_cols, group_size, "f32", symmetric)
    packed = w.packed(sliced=True)
    radii = packed.radii[0, n_slices - 1].astype(np.float64)
    step = 16 if n_slices == 1 else 4
    off = w._of_columns(w.scales) * (w.q % step - step // 2)  # what the first slices leave out of each weight
    longest = np.sqrt((off**2).sum(axis=1))
    # Never less than the longest; more only by what float sums round: a share of the weights' own length.
    center = w._of_columns(w.biases) + 128 * w._of_columns(w.scales)
    length = longest + np.sqrt(((w._of_columns(w.scales) * (w.q - 128.0)) ** 2).sum(axis=1))
    length += np.sqrt((center**2).sum(axis=1))
    assert (radii >= longest).all()
    assert (radii <= longest * (1 + 1e-5) + (4 * 6 + 16) * U * length * (1 + 1e-5)).all()
    # A token along what is missing is where the bound is reached; others come nowhere near it.
    for x, reaches in [(row, 0.95) for row in off] + [(rng.normal(size=n_cols), 0)] * 20:
        token, exact_x = quantized(x, group_size)
        sums = sum(kernels.slice_dot("ref", packed, 0, index, token[0][0]) for index in range(n_slices))
        center = {1: 120, 2: 126}[n_slices]
        estimate = kernels.scale_sums("ref", packed, 0, sums, center, token[1][0], token[2][0])
        error = np.abs(estimate - w.dequantized() @ exact_x) / np.linalg.norm(exact_x)
        assert (error <= radii).all()
        assert (error / radii).max() >= reaches


def test_a_sliced_matrix_has_the_rows_of_one_that_is_not():
    w = random_head(np.random.default_rng(4), 37, 96, 32, "bf16", symmetric=False)
    plain, sliced = w.packed(), w.packed(sliced=True)
    assert sliced.sliced
    assert not plain.sliced
    assert sliced.n_bytes == plain.n_bytes + sliced.radii.nbytes
    for row in range(37):
        np.testing.assert_array_equal(sliced.row(row), plain.row(row))
    with pytest.raises(russet.WeightsError, match="8 bits"):
        random_affine(np.random.default_rng(5), 16, 64, 4, 32).packed(sliced=True)


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 40])
def test_many_tokens_through_a_sliced_matrix(n_tokens):
    """As where all logits are wanted: the same bits as those of tiles, on every number of threads."""
    rng = np.random.default_rng(6)
    w = random_head(rng, 333, 256)
    x = np.float32(rng.normal(size=(n_tokens, 256)))
    config = _core.Config()
    config.n_layers = config.n_heads = config.n_kv_heads = config.ffn_dim = config.max_ctx = 1
    config.dim, config.head_dim, config.vocab_size = 256, 256, 333
    for n_threads in (1, 3):
        cpu = _core.Cpu(config, n_threads)
        for blas_tokens in (0, 1) if _core.matmul_library() != "none" else (0,):
            matrices = (w.packed(), w.packed(sliced=True))
            for matrix in matrices:
                matrix.blas_tokens = blas_tokens
            expected, got = (cpu.norm_linear(None, None, matrix, x) for matrix in matrices)
            np.testing.assert_array_equal(got, expected)


# ---- screening ----


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("k", [1, 7, 40, 500])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_what_is_wanted_is_there(group_size, k, n_threads):
    rng = np.random.default_rng(k)
    w = random_head(rng, 1003, 2 * group_size, group_size, symmetric=k == 7)
    for margin, ids in ((0.0, []), (0.0, [0, 5, 6, 1002]), (3.0, [])):
        wanted = Wanted(k, margin, ids)
        for _ in range(5):
            whole, screened, _, _ = whole_and_screened(w, rng.normal(size=2 * group_size), wanted, n_threads=n_threads)
            check_wanted(whole, screened, wanted)


def test_a_clear_winner_spares_most_of_the_head():
    """A row that looks like the token is far ahead of all others: half of the codes show it, as of every other row."""
    rng = np.random.default_rng(7)
    w = random_head(rng, 4000, 512)
    x = w.dequantized()[3]  # in the first band, so that the floor is high from the start
    whole, screened, n_bytes, n_rows = whole_and_screened(w, x, Wanted(1))
    check_wanted(whole, screened, Wanted(1))
    assert whole.argmax() == screened.argmax() == 3
    assert n_rows <= 32
    assert n_bytes < 0.6 * w.packed(sliced=True).n_bytes


def test_where_nothing_can_be_told_apart_the_whole_head_is_read_once():
    rng = np.random.default_rng(8)
    w = random_head(rng, 2000, 256)
    whole, screened, n_bytes, n_rows = whole_and_screened(w, rng.normal(size=256), Wanted(1), trust=1e9)
    np.testing.assert_array_equal(screened, whole)
    assert n_rows == 2000
    assert n_bytes <= w.packed(sliced=True).n_bytes


def test_ties_and_rows_that_are_alike_are_all_there():
    """Of equal logits the lowest id is taken: none of them may be left out."""
    rng = np.random.default_rng(9)
    w = random_head(rng, 600, 128)
    w.q[[17, 250, 599]] = w.q[17]
    w.scales[[250, 599]] = w.scales[17]
    w.biases[[250, 599]] = w.biases[17]
    for k in (1, 2, 3):
        whole, screened, _, _ = whole_and_screened(w, w.dequantized()[17], Wanted(k))
        assert (whole[[17, 250, 599]] == whole.max()).all()
        np.testing.assert_array_equal(screened[[17, 250, 599]], whole[17])


def test_tokens_that_are_not_allowed_cost_nothing():
    rng = np.random.default_rng(10)
    w = random_head(rng, 1000, 256)
    allowed = np.full(1000, False)
    allowed[[5, 404, 999]] = True
    words = np.packbits(np.pad(allowed, (0, 24)), bitorder="little").view(np.uint32)
    wanted = Wanted(2, allowed=words)
    whole, screened, n_bytes, n_rows = whole_and_screened(w, rng.normal(size=256), wanted)
    check_wanted(whole, screened, wanted, allowed)
    assert n_rows <= 40  # three bands, the last of which has 8 rows
    assert n_bytes <= 3 / 63 * w.packed(sliced=True).n_bytes
    nothing = Wanted(1, allowed=np.zeros(32, np.uint32))
    _, screened, n_bytes, n_rows = whole_and_screened(w, rng.normal(size=256), nothing)
    assert (screened == OUT).all()
    assert n_bytes == n_rows == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_shown_to_the_sampler(bad):
    """In the row that they come from: a bound that is NaN rules nothing out."""
    rng = np.random.default_rng(11)
    w = random_head(rng, 800, 256, symmetric=False)
    w.scales[777, 1] = bad
    raised = 0
    for n_threads in (1, 2, 1, 2, 1, 2):
        whole, screened, _, _ = whole_and_screened(w, rng.normal(size=256), Wanted(1), n_threads=n_threads)
        np.testing.assert_array_equal(screened[777], whole[777])
        if whole[777] != OUT:  # which bans a token
            raised += 1
            with pytest.raises(NumericalError):
                _core.Sampler().sample(screened)
    assert raised > 0


def test_bounds_that_are_trusted_less_read_less():
    """Six standard deviations of independent errors: never wrong in 300 tokens, and far below what is certain."""
    rng = np.random.default_rng(12)
    w = random_head(rng, 3000, 1024)
    read = {1.0: 0, 6 / 32: 0}
    for _ in range(60):
        x = rng.normal(size=1024)
        for trust in read:
            whole, screened, n_bytes, _ = whole_and_screened(w, x, Wanted(5), trust=trust)
            check_wanted(whole, screened, Wanted(5))
            read[trust] += n_bytes
    assert read[6 / 32] < 0.85 * read[1.0]
