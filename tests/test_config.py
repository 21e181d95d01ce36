"""config.json to plain numbers: defaults, ropes and older styles as transformers has them, and what is refused."""

import contextlib
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from russet.config import Config, Reader
from russet.errors import ConfigError, UnknownFamily
from russet.models import families, family_of
from tiny_models import BASE, CASES, LINEAR, YARN, hf_config, longrope, older_style, read_config

DOCS = Path(__file__).resolve().parents[1] / "docs"
STORIES = Path(__file__).resolve().parents[2] / "shared/data/weights/stories260K/hf"

ALL_CASES = [pytest.param(f, c, id=f"{f}-{i}") for f, cases in CASES.items() for i, c in enumerate(cases)]


def saved(config) -> dict:
    """What transformers writes to config.json."""
    return json.loads(config.to_json_string())


def test_every_family_file_is_whole():
    assert families().keys() == {*CASES, "ministral"}
    for family in families().values():
        assert "model_type" not in family.file.DEFAULTS
        assert isinstance(family.IGNORED, tuple)


def test_every_family_is_in_the_docs():
    text = (DOCS / "models.md").read_text()
    for model_type in families():
        assert f"`{model_type}`" in text


# ---- the two styles ----


@pytest.mark.parametrize(("family", "case"), ALL_CASES)
def test_older_style_means_the_same(family, case):
    today = saved(hf_config(family, **case))
    if family == "gemma3_text" and case.get("rope_parameters", {}).get("sliding_attention", {}).get("rope_type") == (
        "llama3"
    ):
        pytest.skip("the older style had no scaling for windowed layers")
    older = older_style(today)
    text = older.get("text_config", older)
    assert "rope_parameters" not in text
    assert "dtype" not in text
    assert "rope_scaling" in text or family == "gpt2"
    assert read_config(older) == read_config(today)


def test_stories_config_in_both_styles():
    if not STORIES.exists():
        pytest.skip(f"no {STORIES}")
    today = json.loads((STORIES / "config.json").read_text())
    older = json.loads((STORIES / "config.v4style.json").read_text())
    assert today != older
    assert read_config(today) == read_config(older)


def test_rope_scaling_wins_over_rope_parameters():
    both = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}
    assert saved(hf_config("llama", **copy.deepcopy(both)))["rope_parameters"]["rope_type"] == "linear"
    values = {"model_type": "llama", "rope_theta": 10000.0, **BASE}
    assert read_config(values | both) == read_config(values | {"rope_scaling": both["rope_scaling"]})


# ---- defaults ----


@pytest.mark.parametrize("family", families())
def test_an_empty_config_is_transformers_default(family):
    assert read_config({"model_type": family}) == read_config(saved(CONFIG_MAPPING[family]()))


@pytest.mark.parametrize(("family", "case"), ALL_CASES)
def test_missing_keys_mean_what_they_mean_to_transformers(family, case):
    values = saved(hf_config(family, **case))
    values.pop("transformers_version", None)
    rng = np.random.default_rng(0)
    n_compared = 0
    for _ in range(12):
        part = copy.deepcopy(values)
        text = part.get("text_config", part)
        for key in rng.choice(sorted(text.keys() - {"model_type"}), 4, replace=False):
            del text[key]
        try:
            filled = saved(CONFIG_MAPPING[values["model_type"]](**copy.deepcopy(part)))
        except Exception:
            continue  # one key contradicts the default of another
        with contextlib.suppress(ConfigError):
            expected = read_config(filled)
            assert read_config(part) == expected
            n_compared += 1
    assert n_compared >= 2


def test_null_is_not_the_default():
    mistral = {"model_type": "mistral", **BASE, "num_key_value_heads": 5}
    assert read_config(mistral).layer_window == (4096,) * 3
    assert read_config(mistral | {"sliding_window": None}).layer_window == (0,) * 3
    assert read_config(mistral | {"num_key_value_heads": None}).n_kv_heads == 5


# ---- ropes ----

LONG = [1.0 + i / 7 for i in range(48)]
REAL_ROPES = {
    "llama 3.1": ("llama", {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, {}),
    "linear": ("llama", LINEAR, {}),
    "dynamic": ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, {}),
    "qwen 2.5 yarn": ("qwen2", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                                "original_max_position_embeddings": 32768}, {}),
    "yarn, all of it": ("llama", YARN | {"beta_fast": 20, "beta_slow": 2, "mscale": 1.1, "mscale_all_dim": 0.5,
                                         "truncate": False}, {}),
    "yarn, attention_factor": ("llama", YARN | {"attention_factor": 1.25}, {}),
    "phi-4-mini": ("phi3", {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
                            "long_factor": LONG, "partial_rotary_factor": 0.75},
                   {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072}),
    "longrope, attention_factor": ("phi3", {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": LONG,
                                            "long_factor": LONG, "partial_rotary_factor": 0.75,
                                            "attention_factor": 1.5}, {}),
    "pythia": ("gpt_neox", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}, {}),
    "odd part": ("gpt_neox", {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.04}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("family", "parameters", "changes"), REAL_ROPES.values(), ids=REAL_ROPES)
def test_frequencies_are_those_of_transformers(family, parameters, changes):
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}  # heads of 128
    theirs = hf_config(family, **sizes, **changes, rope_parameters=parameters)
    (rope,) = read_config(saved(theirs)).ropes
    kind = parameters["rope_type"]
    if kind == "default":
        model = AutoModelForCausalLM.from_config(theirs)
        expected, scale = model.gpt_neox.rotary_emb.inv_freq, 1.0
    else:
        expected, scale = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    # Not bit by bit: powf is off by an ulp here and there, in torch or in numpy.
    np.testing.assert_allclose(rope.inv_freq, expected.numpy(), rtol=3e-7)
    assert rope.scale == pytest.approx(scale, rel=1e-6)
    if kind == "longrope":
        expected, scale = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=rope.original_ctx + 1)
        np.testing.assert_allclose(rope.long_inv_freq, expected.numpy(), rtol=3e-7)
        assert rope.long_scale == pytest.approx(scale, rel=1e-6)
        assert rope.original_ctx == theirs.original_max_position_embeddings
    if kind == "dynamic":
        assert (rope.original_ctx, rope.dynamic_factor) == (theirs.max_position_embeddings, 4.0)


def test_original_context_may_stand_beside_the_rope():
    theirs = hf_config("llama", head_dim=64, rope_parameters=YARN, original_max_position_embeddings=24)
    (rope,) = read_config(saved(theirs)).ropes
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    np.testing.assert_allclose(rope.inv_freq, expected.numpy(), rtol=3e-7)
    (other,) = read_config(saved(hf_config("llama", head_dim=64, rope_parameters=YARN))).ropes
    assert rope != other


def test_early_phi3_names_of_longrope():
    values = saved(hf_config("phi3", hidden_size=40, rope_parameters=longrope(4, 16)))
    expected = read_config(values)
    for name in ("su", "yarn"):
        values["rope_parameters"]["rope_type"] = name
        assert read_config(values) == expected


# ---- refusals ----

REFUSED = {
    "activation": (
        "llama", {"hidden_act": "relu2"},
        "config.json: hidden_act='relu2': expected one of silu, swish, gelu,",
    ),
    "rope kind": (
        "llama", {"rope_scaling": {"type": "mrope"}},
        "config.json: rope_scaling: type='mrope': russet knows the ropes default, linear, dynamic, llama3, yarn, "
        "longrope, su",
    ),
    "rope without factor": (
        "llama", {"rope_parameters": {"rope_type": "linear"}},
        "config.json: rope_parameters: expected a number for 'factor', found no such key",
    ),
    "rope factor": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "config.json: rope_parameters: factor: expected a number above 0, got 0",
    ),
    "rope theta": (
        "llama", {"rope_theta": 1, "rope_parameters": {"rope_theta": 0.5}},
        "rope_parameters: rope_theta: expected a number above 1, got 0.5",
    ),
    "longrope factors": (
        "phi3", {"hidden_size": 40, "rope_parameters": longrope(5, 16)},
        "config.json: rope_parameters: short_factor: expected a list of 4 numbers, got [1.0,",
    ),
    "longrope zero": (
        "phi3", {"hidden_size": 40, "rope_parameters": longrope(4, 16) | {"long_factor": [1, 2, 0, 3]}},
        "rope_parameters: rope_type='longrope': its parameters give frequencies that are not finite",
    ),
    "part of a head": (
        "llama", {"partial_rotary_factor": 1, "rope_parameters": {"partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor: expected 1, as this family rotates whole heads, got 0.5",
    ),
    "part of a head, older style": (
        "llama", {"partial_rotary_factor": 0.5},
        "partial_rotary_factor: expected 1, as this family rotates whole heads, got 0.5",
    ),
    "more than a head": (
        "phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected at most 1, got 1.5",
    ),
    "odd head": ("llama", {"head_dim": 7}, "config.json: rope_parameters: cannot rotate 7 of 7 in pairs"),
    "two ropes": (
        "qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters: full_attention={'rope_type': 'default'}: this family has one rope for all its layers",
    ),
    "one rope": (
        "gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "expected an object for each of the two layer types",
    ),
    "layer type": (
        "qwen3", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
        "config.json: layer_types=['full_attention', 'chunked_attention', 'full_attention']: russet knows full and "
        "sliding attention, not chunked_attention",
    ),
    "layer types": (
        "qwen3", {"layer_types": ["full_attention"] * 4},
        "config.json: layer_types: expected a list of 3 strings, got ['full_attention',",
    ),
    "window not in use": (
        "qwen2", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 5},
        "config.json: expected a positive integer for 'sliding_window', found no such key",
    ),
    "heads": (
        "llama", {"num_key_value_heads": 3},
        "config.json: num_key_value_heads=3: 5 heads cannot share them evenly",
    ),
    "more key-value heads": (
        "llama", {"num_key_value_heads": 10},
        "config.json: num_key_value_heads: expected a positive integer up to 5, got 10",
    ),
    "uneven heads": ("gpt2", {"n_head": 5}, "config.json: n_head=5: a width of 768 cannot be cut into equal heads"),
    "uneven neox heads": (
        "gpt_neox", {"num_attention_heads": 7},
        "config.json: num_attention_heads=7: a width of 30 cannot be cut into equal heads",
    ),
    "attention by layer": (
        "gpt2", {"scale_attn_by_inverse_layer_idx": True},
        "config.json: scale_attn_by_inverse_layer_idx=True: russet scales attention alike in all layers",
    ),
    "soft-cap": ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping: expected a number above 0, got 0"),
    "division by zero": ("granite", {"logits_scaling": 0.0}, "logits_scaling: expected a number above 0, got 0.0"),
    "layers": (
        "llama", {"num_hidden_layers": 2**30},
        "config.json: num_hidden_layers: expected a positive integer up to 1,000, got 1073741824",
    ),
    "width": ("llama", {"hidden_size": 2**21}, "hidden_size: expected a positive integer up to 1,048,576, got 2097152"),
    "bool": ("llama", {"num_hidden_layers": True}, "expected a positive integer up to 1,000, got True"),
    "text": ("llama", {"vocab_size": "9"}, "vocab_size: expected a positive integer up to 2,147,483,647, got '9'"),
    "huge": ("llama", {"rms_norm_eps": 10**400}, "config.json: rms_norm_eps: expected a finite number, got 1000000"),
    "nan": ("llama", {"rms_norm_eps": float("nan")}, "config.json: rms_norm_eps: expected a finite number, got nan"),
    "flag": ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
    "section": ("llama", {"rope_parameters": [1]}, "config.json: rope_parameters: expected an object, got [1]"),
    "inside": (
        "gemma3", {"text_config": {"num_hidden_layers": 0}},
        "config.json: text_config: num_hidden_layers: expected a positive integer up to 1,000, got 0",
    ),
    "quantised": (
        "llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "config.json: quantization_config: weights quantised by gptq; russet reads f32, f16 and bf16 safetensors, and "
        "MLX's affine groups of 8 or 4 bits: pass the checkpoint these were made from",
    ),
    "quantised to 6 bits": (
        "llama", {"quantization": {"group_size": 64, "bits": 6}},
        "config.json: quantization: bits=6: russet reads f32, f16 and bf16 safetensors, and MLX's affine groups of 8",
    ),
    "quantised in part to 3 bits": (
        "llama", {"quantization": {"group_size": 64, "bits": 4, "lm_head": {"group_size": 64, "bits": 3}}},
        "config.json: quantization: lm_head: bits=3: russet reads",
    ),
    "another mode": (
        "llama", {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
        "config.json: quantization: mode='mxfp4': russet reads",
    ),
    "encoder": ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=True: russet runs decoders alone"),
    "cross-attention": ("gpt2", {"add_cross_attention": True}, "config.json: add_cross_attention=True: russet runs"),
    "both ways": (
        "gemma3_text", {"use_bidirectional_attention": True},
        "config.json: use_bidirectional_attention=True: russet runs decoders alone, each token seeing those before it",
    ),
    "both ways, inside": (
        "gemma3", {"text_config": {"use_bidirectional_attention": True}},
        "config.json: text_config: use_bidirectional_attention=True: russet runs decoders alone",
    ),
    "uneven layers": (
        "llama", {"per_layer_config": {"0": {"intermediate_size": 3}}},
        "config.json: per_layer_config={'0': {'intermediate_size': 3}}: russet runs layers that are all of one size",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(family, changes, message):
    values = {"model_type": family}
    if family not in ("gpt2", "gemma3"):
        values |= BASE | {"num_key_value_heads": 5}
    assert isinstance(read_config(values), Config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(values | changes)


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("llama4", "llama"), ("mixtral", "mistral"), ("qwen3_moe", "qwen3"), ("gemma", "gemma3"), ("bert", None)],
)
def test_an_unknown_family_is_told_the_nearest(model_type, nearest):
    with pytest.raises(UnknownFamily) as caught:
        family_of(Reader({"model_type": model_type}))
    message = str(caught.value)
    assert message.startswith(f"config.json: model_type {model_type!r} is not one russet knows (gemma2, gemma3, ")
    assert (f"; the nearest is {nearest!r}; " in message) if nearest else ("nearest" not in message)
    assert message.endswith("CONTRIBUTING.md, 'Add a model family', has the recipe")


def test_no_model_type():
    with pytest.raises(ConfigError, match="expected a 'model_type', found none"):
        family_of(Reader({"architectures": ["LlamaForCausalLM"]}))


def test_a_long_model_type_is_cut_short():
    with pytest.raises(UnknownFamily) as caught:
        family_of(Reader({"model_type": "llama" * 10**6}))
    assert len(str(caught.value)) < 600
