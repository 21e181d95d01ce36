"""KvDtype: what a cache keeps keys and values in."""

from __future__ import annotations

from dataclasses import dataclass

from russet import _core
from russet.config import Config
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
        names = said.split("/")
        if len(names) > 2 or not set(names) <= _NAMES.keys():
            raise UsageError(f"kv_dtype: expected {', '.join(_NAMES)}, or two of them as keys/values, got {said!r}")
        if names[0] == "int4":
            raise UsageError("kv_dtype: int4 is for values alone, keys lose too much; take 'int8/int4'")
        return cls(_NAMES[names[0]], _NAMES[names[-1]])

    @classmethod
    def of_device(cls, said: str | None, dtype: str, backend: str, *, int8: bool = False) -> KvDtype:
        """Of a backend that keeps keys and values in its activations' dtype, or can in int8.

        Raises UsageError on any other.
        """
        own = cls(dtype, dtype)
        chosen = own if said is None else cls.of(said, dtype)
        if chosen != own and not (int8 and chosen == cls("int8", "int8")):
            raise UsageError(
                f"kv_dtype: {backend} keeps keys and values in its own dtype, here {own}{' or int8' if int8 else ''}, "
                f"got {said!r}; leave it out, or load with backend='cpu'"
            )
        return chosen

    def bytes_per_token(self, config: Config) -> int:
        """Bytes of one token's keys and values in all layers."""
        block_bytes = _core.kv_block_bytes(self.keys, self.values, config.head_dim)
        return config.n_layers * config.n_kv_heads * block_bytes // _core.BLOCK_TOKENS

    def __str__(self) -> str:
        said = {name: long for long, name in _NAMES.items()}
        return said[self.keys] if self.keys == self.values else f"{said[self.keys]}/{said[self.values]}"
