"""Model folders, whole and broken. transformers is the judge of what a good folder holds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from russet.checkpoint import open_checkpoint
from russet.errors import CheckpointError, ConfigError, WeightsError

INDEX = "model.safetensors.index.json"
STORIES = Path(__file__).resolve().parents[2] / "shared/data/weights/stories260K/hf"


def arrays(*names):
    return {name: np.arange(6, dtype=np.float32).reshape(2, 3) + ord(name[0]) for name in names}


@pytest.fixture
def folder(tmp_path):
    """A folder with a config and one weight file."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    safetensors.numpy.save_file(arrays("a", "b"), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A folder with a config, two shards and their index: a and b in the first, c in the second."""
    (tmp_path / "config.json").write_text("{}")
    safetensors.numpy.save_file(arrays("a", "b"), tmp_path / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(arrays("c"), tmp_path / "model-00002-of-00002.safetensors")
    shards = {"a": 1, "b": 1, "c": 2}
    weight_map = {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in shards.items()}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}))
    return tmp_path


def fails(folder, error=CheckpointError):
    """The message open_checkpoint() fails with."""
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "expected" in message
    assert "; " in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("as_given", [str, Path])
def test_one_file(folder, as_given):
    checkpoint = open_checkpoint(as_given(folder))
    assert checkpoint.path == folder
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.generation_config == {}
    assert checkpoint.files == (folder / "model.safetensors",)
    assert checkpoint.n_bytes == (folder / "model.safetensors").stat().st_size
    assert checkpoint.tensors.keys() == {"a", "b"}
    np.testing.assert_array_equal(checkpoint.tensors["b"].numpy(), arrays("b")["b"])
    assert checkpoint.tensors is checkpoint.tensors


def test_shards(sharded):
    checkpoint = open_checkpoint(sharded)
    assert [file.name[:11] for file in checkpoint.files] == ["model-00001", "model-00002"]
    assert checkpoint.n_bytes == sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    assert checkpoint.tensors.keys() == {"a", "b", "c"}
    for name, expected in arrays("a", "b", "c").items():
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), expected)


def test_a_real_folder():
    if not STORIES.exists():
        pytest.skip(f"no {STORIES}")
    checkpoint = open_checkpoint(STORIES)
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.generation_config == json.loads((STORIES / "generation_config.json").read_text())
    expected = safetensors.numpy.load_file(STORIES / "model.safetensors")
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


def test_same_shards_as_transformers(tmp_path):
    """What save_pretrained() writes with small shards, bf16 and tied embeddings included."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) > 3
    expected = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == "bf16"
        np.testing.assert_array_equal(tensor.numpy(), expected[name].view(torch.uint16).numpy())


def test_opening_reads_no_weights(sharded):
    """Damage in a shard shows when the tensors are first wanted, and names the shard."""
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    checkpoint = open_checkpoint(sharded)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{shard}: .* the file is damaged"):
            _ = checkpoint.tensors


def test_one_file_goes_before_an_index(sharded):
    safetensors.numpy.save_file(arrays("d"), sharded / "model.safetensors")
    assert open_checkpoint(sharded).tensors.keys() == {"d"}  # as in transformers


def test_a_tensor_the_index_does_not_name_is_there_all_the_same(sharded):
    safetensors.numpy.save_file(arrays("c", "extra"), sharded / "model-00002-of-00002.safetensors")
    assert open_checkpoint(sharded).tensors.keys() == {"a", "b", "c", "extra"}  # as in transformers


def test_the_index_decides_between_two_shards_with_one_name(sharded):
    twice = arrays("b") | {"c": np.zeros(1, np.float32), "a": np.ones(1, np.float32)}
    safetensors.numpy.save_file(twice, sharded / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(
        arrays("c") | {"a": np.zeros(1, np.float32)}, sharded / "model-00002-of-00002.safetensors"
    )
    tensors = open_checkpoint(sharded).tensors
    assert tensors["c"].shape == (2, 3)
    assert tensors["a"].numpy() == 1


def test_generation_config_is_read(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert open_checkpoint(folder).generation_config == {"eos_token_id": [1, 2]}


def test_nan_and_infinity_in_a_config(folder):
    (folder / "config.json").write_text('{"a": NaN, "b": -Infinity}')
    config = open_checkpoint(folder).config
    assert np.isnan(config["a"])
    assert config["b"] == -np.inf


def test_missing_folder(tmp_path):
    for path in (tmp_path / "none", str(tmp_path / "none"), "./none", "~/none/none", "a/b/none"):
        with pytest.raises(CheckpointError, match="none: no such folder; pass a model's folder"):
            open_checkpoint(path)


def test_an_empty_folder(tmp_path):
    assert "expected config.json, got no such file; pass the folder with config.json" in fails(tmp_path)


def test_no_config(folder):
    (folder / "config.json").unlink()
    message = fails(folder)
    assert message.startswith(f"{folder}: expected config.json, got no such file; download")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"model_type: llama", "expected JSON"),
        (b"{'model_type': 'llama'}", "expected JSON"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"[]", "expected a JSON object, got []"),
        (b'"llama"', "expected a JSON object, got 'llama'"),
        (b"null", "expected a JSON object, got None"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "digits"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_no_json_object(folder, name, text, says):
    (folder / name).write_bytes(text)
    message = fails(folder, ConfigError)
    assert message.startswith(f"{folder / name}: expected")
    assert says in message


def test_a_config_of_endless_size(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(10**10)
    assert "expected at most 100000000 bytes of JSON, got more; " in fails(folder, ConfigError)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    message = fails(folder)
    assert message.startswith(f"{folder}: expected model.safetensors, got no such file; pass the folder with")


def test_a_missing_shard_is_named_with_the_index(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert fails(sharded) == (
        f"{sharded}: expected model-00002-of-00002.safetensors, as {INDEX} says, got no such file; "
        "download the folder again"
    )


def test_many_missing_shards_make_a_short_message(sharded):
    weight_map = {f"x{i}": f"model-{i:05d}-of-00500.safetensors" for i in range(500)}
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00002-of-00500.safetensors and 497 more, as" in fails(sharded)


def test_a_link_into_a_cache_that_was_cleaned(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "0123")
    assert "expected model.safetensors, got no such file" in fails(folder)


def test_a_tensor_that_the_index_promises(sharded):
    safetensors.numpy.save_file(arrays("z"), sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match=f"^c: expected in model-00002-of-00002.safetensors, as {INDEX} says"):
        _ = open_checkpoint(sharded).tensors


def test_an_index_that_leaves_the_folder(sharded):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert f"{INDEX}: 'a': expected a .safetensors file in the same folder, got '../" in fails(sharded)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, '{"weight_map": {"a": 1}}'])
def test_a_broken_index(sharded, text):
    (sharded / INDEX).write_text(text)
    assert fails(sharded).startswith(str(sharded / INDEX))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", 'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained('),
        ("consolidated.00.pth", 'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained('),
        ("model.Q8_0.gguf", "GGUF files are not read: pass the safetensors folder"),
        ("model.safetensors.incomplete", "a download broke off: run it again"),
        (".cache/huggingface/download/x.0123.incomplete", "a download broke off: run it again"),
        ("consolidated.safetensors", "download the folder again"),
    ],
)
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_weights_of_another_kind_tell_the_way_out(tmp_path, missing, name, says):
    if missing != "config.json":
        (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    message = fails(tmp_path)
    assert f"expected {missing}, got no such file; " in message
    assert says.format(folder=tmp_path) in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "pass the folder that holds it: {folder}"),
        ("config.json", "pass the folder that holds it: {folder}"),
        ("model.gguf", "GGUF files are not read"),
    ],
)
def test_a_file_instead_of_a_folder(folder, name, says):
    (folder / name).touch()
    message = fails(folder / name)
    assert message.startswith(f"{folder / name}: expected a model folder, got a file; ")
    assert says.format(folder=folder) in message


@pytest.mark.parametrize("what", ["", "config.json", "model.safetensors"])
def test_no_permission(folder, what):
    (folder / what).chmod(0)
    try:
        if os.access(folder / what, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(CheckpointError):
            _ = open_checkpoint(folder).tensors
    finally:
        (folder / what).chmod(0o700)
