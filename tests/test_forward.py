"""forward() on the CPU against the numpy transformer, over shapes no real model has."""

import numpy as np
import pytest

import reference.transformer
from random_model import random_config, random_weights
from russet import _core
from russet.backends.cpu import CpuBackend, core_config
from russet.config import Rope
from russet.errors import ContextFull, UsageError, WeightsError

N_CTX = 160


def tokens_of(config, n):
    return np.random.default_rng(n).integers(0, config.vocab_size, n).tolist()


def logits_of(config, weights, tokens, threads=2):
    return (
        CpuBackend(config, weights, threads=threads, kv_dtype="float32").session(N_CTX).forward(tokens, all_logits=True)
    )


def assert_near(actual, expected):
    """Within 1e-5 of the logits' spread: float32 sums of these widths, two layers deep; measured 1e-6."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-5 * np.ptp(expected)


SHAPES = {
    "gqa": {},
    "mha": {"n_heads": 5, "n_kv_heads": 5, "head_dim": 8},
    "mqa": {"n_heads": 7, "n_kv_heads": 1, "head_dim": 6},
    "odd head": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 9},
    "narrow": {"dim": 3, "n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "ffn_dim": 1, "vocab_size": 2},
    "wide": {"dim": 48, "ffn_dim": 1100, "vocab_size": 1030},
    "granite": {"embed_scale": 3.0, "residual_scale": 0.3, "attention_scale": 0.1, "logits_scale": 0.25},
    "windows": {"layer_window": (5, 0)},
    "no rope": {"layer_rope": (-1, 0)},
    "two ropes": {"ropes": (Rope(inv_freq=(1.0, 0.1)), Rope(inv_freq=(0.5,), scale=1.5)), "layer_rope": (1, 0)},
    "soft caps": {"attention_softcap": 3.0, "logits_softcap": 2.0},
    "parallel": {"parallel_residual": True, "norm": "layer", "activation": "gelu"},
    "relu": {"activation": "relu"},
    "gelu tanh": {"activation": "gelu_tanh"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_tokens", [1, 3, 33, 130])
def test_matches_numpy(shape, n_tokens):
    config = random_config(**SHAPES[shape])
    weights = random_weights(config)
    tokens = tokens_of(config, n_tokens)
    assert_near(logits_of(config, weights, tokens), reference.transformer.forward(config, weights, tokens))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("n_tokens", [1, 4, 5, 40])
def test_stored_types_are_widened_exactly(dtype, n_tokens):
    # The reference widens the same stored weights: the bound is float32's, not the stored type's.
    config = random_config()
    weights = random_weights(config, dtype)
    tokens = tokens_of(config, n_tokens)
    assert_near(logits_of(config, weights, tokens), reference.transformer.forward(config, weights, tokens))


@pytest.mark.parametrize(
    "roles",
    [
        {"biases": True},
        {"q_norm": True},
        {"attn_post_norm": True},
        {"up": False, "biases": True},
        {"head": False},
        {"positions": True},
    ],
    ids=lambda roles: ", ".join(roles),
)
@pytest.mark.parametrize("n_tokens", [2, 21])
def test_optional_weights(roles, n_tokens):
    config = random_config()
    weights = random_weights(config, **roles)
    tokens = tokens_of(config, n_tokens)
    assert_near(logits_of(config, weights, tokens), reference.transformer.forward(config, weights, tokens))


@pytest.mark.parametrize("threads", [1, 3, 7, 17])
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_more_threads_than_work(threads, n_tokens):
    config = random_config()
    weights = random_weights(config, biases=True)
    tokens = tokens_of(config, n_tokens)
    expected = reference.transformer.forward(config, weights, tokens)
    assert_near(logits_of(config, weights, tokens, threads), expected)


@pytest.mark.parametrize("chunks", [[130], [1] * 20, [1, 129], [64, 66], [5, 4, 3, 2, 1, 100, 5], [2, 9, 40]])
def test_any_chunking_gives_the_same_logits(chunks):
    # Buffers grow from one call to the next, and shrink in use.
    config = random_config(layer_window=(9, 0))
    weights = random_weights(config)
    tokens = tokens_of(config, sum(chunks))
    session = CpuBackend(config, weights, threads=2).session(N_CTX)
    parts, at = [], 0
    for n in chunks:
        parts.append(session.forward(tokens[at : at + n], all_logits=True))
        at += n
    assert_near(np.concatenate(parts), reference.transformer.forward(config, weights, tokens))


def test_a_ragged_batch_equals_each_alone():
    config = random_config()
    backend = CpuBackend(config, random_weights(config), threads=2)
    texts = [tokens_of(config, n) for n in (1, 17, 2, 70)]
    together = [backend.session(N_CTX) for _ in texts]
    alone = [backend.session(N_CTX) for _ in texts]
    for text, a, b in zip(texts[1:], together[1:], alone[1:], strict=True):
        a.forward(text[:-1])  # the caches stand at different places
        b.forward(text[:-1])
    parts = [(session, text if text is texts[0] else text[-1:]) for session, text in zip(together, texts, strict=True)]
    logits = backend.forward(parts)
    for i, (session, (_, last)) in enumerate(zip(alone, parts, strict=True)):
        assert_near(logits[i : i + 1], session.forward(last))


def test_rewind_forgets():
    config = random_config()
    weights = random_weights(config)
    tokens = tokens_of(config, 50)
    session = CpuBackend(config, weights, threads=2).session(N_CTX)
    session.forward(tokens_of(config, 90))
    session.rewind(0)
    session.forward([*tokens[:30], 0, 1, 2])
    session.rewind(30)
    rest = session.forward(tokens[30:], all_logits=True)
    assert_near(rest, reference.transformer.forward(config, weights, tokens)[30:])


def test_only_the_rows_asked_for_get_logits():
    config = random_config()
    backend = CpuBackend(config, random_weights(config), threads=2)
    tokens = tokens_of(config, 12)
    every = backend.session(N_CTX).forward(tokens, all_logits=True)
    last = backend.session(N_CTX).forward(tokens)
    assert last.shape == (1, config.vocab_size)
    assert_near(last, every[-1:])


# ---- errors leave the session as it was ----


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([1, 53], UsageError, "token id 53: expected 0 to 52"),
        ([-1], UsageError, "token id -1"),
        ([], UsageError, "no tokens"),
        ([0] * 151, ContextFull, "10 tokens in the context and 151 more make 161, n_ctx is 160"),
    ],
)
def test_a_refused_call_leaves_the_session_as_it_was(tokens, error, message):
    config = random_config()
    weights = random_weights(config)
    text = tokens_of(config, 20)
    session = CpuBackend(config, weights, threads=2).session(N_CTX)
    session.forward(text[:10])
    with pytest.raises(error, match=message):
        session.forward(tokens)
    assert session.n_tokens == 10
    expected = reference.transformer.forward(config, weights, text)
    assert_near(session.forward(text[10:], all_logits=True), expected[10:])


def test_learned_positions_end():
    config = random_config(max_ctx=20)
    session = CpuBackend(config, random_weights(config, positions=True), threads=2).session(N_CTX)
    session.forward([0] * 19)
    with pytest.raises(ContextFull, match="the model knows only 20 positions"):
        session.forward([0, 0])
    session.forward([0])


def test_a_cache_belongs_to_its_model():
    small, large = random_config(), random_config(n_layers=3)
    cpu = CpuBackend(small, random_weights(small), threads=1)
    other = CpuBackend(large, random_weights(large), threads=1)
    with pytest.raises(UsageError, match="made for another model"):
        cpu.forward([(other.session(N_CTX), [1])])
    core = _core.Cpu(core_config(large), 1)
    model = _core.Model(core_config(small), random_weights(small))
    cache = _core.KvCache(cpu.pool, model, N_CTX)
    with pytest.raises(UsageError, match="not the one this backend was made for"):
        core.forward(model, [(cache, [1], 0, False)])


def test_a_batch_has_each_cache_once():
    config = random_config()
    backend = CpuBackend(config, random_weights(config), threads=1)
    session = backend.session(N_CTX)
    with pytest.raises(UsageError, match="appears twice"):
        backend.forward([(session, [1]), (session, [2])])
    with pytest.raises(UsageError, match="at least one sequence"):
        backend.forward([])


@pytest.mark.parametrize(
    ("role", "shape", "message"),
    [
        ("layers.1.k.w", (42, 21), r"layers.1.k: expected \[42, 20\], got \[42, 21\]"),
        ("layers.0.down.w", None, "layers.0.down: missing"),
        ("final_norm.w", (19,), r"final_norm: expected \[20\], got \[19\]"),
        ("layers.0.q_norm.w", (13,), r"q_norm: expected \[14\], got \[13\]"),
        ("layers.0.z.w", (3, 3), "no weight has the role 'layers.0.z.w'"),
    ],
)
def test_the_core_checks_shapes_itself(role, shape, message):
    config = random_config()
    weights = random_weights(config)
    weights.pop(role, None)
    if shape:
        weights[role] = (np.ones(shape, np.float32), "f32")
    with pytest.raises(WeightsError, match=message):
        CpuBackend(config, weights, threads=1)
