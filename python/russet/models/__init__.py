"""Model families: one small file each, named after config.json's model_type.

A family file has `MODEL_TYPES`, `config(hf) -> Config` and `sources(hf, config) -> {role: Source}`, and may have
`IGNORED`, patterns of tensor names that carry nothing. CONTRIBUTING.md has the recipe for a new one.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import Protocol, cast

from russet.config import Config, Reader
from russet.errors import ConfigError, UnknownFamily
from russet.weights import Source


class Family(Protocol):
    MODEL_TYPES: tuple[str, ...]
    IGNORED: tuple[str, ...]

    def config(self, hf: Reader) -> Config: ...

    def sources(self, hf: Reader, config: Config) -> dict[str, Source]: ...


@cache
def families() -> dict[str, Family]:
    """model_type -> family, for every file of this folder that names one."""
    found: dict[str, Family] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for model_type in getattr(module, "MODEL_TYPES", ()):
            found[model_type] = cast(Family, module)
    return found


def family_of(hf: Reader) -> Family:
    """The family of a config.json; raises UnknownFamily with the nearest known name."""
    if "model_type" not in hf:
        raise ConfigError(f"{hf.where}: expected a 'model_type', found none; is this a transformers checkpoint?")
    model_type = hf.text("model_type")
    known = families()
    if model_type in known:
        return known[model_type]
    near = difflib.get_close_matches(model_type, known, n=1, cutoff=0.5)
    raise UnknownFamily(
        f"{hf.where}: model_type {model_type!r} is not one russet knows ({', '.join(sorted(known))})"
        + (f"; the nearest is {near[0]!r}" if near else "")
        + "; CONTRIBUTING.md, 'Add a model family', has the recipe"
    )
