"""Quantised models: what is quantised, what it gives, and MLX's checkpoints in both directions."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

import russet
from quantisable_models import FOR_MLX, MLX_FAMILIES, QUANTISABLE, dequantized, make_quantisable, name_as_published
from russet import Quantization, UsageError, WeightsError, save_quantized
from russet.backends.cpu import CpuBackend
from russet.checkpoint import open_checkpoint
from russet.config import Reader
from russet.errors import CheckpointError, ConfigError, NotEnoughMemory
from russet.inspection import inspect
from russet.model import DEMO
from russet.models import family_of
from russet.quantization import QuantizedTensor
from russet.safetensors import Writer, read_safetensors
from russet.weights import POSITIONS, ToQuantize, bind, find_non_finite, plan_quantization
from tiny_models import CASES, expected_logits, load, make, prompt_of, read_json, shift_weights, write_json

torch.set_num_threads(1)

INT8 = Quantization(bits=8, group_size=32)
INT4 = Quantization(bits=4, group_size=32)


def planned(folder, quantization):
    """Config, and the weights as russet.load(quantize=...) binds them."""
    checkpoint = open_checkpoint(folder)
    hf = Reader(checkpoint.config)
    family = family_of(hf)
    config = family.config(hf)
    sources = family.sources(hf, config)
    plan = plan_quantization(checkpoint.tensors, sources, quantization)
    return config, bind(checkpoint.tensors, sources, config, plan=plan, ignored=family.IGNORED)


def logits_of(backend, prompt):
    return backend.session(len(prompt)).forward(prompt, all_logits=True)


def difference(logits, expected):
    return np.abs(logits - expected).max() / np.ptp(expected)


#: The largest difference of logits that int8 activations make, in parts of their spread. A group's step is 1/127 of its
#: maximum, about 2.5 typical activations, so that an input is off by 2.5 / 127 / sqrt(12) = 0.6 % of a typical one. 13
#: products follow each other in three layers: 0.6 % sqrt(13) = 2 % of a typical logit. Of 7,000 logits the worst is off
#: by 4 times that, and the spread is 7 typical logits: 1.2 %. Softmax, gates and norms magnify some of it. Measured:
#: 0.5 % to 1.7 %.
INT8_ACTIVATIONS = 0.04

#: Those that are the same but for the order of float32 sums, as in test_families.py.
SAME = 2e-4


# ---- what a quantised model computes ----


@pytest.mark.parametrize("quantization", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("family", QUANTISABLE)
def test_logits_are_those_of_the_dequantised_weights(family, quantization, tmp_path):
    make_quantisable(tmp_path, family)
    config, weights = planned(tmp_path, quantization)
    prompt = prompt_of(70)
    logits = logits_of(CpuBackend(config, weights, threads=2), prompt)
    floats = logits_of(CpuBackend(config, dequantized(weights), threads=1), prompt)
    assert 0 < difference(logits, floats) < INT8_ACTIVATIONS
    # Everything but vectors and learned positions is quantised, the embedding and the head included.
    matrices = {role for role, weight in weights.items() if not isinstance(weight, ToQuantize)}
    assert all(role == POSITIONS or "norm" in role or role.endswith("bias") for role in matrices)


@pytest.mark.parametrize("family", QUANTISABLE)
def test_bits_do_not_depend_on_company_chunks_or_threads(family, tmp_path):
    make_quantisable(tmp_path, family)
    config, weights = planned(tmp_path, INT8)
    one, two = (CpuBackend(config, weights, threads=threads) for threads in (1, 2))
    text = prompt_of(150)
    whole = logits_of(two, text)
    np.testing.assert_array_equal(logits_of(one, text), whole)
    for size in (1, 7, 64):
        session = two.session(150)
        chunks = [text[begin : begin + size] for begin in range(0, 150, size)]
        logits = np.concatenate([session.forward(chunk, all_logits=True, text_length=150) for chunk in chunks])
        np.testing.assert_array_equal(logits, whole, f"chunks of {size}")
    # Five texts at once, at different places, with different numbers of new tokens.
    texts = [prompt_of(length, seed=length) for length in (1, 9, 40, 77)] + [text]
    n_new = (1, 5, 33, 1, 100)
    sessions = [two.session(150) for _ in texts]
    for session, each, n in zip(sessions, texts, n_new, strict=True):
        if len(each) > n:
            session.forward(each[:-n])
    together = two.forward([(s, each[-n:]) for s, each, n in zip(sessions, texts, n_new, strict=True)])
    for each, logits in zip(texts, together, strict=True):
        np.testing.assert_array_equal(logits_of(one, each)[-1], logits)


def test_load_quantises(stories_folder):
    # 64 wide, 172 inside: down_proj's 172 inputs make no groups, so it stays float.
    float_model = russet.load(stories_folder / "hf")
    prompt = "Once upon a time, there was a little girl"
    scores = np.array(float_model.score(prompt))
    for quantize, most in (("int8", 0.1), ("int4", 1.5), (Quantization(bits=4, group_size=32), 1.5)):
        model = russet.load(stories_folder / "hf", quantize=quantize)
        assert np.abs(np.array(model.score(prompt)) - scores).max() < most
        assert model.weight_bytes < float_model.weight_bytes / 2
    assert russet.load(stories_folder / "hf", quantize=None).weight_bytes == float_model.weight_bytes


def test_weight_bytes_are_what_a_token_reads(tmp_path):
    make_quantisable(tmp_path, "llama")
    kv, ffn, vocabulary = 2 * 16, 160, 101
    per_layer = 64 * 64 * 2 + 64 * kv * 2 + 3 * 64 * ffn
    norms = 4 * 64 * 7
    assert load(tmp_path)[1].weight_bytes == 4 * (3 * per_layer + vocabulary * 64) + norms
    config, weights = planned(tmp_path, INT8)
    padded = 3 * per_layer + 112 * 64  # the head's 101 rows are kept as 112
    assert CpuBackend(config, weights, threads=1).weight_bytes == padded + padded // 32 * 4 + norms
    # A tied model reads its embedding as head.
    make_quantisable(tmp_path / "tied", "llama", tie_word_embeddings=True)
    assert CpuBackend(*planned(tmp_path / "tied", INT8), threads=1).weight_bytes == padded + padded // 32 * 4 + norms


# ---- what is asked for ----


def test_the_names_of_the_defaults():
    assert Quantization.of(None) is None
    assert Quantization.of("int8") == Quantization(bits=8, group_size=128, symmetric=True) == Quantization()
    assert Quantization.of("int4") == Quantization(bits=4, group_size=64, symmetric=False) == Quantization(bits=4)
    assert Quantization.of(INT4) is INT4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 6}, "bits: expected 8 or 4, got 6"),
        ({"bits": True}, "bits: expected 8 or 4, got True"),
        ({"group_size": 16}, "group_size: expected 32, 64 or 128, got 16"),
        ({"group_size": "64"}, "group_size: expected 32, 64 or 128, got '64'"),
        ({"symmetric": 1}, "symmetric: expected True or False, got 1"),
        ({"overrides": ["lm_head"]}, "overrides: expected patterns of names"),
        ({"overrides": {"lm_head": "int6"}}, "quantize: expected 'int8', 'int4' or a Quantization, got 'int6'"),
        (
            {"overrides": {"lm_head": None}},
            "overrides: 'lm_head': expected a name and 'int8', 'int4' or 'float'",
        ),
        ({"overrides": {"a": Quantization(overrides={"b": "int4"})}}, "overrides: 'a': expected a name and 'int8'"),
    ],
)
def test_a_quantization_without_meaning(changes, message):
    with pytest.raises(UsageError) as caught:
        Quantization(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("said", ["int2", "8", 8, True, {"bits": 8}])
def test_quantize_takes_two_names_or_a_quantization(said):
    with pytest.raises(UsageError, match="quantize: expected 'int8', 'int4' or a Quantization, got"):
        russet.load(quantize=said)


def plan_of(folder, quantization):
    _, weights = planned(folder, quantization)
    return {role: w.how for role, w in weights.items() if isinstance(w, ToQuantize)}


def test_overrides_and_group_sizes(tmp_path):
    make_quantisable(tmp_path, "llama", intermediate_size=200)
    overrides = {"*.1.self_attn.?_proj": "float", "lm_head": "int8", "*embed*": INT4, "*": Quantization(bits=4)}
    plan = plan_of(tmp_path, Quantization(overrides=overrides))
    assert "layers.1.q" not in {role.removesuffix(".w") for role in plan}
    assert plan["head.w"] == Quantization(bits=8, group_size=64)  # 128 does not divide 64
    assert plan["embed.w"] == INT4
    assert plan["layers.0.q.w"] == Quantization(bits=4, group_size=64)
    assert "layers.0.down.w" not in plan  # 200 inputs make no whole groups
    assert plan["layers.0.up.w"].group_size == 64


def test_a_pattern_that_fits_nothing(tmp_path):
    make_quantisable(tmp_path, "llama")
    with pytest.raises(UsageError, match=r"'wte' fits no matrix .* a name is like 'model.embed_tokens'"):
        russet.load(tmp_path, quantize=Quantization(overrides={"wte": "int8"}))


def test_what_stays_float_is_said(tmp_path, caplog):
    make_quantisable(tmp_path / "a", "llama", intermediate_size=200)
    russet.load(tmp_path / "a", quantize="int8")
    assert [record.getMessage() for record in caplog.records if record.name == "russet"] == [
        "quantize: model.layers.0.mlp.down_proj.weight (and 2 more) stays float: its inputs make no groups of 32"
    ]
    make(tmp_path / "b", "gpt2", n_embd=36, n_head=3)
    with pytest.raises(UsageError, match="none of this model's matrices would be; their inputs must make groups of 32"):
        russet.load(tmp_path / "b", quantize="int8")


def test_the_context_is_chosen_beside_the_quantised_weights(tmp_path):
    make_quantisable(tmp_path, "llama")
    n_floats = sum(t.nbytes for t in open_checkpoint(tmp_path).tensors.values()) // 4
    cache = 3 * 2 * 32 * 4 * 64  # of 50 tokens: a block
    russet.load(tmp_path, quantize=INT8, n_ctx=50, max_memory=int(n_floats * 1.3) + cache)
    with pytest.raises(NotEnoughMemory):
        russet.load(tmp_path, n_ctx=50, max_memory=int(n_floats * 1.3) + cache)


def test_damaged_weights_are_named(tmp_path):
    make_quantisable(tmp_path, "phi3")
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][70, 3] = np.nan
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(WeightsError, match=rf"^{name}: expected finite weights, got nan in row 6, column 3; "):
        russet.load(tmp_path, quantize="int8")


# ---- folders on disk ----


def test_a_saved_model_is_the_loaded_one_bit_for_bit(tmp_path):
    prompt = prompt_of(40)
    for family in ("llama", "gpt2", "gpt_neox", "phi3", "gemma3"):
        folder = tmp_path / family
        make_quantisable(folder, family)
        mixed = Quantization(bits=4, group_size=32, overrides={"*mlp*": "int8"})
        save_quantized(folder, tmp_path / f"{family}-q", mixed, threads=2)
        expected = logits_of(CpuBackend(*planned(folder, mixed), threads=1), prompt)
        np.testing.assert_array_equal(logits_of(load(tmp_path / f"{family}-q")[1], prompt), expected, family)


def test_shards_stay_shards_and_all_else_comes_along(tmp_path):
    folder, path = tmp_path / "float", tmp_path / "new" / "int8"
    model = make_quantisable(folder, "qwen3", tie_word_embeddings=True, head_dim=16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "pytorch_model.bin").write_bytes(b"no")
    (folder / "notes.txt").write_text("no")
    report = save_quantized(folder, path, "int8")
    names = {file.name for file in path.iterdir()}
    shards = {file.name for file in folder.glob("*.safetensors")}
    assert len(shards) > 2
    assert names == shards | {
        "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors.index.json",
    }  # fmt: skip
    assert list(path.parent.iterdir()) == [path]
    assert (report.source, report.path) == (folder, path)
    assert report.n_bytes == sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert report.n_bytes_before == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config = read_json(path / "config.json")
    # 64 inputs take groups of 64, the 160 of down_proj groups of 32.
    small = {f"model.layers.{i}.mlp.down_proj": {"group_size": 32, "bits": 8} for i in range(3)}
    assert config["quantization"] == config["quantization_config"] == {"group_size": 64, "bits": 8, **small}
    notes = {m.name: m.note for m in report.matrices}
    assert notes["model.layers.0.mlp.down_proj.weight"] == "in groups of 32: its 160 inputs make none of 128"
    assert all(m.error.relative < 0.01 and m.error.cosine > 0.9999 for m in report.matrices)
    found = inspect(path)
    assert found.loads
    assert [(q.bits, q.group_size) for q in found.quantizations] == [(8, 64), (8, 32)]
    assert found.n_parameters == inspect(folder).n_parameters


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_weights_at_odd_addresses_give_the_same_bits(quantize, tmp_path):
    make_quantisable(tmp_path / "float", "qwen3", dtype=torch.bfloat16)
    folder = tmp_path / "float"
    if quantize:
        folder = tmp_path / "q"
        save_quantized(tmp_path / "float", folder, quantize)
    shifted = shutil.copytree(folder, tmp_path / "shifted")
    shift_weights(shifted)
    logits, expected = (load(f)[1].session(30).forward(prompt_of(30), all_logits=True) for f in (shifted, folder))
    np.testing.assert_array_equal(logits, expected)


def test_a_head_stored_beside_its_embedding_is_left_out(tmp_path):
    make_quantisable(tmp_path / "a", "qwen3", tie_word_embeddings=True)
    path = tmp_path / "a" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
    alone = russet.load(tmp_path / "a", quantize="int8")
    save_quantized(tmp_path / "a", tmp_path / "b")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "b").tensors
    np.testing.assert_array_equal(russet.load(tmp_path / "b").logits([1, 2]), alone.logits([1, 2]))
    # One that differs is a head of its own.
    other = tensors["model.embed_tokens.weight"][::-1].copy()
    safetensors.numpy.save_file(tensors | {"lm_head.weight": other}, path)
    save_quantized(tmp_path / "a", tmp_path / "c")
    assert "lm_head.scales" in open_checkpoint(tmp_path / "c").tensors


class Stop(BaseException):
    """As KeyboardInterrupt is: no Exception."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, OSError])
def test_nothing_is_left_of_what_broke_off(error, tmp_path):
    def progress(done, total):
        if done > total / 2:
            raise error

    with pytest.raises(error):
        save_quantized(DEMO, tmp_path / "int8", progress=progress)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there: is there already; choose a new folder"):
        save_quantized(DEMO, tmp_path / "there")
    with pytest.raises(UsageError, match="got None"):
        save_quantized(DEMO, tmp_path / "new", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(CheckpointError, match=r"new: expected \d.\d\d MB of free disk space, got 1.00 MB; make room"):
        save_quantized(DEMO, tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_written_files_are_read_by_the_library(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": ("f16", rng.normal(size=(3, 5)).astype(np.float16)), "b": ("u8", np.arange(7, dtype=np.uint8)),
              "c": ("u32", np.arange(12, dtype=np.uint32).reshape(3, 4)), "d": ("f32", np.zeros((0, 3), np.float32)),
              "é": ("bf16", np.arange(3, dtype=np.uint16))}  # fmt: skip
    writer = Writer(tmp_path / "x", {name: (dtype, array.shape) for name, (dtype, array) in arrays.items()}, {"k": "v"})
    for name in reversed(arrays):
        writer.write(name, arrays[name][1])
    writer.close()
    ours = read_safetensors(tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as theirs:
        assert theirs.metadata() == {"k": "v"}
        for name, (dtype, array) in arrays.items():
            bits = theirs.get_tensor(name)
            np.testing.assert_array_equal(bits.view(torch.int16) if dtype == "bf16" else bits, array)
            np.testing.assert_array_equal(ours[name].numpy(), array)
            assert ours[name].data.ctypes.data % array.itemsize == 0
    writer = Writer(tmp_path / "y", {"a": ("f32", (2,))}, {})
    with pytest.raises(ValueError, match="a: expected 8 bytes, got 4"):
        writer.write("a", np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="a: never written"):
        Writer(tmp_path / "z", {"a": ("f32", (2,))}, {}).close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_holds_the_result_and_one_tensor(tmp_path):
    # 100 MB of f16 in 24 matrices of 4 MiB and smaller ones; the result is half of that.
    wide = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 6, "num_key_value_heads": 4}
    config = CASES["llama"][0] | wide | {"num_attention_heads": 8, "head_dim": 128, "vocab_size": 2048}
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (2048, 1024), "lm_head": (2048, 1024), "model.norm": (1024,)}
    for i in range(6):
        layer = {"self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (512, 1024), "self_attn.v_proj": (512, 1024),
                 "self_attn.o_proj": (1024, 1024), "mlp.gate_proj": (2048, 1024), "mlp.up_proj": (2048, 1024),
                 "mlp.down_proj": (1024, 2048), "input_layernorm": (1024,),
                 "post_attention_layernorm": (1024,)}  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    noise = rng.normal(size=2048 * 1024).astype(np.float16)
    tensors = {f"{name}.weight": noise[: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama", "max_position_embeddings": 128} | config)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    n_bytes = sum(array.nbytes for array in tensors.values())

    def peak(code):
        """Of a fresh process, in bytes."""
        code += "; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
        run = [sys.executable, "-c", f"import sys, russet; path = sys.argv[1]; {code}", str(tmp_path)]
        return 1024 * int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

    # The demo brings what any model does: threads, kernels, a tokenizer. 16 MB are for what differs by chance.
    loaded = peak("russet.load(path, n_ctx=64, quantize='int8')") - peak("russet.load(n_ctx=64, quantize='int8')")
    saved = peak("russet.save_quantized(path, path + '/int8')") - peak("pass")
    tensor = 4 * 2**20
    assert n_bytes > 90e6
    assert loaded < n_bytes / 2 * (1 + 1 / 64) + 2 * tensor + 16e6  # not 1.5 n_bytes, as with all floats in memory
    assert saved < 3 * tensor + 16e6


# ---- MLX ----


@pytest.fixture
def mlx_logits():
    """Logits of a checkpoint as mlx-lm computes them."""
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")

    def logits(folder, prompt):
        model, _ = utils.load_model(folder)
        return np.array(model(mx.array([prompt]))[0])

    return logits


def dequantized_logits(folder, prompt):
    """russet's logits with the weights that the folder's quantised ones stand for."""
    checkpoint = open_checkpoint(folder)
    hf = Reader(checkpoint.config)
    family = family_of(hf)
    config = family.config(hf)
    weights = bind(checkpoint.tensors, family.sources(hf, config), config, ignored=family.IGNORED)
    assert any(isinstance(weight, QuantizedTensor) for weight in weights.values())
    return logits_of(CpuBackend(config, dequantized(weights), threads=1), prompt)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", MLX_FAMILIES)
def test_mlx_lm_loads_what_russet_writes(family, bits, tmp_path, mlx_logits):
    make_quantisable(tmp_path / "float", family, **FOR_MLX.get(family, {}))
    # 32 and 64: what the default does not say is said tensor by tensor. In f32, so that MLX computes in f32.
    other = "*mlp*" if family != "gpt2" else "*c_fc"
    overrides = {other: Quantization(bits=12 - bits, group_size=64)}
    save_quantized(tmp_path / "float", tmp_path / "q", Quantization(bits=bits, group_size=32, overrides=overrides))
    prompt = prompt_of(60)
    theirs = mlx_logits(tmp_path / "q", prompt)
    assert difference(theirs, dequantized_logits(tmp_path / "q", prompt)) < SAME
    assert difference(logits_of(load(tmp_path / "q")[1], prompt), theirs) < INT8_ACTIVATIONS


@pytest.mark.parametrize(("bits", "group_size"), [(8, 32), (4, 64)])
@pytest.mark.parametrize("family", MLX_FAMILIES)
def test_russet_loads_what_mlx_lm_writes(family, bits, group_size, tmp_path, mlx_logits, capsys):
    from mlx_lm import convert

    make_quantisable(tmp_path / "float", family, **FOR_MLX.get(family, {}))
    if family == "gpt2":
        name_as_published(tmp_path / "float")
    convert(str(tmp_path / "float"), str(tmp_path / "q"), quantize=True, q_bits=bits, q_group_size=group_size)
    prompt = prompt_of(60)
    theirs = mlx_logits(tmp_path / "q", prompt)
    assert difference(theirs, dequantized_logits(tmp_path / "q", prompt)) < SAME
    assert difference(logits_of(load(tmp_path / "q")[1], prompt), theirs) < INT8_ACTIVATIONS
    assert inspect(tmp_path / "q").tensors.fit


def test_what_mlx_lm_writes_without_quantising_is_read_too(tmp_path, mlx_logits):
    from mlx_lm import convert

    for family in ("gpt2", "gpt_neox"):  # whose tensors mlx-lm renames, and GPT-2's it turns
        folder = tmp_path / family
        model = make_quantisable(folder, family, **FOR_MLX.get(family, {}))
        name_as_published(folder)
        convert(str(folder), str(folder / "mlx"))
        prompt = prompt_of(30)
        assert difference(logits_of(load(folder / "mlx")[1], prompt), expected_logits(model, prompt)) < SAME


@pytest.mark.parametrize(
    ("mode", "bits", "message"),
    [
        ("affine", 6, "bits=6: russet reads f32, f16 and bf16 safetensors, and MLX's affine groups of 8 or 4 bits"),
        ("affine", 3, "bits=3: russet reads"),
        ("mxfp4", 4, "mode='mxfp4': russet reads"),
    ],
)
def test_other_quantisations_of_mlx_are_refused(mode, bits, message, tmp_path, mlx_logits):
    from mlx_lm import convert

    make_quantisable(tmp_path / "float", "llama")
    source, path = str(tmp_path / "float"), str(tmp_path / "q")
    convert(source, path, quantize=True, q_bits=bits, q_group_size=32, q_mode=mode)
    with pytest.raises(ConfigError) as caught:
        russet.load(tmp_path / "q")
    assert message in str(caught.value)
    # The tensors themselves say so too, where config.json does not.
    config = read_json(tmp_path / "q" / "config.json")
    write_json(tmp_path / "q" / "config.json", {k: v for k, v in config.items() if "quant" not in k})
    says = "russet reads 'affine'" if mode != "affine" else f"quantised to {bits} bits in groups of 32; russet reads"
    with pytest.raises(WeightsError, match=says):
        russet.load(tmp_path / "q")
    assert not inspect(tmp_path / "q").loads


# ---- broken checkpoints ----


@pytest.fixture
def quantised(tmp_path):
    make_quantisable(tmp_path / "float", "llama")
    save_quantized(tmp_path / "float", tmp_path / "q", INT8)
    return tmp_path / "q"


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)


UP = "model.layers.1.mlp.up_proj"
BROKEN = {
    "no scales": (lambda t: t.pop(f"{UP}.scales"), rf"{UP}.weight: u32 codes need scales .*, got {UP}.biases f32"),
    "no biases": (lambda t: t.pop(f"{UP}.biases"), rf"{UP}.weight: u32 codes need .*, got {UP}.scales f32"),
    "two types": (
        lambda t: t.update({f"{UP}.biases": t[f"{UP}.biases"].astype(np.float16)}),
        rf"{UP}.weight: u32 codes need scales and biases of one type of .*, got {UP}.scales f32, {UP}.biases f16",
    ),
    "rows": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][1:]}),
        rf"{UP}.weight: expected \[160, 64\] in 8 or 4 bits and groups of 32, 64 or 128, got codes \[159, 16\], scales",
    ),
    "columns": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:, 1:]}),
        rf"{UP}.weight: expected \[160, 64\] .* got codes \[160, 15\], scales \[160, 2\], biases \[160, 2\]",
    ),
    "groups": (
        lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"][1:]}),
        rf"{UP}.weight: expected .* scales \[159, 2\], biases \[160, 2\]",
    ),
    "stray": (
        lambda t: t.update({"model.norm.scales": t["model.norm.weight"]}),
        "model.norm.scales: a llama model has no such tensor",
    ),
    "vector": (
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"].view(np.uint32)}),
        "model.norm.weight: expected f32, f16, bf16, got u32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_groups_are_named(damage, message, quantised):
    change_tensors(quantised, damage)
    with pytest.raises(WeightsError, match=message):
        russet.load(quantised)
    report = inspect(quantised)
    assert report.tensors.wrong or report.tensors.extra
    assert not report.loads


def test_damaged_scales_are_found(quantised):
    def damage(tensors):
        tensors[f"{UP}.scales"][3, 1] = np.nan

    assert find_non_finite(open_checkpoint(quantised).tensors) is None
    change_tensors(quantised, damage)
    assert find_non_finite(open_checkpoint(quantised).tensors).name == f"{UP}.scales"
    with pytest.raises(russet.NumericalError, match=f"{UP}.scales holds NaN or infinity"):
        russet.load(quantised).generate([1, 2, 3])


def test_what_is_quantised_is_not_quantised_again(quantised, tmp_path):
    for attempt in (
        lambda: russet.load(quantised, quantize="int8"),
        lambda: save_quantized(quantised, tmp_path / "again"),
    ):
        with pytest.raises(UsageError, match=r"model.embed_tokens.weight is quantised already; load it as it is, or"):
            attempt()


def test_the_tensors_know_their_groups_whatever_the_config_says(quantised):
    expected = load(quantised)[1]
    config = json.loads((quantised / "config.json").read_text())
    write_json(quantised / "config.json", config | {"quantization": {"group_size": 128, "bits": 4}})
    np.testing.assert_array_equal(logits_of(load(quantised)[1], [1, 2]), logits_of(expected, [1, 2]))


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_the_same_200_tokens_however_the_prompt_is_cut_and_in_company(how):
    model = russet.load(quantize=how, n_ctx=800, threads=2)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (520, 3, 64, 257, 100)]

    def prefilled(text, size):
        session = model.session()
        for begin in range(0, len(text), size):
            logits = session.forward(text[begin : begin + size])
        return session, logits

    def greedy(sessions, logits):
        """200 tokens of each session, all in one batch."""
        tokens = [[int(row.argmax())] for row in logits]
        while len(tokens[0]) < 200:
            rows = model.backend.forward([(s, t[-1:]) for s, t in zip(sessions, tokens, strict=True)])
            for said, row in zip(tokens, rows, strict=True):
                said.append(int(row.argmax()))
        return tokens

    alone = [greedy([session], logits)[0] for session, logits in (prefilled(text, 512) for text in texts)]
    assert len({tuple(tokens) for tokens in alone}) == 5
    for size in (1, 7):
        session, logits = prefilled(texts[0], size)
        assert greedy([session], logits)[0] == alone[0]
    sessions, logits = zip(*(prefilled(text, 512) for text in texts), strict=True)
    assert greedy(sessions, [rows[0] for rows in logits]) == alone
