"""What every lossy trick of attention saves, and what it costs: quality, bytes of the cache, speed.

    python benchmarks/lossy_attention.py --model FOLDER [--text FILE] [--n-ctx 512] [--depth 2048,8192]

Each setting is one model, measured against the same model with everything exact (a float32 cache, exact attention):

- KL and top-1 agreement over the tokens of a text, as `russet perplexity --against` measures them;
- bytes of the cache behind a text that fills the context, as a share of the exact one's;
- with --depth: tokens/s of decode at these depths, interleaved round by round; random weights serve as well as trained
  ones for that, and --no-quality leaves out the rest.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import russet
from report import Table, interleaved, machine, plot_lines
from russet import _core
from russet.perplexity import compare

EXACT = {"kv_dtype": "float32"}
#: What is compared: options of russet.load().
SETTINGS: dict[str, dict[str, Any]] = {
    "float16 cache": {"kv_dtype": "float16"},
    "int8 cache": {"kv_dtype": "int8"},
    "int8 keys, int4 values": {"kv_dtype": "int8/int4"},
    "float16, attention sage": {"kv_dtype": "float16", "attention": "sage"},
    "float16, attention int8": {"kv_dtype": "float16", "attention": "int8"},
    "int8, attention sage": {"kv_dtype": "int8", "attention": "sage"},
    "int8, attention int8": {"kv_dtype": "int8", "attention": "int8"},
}
SHARES = (1.0, 0.5, 0.3, 0.2)
N_DECODE = 16


def budgets(n_ctx: int) -> dict[str, dict[str, Any]]:
    """The cache cut to these shares: by what was looked at, and by a window behind four sinks."""
    settings: dict[str, dict[str, Any]] = {}
    for share in SHARES:
        settings[f"float16, budget {share:.0%}"] = {"kv_dtype": "float16", "kv_budget": share}
    for share in SHARES[1:]:
        settings[f"float16, window {share:.0%}"] = {"kv_dtype": "float16", "kv_window": int(share * n_ctx)}
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--text", type=Path, help="a text to measure quality on; by default one the model writes")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--depth", default="", help="contexts to measure the speed of decode at, as 2048,8192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-quality", action="store_true", help="speed alone")
    parser.add_argument("--quick", action="store_true", help="few positions, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    depths = [int(depth) for depth in args.depth.split(",") if depth]
    print(machine(args.threads or _core.default_threads()))
    n_ctx = max([args.n_ctx, *(depth + N_DECODE + 1 for depth in depths)])

    def load(options: Mapping[str, Any]) -> russet.Model:
        return russet.load(args.model, n_ctx=n_ctx, threads=args.threads, quantize=args.quantize, **options)

    settings = SETTINGS | budgets(args.n_ctx)
    models = {name: load(options) for name, options in settings.items()}
    table = Table("setting", "KL", "KL p99", "same top 1", "perplexity", "cache", *(f"tokens/s at {d}" for d in depths))
    columns: dict[str, list[str]] = {name: [] for name in models}
    kl: dict[str, float] = {}
    if not args.no_quality:
        exact = load(EXACT)
        text = args.text.read_text() if args.text else exact.generate("The", max_tokens=args.n_ctx - 8, ignore_eos=True)
        for name, model in models.items():
            lost = compare(model, exact, text, n_ctx=args.n_ctx, positions=100 if args.quick else args.positions)
            kl[name] = lost.kl_mean
            columns[name] += [
                f"{lost.kl_mean:.1e}", f"{lost.kl_p99:.1e}", f"{lost.top1_agreement:.1%}",
                f"{lost.relative_difference:+.2%}",
            ]  # fmt: skip
    whole = cache_bytes(load(EXACT), args.n_ctx)
    shares = {name: cache_bytes(model, args.n_ctx) / whole for name, model in models.items()}
    for name in models:
        columns[name] += [*([] if kl else ["-"] * 4), f"{shares[name]:.1%}"]
    for depth in depths:
        speeds = decode_speeds(models, depth, 1 if args.quick else args.rounds)
        for name, speed in speeds.items():
            columns[name].append(f"{speed:.1f}")
    for name, cells in columns.items():
        table.row(name, *cells)
    table.print()
    if args.plot:
        by_budget = [name for name in models if "budget" in name][1:]
        by_window = [name for name in models if "window" in name]
        plot_lines(
            args.plot,
            title=f"What a smaller cache costs, windows of {args.n_ctx} tokens",
            xlabel="share of keys and values asked for",
            ylabel="KL from the exact model, nats",
            x=SHARES[1:],
            lines={
                "blocks looked at most (KV-Compress)": [kl[name] for name in by_budget],
                "sinks and a window (StreamingLLM)": [kl[name] for name in by_window],
            },
        )


def random_tokens(model: russet.Model, n: int) -> list[int]:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, n).tolist()


def cache_bytes(model: russet.Model, n_tokens: int) -> int:
    """Of a session that holds so many tokens."""
    session = model.session()
    for begin in range(0, n_tokens, 512):
        session.forward(random_tokens(model, n_tokens)[begin : begin + 512])
    return session.cache_bytes()


def decode_speeds(models: Mapping[str, russet.Model], depth: int, rounds: int) -> dict[str, float]:
    """tokens/s, the median of rounds."""

    def decode(model: russet.Model) -> Callable[[], object]:
        tokens = random_tokens(model, depth)
        context = model.session()
        for begin in range(0, depth, 512):
            context.forward(tokens[begin : begin + 512])

        def run() -> None:
            session = context.fork(depth)
            for token in tokens[:N_DECODE]:
                session.forward([token])

        return run

    seconds = interleaved({name: decode(model) for name, model in models.items()}, rounds)
    return {name: N_DECODE / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
