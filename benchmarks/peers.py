"""russet beside its peers: prefill and decode of one checkpoint, interleaved round by round.

    python benchmarks/peers.py FOLDER [--threads 2] [--prefill 128,512] [--decode 16] [--rounds 5] [--plot peers.png]

Every contender lives in a process of its own, with the same number of threads, and waits while another is measured.
A ratio is taken within a round, so that a machine that slows down slows both; the table shows the median of rounds and
the lowest and highest. GB/s counts the bytes of the weights once per token (decode), as the contender stores them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from report import Table, machine, plot_bars, spread


class Contender(Protocol):
    weight_bytes: int

    def prefill(self, tokens: list[int]) -> None:
        """Compute a prompt from nothing, with the logits of its last token."""

    def decode(self, n_tokens: int) -> None:
        """Generate greedily after the last prompt."""


class Russet:
    def __init__(self, folder: str, threads: int) -> None:
        import russet

        self.model = russet.load(folder, threads=threads, n_ctx=4096)
        self.weight_bytes = self.model.checkpoint.n_bytes
        self.session = self.model.session()

    def prefill(self, tokens: list[int]) -> None:
        self.session.rewind(0)
        for begin in range(0, len(tokens), 512):
            self.logits = self.session.forward(tokens[begin : begin + 512])

    def decode(self, n_tokens: int) -> None:
        for _ in range(n_tokens):
            self.logits = self.session.forward([int(self.logits.argmax())])


class Transformers:
    def __init__(self, folder: str, threads: int, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def _forward(self, ids: list[int]) -> None:
        out = self.model(self.torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.logits = out.past_key_values, out.logits[0, -1]

    def prefill(self, tokens: list[int]) -> None:
        self.cache = None
        self._forward(tokens)

    def decode(self, n_tokens: int) -> None:
        for _ in range(n_tokens):
            self._forward([int(self.logits.argmax())])


CONTENDERS = {
    "russet": Russet,
    "transformers bf16": lambda folder, threads: Transformers(folder, threads, "bfloat16"),
    "transformers f32": lambda folder, threads: Transformers(folder, threads, "float32"),
}


def serve(name: str, folder: str, threads: int, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    contender: Contender = CONTENDERS[name](folder, threads)
    pipe.send(contender.weight_bytes)
    while (order := pipe.recv()) is not None:
        method, argument = order
        start = time.perf_counter()
        getattr(contender, method)(argument)
        pipe.send(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", default="128,512", help="prompt lengths, comma-separated")
    parser.add_argument("--decode", type=int, default=16, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    names = args.contenders.split(",")
    vocab_size = json.loads((Path(args.folder) / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    prompts = [[draw.randrange(vocab_size) for _ in range(int(n))] for n in args.prefill.split(",")]

    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    weight_bytes: dict[str, int] = {}
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(name, args.folder, args.threads, theirs), daemon=True).start()
        weight_bytes[name] = pipes[name].recv()

    def measure(name: str, method: str, argument: Any) -> float:
        pipes[name].send((method, argument))
        return pipes[name].recv()

    tasks = [(f"prefill {len(p)}", "prefill", p, len(p)) for p in prompts]
    tasks.append((f"decode {args.decode}", "decode", args.decode, args.decode))
    speeds: dict[tuple[str, str], list[float]] = {(t[0], n): [] for t in tasks for n in names}
    for round_ in range(-1, args.rounds):  # the first is a warm-up
        for task, method, argument, n_tokens in tasks:
            for name in names:
                seconds = measure(name, method, argument)
                if round_ >= 0:
                    speeds[task, name].append(n_tokens / seconds)
    for pipe in pipes.values():
        pipe.send(None)

    print(machine(threads=args.threads))
    table = Table("task", "contender", "tokens/s", "GB/s", "russet / it")
    for task, *_ in tasks:
        for name in names:
            values = speeds[task, name]
            gb_per_s = statistics.median(values) * weight_bytes[name] / 1e9
            ratios = [a / b for a, b in zip(speeds[task, names[0]], values, strict=True)]
            table.row(
                task, name, spread(values), f"{gb_per_s:.1f}" if "decode" in task else "", spread(ratios, digits=2)
            )
    table.print()
    if args.plot:
        plot_bars(
            args.plot,
            title=Path(args.folder).name,
            ylabel="tokens/s",
            groups=[t[0] for t in tasks],
            bars={n: [statistics.median(speeds[t[0], n]) for t in tasks] for n in names},
        )


if __name__ == "__main__":
    main()
