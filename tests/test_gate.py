"""SwiGLU, GeGLU, GELU, ReLU: every variant against numpy."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, assert_close
from russet import _core

gate = _core.kernels.gate
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def run(variant, activation, x, up=None):
    return gate(variant, getattr(_core.Activation, activation), x, up)


def bound(activation, x, up):
    """exp and tanh are within 2 ulp and 2e-7, each operation after them rounds once.

    The gelus multiply x by 1 + f(x) with f near -1 on the left: there the error is a share of |x|, not of the
    result. silu's is a share of the result, down to e^-88, below which the core's exp stops.
    """
    share = np.abs(reference.gate(activation, x)) if activation in ("silu", "relu") else np.abs(x)
    return (8 * U * share + 1e-36) * np.abs(up)


@pytest.mark.parametrize("variant", all_variants("gate"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_whole_range(variant, activation):
    x = np.concatenate([np.linspace(-100, 100, 20_011), np.linspace(-6, 6, 20_011), [0.0, -0.0]])
    x = x.astype(np.float32)
    one = np.ones_like(x)
    assert_close(run(variant, activation, x), reference.gate(activation, x), bound(activation, x, one))
    np.testing.assert_array_equal(run(variant, activation, x, one), run(variant, activation, x))


@pytest.mark.parametrize("variant", all_variants("gate"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 100, 3072])
def test_every_length(variant, activation, n):
    rng = np.random.default_rng(n)
    x, up = (4 * rng.normal(size=(2, n))).astype(np.float32)
    y = run(variant, activation, x, up)
    assert_close(y, reference.gate(activation, x, up), bound(activation, x, up))


@pytest.mark.parametrize("variant", all_variants("gate"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_stays_finite(variant, activation):
    x = np.array([-1e30, -1e10, 1e10, 1e30] * 5, np.float32)
    y = run(variant, activation, x)
    np.testing.assert_array_equal(y[x > 0], x[x > 0])
    np.testing.assert_allclose(y[x < 0] / x[x < 0], 0, atol=1e-37)


@pytest.mark.parametrize("variant", all_variants("gate"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_damage_shows(variant, activation):
    x = np.ones(19, np.float32)
    x[[3, 18]] = np.nan
    np.testing.assert_array_equal(np.isnan(run(variant, activation, x)), np.isnan(x))
