"""metal/matvec.metal: products of few tokens, every instantiation against numpy."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_kernels import (
    ACTIVATIONS,
    SCHEDULES,
    STORED_AS,
    check_close,
    columns,
    empty,
    integer_matrix,
    random_matrix,
    rounded,
    run,
    small_integers,
)

ROWS, TOKENS = CONSTANTS["kMatvecRows"], CONSTANTS["kMatvecTokens"]
THREADS = (CONSTANTS["kSimd"], CONSTANTS["kMatvecSimds"])
EPS = 1e-5

# A SIMD-group takes 8 rows, at once or in fours, a threadgroup 16; tokens go alone or in fours; a lane takes 8 columns
# at a time, 16 of int4, and a SIMD-group 256 or 512. Below, at and above each. (rows, tokens, columns of floats, groups
# of affine.)
SIZES = [
    (1, 1, 1, 1),
    (7, 2, 7, 2),
    (8, 3, 8, 3),
    (9, 4, 9, 4),
    (31, 5, 31, 1),
    (15, 1, 33, 7),
    (33, 1, 63, 8),
    (5, 8, 64, 9),
    (17, 9, 65, 5),
    (3, 1, 255, 15),
    (16, 1, 256, 16),
    (2, 6, 257, 17),
    (6, 1, 1023, 33),
]
GROUP_SIZES = (32, 64, 128)


def groups(n_rows, n_tokens, n_matrices=1):
    return -(-n_rows // ROWS), -(-n_tokens // TOKENS), n_matrices


def matvec(t, w, x, matrices, linear_biases, norm_w=None, schedule=0):
    """y of up to three matrices, each widened."""
    n_tokens, n_cols = x.shape
    n_rows = [len(matrix.wide) for matrix in matrices]
    args = pack(
        "MatvecArgs",
        n_tokens=n_tokens,
        n_cols=n_cols,
        group_size=matrices[0].group_size,
        has_norm=norm_w is not None,
        n_rows=n_rows,
        has_linear_bias=[bias is not None for bias in linear_biases],
        eps=EPS,
    )
    ys = [empty((n_tokens, n), t) for n in n_rows]
    buffers = [args, x, norm_w]
    for matrix, bias, y in zip(matrices, linear_biases, ys, strict=True):
        buffers += [*matrix.buffers, bias, y]
    run("matvec", f"matvec_{t}_{w}", buffers, groups(max(n_rows), n_tokens, len(ys)), THREADS, schedule)
    return [reference.widen(y, t) for y in ys]


def residual(t, w, y, matrix, x, scale, linear_bias=None, schedule=0):
    n_tokens, n_rows = x.shape
    args = pack(
        "MatvecArgs",
        n_tokens=n_tokens,
        n_cols=y.shape[1],
        group_size=matrix.group_size,
        n_rows=[n_rows],
        has_linear_bias=[linear_bias is not None],
        scale=scale,
    )
    x = x.copy()
    buffers = [args, stored(y, t)[0], *matrix.buffers, linear_bias, x]
    run("matvec", f"matvec_residual_{t}_{w}", buffers, groups(n_rows, n_tokens), THREADS, schedule)
    return x


def gate(t, w, x, gate_matrix, up_matrix, activation, linear_biases=(None, None), norm_w=None, schedule=0):
    n_tokens, n_rows = len(x), len(gate_matrix.wide)
    args = pack(
        "MatvecArgs",
        n_tokens=n_tokens,
        n_cols=x.shape[1],
        group_size=gate_matrix.group_size,
        has_norm=norm_w is not None,
        n_rows=[n_rows, n_rows],
        has_linear_bias=[bias is not None for bias in linear_biases],
        has_up=up_matrix is not None,
        activation=ACTIVATIONS.index(activation),
        eps=EPS,
    )
    h = empty((n_tokens, n_rows), t)
    up_buffers = up_matrix.buffers if up_matrix else (None, None, None)
    buffers = [args, x, norm_w, *gate_matrix.buffers, linear_biases[0], *up_buffers, linear_biases[1], h]
    run("matvec", f"matvec_gate_{t}_{w}", buffers, groups(n_rows, n_tokens), THREADS, schedule)
    return reference.widen(h, t)


def floats(t, w, x, matrix, rows=None, norm_w=None, linear_bias=None, scale=1.0, softcap=0.0, schedule=0):
    n_tokens, n_rows = len(x) if rows is None else len(rows), len(matrix.wide)
    args = pack(
        "MatvecArgs",
        n_tokens=n_tokens,
        n_cols=x.shape[1],
        group_size=matrix.group_size,
        has_norm=norm_w is not None,
        has_rows=rows is not None,
        n_rows=[n_rows],
        has_linear_bias=[linear_bias is not None],
        eps=EPS,
        scale=scale,
        softcap=softcap,
    )
    y = empty((n_tokens, n_rows), "f32")
    buffers = [args, stored(x, t)[0], norm_w, *matrix.buffers, linear_bias, rows, y]
    run("matvec", f"matvec_float_{t}_{w}", buffers, groups(n_rows, n_tokens), THREADS, schedule)
    return y


def check_integers(t, w, size, group_size, schedule):
    """All four kernels where every sum is exact, and so the same in any order."""
    n_rows, n_tokens = size[:2]
    n_cols = columns(size, w, group_size)
    rng = np.random.default_rng(n_cols)
    x = small_integers(rng, n_tokens, n_cols)
    first, second, third = (integer_matrix(rng, n, n_cols, w, group_size) for n in (n_rows, n_rows, n_rows // 2 + 1))
    biases = [small_integers(rng, n_rows), None, small_integers(rng, n_rows // 2 + 1)]

    ys = matvec(t, w, x, (first, second, third), biases, schedule=schedule)
    for y, matrix, bias in zip(ys, (first, second, third), biases, strict=True):
        np.testing.assert_array_equal(y, rounded(reference.matmul(x, matrix.wide) + (0 if bias is None else bias), t))

    stream = small_integers(rng, n_tokens, n_rows)
    np.testing.assert_array_equal(
        residual(t, w, x, first, stream, 0.5, biases[0], schedule),
        stream + 0.5 * (reference.matmul(x, first.wide) + biases[0]),
    )

    gated = np.maximum(reference.matmul(x, first.wide) + biases[0], 0)
    np.testing.assert_array_equal(
        gate(t, w, x, first, second, "relu", (biases[0], None), schedule=schedule),
        rounded(gated * reference.matmul(x, second.wide), t),
    )
    np.testing.assert_array_equal(
        gate(t, w, x, first, None, "relu", (biases[0], None), schedule=schedule), rounded(gated, t)
    )

    rows = rng.integers(0, n_tokens, n_tokens + 1).astype(np.int32)
    np.testing.assert_array_equal(
        floats(t, w, x, second, rows, scale=2.0, schedule=schedule), 2 * reference.matmul(x[rows], second.wide)
    )


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_sums_of_small_integers_are_exact(t, w):
    start = DTYPES.index(t) + STORED_AS.index(w)
    for i, size in enumerate(SIZES):
        check_integers(t, w, size, GROUP_SIZES[(start + i) % 3], SCHEDULES[(start + i // 3) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_sums_of_small_integers_are_exact_at_every_size(t, w, schedule):
    for n_rows in (1, 8, 9, 16, 17):
        for n_tokens in (1, 2, 4, 5):
            for n_cols, n_groups in ((1, 1), (7, 2), (8, 3), (31, 4), (32, 5), (65, 8), (256, 9), (257, 17)):
                group_size = GROUP_SIZES[(n_rows + n_tokens + n_groups) % 3]
                check_integers(t, w, (n_rows, n_tokens, n_cols, n_groups), group_size, schedule)


SHAPES = [(1024, 1, 3072), (40, 3, 1024), (96, 2, 384)]


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize(("t", "shape"), list(zip(DTYPES, SHAPES, strict=True)))
def test_matches_numpy_with_a_norm(t, w, shape):
    """n = x norm_w / rms: the sum of squares errs by half of sum_bound, and the product of n by the whole."""
    n_rows, n_tokens, n_cols = shape
    rng = np.random.default_rng(n_rows)
    x = rng.normal(size=(n_tokens, n_cols)).astype(np.float32)
    norm_w = rng.uniform(0.5, 1.5, n_cols).astype(np.float32)
    n = reference.rms_norm(x, norm_w, EPS)
    q, k, v = (random_matrix(rng, rows, n_cols, w, 64) for rows in (n_rows, n_rows // 2, n_rows // 2))
    for schedule in SCHEDULES if n_rows < 1000 else (0,):
        ys = matvec(t, w, x, (q, k, v), (None,) * 3, norm_w, schedule)
        for y, matrix in zip(ys, (q, k, v), strict=True):
            error = 2 * sum_bound(n_cols) * matrix.sizes_with(n)
            check_close(y, reference.matmul(n, matrix.wide), error, t)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("w", STORED_AS)
def test_gate_matches_numpy(w, activation):
    """No activation is steeper than 1.13; what else it costs is a few roundings of its argument."""
    n_rows, n_tokens, n_cols = 40, 1 + ACTIVATIONS.index(activation), 384
    t = DTYPES[STORED_AS.index(w) % 3]
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n_tokens, n_cols)).astype(np.float32)
    norm_w = rng.uniform(0.05, 0.15, n_cols).astype(np.float32)
    n = reference.rms_norm(x, norm_w, EPS)
    gate_matrix, up_matrix = (random_matrix(rng, n_rows, n_cols, w, 32) for _ in range(2))
    biases = rng.normal(size=(2, n_rows)).astype(np.float32)

    g = reference.matmul(n, gate_matrix.wide) + biases[0]
    up = reference.matmul(n, up_matrix.wide) + biases[1]
    expected = reference.gate(activation, g)
    g_error = 2 * sum_bound(n_cols) * (gate_matrix.sizes_with(n) + 1)
    up_error = 2 * sum_bound(n_cols) * (up_matrix.sizes_with(n) + 1)
    act_error = 1.13 * g_error + 8 * U * np.abs(g)
    error = act_error * (np.abs(up) + up_error) + np.abs(expected) * up_error
    check_close(gate(t, w, x, gate_matrix, up_matrix, activation, biases, norm_w), expected * up, error, t)
    check_close(gate(t, w, x, gate_matrix, None, activation, (biases[0], None), norm_w), expected, act_error, t)


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_logits_match_numpy(t, w):
    """tanh is no steeper than 1, so softcap * tanh(z / softcap) errs by no more than z."""
    n_rows, n_cols, scale, softcap = 101, 256, 0.5, 15.0
    rng = np.random.default_rng(6)
    x = rng.normal(size=(5, n_cols)).astype(np.float32)
    x = rounded(x, t)
    rows = np.array([4, 2], np.int32)
    norm_w = rng.uniform(0.5, 1.5, n_cols).astype(np.float32)
    linear_bias = rng.normal(size=n_rows).astype(np.float32)
    n = reference.rms_norm(x[rows], norm_w, EPS)
    matrix = random_matrix(rng, n_rows, n_cols, w, 128)
    z = scale * (reference.matmul(n, matrix.wide) + linear_bias)
    error = scale * 2 * sum_bound(n_cols) * (matrix.sizes_with(n) + 3) + 8 * U * softcap
    capped = floats(t, w, x, matrix, rows, norm_w, linear_bias, scale, softcap)
    check_close(capped, softcap * np.tanh(z / softcap), error, "f32")
    check_close(floats(t, w, x, matrix, rows, norm_w, linear_bias, scale), z, error, "f32")


@pytest.mark.parametrize("w", STORED_AS)
def test_no_bit_depends_on_the_order_of_threads(w):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(6, 320)).astype(np.float32)
    norm_w = np.ones(320, np.float32)
    matrix = random_matrix(rng, 21, 320, w, 64)
    first, *others = (matvec("f32", w, x, (matrix,), (None,), norm_w, schedule)[0] for schedule in SCHEDULES)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("w", ["f16", "int8_f16", "int4_f16"])
@pytest.mark.parametrize("n_tokens", [1, TOKENS])
def test_weights_are_read_once(w, n_tokens):
    """What matvec.metal says it is bound by: W once for all tokens, and x once for the rows taken at once."""
    n_rows, n_cols = 6 * ROWS, 1024
    matrix = random_matrix(np.random.default_rng(9), n_rows, n_cols, w, 64)
    x = np.ones((n_tokens, n_cols), np.float32)
    y = empty((n_tokens, n_rows), "f32")
    args = pack("MatvecArgs", n_tokens=n_tokens, n_cols=n_cols, group_size=64, n_rows=[n_rows], scale=1.0)
    buffers = [args, x, None, *matrix.buffers, None, None, y]
    report = run("matvec", f"matvec_float_f32_{w}", buffers, groups(n_rows, n_tokens), THREADS, count=True)
    read = report.bytes_read
    assert read[3].moved == read[3].touched == matrix.codes.nbytes
    if matrix.scales is not None:
        assert read[4].touched == read[5].touched == matrix.scales.nbytes
    rows_at_once = ROWS // THREADS[1] if n_tokens == 1 else 4
    assert read[1].moved == x.nbytes * n_rows // rows_at_once
    assert report.bytes_written[8].moved == y.nbytes


def test_damage_shows():
    w = np.ones((6, 20), np.float32)
    w[2, 19], w[4, 0] = np.nan, np.inf
    rng = np.random.default_rng(8)
    matrix = random_matrix(rng, 6, 20, "f32", 0)
    matrix.codes[...] = w
    y = floats("f32", "f32", np.ones((5, 20), np.float32), matrix)
    np.testing.assert_array_equal(y, np.tile(np.array([20, 20, np.nan, 20, np.inf, 20], np.float32), (5, 1)))
