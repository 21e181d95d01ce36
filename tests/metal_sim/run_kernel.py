"""Runs one kernel of a .metal file on 64 floats for each of its buffers: python run_kernel.py FILE KERNEL."""

import sys
from pathlib import Path

import numpy as np

from russet import metal_sim

library = metal_sim.compile_file(sys.argv[1], (Path(sys.argv[1]).parent,), kernels=[sys.argv[2]])
buffers = {index: np.zeros(64, np.float32) for index in library.kernels[sys.argv[2]].buffers}
library.run(sys.argv[2], buffers, groups=(2,), threads=(64,))
