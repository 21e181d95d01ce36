"""GenerateOptions: what is accepted, what is refused and how."""

import pytest

from russet import ConfigError, GenerateOptions, UsageError
from russet.config import Reader
from russet.options import options_of


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"temperatur": 1}, "temperatur: no such option; did you mean 'temperature'"),
        ({"max_token": 1}, "did you mean 'max_tokens'"),
        ({"zzz": 1}, "known are context_overflow, ignore_eos"),
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
        ({"ignore_eos": 1}, "ignore_eos: expected True or False"),
        ({"context_overflow": "slide"}, "context_overflow: expected 'error' or 'shift', got 'slide'"),
        ({"n_sinks": -1}, "n_sinks: expected an integer from 0 on, got -1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected more than 0"),
    ],
)
def test_a_bad_option_is_refused_by_name(keywords, message):
    with pytest.raises(UsageError) as error:
        GenerateOptions().with_keywords(keywords)
    assert message in str(error.value)


def test_aliases_mean_the_same():
    options = GenerateOptions().with_keywords({"temp": 0.5, "max_new_tokens": 7, "stop": "x"})
    assert (options.temperature, options.max_tokens, options.stop) == (0.5, 7, ("x",))


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


@pytest.mark.parametrize("top_k", [0, None])
def test_generation_config_can_switch_top_k_off(top_k):
    assert options_of(Reader({"do_sample": True, "top_k": top_k})).top_k == 0


def test_settings_russet_lacks_are_named_not_ignored(caplog):
    options_of(Reader({"no_repeat_ngram_size": 0, "num_beams": 1}, "generation_config.json"))
    assert caplog.text == ""
    options_of(Reader({"no_repeat_ngram_size": 3}, "generation_config.json"))
    assert "generation_config.json: no_repeat_ngram_size not supported, left out" in caplog.text


def test_a_bad_value_in_generation_config_names_the_file():
    with pytest.raises(ConfigError, match=r"generation_config.json: temperature: expected 0 or more, got -1"):
        options_of(Reader({"do_sample": True, "temperature": -1}, "generation_config.json"))
