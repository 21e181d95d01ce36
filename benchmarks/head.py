"""What screening a head saves: tokens a second, bytes and rows of the head that are read, and its worst case.

    python benchmarks/head.py [--model FOLDER] [--tokens 64] [--rounds 5]

Weights in int8. Every text is drawn from the same prompt by each head in turn, and must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import russet
from report import Table, interleaved, machine, spread
from russet import _core

HEADS = ("whole", "screened", "likely")
SAMPLING = {
    "greedy": {"temperature": 0.0},
    "top_k 40, top_p 0.95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that it runs")
    args = parser.parse_args()
    n_tokens, n_rounds = (8, 2) if args.quick else (args.tokens, args.rounds)
    models = {head: russet.load(args.model, quantize="int8", head=head, n_ctx=n_tokens + 64) for head in HEADS}
    print(machine(threads=models["whole"].backend.n_threads))
    decode(models, n_tokens, n_rounds)
    print()
    worst_case(models["screened"], n_rounds)


def decode(models: dict[str, russet.Model], n_tokens: int, n_rounds: int) -> None:
    """The three take turns token by token: what else the machine does comes and goes more slowly than that."""
    prompt = list(range(100, 116))
    table = Table("tokens/s", "whole", "screened", "", "bytes", "rows", "likely", "", "bytes", "rows")
    for name, sampling in SAMPLING.items():
        before = {head: models[head].head_info() for head in HEADS[1:]}
        seconds: dict[str, list[float]] = {head: [] for head in HEADS}
        texts: dict[str, list[int | None]] = {head: [] for head in HEADS}
        for seed in range(n_rounds):
            streams = {
                head: models[head].stream(prompt, max_tokens=n_tokens, seed=seed, ignore_eos=True, **sampling)
                for head in HEADS
            }
            for n in range(n_tokens):
                for head in HEADS[n % 3 :] + HEADS[: n % 3]:
                    start = time.perf_counter()
                    texts[head].append(next(streams[head]).token)
                    if n:  # the first has the prompt before it
                        seconds[head].append(time.perf_counter() - start)
        if texts["screened"] != texts["whole"]:
            raise SystemExit(f"{name}: the screened head has drawn another text")
        said = [speed(seconds["whole"])]
        for head in HEADS[1:]:
            read = {key: now - before[head][key] for key, now in models[head].head_info().items()}
            ratio = statistics.median(a / b for a, b in zip(seconds["whole"], seconds[head], strict=True))
            same = "" if texts[head] == texts["whole"] else ", another text"
            said += [speed(seconds[head]), f"{ratio:.3f}x{same}"]
            said += [f"{read['bytes'] / read['whole_bytes']:.1%}", f"{read['rows'] / read['whole_rows']:.2%}"]
        table.row(name, *said)
    table.print()


def speed(seconds: list[float]) -> str:
    return f"{1 / statistics.median(seconds):.1f}"


def worst_case(model: russet.Model, n_rounds: int) -> None:
    """The head alone, of a random token; and where bounds are so loose that they never rule out a row."""
    head, cpu = model.backend._head, model.backend._cpu  # type: ignore[attr-defined]
    n_threads, wanted = cpu.n_threads, _core.Wanted(1)
    x = np.random.default_rng(0).normal(size=(1, head.n_cols)).astype(np.float32)
    token = _core.kernels.quantize("ref", x, head.group_size)
    of_tiles = russet.load(model.checkpoint.path, quantize="int8", head="whole", n_ctx=64)
    plain = of_tiles.backend._head  # type: ignore[attr-defined]

    def screen(trust: float) -> None:
        _core.kernels.screen(head, *token, wanted, trust, n_threads)

    ways = {
        "whole, in tiles": lambda: cpu.norm_linear(None, None, plain, x),
        "whole, sliced": lambda: cpu.norm_linear(None, None, head, x),
        "screened": lambda: screen(1.0),
        "screened in vain": lambda: screen(1e9),
    }
    for way in ways.values():
        way()
    seconds = interleaved(ways, 10 * n_rounds)
    first = seconds["whole, in tiles"]
    table = Table("one token, the head alone", "ms", "times as fast")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        table.row(name, spread([1e3 * s for s in taken], digits=2), f"{ratio:.2f}x")
    table.print()


if __name__ == "__main__":
    main()
