"""Go on with a prompt, or answer it where the model has a chat template."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import russet
from russet.cli import flags, several
from russet.cli.answer import statistics, take
from russet.cli.report import print_json
from russet.cli.terminal import reading_stdin, say
from russet.errors import UsageError
from russet.model import SHARDS, Prompt

if TYPE_CHECKING:
    from russet.options import GenerateKeywords

SUMMARY = "go on with a prompt, or answer it"

EXAMPLES = """\
examples:
  russet generate "Once upon a time"
  russet generate -m Qwen/Qwen3-0.6B -n 200 --temp 0.7 "Why is the sky blue?"
  russet generate -m ./my-model --system-prompt "Answer in rhymes." "Why?"
  russet generate -m ./my-model --ignore-chat-template < story.txt > more.txt
  russet generate -m ./my-model --json "Hi" | jq .tokens_per_s
  russet generate -m ./my-model --json-schema person.json "Who wrote Emma?"
  russet generate -m ./my-model --num-return-sequences 4 --temp 1 "A title:"

stdin is read where there is no prompt, or where it is -; without the line break
at its end.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text; - reads stdin")
    parser.add_argument("--prompt", "-p", dest="prompt_flag", metavar="TEXT", help="the same")
    flags.add_model_flags(parser)
    flags.add_generate_flags(parser)
    several.add_flags(parser)
    parser.add_argument(
        "--shard", choices=SHARDS, default=argparse.SUPPRESS,
        help="compute some heads, or some layers, in each of the processes that mlx.launch has started",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-cache", type=Path, metavar="FILE",
        help="begin with the texts of this file, if it is there, and write them with this one at the end",
    )  # fmt: skip
    parser.add_argument(
        "--json",
        action="store_true",
        help="print text, token counts and speeds as one JSON object, or several texts as a list",
    )


def run(args: argparse.Namespace) -> int:
    options = flags.generate_options(args)
    several.beams(args)
    text = _prompt_text(args)
    model = flags.load_model(args)
    if args.prompt_cache:
        _load_cache(model, args.prompt_cache)
    if several.asks_for(args):
        return _write_several(model, _prompt(text, model, args), options, args)
    answer = take(model, _prompt(text, model, args), options, show=not args.json and model.rank == 0)
    _save_cache(model, args.prompt_cache)
    if model.rank:
        return 130 if answer.interrupted else 0
    if args.json:
        said = {"model": args.model or "demo", "thought": answer.thought, "text": answer.text}
        said |= {"finish_reason": answer.finish_reason}
        print_json(answer.last and statistics(model, answer.last), **said)
    if args.verbose and answer.last:
        say(statistics(model, answer.last))
    return 130 if answer.interrupted else 0


def _write_several(model: russet.Model, prompt: Prompt, options: GenerateKeywords, args: argparse.Namespace) -> int:
    texts = several.take(model, prompt, options, args)
    _save_cache(model, args.prompt_cache)
    if model.rank == 0:
        (several.print_json if args.json else several.show)(texts)
    return 0


def _load_cache(model: russet.Model, path: Path) -> None:
    if path.exists():
        model.load_cache(path)
    elif model.backend.name != "cpu":  # not after a long answer
        raise UsageError(
            f"--prompt-cache: only the CPU's cache can be saved, not {model.backend.name}'s; take --backend cpu"
        )


def _save_cache(model: russet.Model, path: Path | None) -> None:
    if path and model.cache_info()["n_texts"]:
        model.save_cache(path)


def _prompt_text(args: argparse.Namespace) -> str:
    text: str | None = args.prompt if args.prompt_flag is None else args.prompt_flag
    if args.prompt is not None and args.prompt_flag is not None:
        raise UsageError("expected one prompt, got two: an argument and --prompt")
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise UsageError("no prompt; pass it as an argument, with --prompt, or on stdin")
    with reading_stdin():
        return sys.stdin.read().removesuffix("\n")


def _prompt(text: str, model: russet.Model, args: argparse.Namespace) -> Prompt:
    if not flags.uses_template(args, model):
        return text
    system = [] if args.system_prompt is None else [{"role": "system", "content": args.system_prompt}]
    return [*system, {"role": "user", "content": text}]
