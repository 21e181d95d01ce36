"""What russet inspect finds: the same numbers as other libraries, and every fault of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import russet
from russet import cli
from russet.inspection import Inspection, inspect
from russet.model import DEMO

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,  # the demo's tokenizer goes with it
    "max_position_embeddings": 128,
}
SHAPES = {"model.embed_tokens.weight": (2048, 16), "model.norm.weight": (16,), "lm_head.weight": (2048, 16)} | {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {
        "input_layernorm": (16,),
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "post_attention_layernorm": (16,),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }.items()
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole checkpoint of a tiny Llama, head of its own, in f32 and f16."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def change_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def into_shards(folder: Path) -> None:
    """Two shards and their index, instead of one file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard_of = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shard_of.values()):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))


def error_of_load(folder: Path) -> str | None:
    try:
        russet.load(folder)
    except russet.RussetError as error:
        return str(error)
    return None


# ---- what is there ----


def test_the_demo_as_others_read_it():
    found = inspect(DEMO)
    with safe_open(DEMO / "model.safetensors", "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        n_parameters = sum(int(np.prod(each.get_shape())) for each in slices.values())
    config = json.loads((DEMO / "config.json").read_text())
    assert found.loads
    assert found.path == DEMO
    assert found.model_type == "llama"
    assert found.n_parameters == n_parameters
    assert [(d.dtype, d.n_tensors, d.n_parameters, d.n_bytes) for d in found.dtypes] == [
        ("bf16", len(slices), n_parameters, 2 * n_parameters)
    ]
    assert [(f.name, f.n_bytes, f.n_tensors) for f in found.files] == [
        ("model.safetensors", (DEMO / "model.safetensors").stat().st_size, len(slices))
    ]
    a = found.architecture
    assert (a.n_layers, a.dim, a.n_heads) == (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
    )
    assert (a.max_ctx, a.tied_head, a.rope) == (512, True, "default")
    assert (found.tokenizer.kind, found.tokenizer.vocab_size) == ("BPE", config["vocab_size"])
    assert [(eos.id, eos.token) for eos in found.tokenizer.eos] == [(0, "<|endoftext|>")]


def test_memory_is_what_load_reserves(folder):
    found, model = inspect(folder).memory, russet.load(folder)
    model.generate("Once", max_tokens=20)
    n_tokens = 20 + len(model.tokenizer.encode("Once")) - 1  # the last one never enters the cache
    assert found.n_ctx == model.n_ctx == 128
    assert found.cache_bytes == 128 * found.cache_bytes_per_token
    assert found.total_bytes == (folder / "model.safetensors").stat().st_size + found.cache_bytes
    assert found.cache_bytes_per_token == 2 * 2 * 2 * 4 * 4  # keys and values, layers, kv heads, width, float32
    assert model.cache_bytes() >= n_tokens * found.cache_bytes_per_token
    assert inspect(folder, n_ctx=500, max_memory="1GB").memory.n_ctx == 500
    assert inspect(folder, n_ctx=500, max_memory="1GB").memory.available_bytes == 10**9


def test_shards_and_dtypes(folder):
    into_shards(folder)
    found = inspect(folder)
    assert found.loads
    assert [file.name for file in found.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert sum(file.n_tensors for file in found.files) == len(SHAPES)
    assert [(d.dtype, d.n_tensors) for d in found.dtypes] == [("f32", len(SHAPES) - 1), ("f16", 1)]


ROPES = {
    "default": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_kind_in_either_style(folder, kind):
    change_config(folder, **ROPES[kind])
    assert inspect(folder).architecture.rope == kind


def test_every_family_loads_and_counts_as_transformers_does(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_models

    for family in tiny_models.CASES:
        folder = tmp_path / family
        model = tiny_models.make_case(folder, family, 0)
        shutil.copy(DEMO / "tokenizer.json", folder)
        found = inspect(folder)
        assert found.loads, (family, found.problems, found.tensors)
        assert found.model_type == model.config.model_type
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        assert found.n_parameters == n_parameters, family


# ---- what is wrong ----


def several_tensors(folder: Path) -> None:
    def change(tensors):
        for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
            del tensors[name]
        tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((7, 16), np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((16, 24), np.int8)
        tensors["surplus"] = tensors["model.surplus"] = np.zeros(3, np.float32)

    change_tensors(folder, change)


def test_all_tensors_that_do_not_fit_are_listed(folder):
    several_tensors(folder)
    found = inspect(folder)
    assert not found.loads
    assert sorted(found.tensors.missing) == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    assert sorted(found.tensors.extra) == ["model.surplus", "surplus"]
    shape, dtype = sorted(found.tensors.wrong, reverse=True)
    assert shape.startswith("model.layers.0.self_attn.k_proj.weight: expected [8, 16], got [7, 16] f32")
    assert dtype.startswith("model.layers.0.mlp.down_proj.weight: expected f32, f16, bf16, got i8")
    assert found.problems == ()
    assert found.architecture.n_layers == 2


def test_an_unknown_family_still_shows_what_is_in_the_files(folder):
    change_config(folder, model_type="lama")
    found = inspect(folder)
    assert not found.loads
    assert found.model_type == "lama"
    assert found.architecture is found.tensors is found.memory is None
    assert found.n_parameters == sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert found.tokenizer.vocab_size == 2048
    (problem,) = found.problems
    assert "the nearest is 'llama'" in problem


def missing_shard(folder: Path) -> None:
    into_shards(folder)
    (folder / "model-2.safetensors").unlink()


def damaged_shard(folder: Path) -> None:
    into_shards(folder)
    (folder / "model-1.safetensors").write_bytes(b"\xff" * 100)


def promise_of_the_index(folder: Path) -> None:
    into_shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["promised"] = "model-1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_without_a_map(folder: Path) -> None:
    into_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def with_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


FAULTS = {
    "several tensors": (several_tensors, ""),
    "missing shard": (missing_shard, "expected model-2.safetensors"),
    "damaged shard": (damaged_shard, "model-1.safetensors"),
    "index promises too much": (promise_of_the_index, "promised: expected in model-1.safetensors"),
    "index without a map": (index_without_a_map, "weight_map"),
    "no weights": (without("model.safetensors"), "expected model.safetensors"),
    "no config": (without("config.json"), "expected config.json"),
    "config not JSON": (with_text("config.json", "{"), "expected JSON"),
    "config without a family": (with_config(model_type=None), "expected a 'model_type'"),
    "config of another width": (with_config(hidden_size=20), ""),
    "heads that do not divide": (with_config(num_key_value_heads=3, head_dim=4), ""),
    "a rope nobody knows": (with_config(rope_scaling={"type": "spiral"}), "spiral"),
    "an activation nobody knows": (with_config(hidden_act="tanh"), "tanh"),
    "quantised weights": (with_config(quantization_config={"quant_method": "gptq"}), "gptq"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer"),
    "tokenizer not JSON": (with_text("tokenizer.json", "{"), "not a tokenizer.json"),
    "generation config not JSON": (with_text("generation_config.json", "["), "generation_config.json"),
    "temperature below 0": (
        with_text("generation_config.json", '{"do_sample": true, "temperature": -1}'),
        "temperature",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_just_where_load_refuses(folder, fault):
    assert inspect(folder).loads
    spoil, said = FAULTS[fault]
    spoil(folder)
    found, error = inspect(folder), error_of_load(folder)
    assert error
    assert not found.loads
    told = [*found.problems, *(found.tensors.wrong if found.tensors else ())]
    assert any(said in sentence for sentence in told) or not said
    # What load() says first is among it; of tensors only the names are.
    names = [*found.tensors.missing, *found.tensors.extra] if found.tensors else []
    assert error in told or error.partition(":")[0] in names


def test_faults_do_not_hide_each_other(folder):
    missing_shard(folder)
    change_config(folder, model_type="lama")
    (folder / "tokenizer.json").unlink()
    found = inspect(folder)
    assert len(found.problems) == 3
    assert [(file.name, file.n_bytes is None) for file in found.files] == [
        ("model-1.safetensors", False),
        ("model-2.safetensors", True),
    ]
    assert found.n_parameters > 0


def test_a_tokenizer_does_not_hide_the_generation_config(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": -1}')
    tokenizer, temperature = inspect(folder).problems
    assert "no tokenizer" in tokenizer
    assert "temperature" in temperature


def test_the_index_decides_between_two_of_a_name(folder):
    into_shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(name for name, shard in index.items() if shard == "model-1.safetensors")
    tensors = load_file(folder / "model-2.safetensors")
    save_file(tensors | {name: np.zeros((1, 1), np.float32)}, folder / "model-2.safetensors")
    assert inspect(folder).loads
    assert error_of_load(folder) is None


def test_a_model_too_large_for_the_memory_is_told(folder):
    found = inspect(folder, max_memory="1kB")
    assert not found.loads
    assert found.problems[0].startswith("weights ")
    assert found.memory.n_ctx == 128
    assert found.memory.total_bytes > found.memory.available_bytes == 1000


def test_a_context_longer_than_the_positions_learned_is_told(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_models

    tiny_models.make_case(tmp_path, "gpt2", 0)
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    assert inspect(tmp_path, n_ctx=160).loads
    assert "160 positions, got 161" in inspect(tmp_path, n_ctx=161).problems[0]


def test_a_path_that_is_no_folder_is_an_error(folder, tmp_path):
    with pytest.raises(russet.CheckpointError, match="no such folder"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(russet.CheckpointError, match="expected a model folder, got a file"):
        inspect(folder / "model.safetensors")


# ---- the command ----


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main(["inspect", *map(str, argv)])
    return (code, *capsys.readouterr())


def test_the_command_prints_what_there_is(capsys, folder):
    code, out, err = run(capsys, folder)
    assert (code, err) == (0, "")
    assert str(folder) in out.splitlines()[0]
    for said in ("llama", "4 heads of 4, 2 key-value heads", "128 tokens", "f32", "f16", "yes"):
        assert said in out
    assert out.splitlines()[-1].split() == ["loads", "yes"]


def test_the_command_lists_all_that_is_wrong(capsys, folder):
    several_tensors(folder)
    code, out, err = run(capsys, folder)
    assert (code, err) == (1, "")
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight", "surplus", "model.surplus"):
        assert any(line.endswith(f" {name}") for line in out.splitlines())
    assert "k_proj.weight: expected [8, 16]" in out
    assert out.splitlines()[-1].split() == ["loads", "no"]


def test_the_command_in_json(capsys, folder):
    several_tensors(folder)
    code, out, _ = run(capsys, folder, "--json", "--n-ctx", 64)
    report = json.loads(out)
    assert code == 1
    assert report["loads"] is False
    assert report["path"] == str(folder)
    assert report["memory"]["n_ctx"] == 64
    assert len(report["tensors"]["missing"]) == 2
    assert set(report) == {"loads", *Inspection.__dataclass_fields__}


def test_the_command_shows_the_demo_by_default(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "russet: no model given: this is the built-in demo\n")
    assert str(DEMO) in out
