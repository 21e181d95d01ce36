"""The command line, one file a command. Answers and reports go to stdout, all else to stderr.

flags.py has what the commands share of their flags, answer.py takes a model's answer, terminal.py writes to stderr.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import russet
from russet.cli import bench, chat, doctor, generate, inspect, perplexity, quantize
from russet.cli.flags import Parser
from russet.cli.terminal import notices, say
from russet.errors import RussetError, UsageError

COMMANDS = {
    "generate": generate,
    "chat": chat,
    "quantize": quantize,
    "bench": bench,
    "perplexity": perplexity,
    "inspect": inspect,
    "doctor": doctor,
}

EXAMPLES = """\
examples:
  russet generate "Once upon a time"
  russet generate --model Qwen/Qwen3-0.6B "Why is the sky blue?"
  russet chat --model ./my-model
  russet bench --model ./my-model -p 512 -n 128
  russet perplexity --model ./my-model text.txt
  russet inspect ./my-model
  russet quantize Qwen/Qwen3-0.6B ./qwen3-int8
  russet doctor

`russet COMMAND --help` lists a command's flags.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong command line, 130 Ctrl-C, 141 broken pipe.

    Raises SystemExit for --help and --version, as argparse does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that do not speak UTF-8
    with notices():
        try:
            args = _parse(sys.argv[1:] if argv is None else argv)
        except UsageError as error:
            say(error)
            return 2
        code = _run(args)
    try:
        print(end="", flush=True)
    except OSError:  # noted by _run; what stdout does not take would be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="russet",
        description="Runs Hugging Face language models on this machine.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"russet {russet.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__, epilog=module.EXAMPLES)
        module.add_flags(command)
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        command.set_defaults(run=module.run)
    if not argv:
        parser.print_help(sys.stderr)
        raise UsageError("expected a command, got none")
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"{argv[0]}: no such command; {hint}")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    """Every way a command can end, as an exit code."""
    try:
        code: int = args.run(args)
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal shows ^C, and no end of line
        return 130
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        return 141
    except Exception as error:
        if args.debug or not isinstance(error, (RussetError, OSError, MemoryError)):
            traceback.print_exc()
        if isinstance(error, (RussetError, OSError)):
            say(error)
        elif isinstance(error, MemoryError):
            say("out of memory; try a smaller --n-ctx, or a smaller model")
        else:
            say("this is an error in russet itself; please report it with the lines above and `russet doctor`")
        return 2 if isinstance(error, UsageError) else 1
