"""Files of kept texts with any numbers and words changed: loaded or refused, and what is loaded can be gone on with."""

import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from random_model import random_config, random_weights
from russet import saved_cache
from russet.backends.cpu import CpuBackend
from russet.errors import CheckpointError, ContextFull, NotEnoughMemory

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("RUSSET_FUZZ_SECONDS", "3"))

N_CTX = 200
numbers = st.integers(0, 12) | st.sampled_from([53, 2**31, 2**32 - 1])
#: Which tensor, what happens to it, where, and to what number.
changes = st.tuples(
    st.integers(0, 4),
    st.sampled_from(["number", "shape", "cut", "longer", "dtype", "gone", "name", "bytes"]),
    st.floats(0, 1),
    numbers,
)
rotated = st.sampled_from(["short short", "long short", "short", "", "short short short", "other", "short\nlong"])


def changed(tensors, which, what, where, number):
    """The tensors with one of them otherwise."""
    name = sorted(tensors)[which % len(tensors)]
    array = tensors.pop(name)
    flat = array.reshape(-1).copy()
    at = int(where * max(0, flat.size - 1))
    match what:
        case "number" if flat.size:
            flat[at] = number % (np.iinfo(flat.dtype).max + 1) if flat.dtype.kind in "ui" else number
            return tensors | {name: flat.reshape(array.shape)}
        case "shape":
            return tensors | {name: flat}
        case "cut":
            return tensors | {name: array[: max(0, len(array) - 1 - number % 3)].copy()}
        case "longer":
            return tensors | {name: np.concatenate([array, array])}
        case "dtype":
            return tensors | {name: array.astype(np.int64)}
        case "name":
            return tensors | {f"{name}x": array}
        case "bytes":
            rng = np.random.default_rng(number)
            return tensors | {name: rng.integers(0, 4, array.shape).astype(array.dtype)}
    return tensors


def test_any_change_of_a_file(tmp_path):
    config = random_config(layer_window=(0, 70))
    backend = CpuBackend(config, random_weights(config), threads=1, cache_bytes=10**6)
    text = [i % 50 for i in range(150)]
    session = backend.session(N_CTX)
    session.forward(text)
    texts = [saved_cache.SavedText(text[:n], session.fork(n).cache, "short") for n in (145, 150)]
    saved_cache.save(tmp_path / "good", {"format": "x"}, backend.pool, config, texts)
    good, path = load_file(tmp_path / "good"), tmp_path / "changed"
    del session, texts
    n_loaded = n_refused = 0

    def load():
        file = saved_cache.read(path, {"format": "x"}, backend.pool.info["block_bytes"], config, N_CTX)
        for tokens, loaded, _ in backend.restore(file, N_CTX):
            assert loaded.n_tokens == len(tokens)
            assert loaded.forward([1, 2]).shape == (1, config.vocab_size)

    def check(steps, said):
        nonlocal n_loaded, n_refused
        tensors = dict(good)
        for step in steps:
            if tensors:
                tensors = changed(tensors, *step)
        save_file(tensors, path, {"format": "x", "rotated": said})
        try:
            load()
            n_loaded += 1
        except (CheckpointError, ContextFull, NotEnoughMemory):
            n_refused += 1
        assert backend.pool.info["n_in_use"] == 0

    options = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        options(given(st.lists(changes, max_size=3), rotated)(check))()
    assert n_loaded > 10
    assert n_refused > 10
