"""The MLX backend from end to end, on MLX's CPU build: the graph is the one that a Mac's GPU runs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import russet
from quantisable_models import FOR_MLX, MLX_FAMILIES, QUANTISABLE, dequantized, make_quantisable, name_as_published
from russet import BackendError, UsageError
from russet.backends.cpu import CpuBackend
from russet.errors import NotEnoughMemory, NumericalError
from russet.generation import Conversation
from russet.model import DEMO
from russet.quantization import QuantizedTensor
from session_promises import check_chunks_ragged_batches_and_rewinding, check_several_texts
from tiny_models import (
    CASES,
    bound,
    expected_logits,
    greedy,
    load,
    longrope,
    make,
    make_case,
    prompt_of,
    shift_weights,
)

if importlib.util.find_spec("mlx") is None:
    pytest.skip("mlx is not installed", allow_module_level=True)

import mlx.core as mx

from russet.backends.mlx import backend as mlx_backend
from russet.backends.mlx.backend import MlxBackend

torch.set_num_threads(1)

PROMPT = "Once upon a time there was"

#: The largest difference of logits that are the same but for the order of float32 sums, in parts of their spread: as
#: for the CPU's families. Measured here: 3e-7 to 6e-6.
SAME = 2e-4

EPS = {"float32": SAME / 8, "float16": 2**-10, "bfloat16": 2**-7}


def difference(logits, expected):
    return np.abs(logits - expected).max() / np.ptp(expected)


def logits_of(backend, prompt):
    return backend.session(len(prompt)).forward(prompt, all_logits=True)


# ---- every family ----

FIRST = [pytest.param(family, 0, id=f"{family}-0") for family in CASES]
OTHERS = [
    pytest.param(family, case, id=f"{family}-{case}", marks=pytest.mark.slow)
    for family, cases in CASES.items()
    for case in range(1, len(cases))
]


@pytest.mark.parametrize(("family", "case"), FIRST + OTHERS)
def test_logits_and_64_greedy_tokens(family, case, tmp_path):
    theirs = make_case(tmp_path, family, case)
    config, cpu = load(tmp_path)
    mlx = MlxBackend(*bound(tmp_path))
    prompt = prompt_of(70)
    logits = logits_of(mlx, prompt)
    assert difference(logits, logits_of(cpu, prompt)) < SAME
    assert difference(logits, expected_logits(theirs, prompt)) < SAME
    assert mlx.weight_bytes == cpu.weight_bytes
    tokens, _ = greedy(config, mlx.session(100), prompt[:25], 64)
    assert tokens == greedy(config, cpu.session(100), prompt[:25], 64)[0]


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="f16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", CASES)
def test_half_precision(family, dtype, tmp_path):
    """Bounded as transformers is in test_families.py: some 20 roundings a layer."""
    make_case(tmp_path, family, 0, dtype=dtype, gain=1.0)
    mlx, (_, cpu) = MlxBackend(*bound(tmp_path)), load(tmp_path)
    assert mlx.dtype == ("bf16" if dtype == torch.bfloat16 else "f16")
    prompt = prompt_of(70)
    assert 0 < difference(logits_of(mlx, prompt), logits_of(cpu, prompt)) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", QUANTISABLE)
def test_affine_groups(family, quantize, tmp_path):
    make_quantisable(tmp_path, family)
    config, weights = bound(tmp_path, quantize=quantize)
    prompt = prompt_of(40)
    expected = logits_of(CpuBackend(config, dequantized(weights), threads=1), prompt)
    assert difference(logits_of(MlxBackend(config, weights), prompt), expected) < SAME


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 1e4}, longrope(5, 40)],
    ids=lambda rope: rope["rope_type"],
)
def test_far_positions(rope, tmp_path):
    """By MLX's rope and by the core's tables."""
    changes = {"max_position_embeddings": 1000} | ({"head_dim": 10} if "long_factor" in rope else {})
    make(tmp_path, "llama", rope_parameters=rope, num_attention_heads=3, **changes)
    mlx, (_, cpu) = MlxBackend(*bound(tmp_path)), load(tmp_path)
    prompt = prompt_of(1800)
    assert difference(logits_of(mlx, prompt), logits_of(cpu, prompt)) < SAME


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++ on a CPU")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "granite"])
def test_compiled_steps_compute_the_same(family, tmp_path):
    make_case(tmp_path, family, 0)
    plain, fused = (MlxBackend(*bound(tmp_path), fused=fused) for fused in (False, True))
    for prompt in (prompt_of(20), prompt_of(30)):
        assert difference(logits_of(fused, prompt), logits_of(plain, prompt)) < SAME


def test_layers_in_two_parts_are_the_whole(tmp_path):
    make_case(tmp_path, "qwen3", 0)
    forward = MlxBackend(*bound(tmp_path))._forward
    prompt, n_layers = prompt_of(20), len(forward.layers)

    def x(*cuts):
        cache = mlx_backend.Cache(forward.config, 30, forward.dtype)
        segments = [forward.segment(cache, 0, len(prompt))]
        x = forward.embedded(mx.array(prompt), segments)
        for begin, end in zip((0, *cuts), (*cuts, n_layers), strict=True):
            x = forward.through(x, segments, begin, end)
        return np.array(x)

    for layer in range(n_layers + 1):
        np.testing.assert_array_equal(x(layer), x())


# ---- trained models ----


@pytest.mark.parametrize("model", ["demo", "stories"])
def test_200_greedy_tokens_of_trained_models(model, request):
    cpu = request.getfixturevalue(model)
    folder = None if model == "demo" else request.getfixturevalue("stories_folder") / "hf"
    mlx = russet.load(folder, backend="mlx", dtype="float32")
    ids = cpu.tokenizer.encode(PROMPT)
    tokens, expected = (m.generate_tokens(ids, max_tokens=200, temperature=0, ignore_eos=True) for m in (mlx, cpu))
    assert len(expected) == 200
    assert tokens == expected


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [("float32", None), ("float32", "int8"), ("float16", None), ("bfloat16", None)]
    + [pytest.param(d, q, marks=pytest.mark.slow) for d in ("float16", "bfloat16") for q in ("int8", "int4")],
)
def test_agreement_on_the_likeliest_token(dtype, quantize, demo, record_property):
    """Along 200 tokens of the demo's own text, beside the CPU on the floats that the weights stand for."""
    text = demo.tokenizer.encode(PROMPT)
    text += demo.generate_tokens(text, max_tokens=200, temperature=0, ignore_eos=True)
    config, weights = bound(DEMO, quantize=quantize)
    expected = logits_of(CpuBackend(config, dequantized(weights)), text)
    logits = logits_of(MlxBackend(config, weights, dtype=dtype), text)
    agreement = float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))
    record_property("agreement", agreement)
    print(f"\n{dtype} {quantize}: {agreement:.1%}, off by {difference(logits, expected):.2g}")
    assert difference(logits, expected) < 8 * EPS[dtype]
    # Logits of 8 or 11 bits leave neighbours equal, and MLX's CPU build adds the products of affine groups in them.
    assert agreement >= {"float32": 1, "float16": 0.95, "bfloat16": 0.8}[dtype]


# ---- checkpoints that mlx-lm has written ----


@pytest.fixture
def mlx_lm(capsys):
    """mlx-lm's own logits and greedy tokens of a checkpoint."""
    utils = pytest.importorskip("mlx_lm.utils")
    from mlx_lm.generate import generate_step

    def run(folder, prompt, n_tokens):
        model, _ = utils.load_model(folder)
        logits = np.array(model(mx.array([prompt]))[0])
        return logits, [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=n_tokens)]

    return run


def is_as_mlx_lm_has_it(folder, mlx_lm):
    prompt = prompt_of(30)
    logits, tokens = mlx_lm(folder, prompt, 32)
    config, weights = bound(folder)
    mlx = MlxBackend(config, weights)
    assert difference(logits_of(mlx, prompt), logits) < SAME
    assert greedy(config, mlx.session(70), prompt, 32)[0] == tokens
    return {(w.bits, w.group_size) for w in weights.values() if isinstance(w, QuantizedTensor)}


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_converted_checkpoints_give_mlx_lms_tokens(bits, group_size, tmp_path, mlx_lm):
    from mlx_lm import convert

    make_quantisable(tmp_path / "float", "llama", hidden_size=128, intermediate_size=256)
    convert(str(tmp_path / "float"), str(tmp_path / "q"), quantize=True, q_bits=bits, q_group_size=group_size)
    assert is_as_mlx_lm_has_it(tmp_path / "q", mlx_lm) == {(bits, group_size)}


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in ("qwen3", "gemma2") else pytest.mark.slow) for f in MLX_FAMILIES]
)
def test_mixed_recipes_give_mlx_lms_tokens(family, tmp_path, mlx_lm):
    from mlx_lm import convert

    def recipe(path, module):
        if not hasattr(module, "to_quantized") or ".0." in path:
            return False  # the first layer stays float
        return {"bits": 8, "group_size": 64} if ".1." in path else {"bits": 4, "group_size": 32}

    make_quantisable(tmp_path / "float", family, **FOR_MLX.get(family, {}))
    if family == "gpt2":
        name_as_published(tmp_path / "float")
    convert(str(tmp_path / "float"), str(tmp_path / "q"), quantize=True, quant_predicate=recipe)
    assert is_as_mlx_lm_has_it(tmp_path / "q", mlx_lm) == {(8, 64), (4, 32)}


# ---- a session's promises ----


@pytest.fixture(scope="module")
def mlx() -> russet.Model:
    return russet.load(backend="mlx", dtype="float32", n_ctx=64)


def test_chunks_ragged_batches_and_rewinding(mlx, demo):
    check_chunks_ragged_batches_and_rewinding(mlx, demo, SAME)


def test_several_texts_of_one_prompt(mlx, demo):
    check_several_texts(mlx, demo, max_tokens=20)


@pytest.mark.slow
def test_a_prompt_of_several_chunks_and_a_cache_that_grows(monkeypatch):
    monkeypatch.setattr(mlx_backend, "_CHUNK_TOKENS", 100)
    mlx, cpu = russet.load(backend="mlx", dtype="float32", n_ctx=700), russet.load(n_ctx=700)
    ids = prompt_of(510, vocab_size=2000)
    whole = cpu.session().forward(ids, all_logits=True)
    session, other = mlx.session(), mlx.session()
    assert difference(session.forward(ids), whole[-1:]) < SAME
    assert difference(other.forward(ids, all_logits=True), whole) < SAME
    expected = cpu.session()
    expected.forward(ids)
    for id in range(5, 15):  # beyond 512, the next multiple of 256
        assert difference(session.forward([id]), expected.forward([id])) < SAME
    other.rewind(300)
    logits = mlx.backend.forward([(other, ids[300:]), (mlx.session(), ids[:150])])
    assert difference(logits, whole[[-1, 149]]) < SAME


@pytest.mark.slow
def test_memory_for_a_long_prompt_is_that_of_a_chunk(tmp_path):
    """ffn_dim is the widest: four such rows a token, in float32, would be 64 MiB for 4,096 tokens at once."""
    make(tmp_path, "llama", intermediate_size=1024, num_hidden_layers=2, max_position_embeddings=5000)
    backend = MlxBackend(*bound(tmp_path))
    n_tokens, n_heads = 4096, 5
    session = backend.session(5000)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    session.forward(prompt_of(n_tokens))
    taken = mx.get_peak_memory() - before
    scores = n_heads * 512 * n_tokens * 4  # MLX's CPU build holds them all: with what softmax makes of them, thrice
    assert taken < 3 * scores + 4 * 512 * 1024 * 4 + 3 * session.cache_bytes() + 2**22
    assert mx.get_cache_memory() == 0


def test_a_greedy_token_that_is_not_taken_changes_nothing(mlx, demo):
    ids = demo.tokenizer.encode(PROMPT)
    session, expected = mlx.session(), demo.session()
    session.forward(ids)
    expected.forward(ids)
    ahead = session.append_greedy(7)  # the pass for what follows `ahead` is under way
    assert ahead == expected.forward([7])[0].argmax()
    assert session.n_tokens == len(ids) + 1
    assert session.append_greedy(ahead) == expected.forward([ahead])[0].argmax()
    other = (ahead + 1) % 2048
    assert session.append_greedy(other) == expected.forward([other])[0].argmax()
    session.rewind(len(ids))
    expected.rewind(len(ids))
    assert session.append_greedy(9) == expected.forward([9])[0].argmax()
    assert difference(session.forward([8]), expected.forward([8])) < SAME


def test_no_pass_is_begun_for_a_token_that_nobody_asks_for(mlx, monkeypatch):
    begun = []
    begin = MlxBackend._begin_greedy
    monkeypatch.setattr(MlxBackend, "_begin_greedy", lambda *args: (begun.append(args), begin(*args))[1])
    for n_tokens in (1, 2, 5):
        for n_of_prompt in (0, 1):  # the first token is the prompt's; then of the prompt all but its last is known
            if n_of_prompt == 0:
                mlx.clear_cache()
            begun.clear()
            mlx.generate(PROMPT, max_tokens=n_tokens, temperature=0, ignore_eos=True)
            assert len(begun) == n_tokens - 1 + n_of_prompt


@pytest.mark.parametrize(("family", "case"), [("phi3", 1), ("llama", 3)], ids=["longrope", "dynamic"])
def test_greedy_tokens_of_a_text_that_outgrows_its_rope(family, case, tmp_path):
    """As generation asks for them: the pass begun ahead of the change must not be taken after it."""
    make_case(tmp_path, family, case)
    config, cpu = load(tmp_path)
    (rope,) = config.ropes
    prompt, texts = prompt_of(rope.original_ctx - 8), []
    for backend in (MlxBackend(*bound(tmp_path)), cpu):
        conversation = Conversation(backend.session(120), config)
        text = [int(conversation.append(prompt).argmax())]
        for _ in range(30):
            text.append(conversation.append_greedy(text[-1]))
        texts.append(text)
    assert texts[0] == texts[1]


def test_what_a_session_refuses(mlx):
    session = mlx.session()
    session.forward(prompt_of(63))
    assert session.append_greedy(1) >= 0  # into the last place: nothing is computed ahead
    for append in (lambda: session.forward([1]), lambda: session.append_greedy(1)):
        with pytest.raises(russet.ContextFull) as caught:
            append()
        assert str(caught.value) == (
            "64 tokens in the context and 1 more make 65, n_ctx is 64; shorten the prompt, or load with a larger n_ctx"
        )
    session.rewind(10)
    for wrong in (2048, -1):
        with pytest.raises(UsageError, match=f"^token id {wrong}: expected 0 to 2047$"):
            session.forward([wrong])
    for n_tokens in (11, -1):
        with pytest.raises(UsageError, match=f"truncate: expected 0 to 10 tokens, got {n_tokens}"):
            session.rewind(n_tokens)
    with pytest.raises(UsageError, match="a sequence has no tokens"):
        session.forward([])
    with pytest.raises(UsageError, match="at least one sequence"):
        mlx.backend.forward([])
    with pytest.raises(UsageError, match="one cache appears twice"):
        mlx.backend.forward([(session, [1]), (session, [2])])
    with pytest.raises(TypeError, match="expected sessions of this backend"):
        mlx.backend.forward([(russet.load().session(), [1])])
    with pytest.raises(UsageError, match="n_ctx: expected at least 1, got 0"):
        mlx.backend.session(0)
    assert session.n_tokens == 10


def test_positions_that_were_never_learned(tmp_path):
    make_case(tmp_path, "gpt2", 0)
    session = MlxBackend(*bound(tmp_path)).session(200)
    session.forward(prompt_of(159))
    assert session.append_greedy(1) >= 0
    with pytest.raises(russet.ContextFull, match="161 tokens: the model knows only 160 positions; shorten the prompt"):
        session.append_greedy(1)


def test_logits_that_are_no_numbers(tmp_path):
    make_case(tmp_path, "llama", 0)
    config, weights = bound(tmp_path)
    weights["final_norm.w"] = (np.full(config.dim, np.nan, np.float32), "f32")
    session = MlxBackend(config, weights).session(20)
    session.forward([1, 2])
    with pytest.raises(NumericalError, match="not a number"):
        session.append_greedy(3)


def test_threads_share_a_model(mlx):
    begun = []  # here, and gone on with there

    def begin():
        begun.append(mlx.session())
        begun[0].forward([1, 2])
        begun[0].append_greedy(3)
        begun.append(mlx.session())

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    expected = mlx.session().forward([1, 2, 3, 4])
    assert difference(begun[0].forward([4]), expected) < SAME
    assert difference(begun[1].forward([1, 2, 3, 4]), expected) < SAME

    ids = mlx.tokenizer.encode(PROMPT)
    expected = mlx.generate_tokens(ids, max_tokens=30, temperature=0, ignore_eos=True)
    texts = []

    def generate():
        texts.append(mlx.generate_tokens(ids, max_tokens=30, temperature=0, ignore_eos=True))

    threads = [threading.Thread(target=generate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 4


def test_an_interrupted_pass_leaves_the_session_as_it_was(mlx, monkeypatch):
    session, ids = mlx.session(), prompt_of(30)
    session.forward(ids[:5])
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(mlx_backend, "_CHUNK_TOKENS", 10)
    with monkeypatch.context() as during:
        during.setattr(mx, "clear_cache", interrupt)  # between two chunks
        with pytest.raises(KeyboardInterrupt):
            session.forward(ids[5:])
    assert session.n_tokens == 5
    assert difference(session.forward(ids[5:]), mlx.session().forward(ids)) < SAME


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (RuntimeError("[malloc] Unable to allocate 99 bytes."), NotEnoughMemory),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (0000008)"), NotEnoughMemory),
        (MemoryError(), NotEnoughMemory),
        (RuntimeError("[METAL] Command buffer execution failed: Timeout"), BackendError),
    ],
)
def test_what_mlx_raises_comes_after_the_text_so_far(raised, error, monkeypatch):
    mlx = russet.load(backend="mlx", n_ctx=64)
    expected = mlx.generate(PROMPT, max_tokens=20, temperature=0)
    pieces = mlx.stream(PROMPT, max_tokens=20, temperature=0)
    text = "".join(next(pieces).text for _ in range(6))

    def fail(*args):
        raise raised

    with monkeypatch.context() as during:
        during.setattr(mlx.backend._forward, "hidden", fail)
        with pytest.raises(error, match=r"^mlx: "):
            text += "".join(piece.text for piece in pieces)
    assert len(text) > 5
    assert expected.startswith(text)
    assert mlx.generate(PROMPT, max_tokens=20, temperature=0) == expected


def test_a_limit_of_memory_is_mlxs_too():
    before = mx.set_memory_limit(2**40)
    try:
        russet.load(backend="mlx", max_memory="1GB", n_ctx=64)
        assert mx.get_memory_limit() == 10**9
    finally:
        mx.set_memory_limit(before)
    with pytest.raises(NotEnoughMemory):
        russet.load(backend="mlx", max_memory="1MB")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("shifted", [False, True])
def test_weights_are_in_memory_once(shifted, tmp_path):
    make(tmp_path, "llama", dtype=torch.bfloat16, intermediate_size=4096, hidden_size=256, num_attention_heads=4)
    if shifted:
        shift_weights(tmp_path)
    code = """
import sys, russet, mlx.core as mx
from russet.backends.mlx.backend import MlxBackend
from tiny_models import bound
def now():
    status = dict(line.split(':') for line in open('/proc/self/status'))
    return sum(int(status[key].split()[0]) * 1024 for key in ('RssAnon', 'RssFile'))
before = now()
weights = bound(sys.argv[1])
backend = MlxBackend(*weights)
print(now() - before, backend.weight_bytes)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    taken, n_bytes = map(int, done.stdout.split())
    assert n_bytes > 18e6
    assert taken < 1.2 * n_bytes + 4e6


# ---- bad wishes ----


def test_what_cannot_be_is_refused(stories_folder):
    with pytest.raises(UsageError, match="dtype: expected float32, float16, bfloat16, got 'int8'"):
        russet.load(backend="mlx", dtype="int8")
    with pytest.raises(UsageError, match="keep_packed: a layout of the CPU's"):
        russet.load(stories_folder / "hf", backend="mlx", keep_packed=True)
