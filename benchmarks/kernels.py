"""Every kernel's variants, alone: matvec and attention from memory against a plain read, the rest in cache.

    python benchmarks/kernels.py [--threads 1] [--megabytes 200] [--rounds 9] [--plot FILE.png]
    python benchmarks/kernels.py --attention [--threads 1] [--megabytes 200]
    python benchmarks/kernels.py --crossover [--plot FILE.png]

matvec reads one large matrix once per call, cut by rows over --threads Python threads; the plain read is the fastest
numpy has, the largest of the same bytes as int32. The rest runs on one thread at the sizes of Qwen3-0.6B.

--attention: one token over the caches of many heads (decode), in GB/s of the cache against the same plain read, and 64
rows (prefill) in GFLOP/s: 4 head_dim operations for each row and key it sees. Heads are dealt to --threads.

--crossover: matvec against the matmul variants for 1 to 64 tokens, on one thread, each call on the next of many
matrices, so that weights come from memory as they do in a model. It is what kFewTokens in cpu_ops.cpp rests on.

Times are CPU times where one thread does the work, wall times where several do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import numpy as np

from report import Table, interleaved, machine, plot_bars, plot_lines, spread
from russet import _core

DTYPES = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}
DIM, N_HEADS, N_KV_HEADS, HEAD_DIM, FFN_DIM, VOCAB_SIZE = 1024, 16, 8, 128, 3072, 151_936  # Qwen3-0.6B
ATTENTION_SHAPES = (16, 8, 128), (32, 8, 64)  #: query and key-value heads, head_dim: Qwen3-0.6B, Llama-3.2-1B
ATTENTION_CACHES = tuple((kind, n_keys) for kind in ("f16", "int8") for n_keys in (512, 2048, 8192))
N_TOKENS, N_CALLS = 4, 100  #: in cache: tokens in a call, so that the call itself is a small part; calls in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="for matvec and attention")
    parser.add_argument("--megabytes", type=int, default=200, help="of weights, to be read from memory")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--attention", action="store_true", help="attention alone, over caches in memory")
    parser.add_argument("--crossover", action="store_true", help="matvec against matmul by number of tokens")
    parser.add_argument("--quick", action="store_true", help="two rounds on few weights, to see that it runs")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    if args.quick:
        args.megabytes, args.rounds = 16, 2
    print(machine(threads=1 if args.crossover else args.threads))
    if args.crossover:
        crossover(args.megabytes, args.rounds, args.plot)
    elif args.attention:
        attention_from_memory(args.megabytes, args.threads, args.rounds)
    else:
        matvec_from_memory(args.megabytes, args.threads, args.rounds, args.plot)
        others_in_cache(args.rounds)


def variants(op: str) -> list[str]:
    return [name for name, runs_here, _ in _core.kernels.variants()[op] if runs_here]


def matvec_table(dtype: str) -> str:
    return "matvec_f32" if dtype == "f32" else "matvec"


def weights(dtype: str, n_rows: int, n_cols: int) -> np.ndarray:
    """Numbers near 1, in any of the three types: their bits do not matter to the time."""
    return np.full((n_rows, n_cols), 1.0 if dtype == "f32" else 0x3C01, DTYPES[dtype])


def matvec_from_memory(megabytes: int, n_threads: int, rounds: int, plot: str | None) -> None:
    table = Table("matvec", "columns", "variant", "ms", "GB/s", "of a plain read")
    bars: dict[str, list[float]] = {}
    groups = []
    with ThreadPoolExecutor(n_threads) as pool:
        for dtype in DTYPES:
            for n_cols in (DIM, FFN_DIM):
                w = weights(dtype, megabytes * 1_000_000 // (n_cols * np.dtype(DTYPES[dtype]).itemsize), n_cols)
                x = np.ones((1, n_cols), np.float32)
                parts = np.array_split(w, n_threads)

                def on_threads(work: Callable[[np.ndarray], object], parts: list = parts) -> Callable[[], object]:
                    return lambda: list((map if n_threads == 1 else pool.map)(work, parts))

                def product(part: np.ndarray, name: str, dtype: str = dtype, x: np.ndarray = x) -> object:
                    return _core.kernels.matvec(name, (part, dtype), x)

                contenders = {"plain read": on_threads(lambda part: part.view(np.int32).max())}
                for name in variants(matvec_table(dtype)):
                    contenders[name] = on_threads(lambda part, name=name: product(part, name))
                seconds = interleaved(contenders, rounds, time.thread_time if n_threads == 1 else time.perf_counter)
                groups.append(f"{dtype}, {n_cols}")
                for name, times in seconds.items():
                    gb_per_s = [w.nbytes / s / 1e9 for s in times]
                    share = [p / s for p, s in zip(seconds["plain read"], times, strict=True)]
                    milliseconds = spread([s * 1e3 for s in times])
                    table.row(dtype, str(n_cols), name, milliseconds, spread(gb_per_s), spread(share, digits=2))
                    bars.setdefault(name, [0.0] * (len(groups) - 1)).append(statistics.median(gb_per_s))
                for heights in bars.values():
                    heights.extend([0.0] * (len(groups) - len(heights)))
    table.print()
    if plot:
        plot_bars(plot, title="matvec from memory", ylabel="GB/s", groups=groups, bars=bars)


def attention_from_memory(megabytes: int, n_threads: int, rounds: int) -> None:
    """Decode and prefill of two models' shapes over f16 and int8 caches; the ref is left out, it takes minutes."""
    rng = np.random.default_rng(0)
    table = Table("heads", "cache", "keys", "variant", "decode, GB/s", "of a plain read", "prefill, GFLOP/s")
    clock = time.thread_time if n_threads == 1 else time.perf_counter
    names = [name for name in variants("attention") if name != "ref"]
    with ThreadPoolExecutor(n_threads) as pool:
        for n_heads, n_kv_heads, head_dim in ATTENTION_SHAPES:
            group = n_heads // n_kv_heads
            one = rng.normal(size=(1, group, head_dim)).astype(np.float32)
            many = rng.normal(size=(64 // group, group, head_dim)).astype(np.float32)
            for kind, n_keys in ATTENTION_CACHES:
                k, v = rng.normal(size=(2, n_keys, head_dim)).astype(np.float32)
                head_bytes = n_keys * head_dim * (4 if kind == "f16" else 2)
                share = max(1, megabytes * 1_000_000 // (n_threads * head_bytes))  #: heads of a thread
                parts = [_core.kernels.KvHeads(k, v, n_heads=share, keys=kind, values=kind) for _ in range(n_threads)]
                few = [_core.kernels.KvHeads(k, v, n_heads=4, keys=kind, values=kind) for _ in range(n_threads)]

                bytes_read = [np.ones(part.n_bytes // 4, np.int32) for part in parts]

                def on_threads(work: Callable, parts: list) -> Callable[[], object]:
                    return lambda: list((map if n_threads == 1 else pool.map)(work, parts))

                def run(name: str, q: np.ndarray, parts: list) -> Callable[[], object]:
                    return on_threads(lambda heads: heads.attention(name, q), parts)

                contenders = {"plain read": on_threads(np.max, bytes_read)}
                contenders |= {name: run(name, one, parts) for name in names}
                decode = interleaved(contenders, rounds, clock)
                prefill = interleaved({name: run(name, many, few) for name in names}, rounds, clock)
                n_operations = 4 * head_dim * 64 * (n_keys - (len(many) - 1) / 2) * 4 * n_threads
                for name in names:
                    rate = [sum(part.n_bytes for part in parts) / s / 1e9 for s in decode[name]]
                    speed = [n_operations / s / 1e9 for s in prefill[name]]
                    of_plain = spread(
                        [p / s for p, s in zip(decode["plain read"], decode[name], strict=True)], digits=2
                    )
                    shape = f"{n_heads}/{n_kv_heads} x {head_dim}"
                    table.row(shape, kind, str(n_keys), name, spread(rate), of_plain, spread(speed, digits=0))
    table.print()


def others_in_cache(rounds: int) -> None:
    """norm, rope, gate, a sampler's reductions, widen and attention; GB/s counts every byte read or written once."""
    kernels, rng = _core.kernels, np.random.default_rng(0)
    n_keys = 1024
    x, w = rng.normal(size=(N_TOKENS, DIM)).astype(np.float32), np.ones(DIM, np.float32)
    heads = rng.normal(size=(N_TOKENS * (N_HEADS + N_KV_HEADS), HEAD_DIM)).astype(np.float32)
    cos, sin = rng.normal(size=(2, HEAD_DIM // 2)).astype(np.float32)
    gate, up = rng.normal(size=(2, N_TOKENS * FFN_DIM)).astype(np.float32)
    q = rng.normal(size=(1, N_HEADS // N_KV_HEADS, HEAD_DIM)).astype(np.float32)
    k, v = rng.normal(size=(2, n_keys, HEAD_DIM)).astype(np.float32)
    head = kernels.KvHeads(k, v, n_heads=1, keys="f16", values="f16")
    stored = weights("bf16", N_TOKENS, DIM)
    logits = (3 * rng.normal(size=VOCAB_SIZE)).astype(np.float32)
    largest = float(logits.max())
    cases: dict[str, tuple[str, int, Callable[[str], object]]] = {
        "norm": (f"{N_TOKENS} x {DIM}", 2 * x.nbytes, lambda name: kernels.norm(name, _core.NormKind.rms, x, w)),
        "rope": (f"{len(heads)} heads", 2 * heads.nbytes, lambda name: kernels.rope(name, heads, cos, sin)),
        "gate": (f"{gate.size}", 3 * gate.nbytes, lambda name: kernels.gate(name, _core.Activation.silu, gate, up)),
        "block_max": (f"{logits.size}", logits.nbytes, lambda name: kernels.block_max(name, logits)),
        "sum_exp": (f"{logits.size}", logits.nbytes, lambda name: kernels.sum_exp(name, logits, largest, 1.25, False)),
        "widen bf16": (f"{N_TOKENS} x {DIM}", 3 * stored.nbytes, lambda name: kernels.widen(name, (stored, "bf16"))),
        "widen f16": (f"{N_TOKENS} x {DIM}", 3 * stored.nbytes, lambda name: kernels.widen(name, (stored, "f16"))),
        "attention": (
            f"{q.shape[1]} heads, {n_keys} keys f16",
            head.n_bytes,
            lambda name: head.attention(name, q),
        ),
    }
    table = Table("kernel", "size", "variant", "us", "GB/s", "times ref")
    for op, (size, n_bytes, run) in cases.items():
        seconds = interleaved({name: repeated(run, name) for name in variants(op.split()[0])}, rounds, time.thread_time)
        for name, times in seconds.items():
            ratio = [r / s for r, s in zip(seconds["ref"], times, strict=True)]
            microseconds = [s / N_CALLS * 1e6 for s in times]
            rate = [n_bytes / us / 1e3 for us in microseconds]
            table.row(op, size, name, spread(microseconds), spread(rate), spread(ratio))
    table.print()


def repeated(run: Callable[[str], object], name: str) -> Callable[[], object]:
    return lambda: [run(name) for _ in range(N_CALLS)]


def crossover(megabytes: int, rounds: int, plot: str | None) -> None:
    n_rows, tokens = FFN_DIM, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    for dtype in ("bf16", "f32"):
        matmuls = [name for name in variants("matmul") if name != "ref"]
        active = variants(matvec_table(dtype))[0]
        table = Table(f"{dtype} tokens", f"matvec {active}, us", *(f"matmul {m}, us" for m in matmuls), "best by")
        lines: dict[str, list[float]] = {}
        one = weights(dtype, n_rows, DIM)
        copies = cycle([one, *(one.copy() for _ in range(megabytes * 1_000_000 // one.nbytes))])
        for n in tokens:
            x = np.ones((n, DIM), np.float32)
            n_calls = 8 if n <= 8 else 4

            def run(kernel: Callable, name: str, x: np.ndarray = x, n_calls: int = n_calls) -> Callable[[], object]:
                return lambda: [kernel(name, (next(copies), dtype), x) for _ in range(n_calls)]  # noqa: B023

            contenders = {f"matvec {active}": run(_core.kernels.matvec, active)}
            contenders |= {f"matmul {name}": run(_core.kernels.matmul, name) for name in matmuls}
            seconds = interleaved(contenders, rounds, time.thread_time)
            microseconds = {name: [s / n_calls * 1e6 for s in times] for name, times in seconds.items()}
            middle = {name: statistics.median(times) for name, times in microseconds.items()}
            first, second = sorted(middle, key=middle.__getitem__)[:2]
            gain = f"{first}, {middle[second] / middle[first]:.2f}x"
            table.row(str(n), *(spread(times, digits=0) for times in microseconds.values()), gain)
            for name, value in middle.items():
                lines.setdefault(name, []).append(value)
        table.print()
        if plot:
            file = plot.replace(".png", f"-{dtype}.png")
            title = f"{n_rows} x {DIM} {dtype} weights from memory, one thread"
            plot_lines(file, title=title, xlabel="tokens", ylabel="us", x=tokens, lines=lines)


if __name__ == "__main__":
    main()
