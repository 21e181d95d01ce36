"""Weights to affine groups: every variant to the bit. What the fits are worth is tests/test_affine.py's."""

import numpy as np
import pytest

import reference
from affine import GROUP_SIZES
from kernels import DTYPES, all_variants, stored
from russet import _core

fit = _core.kernels.fit

#: Where floats end, and where steps are too fine or squares too large for the search.
SIZES = (1e-45, 1e-40, 1e-38, 1e-30, 1e-7, 1.0, 1e4, 1e18, 1e30, 1e38)


def groups(dtype, n_groups, group_size):
    """One group a row, of values that dtype has: noise of many sizes, offsets, alike, halves, zeros of both signs."""
    rng = np.random.default_rng(group_size)
    w = rng.normal(size=(n_groups, group_size))
    kinds = (
        lambda x: x,
        lambda x: x**3,
        lambda x: np.abs(x),
        lambda x: 100 - np.abs(x),
        lambda x: np.round(x) / 2,
        lambda x: np.full_like(x, x[0]),
        lambda x: np.full_like(x, x[0]) * np.sign(x),
        lambda x: np.where(x > 0, 0.0, -0.0),
        lambda x: np.where(x > 1, x, -0.0) * np.sign(x),
        lambda x: np.arange(group_size) - 0.5,
        lambda x: x * rng.choice(SIZES),
        lambda x: np.clip(x, -1, 1) * 3.4028e38,
    )
    for g, group in enumerate(w):
        w[g] = kinds[g % len(kinds)](group)
    with np.errstate(over="ignore"):
        wide = reference.widen(stored(w.clip(-3.4028e38, 3.4028e38), dtype)[0], dtype)
    return np.ascontiguousarray(np.where(np.isfinite(wide), wide, np.float32(1)), np.float32)


@pytest.mark.parametrize("variant", all_variants("fit"))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_the_references(variant, dtype, group_size, bits, symmetric):
    w = groups(dtype, 240, group_size)
    expected = fit("ref", w, dtype, bits, symmetric)
    for n_groups in (1, 3, 4, 5, 8, 15, 17, 240):  # around the number of lanes
        for got, ref in zip(fit(variant, w[:n_groups], dtype, bits, symmetric), expected, strict=True):
            assert got.dtype == ref.dtype
            unsigned = np.uint8 if ref.dtype == np.uint8 else np.uint32
            np.testing.assert_array_equal(got.view(unsigned), ref[:n_groups].view(unsigned))
    _, scales, biases = expected
    for part in (scales, biases):  # the dtype has them
        np.testing.assert_array_equal(reference.widen(stored(part, dtype)[0], dtype), part)


@pytest.mark.parametrize("variant", all_variants("fit"))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_damage_shows(variant, damage, bits, symmetric):
    w = groups("f32", 19, 64)
    expected = fit(variant, w, "f32", bits, symmetric)
    w[7, 40] = damage
    got = fit(variant, w, "f32", bits, symmetric)
    assert np.isnan(got[1]).nonzero()[0].tolist() == [7]
    assert np.isnan(got[2]).nonzero()[0].tolist() == [7]
    np.testing.assert_array_equal(got[0][7], 0)
    others = np.arange(19) != 7
    for part, before in zip(got, expected, strict=True):
        np.testing.assert_array_equal(part[others], before[others])


@pytest.mark.parametrize("variant", all_variants("fit"))
def test_ties_of_a_rounded_division_are_told_from_true_ones(variant):
    # In f32 a quotient just off a half may round to it: the code must still be the nearer one.
    rng = np.random.default_rng(0)
    w = rng.uniform(0.5, 1, (2000, 32)).astype(np.float32)
    _, scales, _ = fit(variant, w, "f32", 8, True)
    halves = (rng.integers(1, 100, w.shape) + 0.5) * scales[:, None].astype(np.float64)
    near = halves.astype(np.float32)
    near[:, 0] = w.max(axis=1)  # the same scales again
    codes, again, _ = fit(variant, near, "f32", 8, True)
    np.testing.assert_array_equal(again, scales)
    steps = scales[:, None].astype(np.float64)
    assert (np.abs((codes - 128.0) * steps - near) <= steps / 2).all()
