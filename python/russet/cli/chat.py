"""Talk with a model that keeps what was said.

A model without a chat template does not answer: it goes on with your text.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import TYPE_CHECKING

import russet
from russet.cli import flags
from russet.cli.answer import statistics, take
from russet.cli.chat_context import Messages, PlainText
from russet.cli.chat_input import read_message, split_command
from russet.cli.terminal import say
from russet.errors import ContextFull, RussetError

if TYPE_CHECKING:
    from russet.options import GenerateKeywords

SUMMARY = "talk with a model that keeps what was said"

HELP = '''\
/reset          forget what was said
/system TEXT    tell the model first what it is to be; without TEXT, no longer
/help           show this
/quit           leave, as Ctrl-D does

A line that ends in \\ goes on in the next one. What stands between two lines of
""" is one message. Ctrl-C stops an answer, and what came of it is kept. Enter
alone lets an answer that was cut go on.'''

EXAMPLES = f"""\
examples:
  russet chat -m Qwen/Qwen3-0.6B
  russet chat -m ./my-model --temp 0.7 --system-prompt "You are a pirate."
  printf 'Hi!\\nAnd you?\\n' | russet chat -m ./my-model

in the chat:
{HELP}
"""

COMMANDS = ("reset", "system", "help", "quit")


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_model_flags(parser)
    flags.add_generate_flags(parser)


def run(args: argparse.Namespace) -> int:
    options = flags.generate_options(args)
    model = flags.load_model(args)
    context: Messages | PlainText = PlainText()
    if flags.uses_template(args, model):
        context = Messages(model.tokenizer, args.system_prompt)
    return Chat(model, context, options, verbose=args.verbose).run()


class Chat:
    """Reads messages and shows answers until there are no more."""

    def __init__(
        self, model: russet.Model, context: Messages | PlainText, options: GenerateKeywords, *, verbose: bool
    ) -> None:
        self._model = model
        self._context = context
        self._options = options
        self._verbose = verbose
        self._interactive = sys.stdin.isatty()  # else Ctrl-C and errors end it, as in any script
        self._cut = False  # the last answer could go on

    def run(self) -> int:
        if isinstance(self._context, PlainText):
            say("without a chat template this model does not answer: it goes on with what you type")
        if self._interactive:
            say("/help shows what you can do, Ctrl-D leaves")
        while True:
            try:
                message = read_message()
                command = message and split_command(message)
                if message is None or (command and command[0] == "quit"):
                    break
                if command:
                    self._obey(*command)
                elif message.strip():
                    self._context.say(message)
                    self._answer()
                elif self._cut and self._interactive:
                    self._answer()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print(file=sys.stderr)
            except RussetError as error:
                if not self._interactive:
                    raise
                say(f"{error}; /reset forgets what was said" if isinstance(error, ContextFull) else error)
            self._context.unsay()
        if self._interactive and message is None:
            print(file=sys.stderr)  # Ctrl-D ends no line
        return 0

    def _obey(self, name: str, rest: str) -> None:
        if name == "reset":
            self._context.reset()
            self._model.clear_cache()
            self._cut = False
            say("what was said is forgotten")
        elif name == "system" and isinstance(self._context, Messages):
            self._context.system = rest or None
            say("the model is told so from now on" if rest else "no system prompt from now on")
        elif name == "system":
            say("/system: without a chat template there is no place for it; type it as part of your text")
        elif name == "help":
            print(HELP, file=sys.stderr)
        else:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            say(f"/{name}: no such command; " + (f"did you mean /{near[0]}?" if near else "/help lists them"))

    def _answer(self) -> None:
        prompt, options = self._context.prompt(), self._options
        if "thinking" in options and self._context.goes_on:
            options = {**options, "thinking": None}  # that was settled when it began to answer
        answer = take(self._model, prompt, options, show=True)
        last = answer.last
        shifts = self._options.get("context_overflow") == "shift"
        n_tokens = last.prompt_tokens + last.generated_tokens if last else 0
        is_full = n_tokens >= self._model.n_ctx and not shifts
        if answer.text:
            self._context.heard(answer.text, answer.thought)
            self._cut = answer.finish_reason != "stop" and not is_full
        if self._verbose and last:
            say(statistics(self._model, last))
        if answer.interrupted and not self._interactive:
            raise KeyboardInterrupt
        if is_full:
            say(f"the context of {self._model.n_ctx:,} tokens is full; /reset forgets what was said")
        elif (answer.interrupted or answer.thought) and not answer.text:
            say("stopped before there was an answer; the message is not kept")
        elif self._cut and self._interactive:
            say("Enter lets it go on")
