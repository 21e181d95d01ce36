"""What a chat remembers, as the prompt for the next answer.

say() adds a message; prompt() asks for its answer or, where nothing was said since, for more of the last one; heard()
adds what came. goes_on: prompt() asks for no new answer. unsay() takes back a message that got no answer.
"""

from __future__ import annotations

import russet
from russet.model import Prompt


class Messages:
    """A conversation, for a model with a chat template."""

    def __init__(self, tokenizer: russet.Tokenizer, system: str | None) -> None:
        self.system = system
        self._tokenizer = tokenizer
        self._turns: list[dict[str, str]] = []
        self._unanswered: str | None = None

    def say(self, message: str) -> None:
        self._unanswered = message

    def unsay(self) -> None:
        self._unanswered = None

    @property
    def goes_on(self) -> bool:
        return self._unanswered is None

    def prompt(self) -> Prompt:
        system = [_turn("system", self.system)] if self.system else []
        if self._unanswered is not None:
            return [*system, *self._turns, _turn("user", self._unanswered)]
        return self._tokenizer.apply_chat_template([*system, *self._turns], continue_final_message=True)

    def heard(self, text: str, thought: str) -> None:
        if self._unanswered is not None:
            self._turns += [_turn("user", self._unanswered), _turn("assistant", "")]
            self._unanswered = None
        if thought:
            self._turns[-1]["reasoning_content"] = thought  # which templates show to the model again, or leave out
        self._turns[-1]["content"] += text

    def reset(self) -> None:
        self._turns.clear()


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class PlainText:
    """A text that the user and the model write in turns, for a model without a chat template."""

    def __init__(self) -> None:
        self._text = ""
        self._unanswered = ""

    def say(self, message: str) -> None:
        self._unanswered = "\n" + message if self._text else message

    def unsay(self) -> None:
        self._unanswered = ""

    @property
    def goes_on(self) -> bool:
        return True

    def prompt(self) -> Prompt:
        return self._text + self._unanswered

    def heard(self, text: str, thought: str) -> None:
        self._text += self._unanswered + text
        self._unanswered = ""

    def reset(self) -> None:
        self._text = ""
