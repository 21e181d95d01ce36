"""What every backend's sessions promise, asked of one of them with the CPU's answers beside it."""

import numpy as np

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
