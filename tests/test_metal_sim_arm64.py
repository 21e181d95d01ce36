"""The simulator on arm64: its switch between fibers and its C interface, cross-built by zig and run by an emulator."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from russet.metal_sim.build import COMMON, CXX, KERNELS, RUNTIME
from russet.metal_sim.translate import translated
from russet.metal_source import inlined

FOLDER = Path(__file__).parent / "metal_sim"


@pytest.mark.slow
def test_on_emulated_arm64(tmp_path):
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs qemu-aarch64-static and the ziglang wheel")
    translation = translated(inlined(FOLDER / "kernels.metal", (FOLDER,)), "kernels.metal")
    kernels = tmp_path / "kernels.cpp"
    kernels.write_text(translation.with_table(["add", "row_sum_f32", "matrices_f32"]))
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", *COMMON, "-I", str(CXX)]
    objects = []
    for source, flags in (
        (kernels, KERNELS),
        (CXX / "runtime.cpp", [*RUNTIME, "-DMETAL_SIM_COUNT=0"]),
        (FOLDER / "host.cpp", ["-O1", "-fno-sanitize=undefined"]),
    ):
        objects.append(str(tmp_path / f"{source.stem}.o"))
        subprocess.run([*compiler, *flags, "-c", str(source), "-o", objects[-1]], check=True)
    program = tmp_path / "host"
    subprocess.run([*compiler, "-static", *objects, "-o", str(program)], check=True)
    done = subprocess.run([emulator, "-cpu", "max,sve=off", str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr
