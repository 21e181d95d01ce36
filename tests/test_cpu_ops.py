"""The fused operations of the CPU backend: a norm with the linear behind it, the gate with its products."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, assert_close, stored, sum_bound
from russet import _core
from russet.errors import UsageError

THREADS = (1, 2, 3, 7)
# 1 to 32 tokens go through matvec, more through matmul.
TOKENS = (1, 2, 32, 33, 70)
# Rows are cut at multiples of 16 and gated 512 at a time.
ROWS = (1, 15, 16, 17, 100, 513, 1100)


def cpu(threads, dim, **fields):
    config = _core.Config()
    config.dim = dim
    for name, value in fields.items():
        setattr(config, name, value)
    return _core.Cpu(config, threads)


def case(rng, n_tokens, n_rows, dim, dtype):
    """x, norm weights, two matrices as stored, and the two as float32."""
    x = rng.normal(size=(n_tokens, dim)).astype(np.float32)
    norm_w = rng.normal(size=dim).astype(np.float32)
    stored_pair = [stored(rng.normal(size=(n_rows, dim)), dtype) for _ in range(2)]
    return x, norm_w, *stored_pair, *(reference.widen(*w) for w in stored_pair)


def product_bound(x, w):
    """The product's own rounding, and as much again for the norm's of its input (which is as long a sum)."""
    return 2 * sum_bound(w.shape[1]) * (np.abs(x) @ np.abs(w).T.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("n_rows", ROWS)
def test_norm_linear_matches_numpy(dtype, n_tokens, n_rows):
    x, norm_w, w, _, wide, _ = case(np.random.default_rng(n_rows), n_tokens, n_rows, 45, dtype)
    normed = reference.rms_norm(x, norm_w, 1e-5)
    y = cpu(2, 45).norm_linear(norm_w, None, w, x)
    assert_close(y, reference.matmul(normed, wide), product_bound(normed, wide))
    y = cpu(2, 45).norm_linear(None, None, w, x)
    assert_close(y, reference.matmul(x, wide), product_bound(x, wide))


@pytest.mark.parametrize("n_tokens", TOKENS)
def test_norm_linear_with_a_layer_norm(n_tokens):
    rng = np.random.default_rng(1)
    x, norm_w, w, _, wide, _ = case(rng, n_tokens, 37, 45, "f32")
    bias = rng.normal(size=45).astype(np.float32)
    normed = reference.layer_norm(x, norm_w, 0.25, bias)
    y = cpu(2, 45, norm=_core.NormKind.layer, norm_eps=0.25).norm_linear(norm_w, bias, w, x)
    assert_close(y, reference.matmul(normed, wide), 2 * product_bound(normed, wide))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_norm_gate_matches_numpy(dtype, n_tokens, n_rows, activation):
    x, norm_w, gate, up, wide_gate, wide_up = case(np.random.default_rng(n_rows), n_tokens, n_rows, 45, dtype)
    normed = reference.rms_norm(x, norm_w, 1e-5)
    g, u = reference.matmul(normed, wide_gate), reference.matmul(normed, wide_up)
    gate_error, up_error = product_bound(normed, wide_gate), product_bound(normed, wide_up)
    ops = cpu(2, 45, activation=getattr(_core.Activation, activation))
    # No activation is steeper than 1.2, nor further out than its argument.
    bound = 1.2 * gate_error * np.abs(u) + np.abs(g) * up_error + gate_error * up_error
    y = ops.norm_gate(norm_w, None, gate, up, x)
    assert_close(y, reference.gate(activation, g, u), bound + 1e-6 * np.abs(g * u))
    y = ops.norm_gate(norm_w, None, gate, None, x)
    assert_close(y, reference.gate(activation, g), 1.2 * gate_error + 1e-6 * np.abs(g))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 5, 32])
@pytest.mark.parametrize("n_rows", ROWS)
def test_decode_gives_the_same_bits_for_any_number_of_threads(dtype, n_tokens, n_rows):
    x, norm_w, w, up, _, _ = case(np.random.default_rng(n_rows), n_tokens, n_rows, 99, dtype)
    linear = [cpu(threads, 99).norm_linear(norm_w, None, w, x) for threads in THREADS]
    gate = [cpu(threads, 99).norm_gate(norm_w, None, w, up, x) for threads in THREADS]
    for i in range(1, len(THREADS)):
        np.testing.assert_array_equal(linear[i], linear[0])
        np.testing.assert_array_equal(gate[i], gate[0])


def test_one_backend_serves_calls_of_any_size():
    # Its buffers grow and are used again.
    ops = cpu(3, 30)
    for n_tokens in (1, 100, 3, 7, 200, 2):
        x, norm_w, w, up, wide, _ = case(np.random.default_rng(n_tokens), n_tokens, 700, 30, "bf16")
        normed = reference.rms_norm(x, norm_w, 1e-5)
        y = ops.norm_linear(norm_w, None, w, x)
        assert_close(y, reference.matmul(normed, wide), product_bound(normed, wide))
        np.testing.assert_array_equal(
            ops.norm_gate(norm_w, None, w, up, x), cpu(3, 30).norm_gate(norm_w, None, w, up, x)
        )


def test_shapes_are_checked():
    ops, w = cpu(1, 20), stored(np.ones((8, 20)), "f32")
    ones = np.ones(20, np.float32)
    for bad in (
        lambda: ops.norm_linear(None, None, w, np.ones((1, 21), np.float32)),
        lambda: ops.norm_linear(None, None, w, np.ones((0, 20), np.float32)),
        lambda: ops.norm_linear(ones[:19], None, w, np.ones((1, 20), np.float32)),
        lambda: ops.norm_linear(ones, ones[:19], w, np.ones((1, 20), np.float32)),
        lambda: ops.norm_gate(None, None, w, stored(np.ones((7, 20)), "f32"), np.ones((1, 20), np.float32)),
    ):
        with pytest.raises(UsageError):
            bad()
