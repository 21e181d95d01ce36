"""russet runs Hugging Face language models on Apple silicon.

>>> import russet
>>> model = russet.load("Qwen/Qwen3-0.6B")
>>> text = model.generate("Why is the sky blue?", max_tokens=100, temperature=0.7)
>>> for piece in model.stream([{"role": "user", "content": "Hi"}]):
...     print(piece.text, end="")
"""

from russet.completions import Completion
from russet.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    ContextFull,
    HubError,
    NotEnoughMemory,
    NumericalError,
    RussetError,
    ShaderError,
    SimulationError,
    TemplateError,
    TokenizerError,
    UnknownFamily,
    UsageError,
    WeightsError,
)
from russet.generation import Piece
from russet.model import Model, load
from russet.options import GenerateOptions
from russet.quantization import Quantization
from russet.save_quantized import save_quantized
from russet.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "ContextFull",
    "GenerateOptions",
    "HubError",
    "Model",
    "NotEnoughMemory",
    "NumericalError",
    "Piece",
    "Quantization",
    "RussetError",
    "ShaderError",
    "SimulationError",
    "TemplateError",
    "Tokenizer",
    "TokenizerError",
    "UnknownFamily",
    "UsageError",
    "WeightsError",
    "load",
    "save_quantized",
]
