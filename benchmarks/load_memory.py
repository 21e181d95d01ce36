"""Peak memory and time of loading a checkpoint, measured from outside the process.

    python benchmarks/load_memory.py FOLDER

Loads, then runs one token so that every weight has been touched, in a fresh process; its peak resident memory beside
the bytes of the weights. Mapped pages count: they are what the model really occupies.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from report import Table

STEPS = {
    "import": "import russet",
    "load": "import russet; model = russet.load(sys.argv[1], n_ctx=1024)",
    "load, one token": "import russet; model = russet.load(sys.argv[1], n_ctx=1024); model.logits([1])",
}
REPORT = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    folder = parser.parse_args().folder

    import russet

    weights = russet.load(folder, n_ctx=1024).checkpoint.n_bytes
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    table = Table("after", "peak, MB", "peak - import, of weights", "seconds")
    base = 0.0
    for step, code in STEPS.items():
        out = subprocess.run(
            [sys.executable, "-c", "import sys, time; start = time.perf_counter(); " + code + REPORT, folder],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        peak = int(out[0]) * unit
        base = base or peak
        table.row(step, f"{peak / 1e6:.0f}", f"{(peak - base) / weights:.3f}", f"{float(out[1]):.2f}")
    print(f"weights: {weights / 1e6:.0f} MB; this process: {resource.getpagesize()} B pages")
    table.print()


if __name__ == "__main__":
    main()
