"""GenerateOptions: what is accepted, what is refused and how."""

import math

import pytest

from russet import ConfigError, GenerateOptions, UsageError
from russet.config import Reader
from russet.options import options_of


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"temperatur": 1}, "temperatur: no such option; did you mean 'temperature'"),
        ({"max_token": 1}, "did you mean 'max_tokens'"),
        ({"zzz": 1}, "known are bad_words"),
        ({"temp": 1, "temperature": 2}, "given twice"),
        ({"top_p": 0}, "top_p: expected more than 0 and at most 1, got 0"),
        ({"top_p": float("nan")}, "top_p: expected"),
        ({"temperature": -1}, "temperature: expected 0 or more, got -1"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"top_k": 1.5}, "top_k: expected an integer"),
        ({"max_tokens": -1}, "max_tokens: expected an integer from 0 on, or None"),
        ({"seed": -1}, "seed: expected"),
        ({"stop": [""]}, "stop: expected strings that are not empty"),
        ({"stop": 5}, "stop: expected a string or several"),
        ({"stop_token_ids": 5}, "stop_token_ids: expected a list of token ids, got 5"),
        ({"stop_token_ids": [5, -1]}, "stop_token_ids: expected a list of token ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids: expected a list of token ids"),
        ({"timeout": 0}, "timeout: expected a number of seconds above 0, or None, got 0"),
        ({"timeout": float("inf")}, "timeout: expected a number of seconds above 0"),
        ({"timeout": "5s"}, "timeout: expected a number, got '5s'"),
        ({"cancel": True}, "cancel: expected a threading.Event, what else has is_set(), or None, got True"),
        ({"thinking": 1}, "thinking: expected True, False or None, got 1"),
        ({"ignore_eos": 1}, "ignore_eos: expected True or False"),
        ({"context_overflow": "slide"}, "context_overflow: expected 'error' or 'shift', got 'slide'"),
        ({"n_sinks": -1}, "n_sinks: expected an integer from 0 on, got -1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected more than 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty: expected a number"),
        ({"typical_p": 0}, "typical_p: expected more than 0 and at most 1"),
        ({"xtc_probability": 2}, "xtc_probability: expected 0 to 1"),
        ({"mirostat_tau": -1}, "mirostat_tau: expected 0 or more"),
        ({"dry_base": 0.5}, "dry_base: expected 1 or more"),
        ({"dry_breakers": [""]}, "dry_breakers: expected strings that are not empty"),
        ({"penalty_window": -1}, "penalty_window: expected an integer from 0 on"),
        ({"min_tokens": 1.5}, "min_tokens: expected an integer from 0 on"),
        ({"top_logprobs": 21}, "top_logprobs: expected at most 20, got 21"),
        ({"logprobs": 1}, "logprobs: expected True or False"),
        ({"logit_bias": {"a": 1}}, "logit_bias: expected token ids from 0 on, got 'a'"),
        ({"logit_bias": {-1: 1}}, "logit_bias: expected token ids from 0 on, got -1"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias: expected a number or -inf for token 5, got nan"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias: expected a number or -inf for token 5, got inf"),
        ({"logit_bias": {5: 1e300}}, "logit_bias: expected a number or -inf for token 5, got 1e+300"),
        ({"sequence_bias": {(): 1}}, "sequence_bias: expected lists of token ids, none of them empty, got ()"),
        (
            {"sequence_bias": [[[1, "a"], 1]]},
            "sequence_bias: expected lists of token ids, none of them empty, got [1, 'a']",
        ),
        ({"sequence_bias": {(1, 2): None}}, "sequence_bias: expected a number or -inf for tokens (1, 2), got None"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected an integer from 0 on, got -1"),
        ({"logit_bias": 7}, "logit_bias: expected a number or -inf for token 7"),
        ({"bad_words": [""]}, "bad_words: expected texts or lists of token ids"),
        ({"bad_words": [[]]}, "bad_words: expected texts or lists of token ids"),
        ({"bad_words": [[1.5]]}, "bad_words: expected texts or lists of token ids"),
        ({"bad_words": 5}, "bad_words: expected texts or lists of token ids"),
        ({"samplers": ["topk"]}, "samplers: no step is called 'topk'; did you mean 'top_k'?"),
        ({"samplers": ["zzz"]}, "samplers: no step is called 'zzz'; known are penalties, dry, temperature"),
        ({"samplers": ["top_k", "top_p", "top_k"]}, "samplers: 'top_k' is there twice"),
        ({"samplers": "top_k"}, "samplers: expected a list of names, got 'top_k'"),
    ],
)
def test_a_bad_option_is_refused_by_name(keywords, message):
    with pytest.raises(UsageError) as error:
        GenerateOptions().with_keywords(keywords)
    assert message in str(error.value)


def test_aliases_mean_the_same():
    options = GenerateOptions().with_keywords({"temp": 0.5, "max_new_tokens": 7, "min_new_tokens": 2, "stop": "x"})
    assert (options.temperature, options.max_tokens, options.min_tokens, options.stop) == (0.5, 7, 2, ("x",))


def test_biases_and_words_may_be_given_in_several_ways():
    assert GenerateOptions(logit_bias={5: 1, 7: -2.5}) == GenerateOptions(logit_bias=[(5, 1.0), [7, -2.5]])
    assert GenerateOptions(bad_words="a b") == GenerateOptions(bad_words=["a b"])
    assert GenerateOptions(bad_words=[[1, 2], "x"]).bad_words == ((1, 2), "x")


def test_top_logprobs_ask_for_logprobs():
    assert GenerateOptions(top_logprobs=1).logprobs
    assert not GenerateOptions().logprobs


def test_generation_config_is_greedy_unless_it_says_do_sample():
    assert options_of(Reader({"temperature": 0.6, "top_p": 0.9})).temperature == 0


def test_generation_config_has_transformers_defaults():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(do_sample=True)
    default_top_k = theirs.top_k if theirs.top_k is not None else 50
    ours = options_of(Reader({"do_sample": True}))
    assert (ours.temperature, ours.top_k, ours.top_p) == (1.0, default_top_k, 1.0)


def test_generation_config_is_followed():
    ours = options_of(
        Reader({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1})
    )
    assert (ours.temperature, ours.top_k, ours.top_p, ours.repetition_penalty) == (0.6, 20, 0.95, 1.1)


def test_generation_config_has_bans_and_lengths_too():
    ours = options_of(
        Reader({"min_new_tokens": 5, "bad_words_ids": [[1, 2], [3]], "suppress_tokens": [8, 9], "typical_p": 0.5})
    )
    assert (ours.min_tokens, ours.bad_words) == (5, ((1, 2), (3,)))
    biased = options_of(Reader({"sequence_bias": [[[4, 5], -1.5], [[6], 2]]}))
    assert biased.sequence_bias == (((4, 5), -1.5), ((6,), 2.0))
    assert options_of(Reader({"no_repeat_ngram_size": 3})).no_repeat_ngram_size == 3
    assert options_of(Reader({"no_repeat_ngram_size": 0})).no_repeat_ngram_size == 0
    assert ours.logit_bias == ((8, -math.inf), (9, -math.inf))
    assert ours.typical_p == 1  # without do_sample nothing is sampled
    assert options_of(Reader({"do_sample": True, "typical_p": 0.5})).typical_p == 0.5


@pytest.mark.parametrize("key", ["bad_words_ids", "suppress_tokens", "sequence_bias"])
@pytest.mark.parametrize("value", [5, ["a"], [[]], [-1], [{}]])
def test_a_bad_list_in_generation_config_names_the_file(key, value):
    with pytest.raises(ConfigError, match=r"generation_config.json: "):
        options_of(Reader({key: value}, "generation_config.json"))


@pytest.mark.parametrize("top_k", [0, None])
def test_generation_config_can_switch_top_k_off(top_k):
    assert options_of(Reader({"do_sample": True, "top_k": top_k})).top_k == 0


def test_settings_russet_lacks_are_named_not_ignored(caplog):
    options_of(Reader({"num_beams": 1, "epsilon_cutoff": 0.0}, "generation_config.json"))
    assert caplog.text == ""
    options_of(Reader({"num_beams": 3}, "generation_config.json"))
    assert "generation_config.json: num_beams not supported, left out" in caplog.text


def test_a_bad_value_in_generation_config_names_the_file():
    with pytest.raises(ConfigError, match=r"generation_config.json: temperature: expected 0 or more, got -1"):
        options_of(Reader({"do_sample": True, "temperature": -1}, "generation_config.json"))
