"""How well a model foresees a text, and what one of its settings costs.

Windows of --n-ctx tokens begin every --stride tokens; each scores the tokens
that none before it has, given all that the window holds before them. The text's
first token is never scored.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import russet
from russet.cli import flags
from russet.cli.report import print_json, print_rows
from russet.cli.terminal import reading_stdin, status
from russet.errors import UsageError
from russet.perplexity import Comparison, Perplexity, compare, perplexity

SUMMARY = "how well a model foresees a text, and what a setting costs"

EXAMPLES = """\
examples:
  russet perplexity -m Qwen/Qwen3-0.6B book.txt
  russet perplexity -m Qwen/Qwen3-0.6B --positions -1 --n-ctx 2048 book.txt
  russet perplexity -m ./my-model --quantize int4 --against quantize=none \\
    book.txt
  russet perplexity -m ./my-model --json < book.txt | jq .perplexity

--against loads the model once more with those options of russet.load(),
and says how far from it the model is that the other flags load.
"""

POSITIONS = 500  # seconds for a small model, and one window


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a text in UTF-8; - or none reads stdin")
    flags.add_model_flags(parser)
    group = parser.add_argument_group("what is scored")
    add = group.add_argument
    add("--stride", type=int, metavar="N", help="tokens from a window to the next (default: half of --n-ctx)")
    add(
        "--positions", type=int, default=POSITIONS, metavar="N",
        help=f"score the first N tokens, -1 for the whole text (default: {POSITIONS})",
    )  # fmt: skip
    add("--against", type=_changes, metavar="KEY=VALUE,..", help="compare with the model loaded with these options")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    text = _read(args.file)
    options: dict[str, Any] = {
        "n_ctx": getattr(args, "n_ctx", None),
        "stride": args.stride,
        "positions": None if args.positions == -1 else args.positions,
    }
    model = flags.load_model(args)
    said = {"model": args.model or "demo", "file": args.file or "-"}
    if args.against is None:
        with status("scoring"):
            measured = perplexity(model, text, **options)
        if args.json:
            print_json(measured, **said)
        else:
            print_rows(_rows(measured))
        return 0
    against = flags.load_model(args, args.against)
    with status("scoring"):
        comparison = compare(model, against, text, **options)
    if args.json:
        print_json(comparison, **said, settings=args.against)
    else:
        print_rows(_comparison_rows(comparison, args.against))
    return 0


def _read(file: str | None) -> str:
    """The text; line ends stay as they are."""
    if file is None and sys.stdin.isatty():
        raise UsageError("no text; pass a file, or the text on stdin")
    if file is None or file == "-":
        with reading_stdin():
            text = sys.stdin.read()
    else:
        path = Path(file)
        if not path.exists():
            raise UsageError(f"{file}: no such file; pass a text file, or - for stdin")
        if path.is_dir():
            raise UsageError(f"{file}: expected a text file, got a folder; a model goes after --model")
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            got = f"the byte 0x{error.object[error.start]:02x} at {error.start:,}"
            raise UsageError(f"{file}: expected UTF-8 text, got {got}; convert it first") from None
    if not text:
        raise UsageError(f"{file or 'stdin'}: expected a text, got an empty one")
    return text.removeprefix("\ufeff")


def _changes(text: str) -> dict[str, Any]:
    """The type of --against: options of russet.load() as key=value,key=value."""
    known = [name for name in inspect.signature(russet.load).parameters if name != "model"]
    changes: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise argparse.ArgumentTypeError(f"expected key=value[,key=value], got {text!r}")
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"{key}: no such option; {hint}")
        changes[name] = _value(value)
    return changes


def _value(text: str) -> str | int | bool | None:
    names: dict[str, bool | None] = {"none": None, "true": True, "false": False}
    if text.lower() in names:
        return names[text.lower()]
    return int(text) if text.isdecimal() else text


def _rows(p: Perplexity) -> Iterator[tuple[str, str]]:
    yield "text", f"{p.n_tokens:,} tokens, {p.n_scored:,} of them scored"
    yield "windows", f"{p.n_ctx} tokens, one every {p.stride}"
    yield "perplexity", _with_error(p.perplexity, p.perplexity_error)
    yield "per token", f"{_with_error(p.nats_per_token, p.nats_per_token_error)} nats"
    yield "per byte", f"{_with_error(p.bits_per_byte, p.bits_per_byte_error)} bits"


def _comparison_rows(c: Comparison, changes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    against = ", ".join(f"{name}={value}".lower() for name, value in changes.items())
    yield "text", f"{c.model.n_tokens:,} tokens, {c.model.n_scored:,} of them scored"
    yield "windows", f"{c.model.n_ctx} tokens, one every {c.model.stride}"
    yield "perplexity", f"{_with_error(c.model.perplexity, c.model.perplexity_error)}"
    yield "against", f"{_with_error(c.against.perplexity, c.against.perplexity_error)} with {against}"
    yield "difference", f"{c.relative_difference:+.3%} ± {c.relative_difference_error:.3%}"
    yield "KL divergence", f"mean {_with_error(c.kl_mean, c.kl_mean_error)} nats"
    yield "KL divergence", f"99 of 100 tokens below {c.kl_p99:.3g}, the largest {c.kl_max:.3g}"
    yield "same top token", f"{c.top1_agreement:.2%} ± {c.top1_agreement_error:.2%}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g} ± {error:.2g}"
