"""KvDtype: what a cache keeps keys and values in."""

from __future__ import annotations

from dataclasses import dataclass

from russet.errors import UsageError

#: As load(kv_dtype=) and --kv-dtype name them, and the core.
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class KvDtype:
    """Types of keys and of values, by the core's names.

    int8: symmetric, a scale for each token and head. int4: for values alone, a scale and a minimum for each.
    """

    keys: str = "f32"
    values: str = "f32"

    @classmethod
    def of(cls, said: str | None, weights_dtype: str) -> KvDtype:
        """From "float16", or "int8/int4" for keys/values; by default the weights' own float32, or float16.

        float16 keeps three bits more of a key than bfloat16, in which most models were trained. Raises UsageError.
        """
        if said is None:
            return cls() if weights_dtype == "f32" else cls("f16", "f16")
        keys, _, values = said.partition("/")
        for name in (keys, values or keys):
            if name not in _NAMES:
                raise UsageError(f"kv_dtype: expected {', '.join(_NAMES)}, or two of them as keys/values, got {said!r}")
        if keys == "int4":
            raise UsageError("kv_dtype: int4 is for values alone, keys lose too much; take 'int8/int4'")
        return cls(_NAMES[keys], _NAMES[values or keys])

    def __str__(self) -> str:
        return self.keys if self.keys == self.values else f"{self.keys}/{self.values}"
