"""Flags that commands share: named as mlx_lm names them, with the short ones of llama.cpp.

A flag that is not given leaves no trace in the arguments, so that the model's own defaults hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import russet
from russet.cli.terminal import status
from russet.errors import UsageError
from russet.hub import resolve
from russet.model import BACKENDS
from russet.options import SAMPLERS, GenerateOptions
from russet.quantization import Quantization

if TYPE_CHECKING:
    from russet.options import GenerateKeywords


class _Help(argparse.RawDescriptionHelpFormatter):
    """Room for the longest command, which argparse measures without its indent."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = len("    perplexity")


class Parser(argparse.ArgumentParser):
    """argparse, with short errors that know the nearest flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` says more)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        known, unknown = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if flag:
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"{flag}: no such flag" + (f"; did you mean {near[0]}?" if near else ""))
        if unknown:
            self.error(f"{' '.join(unknown)}: one word too many; put a prompt in quotes")
        return known, unknown


def add_model_flags(parser: argparse.ArgumentParser, *, threads: bool = True) -> None:
    """Which model, and how to load it: see russet.load(). threads=False: the command has a flag of its own for them."""
    group = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--model", "-m", default=None, help="folder, or hub id like org/name (default: the built-in demo)")
    add_source_flags(group)
    add_memory_flags(group)
    add_lossy_flags(group)
    add(
        "--prefix-cache", metavar="SIZE",
        help="of texts kept for prompts that begin alike, as 1GB; 0: none (default: a quarter of what texts may take)",
    )  # fmt: skip
    add("--quantize", choices=("int8", "int4"), help="quantise float weights while loading them")
    add_quantization_flags(group)
    add("--keep-packed", action="store_true", help="keep quantised weights beside the model for the next load")
    if threads:
        add("--threads", "-t", type=int, metavar="N", help="CPU threads (default: one per physical core)")
        add("--prefill-threads", "-tb", type=int, metavar="N", help="CPU threads for prompts (default: as --threads)")
    add("--backend", metavar="NAME", help=f"{', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    add(
        "--gpu-layers", "-ngl", type=int, metavar="N",
        help="layers that MLX computes, from the first on; the others on the CPU (default: all)",
    )  # fmt: skip
    add("--dtype", metavar="NAME", help="of activations on a GPU: float32, float16 or bfloat16 (default: the model's)")
    add("--no-strict", dest="strict", action="store_false", help="leave out tensors the model has no place for")


def add_source_flags(group: argparse._ArgumentGroup) -> None:
    """Where a hub id is read from: see russet.load()."""
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    group.add_argument("--local-files-only", action="store_true", help="use no network")


def add_memory_flags(group: argparse._ArgumentGroup) -> None:
    """How much memory may be used: see russet.load()."""
    group.add_argument("--n-ctx", "-c", type=int, metavar="N", help="tokens of context (default: all that fit)")
    group.add_argument("--max-memory", metavar="SIZE", help="of weights and context, as 8GB (default: what is free)")
    group.add_argument(
        "--kv-dtype", metavar="NAME",
        help="of keys and values on the CPU: float32, float16, bfloat16, int8, or two as int8/int4 (default: float16, "
        "float32 where the weights are)",
    )  # fmt: skip


def add_lossy_flags(group: argparse._ArgumentGroup) -> None:
    """What makes long texts cheaper on the CPU and loses something: see russet.load()."""
    group.add_argument(
        "--kv-budget", type=float, metavar="SHARE",
        help="of its keys and values that a text keeps, those looked at most, as 0.3 (default: 1, all)",
    )  # fmt: skip
    group.add_argument(
        "--kv-window", type=int, metavar="N", help="newest keys that a token sees, beside the first 4 (default: all)"
    )
    group.add_argument(
        "--attention", choices=("exact", "sage", "int8"), help="in full, or with products in 8 bits (default: exact)"
    )  # fmt: skip
    group.add_argument(
        "--head", choices=("auto", "whole", "screened", "likely"), help="how much of an int8 head is read for a token"
    )


def add_quantization_flags(group: argparse._ArgumentGroup) -> None:
    """How weights are quantised: see russet.Quantization."""
    group.add_argument(
        "--group-size", type=int, metavar="N",
        help="weights that share a scale: 32, 64 or 128 (default: 128 for 8 bits, 64 for 4)",
    )  # fmt: skip
    group.add_argument("--symmetric", action="store_true", help="zero is a code: the default for 8 bits")
    group.add_argument("--asymmetric", dest="symmetric", action="store_false", help="the default for 4 bits")
    group.add_argument(
        "--override", dest="overrides", action="append", metavar="PATTERN=KIND",
        help="matrices of these names as int8, int4 or float, as in '*embed*=int8'; may be given several times",
    )  # fmt: skip


def quantization(args: argparse.Namespace, bits: int) -> Quantization:
    """What the flags of add_quantization_flags() ask for. Raises UsageError before any model is loaded."""
    overrides: dict[str, Quantization | str] = {}
    for text in getattr(args, "overrides", []):
        pattern, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--override: expected PATTERN=KIND, as in '*embed*=int8', got {text!r}")
        overrides[pattern] = kind
    return Quantization(bits=bits, overrides=overrides, **given(args, "group_size", "symmetric"))


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """What is generated: see russet.GenerateOptions."""
    group = parser.add_argument_group("generation", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    default = GenerateOptions()
    add(
        "--max-tokens", "-n", type=_max_tokens, metavar="N",
        help=f"tokens to generate at most, -1 for as many as fit (default: {default.max_tokens}, or the model's)",
    )  # fmt: skip
    add("--min-tokens", type=int, metavar="N", help="the model's own end of text may not come before")
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be given several times")
    add("--stop-token-ids", type=_ids, metavar="ID,..", help="end with one of these tokens as with the end of text")
    add("--ignore-eos", action="store_true", help="go on after the model's end of text")
    add("--timeout", type=float, metavar="SECONDS", help="end the text after this time, the prompt's included")
    add("--no-cache", dest="use_cache", action="store_false", help="compute the whole text anew for every token")
    add(
        "--context-overflow", choices=("error", "shift"),
        help="a full context ends the text (error, the default), or goes on with half of it (shift)",
    )  # fmt: skip
    add("--n-sinks", type=int, metavar="N", help="first tokens that a shift keeps (default: 4)")
    add_sampling_flags(parser)
    add_grammar_flags(parser)
    add_speculation_flags(parser)
    group = parser.add_argument_group("conversation")
    group.add_argument("--system-prompt", metavar="TEXT", help="tell the model first what it is to be")
    group.add_argument("--ignore-chat-template", action="store_true", help="go on with the text as it stands")
    group.add_argument(
        "--thinking", action="store_true", default=argparse.SUPPRESS, help="have the model think before it answers"
    )
    group.add_argument(
        "--no-thinking", dest="thinking", action="store_false", default=argparse.SUPPRESS,
        help="or not, where its chat template leaves the choice (default: the template's)",
    )  # fmt: skip
    parser.add_argument("--verbose", "-v", action="store_true", help="end with a line of tokens and speeds")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How a token is chosen: see russet.GenerateOptions."""
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add(
        "--temp", "--temperature", dest="temperature", type=float, metavar="T",
        help="0 takes the likeliest token (default: 0, or the model's)",
    )  # fmt: skip
    add("--seed", "-s", type=int, metavar="N", help="the same seed gives the same text")
    add("--top-k", type=int, metavar="N", help="keep the N likeliest tokens")
    add("--top-p", type=float, metavar="P", help="keep the likeliest tokens up to this total probability")
    add("--min-p", type=float, metavar="P", help="keep tokens at least P times as likely as the likeliest")
    add("--typical-p", type=float, metavar="P", help="keep the most typical tokens up to this total probability")
    add("--top-n-sigma", type=float, metavar="N", help="keep logits N standard deviations below the largest")
    add("--xtc-probability", type=float, metavar="P", help="how often likely tokens but the last of them are left out")
    add("--xtc-threshold", type=float, metavar="P", help="which tokens are likely for that (default: 0.1)")
    add("--mirostat-tau", type=float, metavar="BITS", help="mirostat 2: surprise to aim at")
    add("--mirostat-eta", type=float, metavar="X", help="mirostat 2: how fast to correct (default: 0.1)")
    add("--repetition-penalty", type=float, metavar="X", help="above 1: tokens of the text so far get less likely")
    add("--presence-penalty", type=float, metavar="X", help="taken from the logit of a token that was generated")
    add("--frequency-penalty", type=float, metavar="X", help="the same, times how often it was generated")
    add("--penalty-window", type=int, metavar="N", help="the last tokens these three look at (default: all)")
    add("--dry-multiplier", type=float, metavar="X", help="DRY: how much a token costs that goes on with a repeat")
    add("--dry-base", type=float, metavar="X", help="DRY: how fast that grows with its length (default: 1.75)")
    add("--dry-allowed-length", type=int, metavar="N", help="DRY: shorter repeats cost nothing (default: 2)")
    add("--dry-window", type=int, metavar="N", help="DRY: the last tokens it looks at (default: all)")
    add(
        "--dry-breaker", dest="dry_breakers", action="append", metavar="TEXT",
        help="DRY: no repeat goes across this text; may be given several times (default: line break, colon, \", *)",
    )  # fmt: skip
    add(
        "--logit-bias", action="append", type=_logit_bias, metavar="ID=X",
        help="raise the logit of a token by X, or ban it by -inf; may be given several times",
    )  # fmt: skip
    add(
        "--sequence-bias", action="append", type=_sequence_bias, metavar="ID,..=X",
        help="raise the logit of the last token by X where the others stand before it; may be given several times",
    )  # fmt: skip
    add(
        "--bad-word", dest="bad_words", action="append", metavar="TEXT",
        help="text that must not come; may be given several times",
    )  # fmt: skip
    add("--no-repeat-ngram-size", type=int, metavar="N", help="no run of N tokens comes twice, prompt included")
    add(
        "--samplers", type=lambda names: names.split(","), metavar="NAME,..",
        help=f"the steps to take, in this order (default: {','.join(SAMPLERS)})",
    )  # fmt: skip


def add_grammar_flags(parser: argparse.ArgumentParser) -> None:
    """What the text is held to: see russet.GenerateOptions."""
    group = parser.add_argument_group("structure, at most one", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--json-schema", type=_text_of, metavar="FILE", help="the text is JSON that this schema describes")
    add("--regex", metavar="PATTERN", help="the text as a whole matches this")
    add(
        "--choice",
        dest="choices",
        action="append",
        metavar="TEXT",
        help="the text is one of these; given several times",
    )
    add("--grammar", type=_text_of, metavar="FILE", help="the text follows this grammar, in Lark's notation")


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """What is drafted and then only checked: see docs/speculation.md."""
    group = parser.add_argument_group("speculation", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--draft-model", "-md", metavar="MODEL", help="smaller model with the same tokenizer, which drafts tokens")
    add(
        "--prompt-lookup", dest="speculate", action="store_const", const="lookup",
        help="draft what followed the last tokens where they stood before in the text",
    )  # fmt: skip
    add("--num-draft-tokens", dest="n_draft", type=int, metavar="N", help="drafted at once at most (default: 16)")


def generate_options(args: argparse.Namespace) -> GenerateKeywords:
    """The flags of add_generate_flags() that were given. Raises UsageError before any model is loaded."""
    options = given(args, *(field.name for field in dataclasses.fields(GenerateOptions)))
    GenerateOptions().with_keywords(options)
    return cast("GenerateKeywords", options)


def find_model(args: argparse.Namespace) -> Path | None:
    """The folder that the flags of add_model_flags() ask for, downloaded if need be; None for the demo."""
    if args.model is None:
        return None
    return resolve(args.model, **given(args, "revision", "local_files_only"))


def load_model(args: argparse.Namespace, changes: Mapping[str, Any] | None = None) -> russet.Model:
    """The model that the flags of add_model_flags() ask for; `changes` are options of russet.load() that win."""
    folder = find_model(args)  # first, and alone: a download draws bars of its own, which a spinner would garble
    options = given(
        args,
        *("backend", "dtype", "gpu_layers", "threads", "prefill_threads"),
        *("n_ctx", "max_memory", "kv_dtype", "kv_budget", "kv_window", "attention", "head"),
        *("prefix_cache", "keep_packed", "shard", "strict"),
    )
    if "draft_model" in args:
        options["draft_model"] = resolve(args.draft_model, **given(args, "local_files_only"))
    if "quantize" in args:
        options["quantize"] = quantization(args, {"int8": 8, "int4": 4}[args.quantize])
    elif given(args, "group_size", "symmetric", "overrides"):
        raise UsageError("--group-size, --symmetric and --override say how to quantise: give --quantize as well")
    options |= changes or {}
    with status(f"loading {args.model or 'the demo'}"):
        return russet.load(folder, **options)


def uses_template(args: argparse.Namespace, model: russet.Model) -> bool:
    """Whether the prompt goes through the model's chat template: if it has one, unless a flag says otherwise."""
    if model.tokenizer.has_chat_template and not args.ignore_chat_template:
        return True
    if args.system_prompt is not None:
        raise UsageError("--system-prompt: without a chat template there is no place for it; put it into the prompt")
    if "thinking" in args:
        raise UsageError("--thinking, --no-thinking: without a chat template there is nobody to tell; leave it out")
    return False


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the arguments that a flag has left."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _max_tokens(text: str) -> int | None:
    try:
        return None if text == "-1" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None


def _ids(text: str) -> list[int]:
    try:
        return [int(id) for id in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ID,ID,.. as in 2 or 7,13, got {text!r}") from None


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot be read as UTF-8 text: {error}") from None


def _sequence_bias(text: str) -> tuple[list[int], float]:
    try:
        tokens, _, bias = text.partition("=")
        return [int(token) for token in tokens.split(",")], float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ID,..=X, as in 42,7=-1.5, got {text!r}") from None


def _logit_bias(text: str) -> tuple[int, float]:
    try:
        token, _, bias = text.partition("=")
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ID=X, as in 42=-1.5, got {text!r}") from None
