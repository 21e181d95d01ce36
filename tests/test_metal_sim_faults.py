"""The Metal simulator: what is wrong with a kernel is caught, and said with the line of the .metal file."""

import re
from pathlib import Path

import numpy as np
import pytest

from russet import errors, metal_sim
from russet.metal_sim import toolchain

FOLDER = Path(__file__).parent / "metal_sim"
FAULTS = FOLDER / "faults.metal"
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"
ONE_GROUP = {"groups": (1,), "threads": (64,)}


def lines_of(fault: str) -> set[int]:
    """The lines that faults.metal marks with the name of a fault."""
    return {n for n, line in enumerate(FAULTS.read_text().splitlines(), 1) if line.endswith(f"// {fault}")}


@pytest.fixture(scope="module")
def library() -> metal_sim.Library:
    try:
        return metal_sim.compile_file(FAULTS, (FOLDER,))
    except errors.BackendError as error:
        if isinstance(error, metal_sim.ShaderError):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def not_sanitized():
    """AddressSanitizer would end this process at a fault, and no guard pages are there."""
    if metal_sim.default_sanitizer():
        pytest.skip("these are faults, planted for the plain build")


def floats(n=64):
    return np.zeros(n, np.float32)


def caught(library, kernel, buffers, **run) -> metal_sim.SimulationError:
    with pytest.raises(metal_sim.SimulationError) as raised:
        library.run(kernel, buffers, **ONE_GROUP | run)
    assert raised.value.kernel == kernel
    return raised.value


@pytest.mark.parametrize("kernel", ["missing_barrier", "missing_barrier_between_simdgroups"])
def test_a_missing_barrier_shows_in_some_schedule(library, kernel):
    right = {"missing_barrier": np.arange(64)[::-1], "missing_barrier_between_simdgroups": np.arange(64) % 32}
    seen = []
    for schedule in (0, 1, 7):
        y = floats()
        library.run(kernel, {0: y}, schedule=schedule, **ONE_GROUP)
        seen.append(np.array_equal(y, right[kernel]))
    assert not all(seen)


def test_threadgroup_memory_begins_as_nan(library):
    y = floats()
    library.run("unwritten_threadgroup_memory", {0: y}, **ONE_GROUP)
    assert np.isnan(y).all()


@pytest.mark.parametrize("schedule", [0, 1, 7])
@pytest.mark.parametrize("fault", ["divergent_barrier", "two_barriers", "early_return"])
def test_barriers_in_divergent_flow(library, fault, schedule):
    error = caught(library, fault, {0: floats()}, schedule=schedule)
    assert re.search(r"threadgroup_barrier in divergent flow: \d+ of the 64 threads are here", str(error))
    assert error.file == "metal_sim/faults.metal"
    assert error.line in lines_of(fault)


@pytest.mark.parametrize("schedule", [0, 1, 7])
def test_a_simd_operation_without_all_lanes(library, schedule):
    error = caught(library, "divergent_simd_sum", {0: floats()}, schedule=schedule)
    assert re.search(r"SIMD operation in divergent flow: 16 of the 32 lanes", str(error))
    assert error.line in lines_of("divergent_simd_sum")


def test_a_shuffle_from_a_lane_that_does_not_exist(library):
    error = caught(library, "shuffle_from_nowhere", {0: floats()})
    assert "a lane that does not exist" in str(error)
    assert error.line in lines_of("shuffle_from_nowhere")


@pytest.mark.parametrize("n", [64, 63, 1])
@pytest.mark.parametrize(
    ("kernel", "did"),
    [("read_past_the_end", "read"), ("write_past_the_end", "write"), ("vector_past_the_end", "read")],
)
def test_overruns_by_one(library, kernel, did, n):
    """Whatever the size: buffers end where a page begins that nobody may touch."""
    buffers = {index: floats(n) for index in library.kernels[kernel].buffers}
    error = caught(library, kernel, buffers, threads=(n,))
    assert re.search(rf"({did}|access) outside buffer 0: at byte {4 * n} of {4 * n}, by thread", str(error))
    if error.line is not None:  # where no tool that reads debug information is installed
        assert (error.file, error.line) == ("metal_sim/faults.metal", *lines_of(kernel))


def test_a_write_before_the_start(library):
    """Seen where the buffer fills its pages, so that it begins with one."""
    error = caught(library, "write_before_the_start", {0: floats(1024)})
    assert "outside buffer 0: at byte -4 of 4096" in str(error)


@pytest.mark.parametrize("schedule", [0, 1, 7])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("written_by_two_threadgroups", "writes byte .* of buffer 0, which another one wrote"),
        ("reads_another_threadgroup", "(reads|writes) byte .* of buffer 0, which another one (wrote|read)"),
    ],
)
def test_threadgroups_that_depend_on_each_other(kernel, message, schedule):
    library = metal_sim.compile_file(FAULTS, (FOLDER,), count=True, kernels=[kernel])
    error = caught(library, kernel, {0: floats(128)}, groups=(2,), schedule=schedule)
    assert re.search(message, str(error))
    if error.line is not None:
        assert error.line in lines_of(kernel)


def test_the_library_goes_on_after_a_fault(library):
    for _ in range(3):
        caught(library, "write_past_the_end", {0: floats()})
        caught(library, "divergent_barrier", {0: floats()})
        y = floats()
        library.run("unwritten_threadgroup_memory", {0: y}, **ONE_GROUP)
        assert np.isnan(y).all()


@pytest.mark.parametrize(
    ("kernel", "buffers", "run", "message"),
    [
        ("no_such_kernel", {}, {}, "no kernel 'no_such_kernel'; there are barrier_without_memory, "),
        ("divergent_barrier", {}, {}, r"buffer 0 is not bound: device float\* y"),
        ("divergent_barrier", {0: floats(), 1: floats()}, {}, r"buffer 1 is bound, but the kernel has no \[\[buffer"),
        ("divergent_barrier", {31: floats()}, {}, "buffer 31: Metal has buffers 0 to 30"),
        ("divergent_barrier", {0: bytes(256)}, {}, "buffer 0 is written to: expected a writable array, got bytes"),
        ("divergent_barrier", {0: floats(128)[::2]}, {}, "buffer 0: expected a C-contiguous array"),
        ("divergent_barrier", {0: floats()}, {"threads": (1025,)}, "1025 x 1 x 1 threads .* at most 1024"),
        ("divergent_barrier", {0: floats()}, {"threads": (32, 32, 2)}, "32 x 32 x 2 threads .* at most 1024"),
        ("divergent_barrier", {0: floats()}, {"groups": (0,)}, "an empty grid"),
        ("too_much_threadgroup_memory", {0: floats()}, {}, "threadgroup memory: 32784 bytes, .* has 32768"),
        ("some_threadgroup_memory", {0: floats()}, {}, r"threadgroup memory 0 is not given: threadgroup float\* given"),
        (
            "some_threadgroup_memory",
            {0: floats()},
            {"threadgroup_memory": {0: 16400}},
            "threadgroup memory: 32784 bytes, .* has 32768",
        ),
        ("some_threadgroup_memory", {0: floats()}, {"threadgroup_memory": {0: 100}}, "a multiple of 16 bytes, got 100"),
        ("divergent_barrier", {0: floats()}, {"threadgroup_memory": {2: 16}}, r"no \[\[threadgroup\(2\)\]\]"),
        (
            "takes_a_struct",
            {0: floats(), 1: floats(3)},
            {},
            r"buffer 1, constant float4& four: expected 16 bytes, got 12",
        ),
        ("reads_a_constant", {0: floats()}, {}, "function constant 3, never_given, is read, but was not given"),
        ("reads_a_constant", {0: floats()}, {"constants": {4: 1}}, r"no function constant 4; there are \[3\]"),
    ],
)
def test_what_does_not_fit_a_kernel(library, kernel, buffers, run, message):
    assert re.search(message, str(caught(library, kernel, buffers, **run)))


# ---- what is refused before it runs

KERNEL = HEADER + "kernel void k({}, uint i [[thread_position_in_grid]]) {{\n{}\n}}\n"


@pytest.mark.parametrize(
    ("parameters", "body", "message"),
    [
        ("device float* o [[buffer(0)]]", "double d = 1; o[i] = d;", "Metal has no double"),
        ("device float* o [[buffer(0)]]", "o[i] = std::max(o[i], 0.0f);", "Metal has no std::"),
        ("device float* o [[buffer(0)]]", "auto f = [&](float x) { return x; };\no[i] = f(1);", "Metal has no lambdas"),
        ("device float* o [[buffer(0)]]", "float* p = new float[2]; o[i] = *p;", "Metal has no new"),
        ("device bfloat* o [[buffer(0)]]", "o[i] = bfloat(exp(o[i]));", "call to deleted function 'exp'"),
        ("device bfloat* o [[buffer(0)]]", "o[i] = exp(float(o[i]));", "another float becomes bfloat without a cast"),
        ("device bfloat* o [[buffer(0)]]", "o[i] += 1.5f;", "float becomes .*bfloat without a cast"),
        ("device bfloat* o [[buffer(0)]]", "o[i] = simd_sum(o[i]);", "call to deleted function 'simd_sum'"),
        ("constant float* o [[buffer(0)]]", "o[i] = 1;", "read-only variable is not assignable"),
        ("device const float* o [[buffer(0)]]", "o[i] = 1;", "read-only variable is not assignable"),
        (
            "device float* o [[buffer(0)]]",
            "float* p = o; p[i] = 1;",
            "cannot initialize .* 'float \\*' with .* 'device",
        ),
        ("device float* o [[buffer(0)]]", "threadgroup float s[8];\nthreadgroup float* p = s; p = o;", "address space"),
        ("device float* o [[buffer(0)]]", "o[i] = *(threadgroup float*)o;", "a cast to another address space"),
        ("device float* o [[buffer(0)]]", "threadgroup float s[9000]; s[i] = 0;", "has 32 KiB of threadgroup memory"),
        ("device float* o [[buffer(0)]]", "simdgroup_matrix<float, 8, 4> m;", "simdgroup matrices of 8 x 8"),
        ("device float* o [[buffer(0)]]", "o[i] = as_type<float>(half(1));", "as_type needs two types of equal size"),
    ],
)
def test_the_strict_pass_refuses(parameters, body, message):
    metal_sim.check(KERNEL.format("device float* o [[buffer(0)]]", "o[i] = 1;"), name="k.metal")
    with pytest.raises(metal_sim.ShaderError) as raised:
        metal_sim.check(KERNEL.format(parameters, body), name="k.metal")
    assert re.search(message, str(raised.value))
    assert re.search(r"k\.metal:[45]\b", str(raised.value))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            KERNEL.format("device float* o [[buffer(0)]]", "o[i] = nonsense;"),
            r"k.metal:4:.*undeclared identifier 'nonsense'",
        ),
        (
            KERNEL.format("device float* o [[buffer(31)]]", "o[i] = 1;"),
            r"k.metal: k: o: index 31, and Metal has 0 to 30",
        ),
        (KERNEL.format("device float* o [[texture(0)]]", "o[i] = 1;").replace("device ", ""), "parameter o: expected"),
        (HEADER + "void not_a_kernel() {}\n", "no kernel is in it"),
        (HEADER + '#include "gone.h"\n', r"k.metal:3:.*gone.h"),
        (
            HEADER + 'template [[host_name("a")]] [[kernel]] decltype(f<int>) f<int>;\n',
            "a: no kernel f is in this text",
        ),
    ],
)
def test_what_is_no_metal_is_refused(source, message):
    with pytest.raises(metal_sim.ShaderError, match=message):
        metal_sim.compile(source, name="k.metal")


def test_variables_that_no_gpu_has_room_for():
    if toolchain.find().is_zig:
        pytest.skip("zig does not say how large a function's frame is")
    body = "volatile float mine[20000]; mine[i] = o[i];\no[0] = mine[9];"
    with pytest.raises(metal_sim.ShaderError, match=r"k\.metal:3:.* stack frame size \(\d+\) exceeds limit"):
        metal_sim.compile(KERNEL.format("device float* o [[buffer(0)]]", body), name="k.metal")


# ---- sanitizers


@pytest.fixture(scope="module")
def clang():
    try:
        return toolchain.find(needs_sanitizers=True).sanitizer_runtime("thread")
    except errors.BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("sanitizer", "fault", "message"),
    [
        ("thread", "missing_barrier", "data race"),
        ("address", "write_past_the_end", "heap-buffer-overflow"),
        pytest.param("thread", "missing_barrier_between_simdgroups", "data race", marks=pytest.mark.slow),
        pytest.param("thread", "barrier_without_memory", "data race", marks=pytest.mark.slow),
        pytest.param("address", "read_past_the_end", "heap-buffer-overflow", marks=pytest.mark.slow),
        pytest.param("address", "past_the_end_of_threadgroup_memory", "global-buffer-overflow", marks=pytest.mark.slow),
    ],
)
def test_sanitizers_report(clang, sanitizer, fault, message):
    done = metal_sim.run_sanitized([str(FOLDER / "run_kernel.py"), str(FAULTS), fault], sanitizer, timeout_s=300)
    assert done.returncode != 0
    assert message in done.stderr
    (line,) = lines_of(fault)
    assert f"faults.metal:{line}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_right_kernels_are_clean(clang, sanitizer):
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER.parent / "test_metal_sim.py")]
    done = metal_sim.run_sanitized(arguments, sanitizer, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
