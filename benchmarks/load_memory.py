"""Peak memory and time of loading a checkpoint, measured from outside the process.

    python benchmarks/load_memory.py FOLDER [--quantize int8]

Loads, then runs one token so that every weight has been touched, in a fresh process; its peak resident memory beside
the bytes of weights that a token reads. Mapped pages count: they are what the model really occupies.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from report import Table

LOAD = "import russet; model = russet.load(sys.argv[1], n_ctx=1024, quantize=(sys.argv[2:] or [None])[0])"
STEPS = {"import": "import russet", "load": LOAD, "load, one token": f"{LOAD}; model.logits([1])"}
REPORT = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)"


def run(code: str, options: list[str]) -> list[str]:
    """What a fresh process prints. This one stays small: on Linux a child's peak begins with its parent's."""
    code = f"import sys, time; start = time.perf_counter(); {code}"
    return subprocess.run(
        [sys.executable, "-c", code, *options], check=True, capture_output=True, text=True
    ).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    args = parser.parse_args()
    options = [args.folder] + ([args.quantize] if args.quantize else [])

    weights = int(run(f"{LOAD}; print(model.weight_bytes)", options)[0])
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    table = Table("after", "peak, MB", "peak - import, of weights", "seconds")
    base = 0.0
    for step, code in STEPS.items():
        out = run(code + REPORT, options)
        peak = int(out[0]) * unit
        base = base or peak
        table.row(step, f"{peak / 1e6:.0f}", f"{(peak - base) / weights:.3f}", f"{float(out[1]):.2f}")
    print(f"weights: {weights / 1e6:.0f} MB; this process: {resource.getpagesize()} B pages")
    table.print()


if __name__ == "__main__":
    main()
