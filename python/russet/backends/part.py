"""Part of a model: some of its layers, as a model of their own."""

from __future__ import annotations

import dataclasses

from russet.config import Config
from russet.weights import POSITIONS, Weights


def part_of(config: Config, weights: Weights, begin: int, end: int) -> tuple[Config, Weights]:
    """The layers from begin to end, counted from 0 anew.

    The first has the embedding with it, the last has norm and head. What lies between two parts is the residual stream.
    """
    layer_rope, layer_window = config.layer_rope[begin:end], config.layer_window[begin:end]
    part = dataclasses.replace(config, n_layers=end - begin, layer_rope=layer_rope, layer_window=layer_window)
    taken: Weights = {}
    for role, weight in weights.items():
        where, _, of_layer = role.removeprefix("layers.").partition(".")
        if role.startswith("layers."):
            if begin <= int(where) < end:
                taken[f"layers.{int(where) - begin}.{of_layer}"] = weight
        elif begin == 0 if role in ("embed.w", POSITIONS) else end == config.n_layers:
            taken[role] = weight
    if end == config.n_layers and begin > 0:
        taken.setdefault("head.w", weights["embed.w"])
    return part, taken
