"""Weights of a softmax and their sums by blocks: every variant against numpy."""

import numpy as np
import pytest

from kernels import U, all_variants, assert_close, sum_bound
from russet import _core

BLOCK = _core.kernels.BLOCK_FLOATS


def check(variant, x, scale):
    largest = x.max()
    sums, weights = _core.kernels.sum_exp(variant, x, largest, scale)
    alone, none = _core.kernels.sum_exp(variant, x, largest, scale, with_weights=False)
    np.testing.assert_array_equal(alone, sums)
    assert none is None
    away = (x.astype(np.float64) - largest) * scale
    expected = np.exp(away)
    # exp is within 2 ulp (4 U); its argument is rounded twice, and what that changes is as large as the argument.
    share = 4 * U + 2 * U * np.abs(np.maximum(away, -88))
    assert_close(weights, expected, share * expected + 1e-37)
    by_block = [slice(begin, begin + BLOCK) for begin in range(0, len(x), BLOCK)]
    bound = [((share + sum_bound(BLOCK)) * expected)[block].sum() + BLOCK * 1e-37 for block in by_block]
    assert_close(sums, np.array([expected[block].sum() for block in by_block]), np.array(bound))


@pytest.mark.parametrize("variant", all_variants("sum_exp"))
@pytest.mark.parametrize("n", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17, 5000])
def test_every_length(variant, n):
    check(variant, (3 * np.random.default_rng(n).normal(size=n)).astype(np.float32), 1.25)


@pytest.mark.parametrize("variant", all_variants("sum_exp"))
@pytest.mark.parametrize("scale", [1e-30, 0.01, 1.0, 100.0, 3e38])
def test_extremes(variant, scale):
    check(variant, np.array([0, 1, -1, 5, -np.inf, -3e38, 1e-40, 4.9999995] * 5, np.float32), scale)
