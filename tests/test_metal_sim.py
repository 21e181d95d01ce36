"""The Metal simulator: kernels that are right give numpy's answers, in every schedule."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from kernels import U
from russet import errors, metal_sim

FOLDER = Path(__file__).parent / "metal_sim"
SCHEDULES = (0, 1, 7)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def uint32(*values):
    return np.array(values, np.uint32)


def to_bfloat(x):
    """float32 to bfloat16 as uint16, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


#: name -> from float32, to float32, unit round-off
TYPES = {
    "f32": (lambda x: np.asarray(x, np.float32), lambda x: x, U),
    "f16": (lambda x: np.asarray(x, np.float16), lambda x: x.astype(np.float32), 2**-11),
    "bf16": (to_bfloat, from_bfloat, 2**-8),
}


@pytest.fixture(scope="module")
def library() -> metal_sim.Library:
    try:
        return metal_sim.compile_file(FOLDER / "kernels.metal", (FOLDER,))
    except errors.BackendError as error:
        if isinstance(error, metal_sim.ShaderError):
            raise
        pytest.skip(str(error))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@every_schedule
@pytest.mark.parametrize("n", [1, 31, 1000])
def test_add(library, rng, n, schedule):
    a, b = rng.normal(size=(2, n)).astype(np.float32)
    y = np.full(n, np.nan, np.float32)
    buffers = {0: a, 1: b, 2: y, 3: uint32(n)}
    report = library.run("add", buffers, groups=(-(-n // 256),), threads=(256,), schedule=schedule)
    np.testing.assert_array_equal(y, a + b)
    assert (report.threads, report.groups, report.barriers) == (256 * -(-n // 256), -(-n // 256), 0)


@every_schedule
def test_tiled_matmul(library, rng, schedule):
    m, n, k = 70, 50, 90
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    c = np.full((m, n), np.nan, np.float32)
    buffers = {0: a, 1: b, 2: c, 3: uint32(m, n, k, 0)}
    report = library.run("tiled_matmul", buffers, groups=(4, 5), threads=(16, 16), schedule=schedule)
    assert np.all(np.abs(c - a.astype(np.float64) @ b) <= k * U * (np.abs(a) @ np.abs(b)))
    assert report.barriers == 4 * 5 * 2 * 6  # two for each tile along k


@every_schedule
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n_threads", [32, 96, 1024])
def test_simd_sums(library, rng, dtype, n_threads, schedule):
    to, back, unit = TYPES[dtype]
    x = to(rng.normal(size=(3, 1000)))
    y = to(np.full(3, np.nan))
    buffers = {0: x, 1: y, 2: uint32(1000)}
    report = library.run(f"row_sum_{dtype}", buffers, groups=(3,), threads=(n_threads,), schedule=schedule)
    expected = back(x).astype(np.float64).sum(1)
    bound = 1000 * U * np.abs(back(x)).sum(1) + unit * np.abs(expected)
    assert np.all(np.abs(back(y) - expected) <= bound)
    assert report.simd_ops == 3 * 2 * n_threads // 32


@every_schedule
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [8, 64])
def test_simdgroup_matrices(library, rng, dtype, k, schedule):
    to, back, _ = TYPES[dtype]
    a, b = to(rng.normal(size=(16, k))), to(rng.normal(size=(16, k)))
    c = np.full((16, 16), np.nan, np.float32)
    buffers = {0: a, 1: b, 2: c, 3: uint32(k)}
    library.run(f"matrices_{dtype}", buffers, groups=(1,), threads=(32,), schedule=schedule)
    a, b = back(a).astype(np.float64), back(b).astype(np.float64)
    assert np.all(np.abs(c - a @ b.T) <= k * U * (np.abs(a) @ np.abs(b).T))


def test_matrix_elements_lie_where_apple_has_them(library):
    """As Apple's GPUs were found to hold them: a quarter of the matrix is four rows of two lanes each."""
    m = np.zeros((8, 8), np.float32)
    library.run("matrix_layout", {0: m}, groups=(1,), threads=(32,))
    quarter = np.repeat(np.arange(8).reshape(4, 2), 2, 1)
    np.testing.assert_array_equal(m, np.block([[quarter, quarter + 8], [quarter + 16, quarter + 24]]))


@every_schedule
def test_atomics(library, rng, schedule):
    x = rng.integers(0, 256, 512, dtype=np.uint8)
    counts, total, largest = np.zeros(16, np.uint32), np.zeros(1, np.float32), np.full(1, -1, np.int32)
    buffers = {0: x, 1: counts, 2: total, 3: largest}
    library.run("histogram", buffers, groups=(4,), threads=(128,), schedule=schedule)
    np.testing.assert_array_equal(counts, np.bincount(x % 16, minlength=16))
    assert total[0] == 256
    assert largest[0] == x.max()


def test_function_constants(library):
    y, extra = np.zeros(4, np.float32), np.arange(4, dtype=np.float32)
    run = {"groups": (1,), "threads": (4,)}
    library.run("constants", {0: y}, constants={0: False, 1: 5}, **run)
    np.testing.assert_array_equal(y, 5.5)
    library.run("constants", {0: y, 1: extra}, constants={0: True, 1: -3, 2: 0.25}, **run)
    np.testing.assert_array_equal(y, -5.75 + extra)
    assert {c.name: (c.index, c.type, c.n_bytes) for c in library.constants.values()} == {
        "doubled": (0, "bool", 1),
        "offset": (1, "int", 4),
        "factor": (2, "float", 4),
    }


@every_schedule
def test_threadgroup_memory_of_the_launch(library, rng, schedule):
    x = rng.normal(size=96).astype(np.float16)
    y = np.zeros_like(x)
    run = {"groups": (1,), "threads": (96,), "schedule": schedule}
    library.run("reversed", {0: x, 1: y}, threadgroup_memory={0: 192}, **run)
    np.testing.assert_array_equal(y, x[::-1])


@every_schedule
def test_places(library, schedule):
    groups, threads = (3, 2, 2), (5, 4, 3)
    grid = tuple(g * t for g, t in zip(groups, threads, strict=True))
    out = np.zeros((*grid[::-1], 23), np.uint32)
    library.run("places", {0: out}, groups=groups, threads=threads, schedule=schedule)
    z, y, x = np.indices(grid[::-1])
    position = np.stack([x, y, z], -1)
    np.testing.assert_array_equal(out[..., 0:3], position)
    np.testing.assert_array_equal(out[..., 3:6], position % threads)
    np.testing.assert_array_equal(out[..., 6:9], position // threads)
    for at, same in ((9, threads), (12, grid), (15, groups)):
        np.testing.assert_array_equal(out[..., at : at + 3], np.broadcast_to(same, position.shape))
    inside = position % threads
    index = (inside[..., 2] * 4 + inside[..., 1]) * 5 + inside[..., 0]
    np.testing.assert_array_equal(out[..., 18:21], np.stack([index, index % 32, index // 32], -1))
    np.testing.assert_array_equal(out[..., 21:], np.broadcast_to([2, 32], (*grid[::-1], 2)))


@every_schedule
def test_simd_functions(library, rng, schedule):
    x = rng.integers(-999, 1000, (2, 32)).astype(np.int32)
    out = np.zeros((20, 2, 32), np.int32)
    library.run("simd_functions", {0: x, 1: out}, groups=(1,), threads=(64,), schedule=schedule)
    lanes = np.arange(32)
    for simdgroup in range(2):
        v = x[simdgroup]
        ballot = int((v > 0) @ (1 << lanes.astype(np.int64)))
        expected = [
            *(np.full(32, f(v)) for f in (np.sum, np.max, np.min)),
            *(np.full(32, f.reduce(v)) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)),
            np.cumsum(v),
            np.cumsum(v) - v,
            np.full(32, v[5]),
            v[lanes ^ 3],
            np.where(lanes + 2 < 32, v[(lanes + 2) % 32], v),
            np.where(lanes >= 2, v[lanes - 2], v),
            np.full(32, v[7]),
            np.full(32, v[0]),
            np.full(32, (v > 900).any()),
            np.full(32, (v > -1000).all()),
            np.full(32, ballot - 2**32 * (ballot >= 2**31)),
            np.repeat(v.reshape(8, 4).sum(1), 4),
            np.concatenate([v[4:], -v[:4]]),
            np.concatenate([-v[-4:], v[:-4]]),
        ]
        np.testing.assert_array_equal(out[:, simdgroup], expected)


def test_vectors(library, rng):
    n = 5
    x, p = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    q = rng.integers(0, 256, (n, 4), dtype=np.uint8)
    sizes = np.zeros(
        1, np.dtype([("n", "<u4"), ("pad", "V12"), ("unit", "<f4", 4), ("pair", "<f2", 2), ("end", "V12")])
    )
    sizes["n"], sizes["unit"], sizes["pair"] = n, [1, 2, 3, np.nan], [2, 0.5]
    y = np.full((n, 4, 4), np.nan, np.float32)
    library.run("vectors", {0: x, 1: y, 2: p, 3: q, 4: sizes}, groups=(1,), threads=(8,))
    v = np.abs(x[:, [1, 0, 2, 3]]).astype(np.float64)
    packed = p * np.array([1.0, 2, 3])
    close = {"rtol": 1e-6, "atol": 1e-6}  # a few roundings of numbers near 1, and exp and tanh in float
    np.testing.assert_allclose(y[:, 0], 2 * v + np.concatenate([packed, np.ones((n, 1))], 1), **close)
    np.testing.assert_allclose(y[:, 1], q / 255, **close)
    np.testing.assert_allclose(
        y[:, 2, :3].T, [(v**2).sum(1), np.linalg.norm(packed, axis=1), v[:, 0].clip(0, 0.5)], **close
    )
    np.testing.assert_array_equal(y[:, 2, 3], np.abs(x[:, 3]).view(np.uint32) >> 23)
    half = v[:, 2:].astype(np.float16) * np.float16([2, 0.5])
    np.testing.assert_array_equal(y[:, 3, :2], half.astype(np.float32))
    np.testing.assert_allclose(y[:, 3, 2:].T, [np.exp(-v[:, 0]), np.tanh(v[:, 1])], **close)


def test_every_operation_rounds(library, rng):
    """16-bit products and sums are rounded one by one or fused, never kept wider; 0.1 is the float, not the double."""
    b, h = to_bfloat(rng.normal(size=1000)), rng.normal(size=1000).astype(np.float16)
    b_out, h_out, f_out = np.zeros_like(b), np.zeros_like(h), np.zeros(1000, np.float32)
    library.run("rounding", {0: b, 1: h, 2: b_out, 3: h_out, 4: f_out}, groups=(10,), threads=(100,))
    x = from_bfloat(b)
    rounded = from_bfloat(to_bfloat(x * x)) + x, x * x + x
    assert np.all((b_out == to_bfloat(rounded[0])) | (b_out == to_bfloat(rounded[1])))
    wide = h.astype(np.float64) ** 2 + h
    assert np.all((h_out == h * h + h) | (h_out == wide.astype(np.float16)))
    np.testing.assert_array_equal(f_out, h.astype(np.float32) * np.float32(0.1))


def test_kernels_are_described(library):
    add = library.kernels["add"]
    assert [(b.index, b.name, b.type, b.written, b.is_reference, b.value_bytes) for b in add.buffers.values()] == [
        (0, "a", "device const float*", False, False, 4),
        (1, "b", "device const float*", False, False, 4),
        (2, "sum", "device float*", True, False, 4),
        (3, "n", "constant uint&", False, True, 4),
    ]
    assert library.kernels["tiled_matmul"].threadgroup_bytes == 2 * 16 * 16 * 4
    assert library.kernels["row_sum_bf16"].threadgroup_bytes == 128
    assert library.kernels["reversed"].threadgroup_arguments == {0: "threadgroup half*"}
    assert library.kernels["matrices_f16"].max_threads == 32
    assert library.kernels["constants"].buffers[1].optional
    assert library.path.suffix == ".so"


def test_compiled_once(library):
    again = metal_sim.compile_file(FOLDER / "kernels.metal", (FOLDER,))
    assert again.path == library.path


def test_several_threads_may_run_one_library(library, rng):
    a = rng.normal(size=(8, 4096)).astype(np.float32)
    y = np.zeros_like(a)

    def run(row):
        library.run("add", {0: a[row], 1: a[row], 2: y[row], 3: uint32(4096)}, groups=(16,), threads=(256,))

    threads = [threading.Thread(target=run, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(y, 2 * a)


def test_bytes_are_counted(rng):
    library = metal_sim.compile_file(FOLDER / "kernels.metal", (FOLDER,), count=True, kernels=["add", "tiled_matmul"])
    n = 1000
    a, b, y = rng.normal(size=(3, n)).astype(np.float32)
    report = library.run("add", {0: a, 1: b, 2: y, 3: uint32(n)}, groups=(4,), threads=(256,))
    assert {i: (t.touched, t.moved) for i, t in report.bytes_read.items()} == {
        0: (4 * n, 4 * n),
        1: (4 * n, 4 * n),
        2: (0, 0),
        3: (4, 4 * 1024),
    }
    assert report.bytes_written[2] == metal_sim.Traffic(4 * n, 4 * n)
    # Every element of a is read once for each tile of b's columns, and the other way round.
    m, n, k = 70, 50, 90
    a, b, c = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n), (m, n)))
    report = library.run("tiled_matmul", {0: a, 1: b, 2: c, 3: uint32(m, n, k, 0)}, groups=(4, 5), threads=(16, 16))
    assert report.bytes_read[0] == metal_sim.Traffic(a.nbytes, 4 * a.nbytes)
    assert report.bytes_read[1] == metal_sim.Traffic(b.nbytes, 5 * b.nbytes)
    assert report.bytes_written[2] == metal_sim.Traffic(c.nbytes, c.nbytes)


@every_schedule
def test_atomics_are_shared_by_threadgroups(rng, schedule):
    """Where accesses are counted, a plain one to what another threadgroup wrote is an error."""
    library = metal_sim.compile_file(FOLDER / "kernels.metal", (FOLDER,), count=True, kernels=["histogram"])
    x = rng.integers(0, 256, 512, dtype=np.uint8)
    counts = np.zeros(16, np.uint32)
    buffers = {0: x, 1: counts, 2: np.zeros(1, np.float32), 3: np.zeros(1, np.int32)}
    report = library.run("histogram", buffers, groups=(4,), threads=(128,), schedule=schedule)
    np.testing.assert_array_equal(counts, np.bincount(x % 16, minlength=16))
    assert report.bytes_written[1] == metal_sim.Traffic(64, 4 * 64)


def test_the_strict_pass_accepts_them():
    metal_sim.check(metal_sim.inlined(FOLDER / "kernels.metal", (FOLDER,)), name="kernels.metal")


def test_public_c_interface_is_plain_cpp(tmp_path):
    """csrc includes runtime.h and is built with gcc, too."""
    header = Path(metal_sim.__file__).parent / "cxx" / "runtime.h"
    assert not re.search(r"__attribute__|__builtin|#pragma clang|_Float16|__bf16", header.read_text())
