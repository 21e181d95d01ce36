"""The largest of every block of a row, and damage that shows in it: every variant, to the bit."""

import numpy as np
import pytest

from kernels import all_variants
from russet import _core

BLOCK = _core.kernels.BLOCK_FLOATS


@pytest.mark.parametrize("variant", all_variants("block_max"))
@pytest.mark.parametrize("n", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17, 5000])
def test_every_length(variant, n):
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    expected = [x[begin : begin + BLOCK].max() for begin in range(0, n, BLOCK)]
    np.testing.assert_array_equal(_core.kernels.block_max(variant, x), expected)


@pytest.mark.parametrize("variant", all_variants("block_max"))
@pytest.mark.parametrize("damage", [np.nan, -np.nan, np.inf])
def test_damage_shows_wherever_it_is(variant, damage):
    for at in range(2 * BLOCK + 5):
        x = np.full(2 * BLOCK + 5, -np.inf, np.float32)
        x[at] = damage
        maxima = _core.kernels.block_max(variant, x)
        np.testing.assert_array_equal(maxima, np.where(np.arange(3) == at // BLOCK, np.inf, -np.inf))
