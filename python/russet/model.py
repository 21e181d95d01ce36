"""Model: a checkpoint, a tokenizer and a backend, ready to generate."""

from __future__ import annotations

import logging
import os
import secrets
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from russet import _core, memory, saved_cache
from russet.backends import Backend, Interrupt, Session
from russet.backends.dtypes import DTYPES, chosen_dtype
from russet.backends.mlx import probe
from russet.backends.part import part_of
from russet.checkpoint import Checkpoint, open_checkpoint
from russet.completions import Completion, complete, drawn, searched
from russet.config import Config, Reader, with_window
from russet.errors import BackendError, ContextFull, NotEnoughMemory, NumericalError, UsageError
from russet.generation import Continuation, Conversation, Piece, Progress, ReplyText, TextStream, generate
from russet.grammar import Grammar, make_grammar
from russet.kv_dtype import KvDtype
from russet.limits import AnyOf, Ended, Limits
from russet.models import family_of
from russet.options import ALIASES, GenerateOptions, options_of
from russet.packed_file import PackedFile
from russet.prefix_cache import TURNED_OFF, PrefixCache
from russet.quantization import Quantization
from russet.sampling import make_sampler
from russet.saved_cache import SavedText
from russet.speculation import DraftModel, PromptLookup, Speculation, check_same_tokens
from russet.thinking import SWITCHES, Thinking
from russet.tokenizer import Message, Tokenizer
from russet.tool_calls import FORMATS, Reply, parse_tool_calls
from russet.weights import (
    Plan,
    Weights,
    bind,
    embed_dtype,
    find_non_finite,
    held_bytes,
    needed_bytes,
    plan_quantization,
    without_copied_head,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from russet.backends.cpu import CpuBackend
    from russet.backends.mlx.shard import Team
    from russet.options import GenerateKeywords

DEMO = Path(__file__).parent / "demo"

BACKENDS = ("auto", "cpu", "mlx", "metal", "metal-sim")

SHARDS = ("tensor", "pipeline")

#: What a model can be asked to continue: text as it is, token ids, or a conversation for its chat template.
Prompt = str | Sequence[int] | Sequence[Message]

#: The JSON schema of a function: {"type": "function", "function": {"name": ..., "parameters": {...}}}.
Tool = Mapping[str, Any]

_log = logging.getLogger("russet")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    backend: str = "auto",
    dtype: str | None = None,
    kv_dtype: str | None = None,
    kv_budget: float = 1.0,
    kv_window: int | None = None,
    attention: str = "exact",
    head: str = "auto",
    gpu_layers: int | None = None,
    overlap_prefill: bool = False,
    threads: int | None = None,
    prefill_threads: int | None = None,
    n_ctx: int | None = None,
    max_memory: int | str | None = None,
    prefix_cache: int | str | None = None,
    quantize: str | Quantization | None = None,
    keep_packed: bool = False,
    draft_model: str | os.PathLike[str] | Model | None = None,
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
    kv_dtype: "float32", "float16", "bfloat16" or "int8": what the CPU keeps keys and values in; "int8/int4" is for keys
        and values apart. By default float16, or float32 where the weights are. A GPU keeps them in its dtype; Metal
        takes "int8" as well.
    kv_budget: share of its keys and values that a text keeps on the CPU, those looked at most (arXiv 2410.00161)
    kv_window: keys that a token sees on the CPU, the newest, beside the first 4 (arXiv 2309.17453); by default all
    attention: "exact", or on the CPU products in 8 bits: "sage" (arXiv 2410.02367) or "int8" (arXiv 2409.16997).
        Like kv_budget, kv_window and an int8 cache it loses something: docs/cache.md says what, and `russet perplexity
        --against` measures it.
    head: on the CPU, of quantize="int8": "screened" reads only as much of the head as shows which tokens are likeliest,
        and draws the same ones; "likely" reads less, and could miss one token in 1e9; "whole" reads all. By default
        "screened", on x86 and from 32 MB on (docs/sampling.md)
    gpu_layers: with MLX: how many layers, from the first on, it computes; the CPU computes the others, in memory that
        the GPU need not have. By default all; 0 is the CPU alone. Those must fit what the GPU can hold, with their
        part of the context; by default the context is as long as fits there too.
    overlap_prefill: with gpu_layers: while the CPU is at one part of a prompt, MLX computes the next. It pays where the
        two share nothing but memory, which has not been measured yet.
    threads: CPU threads; by default RUSSET_THREADS, else one per physical (performance) core
    prefill_threads: CPU threads for prompts, which are bound by arithmetic and not by memory; by default as many
    n_ctx: tokens the context holds; by default all the model knows, or as many as fit in memory beside it
    max_memory: bytes, or "8GB": how much weights and the keys and values of all texts may take, instead of what is free
        now
    prefix_cache: bytes, or "1GB", of these for texts that are kept so that prompts that begin alike share them; 0 keeps
        none; by default a quarter, or one full context where that is more
    quantize: "int8", "int4" or a Quantization: quantise float weights while they are loaded, one matrix at a time
    keep_packed: keep quantised weights beside the checkpoint in the core's own layout (packed_file.py); whenever such a
        file is there and fits, it is taken instead of quantising again
    draft_model: a smaller model with the same tokenizer, which drafts what this one then only checks
        (docs/speculation.md): a folder or hub id, loaded on the same backend, or a model loaded already. It has
        `max_memory` of its own.
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
    if overlap_prefill and gpu_layers is None:
        raise UsageError("overlap_prefill: it is the halves of a model that overlap; say how many gpu_layers")
    device = _open_device(backend, dtype, keep_packed, gpu_layers)
    team = _join(shard, device, gpu_layers)
    parts = read_parts(
        model,
        revision=revision,
        local_files_only=local_files_only,
        kv_dtype=kv_dtype if kv_dtype is not None or device is None else dtype,
        n_ctx=n_ctx,
        max_memory=max_memory if max_memory is not None or gpu_layers is not None else _device_memory(device),
        quantize=quantize,
        strict=strict,
        n_shards=team.size if team else 1,
    )
    if device is not None:
        name = "mlx" if isinstance(device, probe.Mlx) else "metal"
        KvDtype.of_device(kv_dtype, chosen_dtype(dtype, parts.weights), name, int8=name == "metal")
        of_the_cpu = {"kv_budget": (kv_budget, 1.0), "kv_window": (kv_window, None), "attention": (attention, "exact")}
        _refuse_on_device(name, **of_the_cpu, head=(head, "auto"))
    elif kv_window is not None:
        parts = replace(parts, config=with_window(parts.config, kv_window))
    on: Backend
    if shard and team:
        if draft_model is not None:
            raise UsageError("draft_model: not with shard, whose processes could not agree on what to draft")
        return _load_shard(parts, shard, team, dtype, max_memory, prefix_cache)
    if gpu_layers is not None:
        room = max_memory if max_memory is not None else _device_memory(device)
        parts = _fitted_to_gpu(parts, gpu_layers, n_ctx, room)
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
            kv_budget=kv_budget,
            attention=attention,
            head=head,
            cache_bytes=parts.cache_bytes,
        )
    elif isinstance(device, probe.Mlx):
        from russet.backends.mlx.backend import MlxBackend

        limit = None if max_memory is None else memory.n_bytes(max_memory)
        n_layers = parts.config.n_layers
        if gpu_layers is None or gpu_layers == n_layers:
            on = MlxBackend(parts.config, parts.weights, dtype=dtype, max_memory=limit)
        else:
            from russet.backends.split import SplitBackend

            on = SplitBackend(
                parts.config,
                parts.weights,
                gpu_layers,
                dtype=dtype,
                max_memory=limit,
                threads=threads,
                prefill_threads=prefill_threads,
                overlap_prefill=overlap_prefill,
            )
    else:
        from russet.backends.metal import MetalBackend

        on = MetalBackend(
            parts.config, parts.weights, device, dtype=dtype, kv_dtype=kv_dtype, cache_bytes=parts.cache_bytes
        )
        parts = _fitted_to_pool(parts, on.pool, n_ctx)
    if draft_model is not None and not isinstance(draft_model, Model):
        draft_model = load(
            draft_model,
            local_files_only=local_files_only,
            backend=backend,
            threads=threads,
            prefill_threads=prefill_threads,
        )
    if draft_model:
        check_same_tokens(parts.tokenizer, draft_model.tokenizer)
        parts = replace(parts, defaults=replace(parts.defaults, speculate="draft"))
    return Model(
        config=parts.config,
        tokenizer=parts.tokenizer,
        backend=on,
        n_ctx=parts.n_ctx,
        cache_bytes_per_token=parts.cache_bytes_per_token,
        prefix_cache_bytes=_prefix_cache_bytes(prefix_cache, parts.cache_bytes, parts),
        defaults=parts.defaults,
        checkpoint=parts.checkpoint,
        quantization=parts.quantization,
        draft=draft_model,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of a model but its backend: read, checked, and hardly a weight touched."""

    config: Config
    weights: Weights
    tokenizer: Tokenizer
    n_ctx: int
    cache_bytes_per_token: int  #: of keys and values
    cache_bytes: int  #: that all caches may take together
    defaults: GenerateOptions
    checkpoint: Checkpoint
    quantization: Quantization | None


def read_parts(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    kv_dtype: str | None = None,
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
    bytes_per_token = KvDtype.of(kv_dtype, embed_dtype(checkpoint.tensors, sources)).bytes_per_token(config)
    may_use = memory.budget(max_memory)
    n_ctx = memory.choose_n_ctx(
        weight_bytes=weight_bytes // n_shards,
        bytes_per_token=bytes_per_token // n_shards,
        max_ctx=config.max_ctx,
        n_ctx=n_ctx,
        max_memory=max_memory,
    )
    cache_bytes = max(may_use - weight_bytes // n_shards, memory.in_blocks(n_ctx) * bytes_per_token // n_shards)
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
        cache_bytes_per_token=bytes_per_token,
        cache_bytes=cache_bytes,
        defaults=defaults,
        checkpoint=checkpoint,
        quantization=quantization,
    )


def _prefix_cache_bytes(said: int | str | None, cache_bytes: int, parts: Parts) -> int:
    """Bytes that kept texts may take of all that caches may."""
    if said is None:
        return max(cache_bytes // 4, memory.in_blocks(parts.n_ctx) * parts.cache_bytes_per_token)
    return 0 if str(said) == "0" else memory.n_bytes(said, "prefix_cache")


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
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    if keep_packed:
        raise UsageError("keep_packed: a layout of the CPU's; for a GPU quantise once with `russet quantize`")
    if backend == "mlx":
        return probe.find()
    from russet.backends.metal import open_device

    return open_device(simulated=backend == "metal-sim")


def _refuse_on_device(backend: str, **options: tuple[object, object]) -> None:
    """options: name -> what is asked for, and what leaves it off. Raises UsageError where one is not off."""
    for name, (said, off) in options.items():
        if said != off:
            raise UsageError(f"{name}: the CPU alone has it, got {name}={said!r} with backend={backend!r}")


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


def _load_shard(
    parts: Parts,
    kind: str,
    team: Team,
    dtype: str | None,
    max_memory: int | str | None,
    prefix_cache: int | str | None,
) -> Model:
    """The rest of load() on one rank of several, once all are sure to have the same model."""
    from russet import __version__
    from russet.backends.mlx.backend import MlxBackend
    from russet.backends.mlx.shard import sample, shard_of

    team.check_alike("versions of russet or MLX", (__version__, probe.find().version))
    team.check_alike("options", (kind, dtype, parts.quantization, prefix_cache))
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
        cache_bytes_per_token=parts.cache_bytes_per_token,
        prefix_cache_bytes=_prefix_cache_bytes(prefix_cache, team.size * team.least(parts.cache_bytes), parts),
        defaults=parts.defaults,
        checkpoint=parts.checkpoint,
        quantization=parts.quantization,
        rank=team.rank,
        n_ranks=team.size,
        new_seed=team.new_seed,
    )


def _device_memory(device: _core.MetalDevice | probe.Mlx | None) -> int | None:
    """Bytes that weights and cache may take, where the device says so."""
    if device is None:
        return None
    working_set: int = device.working_set if isinstance(device, probe.Mlx) else device.info["working_set"]
    return min(working_set, memory.available()) if working_set else None


def _fitted_to_gpu(parts: Parts, gpu_layers: int, n_ctx: int | None, room: int | str | None) -> Parts:
    """The parts with a context that fits the GPU beside its layers, where n_ctx is not given.

    room: bytes that the GPU can hold; None: it does not say. Raises NotEnoughMemory, with the sum, and UsageError.
    """
    n_layers = parts.config.n_layers
    if not 0 <= gpu_layers <= n_layers:
        raise UsageError(f"gpu_layers: expected 0 to {n_layers}, all layers of this model, got {gpu_layers}")
    if gpu_layers == 0 or room is None:
        return parts
    _, weights = part_of(parts.config, parts.weights, 0, gpu_layers)
    n_ctx = memory.choose_n_ctx(
        weight_bytes=held_bytes(weights),
        bytes_per_token=parts.cache_bytes_per_token * gpu_layers // n_layers,
        max_ctx=parts.n_ctx,
        n_ctx=n_ctx,
        max_memory=room,
        part=f"gpu_layers={gpu_layers}: on the GPU, ",
        way_out="load with fewer gpu_layers or a smaller n_ctx",
    )
    return replace(parts, n_ctx=n_ctx)


def _fitted_to_pool(parts: Parts, pool: _core.BlockPool, n_ctx: int | None) -> Parts:
    """The parts with a context that fits the pool, which a GPU may see less of than memory has room for.

    Raises NotEnoughMemory, with the sum, where n_ctx is given and does not fit.
    """
    n_bytes = pool.info["n_blocks"] * pool.info["block_bytes"]
    n_tokens = n_bytes // (parts.cache_bytes_per_token * _core.BLOCK_TOKENS) * _core.BLOCK_TOKENS
    if memory.in_blocks(parts.n_ctx) > n_tokens and n_ctx is not None:
        needed = memory.in_blocks(n_ctx) * parts.cache_bytes_per_token
        raise NotEnoughMemory(
            f"cache {memory.gb(needed)} for {n_ctx:,} tokens, but the GPU sees {memory.gb(n_bytes)} in one piece; "
            "load with a smaller n_ctx or kv_dtype='int8'"
        )
    return replace(parts, n_ctx=min(parts.n_ctx, n_tokens), cache_bytes=min(parts.cache_bytes, n_bytes))


class Model:
    """A language model. Threads may share it: each running generation has a cache of its own."""

    def __init__(
        self,
        *,
        config: Config,
        tokenizer: Tokenizer,
        backend: Backend,
        n_ctx: int,
        cache_bytes_per_token: int,
        prefix_cache_bytes: int,
        defaults: GenerateOptions,
        checkpoint: Checkpoint,
        quantization: Quantization | None = None,
        draft: Model | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        new_seed: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.backend = backend
        self.n_ctx = n_ctx  #: tokens a conversation can hold
        self.cache_bytes_per_token = cache_bytes_per_token  #: of keys and values
        self.defaults = defaults  #: options from generation_config.json
        self.checkpoint = checkpoint
        self.quantization = quantization  #: how its weights were quantised while they were loaded
        self.draft = draft  #: the smaller model that drafts for this one
        self.rank = rank  #: of this process among those that share the model; 0 where it is alone
        self.n_ranks = n_ranks  #: processes that share it
        self._new_seed = new_seed
        self._texts = PrefixCache(
            partial(backend.session, n_ctx),
            config.ropes,
            bytes_per_token=cache_bytes_per_token,
            block_tokens=backend.block_tokens,
            budget=prefix_cache_bytes,
        )
        texts = weakref.ref(self._texts)  # they hold sessions, and these the backend
        backend.when_full(lambda: (kept := texts()) is not None and kept.drop_oldest())

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] | None = None, **options: Any) -> Model:
        """The same as russet.load()."""
        return load(model, **options)

    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> str:
        """Continue a prompt; return the new text, without the thoughts before it. Options are those of GenerateOptions.

        prompt: text as it is, token ids, or a list of messages for the chat template
        tools: JSON schemas of the functions that a conversation may call; parse_tool_calls() finds the calls
        progress: called with (prompt tokens done, prompt tokens in all) between chunks of a long prompt

        Raises UsageError, ContextFull, NotEnoughMemory, TemplateError, NumericalError, and what `progress` raises. The
        model stays usable, and what was computed of the prompt is kept for the next.
        """
        return "".join(piece.text for piece in self.stream(prompt, tools=tools, progress=progress, **options))

    def generate_tokens(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> list[int]:
        """Continue a prompt; return the new token ids, the end-of-text token included where one came."""
        pieces = self.stream(prompt, tools=tools, progress=progress, **options)
        return [piece.token for piece in pieces if piece.token is not None]

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> str:
        """Answer a message, or a list of them, through the model's chat template."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.generate(messages, tools=tools, progress=progress, **options)

    def stream(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> Generator[Piece]:
        """Continue a prompt, piece by piece. Leaving the loop stops it; the model stays usable.

        Bad input is refused here, before the first piece is asked for. Raises as generate() does.
        """
        chosen = self.defaults.with_keywords(options)
        if chosen.seed is None:
            chosen = replace(chosen, seed=self._new_seed())
        self._check_speculation(chosen)
        self._check_limits(chosen)
        ids = self._prompt_ids(prompt, tools, chosen.thinking)
        sampler = make_sampler(chosen, ids, self.tokenizer, self.config.vocab_size)
        grammar = make_grammar(chosen, self.tokenizer)
        reply = self._reply(prompt, ids, chosen)
        return self._stream(ids, chosen, sampler, grammar, reply, progress or (lambda done, total: None))

    def astream(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Piece]:
        """The pieces of stream() for `async for`, computed in a thread of their own.

        Leaving the loop and cancelling the task stop it as `cancel` does. `progress` is called in that thread. Raises
        as stream() does, when the first piece is asked for.
        """
        from russet.async_stream import in_thread

        left = Event()
        options["cancel"] = AnyOf(left, options.get("cancel"))
        return in_thread(partial(self.stream, prompt, tools=tools, progress=progress, **options), left)

    def generate_many(
        self,
        prompt: Prompt,
        *,
        n: int,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> list[Completion]:
        """Continue a prompt n times; the prompt is computed once, then a token of each text in one pass.

        Every text draws with a seed of its own, seed + i (modulo 2^64), and is the one that generate() gives with it.
        No tokens are drafted. Raises as generate() does.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise UsageError(f"n: expected an integer from 1 on, got {n!r}")
        chosen = self.defaults.with_keywords(options)
        if not chosen.use_cache:
            raise UsageError("use_cache: the texts are forks of one cache; leave it out")
        self._check_limits(chosen)
        first_seed = self._new_seed() if chosen.seed is None else chosen.seed
        seeds = [(first_seed + i) % 2**64 for i in range(n)]
        ids = self._prompt_ids(prompt, tools, chosen.thinking)
        samplers = [
            make_sampler(replace(chosen, seed=seed), ids, self.tokenizer, self.config.vocab_size) for seed in seeds
        ]
        grammars = [make_grammar(chosen, self.tokenizer) for _ in seeds]
        asked = chosen if chosen.follows else replace(chosen, logprobs=True)
        limits = Limits(chosen.timeout, chosen.cancel)
        try:
            conversation, logits, miss = self._computed(ids, progress, limits.check)
        except Ended as ended:
            return [Completion.without_tokens(ended.reason, seed) for seed in seeds]
        forks = [conversation.fork(logits) for _ in seeds]
        del conversation  # what it holds is theirs
        streams = [
            generate(
                fork,
                ids,
                asked,
                sampler=sampler,
                grammar=grammar,
                miss=miss,
                reply=self._reply(prompt, ids, chosen),
                limits=limits,
                eos_token_ids=self.tokenizer.eos_token_ids,
                diagnose=self._damage,
            )
            for fork, sampler, grammar in zip(forks, samplers, grammars, strict=True)
        ]
        pieces = complete(self.backend, forks, streams, ids)
        return [drawn(of, seed=seed, logprobs=chosen.logprobs) for of, seed in zip(pieces, seeds, strict=True)]

    def beam_search(
        self,
        prompt: Prompt,
        *,
        num_beams: int = 4,
        num_return_sequences: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        tools: Sequence[Tool] | None = None,
        progress: Progress | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> list[Completion]:
        """Find the likeliest continuations of a prompt, best first, by keeping num_beams of them at every step.

        The four options are transformers', see BeamOptions. The others are generate()'s: penalties, DRY, biases, bans,
        lengths and grammars hold, on logprobs; what only draws or cuts is refused by name. Raises as generate() does.
        """
        from russet.beam_search import REFUSED, BeamOptions, beam_search

        beams = BeamOptions(
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        chosen = self.defaults.with_keywords(options)
        for keyword in options:
            name = ALIASES.get(keyword, keyword)
            if name in REFUSED and getattr(chosen, name) != getattr(GenerateOptions(), name):
                raise UsageError(f"{name}: {REFUSED[name]}")
        ids = self._prompt_ids(prompt, tools, chosen.thinking)
        n_most = min(self.n_ctx - len(ids), self.n_ctx if chosen.max_tokens is None else chosen.max_tokens)
        if chosen.max_tokens == 0:
            raise UsageError("max_tokens: expected 1 or more in a beam search, got 0")
        if n_most < 1:
            raise ContextFull(f"the prompt's {len(ids):,} tokens fill n_ctx={self.n_ctx:,}; load with a larger n_ctx")
        sampler = make_sampler(chosen, ids, self.tokenizer, self.config.vocab_size)
        grammar = make_grammar(chosen, self.tokenizer)
        ends = {*chosen.stop_token_ids, *(() if chosen.ignore_eos else self.tokenizer.eos_token_ids)}
        conversation, logits, _ = self._computed(ids, progress)
        try:
            best = beam_search(
                self.backend, conversation, logits, beams, sampler=sampler, grammar=grammar, n_most=n_most, ends=ends
            )
        except NumericalError as error:
            raise NumericalError(self._damage() or str(error)) from None
        return [searched(ended, self._reply(prompt, ids, chosen), ends) for ended in best]

    def _computed(
        self, ids: Sequence[int], progress: Progress | None, interrupt: Interrupt = lambda: None
    ) -> tuple[Conversation, np.ndarray[Any, Any], str | None]:
        """A conversation that holds a prompt, the logits after it, and why more than its last token was computed."""
        conversation, miss = self._begin(ids, interrupt)
        new = ids[len(conversation.tokens) :]
        progress = progress or (lambda done, total: None)
        try:
            logits = conversation.append(new, progress=progress)
        finally:
            conversation.keep()
        progress(len(ids), len(ids))
        return conversation, logits, miss

    def _reply(self, prompt: Prompt, ids: list[int], options: GenerateOptions) -> ReplyText:
        """What is shown of an answer, or of a text that goes on."""
        detokenizer: TextStream
        if _is_chat(prompt):
            detokenizer = self.tokenizer.stream_decoder(skip_special_tokens=True, but=self.tokenizer.thinking_ids)
        else:
            detokenizer = Continuation(self.tokenizer, ids)
        return ReplyText(detokenizer, self._thinking(prompt, ids, options), options.stop)

    def _stream(
        self,
        ids: list[int],
        options: GenerateOptions,
        sampler: _core.Sampler,
        grammar: Grammar | None,
        reply: ReplyText,
        progress: Progress,
    ) -> Generator[Piece]:
        limits = Limits(options.timeout, options.cancel)
        miss: str | None = TURNED_OFF
        speculation = None
        if options.use_cache:
            conversation, miss = self._begin(ids, limits.check)
            if grammar is None:  # which forces tokens itself
                speculation = self._speculation(conversation, ids, options)
        else:
            conversation = Conversation(self.session(), self.config, interrupt=limits.check)
        try:
            yield from generate(
                conversation,
                ids,
                options,
                sampler=sampler,
                grammar=grammar,
                miss=miss,
                reply=reply,
                limits=limits,
                eos_token_ids=self.tokenizer.eos_token_ids,
                diagnose=self._damage,
                speculation=speculation,
                progress=progress,
            )
        finally:
            conversation.keep()
            if speculation:
                speculation.keep()

    def _begin(self, ids: Sequence[int], interrupt: Interrupt = lambda: None) -> tuple[Conversation, str | None]:
        """One that holds what is known of a prompt, and why not all but its last token."""
        session, miss = self._texts.take(ids)
        known, n = ids[: session.n_tokens], len(ids)
        conversation = Conversation(
            session, self.config, known=known, text_length=n, texts=self._texts, interrupt=interrupt
        )
        return conversation, miss

    def _thinking(self, prompt: Prompt, ids: list[int], options: GenerateOptions) -> Thinking | None:
        """What takes thoughts out of the reply to a conversation; None where there are none to expect."""
        tags = self.tokenizer.thinking_tags
        if tags is None or not _is_chat(prompt) or options.follows:  # a grammar lets no tag through
            return None
        return Thinking(tags, is_open=self.tokenizer.decode(ids[-16:]).rstrip().endswith(tags[0]))

    def _check_limits(self, options: GenerateOptions) -> None:
        if self.n_ranks > 1 and (options.timeout is not None or options.cancel is not None):
            name = "timeout" if options.timeout is not None else "cancel"
            raise UsageError(f"{name}: not with shard, whose processes could not agree on when that was")

    def _check_speculation(self, options: GenerateOptions) -> None:
        if options.speculate == "draft" and self.draft is None:
            raise UsageError("speculate: there is no draft model; load with draft_model=..., or take 'lookup'")
        if options.speculate and self.backend.refuses_drafts:
            raise UsageError(f"speculate: {self.backend.refuses_drafts}; take speculate=None")

    def _speculation(
        self, conversation: Conversation, ids: Sequence[int], options: GenerateOptions
    ) -> Speculation | None:
        n_most = min(options.n_draft, self.backend.few_tokens - 1)
        if options.speculate is None or n_most < 1:
            return None
        if options.speculate == "lookup" or self.draft is None:
            return Speculation(conversation, PromptLookup(), n_most)
        drafting, _ = self.draft._begin(ids, conversation.interrupt)
        n_ids = min(self.config.vocab_size, self.draft.config.vocab_size)
        return Speculation(conversation, DraftModel(drafting, n_ids), n_most)

    def _damage(self) -> str | None:
        damaged = find_non_finite(self.checkpoint.tensors)
        if damaged is None:
            return None
        return f"{damaged.file}: {damaged.name} holds NaN or infinity; download the file again"

    def parse_tool_calls(self, reply: str, format: str | None = None) -> Reply:
        """A reply taken apart into content and calls: see russet.tool_calls.parse_tool_calls().

        format: "hermes", "llama3" or "mistral"; by default what the chat template says

        Raises UsageError for another format, or where the template does not say.
        """
        format = format or self.tokenizer.tool_format
        if format is None:
            raise UsageError(f"format: the chat template does not say; expected one of {', '.join(FORMATS)}")
        return parse_tool_calls(reply, format)

    def logits(self, tokens: Prompt) -> np.ndarray[Any, Any]:
        """Logits after each token: float32 [n_tokens, vocab_size]."""
        ids = self._prompt_ids(tokens)
        return Conversation(self.session(), self.config).append(ids, all_logits=True)

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
        """Bytes of weights that computing one more token reads: all, a screened head in full; of a table one row."""
        return self.backend.weight_bytes

    def clear_cache(self) -> None:
        """Forget the texts that were kept, and give their memory back."""
        self._texts.clear()

    def cache_bytes(self) -> int:
        """Bytes of keys and values held now, by running generations and by the texts that are kept."""
        return self.cache_info()["bytes"]

    def cache_info(self) -> dict[str, int]:
        """What the cache holds and has done.

        bytes, peak_bytes, budget_bytes: of keys and values now, at most so far, and at most ever. MLX has no bound of
            its own: there they count the kept texts alone
        block_bytes, n_blocks: of what these are made, and how many are in use; 0 on MLX
        n_texts, text_bytes, text_budget_bytes: texts kept for prompts that begin alike
        n_hits, n_misses, n_tokens_reused: of prompts so far, and the tokens they did not have to compute
        """
        texts = self._texts
        text_bytes = texts.bytes()
        pool: _core.BlockPool | None = getattr(self.backend, "pool", None)
        if pool is None:
            held = {"bytes": text_bytes, "peak_bytes": texts.peak_bytes, "budget_bytes": texts.budget}
            held |= {"block_bytes": 0, "n_blocks": 0}
        else:
            info = pool.info
            counts = {"bytes": info["n_in_use"], "peak_bytes": info["n_peak"], "budget_bytes": info["n_blocks"]}
            held = {name: n * info["block_bytes"] for name, n in counts.items()}
            held |= {"block_bytes": info["block_bytes"], "n_blocks": info["n_in_use"]}
        return held | {
            "n_texts": texts.n_texts,
            "text_bytes": text_bytes,
            "text_budget_bytes": texts.budget,
            "n_hits": texts.n_hits,
            "n_misses": texts.n_misses,
            "n_tokens_reused": texts.n_tokens_reused,
        }

    def head_info(self) -> dict[str, int]:
        """How much of the head was read for the tokens so far for which it was screened.

        tokens: how many
        bytes, rows: read, and rows computed exactly, for all of these
        whole_bytes, whole_rows: what the whole head would have been

        Raises BackendError where the head is not screened.
        """
        from russet.backends.cpu import CpuBackend

        if not isinstance(self.backend, CpuBackend):
            raise BackendError(f"head_info: only the CPU screens a head, not {self.backend.name}")
        return self.backend.head_info()

    def save_cache(self, path: str | os.PathLike[str], prompt: Prompt | None = None) -> None:
        """Write the texts that are kept to a file, with their keys and values, for load_cache() of another process.

        prompt: this one instead, computed as far as it is not known

        Raises UsageError where there is no text, BackendError on a backend other than the CPU, CheckpointError where
        the file cannot be written, and as generate() does.
        """
        on = self._savable("save_cache")
        texts = self._texts.texts()
        if prompt is not None:
            ids = self._prompt_ids(prompt)
            conversation, _ = self._begin(ids)
            conversation.append(ids[len(conversation.tokens) :])
            conversation.keep()
            texts = [(ids, conversation.session, conversation.rotated or "")]
        if not texts or not texts[0][2]:
            why = "a dynamic rope rotates keys for one length alone" if texts else "no text is kept"
            raise UsageError(f"save_cache: {why}; generate one first, or pass a shorter prompt")
        saved = [SavedText(tokens, session.cache, rotated) for tokens, session, rotated in texts]  # type: ignore[attr-defined]
        saved_cache.save(Path(path), self._identity(on), on.pool, self.config, saved)

    def load_cache(self, path: str | os.PathLike[str]) -> None:
        """Keep the texts of a file that save_cache() wrote, as far as the budget allows; where it raises, none of them.

        Raises CheckpointError where the file is damaged or, with the field's name, of another model, tokenizer, rope,
        quantisation or kv_dtype; NotEnoughMemory; ContextFull; UsageError with prefix_cache=0; BackendError as
        save_cache() does.
        """
        on = self._savable("load_cache")
        if not self._texts.budget:
            raise UsageError("load_cache: prefix_cache=0 keeps no texts; load the model with more")
        file = saved_cache.read(Path(path), self._identity(on), on.pool.info["block_bytes"], self.config, self.n_ctx)
        for tokens, session, rotated in on.restore(file, self.n_ctx):
            self._texts.put(tokens, session, rotated)

    def _savable(self, what: str) -> CpuBackend:
        from russet.backends.cpu import CpuBackend

        if isinstance(self.backend, CpuBackend) and self.backend.kv_budget < 1:
            raise UsageError(f"{what}: with kv_budget={self.backend.kv_budget} texts have holes; take 1")
        if not isinstance(self.backend, CpuBackend):
            raise BackendError(
                f"{what}: only the CPU's cache can be saved, not {self.backend.name}'s; use backend='cpu'"
            )
        return self.backend

    def _identity(self, on: CpuBackend) -> dict[str, str]:
        return saved_cache.identity(self.checkpoint, self.config, self.quantization, on.kv_dtype, on.attention)

    def _prompt_ids(
        self, prompt: Prompt, tools: Sequence[Tool] | None = None, thinking: bool | None = None
    ) -> list[int]:
        if tools is not None and not _is_chat(prompt):
            raise UsageError("tools: the chat template tells the model of them; pass the prompt as a list of messages")
        if thinking is not None and not _is_chat(prompt):
            raise UsageError("thinking: the chat template is told of it; pass the prompt as a list of messages")
        if thinking is not None and not self.tokenizer.can_switch_thinking:
            raise UsageError("thinking: this model's chat template leaves no choice; leave it out")
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif _is_chat(prompt):
            switches: dict[str, Any] = {} if thinking is None else dict.fromkeys(SWITCHES, thinking)
            ids = self.tokenizer.apply_chat_template(prompt, tools, add_generation_prompt=True, **switches)  # type: ignore[arg-type]
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
