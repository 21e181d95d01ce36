"""The CPU backend: the C++ core with Accelerate, OpenBLAS or its own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from russet import _core, crossover, memory
from russet.backends import Interrupt
from russet.backends.core import CoreBackend, CoreSession, Part, core_config, weight_bytes
from russet.backends.dtypes import chosen_dtype
from russet.config import Config
from russet.errors import BackendError, UsageError
from russet.kv_dtype import KvDtype
from russet.packed_file import PackedFile
from russet.quantization import QuantizedTensor
from russet.safetensors import aligned, release_pages
from russet.saved_cache import SavedFile
from russet.weights import ToQuantize, Weight, Weights

HEADS = ("auto", "whole", "screened", "likely")

#: Bytes of a head that does not stay in a chip's caches from one token to the next, where reading fewer of them pays.
_LARGE = 2**25

_LIKELY = 6.0  #: standard deviations of a sum of rounding errors that are independent, in a bound that is "likely"


class CpuBackend(CoreBackend):
    """A model on the CPU.

    threads: by default RUSSET_THREADS or the physical cores
    prefill_threads: for more than a few tokens at once; by default as many
    kv_dtype: of keys and values; see KvDtype.of
    attention: "exact"; "sage" or "int8" with products in 8 bits, which is lossy: see attention_int8.h
    kv_budget: share of keys and values that a cache keeps, those that were looked at most; below 1 it is lossy
    head: "whole"; "screened", which reads as much of a head in 8 bits as shows the likeliest tokens (screen.h there);
        "likely", with bounds that hold for all but the rarest tokens; "auto": screened where that is known to pay
    cache_bytes: of all caches together, at most; by default what is free now
    """

    name = "cpu"

    def __init__(
        self,
        config: Config,
        weights: Weights,
        *,
        threads: int | None = None,
        prefill_threads: int | None = None,
        packed_file: PackedFile | None = None,
        keep_packed: bool = False,
        kv_dtype: str | None = None,
        kv_budget: float = 1.0,
        attention: str = "exact",
        head: str = "auto",
        cache_bytes: int | None = None,
    ) -> None:
        core = core_config(config)
        self._config = core
        n_threads = _core.default_threads() if threads is None else threads
        if prefill_threads is not None and prefill_threads < 1:
            raise UsageError(f"prefill_threads: expected 1 to 1024, got {prefill_threads}")
        if not 0 < kv_budget <= 1:
            raise UsageError(f"kv_budget: expected more than 0 and at most 1, got {kv_budget}")
        self.kv_budget = kv_budget
        self.attention = attention
        self._head_trust = _LIKELY / config.dim**0.5 if head == "likely" else 1.0
        self._cpu = _core.Cpu(core, n_threads, prefill_threads or n_threads, attention, self._head_trust)
        sliced = _sliced(weights, config, head)
        in_core = _in_core(weights, sliced, self.n_threads, packed_file, keep_packed)
        packed = [w for w in in_core.values() if isinstance(w, _core.PackedMatrix)]
        crossover.choose(packed, self._cpu.n_prefill_threads)
        self.few_tokens = min([self.few_tokens, *(w.blas_tokens - 1 for w in packed if w.blas_tokens)])
        last = in_core.get("head.w", in_core.get("embed.w"))
        self._head = last if isinstance(last, _core.PackedMatrix) else None
        self._model = _core.Model(core, in_core)
        self.weight_bytes = weight_bytes(in_core)
        if kv_budget < 1:
            self.refuses_drafts = f"with kv_budget={kv_budget} drafted tokens have a say in which keys are given back"
        elif attention != "exact":
            self.refuses_drafts = f"attention={attention!r} rounds keys by others that are there, drafted ones too"
        n_bytes = memory.available() if cache_bytes is None else cache_bytes
        self.kv_dtype = KvDtype.of(kv_dtype, chosen_dtype(None, weights))
        self.pool = _core.BlockPool(core, self.kv_dtype.keys, self.kv_dtype.values, n_bytes)

    @property
    def n_threads(self) -> int:
        """Threads that compute; set between calls it is for prefill as well, and sessions stay valid.

        Raises UsageError outside 1 to 1024.
        """
        return self._cpu.n_threads

    @n_threads.setter
    def n_threads(self, n_threads: int) -> None:
        self._cpu = _core.Cpu(self._config, n_threads, attention=self.attention, head_trust=self._head_trust)

    def session(self, n_ctx: int) -> CoreSession:
        return CoreSession(self, _core.KvCache(self.pool, self._model, n_ctx, self.kv_budget))

    def restore(self, file: SavedFile, n_ctx: int) -> list[tuple[list[int], CoreSession, str]]:
        """The texts of a file, each with a session and how it is rotated: all of them, or none."""
        texts = self.with_room(lambda: file.restore(self.pool, self._model, n_ctx))
        return [(text.tokens, CoreSession(self, text.cache), text.rotated) for text in texts]

    def run(
        self,
        parts: list[Part],
        x: np.ndarray[Any, Any] | None = None,
        interrupt: Interrupt | None = None,
        wanted: _core.Wanted | None = None,
    ) -> np.ndarray[Any, Any]:
        """x [n_tokens, dim] float32: what layers before these, on another backend, have made of the tokens."""
        return self.with_room(lambda: self._cpu.forward(self._model, parts, x, interrupt, wanted))

    def head_info(self) -> dict[str, int]:
        """See Model.head_info."""
        if self._head is None or not self._head.sliced:
            raise BackendError("head_info: this head is not screened; load with quantize='int8' and head='screened'")
        tokens, n_bytes, rows = self._cpu.screened
        whole_bytes, whole_rows = tokens * self._head.n_bytes, tokens * self._head.n_rows
        return {"tokens": tokens, "bytes": n_bytes, "whole_bytes": whole_bytes, "rows": rows, "whole_rows": whole_rows}


def _sliced(weights: Weights, config: Config, head: str) -> str | None:
    """The role of the matrix that is to be screened. Raises UsageError where there is none but one is asked for."""
    if head not in HEADS:
        raise UsageError(f"head: expected {', '.join(HEADS)}, got {head!r}")
    role = "head.w" if "head.w" in weights else "embed.w"
    weight = weights.get(role)
    bits = weight.how.bits if isinstance(weight, ToQuantize) else getattr(weight, "bits", None)
    n_rows, n_cols = (weight.n_rows, weight.n_cols) if isinstance(weight, (ToQuantize, QuantizedTensor)) else (0, 0)
    # A softcap can make logits equal that are far apart: all are needed to tell which comes first.
    is_plain = n_cols <= _core.MAX_SLICED_COLS and "head.bias" not in weights and not config.logits_softcap
    can = bits == 8 and is_plain
    if head in ("screened", "likely") and not can:
        has = "float weights" if bits is None else f"{bits} bits" if bits != 8 else "a bias, a softcap or more columns"
        raise UsageError(
            f"head: only one in 8 bits, without a bias or a softcap, can be {head}; this has {has}; take 'whole'"
        )
    if head == "auto":  # on arm64 its kernels are right, but whether they pay has not been measured
        pays = "avx2" in _core.cpu_features() and n_rows * n_cols >= _LARGE
        head = "screened" if can and pays else "whole"
    return None if head == "whole" else role


_InCore = tuple[np.ndarray[Any, Any], str] | _core.PackedMatrix


def _in_core(
    weights: Weights, sliced: str | None, n_threads: int, file: PackedFile | None, keep: bool
) -> dict[str, _InCore]:
    """The weights as the core takes them: what is quantised, or is to be, packed, or as the file has kept them."""
    roles = {role for role, weight in weights.items() if isinstance(weight, (ToQuantize, QuantizedTensor))}
    packed = file.read(n_threads) if file and roles else {}
    if packed is None or packed.keys() != roles or any(w.sliced != (role == sliced) for role, w in packed.items()):
        arena = _core.Arena(sum(_most_packed_bytes(weight) for weight in weights.values()))
        packed = {role: _pack(arena, weights[role], n_threads, role == sliced) for role in weights if role in roles}
        if file and keep:
            file.write(arena, packed)
    return {role: packed[role] if role in roles else _floats(weight) for role, weight in weights.items()}


def _floats(weight: Weight) -> _InCore:
    assert isinstance(weight, tuple)
    return aligned(weight[0]), weight[1]


def _pack(arena: _core.Arena, weight: Weight, n_threads: int, sliced: bool) -> _core.PackedMatrix:
    """One matrix at a time: its codes are there twice only until it is packed."""
    q = weight.quantize(n_threads) if isinstance(weight, ToQuantize) else weight
    assert isinstance(q, QuantizedTensor)
    codes, scales, biases = (aligned(array) for array in (q.codes, q.scales, q.biases))
    packed = _core.PackedMatrix(arena, codes, scales, biases, q.dtype, q.bits, q.group_size, n_threads, sliced)
    for array in (q.codes, q.scales, q.biases):
        release_pages(array)
    return packed


def _most_packed_bytes(weight: Weight) -> int:
    """What a weight may take of the arena."""
    if isinstance(weight, QuantizedTensor):
        bits, group_size, dtype = weight.bits, weight.group_size, weight.dtype
    elif isinstance(weight, ToQuantize):
        bits, group_size, dtype = weight.how.bits, weight.how.group_size, weight.tensor.dtype
    else:
        return 0
    shape = (weight.n_rows, weight.n_cols, bits, group_size, dtype)
    return _core.packed_bytes(*shape, symmetric=False, sliced=bits == 8)
