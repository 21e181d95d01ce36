"""Random and damaged files: nothing but our errors, and the same verdict as the `safetensors` library."""

import json
import os
import struct
import time

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from russet.checkpoint import open_checkpoint
from russet.errors import CheckpointError
from russet.safetensors import NUMPY_DTYPES, read_metadata, read_safetensors

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("RUSSET_FUZZ_SECONDS", "3"))  # of each test


def fuzz(examples, check):
    """Call check() with ever new examples until the time is up; hypothesis itself only counts examples."""
    options = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        options(given(examples)(check))()


def file_of(header, data, n_header=None):
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if n_header is None else n_header) + raw + data


vast = [2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400]
numbers = st.integers(0, 9) | st.sampled_from(vast)
words = st.text(max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | numbers | numbers.map(int.__neg__) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
dtypes = st.sampled_from([name.upper() for name in NUMPY_DTYPES])


@st.composite
def good_parts(draw):
    """A header as an object, and its data: tensors without gaps, named in any order."""
    header, begin = {}, 0
    for name in draw(st.lists(words, unique=True, max_size=4)):
        dtype = draw(dtypes)
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        n_bytes = NUMPY_DTYPES[dtype.lower()].itemsize
        for n in shape:
            n_bytes *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + n_bytes]}
        begin += n_bytes
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.none() | st.dictionaries(words, words))
    header = dict(draw(st.permutations(list(header.items()))))
    return header, draw(st.binary(min_size=begin, max_size=begin))


good_files = good_parts().map(lambda parts: file_of(*parts))


@st.composite
def odd_files(draw):
    """A good file with some parts of its header replaced, so that every check is reached."""
    header, data = draw(good_parts())
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*header, "new"]))
        entry = header.get(name)
        match draw(st.sampled_from(["entry", "field", "number", "tensor"])):
            case "field" if isinstance(entry, dict):
                key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "unknown"]))
                entry[key] = draw(anything | dtypes)
            case "number" if isinstance(entry, dict):
                row = entry.get(draw(st.sampled_from(["shape", "data_offsets"])))
                if isinstance(row, list) and row:
                    row[draw(st.integers(0, len(row) - 1))] = draw(numbers)
            case "tensor":
                shape = draw(st.lists(numbers, max_size=3))
                offsets = draw(st.lists(numbers, min_size=2, max_size=2))
                header[name] = {"dtype": draw(dtypes), "shape": shape, "data_offsets": offsets}
            case _:
                header[name] = draw(anything)
    n_header = draw(numbers) if draw(st.integers(0, 9)) == 0 else None
    return file_of(header, data, n_header if n_header is None or n_header < 2**64 else 0)


@st.composite
def damaged_files(draw):
    """A good file with bytes changed, put in or taken out."""
    raw = bytearray(draw(good_files))
    tokens = st.sampled_from([b"[", b"{", b"}", b"1e", b"-", b'"', b"\\u"])
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(raw)))
        raw[begin : begin + draw(st.integers(0, 3))] = draw(st.binary(max_size=3) | tokens)
    return bytes(raw)


def library_reads(raw):
    """What the library makes of the bytes: {name: (dtype, shape, data)}, or None where it refuses them."""
    try:
        tensors = safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"].lower(), tuple(t["shape"]), bytes(t["data"])) for name, t in tensors}


def is_known_difference(raw):
    """Whether the reader, by its own word, refuses the file although the library reads it."""
    twice = []

    def look(pairs):
        twice.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")], object_pairs_hook=look)
    header.pop("__metadata__", None)
    return any(twice) or any(
        not isinstance(entry, dict) or str(entry["dtype"]).lower() not in NUMPY_DTYPES for entry in header.values()
    )


def test_same_verdict_and_content_as_the_library(tmp_path):
    path = tmp_path / "model.safetensors"
    n_read = n_refused = 0

    def check(raw):
        nonlocal n_read, n_refused
        path.write_bytes(raw)
        expected = library_reads(raw)
        try:
            tensors = read_safetensors(path)
            read_metadata(path)
        except CheckpointError:
            n_refused += 1
            assert expected is None or is_known_difference(raw)
            return
        n_read += 1
        assert {t.name: (t.dtype, t.shape, bytes(t.data)) for t in tensors.values()} == expected
        for tensor in tensors.values():
            try:
                array = tensor.numpy()
            except CheckpointError:  # a shape beyond numpy
                assert tensor.nbytes == 0
                assert max(tensor.shape) > 2**30
            else:
                assert array.tobytes() == bytes(tensor.data)
                assert array.flags.aligned

    any_bytes = st.binary(max_size=60) | anything.map(lambda value: file_of(value, b""))
    fuzz(good_files | odd_files() | damaged_files() | any_bytes, check)
    print(f"{n_read} read, {n_refused} refused")
    assert n_read > 0
    assert n_refused > 0


def test_any_bytes_in_the_json_files_of_a_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    others = [tmp_path / "config.json", tmp_path / "generation_config.json"]
    weights = [tmp_path / "model.safetensors", tmp_path / "shard.safetensors"]
    weight_maps = st.dictionaries(words, anything | st.just("shard.safetensors"), max_size=2)
    values = (
        anything
        | st.dictionaries(words, anything, max_size=4)
        | weight_maps.map(lambda weight_map: {"weight_map": weight_map})
    )
    texts = st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode())
    n_opened = n_refused = 0

    def check(example):
        nonlocal n_opened, n_refused
        path, raw = example
        for file in others:
            file.write_text("{}")
        for file in weights:
            file.write_bytes(file_of({}, b""))
        path.write_bytes(raw)
        if path == index:
            weights[0].unlink()
        try:
            _ = open_checkpoint(tmp_path).tensors
        except CheckpointError:
            n_refused += 1
        else:
            n_opened += 1
            assert isinstance(json.loads(raw), dict)

    fuzz(st.tuples(st.sampled_from([index, *others]), texts), check)
    print(f"{n_opened} opened, {n_refused} refused")
    assert n_opened > 0
    assert n_refused > 0
