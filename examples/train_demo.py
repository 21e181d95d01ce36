#!/usr/bin/env python3
"""Train russet's built-in demo model: a toy Llama that has read a handful of English books.

    python examples/train_demo.py --out FOLDER BOOK.txt [BOOK.txt ...]

Reads plain text (Project Gutenberg files as they come), trains a byte-level BPE tokenizer and then the model,
in float32 on one CPU thread, and writes a Hugging Face folder with bfloat16 weights. The end of each book is
held out: the folder keeps the checkpoint that predicts it best, and its loss is printed. The same books in
the same order, options and library versions give the same model. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

CONTEXT = 512  # tokens
BATCH = 4  # windows of CONTEXT tokens a step
RATE, WEIGHT_DECAY = 3e-3, 0.1
HELD_OUT = 0.05  # share of each book
END = "<|endoftext|>"  # id 0: closes every chapter

CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=448,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
)
SAMPLING = GenerationConfig(bos_token_id=0, eos_token_id=0, do_sample=True, temperature=0.7, top_p=0.9)

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": CONTEXT,
}

SMOKE_BOOK = "Once upon a time there was a small model. It read a page, and read it again.\n\n" * 3000
HEADING = re.compile(r"^\s*(?:chapter|volume|book|letter|part)\s+[\divxlc]+\.?\s*$", re.I | re.M)
PLAIN = str.maketrans(dict(zip("“”‘’—_\ufeff\r", ['"', '"', "'", "'", "--", "", "", ""], strict=True)))  # noqa: RUF001


def chapters(book: str) -> list[str]:
    """The book's chapters as paragraphs of one line each, without title page, licence and headings."""
    book = re.split(r"\*\*\* ?START OF[^\n]*\n", book, maxsplit=1)[-1]
    book = re.split(r"\*\*\* ?END OF", book, maxsplit=1)[0].translate(PLAIN)
    parts = [part.strip() for part in HEADING.split(book) if len(part) > 1000]
    return ["\n\n".join(" ".join(lines.split()) for lines in re.split(r"\n\s*\n", part)) for part in parts]


def hold_out(books: list[str]) -> tuple[list[str], list[str]]:
    """Chapters to learn from, and the end of every book, which is only ever predicted."""
    learn, predict = [], []
    for book in books:
        text = END.join(chapters(book))
        cut = text.index(" ", int(len(text) * (1 - HELD_OUT)))
        learn += text[:cut].split(END)
        predict.append(text[cut:].replace(END, "\n\n"))
    return learn, predict


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text can be encoded, and decodes to exactly itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one row of ids, each closed by END."""
    return torch.tensor([i for text in tokenizer.encode_batch(texts) for i in [*text.ids, 0]])


def loss_of(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean nats per token of windows [n, length + 1]: each token predicted from those before it."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean nats per token over whole windows laid end to end."""
    windows = tokens.unfold(0, CONTEXT + 1, CONTEXT)
    return sum(loss_of(model, rows).item() * len(rows) for rows in windows.split(8)) / len(windows)


class Muon(torch.optim.Optimizer):
    """Momentum made near-orthogonal by Newton-Schulz steps; scaled so that AdamW's learning rate serves both.

    For the layers' matrices. On 4 MB of novels 150 steps brought the held-out loss to 4.59 nats, AdamW alone to 5.35.
    """

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        super().__init__(matrices, {"lr": RATE})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.05)
                x = p.grad.lerp(mean, 0.95)
                tall = x.shape[0] > x.shape[1]
                x = (x.T if tall else x) / (x.norm() + 1e-7)
                for _ in range(5):
                    square = x @ x.T
                    x = 3.4445 * x + torch.addmm(square, square, square, beta=-4.775, alpha=2.0315) @ x
                p.mul_(1 - group["lr"] * WEIGHT_DECAY)
                p.add_(x.T if tall else x, alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


def learning_rate(step: int, n_steps: int) -> float:
    """Linear warm-up over the first 3% of the steps, then half a cosine, to a twentieth of RATE."""
    warm_up = max(1, n_steps * 3 // 100)
    done = max(0, step - warm_up) / max(1, n_steps - warm_up)
    return RATE * min((step + 1) / warm_up, 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def sample(model: LlamaForCausalLM, tokenizer: Tokenizer, **how: object) -> str:
    prompt = torch.tensor([tokenizer.encode("Once upon a time").ids])
    return tokenizer.decode(model.generate(prompt, max_new_tokens=100, pad_token_id=0, **how)[0].tolist())


def train(books: list[str], folder: Path, n_steps: int, every: int, seed: int) -> None:
    torch.manual_seed(seed)
    learn, predict = hold_out(books)
    tokenizer = train_tokenizer(learn)
    tokens, held_out = encode(tokenizer, learn), encode(tokenizer, predict)
    bits_per_byte = len(held_out) / sum(len(text.encode()) for text in predict) / math.log(2)  # at 1 nat/token
    model = LlamaForCausalLM(CONFIG)
    model.generation_config = SAMPLING
    print(f"{model.num_parameters():,} parameters; {len(tokens):,} tokens, {len(held_out):,} more held out")

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    gains = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    embedding = {"params": [model.model.embed_tokens.weight], "weight_decay": WEIGHT_DECAY}
    optimizers = [Muon(matrices), torch.optim.AdamW([embedding, gains], betas=(0.9, 0.98), fused=True)]
    best, losses, start = math.inf, [], time.monotonic()
    for step in range(n_steps):
        parts = 2 if step < n_steps * 3 // 4 else 1  # half windows are cheaper; whole ones come last
        length = CONTEXT // parts
        begins = torch.randint(len(tokens) - length, (BATCH * parts, 1))
        loss = loss_of(model, tokens[begins + torch.arange(length + 1)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, n_steps)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == n_steps:
            nats = held_out_loss(model, held_out)
            print(
                f"step {step + 1:>5}  train {sum(losses) / len(losses):.3f}  held-out {nats:.3f} nats/token, "
                f"{nats * bits_per_byte:.3f} bits/byte  {time.monotonic() - start:.0f} s",
                flush=True,
            )
            losses.clear()
            if nats < best:
                best = nats
                save(model, tokenizer, folder)

    saved = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    nats = held_out_loss(saved, held_out)
    print(f"saved bfloat16 weights: held-out {nats:.4f} nats/token, {nats * bits_per_byte:.4f} bits/byte")
    print(f"\ngreedy: {sample(saved, tokenizer, do_sample=False)}\n\nsampled: {sample(saved, tokenizer)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", nargs="*", type=Path, metavar="BOOK.txt", help="public-domain text, UTF-8")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=4000, help="of 2,048 tokens each (default %(default)s)")
    parser.add_argument("--every", type=int, default=250, help="steps between reports (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--smoke", action="store_true", help="a few steps on one page, for tests")
    args = parser.parse_args()
    if not args.smoke and not (args.books and args.out):
        parser.error("expected --out FOLDER and one or more text files, or --smoke")

    torch.set_num_threads(1)  # more would change the last bits
    torch.use_deterministic_algorithms(True)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            train([SMOKE_BOOK], Path(folder), n_steps=8, every=4, seed=args.seed)
    else:
        train([path.read_text("utf-8") for path in args.books], args.out, args.steps, args.every, args.seed)


if __name__ == "__main__":
    main()
