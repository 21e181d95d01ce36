"""The C++ core, as csrc/bindings/ shows it to Python."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

_Array = np.ndarray[Any, Any]
_Matrix = tuple[_Array, str]  # [n_rows, n_cols], dtype name

class NormKind:
    rms: NormKind
    layer: NormKind

class Activation:
    silu: Activation
    gelu: Activation
    gelu_tanh: Activation
    relu: Activation

class Rope:
    inv_freq: Sequence[float]
    long_inv_freq: Sequence[float]
    scale: float
    long_scale: float
    original_ctx: int
    dynamic_factor: float
    theta: float

class Config:
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_ctx: int
    norm: NormKind
    norm_eps: float
    activation: Activation
    parallel_residual: bool
    embed_scale: float
    residual_scale: float
    attention_scale: float
    attention_softcap: float
    logits_scale: float
    logits_softcap: float
    ropes: list[Rope]
    layer_rope: list[int]
    layer_window: list[int]
    n_sinks: int

class Arena:
    """Memory for all packed weights of a model: reserved at once, taken piece by piece."""

    used: int
    def __init__(self, n_bytes: int) -> None: ...
    @staticmethod
    def from_file(file: int, offset: int, n_bytes: int, n_threads: int = 1) -> Arena:
        """One filled with a part of an open file. Raises WeightsError where the file ends before."""
    def keep(self, array: _Array) -> _Array:
        """A copy of the array that lies in the arena, read-only."""
    def bytes(self) -> _Array:
        """What was taken so far, uint8, read-only."""

class PackedMatrix:
    """Affine groups, packed from MLX's arrays: codes uint32, scales and biases of dtype (bf16 as uint16)."""

    n_rows: int
    n_cols: int
    bits: int
    group_size: int
    symmetric: bool
    n_bytes: int
    def __init__(
        self,
        arena: Arena,
        codes: _Array,
        scales: _Array,
        biases: _Array,
        dtype: str,
        bits: int,
        group_size: int,
        n_threads: int = 1,
        sliced: bool = False,
    ) -> None: ...
    sliced: bool  # as a head is that is screened: csrc/weights/packed.h
    radii: _Array  # of one that is: f32 [n_bands, 2, 16]
    blas_tokens: int  # from so many tokens on it goes through BLAS, as floats; 0: never
    def measure_crossover(self, n_threads: int) -> int:
        """blas_tokens as they are best on this machine."""
    offset: int  # in its arena, or other memory
    dtype: str
    @staticmethod
    def at(
        memory: _Array,
        offset: int,
        n_rows: int,
        n_cols: int,
        bits: int,
        group_size: int,
        dtype: str,
        symmetric: bool,
        sliced: bool = False,
    ) -> PackedMatrix:
        """One that lies in memory, uint8, as it lay in its arena."""
    def row(self, row: int) -> _Array: ...

class AffineMatrix:
    """MLX's three arrays as they are."""

    n_bytes: int
    def __init__(
        self, codes: _Array, scales: _Array, biases: _Array, dtype: str, bits: int, group_size: int
    ) -> None: ...

class Model:
    config: Config
    def __init__(self, config: Config, tensors: Mapping[str, _Matrix | PackedMatrix | AffineMatrix]) -> None: ...

BLOCK_TOKENS: int

class BlockPool:
    """The memory of all caches of a model: `info` has block_bytes, n_blocks, n_in_use, n_peak."""

    info: dict[str, int]
    def __init__(self, config: Config, keys: str, values: str, n_bytes: int) -> None: ...
    def read(self, blocks: _Array) -> _Array:
        """Bytes u8 [n, block_bytes] of blocks u32 [n]. Who asks holds them."""

def kv_block_bytes(keys: str, values: str, head_dim: int) -> int: ...
def restore_caches(
    pool: BlockPool, model: Model, n_ctx: int, blocks: _Array, sequences: Sequence[tuple[int, _Array]]
) -> list[KvCache]:
    """Caches that share blocks of these bytes u8 [n, block_bytes]: all, or none where one is not as it must be.

    sequences: number of tokens, and tables u32 [n_layers, n_kv_heads, n] that count the blocks from 1 on, 0 for none
    """

class KvCache:
    n_ctx: int
    n_tokens: int
    def __init__(self, pool: BlockPool, model: Model, n_ctx: int, budget: float = 1.0) -> None: ...
    def truncate(self, n_tokens: int) -> None: ...
    def can_truncate(self, n_tokens: int) -> bool: ...
    def fork(self, n_tokens: int) -> Self: ...
    def table(self, layer: int, head: int) -> _Array: ...
    def mass(self, layer: int, head: int) -> _Array: ...
    def bytes(self) -> int: ...

class Cpu:
    n_threads: int
    n_prefill_threads: int
    def __init__(
        self,
        config: Config,
        n_threads: int,
        n_prefill_threads: int = 0,
        attention: str = "exact",
        head_trust: float = 1,
    ) -> None: ...
    screened: tuple[int, int, int]  # tokens that the head was screened for, bytes of it read, rows computed exactly
    def forward(
        self,
        model: Model,
        parts: Sequence[tuple[KvCache, Sequence[int], int, bool]],
        x: _Array | None = None,
        interrupt: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> _Array: ...
    def norm_linear(
        self, norm_w: _Array | None, norm_bias: _Array | None, w: _Matrix | PackedMatrix, x: _Array
    ) -> _Array: ...
    def norm_gate(
        self, norm_w: _Array | None, norm_bias: _Array | None, gate: _Matrix, up: _Matrix | None, x: _Array
    ) -> _Array: ...

class MetalDevice:
    info: dict[str, Any]
    @staticmethod
    def apple(sources: Sequence[str]) -> MetalDevice: ...
    @staticmethod
    def simulated(
        libraries: Sequence[str], schedule: int = 0, fault: str = "", at: int = 0, max_map_bytes: int = 0
    ) -> MetalDevice:
        """`fault`: made on purpose at that dispatch or barrier; as device_sim.h names them."""
    def traffic(self) -> dict[str, dict[str, int]]:
        """Of a simulated device: kernel -> dispatches, and bytes read and written where libraries count them."""

class Metal:
    pool: BlockPool
    def __init__(
        self,
        device: MetalDevice,
        model: Model,
        dtype: str,
        memory: Sequence[_Array],
        in_cache: str,
        cache_bytes: int,
    ) -> None:
        """`memory`: runs of whole pages in which all weights lie; in_cache: dtype or int8; cache_bytes: of all caches.

        The pool is smaller where the device cannot see so much in one piece.
        """
    def forward(self, parts: Sequence[tuple[KvCache, Sequence[int], int, bool]], x: _Array | None = None) -> _Array: ...
    def append_greedy(self, cache: MetalCache, token: int, rope_length: int = 0) -> int:
        """The likeliest token after this one; -1: a logit is NaN. The pass for the next one is begun."""

class MetalProduct:
    """One matrix on a device, to be multiplied by."""

    def __init__(
        self, device: MetalDevice, w: _Matrix | AffineMatrix, dtype: str, memory: Sequence[_Array]
    ) -> None: ...
    def run(self, x: _Array, n_times: int = 1) -> tuple[_Array, float]:
        """x [n_tokens, n_cols] f32 -> y [n_tokens, n_rows] f32, and the seconds one of n_times products took."""

class MetalCache(KvCache):
    def __init__(self, metal: Metal, n_ctx: int) -> None: ...

class SamplingOptions:
    """The steps between logits and a token, and their numbers: see csrc/sampler/sampler.h."""

    steps: Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    mirostat_tau: float
    mirostat_eta: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    dry_breakers: Sequence[int]
    logit_bias: Sequence[tuple[int, float]]
    sequence_bias: Sequence[tuple[Sequence[int], float]]
    bad_words: Sequence[Sequence[int]]
    no_repeat_ngram_size: int
    min_tokens: int
    ends: Sequence[int]

class Wanted:
    """Which logits of a token a sampler has a use for: csrc/model/wanted.h. k of 0: all of them."""

    k: int
    margin: float
    ids: list[int]
    def __init__(self, k: int, margin: float = 0, ids: Sequence[int] = ..., allowed: _Array | None = None) -> None: ...

class Sampler:
    def __init__(self, options: SamplingOptions = ..., seed: int = 0, prompt: Sequence[int] = ...) -> None: ...
    def sample(self, logits: _Array, allowed: _Array | None = None) -> int:
        """A token. Raises NumericalError where a logit is NaN or infinity, UsageError where all tokens are banned.

        allowed: a bit for each token that may come, in uint32 words of 32 tokens, lowest bit first; by default all may
        """
    def wanted(self, allowed: _Array | None = None) -> Wanted:
        """Which logits sample() has a use for: with minus infinity in place of all others it draws the same."""
    def probabilities(self, logits: _Array, allowed: _Array | None = None) -> _Array:
        """What sample() would draw from: float64 [vocab_size]."""
    def best(self, logits: _Array, n: int, allowed: _Array | None = None) -> list[tuple[int, float, float]]:
        """The n tokens with the best scores, best first, as (token, score, logprob); fewer where no more may come.

        score: the logprob as biases, bans, penalties and DRY have changed it. Raises as sample() does.
        """
    def __copy__(self) -> Sampler:
        """Another that goes on from here with the same text and the same dice."""
    def append(self, token: int) -> None:
        """The text so far grows by a generated token: penalties and bans look at it."""

def sample_rows(samplers: Sequence[Sampler], logits: _Array, n_threads: int = 1) -> list[int]:
    """A token for each row of logits [n_rows, vocab_size], each drawn by a sampler of its own."""

def logprobs(logits: _Array, token: int, n_top: int = 0) -> tuple[float, list[tuple[int, float]]]:
    """Natural-log probability of the token, and of the n_top likeliest as (token, logprob), likeliest first."""

class kernels:
    BLOCK_FLOATS: int
    @staticmethod
    def variants() -> dict[str, list[tuple[str, bool, bool]]]: ...

def rope_tables(config: Config, pos: int, n_tokens: int, rope_length: int = 0) -> list[tuple[_Array, _Array]]:
    """Of every rope, cosines and sines f32 [n_tokens, rotary_dim / 2] of the positions from pos on."""

MAX_SLICED_COLS: int  # of a matrix that is sliced

def packed_bytes(
    n_rows: int, n_cols: int, bits: int, group_size: int, dtype: str, symmetric: bool, sliced: bool = False
) -> int:
    """What a PackedMatrix of this shape takes of an arena."""

def to_affine(
    w: _Array, dtype: str, bits: int, group_size: int, symmetric: bool, n_threads: int = 1
) -> tuple[_Array, _Array, _Array]:
    """Floats [n_rows, n_cols] to codes, scales and biases; raises WeightsError on NaN and infinity."""

def affine_errors(
    w: _Array, dtype: str, codes: _Array, scales: _Array, biases: _Array, bits: int, group_size: int, n_threads: int = 1
) -> tuple[float, float, float, float, float]:
    """Of weights w and what groups make of them, v: max |w - v|, then sums of (w - v)^2, w^2, v^2 and w v."""

def default_threads() -> int: ...
def read_bandwidth(n_threads: int) -> float:
    """GB/s that the threads together read from memory: the best of several passes, far beyond the caches."""

def int8_peak(n_threads: int) -> float:
    """1e9 operations per second of int8 products summed in int32, 2 per product, by this chip's best instruction."""

def cpu_name() -> str: ...
def cpu_features() -> list[str]: ...
def matmul_library() -> str: ...
