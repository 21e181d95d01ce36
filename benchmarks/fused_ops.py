"""What fusing is worth: the norm with the linear behind it, and the gate with its two products.

    python benchmarks/fused_ops.py [--threads N] [--rounds 15] [--plot FILE.png]

Sizes of Qwen3-0.6B; one token (decode) and 128 and 512 (prefill). Both sides run the same kernels on the same
threads, and both are calls from Python that allocate their results:

    norm+linear  fused    norm_linear(norm, w, x)
                 unfused  norm(x) on one thread into a new array, then norm_linear without a norm on that
    gate         fused    norm_gate(gate, up, x), the activation following each block of 512 rows
                 unfused  norm_linear without a norm for gate and for up into two new arrays, then
                          activation(gate) * up on one thread into a third

So the pair pays what any unfused program pays: its own call, array and pass over memory for each step. One call with
nothing to do is printed as well, to show its part. Weights are read from memory: every call takes the next of many.
Times are CPU times with one thread, wall times with more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np

from report import Table, interleaved, machine, plot_bars, spread
from russet import _core

DIM, Q_DIM, FFN_DIM = 1024, 2048, 3072
DTYPES = {"bf16": (np.uint16, 0x3C01), "f32": (np.float32, 0.01)}
MEGABYTES = 160  #: of weights that are passed through, well above any cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=_core.default_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="two rounds of small batches, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    rounds, batches = (2, (1, 40)) if args.quick else (args.rounds, (1, 128, 512))

    config = _core.Config()
    config.dim, config.ffn_dim = DIM, FFN_DIM
    cpu = _core.Cpu(config, args.threads)
    print(machine(threads=args.threads))
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    print(f"one call from Python with nothing to do: {empty_call_us():.1f} us")

    table = Table("operation", "weights", "tokens", "fused, us", "unfused, us", "fused GB/s", "fused GFLOP/s", "gain")
    groups: list[str] = []
    bars: dict[str, list[float]] = {}
    for operation, n_rows in (("norm+linear", Q_DIM), ("gate", 2 * FFN_DIM)):
        for dtype in DTYPES:
            for n_tokens in batches:
                n_calls = 20 if n_tokens == 1 else 1
                contenders = (norm_linear if operation == "norm+linear" else gate)(cpu, dtype, n_tokens, n_calls)
                seconds = interleaved(contenders, rounds, clock)
                fused, unfused = ([s / n_calls * 1e6 for s in times] for times in seconds.values())
                n_weights = n_rows * DIM
                n_bytes = n_weights * np.dtype(DTYPES[dtype][0]).itemsize
                table.row(
                    operation,
                    dtype,
                    str(n_tokens),
                    spread(fused, digits=0),
                    spread(unfused, digits=0),
                    f"{n_bytes / statistics.median(fused) / 1e3:.1f}",
                    f"{2 * n_weights * n_tokens / statistics.median(fused) / 1e3:.1f}",
                    spread([u / f for f, u in zip(fused, unfused, strict=True)], digits=2),
                )
                groups.append(f"{operation}\n{dtype}, {n_tokens}")
                for name, times in (("fused", fused), ("unfused", unfused)):
                    bars.setdefault(name, []).append(statistics.median(times) / statistics.median(unfused))
    table.print()
    if args.plot:
        plot_bars(args.plot, title="Fused operations", ylabel="time / unfused", groups=groups, bars=bars)


def norm_linear(cpu: _core.Cpu, dtype: str, n_tokens: int, n_calls: int) -> dict[str, Callable[[], object]]:
    ws, x, norm_w = matrices(dtype, Q_DIM), activations(n_tokens), np.ones(DIM, np.float32)

    def fused() -> None:
        for _ in range(n_calls):
            cpu.norm_linear(norm_w, None, next(ws), x)

    def unfused() -> None:
        for _ in range(n_calls):
            y = _core.kernels.norm(active("norm"), _core.NormKind.rms, x, norm_w)
            cpu.norm_linear(None, None, next(ws), y)

    return {"fused": fused, "unfused": unfused}


def gate(cpu: _core.Cpu, dtype: str, n_tokens: int, n_calls: int) -> dict[str, Callable[[], object]]:
    ws, x = matrices(dtype, FFN_DIM), activations(n_tokens)

    def fused() -> None:
        for _ in range(n_calls):
            cpu.norm_gate(None, None, next(ws), next(ws), x)

    def unfused() -> None:
        for _ in range(n_calls):
            g = cpu.norm_linear(None, None, next(ws), x)
            u = cpu.norm_linear(None, None, next(ws), x)
            _core.kernels.gate(active("gate"), _core.Activation.silu, g, u)

    return {"fused": fused, "unfused": unfused}


def active(op: str) -> str:
    return next(name for name, _, is_active in _core.kernels.variants()[op] if is_active)


def activations(n_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_tokens, DIM)).astype(np.float32)


def matrices(dtype: str, n_rows: int) -> Iterator[tuple[np.ndarray, str]]:
    numpy_type, value = DTYPES[dtype]
    first = np.full((n_rows, DIM), value, numpy_type)
    n = MEGABYTES * 1_000_000 // first.nbytes
    return cycle([(w, dtype) for w in (first, *(first.copy() for _ in range(n)))])


def empty_call_us() -> float:
    one = np.ones((1, 1), np.float32)
    name = active("norm")
    calls = {"norm": lambda: [_core.kernels.norm(name, _core.NormKind.rms, one, one[0]) for _ in range(1000)]}
    return statistics.median(interleaved(calls, 5)["norm"]) * 1e3


if __name__ == "__main__":
    main()
