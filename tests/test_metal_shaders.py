"""Every shader of metal/: accepted by the strict pass, and within what a GPU has."""

import pytest

from russet import errors, metal_sim, metal_source

MAX_THREADGROUP_BYTES = 32768
every_shader = pytest.mark.parametrize("shader", metal_source.shaders(), ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def simulator():
    try:
        metal_sim.compile("kernel void k(device float* y [[buffer(0)]]) { *y = 1; }", name="k")
    except metal_sim.ShaderError:
        raise
    except errors.BackendError as error:
        pytest.skip(str(error))


@every_shader
def test_the_strict_pass_accepts_it(shader):
    metal_sim.check(metal_source.inlined(shader), name=shader.name)


@every_shader
def test_limits(shader):
    library = metal_sim.compile_file(shader)
    for kernel in library.kernels.values():
        assert kernel.threadgroup_bytes <= MAX_THREADGROUP_BYTES, kernel.name
        assert kernel.max_threads <= 1024, kernel.name
        assert len(kernel.buffers) <= 31, kernel.name
        assert set(kernel.buffers) == set(range(len(kernel.buffers))), f"{kernel.name} has gaps in its buffers"
