"""The simulator judged from outside: kernels that MLX wrote for real GPUs give numpy's answers through it.

Their headers come inside the macOS wheel of mlx-metal, which is downloaded once into the user's cache folder, read
there, and never made a part of russet.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kernels import U
from russet import metal_sim

pytestmark = pytest.mark.slow

MLX = "0.32.4"
KERNELS = "mlx/backend/metal/kernels"
SCHEDULES = (0, 1, 7)

# Four headers overload on the address space, or define bfloat's math, which the simulator has: neither is C++ for a
# CPU. What the kernels below need of them is this.
REPLACED = {
    f"{KERNELS}/bf16_math.h": "",
    f"{KERNELS}/logging.h": "namespace mlx { struct os_log {}; }",
    f"{KERNELS}/complex.h": """
        template <typename T> struct complex_t {
          T real, imag;
          complex_t() = default;
          constexpr complex_t(T real, T imag = T(0)) : real(real), imag(imag) {}
          constexpr operator T() const { return real; }
        };
        typedef complex_t<float> complex64_t;
        inline complex64_t operator+(complex64_t a, complex64_t b) { return {a.real + b.real, a.imag + b.imag}; }
        """,
    f"{KERNELS}/steel/utils/type_traits.h": """
        namespace metal {
        template <typename T> struct is_static : bool_constant<__is_empty(T)> {};
        template <typename T> struct pointer_element { using type = remove_cv_t<remove_pointer_t<T>>; };
        template <typename T> using pointer_element_t = typename pointer_element<T>::type;
        }
        """,
}


@pytest.fixture(scope="session")
def headers() -> Path:
    """The folder that `#include "mlx/..."` is looked for in."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "russet" / "tests" / f"mlx-metal-{MLX}"
    if not (cache / "mlx").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "-q", f"mlx-metal=={MLX}", "--no-deps", "-d", str(cache)]
        download += ["--only-binary=:all:", "--platform", "macosx_15_0_arm64", "--python-version", "3.11"]
        if subprocess.run(download, check=False).returncode:
            pytest.skip(f"mlx-metal {MLX} for macOS is not here, and pip cannot download it")
        (wheel,) = cache.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(f"mlx/include/{KERNELS}/"):
                    target = cache / name.removeprefix("mlx/include/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
        wheel.unlink()
    return cache


@pytest.fixture
def compiled(headers, tmp_path):
    """Compiles the instantiation of one kernel of some headers."""

    def compile(instantiation: str, *includes: str) -> metal_sim.Library:
        for name, text in REPLACED.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        lines = ["#include <metal_stdlib>", *(f'#include "{KERNELS}/{name}"' for name in ("utils.h", *includes))]
        file = tmp_path / "instantiated.metal"
        file.write_text("\n".join([*lines, instantiation, ""]))
        return metal_sim.compile_file(file, (tmp_path, headers))

    return compile


def int32(*values):
    return np.array(values, np.int32)


def int64(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("n", [1, 127, 1000, 4096])
def test_softmax(compiled, n):
    library = compiled('instantiate_kernel("softmax", softmax_single_row, float)', "softmax.h")
    x = np.random.default_rng(n).normal(0, 4, (3, n)).astype(np.float32)
    expected = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    threads = -(-n // (4 * 32)) * 32
    for schedule in SCHEDULES:
        y = np.full_like(x, np.nan)
        library.run("softmax", {0: x, 1: y, 2: int32(n)}, groups=(3,), threads=(threads,), schedule=schedule)
        # exp of a difference that is off by U * |x| is off by that share; the sum and the quotient round on.
        np.testing.assert_allclose(y, expected, rtol=U * (np.abs(x).max() + 20))


@pytest.mark.parametrize(("n_rows", "n_cols"), [(64, 256), (100, 1024), (33, 700)])
def test_gemv(compiled, n_rows, n_cols):
    library = compiled('instantiate_kernel("gemv", gemv, float, 4, 1, 1, 32, 4, 4, false, false)', "gemv.h")
    rng = np.random.default_rng(n_rows)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((n_rows, n_cols), n_cols))
    buffers = {0: w, 1: x, 2: x, 4: int32(n_cols), 5: int32(n_rows), 6: int32(n_cols), 7: np.float32([1])}
    buffers |= {8: np.float32([0]), 9: int32(0), 10: int32(1), 11: int64(0), 12: int64(0), 13: int64(0), 14: int32(0)}
    for schedule in SCHEDULES:
        y = np.full(n_rows, np.nan, np.float32)
        groups = (-(-n_rows // 16),)
        library.run("gemv", buffers | {3: y}, groups=groups, threads=(32, 1, 4), schedule=schedule)
        bound = n_cols * U * (np.abs(w).astype(np.float64) @ np.abs(x))
        assert np.all(np.abs(y - w.astype(np.float64) @ x) <= bound)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_quantized_matvec(compiled, bits, group_size):
    """affine_qmv: y = x (scales * codes + biases)^T, eight rows to a threadgroup of two SIMD-groups."""
    instance = f'instantiate_kernel("qmv", affine_qmv, half, {group_size}, {bits}, false)'
    library = compiled(instance, "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
    n_rows, n_cols = 33, 1024
    rng = np.random.default_rng(bits + group_size)
    codes = rng.integers(0, 2**bits, (n_rows, n_cols), dtype=np.uint8)
    packed = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    scales, biases = (rng.normal(0, 0.01, (n_rows, n_cols // group_size)).astype(np.float16) for _ in "sb")
    x = rng.normal(size=n_cols).astype(np.float16)
    w = np.repeat(scales, group_size, 1).astype(np.float64) * codes + np.repeat(biases, group_size, 1)
    buffers = {0: packed, 1: scales, 2: biases, 3: x, 5: int32(n_cols), 6: int32(n_rows), 7: int32(1), 8: int32(1)}
    buffers |= {9: int64(0), 10: int32(1), 11: int32(1), 12: int64(0), 13: int64(0), 14: int64(0)}
    for schedule in SCHEDULES:
        y = np.full(n_rows, np.nan, np.float16)
        groups = (1, -(-n_rows // 8))
        library.run("qmv", buffers | {4: y}, groups=groups, threads=(32, 2), schedule=schedule)
        # Sums are float, over products that may cancel; then y is rounded to half.
        products = np.repeat(np.abs(scales), group_size, 1).astype(np.float64) * codes
        products += np.repeat(np.abs(biases), group_size, 1)
        expected = w @ x.astype(np.float64)
        assert np.all(np.abs(y - expected) <= 64 * U * (products @ np.abs(x)) + 2**-11 * np.abs(expected))


@pytest.mark.parametrize(("dtype", "head_dim"), [(np.float32, 128), (np.float16, 64)])
@pytest.mark.parametrize("n_keys", [1, 33, 100])
def test_sdpa_vector(compiled, dtype, head_dim, n_keys):
    """One query for each of 4 heads, which share 2 heads of keys."""
    name = {np.float32: "float", np.float16: "half"}[dtype]
    library = compiled(f'instantiate_kernel("sdpa", sdpa_vector, {name}, {head_dim}, {head_dim})', "sdpa_vector.h")
    n_heads, n_kv_heads, scale = 4, 2, head_dim**-0.5
    rng = np.random.default_rng(n_keys)
    q = rng.normal(size=(n_heads, head_dim)).astype(dtype)
    k, v = (rng.normal(size=(n_kv_heads, n_keys, head_dim)).astype(dtype) for _ in "kv")
    scores = np.einsum("hd,hkd->hk", q.astype(np.float64), np.repeat(k, 2, 0)) * scale
    probs = np.exp(scores - scores.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    expected = np.einsum("hk,hkd->hd", probs, np.repeat(v, 2, 0))
    strides = int64(n_keys * head_dim), int64(head_dim)
    buffers = {0: q, 1: k, 2: v, 4: int32(2), 5: int32(n_keys), 6: strides[0], 7: strides[1]}
    buffers |= {8: strides[0], 9: strides[1], 10: np.float32([scale])}
    constants = dict.fromkeys(range(20, 26), False)
    for schedule in SCHEDULES:
        y = np.full((n_heads, head_dim), np.nan, dtype)
        run = {"groups": (n_heads, 1), "threads": (1024,), "constants": constants, "schedule": schedule}
        library.run("sdpa", buffers | {3: y}, **run)
        # The scores are off by U * sum |q k|, and so is their exp, as a share; v's mean is then off by that of |v|.
        share = U * (np.einsum("hd,hkd->hk", np.abs(q).astype(np.float64), np.abs(np.repeat(k, 2, 0))).max() + 64)
        bound = share * np.abs(v).max() + (2**-11 * np.abs(expected) if dtype == np.float16 else 0)
        assert np.all(np.abs(y - expected) <= bound)


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "float"), (np.float16, "half")])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 32, 16), (64, 96, 48), (50, 70, 90)])
def test_steel_gemm(compiled, dtype, name, m, n, k):
    """C = A B in tiles of 32 x 32 x 16, by four SIMD-groups; the last size is ragged on all sides."""
    instance = f'instantiate_kernel("gemm", gemm, {name}, 32, 32, 16, 2, 2, false, false, float)'
    library = compiled(instance, "steel/gemm/gemm.h", "steel/gemm/kernels/steel_gemm_fused.h")
    rng = np.random.default_rng(m)
    a, b = (rng.normal(size=shape).astype(dtype) for shape in ((m, k), (k, n)))
    tiles_n, tiles_m = -(-n // 32), -(-m // 32)
    params = np.zeros(1, np.dtype([("sizes", "<i4", 8), ("strides", "<i8", 3), ("rest", "<i4", 4)]))
    params["sizes"] = [m, n, k, k, n, n, tiles_n, tiles_m]
    params["rest"] = [0, k // 16, 0, 0]
    constants = {10: False, 100: False, 110: False, 200: m % 32 == 0, 201: n % 32 == 0, 202: k % 16 == 0}
    for schedule in SCHEDULES:
        c = np.full((m, n), np.nan, dtype)
        # addmm_params is read even where nothing is added, and then not used: it is given.
        buffers = {0: a, 1: b, 3: c, 4: params, 5: np.zeros(6, np.int32)}
        run = {"groups": (tiles_n, tiles_m), "threads": (32, 2, 2), "constants": constants, "schedule": schedule}
        library.run("gemm", buffers, **run)
        expected = a.astype(np.float64) @ b
        bound = k * U * (np.abs(a).astype(np.float64) @ np.abs(b))
        assert np.all(np.abs(c - expected) <= bound + (2**-11 * np.abs(expected) if dtype == np.float16 else 0))


def test_text_that_mlx_generates(tmp_path):
    """mx.fast.metal_kernel writes the signature around a kernel's body; exporting its trace shows the whole text."""
    mx = pytest.importorskip("mlx.core")
    body = """
        uint i = thread_position_in_grid.x;
        uint lane = thread_index_in_simdgroup;
        T total = simd_sum(x[i]);
        y[i] = lane == 0 ? total : x[i] * T(factor[0]);
    """
    kernel = mx.fast.metal_kernel(name="sums", input_names=["x", "factor"], output_names=["y"], source=body)

    def call(x, factor):
        arguments = {"template": [("T", x.dtype)], "grid": (64, 1, 1), "threadgroup": (64, 1, 1)}
        return kernel(inputs=[x, factor], output_shapes=[x.shape], output_dtypes=[x.dtype], **arguments)[0]

    mx.export_function(str(tmp_path / "sums.mlxfn"), call, mx.zeros(64), mx.zeros(1))
    exported = (tmp_path / "sums.mlxfn").read_bytes()
    generated = exported[exported.index(b"template <typename T>") : exported.rindex(b">;") + 2].decode()
    source = "#include <metal_stdlib>\nusing namespace metal;\n" + generated
    metal_sim.check(source, name="sums")
    library = metal_sim.compile(source, name="sums")
    (name,) = library.kernels
    x = np.random.default_rng(0).integers(-100, 100, 64).astype(np.float32)
    expected = 3 * x
    expected[[0, 32]] = x[:32].sum(), x[32:].sum()
    for schedule in SCHEDULES:
        y = np.full_like(x, np.nan)
        buffers = {0: x, 1: np.float32([3]), 2: y}
        library.run(name, buffers, groups=(1,), threads=(64,), schedule=schedule)
        np.testing.assert_array_equal(y, expected)
