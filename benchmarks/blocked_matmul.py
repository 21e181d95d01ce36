"""Our cache-blocked product against the naive loop and against BLAS, on one thread.

    python benchmarks/blocked_matmul.py [--tokens 1,4,16,64,128,512] [--rounds 7] [--plot FILE.png]

Every variant of the matmul table, the few-token product (matvec) beside them, and numpy's own BLAS as a peer from
outside: it takes f32 alone, so 16-bit weights are widened for it once, before the clock starts. Weights are
2,048 x 1,024 (the q of Qwen3-0.6B), one matrix used again and again, so what is compared is arithmetic, not memory.
Times are CPU times of the one thread.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's, read when it is imported

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from report import Table, interleaved, machine, plot_lines, spread
from russet import _core

N_ROWS, N_COLS = 2048, 1024
MIN_FLOPS = 100_000_000  #: that a timed stretch has, for the clock's sake


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,4,16,33,64,128,512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds of few tokens, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png", help="one file per type: FILE-f32.png, FILE-bf16.png")
    args = parser.parse_args()
    tokens = [1, 33] if args.quick else [int(n) for n in args.tokens.split(",")]
    rounds = 2 if args.quick else args.rounds
    print(machine(threads=1))

    rng = np.random.default_rng(0)
    w = (rng.normal(size=(N_ROWS, N_COLS)) / 32).astype(np.float32)
    half = (w.view(np.uint32) >> 16).astype(np.uint16)
    for dtype, stored in (("f32", w), ("bf16", half)):
        wide = w if dtype == "f32" else (half.astype(np.uint32) << 16).view(np.float32)
        lines: dict[str, list[float]] = {}
        table = Table(f"{dtype} tokens", "product", "us", "GFLOP/s", "times ref")
        for n in tokens:
            x = rng.normal(size=(n, N_COLS)).astype(np.float32)
            n_flops = 2 * n * N_ROWS * N_COLS
            n_calls = max(1, MIN_FLOPS // n_flops)
            runs = contenders(stored, dtype, wide, x, n_calls)
            seconds = interleaved(runs, rounds, clock=time.thread_time)
            for name, times in seconds.items():
                each = [s / (1 if name == "ref" else n_calls) for s in times]
                rate = [n_flops / s / 1e9 for s in each]
                faster = [r / s for r, s in zip(seconds["ref"], each, strict=True)]
                table.row(str(n), name, spread([s * 1e6 for s in each], digits=0), spread(rate), spread(faster))
                lines.setdefault(name, []).append(statistics.median(rate))
        table.print()
        if args.plot:
            file = args.plot.replace(".png", f"-{dtype}.png")
            title = f"{N_ROWS} x {N_COLS} {dtype} weights, one thread"
            plot_lines(file, title=title, xlabel="tokens", ylabel="GFLOP/s", x=tokens, lines=lines)


def contenders(
    w: np.ndarray, dtype: str, wide: np.ndarray, x: np.ndarray, n_calls: int
) -> dict[str, Callable[[], object]]:
    """n_calls each, but one of the naive loop."""
    kernels = _core.kernels

    def variants(op: str) -> list[str]:
        return [name for name, runs_here, _ in kernels.variants()[op] if runs_here]

    def times(call: Callable[[], object], n: int = n_calls) -> Callable[[], object]:
        return lambda: [call() for _ in range(n)]

    simd = variants("matvec")[0]
    runs = {"few tokens": times(lambda: kernels.matvec(simd, (w, dtype), x))}
    for name in variants("matmul"):
        label = name if name in ("ref", "blas") else f"blocked {name}"
        call = lambda name=name: kernels.matmul(name, (w, dtype), x)  # noqa: E731
        runs[label] = times(call, 1 if name == "ref" else n_calls)
    runs["numpy"] = times(lambda: x @ wide.T)
    return runs


if __name__ == "__main__":
    main()
