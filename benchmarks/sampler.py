"""Microseconds from logits to a token: russet's sampler beside llama.cpp's, torch and numpy, interleaved.

    python benchmarks/sampler.py [--vocab 32000,128256,151936] [--rounds 200] [--llama-library FILE]

The usual chain: repetition penalty over the last 64 tokens, top_k 40, top_p 0.95, min_p 0.05, temperature 0.8, in
llama.cpp's order for all. Logits are normal with a spread of 3, new in every round, and have just been written, as a
model leaves them. torch and numpy do what a careful user of theirs would: top_k first, the rest on 40 tokens.

--llama-library is libllama.so or libllama.dylib, as llama-cpp-python installs it (llama_cpp/lib), of a version whose
llama_sampler_init_penalties takes the vocabulary's size first, such as 0.3.36. "chain" is the time in
llama_sampler_apply alone; a token also needs the array of all candidates filled, as llama_sampler_sample does.

A second table has russet's steps one by one, and rows in a batch.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from report import Table, machine, plot_bars, spread
from russet import _core

REPETITION, WINDOW, TOP_K, TOP_P, MIN_P, TEMPERATURE = 1.1, 64, 40, 0.95, 0.05, 0.8
LLAMA_CPPS_ORDER = ["penalties", "top_k", "top_p", "min_p", "temperature"]
ROWS = 8  #: of a batch

Contender = Callable[[np.ndarray], float]  #: logits -> seconds


def russet_sampler(prompt: list[int], **options: Any) -> _core.Sampler:
    core = _core.SamplingOptions()
    for name, value in options.items():
        setattr(core, name, value)
    return _core.Sampler(core, 1, prompt)


def usual_chain(prompt: list[int]) -> _core.Sampler:
    return russet_sampler(
        prompt,
        steps=LLAMA_CPPS_ORDER,
        repetition_penalty=REPETITION,
        penalty_window=WINDOW,
        top_k=TOP_K,
        top_p=TOP_P,
        min_p=MIN_P,
        temperature=TEMPERATURE,
    )


def timed(sample: Callable[[np.ndarray], object]) -> Contender:
    def run(logits: np.ndarray) -> float:
        start = time.perf_counter()
        sample(logits)
        return time.perf_counter() - start

    return run


def numpy_sampler(prompt: list[int]) -> Contender:
    seen = np.unique(prompt[-WINDOW:])
    draw = np.random.default_rng(1)

    def sample(logits: np.ndarray) -> int:
        x = logits.copy()
        x[seen] = np.where(x[seen] > 0, x[seen] / REPETITION, x[seen] * REPETITION)
        ids = np.argpartition(x, -TOP_K)[-TOP_K:]
        ids = ids[np.argsort(-x[ids])]
        p = np.exp(x[ids] - x[ids[0]])
        n = np.searchsorted(np.cumsum(p), TOP_P * p.sum()) + 1
        n = min(n, (p >= MIN_P * p[0]).sum())
        p = p[:n] ** (1 / TEMPERATURE)
        return ids[np.searchsorted(np.cumsum(p), draw.random() * p.sum())]

    return timed(sample)


def torch_sampler(prompt: list[int]) -> Contender:
    import torch

    torch.set_num_threads(1)
    seen = torch.unique(torch.tensor(prompt[-WINDOW:]))

    def sample(logits: np.ndarray) -> int:
        x = torch.from_numpy(logits).clone()
        x[seen] = torch.where(x[seen] > 0, x[seen] / REPETITION, x[seen] * REPETITION)
        top, ids = torch.topk(x, TOP_K)
        p = torch.softmax(top, -1)
        kept = (torch.cumsum(p, -1) - p < TOP_P) & (p >= MIN_P * p[0])
        p = torch.softmax(torch.where(kept, top / TEMPERATURE, -torch.inf), -1)
        return int(ids[torch.multinomial(p, 1)])

    return timed(sample)


class LlamaCpp:
    """Its sampler chain through ctypes; no model is needed for it."""

    _TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    class _Params(ctypes.Structure):
        _fields_ = (("no_perf", ctypes.c_bool),)

    class _Array(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p),
            ("size", ctypes.c_size_t),
            ("selected", ctypes.c_int64),
            ("sorted", ctypes.c_bool),
        )

    def __init__(self, library: str, prompt: list[int], vocab_size: int) -> None:
        lib = ctypes.CDLL(library)
        i32, f32, size = ctypes.c_int32, ctypes.c_float, ctypes.c_size_t

        def function(name: str, *types: Any, result: Any = ctypes.c_void_p) -> Any:
            found = getattr(lib, f"llama_sampler_{name}")
            found.argtypes, found.restype = types, result
            return found

        self._chain = function("chain_init", self._Params)(self._Params(True))
        add = function("chain_add", ctypes.c_void_p, ctypes.c_void_p, result=None)
        add(self._chain, function("init_penalties", i32, i32, f32, f32, f32)(vocab_size, WINDOW, REPETITION, 0, 0))
        add(self._chain, function("init_top_k", i32)(TOP_K))
        add(self._chain, function("init_top_p", f32, size)(TOP_P, 1))
        add(self._chain, function("init_min_p", f32, size)(MIN_P, 1))
        add(self._chain, function("init_temp", f32)(TEMPERATURE))
        add(self._chain, function("init_dist", ctypes.c_uint32)(1))
        accept = function("accept", ctypes.c_void_p, i32, result=None)
        for token in prompt:
            accept(self._chain, token)
        self._apply = function("apply", ctypes.c_void_p, ctypes.POINTER(self._Array), result=None)
        self._tokens = np.zeros(vocab_size, self._TOKEN)
        self._ids = np.arange(vocab_size, dtype=np.int32)

    def _fill(self, logits: np.ndarray) -> None:
        self._tokens["id"] = self._ids
        self._tokens["logit"] = logits
        self._tokens["p"] = 0

    def _run(self) -> int:
        array = self._Array(self._tokens.ctypes.data, len(self._tokens), -1, False)
        self._apply(self._chain, ctypes.byref(array))
        return int(self._tokens["id"][array.selected])

    def chain(self, logits: np.ndarray) -> float:
        self._fill(logits)
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start

    def whole(self, logits: np.ndarray) -> float:
        start = time.perf_counter()
        self._fill(logits)
        self._run()
        return time.perf_counter() - start


def measure(contenders: Mapping[str, Contender], vocab_size: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of each contender in each round; a tenth of the rounds before them is a warm-up."""
    draw = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    pool = [(3 * draw.normal(size=vocab_size)).astype(np.float32) for _ in range(16)]
    logits = np.empty(vocab_size, np.float32)
    for round_ in range(-rounds // 10, rounds):
        for name, run in contenders.items():
            logits[:] = pool[round_ % len(pool)]
            seconds = run(logits)
            if round_ >= 0:
                times[name].append(seconds * 1e6)
    return times


def beside_peers(args: argparse.Namespace) -> None:
    table = Table("vocabulary", "contender", "us", "it / russet")
    groups, bars = [], {}
    for vocab_size in map(int, args.vocab.split(",")):
        prompt = np.random.default_rng(1).integers(0, vocab_size, 512).tolist()
        contenders = {"russet": timed(usual_chain(prompt).sample)}
        if args.llama_library:
            llama = LlamaCpp(args.llama_library, prompt, vocab_size)
            contenders |= {"llama.cpp, chain": llama.chain, "llama.cpp, array and chain": llama.whole}
        contenders |= {"numpy": numpy_sampler(prompt)}
        if not args.no_torch:
            contenders |= {"torch": torch_sampler(prompt)}
        times = measure(contenders, vocab_size, args.rounds)
        groups.append(f"{vocab_size:,}")
        for name, values in times.items():
            ratios = [a / b for a, b in zip(values, times["russet"], strict=True)]
            bars.setdefault(name, []).append(statistics.median(values))
            table.row(f"{vocab_size:,}", name, quartiles(values), "" if name == "russet" else quartiles(ratios))
    table.print()
    if args.plot:
        plot_bars(args.plot, title="From logits to a token", ylabel="us", groups=groups, bars=bars)


def step_by_step(vocab_size: int, rounds: int) -> None:
    prompt = np.random.default_rng(1).integers(0, vocab_size, 512).tolist()
    sampled = {
        "greedy": {"temperature": 0},
        "temperature 0.8": {"temperature": 0.8},
        "top_k 40": {"temperature": 0.8, "top_k": 40},
        "top_k 5000": {"temperature": 0.8, "top_k": 5000},
        "min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
        "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
        "top_p 0.95, likely tokens": {"temperature": 0.8, "top_p": 0.95, "logit_bias": [(5, 20.0), (9, 19.0)]},
        "top_p 0.95, flat": {"temperature": 100, "top_p": 0.95},
        "typical_p 0.95": {"temperature": 0.8, "typical_p": 0.95},
        "top_n_sigma 1": {"temperature": 0.8, "top_n_sigma": 1},
        "xtc": {"temperature": 0.8, "xtc_probability": 1, "xtc_threshold": 0.01},
        "mirostat 5": {"temperature": 0.8, "mirostat_tau": 5},
        "DRY, greedy": {"temperature": 0, "dry_multiplier": 0.8},
    }
    contenders = {name: timed(russet_sampler(prompt, **options).sample) for name, options in sampled.items()}
    contenders["top 20 logprobs"] = timed(lambda logits: _core.logprobs(logits, 0, 20))
    table = Table(f"{vocab_size:,} logits", "us")
    for name, values in measure(contenders, vocab_size, rounds).items():
        table.row(name, quartiles(values))
    many = [usual_chain(prompt) for _ in range(ROWS)]
    rows = (3 * np.random.default_rng(2).normal(size=(ROWS, vocab_size))).astype(np.float32)
    batched = {n: timed(lambda _, n=n: _core.sample_rows(many, rows, n)) for n in (1, 2)}
    for n_threads, values in measure(batched, vocab_size, rounds).items():
        table.row(f"{ROWS} rows of the usual chain, threads: {n_threads}", quartiles(values))
    table.print()


def quartiles(values: list[float]) -> str:
    """'median (lower quartile to upper quartile)': a sampler is short enough for a round to be cut in two."""
    low, _, high = statistics.quantiles(values, n=4)
    return spread([low, statistics.median(values), high])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", default="32000,128256,151936", help="vocabulary sizes, comma-separated")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    parser.add_argument("--llama-library", metavar="FILE", help="libllama, to measure its sampler chain")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 20
    load_average = os.getloadavg()[0]
    print(f"{machine(threads=1)}, load average before {load_average:.2f}\n")
    beside_peers(args)
    print()
    step_by_step(int(args.vocab.split(",")[-1]), args.rounds)


if __name__ == "__main__":
    main()
