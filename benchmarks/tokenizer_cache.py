"""What the cache in front of encode() is worth on repeated text, and what it costs where nothing repeats.

    python benchmarks/tokenizer_cache.py --tokenizer FOLDER --english FILE --chinese FILE [--rounds 7] [--plot FILE.png]

Passages of one length are cut from each file and encoded in random order: each 10 times (a chat that sends its
history again with every turn, a server with one system prompt), then each once. Every round starts with an
empty cache.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from report import Table, interleaved, machine, plot_bars, spread
from russet import Tokenizer

N_PASSAGES = 200
LENGTHS = (30, 300, 3000)  #: characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="model folder or tokenizer.json")
    parser.add_argument("--english", type=Path, required=True, help="text file")
    parser.add_argument("--chinese", type=Path, required=True, help="text file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds of few passages, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    rounds, n_passages = (2, 10) if args.quick else (args.rounds, N_PASSAGES)

    cached = Tokenizer.from_pretrained(args.tokenizer)
    uncached = Tokenizer.from_pretrained(args.tokenizer, cache_capacity=0)
    print(machine(threads=1))
    table = Table("text", "characters", "tokens", "each", "without, us", "with, us", "gain", "hit rate")
    groups: list[str] = []
    bars: dict[str, list[float]] = {"without cache": [], "with cache": []}
    for name, file in (("English", args.english), ("Chinese", args.chinese)):
        text = file.read_text(encoding="utf-8")
        for length in LENGTHS:
            for times in (10, 1):
                passages = _passages(text, length, n_passages, times)

                def with_cache(text: str = text, passages: list[slice] = passages) -> None:
                    cached.cache_clear()
                    for passage in passages:
                        cached.encode(text[passage])

                def without(text: str = text, passages: list[slice] = passages) -> None:
                    for passage in passages:
                        uncached.encode(text[passage])

                seconds = interleaved({"without": without, "with": with_cache}, rounds)
                pairs = [
                    (a / len(passages) * 1e6, b / len(passages) * 1e6) for a, b in zip(*seconds.values(), strict=True)
                ]
                table.row(
                    name,
                    str(length),
                    f"{statistics.mean(len(uncached.encode(text[passage])) for passage in passages):.0f}",
                    f"{times}x",
                    spread([a for a, _ in pairs]),
                    spread([b for _, b in pairs]),
                    spread([a / b for a, b in pairs], digits=2),
                    f"{cached.cache_info().rate:.0%}",
                )
                if times > 1:
                    groups.append(f"{name}, {length}")
                    bars["without cache"].append(statistics.median(a for a, _ in pairs))
                    bars["with cache"].append(statistics.median(b for _, b in pairs))
    table.print()
    if args.plot:
        plot_bars(args.plot, title="encode(), each passage 10 times", ylabel="us per call", groups=groups, bars=bars)


def _passages(text: str, length: int, n_passages: int, times: int) -> list[slice]:
    """Every one `times` times, in random order. Slices: a text from outside is a new object each time."""
    draw = random.Random(0)
    starts = [draw.randrange(len(text) - length) for _ in range(n_passages)] * times
    draw.shuffle(starts)
    return [slice(start, start + length) for start in starts]


if __name__ == "__main__":
    main()
