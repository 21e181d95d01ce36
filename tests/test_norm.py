"""RMSNorm and LayerNorm: every variant against numpy."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, assert_close, sum_bound
from russet import _core

norm = _core.kernels.norm
KINDS = {"rms": reference.rms_norm, "layer": reference.layer_norm}
DIMS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100, 1024, 3001)


def run(variant, kind, x, w, bias, eps):
    return norm(variant, getattr(_core.NormKind, kind), x, w, bias, eps)


@pytest.mark.parametrize("variant", all_variants("norm"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dim", DIMS)
def test_matches_numpy(variant, kind, with_bias, dim):
    rng = np.random.default_rng(dim)
    x, w, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, dim), dim, dim))
    b = bias if with_bias else None
    expected = KINDS[kind](x, w, 1e-5, b)
    # The scale carries half the error of the sum of squares, for its square root; then four roundings. A mean
    # is off by a share of the mean size, which the scale makes larger.
    bound = (sum_bound(dim) + 4 * U) * (np.abs(expected - (bias if with_bias else 0)) + np.abs(expected))
    if kind == "layer":
        scale = 1 / np.sqrt(x.astype(np.float64).var(axis=1, keepdims=True) + 1e-5)
        bound += sum_bound(dim) * np.abs(x).mean(axis=1, keepdims=True) * scale * np.abs(w)
    assert_close(run(variant, kind, x, w, b, 1e-5), expected, bound)


@pytest.mark.parametrize("variant", all_variants("norm"))
def test_layer_norm_of_a_large_mean(variant):
    # sum(x^2) - n mean^2 would lose everything here: the variance is 1, the mean 10,000.
    rng = np.random.default_rng(0)
    dim = 1024
    x = (10_000 + rng.normal(size=(4, dim))).astype(np.float32)
    w = np.ones(dim, np.float32)
    # The mean is off by sum_bound * 10,000, and every x - mean with it; their squares by its square.
    bound = 2 * sum_bound(dim) * 10_000
    assert bound < 0.05
    assert_close(run(variant, "layer", x, w, None, 1e-5), reference.layer_norm(x, w, 1e-5), bound)


@pytest.mark.parametrize("variant", all_variants("norm"))
@pytest.mark.parametrize("kind", KINDS)
def test_eps_keeps_zeros_finite(variant, kind):
    y = run(variant, kind, np.zeros((2, 37), np.float32), np.ones(37, np.float32), None, 1e-6)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("variant", all_variants("norm"))
@pytest.mark.parametrize("eps", [0.5, 1e-6])
def test_eps_is_added_to_the_mean_square(variant, eps):
    x = np.full((1, 20), 1e-3, np.float32)
    y = run(variant, "rms", x, np.ones(20, np.float32), None, eps)
    np.testing.assert_allclose(y, 1e-3 / np.sqrt(1e-6 + eps), rtol=8 * U)


@pytest.mark.parametrize("variant", all_variants("norm"))
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_independent(variant, kind):
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(5, 77)).astype(np.float32), rng.normal(size=77).astype(np.float32)
    x[3, 5] = np.nan
    together = run(variant, kind, x, w, None, 1e-5)
    for t in range(5):
        np.testing.assert_array_equal(together[t : t + 1], run(variant, kind, x[t : t + 1], w, None, 1e-5))
    assert np.isnan(together[3]).all()
