"""metal/attention.metal: every instantiation against numpy, for few queries and for many."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import reference
from kernels import DTYPES, U, assert_close, stored, sum_bound
from metal_args import CONSTANTS, pack
from metal_cache import BLOCK, Cache
from metal_kernels import ROUNDING, SCHEDULES, empty, run

SIMD = CONSTANTS["kSimd"]
LAYOUTS = (32, 64, 128, 256)
KEPT_AS = [(t, kept_as) for t in DTYPES for kept_as in (t, "int8")]  #: T and K of the kernels' names
every_type = pytest.mark.parametrize(("t", "kept_as"), KEPT_AS)


@dataclass(frozen=True)
class Case:
    head_dim: int
    n_heads: int = 2
    n_kv_heads: int = 1
    n_tokens: int = 1
    pos: int = 100
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.3
    n_parts: int = 1

    def layout(self) -> int:
        return next(d for d in LAYOUTS if self.head_dim <= d)

    def random(self, t):
        """q [n_tokens, n_heads, head_dim], and k and v [n_keys, n_kv_heads, head_dim], rounded to t."""
        rng = np.random.default_rng(self.head_dim + self.pos)
        shapes = [(self.n_tokens, self.n_heads), *[(self.pos + self.n_tokens, self.n_kv_heads)] * 2]
        return [reference.widen(stored(rng.normal(size=(*s, self.head_dim)), t)[0], t) for s in shapes]

    def args(self, cache):
        return pack(
            "AttentionArgs",
            cache=cache.args,
            n_tokens=self.n_tokens,
            n_heads=self.n_heads,
            pos=self.pos,
            window=self.window,
            n_parts=self.n_parts,
            scale=self.scale,
            softcap=self.softcap,
        )

    def cache(self, kept_as, k, v):
        """What lies after the keys is NaN."""
        cache = Cache(kept_as, len(k), self.n_kv_heads, self.head_dim)
        cache.put(k, v)
        return cache


def decode(t, case, q, cache, schedule=0, count=False):
    """The attended rows, widened; where bytes are to be counted the reports of both kernels instead."""
    args, out = case.args(cache), empty(q.shape, t)
    q = stored(q, t)[0]
    n_splits = -(-(case.n_heads // case.n_kv_heads) // CONSTANTS["kDecodeHeads"])
    groups = (case.n_kv_heads * n_splits, case.n_tokens, case.n_parts)
    partial = None
    if case.n_parts > 1:
        partial = empty((case.n_tokens, case.n_heads, case.n_parts, case.head_dim + 2), "f32")
    name = f"attention_decode_{t}_{cache.kept_as}_{case.layout()}"
    blocks, tables = cache.buffers
    buffers, threads = [args, q, blocks, out, partial, tables], (SIMD, CONSTANTS["kDecodeSimds"])
    reports = [run("attention", name, buffers, groups, threads, schedule, count)]
    if partial is not None:
        groups = (case.n_heads, case.n_tokens)
        reports.append(run("attention", f"attention_merge_{t}", [args, partial, out], groups, (SIMD,), schedule, count))
    return reports if count else reference.widen(out, t)


def prefill(t, case, q, cache, schedule=0, count=False):
    args, out = case.args(cache), empty(q.shape, t)
    groups = (-(-case.n_tokens // CONSTANTS["kPrefillQueries"]), case.n_heads)
    name = f"attention_prefill_{t}_{cache.kept_as}_{case.layout()}"
    blocks, tables = cache.buffers
    buffers = [args, stored(q, t)[0], blocks, out, tables]
    report = run("attention", name, buffers, groups, (SIMD, CONSTANTS["kPrefillSimds"]), schedule, count)
    return report if count else reference.widen(out, t)


def expected_and_bound(t, case, q, k, v, pos):
    """Of one head in float64, and how far the kernels' result may be off.

    A score that is off by e changes its weight by the share e, and the sum of weights likewise; the largest e counts.
    exp is within 4 ulp of a number that a rounding has moved, tanh within 5. The weighted sum of values then rounds as
    sums do; scaling it and adding up parts rounds a few times more, and so do the scales of int8.
    """
    expected = reference.attention(q, k, v, pos, case.scale, case.window, case.softcap)
    scores = case.scale * np.abs(reference.matmul(q, k)).max()
    error = case.scale * sum_bound(case.head_dim) * (np.abs(q).astype(np.float64) @ np.abs(k).T).max()
    error += 10 * U * case.softcap + 6 * U * scores
    bound = (2 * error + 20 * U + 2 * sum_bound(len(k))) * np.abs(v).max(axis=0)
    return expected, bound + ROUNDING[t] * (np.abs(expected) + bound) + 2.0**-25


def check(kernel, t, kept_as, case, schedule=0):
    q, k, v = case.random(t)
    cache = case.cache(kept_as, k, v)
    k, v = cache.rows()[:, : len(k)]
    if case.window:  # as KvCache::append does
        cache.give_back(max(0, case.pos - case.window + 1) // BLOCK)
    actual = kernel(t, case, q, cache, schedule)
    pos = [case.pos + i for i in range(case.n_tokens)]
    for head in range(case.n_heads):
        kv_head = head // (case.n_heads // case.n_kv_heads)
        expected, bound = expected_and_bound(t, case, q[:, head], k[:, kv_head], v[:, kv_head], pos)
        assert_close(actual[:, head], expected, bound)


# Few queries: a SIMD-group takes 4 keys at a time, a threadgroup 32 in turn; up to 4 heads share them; blocks are 64.
DECODE = {
    32: [
        Case(1, 1, 1, pos=0),
        Case(4, 3, 1, pos=1, n_tokens=2),
        Case(6, 4, 4, pos=3),
        Case(10, 5, 1, pos=62, n_tokens=3, n_parts=3),
        Case(20, 6, 2, pos=31, n_parts=2),
        Case(31, 9, 1, pos=130, window=7, n_parts=4),
        Case(32, 7, 1, pos=200, softcap=5.0, n_parts=5),
    ],
    64: [
        Case(40, 2, 2, pos=33),
        Case(40, 1, 1, pos=63, n_tokens=2, n_parts=32),
        Case(64, 14, 2, pos=64, window=64),
        Case(64, 8, 8, pos=700, n_parts=7),
    ],
    128: [
        Case(72, 2, 1, pos=4, n_parts=8),
        Case(80, 4, 2, pos=127, window=1, n_parts=2),
        Case(96, 5, 1, pos=95, window=33, softcap=50.0),
        Case(128, 16, 8, pos=150, n_tokens=2, n_parts=2),
    ],
    256: [
        Case(136, 3, 1, pos=65),
        Case(160, 10, 1, pos=20, n_parts=3),
        Case(256, 8, 2, pos=190, softcap=30.0, window=100, n_parts=3),
    ],
}

# Many: 16 queries a SIMD-group, in blocks of 8, 64 a threadgroup; tiles of 16 keys.
PREFILL = {
    32: [
        Case(1, 1, 1, n_tokens=1, pos=0),
        Case(6, 2, 1, n_tokens=7, pos=0),
        Case(8, 2, 2, n_tokens=8, pos=3),
        Case(10, 3, 1, n_tokens=9, pos=30),
        Case(20, 4, 2, n_tokens=31, pos=1, window=3),
        Case(31, 1, 1, n_tokens=65, pos=0, softcap=2.0),
        Case(32, 2, 1, n_tokens=130, pos=0, window=20),
    ],
    64: [
        Case(40, 1, 1, n_tokens=15, pos=60),
        Case(48, 2, 2, n_tokens=63, pos=0),
        Case(64, 6, 2, n_tokens=64, pos=1),
        Case(64, 2, 1, n_tokens=12, pos=300, window=70, softcap=20.0),
    ],
    128: [
        Case(72, 1, 1, n_tokens=3, pos=64),
        Case(80, 2, 1, n_tokens=33, pos=0),
        Case(96, 2, 2, n_tokens=17, pos=31, window=1),
        Case(128, 2, 1, n_tokens=70, pos=63),
    ],
    256: [
        Case(136, 1, 1, n_tokens=24, pos=0),
        Case(160, 1, 1, n_tokens=6, pos=33),
        Case(192, 1, 1, n_tokens=10, pos=0, softcap=50.0),
        Case(256, 2, 1, n_tokens=66, pos=30, window=40),
    ],
}
KERNELS = {"decode": (decode, DECODE), "prefill": (prefill, PREFILL)}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_type
@pytest.mark.parametrize("kernel", KERNELS)
def test_matches_numpy(kernel, t, kept_as, layout):
    run_kernel, cases = KERNELS[kernel]
    for i, case in enumerate(cases[layout]):
        check(run_kernel, t, kept_as, case, SCHEDULES[(i + KEPT_AS.index((t, kept_as))) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@every_type
@pytest.mark.parametrize("head_dim", [4, 6, 10, 16, 20, 32, 40, 64, 80, 96, 112, 128, 192, 256])
def test_matches_numpy_at_every_length(head_dim, t, kept_as, schedule):
    for pos in (0, 15, 16, 31, 62, 63, 64, 300):
        for window, softcap in ((0, 0.0), (1, 3.0), (33, 30.0)):
            case = Case(head_dim, 6, 2, pos=pos, window=window, softcap=softcap)
            for n_tokens, n_parts in ((1, 1), (2, 5)):
                check(decode, t, kept_as, replace(case, n_tokens=n_tokens, n_parts=n_parts), schedule)
            for n_tokens in (1, 35):
                check(prefill, t, kept_as, replace(case, n_heads=2, n_tokens=n_tokens), schedule)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (4, 1), (5, 1), (6, 2), (9, 1), (14, 2), (32, 4), (16, 1)])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
def test_any_number_of_heads_shares_keys(n_heads, n_kv_heads, kept_as):
    check(decode, "f32", kept_as, Case(16, n_heads, n_kv_heads, pos=40))
    check(prefill, "f32", kept_as, Case(16, n_heads, n_kv_heads, pos=4, n_tokens=9))


@pytest.mark.parametrize("n_parts", [2, 3, 8, 31, 32])
@pytest.mark.parametrize("window", [0, 1, 5])
def test_parts_without_keys(n_parts, window):
    check(decode, "f32", "f32", Case(24, 3, 1, pos=2, n_tokens=4, window=window, n_parts=n_parts))
    check(decode, "f32", "f32", Case(24, 3, 1, pos=2 * BLOCK, window=window, n_parts=n_parts))


@pytest.mark.parametrize("pos", [BLOCK + 6, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 15])
@pytest.mark.parametrize("window", [1, 15, 17, BLOCK - 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
def test_blocks_that_a_window_has_given_back_are_not_read(kept_as, window, pos):
    """They hold NaN, which a weight of 0 would not undo."""
    check(decode, "f32", kept_as, Case(8, 2, 1, pos=pos, n_tokens=2, window=window, n_parts=2))
    check(prefill, "f32", kept_as, Case(8, 1, 1, pos=pos, n_tokens=21, window=window))


@pytest.mark.parametrize("kernel", [decode, prefill])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_blocks_that_a_head_has_not_kept_are_not_seen(kernel, kept_as, softcap):
    case = Case(16, 4, 2, pos=5 * BLOCK + 3, n_tokens=3, softcap=softcap, n_parts=3 if kernel is decode else 1)
    q, k, v = case.random("f32")
    cache = case.cache(kept_as, k, v)
    k, v = cache.rows()[:, : len(k)]
    gone = {0: (0, 3), 1: (1, 2)}  # of each key-value head
    for head, blocks in gone.items():
        for block in blocks:
            cache.evict(head, block)
    actual = kernel("f32", case, q, cache)
    for head in range(4):
        blocks = gone[head // 2]
        kept = [p for p in range(len(k)) if p // BLOCK not in blocks]
        pos = [case.pos - BLOCK * len(blocks) + i for i in range(case.n_tokens)]
        rows = k[kept, head // 2], v[kept, head // 2]
        assert_close(actual[:, head], *expected_and_bound("f32", case, q[:, head], *rows, pos))


@pytest.mark.parametrize("kernel", [decode, prefill])
def test_another_table_is_noticed(kernel):
    case = Case(16, 2, 2, pos=2 * BLOCK, n_tokens=2)
    q, k, v = case.random("f32")
    right = kernel("f32", case, q, case.cache("f32", k, v))
    for axis in range(3):  # another layer's, another head's, other positions'
        cache = case.cache("f32", k, v)
        cache.tables[:] = np.roll(cache.tables, 1, axis)
        assert not np.allclose(kernel("f32", case, q, cache), right, atol=1e-3)


@pytest.mark.parametrize("kernel", [decode, prefill])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
def test_no_bit_depends_on_the_order_of_threads(kernel, kept_as):
    case = Case(32, 4, 2, pos=70, n_tokens=20, n_parts=2)
    q, k, v = case.random("f32")
    first, *others = (kernel("f32", case, q, case.cache(kept_as, k, v), schedule) for schedule in SCHEDULES)
    for other in others:
        np.testing.assert_array_equal(other, first)


def row_bytes(kept_as, head_dim):
    return head_dim + 4 if kept_as == "int8" else 2 * head_dim


@pytest.mark.parametrize("kept_as", ["f16", "int8"])
def test_decode_reads_each_key_once(kept_as):
    """What attention.metal says decode is bound by: the cache once, and what the parts add to it."""
    case = Case(128, 4, 2, pos=255, n_parts=2)
    q, k, v = case.random("f16")
    reports = decode("f16", case, q, case.cache(kept_as, k, v), count=True)
    cache_bytes = 256 * 2 * 2 * row_bytes(kept_as, 128)
    partial_bytes = 4 * 2 * (128 + 2) * 4
    assert reports[0].bytes_read[2].touched == cache_bytes
    if kept_as == "f16":  # every lane reads a scale
        assert reports[0].bytes_read[2].moved == cache_bytes
    assert reports[0].bytes_written[4].moved == reports[1].bytes_read[1].moved == partial_bytes
    assert reports[1].bytes_written[2].moved == 4 * 128 * 2


@pytest.mark.parametrize("kept_as", ["f16", "int8"])
def test_prefill_reads_each_key_once_for_16_queries(kept_as):
    case = Case(64, 1, 1, pos=0, n_tokens=96)
    q, k, v = case.random("f16")
    report = prefill("f16", case, q, case.cache(kept_as, k, v), count=True)
    n_keys = sum(range(16, 97, 16))  # that SIMD-group after SIMD-group sees
    assert report.bytes_read[2].touched == 96 * 2 * row_bytes(kept_as, 64)
    if kept_as == "f16":
        assert report.bytes_read[2].moved == n_keys * 2 * 64 * 2


@pytest.mark.parametrize("kernel", [decode, prefill])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
def test_large_scores_do_not_overflow(kernel, kept_as):
    case = Case(32, 2, 1, pos=200, n_tokens=3, scale=5.0)
    q, k, v = case.random("f32")
    # exp(500) is no float: only the distance to the largest score may go into it.
    assert np.isfinite(kernel("f32", case, q, case.cache(kept_as, 20 * k, v))).all()
    one_key = np.zeros_like(k)
    one_key[100, 0] = 1e4 * q[0, 0]
    cache = case.cache(kept_as, one_key, v)
    np.testing.assert_allclose(kernel("f32", case, q, cache)[0, 0], cache.rows()[1, 100, 0], rtol=2 * U)
    # All scores far below 0: the first of them is the largest seen, not what a maximum begins with.
    q, cache = np.ones_like(q), case.cache(kept_as, -1e30 * np.ones_like(k), v)
    mean = cache.rows()[1, : case.pos + 1, 0].mean(axis=0)
    np.testing.assert_allclose(kernel("f32", case, q, cache)[0, 0], mean, atol=1e-6)


@pytest.mark.parametrize("kernel", [decode, prefill])
@every_type
def test_keys_to_come_are_not_seen(kernel, t, kept_as):
    """The bits of a query do not change when there are more behind it. (Values that are NaN are another matter.)"""
    case = Case(32, 2, 1, pos=60, n_tokens=6, n_parts=1)
    q, k, v = case.random(t)
    whole = kernel(t, case, q, case.cache(kept_as, k, v))
    k[63:], v[63:] = 1e4, -1e4
    np.testing.assert_array_equal(kernel(t, case, q, case.cache(kept_as, k, v))[:3], whole[:3])


@pytest.mark.parametrize("kernel", [decode, prefill])
@pytest.mark.parametrize("kept_as", ["f32", "int8"])
def test_damage_shows(kernel, kept_as):
    case = Case(32, 2, 1, pos=28, n_tokens=4)
    q, k, v = case.random("f32")
    k[30] = np.nan
    with np.errstate(invalid="ignore"):  # of int8 the scale says it
        out = kernel("f32", case, q, case.cache(kept_as, k, v))
    assert np.isfinite(out[:2]).all()
    assert np.isnan(out[2:]).all()
