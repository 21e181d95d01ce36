"""Beam search against transformers: the same texts in the same order, with the same scores."""

import itertools
import math

import numpy as np
import pytest

import russet
from russet import UsageError, _core
from russet.beam_search import BeamOptions, beam_search
from russet.generation import Conversation

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402

torch.set_num_threads(1)

PROMPT = "Once upon a time there was"

#: How far scores may be apart: sums of twenty logprobs, theirs in float32, of logits that differ by rounding. Relative
#: where a negative length_penalty makes them large. Measured: 3e-7 of a score.
SAME_SCORE = {"rel": 1e-5, "abs": 2e-4}

OPTIONS = [
    {"num_beams": 1},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -1.5},
    {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.5, "early_stopping": "never"},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 1.7, "early_stopping": False},
    {"num_beams": 5, "num_return_sequences": 5, "length_penalty": -0.5, "early_stopping": "never"},
]


@torch.no_grad()
def expected(model, prompt, n_tokens, ends, **options):
    """transformers' texts up to their end, and their scores; one beam is greedy there, and has no score."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_tokens,
        eos_token_id=ends or None,
        pad_token_id=0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = found.sequences[:, len(prompt) :].tolist()
    until = [next((i + 1 for i, token in enumerate(row) if token in ends), n_tokens) for row in rows]
    scores = found.sequences_scores.tolist() if options["num_beams"] > 1 else None
    return [row[:n] for row, n in zip(rows, until, strict=True)], scores


def found(config, backend, prompt, n_tokens, ends, *, sampler=None, **options):
    conversation = Conversation(backend.session(100), config)
    logits = conversation.append(prompt)
    return beam_search(
        backend,
        conversation,
        logits,
        BeamOptions(**options),
        sampler=sampler or _core.Sampler(_core.SamplingOptions(), 0, prompt),
        grammar=None,
        n_most=n_tokens,
        ends=frozenset(ends),
    )


# With windows shorter than the texts, positions that are learnt, and a longrope that they outgrow as all beams run.
@pytest.mark.parametrize(
    ("family", "case", "n_prompt"),
    [("llama", 0, 12), ("mistral", 0, 12), ("qwen3", 0, 12), ("gpt2", 0, 12), ("phi3", 1, 25)],
)
def test_texts_and_scores_are_those_of_transformers(family, case, n_prompt, tmp_path):
    model = tiny_models.make_case(tmp_path, family, case)
    config, backend = tiny_models.load(tmp_path)
    prompt = tiny_models.prompt_of(n_prompt)
    likely = found(config, backend, prompt, 14, [], num_beams=4, num_return_sequences=4)
    # Tokens that end texts come early and late: one from the middle of the best text, one from the end of another.
    ends = [likely[0].tokens[6], likely[-1].tokens[-2]]
    lengths = set()
    for options in OPTIONS:
        for stops in ([], ends[:1], ends):
            texts, scores = expected(model, prompt, 14, stops, **options)
            ours = found(config, backend, prompt, 14, stops, **options)
            assert [text.tokens for text in ours] == texts
            assert scores is None or [text.score for text in ours] == pytest.approx(scores, **SAME_SCORE)
            lengths |= {len(text.tokens) for text in ours}
            for text in ours:
                assert text.finish_reason == ("stop" if text.tokens[-1] in stops else "length")
                length_penalty = options.get("length_penalty", 1.0)
                assert text.score == pytest.approx(text.logprob / len(text.tokens) ** length_penalty)
    assert len(lengths) > 2
    assert backend.pool.info["n_in_use"] == 0


def test_a_trained_model_gives_the_texts_of_transformers(stories, stories_folder):
    theirs = tiny_models.transformers_model(stories_folder / "hf")
    prompt = stories.tokenizer.encode("Lily and Tom went to the park.")
    for options in OPTIONS[1::2]:
        texts, scores = expected(theirs, prompt, 20, [*stories.tokenizer.eos_token_ids], **options)
        ours = stories.beam_search(prompt, max_tokens=20, **options)
        assert [c.tokens for c in ours] == texts
        assert [c.score for c in ours] == pytest.approx(scores, **SAME_SCORE)
        assert [c.text for c in ours] == [text_after(stories, prompt, text) for text in texts]


def text_after(model, prompt, tokens):
    decode = model.tokenizer.decode
    return decode(prompt + tokens, skip_special_tokens=True)[len(decode(prompt, skip_special_tokens=True)) :]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"min_new_tokens": 9}, {"min_tokens": 9}),
        ({"bad_words_ids": [[79], [35, 93]]}, {"bad_words": [[79], [35, 93]]}),
        ({"sequence_bias": [[[35], -30.0], [[7], 2.0]]}, {"logit_bias": [(35, -30.0), (7, 2.0)]}),
        ({"sequence_bias": [[[79, 35], -30.0], [[7], 2.0]]}, {"sequence_bias": [([79, 35], -30.0), ([7], 2.0)]}),
    ],
    ids=str,
)
def test_penalties_and_bans_act_on_logprobs_as_in_transformers(theirs, ours, tmp_path):
    model = tiny_models.make_case(tmp_path, "llama", 0)
    config, backend = tiny_models.load(tmp_path)
    prompt = tiny_models.prompt_of(12)
    ends = [found(config, backend, prompt, 14, [], num_beams=4)[0].tokens[3]]
    changed = _core.SamplingOptions()
    changed.ends = ends
    for name, value in ours.items():
        setattr(changed, name, value)
    options = {"num_beams": 4, "num_return_sequences": 4}
    texts, scores = expected(model, prompt, 14, ends, **options, **theirs)
    with_it = found(config, backend, prompt, 14, ends, sampler=_core.Sampler(changed, 0, prompt), **options)
    assert [text.tokens for text in with_it] == texts
    assert [text.score for text in with_it] == pytest.approx(scores, **SAME_SCORE)
    assert texts != [text.tokens for text in found(config, backend, prompt, 14, ends, **options)]


# ---- what must hold whatever the model ----


def test_as_many_beams_as_there_are_texts_find_the_best_of_all(tmp_path):
    tiny_models.make(tmp_path, "llama", vocab_size=5, num_key_value_heads=1)
    config, backend = tiny_models.load(tmp_path)
    session = backend.session(10)
    session.forward([1, 2])

    def logprob(text):
        session.rewind(2)
        session.rewind(1)
        rows = session.forward([2, *text[:-1]], all_logits=True).astype(np.float64)
        return sum(row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, text, strict=True))

    scores = {text: logprob(text) for text in itertools.product(range(5), repeat=3)}
    best = sorted(scores, key=scores.get, reverse=True)
    ours = found(config, backend, [1, 2], 3, [], num_beams=125, num_return_sequences=125, length_penalty=0.0)
    assert [tuple(text.tokens) for text in ours] == best
    assert [text.logprob for text in ours] == pytest.approx([scores[text] for text in best], abs=1e-4)


def test_one_beam_is_greedy(demo):
    (text,) = demo.beam_search(PROMPT, num_beams=1, max_tokens=30)
    assert text.tokens == demo.generate_tokens(PROMPT, temperature=0, max_tokens=30)


def test_tokens_that_end_a_text_are_not_shown(demo):
    ids = demo.tokenizer.encode(PROMPT)
    end = demo.beam_search(PROMPT, max_tokens=12)[0].tokens[6]
    texts = demo.beam_search(PROMPT, num_return_sequences=4, max_tokens=12, stop_token_ids=[end])
    ended = [text for text in texts if text.finish_reason == "stop"]
    assert ended
    for text in ended:
        assert text.tokens.index(end) == len(text.tokens) - 1
        assert text.text == text_after(demo, ids, text.tokens[:-1])


def test_the_logprob_is_that_of_score(demo):
    ids = demo.tokenizer.encode(PROMPT)
    bound = 20 * 2e-4 * float(np.ptp(demo.logits(ids)))  # of each of 20 tokens, the bound used everywhere
    for text in demo.beam_search(PROMPT, num_return_sequences=3, max_tokens=20, repetition_penalty=1.3):
        assert text.logprob == pytest.approx(sum(demo.score(ids + text.tokens)[-len(text.tokens) :]), abs=bound)
        assert text.score < text.logprob / len(text.tokens)  # penalties make unlikely what was there


def test_grammars_hold_every_beam(demo):
    pytest.importorskip("llguidance")
    choices = ["a queen of the North", "a king", "an old woman", "nobody"]
    texts = demo.beam_search(PROMPT + " ", num_beams=4, num_return_sequences=4, choices=choices, length_penalty=0.0)
    assert {text.text for text in texts} <= set(choices)
    assert all(text.finish_reason == "stop" for text in texts)
    assert [text.score for text in texts] == sorted((text.score for text in texts), reverse=True)


def test_beams_share_what_they_have_in_common(demo):
    demo.clear_cache()
    long = PROMPT * 30
    n_heads = demo.config.n_layers * demo.config.n_kv_heads
    n_prompt_blocks = len(demo.tokenizer.encode(long)) // 64
    assert n_prompt_blocks >= 2
    before = demo.cache_info()["peak_bytes"]
    demo.beam_search(long, num_beams=8, max_tokens=50)
    info = demo.cache_info()
    most = (n_prompt_blocks + 1 + 8 * 2) * n_heads * info["block_bytes"]
    assert info["peak_bytes"] <= max(before, most)
    assert info["bytes"] == info["text_bytes"]
    piece = next(demo.stream(long, max_tokens=1))
    assert piece.cached_tokens == piece.prompt_tokens - 1
    demo.clear_cache()
    assert demo.cache_info()["n_blocks"] == 0


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams: expected an integer from 1 on, got 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: expected at most num_beams=2, got 3"),
        ({"length_penalty": math.nan}, "length_penalty: expected a number"),
        ({"early_stopping": "always"}, "early_stopping: expected True, False or 'never', got 'always'"),
        ({"temperature": 0.7}, "temperature: beam search draws nothing"),
        ({"temp": 0.7}, "temperature: beam search draws nothing"),
        ({"top_p": 0.9}, "top_p: beam search draws nothing"),
        ({"seed": 1}, "seed: beam search draws nothing"),
        ({"stop": ["."]}, "stop: a beam search knows texts only when they end"),
        ({"timeout": 5}, "timeout: a beam search has no text before it ends"),
        ({"logprobs": True}, "logprobs: a beam search gives the logprob of whole texts"),
        ({"max_tokens": 0}, "max_tokens: expected 1 or more"),
        ({"num_beam": 3}, "num_beam: no such option"),
    ],
    ids=str,
)
def test_what_beams_have_no_use_for_is_refused_by_name(demo, options, message):
    with pytest.raises(UsageError, match=message):
        demo.beam_search(PROMPT, **options)


def test_neutral_values_and_the_models_own_defaults_are_not_refused(tmp_path):
    from tiny_models import write_json

    for file in russet.model.DEMO.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    write_json(tmp_path / "generation_config.json", {"do_sample": True, "temperature": 0.6, "top_k": 20})
    model = russet.load(tmp_path)
    (text,) = model.beam_search(PROMPT, temperature=0, max_tokens=5)
    assert model.beam_search(PROMPT, max_tokens=5)[0].tokens == text.tokens
