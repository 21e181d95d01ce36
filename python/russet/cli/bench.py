"""How fast a model reads prompts and generates, beside what the machine can do.

Every -p and every -n is a test of its own, at every depth, batch and number
of threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from russet import __version__, _core
from russet.bench import Bench, Limits, Measurement, Workload, limits, peak_bytes
from russet.cli import flags
from russet.cli.plot import check_plot, plot
from russet.cli.report import print_json, print_rows, print_table
from russet.cli.terminal import status
from russet.errors import UsageError
from russet.memory import gb

SUMMARY = "how fast a model is here, beside what the machine can do"

EXAMPLES = """\
examples:
  russet bench -m Qwen/Qwen3-0.6B
  russet bench -m ./my-model -p 0 -n 128 -d 0,2048,8192 --plot depth.png
  russet bench -m ./my-model -p 512 -n 128 -t 1,2,4,8
  russet bench -m ./my-model -p 0 -n 64 -b 1,2,4,8 --json > batches.json
  russet bench -m ./my-model -p 0 -n 0 -pg 512,128

Tests are named as llama-bench names them: pp512 reads a prompt of 512 tokens,
tg128 generates 128, "@ d2048" has 2,048 tokens before them. -p 0 and -n 0
switch theirs off. Ctrl-C ends early and prints what was measured.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of the command."""

    version: str
    model: str
    chip: str
    features: tuple[str, ...]
    matmul: str  #: the library behind matrix products
    weight_bytes: int  #: that one decode step reads
    load_s: float
    first_prompt: int  #: tokens of the first prompt after loading
    first_token_s: float | None  #: seconds from it to its first token; None: Ctrl-C came before
    peak_bytes: int  #: the most memory occupied, until the last test
    limits: tuple[Limits, ...]
    measurements: tuple[Measurement, ...]

    def shares(self, m: Measurement) -> tuple[float, float] | None:
        """Of a plain read of memory, and of the int8 peak, with as many threads; None where they are not known."""
        for limit in self.limits:
            if limit.threads == m.threads:
                return m.gb_per_s / limit.read_gb_per_s, m.gop_per_s / limit.int8_gop_per_s
        return None


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_model_flags(parser, threads=False)
    group = parser.add_argument_group("tests")
    add = group.add_argument
    add(
        "--n-prompt", "-p", type=_counts(0), default=[512], metavar="N,..", help="prompt tokens; 0: none (default: 512)"
    )
    add("--n-gen", "-n", type=_counts(0), default=[128], metavar="N,..", help="generated tokens (default: 128)")
    add(
        "-pg", "--prompt-gen", dest="both", type=_pair, action="append", default=[], metavar="P,N",
        help="a prompt of P tokens and then N generated, as one test; may be given several times",
    )  # fmt: skip
    add("--depth", "-d", type=_counts(0), default=[0], metavar="N,..", help="tokens before them (default: 0)")
    add("--batch", "-b", type=_counts(1), default=[1], metavar="N,..", help="texts computed together (default: 1)")
    add(
        "--threads", "-t", dest="n_threads", type=_counts(1), default=[None], metavar="N,..",
        help="CPU threads (default: one per physical core)",
    )  # fmt: skip
    add("--repetitions", "-r", type=int, default=5, metavar="N", help="runs of each test (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the seconds of every run")
    parser.add_argument("--plot", metavar="FILE", help="draw tokens/s as .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    workloads = _workloads(args)
    if args.plot:
        check_plot(args.plot)
    needed = max(workload.n_ctx for workload in workloads)
    if getattr(args, "n_ctx", needed) < needed:
        raise UsageError(f"--n-ctx: expected at least {needed}, which the longest test needs, got {args.n_ctx}")
    flags.find_model(args)  # a download is not part of loading
    start = time.perf_counter()
    model = flags.load_model(args, {"n_ctx": needed})
    load_s = time.perf_counter() - start
    bench = Bench(model)
    bench.check_memory(workloads, getattr(args, "max_memory", None))

    first_prompt = max(1, args.n_prompt[0])
    first_token_s: float | None = None
    seconds: dict[Workload, list[float]] = {}
    interrupted = False
    try:
        with status("waiting for the first token"):
            first_token_s = bench.first_token_s(min(first_prompt, needed))
        for i, workload in enumerate(workloads, 1):
            taken = seconds.setdefault(workload, [])
            with status(f"test {i} of {len(workloads)}: {workload.name}"):
                for second in bench.runs(workload, args.repetitions):
                    taken.append(second)
    except KeyboardInterrupt:
        interrupted = True
    measurements = tuple(bench.measurement(workload, taken) for workload, taken in seconds.items() if taken)
    report = Report(
        version=__version__,
        model=args.model or "demo",
        chip=_core.cpu_name(),
        features=tuple(_core.cpu_features()),
        matmul=_core.matmul_library(),
        weight_bytes=model.weight_bytes,
        load_s=load_s,
        first_prompt=first_prompt,
        first_token_s=first_token_s,
        peak_bytes=peak_bytes(),  # before the limits, which take memory of their own
        limits=_limits(measurements),
        measurements=measurements,
    )
    if args.json:
        print_json(report)
    elif measurements:
        print_rows(_rows(report))
        print()
        print_table(COLUMNS, (_cells(report, m) for m in measurements))
    if args.plot and measurements:
        plot(args.plot, measurements, title=f"{report.model} on {report.chip}")
    return 130 if interrupted else 0


def _counts(least: int) -> Any:
    """The type of a flag: integers from `least` on, with commas between."""

    def parse(text: str) -> list[int]:
        try:
            counts = [int(word) for word in text.split(",")]
        except ValueError:
            counts = []
        if not counts or min(counts) < least:
            raise argparse.ArgumentTypeError(f"expected integers from {least} on, as 1,2,4, got {text!r}")
        return counts

    return parse


def _pair(text: str) -> tuple[int, int]:
    counts = _counts(1)(text)
    if len(counts) != 2:
        raise argparse.ArgumentTypeError(f"expected two numbers of tokens, as 512,128, got {text!r}")
    return counts[0], counts[1]


def _workloads(args: argparse.Namespace) -> list[Workload]:
    if args.repetitions < 1:
        raise UsageError(f"--repetitions: expected at least 1, got {args.repetitions}")
    tests = [(n, 0) for n in args.n_prompt if n] + [(0, n) for n in args.n_gen if n] + args.both
    if not tests:
        raise UsageError("nothing to measure: expected -p, -n or -pg above 0")
    workloads = [
        Workload(n_prompt=n_prompt, n_generated=n_generated, depth=depth, batch=batch, threads=threads)
        for threads in args.n_threads
        for batch in args.batch
        for depth in args.depth
        for n_prompt, n_generated in tests
    ]
    return list(dict.fromkeys(workloads))


def _limits(measurements: Sequence[Measurement]) -> tuple[Limits, ...]:
    """Of each number of threads that was measured; of fewer if Ctrl-C comes."""
    found: list[Limits] = []
    with suppress(KeyboardInterrupt), status("measuring the machine"):
        for threads in dict.fromkeys(m.threads for m in measurements):
            found.append(limits(threads))
    return tuple(found)


def _rows(r: Report) -> Iterator[tuple[str, str]]:
    yield "model", f"{r.model}, {gb(r.weight_bytes)} of weights read per step"
    yield "chip", f"{r.chip} ({', '.join(r.features) or 'scalar'}), matmul {r.matmul}, russet {r.version}"
    for limit in r.limits:
        threads = f"{limit.threads} thread{'s' if limit.threads > 1 else ''}"
        yield "limits", f"{threads}: {limit.read_gb_per_s:.1f} GB/s read, {limit.int8_gop_per_s:.0f} int8 GOP/s"
    yield "load", f"{r.load_s:.2f} s"
    if r.first_token_s is not None:
        yield "first token", f"{r.first_token_s:.2f} s after a first prompt of {r.first_prompt} tokens"
    yield "memory", f"{gb(r.peak_bytes)} at most"


COLUMNS = ("test", "batch", "threads", "tokens/s", "(lowest to highest)", "GB/s", "of read", "GOP/s", "of int8")


def _cells(report: Report, m: Measurement) -> tuple[str, ...]:
    shares = report.shares(m)
    of_read, of_int8 = (f"{share:.0%}" for share in shares) if shares else ("?", "?")
    return (
        m.test,
        str(m.batch),
        str(m.threads),
        f"{m.tokens_per_s:.1f}",
        f"{m.tokens_per_s_lowest:.1f} to {m.tokens_per_s_highest:.1f}",
        f"{m.gb_per_s:.1f}",
        of_read,
        f"{m.gop_per_s:.1f}",
        of_int8,
    )
