"""How fast a model reads prompts and generates, and what that asks of the machine.

>>> bench = Bench(russet.load("Qwen/Qwen3-0.6B"))
>>> bench.measure(Workload(n_generated=128, depth=2048)).tokens_per_s
"""

from __future__ import annotations

import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from russet import _core, memory
from russet.backends import Session
from russet.backends.core import LIKELIEST
from russet.checkpoint import Checkpoint
from russet.config import Config, Reader
from russet.generation import CHUNK_TOKENS
from russet.model import Model
from russet.models import family_of
from russet.weights import expected_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is timed: a prompt, and then tokens one by one, in a context that already holds `depth` tokens."""

    n_prompt: int = 0  #: tokens computed together, in chunks of 512
    n_generated: int = 0  #: tokens computed one after the other
    depth: int = 0
    batch: int = 1  #: texts that go this way together; each has as many tokens
    threads: int | None = None  #: None: as the model was loaded

    @property
    def name(self) -> str:
        """As llama-bench writes it.

        >>> Workload(n_generated=128, depth=2048).name
        'tg128 @ d2048'
        """
        prompt = [f"pp{self.n_prompt}"] if self.n_prompt else []
        generated = [f"tg{self.n_generated}"] if self.n_generated else []
        return "+".join(prompt + generated) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens of context it needs."""
        return self.depth + self.n_prompt + self.n_generated

    @property
    def n_tokens(self) -> int:
        """Tokens it computes, of all texts."""
        return self.batch * (self.n_prompt + self.n_generated)

    def calls(self) -> Iterator[tuple[int, int]]:
        """The forward passes it takes: how many tokens each text has before it, and how many it adds."""
        prompt_end = self.depth + self.n_prompt
        yield from _chunks(self.depth, prompt_end, self.batch)
        for pos in range(prompt_end, prompt_end + self.n_generated):
            yield pos, 1


def _chunks(begin: int, end: int, batch: int) -> Iterator[tuple[int, int]]:
    """(tokens before, tokens of each text), with up to CHUNK_TOKENS of all texts together."""
    size = max(1, CHUNK_TOKENS // batch)
    for pos in range(begin, end, size):
        yield pos, min(size, end - pos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A workload, how long it took, and what it asked of the machine. Rates are those of the median run."""

    test: str  #: the workload's name
    n_prompt: int
    n_generated: int
    depth: int
    batch: int
    threads: int
    seconds: tuple[float, ...]  #: of each run
    tokens_per_s: float
    tokens_per_s_lowest: float
    tokens_per_s_highest: float
    gb_per_s: float  #: weights, keys and values, each read once per forward pass; 1e9 bytes
    gop_per_s: float  #: 1e9 operations, two per multiply-add, of the matrix products and of attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the machine can do at most with so many threads."""

    threads: int
    read_gb_per_s: float  #: a plain read of memory
    int8_gop_per_s: float  #: int8 products summed in int32, 2 operations each, by the chip's best instruction


def limits(threads: int) -> Limits:
    """Measure the machine: about a second. Raises UsageError unless 1 <= threads <= 1024."""
    return Limits(
        threads=threads,
        read_gb_per_s=_core.read_bandwidth(threads),
        int8_gop_per_s=_core.int8_peak(threads),
    )


def peak_bytes() -> int:
    """The most memory this process has occupied so far; mapped weights that were read count."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Bench:
    """Times workloads on one model, one at a time. Tokens are random, the same ones for the same seed."""

    def __init__(self, model: Model, *, seed: int = 0) -> None:
        self.model = model
        self._random = random.Random(seed)
        self._products = products(model.checkpoint, model.config)
        self._sessions: list[Session] = []

    def check_memory(self, workloads: Sequence[Workload], max_memory: int | str | None = None) -> None:
        """Raises NotEnoughMemory, with the sum, where the weights and the largest batch of contexts do not fit."""
        memory.choose_n_ctx(
            weight_bytes=self.model.weight_bytes,
            bytes_per_token=self.model.cache_bytes_per_token,
            max_ctx=self.model.n_ctx,
            n_ctx=max(workload.batch * workload.n_ctx for workload in workloads),
            max_memory=max_memory,
        )

    def first_token_s(self, n_prompt: int) -> float:
        """Seconds from a prompt to its first token. Called first of all it says what a user waits after loading."""
        session = self.model.session()
        ids = self._random_ids(n_prompt)
        start = time.perf_counter()
        for pos, n in _chunks(0, n_prompt, batch=1):
            session.forward(ids[pos : pos + n]).argmax()
        return time.perf_counter() - start

    def runs(self, workload: Workload, repetitions: int = 5) -> Iterator[float]:
        """Run a workload again and again; seconds of each run. One run before them warms up and is not counted.

        Raises ContextFull where the workload does not fit the model's n_ctx.
        """
        if workload.threads is not None:
            self.model.backend.n_threads = workload.threads
        texts = sessions = self._sessions_at(workload.depth, workload.batch)
        calls = [n for _, n in workload.calls()]
        for run in range(-1, repetitions):
            if any(self.model.config.layer_window):  # a run goes beyond what could be taken back
                sessions = [session.fork(workload.depth) for session in texts]
            for session in sessions:
                session.rewind(workload.depth)
            ids = [self._random_ids(n) for n in calls]
            start = time.perf_counter()
            for chunk in ids:
                if len(sessions) == 1:  # of its logits generation wants the likeliest
                    sessions[0].forward(chunk, wanted=LIKELIEST)
                else:
                    self.model.backend.forward([(session, chunk) for session in sessions])
            if run >= 0:
                yield time.perf_counter() - start

    def measure(self, workload: Workload, repetitions: int = 5) -> Measurement:
        """Run a workload `repetitions` times, after a run to warm up."""
        return self.measurement(workload, list(self.runs(workload, repetitions)))

    def measurement(self, workload: Workload, seconds: Sequence[float]) -> Measurement:
        """What runs of a workload, which took these seconds, say about it."""
        n_bytes, n_ops = self.cost(workload)
        middle = statistics.median(seconds)
        threads = self.model.backend.n_threads if workload.threads is None else workload.threads
        return Measurement(
            test=workload.name,
            n_prompt=workload.n_prompt,
            n_generated=workload.n_generated,
            depth=workload.depth,
            batch=workload.batch,
            threads=threads,
            seconds=tuple(seconds),
            tokens_per_s=workload.n_tokens / middle,
            tokens_per_s_lowest=workload.n_tokens / max(seconds),
            tokens_per_s_highest=workload.n_tokens / min(seconds),
            gb_per_s=n_bytes / middle / 1e9,
            gop_per_s=n_ops / middle / 1e9,
        )

    def cost(self, workload: Workload) -> tuple[int, int]:
        """Bytes that the workload must read, and operations that it takes.

        Bytes: of every forward pass the weights once, and once the keys and values that its tokens see. Operations: two
        per multiply-add of the matrix products (logits are those of a pass's last tokens) and of attention.
        """
        config, (in_layers, in_head) = self.model.config, self._products
        weight_bytes = self.model.weight_bytes
        layer_bytes = self.model.cache_bytes_per_token // config.n_layers
        n_bytes = n_ops = 0
        for pos, n in workload.calls():
            read, seen = keys(config, pos, n)
            n_bytes += weight_bytes + workload.batch * read * layer_bytes
            attention = 2 * seen * config.n_heads * config.head_dim  # q . k, then the sum of v
            n_ops += 2 * workload.batch * (n * in_layers + in_head + attention)
        return n_bytes, n_ops

    def _sessions_at(self, depth: int, batch: int) -> list[Session]:
        """So many texts of `depth` tokens; those of the last workload are kept and made longer or shorter."""
        del self._sessions[batch:]
        while len(self._sessions) < batch:
            self._sessions.append(self.model.session())
        for session in self._sessions:
            session.rewind(depth if session.can_rewind(depth) else 0)
            for _, n in _chunks(session.n_tokens, depth, batch=1):
                session.forward(self._random_ids(n))
        return self._sessions

    def _random_ids(self, n: int) -> list[int]:
        return self._random.choices(range(self.model.config.vocab_size), k=n)


def products(checkpoint: Checkpoint, config: Config) -> tuple[int, int]:
    """Multiply-adds of the matrix products for one token: in the layers, and for its logits."""
    hf = Reader(checkpoint.config, str(checkpoint.path / "config.json"))
    shapes = expected_shapes(config)
    matrices = 0
    for role in family_of(hf).sources(hf, config):
        if role.startswith("layers."):
            _, _, name = role.split(".", 2)
            shape = shapes.get(f"layers.{name}", ())
            matrices += math.prod(shape) if len(shape) == 2 else 0
    return matrices, config.vocab_size * config.dim


def keys(config: Config, pos: int, n: int) -> tuple[int, int]:
    """Of n tokens after pos others, over all layers: keys that any of them sees, and the sum of what each sees."""
    read = seen = 0
    for window in config.layer_window:
        most = window or pos + n
        read += min(pos + n, most + n - 1)
        seen += sum(min(t + 1, most) for t in range(pos, pos + n))
    return read, seen
