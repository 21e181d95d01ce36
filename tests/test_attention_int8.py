"""Attention with products in 8 bits: the same steps on every instruction set, and what they cost."""

import numpy as np
import pytest

from kernels import all_variants
from russet import _core

KINDS = ("sage", "int8")
OPS = {"sage": "attention_sage", "int8": "attention_integer"}
VARIANTS = [
    pytest.param(kind, *variant.values, marks=variant.marks, id=f"{kind}-{variant.values[0]}")
    for kind in KINDS
    for variant in all_variants(OPS[kind])
]


def case(n_tokens, n_heads, n_keys, head_dim, seed=0):
    """Keys with a large mean and a few large columns, as models have them."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n_tokens, n_heads, head_dim))
    k, v = rng.normal(size=(2, n_keys, head_dim))
    k += 4 * rng.normal(size=head_dim)
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)


def attend(variant, kind, q, k, v, **options):
    return _core.kernels.attention(variant, q, k, v, kind=kind, scale=q.shape[-1] ** -0.5, **options)


def exact(q, k, v, **options):
    return attend("ref", "exact", q, k, v, **options).astype(np.float64)


def cosine(x, y):
    x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


MASKS = {
    "all": {},
    "window": {"window": 70},
    "sinks": {"window": 70, "n_sinks": 5},
    "soft cap": {"softcap": 5.0},
    "absent blocks": {"absent": {1}},
}


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@pytest.mark.parametrize(
    "types", [("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("int8", "int8"), ("int8", "int4")]
)
@pytest.mark.parametrize("mask", MASKS)
def test_near_the_exact_one(kind, variant, types, mask):
    q, k, v = case(7, 3, 205, 64)
    options = MASKS[mask] | dict(zip(("keys", "values"), types, strict=True))
    expected, actual = exact(q, k, v, **options), attend(variant, kind, q, k, v, **options)
    # A key is rounded by at most 1/254 of the largest of its block, a query likewise: of a score of some 64
    # products the standard deviation of that is 0.01 to 0.02, which is the share by which weights are off.
    assert cosine(expected, actual).min() > 0.999
    assert np.sqrt(np.mean((expected - actual) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2)) + 0.005


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@pytest.mark.parametrize("head_dim", [1, 3, 16, 33, 64, 80, 96, 128, 256, 511])
def test_every_width_as_the_reference(kind, variant, head_dim):
    """The reference is the same steps: integers are exact, and floats round in another order."""
    q, k, v = case(3, 2, 130, head_dim, seed=head_dim)
    for types in ({}, {"keys": "int8", "values": "int8"}):
        expected = attend("ref", kind, q, k, v, **types)
        np.testing.assert_allclose(attend(variant, kind, q, k, v, **types), expected, rtol=0, atol=2e-2)
        # a weight on the border of two codes may fall to either side: rarely, and by a step of 1/127
        assert np.mean(np.abs(attend(variant, kind, q, k, v, **types) - expected)) < 1e-3


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@pytest.mark.parametrize("n_keys", [1, 2, 63, 64, 65, 128, 700])
@pytest.mark.parametrize("group", [1, 2, 4, 16])
def test_every_length(kind, variant, n_keys, group):
    q, k, v = case(min(n_keys, 64 // group), group, n_keys, 32, seed=n_keys)
    assert cosine(exact(q, k, v), attend(variant, kind, q, k, v)).min() > 0.998


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_the_mean_of_keys_costs_nothing(kind, variant):
    """Keys far from zero: without their mean taken out, 8 bits would say nothing of what differs between them."""
    q, k, v = case(4, 2, 300, 64)
    far = k + np.float32(100) * np.sign(np.random.default_rng(1).normal(size=64)).astype(np.float32)
    assert cosine(exact(q, far, v), attend(variant, kind, q, far, v)).min() > 0.999


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@pytest.mark.parametrize("of", ["q", "k", "v"])
@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_damage_is_seen(kind, variant, of, damage):
    """What is no number ends in NaN, as with exact attention, and not in a plausible text."""
    q, k, v = case(2, 2, 10, 16)
    {"q": q, "k": k, "v": v}[of][..., 1, 3] = damage
    assert not np.isfinite(attend(variant, kind, q, k, v)).all()


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_a_query_that_sees_nothing(kind, variant):
    q, k, v = case(1, 2, 64, 16)
    np.testing.assert_array_equal(attend(variant, kind, q, k, v, absent={0}), 0)
