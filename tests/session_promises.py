"""What every backend's sessions promise, asked of one of them with the CPU's answers beside it."""

import numpy as np
import pytest

import russet


def check_chunks_ragged_batches_and_rewinding(model: russet.Model, cpu: russet.Model, bound: float) -> None:
    """bound: how far logits may be off, in parts of their spread. Of both models activations are float32."""

    def difference(logits, expected):
        return np.abs(logits - expected).max() / np.ptp(expected)

    ids = cpu.tokenizer.encode("It is a truth universally acknowledged, that a single man")
    whole = cpu.session().forward(ids, all_logits=True)
    session = model.session()
    parts = [session.forward(chunk, all_logits=True) for chunk in (ids[:1], ids[1:10], ids[10:])]
    assert difference(np.concatenate(parts), whole) < bound
    in_blocks = -(-len(ids) // 64) * 64
    assert len(ids) <= session.cache_bytes() / model.cache_bytes_per_token <= in_blocks

    session.rewind(3)
    assert session.n_tokens == 3
    assert difference(session.forward(ids[3:]), whole[-1]) < bound
    session.rewind(5)
    assert session.append_greedy(ids[5]) == whole[5].argmax()

    fork = session.fork(4)
    assert (fork.n_tokens, session.n_tokens) == (4, 6)
    assert difference(fork.forward(ids[4:]), whole[-1]) < bound
    assert difference(session.forward(ids[6:]), whole[-1]) < bound
    assert fork.can_rewind(0)
    assert fork.can_rewind(len(ids))
    assert not fork.can_rewind(len(ids) + 1)

    a, b = model.session(), model.session()
    b.forward(ids[:4])
    logits = model.backend.forward([(a, ids[:12]), (b, ids[4:5])])
    assert difference(logits, whole[[11, 4]]) < bound


def check_several_texts(model: russet.Model, cpu: russet.Model, *, max_tokens: int) -> None:
    """Each is the one its seed gives alone, and beams are the CPU's. Of both models activations are float32."""
    model.clear_cache()
    prompt = "Once upon a time there was"
    options = {"temperature": 1.0, "max_tokens": max_tokens}
    for text in model.generate_many(prompt, n=3, seed=1, **options):
        assert text.tokens == model.generate_tokens(prompt, seed=text.seed, **options)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_tokens": max_tokens}
    ours, expected = model.beam_search(prompt, **options), cpu.beam_search(prompt, **options)
    assert [text.tokens for text in ours] == [text.tokens for text in expected]
    # The CPU has its keys and values in float16. Measured: 1.5e-3 of a sum of twenty.
    assert [text.logprob for text in ours] == pytest.approx([text.logprob for text in expected], abs=5e-3)
    info = model.cache_info()
    assert info["bytes"] == info["text_bytes"]
