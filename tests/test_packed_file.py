"""Packed weights kept beside a checkpoint: the same model from a memory map, never from a file that does not fit."""

import os
import shutil
import stat

import numpy as np
import pytest

import russet
from russet.errors import CheckpointError, UsageError
from russet.model import DEMO

TOKENS = list(range(1, 40))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "model")


def kept(folder):
    (file,) = (folder / ".russet").iterdir()
    return file


def logits(folder, **options):
    return russet.load(folder, **options).logits(TOKENS)


@pytest.mark.parametrize("how", ["int8", "int4", russet.Quantization(bits=4, overrides={"*embed*": "int8"})])
def test_a_kept_file_gives_the_same_bits(folder, how):
    first = logits(folder, quantize=how, keep_packed=True)
    before = kept(folder).stat()
    np.testing.assert_array_equal(logits(folder, quantize=how), first)
    np.testing.assert_array_equal(logits(folder, quantize=how, keep_packed=True), first)
    assert kept(folder).stat().st_mtime_ns == before.st_mtime_ns


def test_nothing_is_kept_unless_asked_for(folder):
    logits(folder, quantize="int8")
    logits(folder, keep_packed=True)  # nothing is quantised
    assert not (folder / ".russet").exists()


def test_the_demo_itself_is_left_alone():
    with pytest.raises(UsageError, match="keep_packed: the built-in demo keeps nothing"):
        russet.load(quantize="int8", keep_packed=True)


def test_each_way_to_quantise_has_a_file_of_its_own(folder):
    eight, four = (logits(folder, quantize=how, keep_packed=True) for how in ("int8", "int4"))
    assert len(list((folder / ".russet").iterdir())) == 2
    np.testing.assert_array_equal(logits(folder, quantize="int8"), eight)
    np.testing.assert_array_equal(logits(folder, quantize="int4"), four)


def test_another_checkpoint_is_not_mistaken_for_the_old(folder):
    old = logits(folder, quantize="int8", keep_packed=True)
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-4000:-2000] = bytes(2000)
    weights.write_bytes(damaged)
    os.utime(weights, ns=(1, 1))
    new = logits(folder, quantize="int8")
    assert not np.array_equal(old, new)
    np.testing.assert_array_equal(logits(folder, quantize="int8", keep_packed=True), new)  # written anew
    np.testing.assert_array_equal(logits(folder, quantize="int8"), new)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[: len(data) // 2],
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"!" + data[9:],
        lambda data: data[:8] + b"[]" + b" " * (int.from_bytes(data[:8], "little") - 2) + data[4096:],
        lambda data: data.replace(b'"offset": 0', b'"offset":-1', 1),
        lambda data: data.replace(b'"offset": 0', b'"offset": 8', 1),
        lambda data: data.replace(b'"bits": 8', b'"bits": 9', 1),
        lambda data: data.replace(b'"group_size": ', b'"group_size":-', 1),
        lambda data: data.replace(b'"n_cols"', b'"n_kols"', 1),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(folder, damage):
    logits(folder, quantize="int8", keep_packed=True)
    file = kept(folder)
    data = file.read_bytes()
    changed = damage(data)
    assert changed != data
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"int8-g128-symmetric\.packed: expected .*; delete the file"):
        russet.load(folder, quantize="int8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_named(folder):
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            russet.load(folder, quantize="int8", keep_packed=True)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_an_interrupted_write_leaves_nothing(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        russet.load(folder, quantize="int8", keep_packed=True)
    assert list((folder / ".russet").iterdir()) == []
