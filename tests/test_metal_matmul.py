"""metal/matmul.metal: products of many tokens, every instantiation against numpy."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_kernels import (
    ACTIVATIONS,
    ROUNDING,
    SCHEDULES,
    STORED_AS,
    check_close,
    columns,
    empty,
    integer_matrix,
    random_matrix,
    rounded,
    run,
    shader,
    small_integers,
)

ROWS, TOKENS = CONSTANTS["kMatmulRows"], CONSTANTS["kMatmulTokens"]
THREADS = (CONSTANTS["kSimd"], CONSTANTS["kMatmulSimds"])

# A threadgroup makes 64 rows by 32 tokens, in matrices of 8 x 8, 32 columns a step; with an up 32 rows of both.
# (rows, tokens, columns of floats, groups of affine.)
SIZES = [
    (1, 1, 1, 1),
    (7, 8, 7, 2),
    (9, 9, 8, 1),
    (31, 31, 9, 3),
    (32, 7, 31, 1),
    (33, 32, 32, 2),
    (63, 33, 33, 1),
    (64, 2, 63, 4),
    (65, 5, 64, 1),
    (130, 65, 65, 3),
]
GROUP_SIZES = (32, 64, 128)


def call(kernel, t, w, n, matrices, y, linear_biases=(None, None), schedule=0, **fields):
    """Runs kernel_T_W with the matrices' buffers between n and y."""
    n_rows = len(matrices[0].wide)
    args = pack(
        "MatmulArgs",
        n_tokens=len(n),
        n_rows=n_rows,
        n_cols=n.shape[1],
        group_size=matrices[0].group_size,
        has_linear_bias=[bias is not None for bias in linear_biases],
        **fields,
    )
    buffers = [args, stored(n, t)[0]]
    for matrix, bias in zip(matrices, linear_biases, strict=False):
        buffers += [*matrix.buffers, bias] if matrix else [None] * 4
    rows = ROWS // 2 if fields.get("has_up") else ROWS
    grid = -(-n_rows // rows), -(-len(n) // TOKENS)
    run("matmul", f"{kernel}_{t}_{w}", [*buffers, y], grid, THREADS, schedule)
    return y


def matmul(t, w, n, matrix, linear_bias=None, schedule=0):
    y = empty((len(n), len(matrix.wide)), t)
    return reference.widen(call("matmul", t, w, n, (matrix,), y, (linear_bias,), schedule), t)


def residual(t, w, n, matrix, x, scale, linear_bias=None, schedule=0):
    return call("matmul_residual", t, w, n, (matrix,), x.copy(), (linear_bias,), schedule, scale=scale)


def floats(t, w, n, matrix, linear_bias=None, scale=1.0, softcap=0.0, schedule=0):
    y = empty((len(n), len(matrix.wide)), "f32")
    return call("matmul_float", t, w, n, (matrix,), y, (linear_bias,), schedule, scale=scale, softcap=softcap)


def gate(t, w, n, gate_matrix, up_matrix, activation, linear_biases=(None, None), schedule=0):
    h = empty((len(n), len(gate_matrix.wide)), t)
    fields = {"has_up": up_matrix is not None, "activation": ACTIVATIONS.index(activation)}
    call("matmul_gate", t, w, n, (gate_matrix, up_matrix), h, linear_biases, schedule, **fields)
    return reference.widen(h, t)


def check_integers(t, w, size, group_size, schedule):
    """All four kernels where every sum is exact, and so the same in any order."""
    n_rows, n_tokens = size[:2]
    n_cols = columns(size, w, group_size)
    rng = np.random.default_rng(n_cols)
    n = small_integers(rng, n_tokens, n_cols)
    first, second = (integer_matrix(rng, n_rows, n_cols, w, group_size) for _ in range(2))
    bias = small_integers(rng, n_rows)
    product = reference.matmul(n, first.wide)

    np.testing.assert_array_equal(matmul(t, w, n, first, bias, schedule), rounded(product + bias, t))
    np.testing.assert_array_equal(floats(t, w, n, first, None, 2.0, schedule=schedule), 2 * product)
    x = small_integers(rng, n_tokens, n_rows)
    np.testing.assert_array_equal(residual(t, w, n, first, x, 0.5, bias, schedule), x + 0.5 * (product + bias))
    gated = np.maximum(product, 0)
    np.testing.assert_array_equal(
        gate(t, w, n, first, second, "relu", (None, bias), schedule),
        rounded(gated * (reference.matmul(n, second.wide) + bias), t),
    )
    np.testing.assert_array_equal(gate(t, w, n, first, None, "relu", (None, None), schedule), rounded(gated, t))


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_sums_of_small_integers_are_exact(t, w):
    start = DTYPES.index(t) + STORED_AS.index(w)
    for i in range(start % 2, len(SIZES), 2):
        check_integers(t, w, SIZES[i], GROUP_SIZES[(start + i // 2) % 3], SCHEDULES[i % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_sums_of_small_integers_are_exact_at_every_size(t, w, schedule):
    for n_rows in (1, 31, 33, 64, 65):
        for n_tokens in (1, 8, 31, 33):
            for n_cols, n_groups in ((1, 1), (31, 2), (32, 3), (65, 4)):
                group_size = GROUP_SIZES[(n_rows + n_tokens + n_groups) % 3]
                check_integers(t, w, (n_rows, n_tokens, n_cols, n_groups), group_size, schedule)


def sum_error(t, n, matrix, *more):
    """Of a sum; a weight that is brought to threadgroup memory as half is first rounded to it."""
    staged = ROUNDING["f16"] if t == "f16" else 0
    return (sum_bound(n.shape[1]) + staged) * (matrix.sizes_with(n) + sum(more))


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_matches_numpy(t, w):
    rng = np.random.default_rng(5)
    n = rounded(rng.normal(size=(19, 384)), t)
    matrix = random_matrix(rng, 70, 384, w, 64)
    expected = reference.matmul(n, matrix.wide)
    error = sum_error(t, n, matrix)
    check_close(matmul(t, w, n, matrix), expected, error, t)
    x = rng.normal(size=(19, 70)).astype(np.float32)
    check_close(residual(t, w, n, matrix, x, 0.25), x + 0.25 * expected, 0.25 * error + U * np.abs(x), "f32")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("w", STORED_AS)
def test_gate_matches_numpy(w, activation):
    """No activation is steeper than 1.13; what else it costs is a few roundings of its argument."""
    t = DTYPES[STORED_AS.index(w) % 3]
    rng = np.random.default_rng(6)
    n = rounded(rng.normal(size=(9, 128)) / 10, t)
    gate_matrix, up_matrix = (random_matrix(rng, 40, 128, w, 32) for _ in range(2))
    biases = rng.normal(size=(2, 40)).astype(np.float32)
    g = reference.matmul(n, gate_matrix.wide) + biases[0]
    up = reference.matmul(n, up_matrix.wide) + biases[1]
    expected = reference.gate(activation, g)
    up_error = sum_error(t, n, up_matrix, np.abs(biases[1]))
    act_error = 1.13 * sum_error(t, n, gate_matrix, np.abs(biases[0])) + 8 * U * np.abs(g)
    error = act_error * (np.abs(up) + up_error) + np.abs(expected) * up_error
    check_close(gate(t, w, n, gate_matrix, up_matrix, activation, biases), expected * up, error, t)
    check_close(gate(t, w, n, gate_matrix, None, activation, (biases[0], None)), expected, act_error, t)


@pytest.mark.parametrize("w", STORED_AS)
@pytest.mark.parametrize("t", DTYPES)
def test_logits_match_numpy(t, w):
    """tanh is no steeper than 1, so softcap * tanh(z / softcap) errs by no more than z."""
    scale, softcap = 0.5, 15.0
    rng = np.random.default_rng(7)
    n = rounded(rng.normal(size=(3, 256)), t)
    matrix = random_matrix(rng, 67, 256, w, 128)
    bias = rng.normal(size=67).astype(np.float32)
    z = scale * (reference.matmul(n, matrix.wide) + bias)
    error = scale * sum_error(t, n, matrix, np.abs(bias)) + 8 * U * softcap
    check_close(floats(t, w, n, matrix, bias, scale, softcap), softcap * np.tanh(z / softcap), error, "f32")
    check_close(floats(t, w, n, matrix, bias, scale), z, error, "f32")


@pytest.mark.parametrize(("t", "w"), [("f16", "int8_f16"), ("bf16", "int4_bf16"), ("f16", "f16")])
def test_a_real_size(t, w):
    rng = np.random.default_rng(8)
    n = rounded(rng.normal(size=(33, 3072)), t)
    matrix = random_matrix(rng, 1024, 3072, w, 64)
    check_close(matmul(t, w, n, matrix), reference.matmul(n, matrix.wide), sum_error(t, n, matrix), t)


@pytest.mark.parametrize("t", DTYPES)
def test_no_bit_depends_on_the_order_of_threads(t):
    rng = np.random.default_rng(9)
    n = rng.normal(size=(40, 96)).astype(np.float32)
    matrix = random_matrix(rng, 70, 96, "int8_f16", 32)
    first, *others = (floats(t, "int8_f16", n, matrix, schedule=schedule) for schedule in SCHEDULES)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("w", ["f16", "int8_f16", "int4_f16"])
def test_each_tile_reads_its_rows_and_its_tokens_once(w):
    """What matmul.metal counts its flops a byte by."""
    n_rows, n_tokens, n_cols = 2 * ROWS, 3 * TOKENS, 128
    matrix = random_matrix(np.random.default_rng(11), n_rows, n_cols, w, 64)
    n, y = empty((n_tokens, n_cols), "f16"), empty((n_tokens, n_rows), "f16")
    args = pack("MatmulArgs", n_tokens=n_tokens, n_rows=n_rows, n_cols=n_cols, group_size=64)
    report = run("matmul", f"matmul_f16_{w}", [args, n, *matrix.buffers, None, y], (2, 3), THREADS, count=True)
    assert report.bytes_read[2].moved == 3 * matrix.codes.nbytes
    assert report.bytes_read[1].moved == 2 * n.nbytes
    assert report.bytes_written[6].moved == y.nbytes


@pytest.mark.parametrize(("t", "most"), [("f16", 10_000), ("f32", 16_384), ("bf16", 16_384)])
def test_threadgroup_memory_leaves_room_for_others(t, most):
    """Of the 32 KB that a threadgroup may have, so little that two or three fit a core at a time."""
    kernels = shader("matmul").kernels
    assert all(kernels[f"matmul{op}_{t}_{w}"].threadgroup_bytes <= most for op in ("", "_gate") for w in STORED_AS)


def test_damage_shows():
    rng = np.random.default_rng(10)
    matrix = random_matrix(rng, 6, 20, "f32", 0)
    matrix.codes[...] = 1
    matrix.codes[2, 19], matrix.codes[4, 0] = np.nan, np.inf
    y = matmul("f32", "f32", np.ones((5, 20), np.float32), matrix)
    np.testing.assert_array_equal(y, np.tile(np.array([20, 20, np.nan, 20, np.inf, 20], np.float32), (5, 1)))
