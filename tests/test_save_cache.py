"""Kept texts in a file: what comes back is what went in, and nothing else comes in."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import russet
from random_model import random_config, random_weights
from russet import CheckpointError, NotEnoughMemory, UsageError, saved_cache
from russet.backends.cpu import CpuBackend
from russet.model import DEMO

TEXTS = ("It was a dark night " * 20, "It was a dark night " * 12 + "and the wind was", "Once")


def ids_of(model, text):
    return model.tokenizer.encode(text)


def ask(model, prompt):
    return list(model.stream(prompt, max_tokens=8, temperature=0, ignore_eos=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo in a folder of its own."""
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="module")
def saved(folder):
    """A model, the file of its texts, and what it said."""
    model = russet.load(folder)
    said = [ask(model, text) for text in TEXTS]
    path = folder.parent / "texts.safetensors"
    model.save_cache(path)
    return model, path, said


def copy_of(path, tmp_path, *, metadata=None, **arrays):
    """The file with other metadata, or other tensors; None: without this one."""
    with safe_open(path, "np") as file:
        said = file.metadata() | (metadata or {})
    tensors = load_file(path) | {name.replace("_", "."): array for name, array in arrays.items()}
    changed = tmp_path / "changed.safetensors"
    save_file({name: array for name, array in tensors.items() if array is not None}, changed, said)
    return changed


# ---- there and back ----


def test_another_process_goes_on_where_this_one_was(saved, folder):
    _, path, said = saved
    model = russet.load(folder)
    model.load_cache(path)
    info = model.cache_info()
    assert info["n_texts"] == len(TEXTS)
    for text, before in zip(TEXTS, said, strict=True):
        again = ask(model, text)
        assert [piece.token for piece in again] == [piece.token for piece in before]
        assert (again[0].cached_tokens, again[0].cache_miss) == (len(ids_of(model, text)) - 1, None)
    model.clear_cache()
    assert model.cache_bytes() == 0


def test_the_file_has_every_shared_block_once(saved):
    model, path, _ = saved
    with safe_open(path, "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    info = model.cache_info()
    assert shapes["blocks"] == [info["n_blocks"], info["block_bytes"]]
    assert metadata["kv_dtype"] == "float16"
    assert len(metadata["rotated"].split()) == sum(name.endswith(".tokens") for name in shapes)


@pytest.mark.parametrize(("windows", "n_sinks"), [((0, 0), 0), ((5, 70), 0), ((5, 70), 4), ((70, 5), 65)])
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8", "int8/int4"])
def test_the_same_bits_come_back(windows, n_sinks, kv_dtype, tmp_path):
    config = random_config(layer_window=windows, n_sinks=n_sinks)
    backend = CpuBackend(config, random_weights(config), threads=1, kv_dtype=kv_dtype, cache_bytes=10**7)
    text = [i % 50 for i in range(200)]
    session = backend.session(300)
    for begin in range(0, 200, 20):
        session.forward(text[begin : begin + 20])
    part = session.fork(190)
    kept = [saved_cache.SavedText(text[:190], part.cache, "short"), saved_cache.SavedText(text, session.cache, "short")]
    saved_cache.save(tmp_path / "x", {"format": "x"}, backend.pool, config, kept)
    n_in_use = backend.pool.info["n_in_use"]
    file = saved_cache.read(tmp_path / "x", {"format": "x"}, backend.pool.info["block_bytes"], config, 300)
    (short, a, _), (long, b, _) = backend.restore(file, 300)
    assert (short, long) == (text[:190], text)
    assert backend.pool.info["n_in_use"] == 2 * n_in_use  # what the two share, they share again
    np.testing.assert_array_equal(a.forward([7, 8]), part.forward([7, 8]))
    np.testing.assert_array_equal(b.forward([7, 8]), session.forward([7, 8]))
    assert [s.can_rewind(60) for s in (b, session)] == [not any(windows)] * 2
    del a, b, part, session, kept
    assert backend.pool.info["n_in_use"] == 0


def test_a_prompt_can_be_computed_for_the_file_alone(folder, tmp_path):
    model = russet.load(folder)
    model.generate("Once", max_tokens=3)
    model.save_cache(tmp_path / "prompt", prompt=TEXTS[0])
    other = russet.load(folder)
    other.load_cache(tmp_path / "prompt")
    assert other.cache_info()["n_texts"] == 1
    assert next(other.stream(TEXTS[0] + " again", max_tokens=1)).cached_tokens >= len(ids_of(model, TEXTS[0])) - 1
    assert next(other.stream("Once", max_tokens=1)).cached_tokens == 0


def test_a_copy_of_the_model_is_that_model(saved, tmp_path):
    _, path, _ = saved
    model = russet.load(shutil.copytree(DEMO, tmp_path / "copy"))
    model.load_cache(path)
    assert model.cache_info()["n_texts"] == len(TEXTS)


# ---- what is refused, and leaves nothing behind ----


def check_refused(model, path, error, message):
    model.clear_cache()
    with pytest.raises(error, match=message):
        model.load_cache(path)
    assert model.cache_info()["n_blocks"] == model.cache_info()["n_texts"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_dtype": "float32"}, "kv_dtype: expected 'float32', got 'float16'; load the model it was saved with"),
        ({"kv_window": 100}, r"windows: expected '100 100 100 100, 4 sinks', got '0 0 0 0, 0 sinks'"),
        ({"attention": "sage"}, "attention: expected 'sage', got 'exact'"),
        ({"quantize": "int8"}, r"quantization: expected 'Quantization\(bits=8.*', got 'as stored'"),
    ],
)
def test_a_model_that_is_loaded_otherwise(options, message, saved, folder):
    check_refused(russet.load(folder, **options), saved[1], CheckpointError, message)


def other_weights(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(bytes(2))


def other_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")


def other_setting(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_weights, "weights"),
        (other_tokenizer, "tokenizer"),
        (other_setting(rope_theta=5000.0, rope_parameters=None, rope_scaling=None), "rope"),
        (other_setting(rms_norm_eps=0.5), "model"),
    ],
    ids=["weights", "tokenizer", "rope", "model"],
)
def test_another_model(change, field, saved, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "other")
    change(folder)
    check_refused(russet.load(folder), saved[1], CheckpointError, f"texts.safetensors: {field}: expected ")


def test_another_layout(saved, tmp_path):
    model, path, _ = saved
    changed = copy_of(path, tmp_path, metadata={"layout": "0"})
    check_refused(russet.load(model.checkpoint.path), changed, CheckpointError, "layout: expected '1', got '0'")


def damages():
    """Name -> what makes of the tensors of a good file those of a damaged one."""
    return {
        "no blocks": lambda t: {"blocks": None},
        "blocks too small": lambda t: {"blocks": t["blocks"][:, :-64].copy()},
        "one block less": lambda t: {"blocks": t["blocks"][:-1].copy()},
        "no tokens": lambda t: {"texts_0_tokens": None},
        "empty tokens": lambda t: {"texts_0_tokens": t["texts.0.tokens"][:0].copy()},
        "foreign tokens": lambda t: {"texts_0_tokens": t["texts.0.tokens"] + np.uint32(2**31)},
        "floats": lambda t: {"texts_0_tokens": t["texts.0.tokens"].astype(np.float32)},
        "flat tables": lambda t: {"texts_0_tables": t["texts.0.tables"].reshape(-1)},
        "a layer less": lambda t: {"texts_0_tables": t["texts.0.tables"][:-1].copy()},
        "a hole": lambda t: {"texts_0_tables": np.zeros_like(t["texts.0.tables"])},
        "a hole in one head": lambda t: {"texts_0_tables": with_zero(t["texts.0.tables"])},
        "more": lambda t: {"more": np.zeros(1, np.uint8)},
    }


def with_zero(tables):
    changed = tables.copy()
    changed[-1, -1, -1] = 0
    return changed


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file(damage, saved, tmp_path):
    model, path, _ = saved
    changed = copy_of(path, tmp_path, **damages()[damage](load_file(path)))
    check_refused(russet.load(model.checkpoint.path), changed, CheckpointError, "the file is damaged")


def test_a_file_cut_anywhere(saved, tmp_path):
    model, path, _ = saved
    whole, cut = path.read_bytes(), tmp_path / "cut"
    for n_bytes in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:n_bytes])
        check_refused(model, cut, CheckpointError, "cut: ")


def test_no_such_file(demo, tmp_path):
    with pytest.raises(CheckpointError, match="nothing of that name"):
        demo.load_cache(tmp_path / "none")


def test_what_does_not_fit(saved, folder):
    model, path, _ = saved
    check_refused(russet.load(folder, n_ctx=64), path, russet.ContextFull, "does not fit n_ctx=64; load with a larger")
    n_tokens = 128
    n_bytes = model.checkpoint.n_bytes + n_tokens * model.cache_bytes_per_token
    tight = russet.load(folder, n_ctx=n_tokens, max_memory=n_bytes)
    check_refused(tight, path, NotEnoughMemory, r"cache: \d+ kB more .*, 0 kB of \d+ kB are in use")


def test_what_cannot_be_saved(folder, tmp_path):
    model = russet.load(folder)
    with pytest.raises(UsageError, match="save_cache: no text is kept; generate one first"):
        model.save_cache(tmp_path / "none")
    with pytest.raises(UsageError, match=r"save_cache: with kv_budget=0.5 texts have holes; take 1"):
        russet.load(folder, kv_budget=0.5).save_cache(tmp_path / "none")
    with pytest.raises(UsageError, match="load_cache: prefix_cache=0 keeps no texts"):
        russet.load(folder, prefix_cache=0).load_cache(tmp_path / "none")
    model.generate("Once", max_tokens=2)
    with pytest.raises(CheckpointError, match="cannot be written"):
        model.save_cache(tmp_path / "no" / "such" / "folder")
    assert os.listdir(tmp_path) == []


def test_the_cpu_alone_saves(tmp_path):
    pytest.importorskip("mlx.core")
    model = russet.load(backend="mlx")
    for call in (model.save_cache, model.load_cache):
        with pytest.raises(
            russet.BackendError, match="only the CPU's cache can be saved, not mlx's; use backend='cpu'"
        ):
            call(tmp_path / "x")
