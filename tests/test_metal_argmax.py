"""metal/argmax.metal: the first of the largest, exactly."""

import numpy as np
import pytest

from metal_args import CONSTANTS, pack
from metal_kernels import SCHEDULES, empty, run

PARTS = CONSTANTS["kArgmaxParts"]


def argmax(logits, schedule=0):
    n_tokens, n = logits.shape
    args = pack("ArgmaxArgs", n=n)
    values, indices = empty((n_tokens, PARTS), "f32"), np.full((n_tokens, PARTS), -7, np.int32)
    threads = (CONSTANTS["kArgmaxThreads"],)
    run("argmax", "argmax_parts", [args, logits, values, indices], (PARTS, n_tokens), threads, schedule)
    tokens = np.full(n_tokens, -7, np.int32)
    run("argmax", "argmax", [args, values, indices, tokens], (n_tokens,), (CONSTANTS["kSimd"],), schedule)
    return tokens


# 32 parts of 256 threads: fewer numbers than parts, than threads, one a thread, several, ragged.
SIZES = (1, 2, 31, 32, 33, 255, 1000, 32 * 256 - 1, 32 * 256, 32 * 256 + 1, 50_257)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", SIZES)
def test_finds_the_largest(n, schedule):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(3, n)).astype(np.float32)
    np.testing.assert_array_equal(argmax(logits, schedule), logits.argmax(axis=1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", SIZES)
def test_of_equals_the_first(n, schedule):
    rng = np.random.default_rng(n)
    logits = rng.integers(0, 3, (2, n)).astype(np.float32)
    np.testing.assert_array_equal(argmax(logits, schedule), logits.argmax(axis=1))
    np.testing.assert_array_equal(argmax(np.full((2, n), -2.5, np.float32), schedule), 0)


@pytest.mark.parametrize("at", [0, 17, 31, 32, 255, 999])
def test_nan_anywhere(at):
    logits = np.random.default_rng(at).normal(size=(3, 1000)).astype(np.float32)
    logits[1, at] = np.nan
    logits[:, 500] = np.inf
    np.testing.assert_array_equal(argmax(logits), [500, -1, 500])


def test_infinities():
    logits = np.full((2, 300), -np.inf, np.float32)
    logits[1, 299] = -3e38
    np.testing.assert_array_equal(argmax(logits), [0, 299])


def test_logits_are_read_once():
    logits = np.zeros((1, 1000), np.float32)
    buffers = [pack("ArgmaxArgs", n=1000), logits, empty((1, PARTS), "f32"), np.empty((1, PARTS), np.int32)]
    report = run("argmax", "argmax_parts", buffers, (PARTS, 1), (CONSTANTS["kArgmaxThreads"],), count=True)
    assert report.bytes_read[1].moved == logits.nbytes
