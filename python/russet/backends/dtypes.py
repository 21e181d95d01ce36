"""What a GPU keeps activations, keys and values in."""

from __future__ import annotations

from russet.errors import UsageError
from russet.quantization import QuantizedTensor
from russet.weights import ToQuantize, Weights

#: numpy's names of the types, and the core's.
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def chosen_dtype(said: str | None, weights: Weights) -> str:
    """f32, f16 or bf16: as said, or what the checkpoint keeps its embedding in, or the embedding's scales.

    Of a model's last layers, which have no embedding, that of the head.

    Raises UsageError on any other name than those of DTYPES.
    """
    if said is None:
        embed = weights["embed.w" if "embed.w" in weights else "head.w"]
        if isinstance(embed, ToQuantize):
            return embed.tensor.dtype
        return embed.dtype if isinstance(embed, QuantizedTensor) else embed[1]
    if said not in DTYPES:
        raise UsageError(f"dtype: expected {', '.join(DTYPES)}, got {said!r}")
    return DTYPES[said]
