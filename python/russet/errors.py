"""Everything russet raises on purpose: one sentence that says where, expected, got, and the way out."""

from __future__ import annotations


class RussetError(Exception):
    """The root of every error russet raises on purpose."""


class CheckpointError(RussetError):
    """A model folder or one of its files is missing, incomplete or damaged."""


class HubError(CheckpointError):
    """A hub id could not be resolved or downloaded."""


class ConfigError(CheckpointError):
    """config.json is unreadable, or says something no model can be built from."""


class UnknownFamily(ConfigError):
    """config.json names a model_type that no file in russet/models/ describes."""


class WeightsError(CheckpointError):
    """A tensor is missing, unexpected, or has the wrong shape, dtype or values."""


class TokenizerError(RussetError):
    """No tokenizer was found, or it cannot be read or cannot do what was asked."""


class TemplateError(TokenizerError):
    """A chat template is missing, broken, refused the messages, or never ends."""


class UsageError(RussetError, ValueError):
    """A call asked for something that has no meaning: a bad option, an empty prompt, an id out of range."""


class ContextFull(RussetError):
    """More tokens than the context holds."""


class NotEnoughMemory(RussetError, MemoryError):
    """What was asked for does not fit in memory; the message shows the sum."""


class NumericalError(RussetError):
    """The model computed something that is not a number."""


class BackendError(RussetError):
    """A backend is not built in, not present on this machine, or failed."""


class ShaderError(BackendError):
    """A Metal text is not there, or a compiler or the strict pass refuses it."""


class SimulationError(BackendError):
    """A kernel on the simulator did what no GPU allows, or was given what it does not take.

    `kernel` is its name, `file` and `line` the place in the Metal text; each is None where it is not known.
    """

    def __init__(self, message: str, *, kernel: str | None = None, file: str | None = None, line: int | None = None):
        super().__init__(message)
        self.kernel = kernel
        self.file = file
        self.line = line
