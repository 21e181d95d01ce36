"""What a cache keeps keys and values in: what is asked for, what it takes, and what a backend refuses."""

import os

import pytest

import russet
from random_model import random_config, random_weights
from russet import NotEnoughMemory, UsageError, _core, metal_sim, metal_source
from russet.backends.cpu import CpuBackend
from russet.inspection import inspect
from russet.kv_dtype import KvDtype
from russet.model import DEMO


@pytest.mark.parametrize(
    ("said", "weights", "expected"),
    [
        (None, "f32", "float32"),
        (None, "f16", "float16"),
        (None, "bf16", "float16"),
        ("bfloat16", "f32", "bfloat16"),
        ("int8", "bf16", "int8"),
        ("int8/int4", "bf16", "int8/int4"),
        ("float16/int8", "f32", "float16/int8"),
        ("float16/float16", "f32", "float16"),
    ],
)
def test_what_is_asked_for_or_the_weights_own(said, weights, expected):
    assert str(KvDtype.of(said, weights)) == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("q8_0", "kv_dtype: expected float32, float16, .*, or two of them as keys/values, got 'q8_0'"),
        ("int8/", "or two of them as keys/values, got 'int8/'"),
        ("int8/int2", "or two of them as keys/values, got 'int8/int2'"),
        ("int4", "kv_dtype: int4 is for values alone, keys lose too much; take 'int8/int4'"),
    ],
)
def test_what_is_no_dtype_is_refused(said, message):
    with pytest.raises(UsageError, match=message):
        russet.load(kv_dtype=said)
    with pytest.raises(UsageError, match=message):
        inspect(DEMO, kv_dtype=said)


@pytest.mark.parametrize("said", ["float32", "float16", "int8", "int8/int4", "bfloat16/int4"])
def test_bytes_are_those_of_the_blocks(said):
    config = random_config(head_dim=15)
    kv_dtype = KvDtype.of(said, "f32")
    backend = CpuBackend(config, random_weights(config), kv_dtype=said, cache_bytes=10**6)
    session = backend.session(100)
    session.forward([1, 2, 3])
    assert session.cache_bytes() == 64 * kv_dtype.bytes_per_token(config)
    per_head = {"float32": 120, "float16": 60, "int8": 38, "int8/int4": 35, "bfloat16/int4": 46}[said]
    assert kv_dtype.bytes_per_token(config) == config.n_layers * config.n_kv_heads * per_head


@pytest.mark.parametrize(("said", "n_ctx"), [("float32", 256), ("int8/int4", 512)])
def test_fewer_bytes_are_a_longer_context(said, n_ctx):
    n_bytes = DEMO.joinpath("model.safetensors").stat().st_size + 560_000
    assert russet.load(kv_dtype=said, max_memory=n_bytes).n_ctx == n_ctx
    memory = inspect(DEMO, kv_dtype=said, max_memory=n_bytes).memory
    assert memory.n_ctx == n_ctx
    assert memory.cache_bytes == n_ctx * memory.cache_bytes_per_token <= 560_000


@pytest.mark.parametrize("options", [{"backend": "mlx"}, {"backend": "mlx", "gpu_layers": 2}])
def test_a_gpu_keeps_its_own(options):
    pytest.importorskip("mlx.core")
    for said in ("int8", "float16"):
        message = f"kv_dtype: mlx keeps keys and values in its own dtype, here bfloat16, got '{said}'; leave it out"
        with pytest.raises(UsageError, match=message):
            russet.load(kv_dtype=said, **options)
    assert len(russet.load(kv_dtype="bfloat16", n_ctx=64, **options).generate_tokens([5], max_tokens=2)) == 2


@pytest.mark.slow
def test_metal_keeps_its_own_or_int8():
    try:
        model = russet.load(backend="metal-sim", kv_dtype="int8", n_ctx=64)
    except russet.BackendError as error:
        pytest.skip(str(error))
    assert len(model.generate_tokens([5], max_tokens=2)) == 2
    assert model.backend.pool.info["block_bytes"] == 2 * 64 * (model.config.head_dim + 4)
    with pytest.raises(
        UsageError, match="kv_dtype: metal keeps keys and values in its own dtype, here bfloat16 or int8, got"
    ):
        russet.load(backend="metal-sim", kv_dtype="int8/int4", n_ctx=64)


@pytest.mark.slow
def test_a_context_is_what_metal_sees_in_one_piece(monkeypatch):
    try:
        libraries = [os.fspath(metal_sim.compile_file(path).path) for path in metal_source.shaders()]
    except russet.BackendError as error:
        pytest.skip(str(error))
    device = _core.MetalDevice.simulated(libraries, max_map_bytes=2**21)
    monkeypatch.setattr("russet.backends.metal.open_device", lambda *, simulated: device)
    with pytest.raises(NotEnoughMemory, match=r"cache 4.13 MB for 4,000 tokens, but the GPU sees 2.*MB in one piece"):
        russet.load(backend="metal-sim", n_ctx=4000)
    assert russet.load(backend="metal-sim", n_ctx=1000).n_ctx == 1000
    assert russet.load(backend="metal-sim").n_ctx == 512
