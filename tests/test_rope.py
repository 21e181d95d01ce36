"""Rotary embedding: every variant against numpy."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, assert_close
from russet import _core

rope = _core.kernels.rope


def angles(rng, half):
    turns = rng.uniform(0, 6.3, half)
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


@pytest.mark.parametrize("variant", all_variants("rope"))
@pytest.mark.parametrize("n_heads", [1, 3])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"),
    [(2, 2), (5, 4), (8, 8), (14, 14), (16, 16), (18, 18), (32, 30), (34, 34), (80, 20), (257, 130)],
)
def test_matches_numpy(variant, n_heads, head_dim, rotary_dim):
    rng = np.random.default_rng(head_dim)
    x = rng.normal(size=(n_heads, head_dim)).astype(np.float32)
    cos, sin = angles(rng, rotary_dim // 2)
    y = rope(variant, x, cos, sin)
    # Two products and their sum: three roundings, each of at most U of |x| + |partner|.
    size = np.abs(x)
    half = rotary_dim // 2
    size[:, :half] += np.abs(x[:, half:rotary_dim])
    size[:, half:rotary_dim] += np.abs(x[:, :half])
    assert_close(y, reference.rope(x, cos, sin), 3 * U * size)
    np.testing.assert_array_equal(y[:, rotary_dim:], x[:, rotary_dim:])


@pytest.mark.parametrize("variant", all_variants("rope"))
def test_position_zero_changes_nothing(variant):
    x = np.random.default_rng(0).normal(size=(2, 48)).astype(np.float32)
    np.testing.assert_array_equal(rope(variant, x, np.ones(24, np.float32), np.zeros(24, np.float32)), x)


@pytest.mark.parametrize("variant", all_variants("rope"))
def test_a_turn_keeps_the_length(variant):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 64)).astype(np.float32)
    y = rope(variant, x, *angles(rng, 32))
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=8 * U)
