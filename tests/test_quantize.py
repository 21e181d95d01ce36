"""Activations to int8 per token and group: every variant to the bit, against numpy."""

import numpy as np
import pytest

from affine import GROUP_SIZES
from kernels import all_variants
from russet import _core

quantize = _core.kernels.quantize


def by_numpy(x, group_size):
    """The same IEEE operations in the same order, so the same bits."""
    groups = x.reshape(len(x), -1, group_size)
    most = np.abs(groups).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        turn = np.where(most >= np.float32(2.0**-100), np.float32(127) / most, np.float32(0))
    codes = np.rint(groups * turn)
    scales = np.where(turn > 0, most / np.float32(127), np.float32(0))
    return codes.astype(np.int8).reshape(x.shape), scales[..., 0], codes.sum(axis=2).astype(np.int32)


@pytest.mark.parametrize("variant", all_variants("quantize"))
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_bits_are_numpys(variant, group_size, n_tokens):
    rng = np.random.default_rng(group_size)
    x = rng.normal(size=(n_tokens, 7 * group_size)).astype(np.float32)
    x[:, :group_size] *= 1e-20
    x[:, group_size : 2 * group_size] *= 1e20
    x[0, 2 * group_size : 3 * group_size] = 0
    x[0, 3 * group_size : 4 * group_size] = 1e-40  # too small to divide by
    x[0, 4 * group_size : 5 * group_size] = np.arange(group_size) - 0.5  # halves go to even
    x[0, 5 * group_size - 1] = 127
    for got, expected in zip(quantize(variant, x, group_size), by_numpy(x, group_size), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("variant", all_variants("quantize"))
def test_no_value_is_off_by_more_than_half_a_step(variant):
    x = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32)
    codes, scales, _ = quantize(variant, x, 128)
    steps = np.repeat(scales, 128, axis=1).astype(np.float64)
    # Half a step, and the two roundings of x * (127 / max) at up to 127 steps.
    assert (np.abs(codes * steps - x) <= steps * (0.5 + 127 * 3 * 2.0**-24)).all()
    assert np.abs(codes).max() == 127


@pytest.mark.parametrize("variant", all_variants("quantize"))
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_damage_shows(variant, damage):
    x = np.ones((2, 128), np.float32)
    x[1, 70] = damage
    codes, scales, sums = quantize(variant, x, 64)
    np.testing.assert_array_equal(np.isnan(scales), [[False, False], [False, True]])
    np.testing.assert_array_equal(codes[1, 64:], 0)
    assert sums[1].tolist() == [64 * 127, 0]
