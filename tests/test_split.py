"""A model whose first layers run in MLX and whose others run on the CPU, against the CPU alone."""

import importlib.util
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import russet
from quantisable_models import dequantized, make_quantisable
from russet import NotEnoughMemory, UsageError, memory
from russet.backends.cpu import CpuBackend
from russet.backends.mlx import probe
from russet.backends.part import part_of
from russet.errors import BackendError
from russet.weights import held_bytes
from session_promises import check_chunks_ragged_batches_and_rewinding, check_several_texts
from tiny_models import bound, greedy, load, make_case, prompt_of

if importlib.util.find_spec("mlx") is None:
    pytest.skip("mlx is not installed", allow_module_level=True)

from russet.backends import split as split_backend
from russet.backends.mlx import backend as mlx_backend
from russet.backends.mlx.backend import MlxBackend
from russet.backends.split import SplitBackend

torch.set_num_threads(1)

#: The largest difference of logits that are the same but for the order of float32 sums, in parts of their spread: as in
#: test_families.py.
SAME = 2e-4


def difference(logits, expected):
    return np.abs(logits - expected).max() / np.ptp(expected)


def logits_of(backend, prompt):
    return backend.session(len(prompt)).forward(prompt, all_logits=True)


# ---- at every layer ----


# Learned positions and LayerNorm; layers of two kinds, scaled embeddings, softcaps; rope by the core's tables.
@pytest.mark.parametrize(("family", "case"), [("gpt2", 0), ("gemma2", 0), ("gemma3", 0), ("llama", 3)])
def test_split_at_every_layer(family, case, tmp_path):
    make_case(tmp_path, family, case)
    config, cpu = load(tmp_path)
    prompt = prompt_of(70)
    expected = logits_of(cpu, prompt)
    tokens, _ = greedy(config, cpu.session(60), prompt[:25], 30)
    for gpu_layers in range(1, config.n_layers):
        split = SplitBackend(*bound(tmp_path), gpu_layers, threads=1)
        assert difference(logits_of(split, prompt), expected) < SAME
        assert greedy(config, split.session(60), prompt[:25], 30)[0] == tokens
        assert split.weight_bytes == cpu.weight_bytes
    assert gpu_layers > 1


def test_stories_split_at_every_layer(stories, stories_folder):
    ids = stories.tokenizer.encode("Once upon a time")
    expected = stories.generate_tokens(ids, max_tokens=60, temperature=0, ignore_eos=True)
    whole = stories.logits(ids)
    for gpu_layers in range(stories.config.n_layers + 1):
        split = russet.load(stories_folder / "hf", backend="mlx", gpu_layers=gpu_layers)
        assert split.backend.name == {0: "cpu", stories.config.n_layers: "mlx"}.get(gpu_layers, "mlx+cpu")
        assert difference(split.logits(ids), whole) < SAME
        assert split.generate_tokens(ids, max_tokens=60, temperature=0, ignore_eos=True) == expected


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_affine_groups(quantize, tmp_path):
    make_quantisable(tmp_path, "qwen3")
    config, groups = bound(tmp_path, quantize=quantize)
    floats = dequantized(groups)
    prompt = prompt_of(40)
    cpu, exact = (logits_of(CpuBackend(config, weights, threads=1), prompt) for weights in (groups, floats))
    for gpu_layers in range(1, config.n_layers):
        # In the first layers alone: MLX keeps activations as floats.
        first = tuple(f"layers.{i}." for i in range(gpu_layers))
        mixed = {role: (groups if role.startswith(first) else floats)[role] for role in floats}
        assert difference(logits_of(SplitBackend(config, mixed, gpu_layers, threads=1), prompt), exact) < SAME
        # In all: the CPU rounds activations to int8, in fewer layers than it alone would. Measured: 0.4 to 1.0 of that.
        split = SplitBackend(config, groups, gpu_layers, threads=1)
        assert SAME < difference(logits_of(split, prompt), exact) < 1.5 * difference(cpu, exact)


def test_half_precision_is_of_the_first_half_alone(tmp_path):
    make_case(tmp_path, "qwen3", 0, gain=1.0)
    prompt = prompt_of(40)
    expected = logits_of(load(tmp_path)[1], prompt)
    config, weights = bound(tmp_path)
    off = [
        difference(logits_of(SplitBackend(config, weights, n, dtype="float16"), prompt), expected)
        for n in range(1, config.n_layers)
    ]
    assert all(SAME / 100 < d < 8 * 2**-10 for d in off)


# ---- a session's promises ----


@pytest.fixture(scope="module")
def split() -> russet.Model:
    return russet.load(backend="mlx", dtype="float32", gpu_layers=2, n_ctx=64)


def test_chunks_ragged_batches_and_rewinding(split, demo):
    check_chunks_ragged_batches_and_rewinding(split, demo, SAME)


def test_several_texts_of_one_prompt(split, demo):
    check_several_texts(split, demo, max_tokens=20)


def test_a_prompt_of_several_chunks(split, demo, monkeypatch):
    monkeypatch.setattr(mlx_backend, "_CHUNK_TOKENS", 10)
    ids = prompt_of(37, vocab_size=2000)
    whole = demo.session().forward(ids, all_logits=True)
    assert difference(split.session().forward(ids), whole[-1:]) < SAME
    assert difference(split.session().forward(ids, all_logits=True), whole) < SAME


def test_threads_are_those_of_the_cpu(split):
    before = split.session()
    split.backend.n_threads = 2
    assert split.backend.n_threads == 2
    assert difference(before.forward([1, 2]), split.session().forward([1, 2])) < SAME
    with pytest.raises(UsageError, match="threads: expected 1 to 1024, got 0"):
        split.backend.n_threads = 0


def test_what_a_session_refuses(split):
    session = split.session()
    session.forward(prompt_of(63))
    assert session.append_greedy(1) >= 0
    for append in (lambda: session.forward([1]), lambda: session.append_greedy(1)):
        with pytest.raises(russet.ContextFull, match="64 tokens in the context and 1 more make 65, n_ctx is 64"):
            append()
    session.rewind(10)
    for wrong in (2048, -1):
        with pytest.raises(UsageError, match=f"^token id {wrong}: expected 0 to 2047$"):
            session.forward([wrong])
    for n_tokens in (11, -1):
        with pytest.raises(UsageError, match=f"truncate: expected 0 to 10 tokens, got {n_tokens}"):
            session.rewind(n_tokens)
    with pytest.raises(UsageError, match="one cache appears twice"):
        split.backend.forward([(session, [1]), (session, [2])])
    with pytest.raises(TypeError, match="expected sessions of this backend"):
        split.backend.forward([(russet.load().session(), [1])])
    assert session.n_tokens == 10


def test_positions_that_were_never_learned(tmp_path):
    make_case(tmp_path, "gpt2", 0)
    session = SplitBackend(*bound(tmp_path), 1).session(200)
    session.forward(prompt_of(160))
    with pytest.raises(russet.ContextFull, match="161 tokens: the model knows only 160 positions"):
        session.append_greedy(1)
    assert session.n_tokens == 160


# ---- halves that overlap ----


@pytest.fixture
def overlapped(monkeypatch) -> russet.Model:
    monkeypatch.setattr(split_backend, "_OVERLAP_TOKENS", 10)
    return russet.load(backend="mlx", dtype="float32", gpu_layers=2, n_ctx=64, overlap_prefill=True)


@pytest.mark.parametrize("all_logits", [False, True])
def test_overlapped_halves_give_the_same_bits(all_logits, overlapped, split):
    ids = prompt_of(37, vocab_size=2000)
    session, one_by_one = overlapped.session(), split.session()
    logits = session.forward(ids, all_logits=all_logits)
    chunks = [one_by_one.forward(ids[i : i + 10], all_logits=all_logits) for i in range(0, 37, 10)]
    np.testing.assert_array_equal(logits, np.concatenate(chunks) if all_logits else chunks[-1])
    assert session.n_tokens == 37
    np.testing.assert_array_equal(session.forward([5]), one_by_one.forward([5]))


def test_overlapped_halves_work_at_once(overlapped, monkeypatch):
    """MLX ends its second chunk while the CPU is at the first: else this waits in vain."""
    chunks, second = [], threading.Event()
    hidden, run = overlapped.backend._mlx.hidden, overlapped.backend._cpu.run

    def noted(parts):
        chunks.append(hidden(parts))
        if len(chunks) == 2:
            second.set()
        return chunks[-1]

    def waiting(*args):
        assert second.wait(60)
        return run(*args)

    monkeypatch.setattr(overlapped.backend._mlx, "hidden", noted)
    monkeypatch.setattr(overlapped.backend._cpu, "run", waiting)
    assert overlapped.session().forward(prompt_of(30)).shape == (1, overlapped.config.vocab_size)


def test_an_overlapped_prompt_that_fails_leaves_the_session_as_it_was(overlapped, monkeypatch):
    session, ids = overlapped.session(), prompt_of(60)
    session.forward(ids[:5])
    run, calls = overlapped.backend._cpu.run, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args)

    with monkeypatch.context() as during:
        during.setattr(overlapped.backend._cpu, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.forward(ids[5:])
    assert session.n_tokens == 5
    with pytest.raises(russet.ContextFull, match="n_ctx is 64"):
        session.forward(ids)  # the fourth chunk does not fit
    assert session.n_tokens == 5
    assert difference(session.forward(ids[5:]), overlapped.session().forward(ids)) < SAME


# ---- what fails between the halves ----


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), BackendError("no more")])
def test_a_second_half_that_fails_takes_the_first_back(raised, split, monkeypatch):
    ids = prompt_of(20)
    expected = split.session().forward(ids)
    session, other = split.session(), split.session()
    session.forward(ids[:5])

    def fail(*args, **options):
        raise raised

    with monkeypatch.context() as during:
        during.setattr(split.backend._cpu, "run", fail)
        with pytest.raises(type(raised)):
            split.backend.forward([(session, [7, 8, 9]), (other, [7])])
    assert (session.n_tokens, other.n_tokens) == (5, 0)
    assert difference(session.forward(ids[5:]), expected) < SAME
    assert session.cache_bytes() == (20 + 64) // 2 * split.cache_bytes_per_token  # half of the layers have blocks of 64


def test_a_first_half_that_fails_loses_what_both_held(split, monkeypatch):
    ids = prompt_of(20)
    session = split.session()
    session.forward(ids[:5])

    def fail(*args):
        raise RuntimeError("[METAL] Command buffer execution failed: Timeout")

    with monkeypatch.context() as during:
        during.setattr(split.backend._mlx._forward, "hidden", fail)
        with pytest.raises(BackendError, match=r"^mlx: "):
            session.forward(ids[5:])
    assert session.n_tokens == 0
    assert difference(session.forward(ids), split.session().forward(ids)) < SAME


def test_text_so_far_and_the_same_again(split, monkeypatch):
    prompt = "Once upon a time there was"
    expected = split.generate(prompt, max_tokens=20, temperature=0)
    pieces = split.stream(prompt, max_tokens=20, temperature=0)
    text = "".join(next(pieces).text for _ in range(6))

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(split.backend._cpu, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    assert expected.startswith(text)
    assert split.generate(prompt, max_tokens=20, temperature=0) == expected


# ---- what a GPU can hold ----


def with_room(monkeypatch, working_set):
    found = probe.find()
    monkeypatch.setattr(probe, "find", lambda: replace(found, on_gpu=True, working_set=working_set))


def bytes_of_layers(model, n):
    """Of the embedding and the first n layers, with vectors in float32, and of a token's keys and values there."""
    names = ["model.embed_tokens.", *(f"model.layers.{i}." for i in range(n))]
    if n == model.config.n_layers:
        names.append("model.norm.")
    tensors = [tensor for name, tensor in model.checkpoint.tensors.items() if name.startswith(tuple(names))]
    weight_bytes = sum(tensor.nbytes if len(tensor.shape) == 2 else 4 * tensor.shape[0] for tensor in tensors)
    c = model.config
    return weight_bytes, n * 2 * c.n_kv_heads * c.head_dim * 2  # keys and values in bfloat16, as the checkpoint


@pytest.mark.parametrize("gpu_layers", [1, 3])
def test_what_goes_to_the_gpu_must_fit_there(gpu_layers, demo, monkeypatch):
    weight_bytes, token_bytes = bytes_of_layers(demo, gpu_layers)
    needed = weight_bytes + 64 * token_bytes
    with_room(monkeypatch, needed)
    assert russet.load(backend="mlx", gpu_layers=gpu_layers, n_ctx=64).n_ctx == 64
    with_room(monkeypatch, needed - 1)
    with pytest.raises(NotEnoughMemory) as caught:
        russet.load(backend="mlx", gpu_layers=gpu_layers, n_ctx=64)
    gb = memory.gb
    assert str(caught.value) == (
        f"gpu_layers={gpu_layers}: on the GPU, weights {gb(weight_bytes)} + cache {gb(64 * token_bytes)} for 64 "
        f"tokens = {gb(needed)}, but {gb(needed - 1)} may be used; "
        "load with fewer gpu_layers or a smaller n_ctx, or raise max_memory to try all the same"
    )
    assert russet.load(backend="mlx", gpu_layers=gpu_layers - 1, n_ctx=64).n_ctx == 64
    assert russet.load(backend="mlx", gpu_layers=gpu_layers, n_ctx=64, max_memory="1GB").n_ctx == 64


def test_the_context_is_as_long_as_fits_on_the_gpu(demo, monkeypatch):
    for gpu_layers in (1, 3, demo.config.n_layers):
        weight_bytes, token_bytes = bytes_of_layers(demo, gpu_layers)
        with_room(monkeypatch, weight_bytes + 320 * token_bytes - 1)
        assert russet.load(backend="mlx", gpu_layers=gpu_layers).n_ctx == 256  # in blocks of 64
    with_room(monkeypatch, 0)  # it does not say
    assert russet.load(backend="mlx", gpu_layers=2).n_ctx == demo.config.max_ctx


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_what_is_counted_is_what_is_taken(quantize, tmp_path):
    make_quantisable(tmp_path, "qwen3")
    config, weights = part_of(*bound(tmp_path, quantize=quantize), 0, 1)
    backend = MlxBackend(config, weights)
    table = weights["embed.w"]
    table_bytes = held_bytes({"embed.w": table})
    assert held_bytes(weights) == backend.layer_bytes + table_bytes


# ---- what cannot be ----


def test_what_cannot_be_is_refused():
    for gpu_layers in (-1, 5):
        with pytest.raises(UsageError, match=f"expected 0 to 4, all layers of this model, got {gpu_layers}"):
            russet.load(backend="mlx", gpu_layers=gpu_layers)
    for backend in ("cpu", "metal", "metal-sim"):
        with pytest.raises(UsageError, match=f"gpu_layers: MLX alone shares layers.*, got backend='{backend}'; take"):
            russet.load(backend=backend, gpu_layers=1)
    with pytest.raises(UsageError, match=r"overlap_prefill: .* say how many gpu_layers"):
        russet.load(backend="mlx", overlap_prefill=True)


def test_the_last_layers_need_an_x(split):
    cpu = split.backend._cpu
    session = cpu.session(8)
    with pytest.raises(UsageError, match="the last layers of a model, they need x of those before"):
        session.forward([1, 2])
    x = np.zeros((3, split.config.dim), np.float32)
    with pytest.raises(UsageError, match=rf"expected x \[2, {split.config.dim}\]"):
        cpu.run([(session.cache, [1, 2], 0, False)], x)
    assert session.n_tokens == 0
