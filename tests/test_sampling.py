"""What the sampling options do to a generated text, from generate() down to the core."""

import itertools

import numpy as np
import pytest

from russet import GenerateOptions, Piece, UsageError, _core
from russet.generation import Conversation
from russet.options import SAMPLERS
from russet.sampling import make_sampler

PROMPT = "Once upon a time there was"
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3, "max_tokens": 40}


def pieces(model, **options) -> list[Piece]:
    return list(model.stream(PROMPT, **options))


@pytest.mark.parametrize(
    "neutral",
    [
        {"top_k": 0, "min_p": 0.0, "typical_p": 1.0},
        {"top_n_sigma": 0, "xtc_probability": 0, "mirostat_tau": 0},
        {"dry_multiplier": 0, "dry_base": 3.0, "penalty_window": 7},
        {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "bad_words": [], "min_tokens": 0},
        {"no_repeat_ngram_size": 0, "sequence_bias": []},
        {"logprobs": True},
    ],
    ids=str,
)
def test_neutral_values_change_nothing(demo, neutral):
    plain = demo.generate_tokens(PROMPT, **SAMPLED)
    assert demo.generate_tokens(PROMPT, **(SAMPLED | neutral)) == plain


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 2},
        {"min_p": 0.5},
        {"typical_p": 0.2},
        {"top_n_sigma": 0.2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"mirostat_tau": 1.0},
        {"repetition_penalty": 3.0},
        {"presence_penalty": 5.0},
        {"frequency_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"sequence_bias": {(id,): -5.0 for id in range(500)}},
        {"dry_multiplier": 5.0, "dry_allowed_length": 1},
        {"samplers": ["top_k"], "top_k": 1},
    ],
    ids=str,
)
def test_every_option_reaches_the_core(demo, changed):
    plain = demo.generate_tokens(PROMPT, **SAMPLED)
    assert demo.generate_tokens(PROMPT, **(SAMPLED | changed)) != plain


def test_the_default_chain_is_the_cores():
    assert tuple(_core.SamplingOptions().steps) == SAMPLERS == GenerateOptions().samplers


def test_logprobs_are_those_that_score_gives(demo):
    ids = demo.tokenizer.encode(PROMPT)
    found = pieces(demo, **(SAMPLED | {"top_k": 5}), logprobs=True)
    tokens = [piece.token for piece in found]
    expected = demo.score(ids + tokens)[-len(tokens) :]
    # The products of prefill and of decode sum in different orders: float32 rounding, the bound used everywhere.
    bound = 2e-4 * float(np.ptp(demo.logits(ids)))
    assert [piece.logprob for piece in found] == pytest.approx(expected, abs=bound)
    assert all(piece.top_logprobs is None for piece in found)


def test_top_logprobs_are_of_the_whole_vocabulary_before_any_option(demo):
    for piece in pieces(demo, temperature=0, max_tokens=10, top_logprobs=20, logit_bias={5: -100}):
        ids = [id for id, _ in piece.top_logprobs]
        logprobs = [logprob for _, logprob in piece.top_logprobs]
        assert len(set(ids)) == 20
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(np.exp(logprobs)) <= 1
        if 5 not in ids:
            assert (piece.token, piece.logprob) == piece.top_logprobs[0]


def test_without_being_asked_for_there_are_no_logprobs(demo):
    assert {(piece.logprob, piece.top_logprobs) for piece in pieces(demo, max_tokens=3)} == {(None, None)}


def test_no_token_has_no_logprob(demo):
    assert [piece.logprob for piece in pieces(demo, max_tokens=0, logprobs=True)] == [None]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_runs_that_may_not_repeat_are_those_of_transformers(size):
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("transformers").NoRepeatNGramLogitsProcessor(size)
    rng = np.random.default_rng(size)
    n_banned = 0
    for n_tokens in (1, 2, 3, 4, 9, 60, 60, 400):
        text = rng.integers(0, 3, n_tokens).tolist()
        n_prompt = int(rng.integers(0, n_tokens + 1))
        logits = rng.normal(size=9).astype(np.float32)
        options = _core.SamplingOptions()
        options.no_repeat_ngram_size = size
        options.temperature = 1.0
        sampler = _core.Sampler(options, 0, text[:n_prompt])
        for token in text[n_prompt:]:
            sampler.append(token)
        expected = processor(torch.tensor([text]), torch.tensor(logits[None]))[0].numpy()
        assert ((sampler.probabilities(logits) == 0) == np.isneginf(expected)).all()
        n_banned += int(np.isneginf(expected).sum())
    assert n_banned > 2


def test_biases_of_sequences_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    biases = [([1], 0.5), ([0, 1], -2.0), ([2, 0, 1], 3.0), ([0, 2], -np.inf), ([2, 2], 1.5)]
    theirs = pytest.importorskip("transformers").SequenceBiasLogitsProcessor([[ids, bias] for ids, bias in biases])
    options = _core.SamplingOptions()
    options.sequence_bias = biases
    logits = np.random.default_rng(0).normal(size=9).astype(np.float32)
    for text in itertools.product(range(3), repeat=3):
        for n_prompt in (0, 2, 3):
            sampler = _core.Sampler(options, 0, text[:n_prompt])
            for token in text[n_prompt:]:
                sampler.append(token)
            expected = theirs(torch.tensor([text]), torch.tensor(logits[None]))[0].numpy().astype(np.float64)
            scores = dict.fromkeys(range(9), -np.inf) | {id: score for id, score, _ in sampler.best(logits, 9)}
            found = np.array([scores[id] for id in range(9)]) + np.logaddexp.reduce(logits.astype(np.float64))
            np.testing.assert_allclose(found, expected, atol=1e-5)  # float32's rounding of sums


def test_text_without_repeats_is_that_of_transformers(stories, stories_folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories_folder / "hf", dtype=torch.float32).eval()
    ids = stories.tokenizer.encode("Lily and Tom went to the park. Lily and")
    with torch.no_grad():
        expected = theirs.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False, no_repeat_ngram_size=2)
    found = stories.generate_tokens(ids, max_tokens=60, no_repeat_ngram_size=2)
    assert found == expected[0, len(ids) :].tolist()
    assert found != stories.generate_tokens(ids, max_tokens=60)


def test_plain_greedy_is_left_to_the_device(demo, monkeypatch):
    calls = []
    append_greedy = Conversation.append_greedy

    def spy(self, token, **options):
        calls.append(token)
        return append_greedy(self, token, **options)

    monkeypatch.setattr(Conversation, "append_greedy", spy)
    demo.clear_cache()
    plain = demo.generate_tokens(PROMPT, max_tokens=5, temperature=0)
    assert len(calls) == 4  # the first token comes with the prompt
    logits_wanted = ({"logprobs": True}, {"presence_penalty": 1e-9}, {"logit_bias": {0: 0.0}}, {"min_tokens": 1})
    for options in logits_wanted:
        assert demo.generate_tokens(PROMPT, max_tokens=5, temperature=0, **options) == plain
    assert len(calls) == 4


def test_bad_words_do_not_come(demo):
    plain = demo.generate(PROMPT, temperature=0, max_tokens=60)
    word = max(plain.split(), key=len).strip(".,;:")
    assert word in plain.split(" ")[-1] or word in plain
    assert word not in demo.generate(PROMPT, temperature=0, max_tokens=60, bad_words=[word]).split()
    token = demo.generate_tokens(PROMPT, temperature=0, max_tokens=1)[0]
    assert token not in demo.generate_tokens(PROMPT, temperature=0, max_tokens=60, bad_words=[[token]])


def test_a_banned_token_does_not_come_and_a_raised_one_always_does(demo):
    token = demo.generate_tokens(PROMPT, temperature=0, max_tokens=1)[0]
    assert token not in demo.generate_tokens(PROMPT, temperature=0, max_tokens=60, logit_bias={token: -np.inf})
    assert demo.generate_tokens(PROMPT, **SAMPLED, logit_bias={7: 1000}) == [7] * 40


def test_the_model_does_not_end_before_min_tokens(stories):
    (end,) = stories.tokenizer.eos_token_ids
    ends_at_once = {"temperature": 0, "max_tokens": 20, "logit_bias": {end: 1000}}
    assert stories.generate_tokens(PROMPT, **ends_at_once) == [end]
    tokens = stories.generate_tokens(PROMPT, **ends_at_once, min_tokens=5)
    assert (len(tokens), tokens.index(end)) == (6, 5)


def test_a_presence_penalty_does_not_look_at_the_prompt(demo):
    token = demo.generate_tokens(PROMPT, temperature=0, max_tokens=1)[0]
    ids = [token, token, *demo.tokenizer.encode(PROMPT)]
    first = demo.generate_tokens(ids, temperature=0, max_tokens=1)
    assert demo.generate_tokens(ids, temperature=0, max_tokens=1, presence_penalty=100.0) == first
    assert len(set(demo.generate_tokens(ids, temperature=0, max_tokens=30, presence_penalty=100.0))) == 30


def test_dry_ends_a_loop(demo):
    loop = {"temperature": 0, "max_tokens": 20, "logit_bias": {7: 1000}}
    assert demo.generate_tokens(PROMPT, **loop) == [7] * 20
    tokens = demo.generate_tokens(PROMPT, **loop, dry_multiplier=10_000)
    assert tokens[:3] == [7] * 3  # the fourth would be one that followed two of them before
    assert all(tokens[i : i + 4] != [7] * 4 for i in range(17))


def test_dry_does_not_look_across_its_breakers(demo):
    comma = demo.tokenizer.encode(",", add_special_tokens=False)[-1]
    loop = {"temperature": 0, "max_tokens": 20, "logit_bias": {comma: 1000}, "dry_multiplier": 10_000}
    assert demo.generate_tokens(PROMPT, **loop) != [comma] * 20
    assert demo.generate_tokens(PROMPT, **loop, dry_breakers=",") == [comma] * 20


def test_ids_beyond_the_vocabulary_are_refused_before_the_prompt_is_computed(demo):
    n = demo.config.vocab_size
    for options, message in (
        ({"logit_bias": {n: 1}}, f"logit_bias: token ids go from 0 to {n - 1}, got {n}"),
        ({"bad_words": [[1, n + 5]]}, f"bad_words: token ids go from 0 to {n - 1}, got {n + 5}"),
    ):
        with pytest.raises(UsageError, match=message):
            demo.stream(PROMPT, **options)


def test_a_word_is_banned_with_and_without_a_space_before_it(demo):
    options = GenerateOptions(temperature=0, bad_words=["king"])
    sampler = make_sampler(options, [0], demo.tokenizer, demo.config.vocab_size)
    for text in ("king", " king"):
        ids = demo.tokenizer.encode(text, add_special_tokens=False)
        for id in ids[:-1]:
            sampler.append(id)
        logits = np.zeros(demo.config.vocab_size, np.float32)
        logits[ids[-1]] = 9
        assert sampler.sample(logits) != ids[-1]
