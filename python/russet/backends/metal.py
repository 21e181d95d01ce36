"""The Metal backend: russet's own shaders on the GPU of a Mac, or, named "metal-sim", on a CPU through the simulator.

The weights stay where they are wherever the device can read them there: it is shown the maps of the checkpoint's files.
What it cannot, an odd address or a matrix that is quantised while it is loaded, is copied into one arena beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from russet import _core, metal_source
from russet.backends import Interrupt
from russet.backends.core import CoreBackend, CoreSession, Part, core_config, weight_bytes
from russet.backends.dtypes import DTYPES, chosen_dtype
from russet.config import Config
from russet.errors import BackendError, NumericalError, UsageError
from russet.kv_dtype import KvDtype
from russet.memory import available, gb
from russet.quantization import QuantizedTensor
from russet.safetensors import mapping_of, release_pages
from russet.weights import ToQuantize, Weight, Weights

_CODES_ALIGNMENT = 8  # bytes; the shaders read codes by so many

_Array = np.ndarray[Any, Any]


def open_device(*, simulated: bool = False) -> _core.MetalDevice:
    """The GPU of this Mac, or the simulator, with russet's kernels compiled.

    Raises BackendError: no Metal, or no compiler for the simulator; UsageError on a bad RUSSET_SIM_SCHEDULE.
    """
    if not simulated:
        return _core.MetalDevice.apple([metal_source.inlined(path) for path in metal_source.shaders()])
    from russet import metal_sim

    said = os.environ.get("RUSSET_SIM_SCHEDULE", "0")
    schedule = int(said) if said.isdecimal() else -1
    if not 0 <= schedule < 2**32:
        raise UsageError(f"RUSSET_SIM_SCHEDULE: expected 0, 1 or a seed below 2^32, got {said!r}")
    libraries = [metal_sim.compile_file(path) for path in metal_source.shaders()]
    return _core.MetalDevice.simulated([os.fspath(library.path) for library in libraries], schedule)


class MetalBackend(CoreBackend):
    """A model on a Metal device.

    dtype: "float32", "float16" or "bfloat16": of activations. By default the type of the checkpoint.
        The residual stream, all sums and the logits are float32 in any case.
    kv_dtype: of keys and values: dtype by default, or "int8"
    cache_bytes: of all caches together, at most; by default what is free now. The GPU sees them in one piece, of
        max_map_bytes at most.

    Raises UsageError on a kv_dtype that the shaders do not read.
    """

    n_threads = 1  #: of the CPU: one encodes

    def __init__(
        self,
        config: Config,
        weights: Weights,
        device: _core.MetalDevice,
        *,
        dtype: str | None = None,
        kv_dtype: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.name = "metal-sim" if device.info["simulated"] else "metal"
        self.dtype = chosen_dtype(dtype, weights)
        self.kv_dtype = KvDtype.of_device(kv_dtype, self.dtype, "metal", int8=True)
        memory = _DeviceMemory(weights.values())
        in_core = {role: memory.shown(weight) for role, weight in weights.items()}
        self.weight_bytes = weight_bytes(in_core)
        self._model = _core.Model(core_config(config), in_core)
        n_bytes = available() if cache_bytes is None else cache_bytes
        pages = memory.pages(device)
        self._metal = _core.Metal(device, self._model, self.dtype, pages, self.kv_dtype.keys, n_bytes)
        self.pool = self._metal.pool

    def session(self, n_ctx: int) -> CoreSession:
        return CoreSession(self, _core.MetalCache(self._metal, n_ctx))

    def run(
        self, parts: list[Part], *, interrupt: Interrupt | None = None, wanted: _core.Wanted | None = None
    ) -> _Array:
        return self.with_room(lambda: self._metal.forward(parts))

    def append_greedy(self, cache: _core.KvCache, token: int) -> int:
        """While the host looks at this token, the device computes the next one."""
        assert isinstance(cache, _core.MetalCache)
        likeliest = self.with_room(partial(self._metal.append_greedy, cache, token))
        if likeliest < 0:
            raise NumericalError("the model computed logits that are not a number")
        return likeliest


class MetalProduct:
    """One matrix on a Metal device, to multiply by: how the devices of a machine are compared.

    dtype: of x and y on the device
    """

    def __init__(self, device: _core.MetalDevice, weight: Weight, *, dtype: str = "float32") -> None:
        memory = _DeviceMemory([weight])
        in_core = memory.shown(weight)
        self._product = _core.MetalProduct(device, in_core, DTYPES[dtype], memory.pages(device))

    def run(self, x: _Array, n_times: int = 1) -> tuple[_Array, float]:
        """x [n_tokens, n_cols] -> y [n_tokens, n_rows] float32, and the seconds that one of n_times products took."""
        return self._product.run(x, n_times)


_InCore = tuple[_Array, str] | _core.AffineMatrix


class _DeviceMemory:
    """Where the weights lie: in the maps of their files, or in one arena."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._arena = _core.Arena(sum(map(_most_bytes, weights)))
        self._in_maps: list[_Array] = []

    def shown(self, weight: Weight) -> _InCore:
        """The weight as the core takes it, in memory that the device will see."""
        if isinstance(weight, tuple):
            return self._place(weight[0]), weight[1]
        q = weight.quantize(_core.default_threads()) if isinstance(weight, ToQuantize) else weight
        codes, scales, biases = (self._place(array) for array in (q.codes, q.scales, q.biases))
        return _core.AffineMatrix(codes, scales, biases, q.dtype, q.bits, q.group_size)

    def _place(self, array: _Array) -> _Array:
        if mapping_of(array) is not None and array.ctypes.data % max(array.itemsize, _CODES_ALIGNMENT) == 0:
            self._in_maps.append(array)
            return array
        kept = self._arena.keep(np.ascontiguousarray(array))
        release_pages(array)
        return kept

    def pages(self, device: _core.MetalDevice) -> list[_Array]:
        """Runs of whole pages, each at most as long as one buffer of the device, with every weight in one of them."""
        most: int = device.info["max_map_bytes"]
        runs = [self._arena.bytes()] if self._arena.used else []
        of_map: dict[int, list[_Array]] = {}
        maps: dict[int, _Array] = {}
        for array in self._in_maps:
            whole = mapping_of(array)
            assert whole is not None
            maps[whole.ctypes.data] = whole
            of_map.setdefault(whole.ctypes.data, []).append(array)
        for address, whole in maps.items():
            ends = sorted({(a.ctypes.data - address, a.ctypes.data - address + a.nbytes) for a in of_map[address]})
            runs += [whole[begin:end] for begin, end in _runs(ends, most)]
        return runs


def _runs(pieces: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Ranges from page to page, none longer than `most`, such that each piece lies in one. Ranges may share a page."""
    page = os.sysconf("SC_PAGE_SIZE")
    runs: list[tuple[int, int]] = []
    for begin, end in pieces:
        if runs and end - runs[-1][0] <= most:
            runs[-1] = runs[-1][0], max(end, runs[-1][1])
            continue
        begin -= begin % page
        if end - begin > most:
            raise BackendError(f"metal: a tensor of {gb(end - begin)}; this GPU's buffers hold {gb(most)} at most")
        runs.append((begin, end))
    return runs


def _most_bytes(weight: Weight) -> int:
    """What a weight may take of the arena."""
    rounded = 3 * 64
    if isinstance(weight, tuple):
        return weight[0].nbytes + rounded
    if isinstance(weight, QuantizedTensor):
        return weight.codes.nbytes + weight.scales.nbytes + weight.biases.nbytes + rounded
    n_weights = weight.n_rows * weight.n_cols
    return n_weights * weight.how.bits // 8 + 2 * (n_weights // weight.how.group_size) * 4 + rounded
