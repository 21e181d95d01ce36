"""Real tokenizers, and what the reference libraries make of difficult texts with them."""

import functools
import json
from pathlib import Path

import pytest

from russet.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TOKENIZERS = {
    **{name: DATA / "tokenizers" / name for name in ("gpt2", "minimind", "phi-3-mini", "qwen3", "t5-small")},
    "stories260K": DATA / "weights" / "stories260K" / "hf",
    "spm-stories260K": DATA / "weights" / "stories260K" / "hf" / "tokenizer.model",
    "spm-mistral-v3": DATA / "sentencepiece" / "mistral-v3.model",
    "spm-unigram-test_model": DATA / "sentencepiece" / "spm-unigram-test_model.model",
}

every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def data(*parts):
    """A path in the shared test data; the test is skipped where it is not there."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@functools.cache
def load(name):
    return Tokenizer.from_pretrained(data(TOKENIZERS[name]))


@functools.cache
def odd_ids(name):
    """Ids that need their neighbours: parts of characters, spaces, special tokens; and some plain ones."""
    tokenizer = load(name)
    alone = {id: tokenizer.decode([id]) for id in range(tokenizer.vocab_size)}
    odd = [id for id, text in alone.items() if "\ufffd" in text or not text.strip()]
    bare = [id for id in alone if tokenizer.decode([id], skip_special_tokens=True) != alone[id]]
    return sorted({*odd, *bare, *range(0, tokenizer.vocab_size, 97)})


def vectors(name):
    """{text, ids, decoded and often ids_with_special}, and the names of the records that cannot be read."""
    records, broken = [], []
    for line in data("vectors", f"{name}.jsonl").read_text(encoding="utf-8").split("\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            if line.startswith('{"name": "'):
                broken.append(line.split('"')[3])
    return records, broken
