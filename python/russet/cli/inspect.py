"""What is in a checkpoint, and whether russet can load it.

The exit code is 0 if it can, 1 if it cannot; then all that is wrong is listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from russet.cli import flags
from russet.cli.report import print_json, print_rows
from russet.cli.terminal import say, status
from russet.hub import resolve
from russet.inspection import Architecture, Inspection, SpecialToken, inspect
from russet.memory import gb
from russet.model import DEMO

SUMMARY = "what is in a checkpoint, and whether it can be loaded"

EXAMPLES = """\
examples:
  russet inspect
  russet inspect ./my-model --n-ctx 8192
  russet inspect Qwen/Qwen3-0.6B --json | jq .memory.total_bytes
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, or hub id (default: the built-in demo)")
    group = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    flags.add_source_flags(group)
    flags.add_memory_flags(group)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.path is None:
        say("no model given: this is the built-in demo")
    folder = DEMO if args.path is None else resolve(args.path, **flags.given(args, "revision", "local_files_only"))
    with status(f"reading {folder}"):
        inspection = inspect(folder, **flags.given(args, "kv_dtype", "n_ctx", "max_memory"))
    if args.json:
        print_json(inspection, loads=inspection.loads)
    else:
        print_rows(_rows(inspection))
    return 0 if inspection.loads else 1


def _rows(i: Inspection) -> Iterator[tuple[str, str]]:
    yield "model", str(i.path)
    yield "family", i.model_type or "unknown"
    if i.architecture:
        yield from _architecture_rows(i.architecture)
    yield "parameters", f"{i.n_parameters:,}"
    for dtype in i.dtypes:
        yield "dtypes", f"{dtype.dtype}: {gb(dtype.n_bytes)}, {dtype.n_tensors} tensors"
    for q in i.quantizations:
        said = f"{q.bits} bits in groups of {q.group_size}: {gb(q.n_bytes)}, {q.n_matrices} matrices"
        yield "quantised", said
    for file in i.files:
        if file.n_bytes is None:
            said = "missing"
        elif file.n_tensors is None:
            said = f"{gb(file.n_bytes)}, cannot be read"
        else:
            said = f"{gb(file.n_bytes)}, {file.n_tensors} tensors"
        yield "files", f"{file.name}: {said}"
    if t := i.tokenizer:
        yield "tokenizer", f"{t.file}: {t.kind}, {t.vocab_size:,} tokens"
        yield "special", f"begin {_token(t.bos) if t.bos else 'none'}; end {', '.join(map(_token, t.eos)) or 'none'}"
        yield "chat template", "yes" if t.has_chat_template else "no"
    if m := i.memory:
        parts = f"weights {gb(m.weight_bytes)} + cache {gb(m.cache_bytes)} for {m.n_ctx:,} tokens"
        yield "memory", f"{parts} = {gb(m.total_bytes)}; {gb(m.available_bytes)} may be used"
    if i.tensors:
        for name in i.tensors.missing:
            yield "missing", name
        for name in i.tensors.extra:
            yield "extra", name
        for sentence in i.tensors.wrong:
            yield "wrong", sentence
    for sentence in i.problems:
        yield "problem", sentence
    yield "loads", "yes" if i.loads else "no"


def _architecture_rows(a: Architecture) -> Iterator[tuple[str, str]]:
    yield "layers", f"{a.n_layers}, {a.dim} wide, {a.ffn_dim} inside ({a.activation}), {a.norm} norm"
    window = f"; a window of {a.window:,} tokens in {a.n_window_layers} layers" if a.window else ""
    yield "attention", f"{a.n_heads} heads of {a.head_dim}, {a.n_kv_heads} key-value heads{window}"
    part = f", {a.rotary_dim} of a head's {a.head_dim}" if 0 < a.rotary_dim < a.head_dim else ""
    layers = f", in {a.n_rope_layers} layers" if 0 < a.n_rope_layers < a.n_layers else ""
    yield "rope", f"{a.rope}{part}{layers}"
    yield "vocabulary", f"{a.vocab_size:,} tokens, the head " + ("is the embedding" if a.tied_head else "of its own")
    yield "context", f"{a.max_ctx:,} tokens"


def _token(special: SpecialToken) -> str:
    return f"{special.id} {special.token or '(no such token)'}"
