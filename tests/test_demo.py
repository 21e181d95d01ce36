"""The built-in demo model: it is small, complete, reads as English, and its card tells the truth."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "python" / "russet" / "demo"
SCRIPT = ROOT / "examples" / "train_demo.py"
TEXTS = ROOT.parent / "shared" / "data" / "text"
PROMPT = "Once upon a time"

needs_texts = pytest.mark.skipif(not TEXTS.is_dir(), reason="shared/data/text is not here")


def read_json(name: str) -> dict:
    return json.loads((DEMO / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def oracle():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32)


@pytest.fixture(scope="module")
def train_demo() -> ModuleType:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    import russet

    return russet.load()


def test_folder_is_complete_and_fits_four_megabytes():
    files = {path.name: path.stat().st_size for path in DEMO.iterdir() if path.is_file()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 4_000_000


def expected_shapes(config: dict) -> Iterator[tuple[str, list[int]]]:
    dim, ffn_dim = config["hidden_size"], config["intermediate_size"]
    q_dim = config["num_attention_heads"] * config["head_dim"]
    kv_dim = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", [config["vocab_size"], dim]
    yield "model.norm.weight", [dim]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", [dim]
        yield at + "post_attention_layernorm.weight", [dim]
        yield at + "self_attn.q_proj.weight", [q_dim, dim]
        yield at + "self_attn.k_proj.weight", [kv_dim, dim]
        yield at + "self_attn.v_proj.weight", [kv_dim, dim]
        yield at + "self_attn.o_proj.weight", [dim, q_dim]
        yield at + "mlp.gate_proj.weight", [ffn_dim, dim]
        yield at + "mlp.up_proj.weight", [ffn_dim, dim]
        yield at + "mlp.down_proj.weight", [dim, ffn_dim]


def test_weights_are_what_the_config_says():
    config = read_json("config.json")
    with safe_open(DEMO / "model.safetensors", framework="np") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118, not a dict
        assert {name: view.get_shape() for name, view in slices.items()} == dict(expected_shapes(config))
        assert {view.get_dtype() for view in slices.values()} == {"BF16"}


def test_config_is_current_style_and_exercises_gqa():
    config = read_json("config.json")
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["rope_parameters"]["rope_type"] == "default"
    assert config["tie_word_embeddings"] is True
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["head_dim"] in (32, 64)


def test_special_token_ids_agree(tokenizer):
    config, generation = read_json("config.json"), read_json("generation_config.json")
    names = read_json("tokenizer_config.json")
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for which in ("bos", "eos"):
        token_id = tokenizer.token_to_id(names[f"{which}_token"])
        assert token_id == config[f"{which}_token_id"] == generation[f"{which}_token_id"]
    assert names["model_max_length"] == config["max_position_embeddings"]
    assert generation["do_sample"] is True


def test_a_prompt_is_gone_on_with():
    assert "chat_template" not in read_json("tokenizer_config.json")  # it would turn the prompt into a message


@given(text=st.text())
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(data=st.binary())
def test_any_bytes_round_trip(tokenizer, data):
    text = data.decode("utf-8", errors="replace")
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_vocabulary_suits_english(tokenizer):
    text = "It is a truth universally acknowledged, that a single man must be in want of a wife."
    assert len(text) / len(tokenizer.encode(text).ids) > 2.5  # in words the demo never read; bytes alone would be 1


def known_words() -> set[str]:
    books = [(TEXTS / name).read_text("utf-8") for name in ("en-frankenstein.txt", "en-tinyshakespeare.txt")]
    return {word for book in books for word in re.findall(r"[a-z]+", book.lower())}


def share_of_words(text: str) -> float:
    words = re.findall(r"[a-z]+", text.lower())
    known = known_words()
    return sum(word in known for word in words) / len(words)


@needs_texts
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampled_text_is_english_words_and_sentences(model, seed):
    text = model.generate(PROMPT, max_tokens=100, temperature=0.7, seed=seed)
    assert len(re.findall(r"[A-Za-z]+", text)) > 40
    assert share_of_words(text) >= 0.85, text
    assert re.search(r"[a-z][.!?]", text), text


@needs_texts
def test_share_of_words_can_fail():
    assert share_of_words("Brollop thrane vex qued ulm the sartle gunth") < 0.85


def test_greedy_text_is_what_transformers_gives(model, oracle, tokenizer):
    import torch

    prompt = torch.tensor([tokenizer.encode(PROMPT).ids])
    ids = oracle.generate(prompt, max_new_tokens=100, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
    assert model.generate(PROMPT, max_tokens=100, temperature=0) == tokenizer.decode(ids.tolist())


@needs_texts
def test_card_states_the_held_out_loss(train_demo, oracle, tokenizer):
    """Frankenstein is the one training text at hand; its end is measured again as the script does."""
    _, predict = train_demo.hold_out([(TEXTS / "en-frankenstein.txt").read_text("utf-8")])
    nats = train_demo.held_out_loss(oracle, train_demo.encode(tokenizer, predict))
    stated = re.search(r"Frankenstein alone[^0-9]*([0-9.]+) nats/token", (DEMO / "README.md").read_text("utf-8"))
    assert nats == pytest.approx(float(stated[1]), abs=2e-4)


@pytest.mark.slow
def test_training_script_smoke():
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, SCRIPT, "--smoke"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [float(nats) for nats in re.findall(r"held-out ([0-9.]+) nats/token", done.stdout)]
    assert losses[0] > losses[1]
    assert losses[-1] == pytest.approx(losses[1], abs=0.05)  # bfloat16 costs little
