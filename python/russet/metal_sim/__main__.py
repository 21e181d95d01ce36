"""python -m russet.metal_sim {address,thread} ARGUMENTS OF PYTHON...: see sanitized.py."""

import sys

from russet.metal_sim.build import Sanitizer
from russet.metal_sim.sanitized import run_sanitized

if len(sys.argv) < 3 or sys.argv[1] not in ("address", "thread"):
    sys.exit(__doc__)
sanitizer: Sanitizer = "address" if sys.argv[1] == "address" else "thread"
sys.exit(run_sanitized(sys.argv[2:], sanitizer, capture=False).returncode)
