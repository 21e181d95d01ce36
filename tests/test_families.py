"""Every model family against transformers, on tiny random checkpoints that it saved."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch

from russet.checkpoint import open_checkpoint
from russet.config import Reader
from russet.errors import WeightsError
from russet.models import family_of
from russet.weights import bind
from tiny_models import (
    CASES,
    DYNAMIC,
    LINEAR,
    LLAMA3,
    YARN,
    expected_greedy,
    expected_logits,
    greedy,
    load,
    longrope,
    make,
    make_case,
    prompt_of,
    random_case,
    transformers_model,
)

torch.set_num_threads(1)

ALL_CASES = [pytest.param(f, i, id=f"{f}-{i}") for f, cases in CASES.items() for i in range(len(cases))]

#: The largest difference of logits that are the same but for the order of float32 sums, in parts of their spread
#: (max - min). Measured: 2e-7 to 9e-6.
SAME = 2e-4


def difference(logits, expected):
    return np.abs(logits - expected).max() / np.ptp(expected)


def logits_of(backend, prompt):
    return backend.session(len(prompt)).forward(prompt, all_logits=True)


@pytest.mark.parametrize(("family", "case"), ALL_CASES)
def test_logits_and_text_match_transformers(family, case, tmp_path):
    model = make_case(tmp_path, family, case)
    config, backend = load(tmp_path)
    prompt = prompt_of(70)
    assert difference(logits_of(backend, prompt), expected_logits(model, prompt)) < SAME

    tokens, leads = greedy(config, backend.session(100), prompt[:25], 64)
    assert tokens == expected_greedy(model, prompt[:25], 64)
    # The text could have gone another way: it is no loop of a few tokens, nor does it hang on a rounding error.
    assert len(set(tokens)) >= 12
    assert min(leads) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_chance_configs_match_transformers(family, tmp_path):
    for seed in range(25):
        case = random_case(family, seed)
        model = make(tmp_path / str(seed), family, seed=seed, **case)
        config, backend = load(tmp_path / str(seed))
        prompt = prompt_of(90, seed=seed)
        assert difference(logits_of(backend, prompt), expected_logits(model, prompt)) < SAME, case
        tokens, leads = greedy(config, backend.session(100), prompt[:25], 64)
        expected = expected_greedy(model, prompt[:25], 64)
        same = [t == e for t, e in zip(tokens, expected, strict=True)]
        assert all(same) or leads[same.index(False)] < 1e-5, case  # a tie, but for roundings


# A number in bf16 is off by up to eps / 2 (eps = 2^-8; in f16 2^-10), 0.29 eps on average (root mean square). Some
# 20 such roundings a layer add up at random, to 0.29 sqrt(20 * 3) eps = 2.2 eps for most of these models, in parts
# of a typical logit. Of 7,000 logits the worst is off by 4 times that, and the spread is 7 typical logits: 1.3 eps.
# Softmax and norms magnify some of it. Measured: 0.4 to 6.3 eps.
ROUNDED = 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("family", CASES)
def test_half_precision_weights(family, dtype, tmp_path):
    model = make_case(tmp_path, family, 0, dtype=dtype, gain=1.0)
    stored = {tensor.dtype for tensor in open_checkpoint(tmp_path).tensors.values()}
    assert stored == {"bf16" if dtype == torch.bfloat16 else "f16"}
    _, backend = load(tmp_path)
    prompt = prompt_of(70)
    logits = logits_of(backend, prompt)
    # Widening is exact, so the bound is that of float32; transformers computing in the half type is further off.
    assert difference(logits, expected_logits(model, prompt)) < SAME
    rounded = expected_logits(transformers_model(tmp_path, dtype), prompt)
    assert difference(logits, rounded) < ROUNDED * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 1e4}, LINEAR, LLAMA3, YARN, DYNAMIC, longrope(5, 40)],
    ids=lambda rope: rope["rope_type"],
)
def test_far_positions(rope, tmp_path):
    changes = {"max_position_embeddings": 1000} | ({"head_dim": 10} if "long_factor" in rope else {})
    model = make(tmp_path, "llama", rope_parameters=rope, num_attention_heads=3, **changes)
    _, backend = load(tmp_path)
    prompt = prompt_of(1800)
    assert difference(logits_of(backend, prompt), expected_logits(model, prompt)) < SAME


# ---- ropes that depend on the length of the text ----

LENGTH_ROPES = [
    pytest.param("phi3", CASES["phi3"][1], 32, id="longrope"),
    pytest.param("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}, 32, id="dynamic"),
]


@pytest.mark.parametrize(("family", "case", "original_ctx"), LENGTH_ROPES)
def test_chunks_that_know_the_length_make_the_same_logits(family, case, original_ctx, tmp_path):
    model = make(tmp_path, family, **case)
    _, backend = load(tmp_path)
    prompt = prompt_of(original_ctx + 20)
    expected = expected_logits(model, prompt)
    for sizes in ([10, 30, 12], [1] * len(prompt), [original_ctx, 20]):
        assert sum(sizes) == len(prompt)
        informed, ignorant = backend.session(60), backend.session(60)
        chunks = [prompt[end - size : end] for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
        logits = [informed.forward(c, all_logits=True, text_length=len(prompt)) for c in chunks]
        assert difference(np.concatenate(logits), expected) < SAME
        logits = [ignorant.forward(c, all_logits=True) for c in chunks]
        assert difference(np.concatenate(logits), expected) > 100 * SAME


def test_longrope_text_that_grows_long_is_computed_anew(tmp_path):
    model = make_case(tmp_path, "phi3", 1)
    config, backend = load(tmp_path)
    (rope,) = config.ropes
    prompt = prompt_of(rope.original_ctx - 5)
    tokens, _ = greedy(config, backend.session(100), prompt, 10)
    text = prompt + tokens
    expected = expected_greedy(model, prompt, 10)
    assert tokens == expected
    # Every choice after the change, and none before, was made with the long frequencies for all of the text.
    for n in range(len(prompt), len(text)):
        (logits,) = backend.session(100).forward(text[:n])
        assert logits.argmax() == text[n]
    # Going on with the keys of short frequencies gives something else.
    session = backend.session(100)
    session.forward(text[: rope.original_ctx])
    mixed = session.forward(text[rope.original_ctx : rope.original_ctx + 1])
    anew = backend.session(100).forward(text[: rope.original_ctx + 1])
    assert difference(mixed, anew) > 100 * SAME


def test_dynamic_text_that_grows_long_keeps_its_keys(tmp_path):
    case = {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}
    model = make(tmp_path, "llama", **case)
    config, backend = load(tmp_path)
    prompt = prompt_of(28)
    tokens, _ = greedy(config, backend.session(100), prompt, 30)
    assert tokens == expected_greedy(model, prompt, 30)
    # Unlike one pass over the same text, in which all keys are rotated for the full length.
    text = prompt + tokens
    session = backend.session(100)
    session.forward(prompt)
    for token in tokens:
        (grown,) = session.forward([token])
    (at_once,) = backend.session(100).forward(text)
    assert difference(grown, at_once) > 10 * SAME


# ---- tensors ----


def rewrite(folder, change):
    """Save the folder's tensors again after change(tensors)."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file({k: t.clone().contiguous() for k, t in tensors.items()}, path, {"format": "pt"})


def bound(folder, **options):
    """The folder's weights by role."""
    checkpoint = open_checkpoint(folder)
    hf = Reader(checkpoint.config)
    family = family_of(hf)
    config = family.config(hf)
    return bind(checkpoint.tensors, family.sources(hf, config), config, ignored=family.IGNORED, **options)


def matches_transformers(folder):
    prompt = prompt_of(30)
    return difference(logits_of(load(folder)[1], prompt), expected_logits(transformers_model(folder), prompt)) < SAME


def test_a_head_stored_beside_a_tied_embedding(tmp_path):
    make_case(tmp_path, "llama", 1)
    before = logits_of(load(tmp_path)[1], prompt_of(30))
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    np.testing.assert_array_equal(logits_of(load(tmp_path)[1], prompt_of(30)), before)
    assert matches_transformers(tmp_path)
    # One that differs is used all the same, whatever the config says: as in transformers.
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].flip(0)}))
    assert difference(logits_of(load(tmp_path)[1], prompt_of(30)), before) > 100 * SAME
    assert matches_transformers(tmp_path)


def test_a_tied_checkpoint_may_keep_the_head_alone(tmp_path):
    make_case(tmp_path, "llama", 1)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert matches_transformers(tmp_path)


def test_gpt2_without_prefix_and_with_its_masks(tmp_path):
    make_case(tmp_path, "gpt2", 0)

    def as_published(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 160, 160).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(tmp_path, as_published)
    assert "h.0.ln_1.weight" in open_checkpoint(tmp_path).tensors
    assert matches_transformers(tmp_path)


def test_gpt_neox_with_its_masks_and_either_name_of_the_head(tmp_path):
    make_case(tmp_path, "gpt_neox", 0)
    names = set()

    def as_published(tensors):
        head = next(name for name in tensors if name in ("embed_out.weight", "lm_head.weight"))
        names.add(head)
        other = "lm_head.weight" if head == "embed_out.weight" else "embed_out.weight"
        tensors[other] = tensors.pop(head)
        for layer in range(3):
            attention = f"gpt_neox.layers.{layer}.attention"
            tensors[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
            tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)

    assert matches_transformers(tmp_path)
    rewrite(tmp_path, as_published)
    assert matches_transformers(tmp_path)
    rewrite(tmp_path, as_published)
    assert names == {"lm_head.weight", "embed_out.weight"}


def test_gemma3_in_the_names_it_has_in_memory(tmp_path):
    make_case(tmp_path, "gemma3", 2)
    before = logits_of(load(tmp_path)[1], prompt_of(30))

    def as_in_memory(tensors):
        for name in list(tensors):
            new = name.replace("language_model.model.", "language_model.")
            tensors[f"model.{new}"] = tensors.pop(name)

    rewrite(tmp_path, as_in_memory)
    assert "model.language_model.norm.weight" in open_checkpoint(tmp_path).tensors
    np.testing.assert_array_equal(logits_of(load(tmp_path)[1], prompt_of(30)), before)


def test_fused_tensors_are_not_copied(tmp_path):
    make_case(tmp_path, "phi3", 0)
    checkpoint = open_checkpoint(tmp_path)
    hf = Reader(checkpoint.config)
    config = family_of(hf).config(hf)
    weights = bind(checkpoint.tensors, family_of(hf).sources(hf, config), config)
    for role, name in [("q", "self_attn.qkv_proj"), ("v", "self_attn.qkv_proj"), ("up", "mlp.gate_up_proj")]:
        stored = checkpoint.tensors[f"model.layers.1.{name}.weight"].numpy()
        assert np.shares_memory(weights[f"layers.1.{role}.w"][0], stored)


def drop(name):
    return lambda tensors: tensors.pop(name)


def replace(name, make_tensor):
    return lambda tensors: tensors.update({name: make_tensor(tensors.get(name))})


BROKEN = {
    "missing": (
        "llama", 0, drop("model.layers.1.mlp.up_proj.weight"),
        "model.layers.1.mlp.up_proj.weight: missing; a llama model needs it",
    ),
    "missing bias": (
        "qwen2", 0, drop("model.layers.0.self_attn.k_proj.bias"),
        "model.layers.0.self_attn.k_proj.bias: missing; a qwen2 model needs it",
    ),
    "missing head": ("llama", 0, drop("lm_head.weight"), "lm_head.weight: missing; a llama model needs it"),
    "missing embedding": (
        "llama", 1, drop("model.embed_tokens.weight"),
        "model.embed_tokens.weight: missing; a llama model needs it",
    ),
    "extra": (
        "llama", 0, replace("model.layers.3.mlp.up_proj.weight", lambda t: torch.ones(2, 2)),
        "model.layers.3.mlp.up_proj.weight: a llama model has no such tensor; load with strict=False to leave it out",
    ),
    "two extra": (
        "phi3", 0, lambda t: t.update({"a": torch.ones(1), "b": torch.ones(1)}),
        "a: a phi3 model has no such tensor (nor 1 more); load with strict=False to leave it out",
    ),
    "shape": (
        "llama", 0, replace("model.layers.2.mlp.up_proj.weight", lambda t: t[:, 1:]),
        "model.layers.2.mlp.up_proj.weight: expected [44, 30], got [44, 29] f32 (by config.json: 30 wide, 5 heads, "
        "1 key-value heads of 6, ffn 44, vocabulary 101)",
    ),
    "fused shape": (
        "phi3", 0, replace("model.layers.2.self_attn.qkv_proj.weight", lambda t: t[1:]),
        "model.layers.2.self_attn.qkv_proj.weight: expected [56, 40], got [55, 40] f32",
    ),
    "transposed shape": (
        "gpt2", 1, replace("transformer.h.0.attn.c_attn.weight", lambda t: t.T),
        "transformer.h.0.attn.c_attn.weight: expected [36, 108], got [108, 36] f32",
    ),
    "fused bias": (
        "gpt2", 1, replace("transformer.h.0.attn.c_attn.bias", lambda t: t[:36]),
        "transformer.h.0.attn.c_attn.bias: expected [108], got [36] f32",
    ),
    "norm per head": (
        "qwen3", 0, replace("model.layers.0.self_attn.q_norm.weight", lambda t: torch.ones(80)),
        "model.layers.0.self_attn.q_norm.weight: expected [16], got [80] f32",
    ),
    "norm of all heads": (
        "olmo2", 0, replace("model.layers.0.self_attn.k_norm.weight", lambda t: torch.ones(30)),
        "model.layers.0.self_attn.k_norm.weight: expected [6], got [30] f32",
    ),
    "dtype": (
        "mistral", 0, replace("model.layers.0.mlp.down_proj.weight", lambda t: t.to(torch.int8)),
        "model.layers.0.mlp.down_proj.weight: expected f32, f16, bf16, got i8",
    ),
    "double": ("gemma2", 0, replace("model.norm.weight", lambda t: t.double()), "model.norm.weight: expected f32, f16"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "case", "damage", "message"), BROKEN.values(), ids=BROKEN)
def test_damaged_weights_are_named(family, case, damage, message, tmp_path):
    make_case(tmp_path, family, case)
    bound(tmp_path)
    rewrite(tmp_path, damage)
    with pytest.raises(WeightsError, match=re.escape(message)):
        bound(tmp_path)


def test_extra_tensors_may_be_left_out(tmp_path):
    make_case(tmp_path, "llama", 0)
    before = bound(tmp_path)
    rewrite(tmp_path, BROKEN["extra"][2])
    after = bound(tmp_path, strict=False)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[role][0], before[role][0]) for role in before)
