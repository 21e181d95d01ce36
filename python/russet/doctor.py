"""What this machine has and which of it russet uses."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import russet
from russet import _core, crossover, memory
from russet.errors import BackendError

#: What changes russet's doings from outside, and is no secret.
_ENVIRONMENT = (
    "RUSSET_BACKEND", "RUSSET_THREADS", "RUSSET_ISA", "RUSSET_VARIANT", "RUSSET_CROSSOVER",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT",
)  # fmt: skip
_PACKAGES = ("numpy", "tokenizers", "sentencepiece", "jinja2", "huggingface_hub", "rich")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReport:
    name: str
    available: bool
    reason: str  #: why, or why not


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The machine, and what russet makes of it."""

    version: str
    python: str
    system: str
    chip: str
    features: tuple[str, ...]  #: instruction sets that russet uses
    n_cpus: int  #: processors this process may run on, hyper-threads included
    threads: int  #: how many russet computes on
    matmul: str  #: the library behind matrix products
    kernels: dict[str, str]  #: the variant in use of each kernel
    crossover: dict[str, int]  #: quantised matrices measured so far: from how many tokens BLAS is faster, 0: never
    total_bytes: int  #: memory of this machine
    available_bytes: int  #: of it, what is free now
    backends: tuple[BackendReport, ...]
    hub_cache: str  #: where downloaded models are kept
    packages: dict[str, str | None]  #: version; None: not installed
    environment: dict[str, str]  #: variables that are set and that russet or huggingface_hub heeds


def diagnose() -> Diagnosis:
    """Look at this machine. Raises UsageError where a RUSSET_ variable has no meaning."""
    from huggingface_hub import constants

    return Diagnosis(
        version=russet.__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=_system(),
        chip=_core.cpu_name(),
        features=tuple(_core.cpu_features()),
        n_cpus=_n_cpus(),
        threads=_core.default_threads(),
        matmul=_core.matmul_library(),
        kernels={
            op: next(name for name, _, active in table if active) for op, table in _core.kernels.variants().items()
        },
        crossover=crossover.known(),
        total_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available_bytes=memory.available(),
        backends=_backends(),
        hub_cache=str(constants.HF_HUB_CACHE),
        packages={name: _version(name) for name in _PACKAGES},
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )


def _system() -> str:
    version, _, machine = platform.mac_ver()
    if version:
        return f"macOS {version} {machine}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _n_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    from importlib import metadata  # slow to import

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backends() -> tuple[BackendReport, ...]:
    return (
        BackendReport(name="cpu", available=True, reason=f"matrix products by {_core.matmul_library()}"),
        _metal(),
        _metal_sim(),
        _mlx(),
    )


def _metal() -> BackendReport:
    try:
        info = _core.MetalDevice.apple([]).info
    except BackendError as error:
        return BackendReport(name="metal", available=False, reason=str(error).removeprefix("metal: "))
    return BackendReport(
        name="metal", available=True, reason=f"{info['name']}, holds {memory.gb(info['working_set'])} at most"
    )


def _metal_sim() -> BackendReport:
    from russet.metal_sim import toolchain

    try:
        compiler = toolchain.find()
    except BackendError as error:
        return BackendReport(name="metal-sim", available=False, reason=str(error))
    return BackendReport(
        name="metal-sim", available=True, reason=f"the same kernels, simulated on the CPU by {compiler}"
    )


def _mlx() -> BackendReport:
    from russet.backends.mlx import probe

    try:
        found = probe.find()
    except BackendError as error:
        return BackendReport(name="mlx", available=False, reason=str(error).removeprefix("mlx: "))
    taken = "; what backend='auto' takes" if probe.find_gpu() else ""
    return BackendReport(name="mlx", available=True, reason=f"{found}{taken}")
