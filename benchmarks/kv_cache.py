"""What the KV cache is worth: generation with and without it.

    python benchmarks/kv_cache.py [--model FOLDER] [--lengths 10,20,50,100] [--rounds 5] [--plot kv_cache.png]

Without a cache the n-th token costs a pass over all n before it, so the time grows with the square of the length.
"""

from __future__ import annotations

import argparse
import statistics
import time

import russet
from report import Table, machine, plot_lines, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--lengths", default="10,20,50,100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    lengths = [5, 10] if args.quick else [int(n) for n in args.lengths.split(",")]
    rounds = 2 if args.quick else args.rounds
    model = russet.load(args.model)

    def seconds(n_tokens: int, use_cache: bool) -> float:
        model.clear_cache()
        start = time.perf_counter()
        model.generate_tokens(
            "Once upon a time", max_tokens=n_tokens, temperature=0, ignore_eos=True, use_cache=use_cache
        )
        return time.perf_counter() - start

    print(machine(threads=model.backend.n_threads))
    table = Table("tokens", "with, ms", "without, ms", "gain")
    with_cache, without = [], []
    for n in lengths:
        pairs = [(seconds(n, True), seconds(n, False)) for _ in range(rounds)]
        with_cache.append(statistics.median(a for a, _ in pairs) * 1e3)
        without.append(statistics.median(b for _, b in pairs) * 1e3)
        table.row(
            str(n),
            spread([a * 1e3 for a, _ in pairs]),
            spread([b * 1e3 for _, b in pairs]),
            spread([b / a for a, b in pairs], digits=2),
        )
    table.print()
    if args.plot:
        plot_lines(
            args.plot,
            title="Generation with and without KV cache",
            xlabel="tokens generated",
            ylabel="ms",
            x=lengths,
            lines={"with cache": with_cache, "without": without},
        )


if __name__ == "__main__":
    main()
