"""One model on several processes: what each of them, a rank, holds of it, and what they tell each other.

All ranks run the same program. A rank's part of the model is a smaller Config and fewer weights, so that the forward
pass is the same for all but for a few places where it asks its Shard.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np

from russet.backends.mlx.watch import Watch, connect
from russet.config import Config
from russet.errors import BackendError, CheckpointError, UsageError
from russet.quantization import QuantizedTensor
from russet.weights import ToQuantize, Weight, Weights

#: A weight that no longer waits to be quantised.
Stored = tuple[np.ndarray[Any, Any], str] | QuantizedTensor


class Shard:
    """The whole model, in one process."""

    is_first = is_last = True  #: whether this rank has the embedding, and the head

    def waiting(self) -> AbstractContextManager[None]:
        """While MLX computes, and with it the other ranks. Raises BackendError where one is gone."""
        return nullcontext()

    def cut(self, role: str, weight: Stored) -> Stored:
        """This rank's part of a weight."""
        return weight

    def summed(self, y: mx.array) -> mx.array:
        """What a layer's product over all inputs gives, from the products over the ranks' inputs."""
        return y

    def received(self, shape: tuple[int, int]) -> mx.array:
        """x [n_tokens, dim] f32 from the rank before."""
        raise AssertionError("the first rank receives nothing")

    def handed_on(self, x: mx.array) -> mx.array:
        """x, once it is sent to the rank behind."""
        return x

    def owed(self, x: mx.array) -> list[mx.array]:
        """What handed_on() gave, where others wait for it even if this rank needs it no more."""
        return []

    def agreed(self, y: mx.array) -> mx.array:
        """Logits or tokens as one rank has them: the same bits on all."""
        return y


class Team:
    """The ranks that were started together, this one among them."""

    def __init__(self, rank: int, size: int, host: str, port: int) -> None:
        self.rank, self.size = rank, size
        self._watch = Watch(rank, size, connect(rank, size, host, port))
        self.waiting = self._watch.waiting
        try:
            with self.waiting():
                self.group = mx.distributed.init(strict=True)
        except RuntimeError as error:
            raise BackendError(f"mlx: the ranks cannot be connected: {error}") from error
        self.stream = mx.new_thread_unsafe_stream(mx.cpu)
        self._seeds = Random(self.everyones(secrets.token_bytes(32))[0])
        atexit.register(self._leave)

    def everyones(self, data: bytes) -> list[bytes]:
        """What every rank gives here, rank by rank; as many bytes each."""
        row = mx.array(np.frombuffer(data, np.uint8))[None]
        with self.waiting():
            rows = np.array(mx.distributed.all_gather(row, group=self.group, stream=self.stream))
        return [bytes(row) for row in rows]

    def least(self, number: int) -> int:
        """The least of the ranks' numbers."""
        return min(int.from_bytes(data, "big") for data in self.everyones(number.to_bytes(8, "big")))

    def new_seed(self) -> int:
        """Random, but the same on every rank."""
        return self._seeds.getrandbits(64)

    def check_alike(self, what: str, said: object) -> None:
        """Raises CheckpointError where `said` is not the same on every rank."""
        digests = self.everyones(hashlib.sha256(repr(said).encode()).digest())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise CheckpointError(f"mlx: rank {rank} has other {what} than rank 0; start all with the same")

    def _leave(self) -> None:
        """Tell the others; end when what was begun with them is done."""
        self._watch.say_goodbye()
        with suppress(RuntimeError, BackendError), self.waiting():
            mx.synchronize(self.stream)
        self._watch.wait_for_others()


@functools.cache
def team() -> Team:
    """The ranks that mlx.launch has started. Raises BackendError where it has not, or one does not come."""
    rank, size, (host, port) = _place(os.environ)
    return Team(rank, size, host, port)


def _place(environ: os._Environ[str]) -> tuple[int, int, tuple[str, int]]:
    """Rank, ranks, and where the watch of rank 0 listens: a port below what MLX was given."""
    try:
        rank = int(environ["MLX_RANK"])
        if "MLX_JACCL_COORDINATOR" in environ:
            size, address = (
                len(json.loads(Path(environ["MLX_IBV_DEVICES"]).read_text())),
                environ["MLX_JACCL_COORDINATOR"],
            )
        else:
            hosts = json.loads(Path(environ["MLX_HOSTFILE"]).read_text())
            size, address = len(hosts), hosts[0][0]
        host, _, port = address.rpartition(":")
        if not 0 <= rank < size or size == 1:
            raise ValueError(f"rank {rank} of {size}")
        return rank, size, (host, int(port) - 1)
    except (KeyError, ValueError, IndexError, TypeError, OSError) as error:
        raise BackendError(
            f"shard: no other ranks ({error}); start them with `mlx.launch -n 2 -- russet generate ...`, "
            "or several machines with its --hostfile"
        ) from error


def sample(weights: Weights) -> list[tuple[Any, ...]]:
    """Of every weight its role, type and shape, and a few of its values: enough to tell two checkpoints apart."""
    return [(role, *_sample(weight)) for role, weight in sorted(weights.items())]


def _sample(weight: Weight) -> tuple[Any, ...]:
    if isinstance(weight, ToQuantize):
        tensor = weight.tensor
        return tensor.name, tensor.dtype, tensor.shape, repr(weight.how), _bytes(tensor.data)
    if isinstance(weight, QuantizedTensor):
        return (
            weight.dtype,
            weight.bits,
            weight.group_size,
            weight.codes.shape,
            _bytes(weight.codes),
            _bytes(weight.scales),
        )
    array, dtype = weight
    return dtype, array.shape, _bytes(array)


def _bytes(array: np.ndarray[Any, Any]) -> bytes:
    """The first values, some in the middle and the last."""
    n, flat = 1024, array.reshape(-1)
    return b"".join(part.tobytes() for part in (flat[:n], flat[flat.size // 2 :][:n], flat[-n:]))


class _Part(Shard):
    """What Tensor and Pipeline share. decides: the rank whose logits count"""

    def __init__(self, team: Team, config: Config, weights: Weights, *, decides: int) -> None:
        self._team = team
        self._decides = decides
        self.config = config  #: of this rank's part
        self.weights = weights

    def waiting(self) -> AbstractContextManager[None]:
        return self._team.waiting()

    def agreed(self, y: mx.array) -> mx.array:
        # A sum with zeros: every backend of MLX has one, and it reaches ranks that are no neighbours.
        mine = y if self._team.rank == self._decides else mx.depends([mx.zeros_like(y)], [y])[0]
        return self._all_sum(mine)

    def _all_sum(self, y: mx.array) -> mx.array:
        return mx.distributed.all_sum(y, group=self._team.group, stream=self._team.stream)


class Tensor(_Part):
    """Every rank has some heads, and some of the width between gate and down, of every layer."""

    def __init__(self, team: Team, config: Config, weights: Weights) -> None:
        rank, size = team.rank, team.size
        check_heads(config, weights, size)
        q, kv = config.n_heads // size, config.n_kv_heads // size
        unit = max(_group_size(weights[f"layers.{i}.down.w"]) for i in range(config.n_layers))
        ffn = _span(rank, size, config.ffn_dim // unit, unit)
        q_span, kv_span = (slice(rank * n * config.head_dim, (rank + 1) * n * config.head_dim) for n in (q, kv))
        self._outputs = {"q": q_span, "k": kv_span, "v": kv_span, "gate": ffn, "up": ffn}
        self._inputs = {"o": q_span, "down": ffn}
        part = replace(config, n_heads=q, n_kv_heads=kv, ffn_dim=ffn.stop - ffn.start)
        added_once = (".o.bias", ".down.bias")  # to a sum over the ranks, so one of them adds it
        own = {role: weight for role, weight in weights.items() if rank == 0 or not role.endswith(added_once)}
        super().__init__(team, part, own, decides=0)

    def cut(self, role: str, weight: Stored) -> Stored:
        *_, name, kind = role.split(".")
        if name in self._outputs:
            return _rows(weight, self._outputs[name])
        if name in self._inputs and kind == "w":
            return _columns(weight, self._inputs[name])
        return weight

    def summed(self, y: mx.array) -> mx.array:
        return self._all_sum(y.astype(mx.float32))


class Pipeline(_Part):
    """Every rank has some layers, one after the other; the first has the embedding, the last the head."""

    def __init__(self, team: Team, config: Config, weights: Weights) -> None:
        rank, size = team.rank, team.size
        if config.n_layers < size:
            raise UsageError(
                f"shard: {config.n_layers} layers do not go on {size} ranks; start at most {config.n_layers}"
            )
        self.is_first, self.is_last = rank == 0, rank == size - 1
        layers = _span(rank, size, config.n_layers)
        part = replace(
            config,
            n_layers=layers.stop - layers.start,
            layer_rope=config.layer_rope[layers],
            layer_window=config.layer_window[layers],
        )
        super().__init__(team, part, dict(self._own(config, weights, layers)), decides=size - 1)

    def _own(self, config: Config, weights: Weights, layers: slice) -> Iterator[tuple[str, Weight]]:
        """This rank's weights; its layers are counted from 0."""
        for role, weight in weights.items():
            first, *rest = role.split(".")
            if first == "layers":
                index = int(rest[0])
                if layers.start <= index < layers.stop:
                    yield ".".join(("layers", str(index - layers.start), *rest[1:])), weight
            elif first in ("head", "final_norm"):
                if self.is_last:
                    yield role, weight
            elif self.is_first or (first == "embed" and self.is_last and "head.w" not in weights):
                yield role, weight

    def received(self, shape: tuple[int, int]) -> mx.array:
        team = self._team
        return mx.distributed.recv(shape, mx.float32, team.rank - 1, group=team.group, stream=team.stream)

    def handed_on(self, x: mx.array) -> mx.array:
        if self.is_last:
            return x
        return mx.distributed.send(x, self._team.rank + 1, group=self._team.group, stream=self._team.stream)

    def owed(self, x: mx.array) -> list[mx.array]:
        return [] if self.is_last else [x]


def shard_of(kind: str, team: Team, config: Config, weights: Weights) -> Tensor | Pipeline:
    """This rank's shard. Raises UsageError where the model cannot be cut for so many ranks."""
    return (Tensor if kind == "tensor" else Pipeline)(team, config, weights)


def check_heads(config: Config, weights: Weights, size: int) -> None:
    """Raises UsageError where heads and MLP cannot be cut for so many ranks; says which numbers of ranks would do."""
    why = _why_not(config, weights, size)
    if why:
        fit = [str(n) for n in range(2, config.n_kv_heads + 1) if not _why_not(config, weights, n)]
        way_out = f"{' or '.join(fit)} would do, or shard='pipeline'" if fit else "load with shard='pipeline'"
        raise UsageError(f"shard: this model's heads do not go on {size} ranks: {why}; {way_out}")


def _why_not(config: Config, weights: Weights, size: int) -> str | None:
    if config.n_kv_heads % size:
        return f"it has {config.n_kv_heads} key-value heads"
    q_width = config.n_heads // size * config.head_dim
    for i in range(config.n_layers):
        norm = weights.get(f"layers.{i}.q_norm.w")
        if isinstance(norm, tuple) and norm[0].size != config.head_dim:
            return "it norms all heads together"
        group_size = _group_size(weights[f"layers.{i}.o.w"])
        if q_width % group_size:
            return f"o is quantised in groups of {group_size} inputs, and a rank would have {q_width}"
        group_size = _group_size(weights[f"layers.{i}.down.w"])
        if config.ffn_dim // group_size < size:
            return f"down has {config.ffn_dim} inputs in groups of {group_size}"
    return None


def _group_size(weight: Weight) -> int:
    """Columns that cannot be told apart; 1 of floats."""
    if isinstance(weight, ToQuantize):
        return weight.how.group_size
    return weight.group_size if isinstance(weight, QuantizedTensor) else 1


def _span(rank: int, size: int, n: int, unit: int = 1) -> slice:
    """The rank's part of n units."""
    return slice(n * rank // size * unit, n * (rank + 1) // size * unit)


def _rows(weight: Stored, span: slice) -> Stored:
    if isinstance(weight, QuantizedTensor):
        return weight.rows(span)
    array, dtype = weight
    return array[span], dtype


def _columns(weight: Stored, span: slice) -> Stored:
    if not isinstance(weight, QuantizedTensor):
        array, dtype = weight
        return array[:, span], dtype
    codes, groups = (slice(span.start // n, span.stop // n) for n in (32 // weight.bits, weight.group_size))
    parts = weight.codes[:, codes], weight.scales[:, groups], weight.biases[:, groups]
    return replace(weight, codes=parts[0], scales=parts[1], biases=parts[2])
