"""What sharing a beginning saves: time to the first token, memory of several texts, and a file instead of a prefill.

    python benchmarks/prefix_cache.py [--model FOLDER] [--system 400] [--texts 8] [--rounds 5]

Every text is a system prompt of so many tokens, in common, and 20 of its own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import russet
from report import Table, machine, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--system", type=int, default=400, metavar="N", help="tokens in common")
    parser.add_argument("--texts", type=int, default=8, metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that it runs")
    args = parser.parse_args()
    n_system, n_texts, n_rounds = (100, 3, 2) if args.quick else (args.system, args.texts, args.rounds)
    model = russet.load(args.model)
    ids = random.Random(0).choices(range(100, model.config.vocab_size), k=n_system + 20 * n_texts)
    texts = [[*ids[:n_system], *ids[n_system + 20 * i :][:20]] for i in range(n_texts)]

    def first_token_ms(prompt: list[int], use_cache: bool = True) -> float:
        return next(model.stream(prompt, max_tokens=1, use_cache=use_cache)).first_token_s * 1e3

    print(machine(threads=model.backend.n_threads))
    rows: dict[str, list[float]] = {}
    for _ in range(n_rounds):
        model.clear_cache()
        rows.setdefault("first text", []).append(first_token_ms(texts[0]))
        rows.setdefault("another that begins alike", []).append(first_token_ms(texts[1]))
        rows.setdefault("the same again", []).append(first_token_ms(texts[1]))
        for text in texts[2:]:
            first_token_ms(text)
        held = model.cache_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "texts.safetensors"
            start = time.perf_counter()
            model.save_cache(path)
            rows.setdefault("save all", []).append((time.perf_counter() - start) * 1e3)
            model.clear_cache()
            start = time.perf_counter()
            model.load_cache(path)
            rows.setdefault("load all", []).append((time.perf_counter() - start) * 1e3)
        rows.setdefault("first text, loaded", []).append(first_token_ms(texts[0]))
    table = Table("", "ms")
    for name, taken in rows.items():
        table.row(name, spread(taken, digits=2))
    table.print()
    alone = sum(len(text) for text in texts) * model.cache_bytes_per_token
    print(f"\n{n_texts} texts take {held / 1e6:.2f} MB; each alone, {alone / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
