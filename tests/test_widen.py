"""f16 and bf16 to float32, exactly: every variant on all 65,536 bit patterns."""

import numpy as np
import pytest

import reference
from kernels import DTYPES, all_variants, misaligned
from russet import _core

widen = _core.kernels.widen
QUIET = np.uint32(0x00400000)


def same_bits(actual, expected):
    """Bit-equal, but for signalling f16 NaNs: x86's conversion makes them quiet, ours in C++ need not."""
    a, e = actual.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32)
    np.testing.assert_array_equal(np.where(np.isnan(actual), a | QUIET, a), np.where(np.isnan(expected), e | QUIET, e))


@pytest.mark.parametrize("variant", all_variants("widen"))
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_pattern(variant, dtype):
    # Subnormals, both zeros, both infinities and every NaN payload are among them.
    patterns = np.arange(65536, dtype=np.uint16).reshape(1, -1)
    as_stored = patterns.view(np.float16) if dtype == "f16" else patterns
    same_bits(widen(variant, (as_stored, dtype)), reference.widen(as_stored, dtype))


@pytest.mark.parametrize("variant", all_variants("widen"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 1001])
def test_every_length_and_address(variant, dtype, n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(1, n)).astype({"f32": np.float32, "f16": np.float16}.get(dtype, np.float32))
    if dtype == "bf16":
        x = (x.view(np.uint32) >> 16).astype(np.uint16)
    expected = reference.widen(x, dtype)
    np.testing.assert_array_equal(widen(variant, (x, dtype)), expected)
    np.testing.assert_array_equal(widen(variant, (misaligned(x), dtype)), expected)
