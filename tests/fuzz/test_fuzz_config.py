"""Random changes to good configs of every family: nothing but our errors, and never much memory or time."""

import copy
import json
import os
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from russet.config import Config, Reader
from russet.errors import RussetError
from russet.models import families, family_of
from russet.weights import expected_shapes

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("RUSSET_FUZZ_SECONDS", "5"))

ROPES = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
     "mscale": 1.0, "mscale_all_dim": 0.8, "attention_factor": 1.2, "truncate": False},
    {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 3.0,
     "original_max_position_embeddings": 32, "partial_rotary_factor": 1.0},
]  # fmt: skip

#: Every key that any family reads, with a value that makes sense.
GOOD = {
    "vocab_size": 100, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 64, "hidden_act": "silu",
    "hidden_activation": "gelu", "activation_function": "relu", "rms_norm_eps": 1e-6, "layer_norm_eps": 1e-6,
    "layer_norm_epsilon": 1e-6, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": True,
    "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1, "sliding_window_pattern": 2,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"], "no_rope_layers": [1, 0, 1],
    "no_rope_layer_interval": 2, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
    "attention_multiplier": 0.1, "logits_scaling": 4.0, "rope_theta": 1e4, "rope_local_base_freq": 1e3,
    "partial_rotary_factor": 1.0, "original_max_position_embeddings": 32, "rotary_pct": 0.5,
    "rotary_emb_base": 1e4, "use_parallel_residual": True, "n_embd": 24, "n_head": 3, "n_layer": 3,
    "n_positions": 64, "n_inner": 40, "scale_attn_weights": True, "is_encoder_decoder": False,
    "quantization_config": None, "scale_attn_by_inverse_layer_idx": False, "per_layer_config": None,
}  # fmt: skip

numbers = (
    st.integers(-2, 70)
    | st.sampled_from([2**20, 2**20 + 1, 2**30, 2**31 - 1, 2**31, 2**63, 10**400, 1_000, 1_001, 10**6])
    | st.floats()
    | st.sampled_from([0.0, -0.0, 5e-324, 1e-30, 1e30, 3e38, 1e308, 1.0, 1e6])
)
texts = st.text(max_size=6) | st.sampled_from(
    ["llama", "full_attention", "sliding_attention", "longrope", "yarn", "dynamic", "su", "linear", "gelu", "self"]
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=6,
)


@st.composite
def configs(draw):
    """A good config with up to six keys, at any depth, gone or changed."""
    family = draw(st.sampled_from(sorted(families())))
    values = copy.deepcopy(GOOD)
    values["rope_scaling"] = draw(st.sampled_from([None, *ROPES]))
    rope = draw(st.sampled_from(ROPES))
    nested = {"full_attention": rope, "sliding_attention": draw(st.sampled_from(ROPES))}
    values["rope_parameters"] = nested if family.startswith("gemma3") else rope
    if family == "gemma3":
        values = {"text_config": values}
    values = copy.deepcopy({"model_type": family, **values})
    for _ in range(draw(st.integers(0, 6))):
        place = values
        while True:
            key = draw(st.sampled_from(sorted(place))) if place else "factor"
            inner = place.get(key)
            if not isinstance(inner, dict) or not inner or draw(st.integers(0, 3)) == 0:
                break
            place = inner
        change = draw(st.sampled_from(["drop", "null", "number", "anything"]))
        if change == "drop":
            place.pop(key, None)
        else:
            place[key] = None if change == "null" else draw(numbers if change == "number" else anything)
    if draw(st.booleans()):
        values.update(draw(st.dictionaries(texts, anything, max_size=3)))
    return values


def read(values):
    """All that is done with a config.json before a tensor is looked at; None where it is refused."""
    hf = Reader(values)
    try:
        family = family_of(hf)
        config = family.config(hf)
        sources = family.sources(hf, config)
    except RussetError as error:
        message = str(error)
    else:
        return config, sources
    assert 10 < len(message) < 1000
    return None


def check(values):
    values = json.loads(json.dumps(values))
    start = time.monotonic()
    tracemalloc.start()
    try:
        found = read(values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The most that is allowed: 1,000 layers, or a GPT-NeoX a million wide.
    assert peak < 200e6
    assert time.monotonic() - start < 30
    if found is None:
        return
    config, sources = found
    assert isinstance(config, Config)
    assert len(config.layer_rope) == len(config.layer_window) == config.n_layers <= 1_000
    assert config.n_heads % config.n_kv_heads == 0
    for rope in config.ropes:
        assert 1 <= len(rope.inv_freq) <= config.head_dim // 2
        assert len(rope.long_inv_freq) in (0, len(rope.inv_freq))
    shapes = expected_shapes(config)
    known = {role.split(".", 1)[1] for role in shapes if role.startswith("layers.")} | {"q_norm.w", "k_norm.w"}
    for role in sources:
        assert role in shapes or role.split(".", 2)[2] in known


def test_random_configs():
    options = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        options(given(configs())(check))()


@pytest.mark.parametrize("family", families())
def test_the_unchanged_configs_are_good(family):
    """Else the fuzzer would see little of the code."""
    values = {"model_type": family} | GOOD
    if family.startswith("gemma3"):
        values["rope_parameters"] = {"full_attention": ROPES[4], "sliding_attention": ROPES[0]}
    if family == "gemma3":
        values = {"model_type": family, "text_config": values | {"model_type": "gemma3_text"}}
    assert read(values) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 2**30},
        {"num_hidden_layers": 1_000, "layer_types": None, "no_rope_layers": None},
        {"hidden_size": 2**31 - 1, "head_dim": None},
        {"hidden_size": 2**20, "num_attention_heads": 2**19, "num_key_value_heads": None, "head_dim": 2},
        {"head_dim": 2**31 - 1},
        {"head_dim": 2**20},
        {"vocab_size": 2**31 - 1, "max_position_embeddings": 2**31 - 1},
        {"n_embd": 2**20, "n_head": 2**19, "n_layer": 1_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", families())
def test_huge_sizes_cost_little(family, changes):
    values = {"model_type": family} | GOOD | changes
    if family == "gemma3":
        values = {"model_type": family, "text_config": values}
    check(values)
