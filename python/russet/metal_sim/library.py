"""A compiled library: its kernels, and how they are run on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from russet.errors import SimulationError
from russet.metal_sim import toolchain

ABI = 1
MAX_BUFFERS = 31


# ---- cxx/runtime.h, in ctypes' words


class _Argument(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("kind", "index", "optional", "writable")),
        ("bytes", ctypes.c_uint64),
        ("type", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("arguments", ctypes.POINTER(_Argument)),
        ("n_arguments", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
        ("threadgroup_bytes", ctypes.c_uint64),
    ]


class _FunctionConstant(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
        ("index", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
    ]


class _Binding(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64)]


class _ConstantValue(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint32), ("bytes", ctypes.c_uint32), ("value", ctypes.c_void_p)]


class _Traffic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("read_moved", "read_touched", "written_moved", "written_touched")]


class _Report(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("threads", "groups", "barriers", "simd_ops")),
        ("traffic", _Traffic * MAX_BUFFERS),
    ]


class _Error(ctypes.Structure):
    _fields_ = [
        ("text", ctypes.c_char * 512),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_uint32),
        ("column", ctypes.c_uint32),
        ("buffer", ctypes.c_int32),
        ("has_pc", ctypes.c_uint32),
        ("pc", ctypes.c_uint64),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("buffers", ctypes.POINTER(_Binding)),
        ("threadgroup_memory", ctypes.POINTER(ctypes.c_uint64)),
        ("constants", ctypes.POINTER(_ConstantValue)),
        ("n_buffers", ctypes.c_uint32),
        ("n_threadgroup_memory", ctypes.c_uint32),
        ("n_constants", ctypes.c_uint32),
        ("groups", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("schedule", ctypes.c_uint32),
        ("report", ctypes.POINTER(_Report)),
        ("error", ctypes.POINTER(_Error)),
    ]


# ---- what a library says of itself


@dataclass(frozen=True)
class Buffer:
    """What a kernel takes at one buffer index."""

    index: int
    name: str
    type: str  #: as the shader has it: "device const half*"
    written: bool  #: whether the kernel may write to it
    is_reference: bool  #: constant Args&: exactly one value, of `value_bytes`
    value_bytes: int  #: of one element, or of the one value
    optional: bool  #: may be left unbound, for some values of the function constants


@dataclass(frozen=True)
class Kernel:
    """One kernel of a library."""

    name: str
    buffers: Mapping[int, Buffer]
    threadgroup_arguments: Mapping[int, str]  #: index -> type; `threadgroup_memory` of run() gives their bytes
    threadgroup_bytes: int  #: of the variables that the kernel declares; at most 32,768 with the arguments
    max_threads: int  #: in a threadgroup


@dataclass(frozen=True)
class Constant:
    """One function constant of a library."""

    index: int
    name: str
    type: str
    n_bytes: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of one buffer that a run accessed."""

    touched: int = 0  #: distinct bytes
    moved: int = 0  #: the sum over all accesses of all threads


@dataclass(frozen=True)
class Report:
    """What one run did."""

    threads: int
    groups: int
    barriers: int  #: threadgroup barriers, once for each threadgroup
    simd_ops: int  #: once for each SIMD-group
    bytes_read: Mapping[int, Traffic] = field(default_factory=dict)  #: by buffer; empty without count=True
    bytes_written: Mapping[int, Traffic] = field(default_factory=dict)


_CONSTANT_TYPES = {
    "bool": np.bool_,
    "char": np.int8,
    "uchar": np.uint8,
    "short": np.int16,
    "ushort": np.uint16,
    "int": np.int32,
    "uint": np.uint32,
    "long": np.int64,
    "ulong": np.uint64,
    "half": np.float16,
    "float": np.float32,
    **{f"{sign}int{bits}_t": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Library:
    """The kernels of one Metal text, compiled for this machine. May be used from several threads."""

    def __init__(self, path: Path, name: str, *, counts: bool = False):
        self.path = path  #: the shared library; cxx/runtime.h is its C interface
        self.name = name
        self._counts = counts
        self._dll = ctypes.CDLL(str(path))
        self._dll.metal_sim_kernels.restype = ctypes.POINTER(_Kernel)
        self._dll.metal_sim_constants.restype = ctypes.POINTER(_FunctionConstant)
        self._dll.metal_sim_allocate.restype = ctypes.c_void_p
        self._dll.metal_sim_allocate.argtypes = [ctypes.c_uint64]
        self._dll.metal_sim_free.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        if self._dll.metal_sim_abi() != ABI:
            raise SimulationError(f"{path}: built for another version of the simulator")
        n = ctypes.c_uint32()
        table = self._dll.metal_sim_kernels(ctypes.byref(n))
        self.kernels: dict[str, Kernel] = {k.name: k for k in map(_described, table[: n.value])}
        constants = self._dll.metal_sim_constants(ctypes.byref(n))
        self.constants: dict[int, Constant] = {
            c.index: Constant(c.index, c.name.decode(), c.type.decode(), c.bytes) for c in constants[: n.value]
        }

    def run(
        self,
        kernel: str,
        buffers: Mapping[int, NDArray[Any] | bytes],
        *,
        groups: Sequence[int],
        threads: Sequence[int],
        threadgroup_memory: Mapping[int, int] | None = None,
        constants: Mapping[int, Any] | None = None,
        schedule: int = 0,
    ) -> Report:
        """Run a kernel to its end; arrays that it may write to are written in place.

        groups: threadgroups in the grid, (x, y, z) or fewer; threads: in each threadgroup, likewise. buffers and
        threadgroup_memory (bytes): by index. constants: value by index of the function constant. schedule: the order
        of threadgroups, SIMD-groups and lanes, 0 forward, 1 backward, more the seed of a random one.
        Raises SimulationError for what the kernel does wrong, and for what does not fit it.
        """
        described = self.kernels.get(kernel)
        if described is None:
            known = ", ".join(sorted(self.kernels)[:8]) + (", ..." if len(self.kernels) > 8 else "")
            raise SimulationError(f"{self.name}: no kernel {kernel!r}; there are {known}", kernel=kernel)
        for index in buffers:
            if not 0 <= index < MAX_BUFFERS:
                raise self._refused(kernel, f"buffer {index}: Metal has buffers 0 to {MAX_BUFFERS - 1}")
        for index, value in buffers.items():
            if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
                raise self._refused(
                    kernel, f"buffer {index}: expected a C-contiguous array, got strides {value.strides}"
                )
            may_write = index in described.buffers and described.buffers[index].written
            if may_write and not (isinstance(value, np.ndarray) and value.flags.writeable):
                what = "a read-only array" if isinstance(value, np.ndarray) else type(value).__name__
                raise self._refused(kernel, f"buffer {index} is written to: expected a writable array, got {what}")

        n_bindings = max(buffers, default=-1) + 1
        bindings = (_Binding * max(1, n_bindings))()
        memory = threadgroup_memory or {}
        n_memory = max(memory, default=-1) + 1
        memory_bytes = (ctypes.c_uint64 * max(1, n_memory))()
        for index, n_bytes in memory.items():
            memory_bytes[index] = n_bytes
        values, kept = self._constant_values(kernel, constants or {})
        report, error = _Report(), _Error()
        launch = _Launch(
            kernel=kernel.encode(),
            buffers=bindings,
            threadgroup_memory=memory_bytes,
            constants=values,
            n_buffers=n_bindings,
            n_threadgroup_memory=n_memory,
            n_constants=len(kept),
            groups=_three(groups),
            threads=_three(threads),
            schedule=schedule,
            report=ctypes.pointer(report),
            error=ctypes.pointer(error),
        )
        try:
            for index, value in buffers.items():
                bindings[index] = self._guarded(value)
            failed = self._dll.metal_sim_run(ctypes.byref(launch))
            for index, value in buffers.items():
                if isinstance(value, np.ndarray) and index in described.buffers and described.buffers[index].written:
                    ctypes.memmove(value.ctypes.data, bindings[index].data, value.nbytes)
        finally:
            for binding in bindings:
                if binding.data:
                    self._dll.metal_sim_free(binding.data, binding.bytes)
        if failed:
            raise self._failed(kernel, error)
        return self._reported(report, buffers)

    def _guarded(self, value: NDArray[Any] | bytes) -> _Binding:
        """A copy that ends at memory which nobody may touch."""
        array = np.frombuffer(value, np.uint8) if isinstance(value, (bytes, bytearray)) else np.asarray(value)
        data = self._dll.metal_sim_allocate(array.nbytes)
        if not data:
            raise MemoryError(f"{array.nbytes} bytes for a buffer of the simulator")
        ctypes.memmove(data, array.ctypes.data, array.nbytes)
        return _Binding(data, array.nbytes)

    def _constant_values(self, kernel: str, given: Mapping[int, Any]) -> tuple[Any, list[NDArray[Any]]]:
        kept = []
        values = (_ConstantValue * max(1, len(given)))()
        for k, (index, value) in enumerate(given.items()):
            constant = self.constants.get(index)
            if constant is None:
                raise self._refused(
                    kernel, f"there is no function constant {index}; there are {sorted(self.constants)}"
                )
            dtype: Any = _CONSTANT_TYPES.get(constant.type.removeprefix("metal::"))
            array: NDArray[Any] = np.asarray(value, dtype)
            if array.nbytes != constant.n_bytes:
                raise self._refused(
                    kernel,
                    f"function constant {index}, {constant.type} {constant.name}: expected {constant.n_bytes} bytes, "
                    f"got {value!r}",
                )
            kept.append(array)
            values[k] = _ConstantValue(index, array.nbytes, array.ctypes.data)
        return values, kept

    def _refused(self, kernel: str, message: str) -> SimulationError:
        return SimulationError(f"{kernel}: {message}", kernel=kernel)

    def _failed(self, kernel: str, error: _Error) -> SimulationError:
        text = error.text.decode(errors="replace")
        file: str | None = error.file.decode() if error.file else None
        line: int | None = error.line or None
        if error.has_pc:
            file, line = toolchain.addr2line(self.path, error.pc) or (None, None)
        where = f"{file}:{line}: " if file else ""
        return SimulationError(f"{where}{kernel}: {text}", kernel=kernel, file=file, line=line)

    def _reported(self, report: _Report, buffers: Mapping[int, object]) -> Report:
        traffic = {index: report.traffic[index] for index in sorted(buffers)} if self._counts else {}
        return Report(
            threads=report.threads,
            groups=report.groups,
            barriers=report.barriers,
            simd_ops=report.simd_ops,
            bytes_read={i: Traffic(t.read_touched, t.read_moved) for i, t in traffic.items()},
            bytes_written={i: Traffic(t.written_touched, t.written_moved) for i, t in traffic.items()},
        )


def _described(kernel: _Kernel) -> Kernel:
    arguments = kernel.arguments[: kernel.n_arguments]
    buffers = {
        a.index: Buffer(
            index=a.index,
            name=a.name.decode(),
            type=a.type.decode(),
            written=bool(a.writable),
            is_reference=a.kind == 1,
            value_bytes=a.bytes,
            optional=bool(a.optional),
        )
        for a in arguments
        if a.kind in (0, 1)
    }
    return Kernel(
        name=kernel.name.decode(),
        buffers=buffers,
        threadgroup_arguments={a.index: a.type.decode() for a in arguments if a.kind == 2},
        threadgroup_bytes=kernel.threadgroup_bytes,
        max_threads=kernel.max_threads,
    )


def _three(sizes: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * 3)(*sizes, *(1,) * (3 - len(sizes)))
