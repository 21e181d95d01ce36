"""russet beside its peers: prefill and decode of one checkpoint, interleaved round by round.

    python benchmarks/peers.py FOLDER [--threads 2] [--prefill 128,512] [--decode 16] [--depth 0,2048] [--rounds 5]

russet, as stored and quantised, and transformers read FOLDER. The others join with the same model in their own format:

    --llama-bench build/bin/llama-bench --gguf model-q8_0.gguf --gguf model-q4_0.gguf
    --openvino model-ov-int8 --ctranslate2 model-ct2-int8 --mlx model-mlx-4bit --russet model-int4-g128

--caches adds russet with an int8 cache, and llama.cpp with flash attention and with a q8_0 cache.

Each of them may live in a Python of its own: --openvino-python venv/bin/python.

Every contender is a process of its own (see contenders.py), with the same number of threads, and waits while another is
measured. A ratio is taken within a round, so that a machine that slows down slows both; the table shows the median of
rounds and the lowest and highest. GB/s counts the bytes of the weights once per token (decode), as the contender stores
them, and no keys and values. Prompts are random tokens, new in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from report import Table, machine, plot_panels, spread

SETTLE_S = (
    0.3  # OpenMP's threads spin for up to 0.2 s when their work is done: they shall not be measured with the next
)
IN_FOLDERS = {  # option -> class in contenders.py
    "openvino": "OpenVino",
    "ctranslate2": "CTranslate2",
    "mlx": "Mlx",
    "russet": "Russet",
}


class Task(NamedTuple):
    name: str
    kind: str  # "prefill" or "decode"
    n_tokens: int  # to compute
    depth: int = 0  # tokens of context before them


class Spec(NamedTuple):
    """What contenders.py is started with."""

    kind: str
    options: dict[str, Any]
    python: str = sys.executable
    asked_for: bool = True  # by an option: then it is an error if it cannot run


class Contender:
    """A process of contenders.py. Raises RuntimeError where it cannot start."""

    def __init__(self, spec: Spec, threads: int) -> None:
        self._process = subprocess.Popen(
            [spec.python, str(Path(__file__).with_name("contenders.py")), spec.kind, json.dumps(spec.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        hello = self._answer()
        if "error" in hello:
            raise RuntimeError(hello["error"])
        self.version: str = hello["version"]
        self.weight_bytes: int = hello["weight_bytes"]
        self.waited = self.waited_cpu = 0.0  # seconds
        self.peaks: dict[str, int] = {}  # the most bytes so far, by whose count

    def tokens_per_s(self, task: Task, tokens: list[int]) -> float:
        """tokens: the prompt of a prefill, the context of a decode"""
        arguments = [tokens] if task.kind == "prefill" else [tokens, task.n_tokens]
        print(json.dumps([task.kind, arguments]), file=self._process.stdin)
        answer = self._answer()
        self.waited += answer["waited"]
        self.waited_cpu += answer["waited_cpu"]
        self.peaks = answer["peaks"]
        return task.n_tokens / answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with status {self._process.wait()}; what it said is above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()  # its loop ends with its input


def specs(args: argparse.Namespace, n_ctx: int) -> dict[str, Spec]:
    """Every contender there could be, by name."""
    here = {"folder": args.folder, "threads": args.threads}
    found = {"russet": Spec("Russet", {**here, "n_ctx": n_ctx})}
    for how in ("int8", "int4"):
        found[f"russet {how}"] = Spec("Russet", {**here, "n_ctx": n_ctx, "quantize": how}, asked_for=False)
    if args.caches:
        int8 = {**here, "n_ctx": n_ctx, "quantize": "int8", "kv_dtype": "int8"}
        found["russet int8 + int8 cache"] = Spec("Russet", int8)
        found["russet int8 + int8 cache and attention"] = Spec("Russet", int8 | {"attention": "int8"})
    for name, dtype in (("bf16", "bfloat16"), ("f32", "float32")):
        found[f"transformers {name}"] = Spec("Transformers", {**here, "dtype": dtype}, asked_for=False)
    for gguf in args.gguf:
        options = {"program": args.llama_bench, "gguf": gguf, "threads": args.threads}
        name = f"llama.cpp {Path(gguf).stem}"
        found[name] = Spec("LlamaCpp", options)
        if args.caches:
            found[f"{name} flash"] = Spec("LlamaCpp", options | {"flash": True})
            found[f"{name} flash + q8_0 cache"] = Spec("LlamaCpp", options | {"flash": True, "cache": "q8_0"})
    found["russet mlx"] = Spec("Russet", {**here, "n_ctx": n_ctx, "backend": "mlx"}, asked_for=False)
    for peer, kind in IN_FOLDERS.items():
        for folder in getattr(args, peer):
            options = {"folder": folder, "threads": args.threads} | ({"n_ctx": n_ctx} if kind == "Russet" else {})
            found[f"{peer} {Path(folder).name}"] = Spec(kind, options, getattr(args, f"{peer}_python"))
    return found


def chosen(all_: dict[str, Spec], patterns: str | None) -> dict[str, Spec]:
    """The contenders that a pattern names, in the patterns' order; without patterns all of them."""
    if patterns is None:
        return all_
    names: dict[str, Spec] = {}
    for pattern in patterns.split(","):
        matches = {name: spec._replace(asked_for=True) for name, spec in all_.items() if fnmatch(name, pattern)}
        if not matches:
            raise SystemExit(f"--contenders: {pattern!r} is none of: {', '.join(all_)}")
        names |= matches
    return names


def start(wanted: dict[str, Spec], threads: int) -> dict[str, Contender]:
    running: dict[str, Contender] = {}
    for name, spec in wanted.items():
        try:
            running[name] = Contender(spec, threads)
        except RuntimeError as error:
            if spec.asked_for:
                raise SystemExit(f"{name}: {error}") from None
            print(f"left out: {name}: {error}", file=sys.stderr)
    return running


def measure(
    running: dict[str, Contender], tasks: list[Task], rounds: int, vocab_size: int
) -> dict[Task, dict[str, list[float]]]:
    """Tokens per second of each task and contender in each round."""
    draw = random.Random(0)
    contexts = {task.depth: draw.choices(range(vocab_size), k=max(task.depth, 1)) for task in tasks}
    speeds: dict[Task, dict[str, list[float]]] = {task: {name: [] for name in running} for task in tasks}
    for round_ in range(-1, rounds):  # the first is a warm-up
        print(f"round {round_ + 1} of {rounds}" if round_ >= 0 else "warm-up", file=sys.stderr)
        for task in tasks:
            prompt = draw.choices(range(vocab_size), k=task.n_tokens)
            for name, contender in running.items():
                time.sleep(SETTLE_S)
                try:
                    speed = contender.tokens_per_s(task, prompt if task.kind == "prefill" else contexts[task.depth])
                except RuntimeError as error:
                    raise SystemExit(f"{name}, {task.name}: {error}") from None
                if round_ >= 0:
                    speeds[task][name].append(speed)
    return speeds


def print_contenders(running: dict[str, Contender]) -> None:
    table = Table("contender", "version", "weights, GB", "peak memory, MB", "CPU while it waits")
    for name, it in running.items():
        peaks = ", ".join(f"{whose} {n_bytes / 1e6:,.0f}" for whose, n_bytes in it.peaks.items())
        table.row(name, it.version, f"{it.weight_bytes / 1e9:.2f}", peaks, f"{it.waited_cpu / it.waited:.1%}")
    table.print()


def print_speeds(running: dict[str, Contender], speeds: dict[Task, dict[str, list[float]]]) -> None:
    ours = [name for name in running if name.split()[0] == "russet"]
    table = Table("task", "contender", "tokens/s", "GB/s", *(f"{name} / it" for name in ours))
    for task, by_name in speeds.items():
        for name, values in by_name.items():
            gb_per_s = statistics.median(values) * running[name].weight_bytes / 1e9
            ratios = ([a / b for a, b in zip(by_name[our], values, strict=True)] for our in ours)
            table.row(
                task.name,
                name,
                spread(values),
                f"{gb_per_s:.1f}" if task.kind == "decode" else "",
                *("" if our == name else spread(r, digits=2) for our, r in zip(ours, ratios, strict=True)),
            )
    table.print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a Hugging Face checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", default="128,512", help="prompt lengths, comma-separated")
    parser.add_argument("--decode", type=int, default=16, help="tokens to generate")
    parser.add_argument("--depth", default="0", help="tokens of context before those generated, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contenders", help='names or patterns, comma-separated: "russet int8,llama.cpp*"; by default all that can run'
    )
    parser.add_argument("--llama-bench", metavar="PROGRAM", help="llama.cpp's own benchmark, for --gguf")
    parser.add_argument("--caches", action="store_true", help="also caches in 8 bits, and llama.cpp's flash attention")
    parser.add_argument("--gguf", metavar="FILE", action="append", default=[], help="may be repeated")
    for peer in IN_FOLDERS:
        parser.add_argument(f"--{peer}", metavar="FOLDER", action="append", default=[], help="may be repeated")
        parser.add_argument(f"--{peer}-python", metavar="PYTHON", default=sys.executable, help=f"which has {peer}")
    parser.add_argument("--json", metavar="FILE", help="every round's figure")
    parser.add_argument("--plot", metavar="FILE.png")
    args = parser.parse_args()
    if args.gguf and not args.llama_bench:
        parser.error("--gguf needs --llama-bench, the path of that program")
    if args.llama_bench and not args.gguf:
        parser.error("--llama-bench needs --gguf, the file of a model")
    for option in ("llama_bench", *(f"{peer}_python" for peer in IN_FOLDERS)):
        program = getattr(args, option)
        if program and not shutil.which(program):
            parser.error(f"--{option.replace('_', '-')}: no such program: {program}")
    for path, must_hold in [
        (Path(args.folder), "config.json"),
        *((Path(file), "") for file in args.gguf),
        *((Path(folder), "") for peer in IN_FOLDERS for folder in getattr(args, peer)),
    ]:
        if not (path / must_hold).exists():
            parser.error(f"no such file: {path / must_hold}")
    return args


def main() -> None:
    args = arguments()
    tasks = [Task(f"prefill {n}", "prefill", n) for n in map(int, args.prefill.split(","))]
    for depth in map(int, args.depth.split(",")):
        tasks.append(Task(f"decode {args.decode}" + f" after {depth}" * bool(depth), "decode", args.decode, depth))
    n_ctx = max(max(task.depth, 1) + task.n_tokens for task in tasks)
    vocab_size = json.loads((Path(args.folder) / "config.json").read_text())["vocab_size"]

    load_average = os.getloadavg()[0]  # before the contenders raise it
    running = start(chosen(specs(args, n_ctx), args.contenders), args.threads)
    speeds = measure(running, tasks, args.rounds, vocab_size)
    for contender in running.values():
        contender.close()

    print(f"{machine(threads=args.threads)}, load average before {load_average:.2f}\n")
    print_contenders(running)
    print()
    print_speeds(running, speeds)
    if args.json:
        report = {
            "machine": machine(threads=args.threads),
            "load_average": load_average,
            "contenders": {
                name: {"version": it.version, "weight_bytes": it.weight_bytes, "peak_bytes": it.peaks}
                for name, it in running.items()
            },
            "tokens_per_s": {task.name: by_name for task, by_name in speeds.items()},
        }
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot_panels(
            args.plot,
            title=Path(args.folder).name,
            xlabel="tokens/s",
            panels=[task.name for task in tasks],
            bars={n: [statistics.median(speeds[task][n]) for task in tasks] for n in running},
        )


if __name__ == "__main__":
    main()
