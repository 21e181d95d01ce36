"""What this machine has, and which of it russet uses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from russet.cli.report import print_json, print_rows
from russet.doctor import Diagnosis, diagnose
from russet.memory import gb

SUMMARY = "what this machine has, and which of it russet uses"

EXAMPLES = """\
examples:
  russet doctor
  russet doctor --json | jq .kernels
  RUSSET_ISA=scalar russet doctor
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    diagnosis = diagnose()
    if args.json:
        print_json(diagnosis)
    else:
        print_rows(_rows(diagnosis))
    return 0


def _rows(d: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "russet", d.version
    yield "python", d.python
    yield "system", d.system
    yield "chip", f"{d.chip}, {d.n_cpus} processors"
    yield "threads", str(d.threads)
    yield "features", ", ".join(d.features) or "none"
    yield "matmul", d.matmul
    yield "kernels", ", ".join(f"{op} {variant}" for op, variant in d.kernels.items())
    for shape, tokens in d.crossover.items():
        yield "crossover", f"{shape}: {f'BLAS from {tokens} tokens on' if tokens else 'int8 throughout'}"
    yield "memory", f"{gb(d.available_bytes)} of {gb(d.total_bytes)} free"
    for backend in d.backends:
        yield "backends", f"{backend.name}: {'yes' if backend.available else 'no'}, {backend.reason}"
    yield "hub cache", d.hub_cache
    yield "packages", ", ".join(f"{name} {version or 'MISSING'}" for name, version in d.packages.items())
    for name, value in d.environment.items():
        yield "environment", f"{name}={value}"
