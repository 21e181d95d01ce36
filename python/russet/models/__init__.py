"""Model families: one small file each, named after config.json's model_type.

A family file says what is particular to its checkpoints and leaves arithmetic to the core:
    MODEL_TYPES             the model_types it reads
    DEFAULTS                what a key says where config.json has none, as in transformers' config class
    IGNORED                 patterns of tensor names that carry nothing
    config(hf)              config.json as the numbers the core needs; refuses what russet cannot do
    sources(hf, config)     role -> where its weight is found in the checkpoint
    mlx_name(name)          what mlx-lm calls the tensor of this name; only where that is another name

CONTRIBUTING.md has the recipe for a new one.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from russet.config import Config, Reader
from russet.errors import ConfigError, UnknownFamily
from russet.weights import Source


class FamilyFile(Protocol):
    """What a file of this folder holds."""

    MODEL_TYPES: tuple[str, ...]
    DEFAULTS: Mapping[str, Any]
    IGNORED: tuple[str, ...]

    def config(self, hf: Reader) -> Config: ...

    def sources(self, hf: Reader, config: Config) -> dict[str, Source]: ...


@dataclass(frozen=True)
class Family:
    """A family file, and what holds for every family: defaults fill gaps, and what none can do is refused."""

    file: FamilyFile

    @property
    def IGNORED(self) -> tuple[str, ...]:
        return self.file.IGNORED

    def config(self, hf: Reader) -> Config:
        """The model's numbers. Raises ConfigError for a value without meaning, or beyond what russet does."""
        _refuse_what_none_can(hf)
        _refuse_what_none_can(hf.section("text_config"))
        return self.file.config(hf.with_defaults(self.file.DEFAULTS))

    def sources(self, hf: Reader, config: Config) -> dict[str, Source]:
        """Where each role's weight is found."""
        sources = self.file.sources(hf.with_defaults(self.file.DEFAULTS), config)
        if not hasattr(self.file, "mlx_name"):
            return sources
        return {role: replace(source, mlx_name=self.mlx_name(source.name)) for role, source in sources.items()}

    def mlx_name(self, name: str) -> str:
        """What mlx-lm calls the tensor of this name."""
        return self.file.mlx_name(name) if hasattr(self.file, "mlx_name") else name


def _refuse_what_none_can(hf: Reader) -> None:
    for key in ("quantization_config", "quantization"):
        if key in hf:
            _refuse_other_quantizations(hf.section(key))
    for key in ("is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"):
        if hf.flag(key, False):
            raise hf.refuse(key, "russet runs decoders alone, each token seeing those before it")
    if "per_layer_config" in hf:
        raise hf.refuse("per_layer_config", "russet runs layers that are all of one size")


def _refuse_other_quantizations(hf: Reader) -> None:
    """Takes MLX's affine groups alone, of 8 or 4 bits; how they are cut the tensors themselves say."""
    read = "f32, f16 and bf16 safetensors, and MLX's affine groups of 8 or 4 bits"
    way_out = f"russet reads {read}: pass the checkpoint these were made from"
    if "quant_method" in hf or "bits" not in hf:
        method = hf.text("quant_method", "an unnamed method")
        raise ConfigError(f"{hf.where}: weights quantised by {method:.80}; {way_out}")
    modules = [hf.section(key) for key, value in hf.values.items() if isinstance(value, Mapping)]
    for module in (hf, *modules):
        if module.text("mode", "affine") != "affine":
            raise module.refuse("mode", way_out)
        if module.size("bits", 8) not in (8, 4):
            raise module.refuse("bits", way_out)


@cache
def families() -> dict[str, Family]:
    """model_type -> family, for every file of this folder that names one."""
    found: dict[str, Family] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module: Any = importlib.import_module(f"{__name__}.{module_info.name}")
        for model_type in getattr(module, "MODEL_TYPES", ()):
            found[model_type] = Family(module)
    return found


def family_of(hf: Reader) -> Family:
    """The family of a config.json; raises UnknownFamily with the nearest known name."""
    if "model_type" not in hf:
        raise ConfigError(f"{hf.where}: expected a 'model_type', found none; is it for transformers?")
    model_type = hf.text("model_type")
    known = families()
    if model_type in known:
        return known[model_type]
    near = difflib.get_close_matches(model_type[:80], known, n=1, cutoff=0.5)
    raise UnknownFamily(
        f"{hf.where}: model_type {model_type!r:.80} is not one russet knows ({', '.join(sorted(known))})"
        + (f"; the nearest is {near[0]!r}" if near else "")
        + "; CONTRIBUTING.md, 'Add a model family', has the recipe"
    )
