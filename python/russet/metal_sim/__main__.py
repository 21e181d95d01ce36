"""Runs Python with every Metal kernel in it compiled for a sanitizer.

usage: python -m russet.metal_sim {address,thread} ARGUMENTS OF PYTHON...

  python -m russet.metal_sim thread -m pytest tests/test_metal_norm.py

address: overruns of buffers and of threadgroup memory. thread: races inside a threadgroup. What is found is printed
with the line of the .metal file, and the exit code is not 0. Needs clang 17 or newer with its runtimes, as from
apt install clang-19.
"""

import sys

from russet.metal_sim.build import Sanitizer
from russet.metal_sim.sanitized import run_sanitized

if sys.argv[1:] in (["-h"], ["--help"]):
    print(__doc__)
    sys.exit(0)
if len(sys.argv) < 3 or sys.argv[1] not in ("address", "thread"):
    sys.exit(__doc__)
sanitizer: Sanitizer = "address" if sys.argv[1] == "address" else "thread"
sys.exit(run_sanitized(sys.argv[2:], sanitizer, capture=False).returncode)
