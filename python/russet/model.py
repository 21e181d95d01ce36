"""Model: a checkpoint, a tokenizer and a backend, ready to generate."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from russet import _core, memory
from russet.backends import Backend, Session
from russet.backends.dtypes import DTYPES, chosen_dtype
from russet.backends.mlx import probe
from russet.checkpoint import Checkpoint, open_checkpoint
from russet.config import Config, Reader
from russet.errors import BackendError, ContextFull, UsageError
from russet.generation import Continuation, Conversation, Piece, TextStream, generate
from russet.models import family_of
from russet.options import GenerateOptions, options_of
from russet.packed_file import PackedFile
from russet.quantization import Quantization
from russet.sampling import make_sampler
from russet.tokenizer import Message, Tokenizer
from russet.weights import Plan, Weights, bind, find_non_finite, needed_bytes, plan_quantization, without_copied_head

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from russet.backends.mlx.shard import Team
    from russet.options import GenerateKeywords

DEMO = Path(__file__).parent / "demo"

BACKENDS = ("auto", "cpu", "mlx", "metal", "metal-sim")

SHARDS = ("tensor", "pipeline")

#: What a model can be asked to continue: text as it is, token ids, or a conversation for its chat template.
Prompt = str | Sequence[int] | Sequence[Message]

_log = logging.getLogger("russet")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    backend: str = "auto",
    dtype: str | None = None,
    kv_dtype: str | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    prefill_threads: int | None = None,
    n_ctx: int | None = None,
    max_memory: int | str | None = None,
    quantize: str | Quantization | None = None,
    keep_packed: bool = False,
    shard: str | None = None,
    strict: bool = True,
) -> Model:
    """Load a Hugging Face checkpoint: a folder, or a hub id such as "Qwen/Qwen3-0.6B"; the built-in demo by default.

    revision: branch, tag or commit of a hub id
    local_files_only: never use the network
    backend: "cpu"; "mlx" for MLX, which computes on the GPU of a Mac; "metal" for russet's own kernels there;
        "metal-sim" for the same kernels in a simulator, to check them and not to be fast; or "auto": MLX where it
        finds the GPU of a Mac, else the CPU, or what RUSSET_BACKEND names
    dtype: "float32", "float16" or "bfloat16": what a GPU keeps activations, keys and values in; by default the type of
        the checkpoint. The CPU computes in float32.
    gpu_layers: with MLX: how many layers, from the first on, it computes; the CPU computes the others, in memory that
        the GPU need not have. By default all; 0 is the CPU alone.
    threads: CPU threads; by default RUSSET_THREADS, else one per physical (performance) core
    prefill_threads: CPU threads for prompts, which are bound by arithmetic and not by memory; by default as many
    n_ctx: tokens the context holds; by default all the model knows, or as many as fit in memory beside it
    max_memory: bytes, or "8GB": how much weights and context may take, instead of what is free now
    quantize: "int8", "int4" or a Quantization: quantise float weights while they are loaded, one matrix at a time
    keep_packed: keep quantised weights beside the checkpoint in the core's own layout (packed_file.py); whenever such a
        file is there and fits, it is taken instead of quantising again
    shard: "tensor" or "pipeline": this process is one of several that mlx.launch has started, on one machine or more,
        and computes its part of the model: some heads of every layer, or some layers. All must do the same with it.
    strict: refuse a checkpoint with tensors the model has no place for

    Raises CheckpointError (HubError, ConfigError, WeightsError), TokenizerError, NotEnoughMemory, BackendError, and
    UsageError where `quantize` asks for what cannot be, or the checkpoint is quantised already.
    """
    if model is None:
        if keep_packed:
            raise UsageError("keep_packed: the built-in demo keeps nothing; pass the folder of a model")
        _log.warning("no model given: using the built-in demo, a toy that writes old-fashioned English")
        model = DEMO
    device = _open_device(backend, dtype, keep_packed, gpu_layers)
    team = _join(shard, device, gpu_layers)
    parts = read_parts(
        model,
        revision=revision,
        local_files_only=local_files_only,
        n_ctx=n_ctx,
        max_memory=max_memory if max_memory is not None or gpu_layers is not None else _device_memory(device),
        quantize=quantize,
        strict=strict,
        n_shards=team.size if team else 1,
    )
    on: Backend
    if shard and team:
        return _load_shard(parts, shard, team, dtype, max_memory)
    if device is None:
        from russet.backends.cpu import CpuBackend

        on = CpuBackend(
            parts.config,
            parts.weights,
            threads=threads,
            prefill_threads=prefill_threads,
            packed_file=PackedFile(parts.checkpoint, parts.quantization),
            keep_packed=keep_packed,
            kv_dtype=kv_dtype,
        )
    elif isinstance(device, probe.Mlx):
        from russet.backends.mlx.backend import MlxBackend

        limit = None if max_memory is None else memory.n_bytes(max_memory)
        n_layers = parts.config.n_layers
        if gpu_layers is None or gpu_layers == n_layers:
            on = MlxBackend(parts.config, parts.weights, dtype=dtype, max_memory=limit)
        elif 0 < gpu_layers < n_layers:
            from russet.backends.split import SplitBackend

            on = SplitBackend(
                parts.config,
                parts.weights,
                gpu_layers,
                dtype=dtype,
                max_memory=limit,
                threads=threads,
                prefill_threads=prefill_threads,
            )
        else:
            raise UsageError(f"gpu_layers: expected 0 to {n_layers}, all layers of this model, got {gpu_layers}")
    else:
        from russet.backends.metal import MetalBackend

        on = MetalBackend(parts.config, parts.weights, device, dtype=dtype)
    return Model(
        config=parts.config,
        tokenizer=parts.tokenizer,
        backend=on,
        n_ctx=parts.n_ctx,
        defaults=parts.defaults,
        checkpoint=parts.checkpoint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of a model but its backend: read, checked, and hardly a weight touched."""

    config: Config
    weights: Weights
    tokenizer: Tokenizer
    n_ctx: int
    defaults: GenerateOptions
    checkpoint: Checkpoint
    quantization: Quantization | None


def read_parts(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    n_ctx: int | None = None,
    max_memory: int | str | None = None,
    quantize: str | Quantization | None = None,
    strict: bool = True,
    n_shards: int = 1,
) -> Parts:
    """What load() does before the weights go to a backend; the options and errors are load()'s.

    n_shards: processes that share the memory needed
    """
    quantization = Quantization.of(quantize)
    checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
    hf = Reader(checkpoint.config, str(checkpoint.path / "config.json"))
    family = family_of(hf)
    config = family.config(hf)
    sources = family.sources(hf, config)
    plan: Plan = {}
    weight_bytes = checkpoint.n_bytes
    if quantization:
        sources = without_copied_head(checkpoint.tensors, sources, config)
        plan = plan_quantization(checkpoint.tensors, sources, quantization)
        weight_bytes = needed_bytes(checkpoint.tensors, sources, plan)
        left = [name for name, how in plan.items() if how is None and quantization.of_tensor(name)]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            _log.warning("quantize: %s%s stays float: its inputs make no groups of 32", left[0], more)
    n_ctx = memory.choose_n_ctx(
        weight_bytes=weight_bytes // n_shards,
        bytes_per_token=config.cache_bytes_per_token // n_shards,
        max_ctx=config.max_ctx,
        n_ctx=n_ctx,
        max_memory=max_memory,
    )
    if not config.ropes and n_ctx > config.max_ctx:
        raise UsageError(f"n_ctx: this model learned {config.max_ctx} positions, got {n_ctx}")
    weights = bind(checkpoint.tensors, sources, config, plan=plan, ignored=family.IGNORED, strict=strict)
    tokenizer = Tokenizer.from_pretrained(checkpoint.path)
    defaults = options_of(Reader(checkpoint.generation_config, str(checkpoint.path / "generation_config.json")))
    return Parts(
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        n_ctx=n_ctx,
        defaults=defaults,
        checkpoint=checkpoint,
        quantization=quantization,
    )


def _open_device(
    backend: str, dtype: str | None, keep_packed: bool, gpu_layers: int | None
) -> _core.MetalDevice | probe.Mlx | None:
    """What a backend computes on, checked before anything is read; None: the CPU."""
    if backend == "auto":
        backend = os.environ.get("RUSSET_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise BackendError(f"backend: expected {', '.join(BACKENDS)}, got {backend!r}")
    if gpu_layers is not None:
        if backend not in ("auto", "mlx"):
            raise UsageError(f"gpu_layers: MLX alone shares layers with the CPU, got backend={backend!r}; take 'mlx'")
        backend = "mlx" if gpu_layers else "cpu"
    if backend == "auto" and not keep_packed and (mlx := probe.find_gpu()):
        return mlx
    if backend in ("auto", "cpu"):
        if dtype not in (None, "float32"):
            raise UsageError(f"dtype: the CPU computes in float32, got {dtype!r}; take backend='metal' for others")
        return None
    if keep_packed:
        raise UsageError("keep_packed: a layout of the CPU's; for a GPU quantise once with `russet quantize`")
    if backend == "mlx":
        return probe.find()
    from russet.backends.metal import open_device

    return open_device(simulated=backend == "metal-sim")


def _join(shard: str | None, device: _core.MetalDevice | probe.Mlx | None, gpu_layers: int | None) -> Team | None:
    """The processes that compute the model together; None: this one alone does."""
    if shard is None:
        return None
    if shard not in SHARDS:
        raise UsageError(f"shard: expected {' or '.join(SHARDS)}, got {shard!r}")
    if not isinstance(device, probe.Mlx):
        raise UsageError("shard: only MLX computes a model in several processes; load with backend='mlx'")
    if gpu_layers is not None:
        raise UsageError("gpu_layers: with shard every layer is in MLX; leave one of them out")
    from russet.backends.mlx.shard import team

    return team()


def _load_shard(parts: Parts, kind: str, team: Team, dtype: str | None, max_memory: int | str | None) -> Model:
    """The rest of load() on one rank of several, once all are sure to have the same model."""
    from russet import __version__
    from russet.backends.mlx.backend import MlxBackend
    from russet.backends.mlx.shard import sample, shard_of

    team.check_alike("versions of russet or MLX", (__version__, probe.find().version))
    team.check_alike("options", (kind, dtype, parts.quantization))
    team.check_alike("settings in its checkpoint", (parts.config, parts.defaults))
    team.check_alike("weights in its checkpoint", sample(parts.weights))
    dtype = next(name for name, short in DTYPES.items() if short == chosen_dtype(dtype, parts.weights))
    shard = shard_of(kind, team, parts.config, parts.weights)
    limit = None if max_memory is None else memory.n_bytes(max_memory)
    return Model(
        config=parts.config,
        tokenizer=parts.tokenizer,
        backend=MlxBackend(shard.config, shard.weights, dtype=dtype, max_memory=limit, shard=shard),
        n_ctx=team.least(parts.n_ctx),
        defaults=parts.defaults,
        checkpoint=parts.checkpoint,
        rank=team.rank,
        new_seed=team.new_seed,
    )


def _device_memory(device: _core.MetalDevice | probe.Mlx | None) -> int | None:
    """Bytes that weights and cache may take, where the device says so."""
    if device is None:
        return None
    working_set: int = device.working_set if isinstance(device, probe.Mlx) else device.info["working_set"]
    return min(working_set, memory.available()) if working_set else None


class Model:
    """A language model. Threads may share it: each running generation has a cache of its own."""

    def __init__(
        self,
        *,
        config: Config,
        tokenizer: Tokenizer,
        backend: Backend,
        n_ctx: int,
        defaults: GenerateOptions,
        checkpoint: Checkpoint,
        rank: int = 0,
        new_seed: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.backend = backend
        self.n_ctx = n_ctx  #: tokens a conversation can hold
        self.defaults = defaults  #: options from generation_config.json
        self.checkpoint = checkpoint
        self.rank = rank  #: of this process among those that share the model; 0 where it is alone
        self._new_seed = new_seed
        self._idle: list[Conversation] = []  # at most one: the last that ended, kept for its cache
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] | None = None, **options: Any) -> Model:
        """The same as russet.load()."""
        return load(model, **options)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateKeywords]) -> str:
        """Continue a prompt; return the new text. Options are those of GenerateOptions.

        prompt: text as it is, token ids, or a list of messages for the chat template

        Raises UsageError, ContextFull, TemplateError, NumericalError.
        """
        return "".join(piece.text for piece in self.stream(prompt, **options))

    def generate_tokens(self, prompt: Prompt, **options: Unpack[GenerateKeywords]) -> list[int]:
        """Continue a prompt; return the new token ids, the end-of-text token included where one came."""
        return [piece.token for piece in self.stream(prompt, **options) if piece.token is not None]

    def chat(self, messages: str | Sequence[Message], **options: Unpack[GenerateKeywords]) -> str:
        """Answer a message, or a list of them, through the model's chat template."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.generate(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[GenerateKeywords]) -> Generator[Piece]:
        """Continue a prompt, piece by piece. Leaving the loop stops; the model stays usable.

        Bad input is refused here, before the first piece is asked for. Raises as generate() does.
        """
        chosen = self.defaults.with_keywords(options)
        if chosen.seed is None:
            chosen = replace(chosen, seed=self._new_seed())
        ids = self._prompt_ids(prompt)
        detokenizer: TextStream
        if _is_chat(prompt):
            detokenizer = self.tokenizer.stream_decoder(skip_special_tokens=True)
        else:
            detokenizer = Continuation(self.tokenizer, ids)
        sampler = make_sampler(chosen, ids, self.tokenizer, self.config.vocab_size)
        return self._stream(ids, chosen, sampler, detokenizer)

    def _stream(
        self, ids: list[int], options: GenerateOptions, sampler: _core.Sampler, detokenizer: TextStream
    ) -> Generator[Piece]:
        with self._conversation() as conversation:
            yield from generate(
                conversation,
                ids,
                options,
                sampler=sampler,
                detokenizer=detokenizer,
                eos_token_ids=self.tokenizer.eos_token_ids,
                diagnose=self._damage,
            )

    def _damage(self) -> str | None:
        damaged = find_non_finite(self.checkpoint.tensors)
        if damaged is None:
            return None
        return f"{damaged.file}: {damaged.name} holds NaN or infinity; download the file again"

    def logits(self, tokens: Prompt) -> np.ndarray[Any, Any]:
        """Logits after each token: float32 [n_tokens, vocab_size]."""
        ids = self._prompt_ids(tokens)
        with self._conversation() as conversation:
            conversation.rewind(0)
            return conversation.append(ids, all_logits=True)

    def score(self, text: Prompt) -> list[float]:
        """Natural-log probability of each token but the first, given those before it."""
        ids = self._prompt_ids(text)
        logits = self.logits(ids)[:-1].astype(np.float64)
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        top = logits.max(axis=1)
        scores: list[float] = (chosen - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))).tolist()
        return scores

    def session(self) -> Session:
        """A fresh cache to run the model by hand: see russet.backends.Session."""
        return self.backend.session(self.n_ctx)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that computing one more token reads: all, but of a table only one row."""
        return self.backend.weight_bytes

    def clear_cache(self) -> None:
        """Forget the last conversation, and give its memory back."""
        with self._lock:
            self._idle.clear()

    def cache_bytes(self) -> int:
        """Bytes of keys and values kept from the last conversation."""
        with self._lock:
            return sum(c.session.cache_bytes() for c in self._idle)

    @contextmanager
    def _conversation(self) -> Iterator[Conversation]:
        """The kept conversation, or a new one while that is in use."""
        with self._lock:
            conversation = self._idle.pop() if self._idle else None
        if conversation is None:
            conversation = Conversation(self.session(), self.config)
        try:
            yield conversation
        finally:
            with self._lock:
                self._idle[:] = [conversation]

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif _is_chat(prompt):
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)  # type: ignore[arg-type]
        else:
            try:
                ids = [index(id) for id in prompt]  # type: ignore[arg-type]
            except TypeError:
                raise UsageError(
                    f"prompt: expected text, token ids or a list of messages, got {type(prompt).__name__}"
                ) from None
        if not ids:
            raise UsageError("prompt: expected at least one token, got none; this tokenizer adds no BOS of its own")
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            wrong = next(id for id in ids if not 0 <= id < self.config.vocab_size)
            raise UsageError(f"prompt: token ids go from 0 to {self.config.vocab_size - 1}, got {wrong}")
        if len(ids) > self.n_ctx:
            raise ContextFull(
                f"the prompt's {len(ids):,} tokens do not fit n_ctx={self.n_ctx:,}; "
                "shorten it, or load with a larger n_ctx"
            )
        return ids


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
