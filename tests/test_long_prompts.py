"""Fifty thousand tokens: the answer of the textbook, memory that grows with the text and not with its square."""

import numpy as np
import pytest

import russet
from kernels import sum_bound
from random_model import random_config, random_weights
from reference.ops import attention, widen
from reference.transformer import _Layer, _norm
from russet.backends.cpu import CpuBackend
from russet.bench import peak_bytes
from russet.errors import NotEnoughMemory

N_TOKENS = 50_000


def last_logits(c, weights, ids):
    """What reference.transformer.forward() gives for the last token of a model of one layer, and no other."""
    w = {role: widen(*stored) for role, stored in weights.items()}
    layer = _Layer(c, w, 0)
    x = w["embed.w"][ids].astype(np.float64)
    h, pos = layer.norm("attn_norm", x), np.arange(len(ids))
    k, v = layer.heads("k", h, pos), layer.heads("v", h, pos)
    q = layer.heads("q", h[-1:], pos[-1:])
    group = c.n_heads // c.n_kv_heads
    out = [attention(q[i], k[i // group], v[i // group], pos[-1:], c.attention_scale) for i in range(c.n_heads)]
    x = x[-1:] + layer.linear("o", np.concatenate(out, axis=1))
    x = x + layer.mlp(layer.norm("ffn_norm", x))
    return _norm(c, w, "final_norm", x) @ w.get("head.w", w["embed.w"]).T.astype(np.float64)


@pytest.mark.slow
def test_a_prompt_of_fifty_thousand_tokens():
    config = random_config(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, max_ctx=N_TOKENS + 100)
    weights = random_weights(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, N_TOKENS).tolist()
    session = CpuBackend(config, weights, threads=2).session(N_TOKENS + 100)
    for begin in range(0, 1024, 512):
        session.forward(ids[begin : begin + 512])
    before = peak_bytes()
    for begin in range(1024, N_TOKENS, 512):
        logits = session.forward(ids[begin : begin + 512])
    # Scores alone would take 10 GB a head.
    assert peak_bytes() - before < 2 * session.cache_bytes()
    expected = last_logits(config, weights, ids)
    # Angles are rounded to float before their cosine is taken: at position 50,000 by up to 0.002.
    assert np.abs(logits - expected).max() < (2e-3 + sum_bound(N_TOKENS)) * np.ptp(expected)


def test_a_budget_too_small_for_the_prompt():
    """The error has the sum, and the model answers what fits."""
    weights = russet.load(n_ctx=64).weight_bytes
    model = russet.load(max_memory=weights + 3_000_000, n_ctx=None)
    with pytest.raises(russet.RussetError, match=r"the prompt's 50,000 tokens do not fit n_ctx=[\d,]+; shorten it"):
        model.generate([5] * N_TOKENS)
    first = model.generate_tokens([5, 6, 7], max_tokens=5, temperature=0)
    assert first == russet.load().generate_tokens([5, 6, 7], max_tokens=5, temperature=0)
    with pytest.raises(NotEnoughMemory, match=r"weights .* \+ cache .* for 50,000 tokens = .*, but .* may be used"):
        russet.load(max_memory=weights + 3_000_000, n_ctx=N_TOKENS)
