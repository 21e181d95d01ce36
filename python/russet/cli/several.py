"""Several texts of one prompt: drawn one beside the other, or the best that a beam search finds."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import russet
from russet.beam_search import BeamOptions
from russet.cli.flags import given
from russet.cli.terminal import say, status
from russet.errors import UsageError
from russet.model import Prompt

if TYPE_CHECKING:
    from russet.options import GenerateKeywords


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How many texts, and whether they are drawn or searched for: see Model.generate_many() and Model.beam_search()."""
    group = parser.add_argument_group("several texts", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--num-return-sequences", type=int, metavar="N", help="texts to generate, with seeds that count up from --seed")
    add("--num-beams", type=int, metavar="N", help="keep the N likeliest texts at every step, and return the best")
    add("--length-penalty", type=float, metavar="X", help="beams: above 0 favours long texts, below short (default: 1)")
    add(
        "--early-stopping", choices=("false", "true", "never"),
        help="beams: end where no running one is better now, where as many ended, or where none can get better",
    )  # fmt: skip


def beams(args: argparse.Namespace) -> BeamOptions | None:
    """The search that the flags ask for. Raises UsageError before any model is loaded."""
    options = given(args, "num_beams", "num_return_sequences", "length_penalty", "early_stopping")
    if "early_stopping" in options:
        options["early_stopping"] = {"false": False, "true": True}.get(args.early_stopping, "never")
    if "num_beams" in options:
        return BeamOptions(**options)
    if options.keys() - {"num_return_sequences"}:
        raise UsageError("--length-penalty and --early-stopping: beams have these; give --num-beams as well")
    return None


def asks_for(args: argparse.Namespace) -> bool:
    """Whether the flags ask for more than the one text."""
    return bool(given(args, "num_beams", "num_return_sequences"))


def take(
    model: russet.Model, prompt: Prompt, options: GenerateKeywords, args: argparse.Namespace
) -> list[russet.Completion]:
    """All texts, the best first where they were searched for."""
    search = beams(args)
    start = time.perf_counter()
    with status("writing"):
        if search:
            texts = model.beam_search(prompt, **dataclasses.asdict(search), **options)
        else:
            texts = model.generate_many(prompt, n=args.num_return_sequences, **options)
    if args.verbose:
        seconds = time.perf_counter() - start
        n_tokens = sum(len(text.tokens) for text in texts)
        say(f"{len(texts)} texts, {n_tokens} tokens in {seconds:.3f} s ({n_tokens / seconds:.1f} tokens/s)")
    return texts


def show(texts: Sequence[russet.Completion]) -> None:
    """Each text under a line that says which it is; one alone without."""
    for i, text in enumerate(texts):
        if len(texts) > 1:
            how = f"seed {text.seed}" if text.score is None else f"score {text.score:.4f}"
            print(f"--- {i + 1} of {len(texts)}, {how}")
        print(text.text, end="" if text.text.endswith("\n") else "\n", flush=True)


def print_json(texts: Sequence[russet.Completion]) -> None:
    """A list of objects, with what is known of each text."""
    known = [
        {k: v for k, v in dataclasses.asdict(text).items() if k == "text" or v not in (None, "")} for text in texts
    ]
    print(json.dumps(known, ensure_ascii=False, indent=2))
