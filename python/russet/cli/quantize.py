"""A quantised copy of a model folder, which russet and mlx-lm load.

The new folder comes into being when it is complete; an error or Ctrl-C leaves
nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from russet.cli import flags
from russet.cli.report import print_json, print_rows
from russet.cli.terminal import progress
from russet.hub import resolve
from russet.memory import gb
from russet.quantization import BITS
from russet.save_quantized import QuantizeReport, save_quantized

SUMMARY = "writes a quantised copy of a model"

EXAMPLES = """\
examples:
  russet quantize Qwen/Qwen3-0.6B ./qwen3-int8
  russet quantize ./my-model ./my-model-int4 --bits 4 --group-size 32
  russet quantize ./my-model ./mixed --bits 4 --override '*embed*=int8'
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder, or hub id like org/name")
    parser.add_argument("path", metavar="FOLDER", help="the new folder")
    group = parser.add_argument_group("quantisation", argument_default=argparse.SUPPRESS)
    group.add_argument("--bits", type=int, choices=BITS, default=8, help="of a weight (default: 8)")
    flags.add_quantization_flags(group)
    group = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    flags.add_source_flags(group)
    group.add_argument("--threads", "-t", type=int, metavar="N", help="CPU threads (default: one per physical core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every matrix")


def run(args: argparse.Namespace) -> int:
    quantization = flags.quantization(args, args.bits)
    folder = resolve(args.model, **flags.given(args, "revision", "local_files_only"))
    with progress(f"quantising {args.model}") as bar:
        report = save_quantized(folder, args.path, quantization, progress=bar, **flags.given(args, "threads"))
    if args.json:
        print_json(report)
    else:
        print_rows(_rows(report))
    return 0


_MOST_ROWS = 3  #: of matrices that are listed one by one


def _rows(r: QuantizeReport) -> Iterator[tuple[str, str]]:
    yield "model", str(r.source)
    yield "written", str(r.path)
    share = r.n_bytes / r.n_bytes_before
    yield (
        "weights",
        f"{gb(r.n_bytes_before)} before, {gb(r.n_bytes)} now ({share:.0%}); {r.bits_per_weight:.2f} bits each",
    )
    kinds: dict[str, int] = {}
    for m in r.matrices:
        kind = f"{m.bits} bits in groups of {m.group_size}" if m.bits else "float"
        kinds[kind] = kinds.get(kind, 0) + 1
    for kind, n_matrices in kinds.items():
        yield "matrices", f"{kind}: {n_matrices}"
    notes = [f"{m.name} {m.note}" for m in r.matrices if m.note]
    yield from _first("note", notes)
    errors = sorted(((m.error.relative, m.error.cosine, m.name) for m in r.matrices if m.error), reverse=True)
    for relative, cosine, name in errors[:_MOST_ROWS]:
        yield "largest errors", f"{name}: {relative:.2%} of its weights' size, cosine {cosine:.6f}"


def _first(label: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines[:_MOST_ROWS]:
        yield label, line
    if len(lines) > _MOST_ROWS:
        yield label, f"and {len(lines) - _MOST_ROWS} more; --json has all"
