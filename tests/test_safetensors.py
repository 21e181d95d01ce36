"""The mapped reader against the `safetensors` library, which writes the good files and judges the bad."""

import gc
import json
import mmap
import os
import re
import struct
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from russet.errors import CheckpointError
from russet.safetensors import (
    MAX_JSON_BYTES,
    NUMPY_DTYPES,
    read_index,
    read_json_object,
    read_metadata,
    read_safetensors,
)


@pytest.fixture
def write(tmp_path):
    """write(header, data) -> path. The header is an object or its bytes; n_header overrides its length."""

    def write(header, data=b"", n_header=None):
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw) if n_header is None else n_header) + raw + data)
        return path

    return write


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def library_accepts(path):
    try:
        safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return False
    return True


def test_reads_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    codes = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
    shapes = [(3, 5), (7,), (), (0, 4), (2, 1, 3)]
    arrays = {f"{code} {shape}": rng.integers(0, 100, shape).astype(code) for code in codes for shape in shapes}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "pt", "ключ": "文字"})

    tensors = read_safetensors(path)
    assert tensors.keys() == arrays.keys()
    for name, expected in arrays.items():
        found = tensors[name].numpy()
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape == tensors[name].shape
        assert found.tobytes() == expected.tobytes()
        assert tensors[name].nbytes == expected.nbytes
        assert (tensors[name].name, tensors[name].file) == (name, path)
    assert read_metadata(path) == {"format": "pt", "ключ": "文字"}


def test_bf16_and_8_bit_floats_come_as_their_bits(write):
    header = {"b": entry("BF16", [2], [0, 4]), "e": entry("F8_E4M3", [1, 2], [4, 6])}
    path = write(header, b"\x80\x3f\x00\xc0\x38\x40")
    tensors = read_safetensors(path)
    assert (tensors["b"].dtype, tensors["e"].dtype) == ("bf16", "f8_e4m3")
    np.testing.assert_array_equal(tensors["b"].numpy(), np.array([0x3F80, 0xC000], np.uint16))  # 1, -2
    np.testing.assert_array_equal(tensors["e"].numpy(), np.array([[0x38, 0x40]], np.uint8))


def test_every_dtype_of_whole_bytes_is_known_to_the_library(write):
    for name, dtype in NUMPY_DTYPES.items():
        path = write({"x": entry(name.upper(), [1], [0, dtype.itemsize])}, bytes(dtype.itemsize))
        assert library_accepts(path)
        assert read_safetensors(path)["x"].dtype == name


def test_tensors_come_in_the_order_of_their_bytes(write):
    path = write({"b": entry(shape=[2], offsets=[2, 4]), "a": entry(shape=[2], offsets=[0, 2])}, b"aabb")
    assert [(name, bytes(t.data)) for name, t in read_safetensors(path).items()] == [
        ("a", b"aa"),
        ("b", b"bb"),
    ]


def test_data_is_a_read_only_view_of_the_map_and_keeps_it_alive(write):
    path = write({"x": entry("F32", [2], [0, 8])}, struct.pack("<2f", 1, 2))
    tensor = read_safetensors(path)["x"]
    base = tensor.data
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    for array in (tensor.data, tensor.numpy()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    array = tensor.numpy()
    path.unlink()
    del tensor, base
    gc.collect()
    np.testing.assert_array_equal(array, [1, 2])


@pytest.mark.parametrize("pad", range(8))
def test_numpy_is_aligned_wherever_the_data_begins(write, pad):
    values = np.array([1.5, -2.5, 3.5])
    header = json.dumps({"x": entry("F64", [3], [0, 24])}).encode()
    header += b" " * (-len(header) % 8 + pad)
    tensor = read_safetensors(write(header, values.tobytes()))["x"]
    array = tensor.numpy()
    np.testing.assert_array_equal(array, values)
    assert array.flags.aligned
    assert not array.flags.writeable
    assert np.shares_memory(array, tensor.data) == (pad == 0)  # copied only where it must be


def test_a_large_file_costs_no_memory_until_it_is_read(tmp_path):
    """10 GB, most of it a hole on disk, opens at once; one element touches one page."""
    resource = pytest.importorskip("resource")
    n_bytes = 10 * 10**9
    header = json.dumps({"x": entry("F32", [n_bytes // 4], [0, n_bytes])}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + n_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_safetensors(path)["x"].numpy()[-1] == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 50e6


def deep(n):
    return b'{"x":' * n + b"1" + b"}" * n


U8 = entry()
BAD = {  # name: (header, data, what the message says)
    "JSON that ends early": (b'{"x": ', b"", "JSON header"),
    "no JSON": (b"\x00\x01\x02", b"", "JSON header"),
    "no UTF-8": (b'{"\xff": 1}', b"", "utf-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", b"", "BOM"),
    "an empty header": (b"", b"", "JSON header"),
    "text after the header": (b"{}x", b"", "Extra data"),
    "a zero after the header": (b"{}\0", b"", "Extra data"),
    "a list": (b"[]", b"", "JSON object as header, got \\[\\]"),
    "null": (b"null", b"", "JSON object as header, got None"),
    "deep nesting": (deep(100_000), b"", "recursion"),
    "deep nesting in a tensor": (json.dumps({"x": 1}).encode().replace(b"1", deep(100_000)), b"", "recursion"),
    "a huge whole number": (b'{"x": ' + b"9" * 100_000 + b"}", b"", "too large"),
    "a huge number": (b'{"x": 1e999}', b"", "too large"),
    "NaN": (b'{"x": NaN}', b"", "NaN is not a number"),
    "half a surrogate pair": (b'{"\\ud800": ' + json.dumps(U8).encode() + b"}", b"1234", "surrogates"),
    "a tensor that is a number": ({"x": 3}, b"", "an object with dtype"),
    "a tensor that is null": ({"x": None}, b"", "an object with dtype"),
    "no dtype": ({"x": {"shape": [4], "data_offsets": [0, 4]}}, b"1234", "an object with dtype"),
    "no shape": ({"x": {"dtype": "U8", "data_offsets": [0, 4]}}, b"1234", "an object with dtype"),
    "no offsets": ({"x": {"dtype": "U8", "shape": [4]}}, b"1234", "an object with dtype"),
    "an unknown dtype": ({"x": entry("F33")}, b"1234", "expected a dtype of BOOL U8 .*, got 'F33'"),
    "a lower-case dtype": ({"x": entry("u8")}, b"1234", "got 'u8'"),
    "a dtype that is a number": ({"x": entry(8)}, b"1234", "got 8"),
    "a shape that is a number": ({"x": U8 | {"shape": 4}}, b"1234", "a shape of whole numbers, got 4"),
    "a negative dimension": ({"x": entry(shape=[-4])}, b"1234", "a shape of whole numbers"),
    "two negative dimensions": ({"x": entry(shape=[-2, -2])}, b"1234", "a shape of whole numbers"),
    "minus zero": (b'{"x":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "a shape of whole"),
    "half a dimension": ({"x": entry(shape=[4.0])}, b"1234", "a shape of whole numbers"),
    "a dimension that is true": ({"x": entry(shape=[True, 4])}, b"1234", "a shape of whole numbers"),
    "a dimension in words": ({"x": entry(shape=["4"])}, b"1234", "a shape of whole numbers"),
    "three offsets": ({"x": entry(offsets=[0, 4, 4])}, b"1234", "data_offsets of two whole numbers"),
    "one offset": ({"x": entry(offsets=[4])}, b"1234", "data_offsets of two whole numbers"),
    "null offsets": ({"x": U8 | {"data_offsets": None}}, b"1234", "data_offsets of two whole numbers"),
    "a negative offset": ({"x": entry(offsets=[-4, 0])}, b"1234", "data_offsets of two whole numbers"),
    "offsets backwards": ({"x": entry(offsets=[4, 0])}, b"1234", "in order and inside the 4 bytes"),
    "offsets past the end": ({"x": entry(shape=[5], offsets=[0, 5])}, b"1234", "inside the 4 bytes"),
    "offsets past 2^63": ({"x": entry(offsets=[2**64 - 4, 2**64 - 1])}, b"1234", "inside the 4 bytes"),
    "offsets past 2^64": ({"x": entry(offsets=[2**64, 2**64 + 4])}, b"1234", "two whole numbers"),
    "10 GB promised by a small file": (
        {"x": entry("F32", [2_500_000_000], [0, 10_000_000_000])}, b"1234", "inside the 4 bytes",
    ),
    "a shape too small for its bytes": ({"x": entry(shape=[3])}, b"1234", "3 bytes for \\[3\\] u8, got 4"),
    "a shape too large for its bytes": ({"x": entry("F32", [4])}, b"1234", "16 bytes for \\[4\\] f32, got 4"),
    "a shape of 2^64 elements": ({"x": entry(shape=[2**32, 2**32])}, b"1234", "fewer than 2\\^64"),
    "a shape that wraps to its size": ({"x": entry(shape=[2**63, 2, 2, 4])}, b"1234", "fewer than 2\\^64"),
    "a shape vast before its zero": ({"x": entry(shape=[2**63, 2, 0], offsets=[0, 0])}, b"", "2\\^64"),
    "a hole at the start": ({"x": entry(offsets=[1, 5])}, b"12345", "data_offsets from 0 on"),
    "a hole in the middle": ({"x": entry(), "y": entry(offsets=[5, 9])}, b"123456789", "from 4 on"),
    "a hole at the end": ({"x": entry()}, b"12345", "4 bytes of tensors, as the header says, got 5"),
    "an overlap": ({"x": entry(), "y": entry(offsets=[3, 7])}, b"1234567", "from 4 on"),
    "the same bytes twice": ({"x": entry(), "y": entry()}, b"1234", "from 4 on"),
    "an empty one inside another": ({"x": entry(), "y": entry(shape=[0], offsets=[2, 2])}, b"1234", "4 on"),
    "metadata that is a list": ({"__metadata__": []}, b"", "__metadata__: expected an object of texts"),
    "metadata that is false": ({"__metadata__": False}, b"", "__metadata__: expected an object of texts"),
    "metadata with a number": ({"__metadata__": {"a": 1}}, b"", "__metadata__: expected an object of texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_refused_as_by_the_library(write, case):
    header, data, says = BAD[case]
    path = write(header, data)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_safetensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert re.fullmatch(".*: expected .*, got .*; .*", message)
    assert len(message) < 700
    assert not library_accepts(path)


TWICE = json.dumps(U8)[1:-1]
STRICTER = {
    "a tensor twice": b'{"x":{%b},"x":{%b}}' % (TWICE.encode(), TWICE.encode()),
    "a key twice in the metadata": b'{"__metadata__":{"a":"1","a":"2"},"x":{%b}}' % TWICE.encode(),
    "an unknown key twice": b'{"x":{%b,"y":1,"y":1}}' % TWICE.encode(),
    "a tensor as a list": b'{"x":["U8",[4],[0,4]]}',
    "a dtype as an object": b'{"x":{"dtype":{"U8":null},"shape":[4],"data_offsets":[0,4]}}',
    "a dtype of half bytes": json.dumps({"x": entry("F4", [8])}).encode(),
}


@pytest.mark.parametrize("case", STRICTER)
def test_stricter_than_the_library_where_the_module_says_so(write, case):
    path = write(STRICTER[case], b"1234")
    assert library_accepts(path)
    with pytest.raises(CheckpointError):
        read_safetensors(path)


GOOD = {
    "no tensors": ({}, b""),
    "no metadata": ({"__metadata__": None}, b""),
    "a scalar": ({"x": entry(shape=[], offsets=[0, 1])}, b"1"),
    "empty tensors": (
        {"x": U8, "y": entry(shape=[0], offsets=[4, 4]), "z": entry(shape=[3, 0], offsets=[0, 0])}, b"1234",
    ),
    "a vast shape without elements": ({"x": entry(shape=[0, 2**63, 4], offsets=[0, 0])}, b""),
    "2^63 doubles times zero": ({"x": entry("F64", [2**63, 0], [0, 0])}, b""),
    "a hundred dimensions": ({"x": entry(shape=[1] * 100, offsets=[0, 1])}, b"1"),
    "an unknown field": ({"x": entry(more={"a": [1, 2.5, -3, None]})}, b"1234"),
    "an empty name": ({"": U8}, b"1234"),
    "a name with a zero": ({"\0": U8}, b"1234"),
    "a name outside the first plane": ({"🦊": U8}, b"1234"),
    "white space around": (b" \n{}\t\r ", b""),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_odd_but_good(write, case):
    path = write(*GOOD[case])
    expected = dict(safetensors.deserialize(path.read_bytes()))
    found = read_safetensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert list(tensor.shape) == expected[name]["shape"]
        assert bytes(tensor.data) == bytes(expected[name]["data"])


@pytest.mark.parametrize("shape", [[1] * 100, [0, 2**63, 4]])
def test_a_shape_beyond_numpy_is_an_error_only_there(write, shape):
    n_bytes = int(0 not in shape)
    tensor = read_safetensors(write({"x": entry(shape=shape, offsets=[0, n_bytes])}, bytes(n_bytes)))["x"]
    with pytest.raises(CheckpointError, match="a shape that numpy can have"):
        tensor.numpy()


@pytest.mark.parametrize("n_bytes", range(8))
def test_shorter_than_a_header_length(tmp_path, n_bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(n_bytes))
    with pytest.raises(CheckpointError, match=f"expected 8 bytes .*, got {n_bytes}; the file is damaged"):
        read_safetensors(path)
    assert not library_accepts(path)


@pytest.mark.parametrize("n_header", [3, 92, MAX_JSON_BYTES, MAX_JSON_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_length_past_the_end(write, n_header):
    path = write(b"{}", n_header=n_header)
    says = "header of at most" if n_header > MAX_JSON_BYTES else f"header of {n_header} bytes"
    with pytest.raises(CheckpointError, match=says):
        read_safetensors(path)
    assert not library_accepts(path)


def test_every_truncation_of_a_good_file_is_refused(tmp_path):
    whole = safetensors.numpy.save({"a": np.arange(5, dtype=np.float32), "b": np.arange(3, dtype=np.int8)})
    path = tmp_path / "x.safetensors"
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(CheckpointError):
            read_safetensors(path)
    path.write_bytes(whole)
    assert len(read_safetensors(path)) == 2


def test_a_path_that_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: opening it would never return
    for path, got in [
        (tmp_path / "missing", "nothing of that name"),
        (tmp_path, "something else"),
        (tmp_path / "pipe", "something else"),
        (tmp_path / ("x" * 500), "nothing of that name"),
        (tmp_path / "a\0b", "nothing of that name"),
    ]:
        with pytest.raises(CheckpointError, match=f"expected a safetensors file, got {got}"):
            read_safetensors(path)


def test_a_file_that_may_not_be_read(write):
    path = write({})
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_safetensors(path)


def test_a_git_lfs_pointer_is_named_as_such(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456789\n")
    with pytest.raises(CheckpointError, match=f"git-lfs pointer .* run `git lfs pull` in {tmp_path}"):
        read_safetensors(path)
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        read_json_object(path)


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"x": None}}]
    + [
        {"weight_map": {"x": name}}
        for name in [
            "../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin",
            ".safetensors", "*.safetensors", "[a].safetensors", "a\0.safetensors", "a\n.safetensors",
            "\ud800.safetensors", "x" * 300 + ".safetensors", "model.safetensors\n", "",
        ]
    ],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(tmp_path, index):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{path}: .*expected a"):
        read_index(path)


def test_importing_the_reader_leaves_the_library_alone():
    assert safetensors.__file__ != read_safetensors.__code__.co_filename
    assert not hasattr(safetensors, "read_safetensors")
