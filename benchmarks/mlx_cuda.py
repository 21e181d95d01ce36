"""russet's MLX backend on an NVIDIA GPU: MLX's CUDA build in an environment of its own; tests, answers, speed.

    python benchmarks/mlx_cuda.py [FOLDER] [--cuda 12] [--venv build/venv-cuda] [--dry-run]

Needs Linux, an NVIDIA driver that knows this CUDA (`nvidia-smi` says which), Python 3.10 or newer, a C++ compiler and
the network. FOLDER is a checkpoint, the built-in demo by default. --dry-run prints the commands and runs none. A table
at the end says which steps went well; where the installation fails, nothing comes after it.

It has never been run on such a machine: none was at hand.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "python" / "russet" / "demo"

#: Those that ask what MLX computes; shards are MLX's ring on the CPU.
TESTS = ("test_mlx_probe.py", "test_mlx.py", "test_split.py")

#: The answer has to come from the GPU: a build that falls back to the CPU would pass all the same.
ON_GPU = "from russet.backends.mlx.probe import find; mlx = find(); print(mlx); raise SystemExit(not mlx.on_gpu)"


class Step(NamedTuple):
    what: str
    command: list[str]


def installation(venv: Path, cuda: int) -> list[Step]:
    """Of russet and its tests, which bring MLX's CPU build; the CUDA build takes that one's place, file by file."""
    pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check"]
    return [
        Step("an environment", [sys.executable, "-m", "venv", "--clear", str(venv)]),
        Step("russet, with what its tests need", [*pip, "install", f"{ROOT}[test]"]),
        Step("without MLX's CPU build", [*pip, "uninstall", "-y", "mlx", "mlx-cpu"]),
        Step("MLX's CUDA build", [*pip, "install", f"mlx[cuda{cuda}]>=0.32,<0.33"]),
    ]


def checks(venv: Path, folder: Path) -> list[Step]:
    python = str(venv / "bin" / "python")
    peers = [str(ROOT / "benchmarks" / "peers.py"), str(folder), "--mlx", str(folder)]
    return [
        Step("MLX computes on the GPU", [python, "-c", ON_GPU]),
        Step("tests", [python, "-m", "pytest", "-q", *(str(ROOT / "tests" / name) for name in TESTS)]),
        Step("answers beside the CPU's", [python, str(ROOT / "examples" / "compare_backends.py"), str(folder)]),
        Step("speed beside mlx-lm's", [python, *peers, "--contenders", "russet mlx,mlx *", "--decode", "64"]),
    ]


def why_no_gpu() -> str | None:
    """None: there is one."""
    if not sys.platform.startswith("linux"):
        return f"MLX's CUDA build is for Linux, this is {sys.platform}"
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver: nvidia-smi is not on PATH"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if listed.returncode or "GPU" not in listed.stdout:
        said = (listed.stdout + listed.stderr).strip().splitlines()[-1:] or ["it says nothing"]
        return f"nvidia-smi lists no GPU: {said[0]}"
    return None


def run(step: Step) -> tuple[bool, float]:
    """Whether it went well, and the seconds it took; its output goes where ours does."""
    print(f"\n=== {step.what}: {shlex.join(step.command)}", flush=True)
    start = time.perf_counter()
    return subprocess.run(step.command, cwd=ROOT).returncode == 0, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=DEMO, help="of a checkpoint; the built-in demo by default"
    )
    parser.add_argument("--cuda", type=int, choices=(12, 13), default=12, help="CUDA's major version")
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "venv-cuda", help="made anew")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not (args.folder / "config.json").exists():
        parser.error(f"no such file: {args.folder / 'config.json'}")
    venv, folder = args.venv.absolute(), args.folder.absolute()
    install, check = installation(venv, args.cuda), checks(venv, folder)
    if args.dry_run:
        print(*(shlex.join(step.command) for step in install + check), sep="\n")
        return 0
    if why := why_no_gpu():
        print(f"mlx_cuda: {why}; --dry-run shows what would be run", file=sys.stderr)
        return 1

    results = []
    for step in install + check:
        went_well, seconds = run(step)
        results.append((step.what, "ok" if went_well else "FAILED", f"{seconds:.0f}"))
        if not went_well and step in install:
            break
    print("\n| step | result | seconds |\n|---|---|---|")
    for cells in results:
        print(f"| {' | '.join(cells)} |")
    return int(any(result != "ok" for _, result, _ in results))


if __name__ == "__main__":
    sys.exit(main())
