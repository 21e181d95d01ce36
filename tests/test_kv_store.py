"""Keys and values on their way into a block: every variant against numpy, bit for bit."""

import numpy as np
import pytest

import reference
from kernels import U, all_variants, stored
from russet import _core

kv_store = _core.kernels.kv_store

KEY_TYPES = ("f32", "f16", "bf16", "int8")
VALUE_TYPES = (*KEY_TYPES, "int4")


def as_stored(x, kind):
    """What a block gives back of x [n_tokens, head_dim]."""
    if kind in ("f32", "f16", "bf16"):
        with np.errstate(over="ignore"):
            return reference.widen(*stored(x, kind))
    most = np.float32(127 if kind == "int8" else 15)
    low = np.zeros((len(x), 1), np.float32) if kind == "int8" else x.min(axis=1, keepdims=True)
    high = (np.abs(x) if kind == "int8" else x).max(axis=1, keepdims=True)
    scale = (high - low) / most
    codes = np.rint((x - low) / np.where(scale == 0, 1, scale)) * (scale > 0)
    return low + scale * np.clip(codes, -most, most)


def rows(rng, n_tokens, head_dim):
    """Of every size that floats have, offset and not, all alike, zeros."""
    x = rng.normal(size=(n_tokens, head_dim)).astype(np.float32)
    for i, (factor, offset) in enumerate(
        [(1, 0), (1e-3, 5), (1e4, 0), (1e-7, 0), (1e-42, 0), (0, 0), (0, -3), (1e30, 0)]
    ):
        x[i::9] = x[i::9] * np.float32(factor) + np.float32(offset)
    return x


@pytest.mark.parametrize("variant", all_variants("kv_store"))
@pytest.mark.parametrize("by_columns", [True, False])
@pytest.mark.parametrize("head_dim", [1, 3, 8, 15, 17, 31, 64, 80, 129, 512])
@pytest.mark.parametrize("n_tokens", [1, 9, 64, 100])
def test_matches_numpy(variant, by_columns, head_dim, n_tokens):
    rng = np.random.default_rng(head_dim)
    k, v = rows(rng, n_tokens, head_dim), rows(rng, n_tokens, head_dim)
    for keys, values in zip((*KEY_TYPES, "f16"), VALUE_TYPES, strict=True):
        k_back, v_back = kv_store(variant, k, v, keys=keys, values=values, keys_by_columns=by_columns)
        np.testing.assert_array_equal(k_back, as_stored(k, keys))
        if values != "int4":
            np.testing.assert_array_equal(v_back, as_stored(v, values))
        else:  # its sum may be one operation or two
            np.testing.assert_allclose(v_back, as_stored(v, values), rtol=0, atol=2 * U * np.abs(v).max())


@pytest.mark.parametrize("variant", all_variants("kv_store"))
@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("int4", 15)])
def test_codes_are_within_half_a_step(variant, kind, steps):
    x = np.random.default_rng(1).normal(size=(70, 96)).astype(np.float32)
    _, back = kv_store(variant, x, x, values=kind)
    width = np.abs(x).max(axis=1) if kind == "int8" else np.ptp(x, axis=1)
    assert (np.abs(back - x).max(axis=1) <= width / steps * 0.5001).all()


@pytest.mark.parametrize("variant", all_variants("kv_store"))
def test_every_half_and_what_lies_between(variant):
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    half = half[np.isfinite(half)]
    middle = (half[:-1] + half[1:]) / 2
    x = np.concatenate([half, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    x = np.concatenate([x, [65519.996, 65520, 1e9, np.inf, -np.inf, 3.4e38, 1e-45, -0.0]]).astype(np.float32)
    x = np.pad(x, (0, -len(x) % 256)).reshape(-1, 256)
    for kind in ("f16", "bf16"):
        back, _ = kv_store(variant, x, x, keys=kind)
        np.testing.assert_array_equal(back.view(np.uint32), as_stored(x, kind).view(np.uint32))


@pytest.mark.parametrize("variant", all_variants("kv_store"))
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_nan_stays_one(variant, kind):
    x = np.zeros((3, 40), np.float32)
    x[1] = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF] * 10, np.uint32).view(np.float32)
    for back in kv_store(variant, x, x, keys=kind, values=kind):
        np.testing.assert_array_equal(np.isnan(back), np.isnan(x))


@pytest.mark.parametrize("variant", all_variants("kv_store"))
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 5, 20])
def test_damage_shows_in_its_token_alone(variant, damage, at):
    x = np.random.default_rng(2).normal(size=(5, 21)).astype(np.float32)
    good = kv_store(variant, x, x, keys="int8", values="int4")
    x[2, at] = damage
    for back, before in zip(kv_store(variant, x, x, keys="int8", values="int4"), good, strict=True):
        assert np.isnan(back[2]).all()
        np.testing.assert_array_equal(np.delete(back, 2, axis=0), np.delete(before, 2, axis=0))
