"""What several texts of one prompt cost together, and what they cost one after the other; beams as well.

    python benchmarks/completions.py [--model FOLDER] [--quantize int8] [--texts 8] [--tokens 32] [--rounds 3]

The prompt is computed once in every run. Runs take turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import statistics

import russet
from report import Table, interleaved, machine, spread

PROMPT = "It was on a dreary night of November that I beheld the accomplishment of my toils. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--texts", type=int, default=8, metavar="N")
    parser.add_argument("--tokens", type=int, default=32, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that it runs")
    args = parser.parse_args()
    n_texts, n_tokens, n_rounds = (3, 4, 2) if args.quick else (args.texts, args.tokens, args.rounds)
    model = russet.load(args.model, quantize=args.quantize)

    def together() -> None:
        model.clear_cache()
        model.generate_many(PROMPT, n=n_texts, temperature=1.0, seed=0, max_tokens=n_tokens, ignore_eos=True)

    def apart() -> None:
        model.clear_cache()
        for seed in range(n_texts):
            model.generate(PROMPT, temperature=1.0, seed=seed, max_tokens=n_tokens, ignore_eos=True)

    def beams() -> None:
        model.clear_cache()
        model.beam_search(PROMPT, num_beams=n_texts, max_tokens=n_tokens, ignore_eos=True)

    print(machine(threads=model.backend.n_threads))
    ways = {
        f"{n_texts} texts, one after the other": apart,
        f"{n_texts} texts together": together,
        f"{n_texts} beams": beams,
    }
    seconds = interleaved(ways, n_rounds)
    first = next(iter(seconds.values()))
    table = Table("", "tokens/s", "times as fast")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        table.row(name, spread([n_texts * n_tokens / s for s in taken]), f"{ratio:.2f}x")
    table.print()


if __name__ == "__main__":
    main()
