"""metal/norm.metal: every instantiation against numpy."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, assert_close, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_kernels import ROUNDING, SCHEDULES, empty, rounded, run

KINDS = {"rms": reference.rms_norm, "layer": reference.layer_norm}
THREADS = (CONSTANTS["kNormThreads"],)

# A row is shared by 256 threads of 8 SIMD-groups.
DIMS = (1, 3, 31, 32, 33, 255, 256, 257, 513, 1024, 3001)
EPS = 1e-5


def norm(t, kind, x, w=None, bias=None, rows=None, eps=EPS, schedule=0):
    n_tokens, dim = len(x) if rows is None else len(rows), x.shape[1]
    args = pack(
        "NormArgs",
        dim=dim,
        is_layer=kind == "layer",
        has_w=w is not None,
        has_bias=bias is not None,
        has_rows=rows is not None,
        eps=eps,
    )
    y = empty((n_tokens, dim), t)
    run("norm", f"norm_{t}", [args, x, w, bias, rows, y], (n_tokens,), THREADS, schedule)
    return reference.widen(y, t)


def norm_self(t, y, w, schedule=0):
    y = y.copy()
    args = pack("NormArgs", dim=y.shape[1], has_w=1, eps=EPS)
    run("norm", f"norm_self_{t}", [args, y, w], (len(y),), THREADS, schedule)
    return reference.widen(y, t)


def norm_residual(kind, y, w, bias, x, scale, schedule=0):
    x = x.copy()
    args = pack(
        "NormResidualArgs",
        dim=y.shape[1],
        is_layer=kind == "layer",
        has_bias=bias is not None,
        eps=EPS,
        scale=scale,
    )
    run("norm", "norm_residual", [args, y, w, bias, x], (len(y),), THREADS, schedule)
    return x


def numpy_norm(kind, x, w, bias):
    """What is expected, and how far a float32 norm may be from it.

    The scale carries half the error of the sum of squares, for its square root; then five roundings. A mean is
    off by a share of the mean size, which the scale makes larger.
    """
    expected = KINDS[kind](x, w, EPS, bias)
    bound = (sum_bound(x.shape[1]) + 5 * U) * (np.abs(expected - (0 if bias is None else bias)) + np.abs(expected))
    if kind == "layer":
        scale = 1 / np.sqrt(x.astype(np.float64).var(axis=1, keepdims=True) + EPS)
        bound += sum_bound(x.shape[1]) * np.abs(x).mean(axis=1, keepdims=True) * scale * np.abs(w)
    return expected, bound


def check(t, kind, dim, schedule):
    rng = np.random.default_rng(dim)
    x, w, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, dim), dim, dim))
    rounding = ROUNDING[t]
    for has_w, has_bias in ((True, False), (True, True), (False, False)):
        w_here, bias_here = w if has_w else None, bias if has_bias else None
        expected, bound = numpy_norm(kind, x, w_here, bias_here) if has_w else (x, 0)  # without w: x as it is
        y = norm(t, kind, x, w_here, bias_here, schedule=schedule)
        assert_close(y, expected, bound + rounding * (np.abs(expected) + bound) + 2.0**-25)

    rows = np.array([2, 0, 2, 1], np.int32)
    whole = norm(t, kind, x, w, schedule=schedule)
    np.testing.assert_array_equal(norm(t, kind, x, w, rows=rows, schedule=schedule), whole[rows])
    np.testing.assert_array_equal(norm(t, kind, x, rows=rows, schedule=schedule), rounded(x, t)[rows])

    if kind == "rms":
        y = stored(x, t)[0]
        expected, bound = numpy_norm("rms", reference.widen(y, t), w, None)
        assert_close(norm_self(t, y, w, schedule), expected, bound + rounding * (np.abs(expected) + bound) + 2.0**-25)

    if t == "f32":
        expected, bound = numpy_norm(kind, x, w, bias)
        stream = rng.normal(size=x.shape).astype(np.float32)
        total = stream + 0.25 * expected
        bound = 0.25 * bound + 2 * U * (np.abs(stream) + np.abs(expected))
        assert_close(norm_residual(kind, x, w, bias, stream, 0.25, schedule), total, bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", DTYPES)
def test_matches_numpy(t, kind):
    for i, dim in enumerate(DIMS):
        check(t, kind, dim, SCHEDULES[(i + DTYPES.index(t)) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", DTYPES)
def test_matches_numpy_at_every_width(t, kind, schedule):
    for dim in (*range(1, 40), *range(250, 262), *range(508, 516), 1023, 1025, 4096, 8192):
        check(t, kind, dim, schedule)


def test_layer_norm_of_a_large_mean():
    # sum(x^2) - n mean^2 would lose everything here: the variance is 1, the mean 10,000.
    rng = np.random.default_rng(0)
    x = (10_000 + rng.normal(size=(4, 1024))).astype(np.float32)
    w = np.ones(1024, np.float32)
    # The mean is off by sum_bound * 10,000, and every x - mean with it; their squares by its square.
    bound = 2 * sum_bound(1024) * 10_000
    assert bound < 0.05
    assert_close(norm("f32", "layer", x, w), reference.layer_norm(x, w, EPS), bound)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_keeps_zeros_finite(kind):
    np.testing.assert_array_equal(
        norm("f32", kind, np.zeros((2, 37), np.float32), np.ones(37, np.float32), eps=1e-6), 0
    )


@pytest.mark.parametrize("eps", [0.5, 1e-6])
def test_eps_is_added_to_the_mean_square(eps):
    y = norm("f32", "rms", np.full((1, 20), 1e-3, np.float32), np.ones(20, np.float32), eps=eps)
    np.testing.assert_allclose(y, 1e-3 / np.sqrt(1e-6 + eps), rtol=8 * U)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_stays_in_its_row(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 300)).astype(np.float32)
    x[1, 299] = np.nan
    y = norm("f32", kind, x, np.ones(300, np.float32))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize(("kind", "n_reads"), [("rms", 2), ("layer", 3)])
def test_a_row_is_read_for_each_sum_and_once_more(kind, n_reads):
    x, w = np.ones((1, 1024), np.float32), np.ones(1024, np.float32)
    args = pack("NormArgs", dim=1024, is_layer=kind == "layer", has_w=1, eps=EPS)
    report = run("norm", "norm_f16", [args, x, w, None, None, empty((1, 1024), "f16")], (1,), THREADS, count=True)
    assert report.bytes_read[1].touched == x.nbytes
    assert report.bytes_read[1].moved == n_reads * x.nbytes
    assert report.bytes_written[5].moved == 2 * 1024
