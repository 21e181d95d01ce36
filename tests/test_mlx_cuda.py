"""benchmarks/mlx_cuda.py where there is no NVIDIA GPU: what it would run, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux alone")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mlx_cuda.py"


def run(*arguments, path=""):
    """path: the folders that programs are found in"""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PATH": str(path)}, capture_output=True, text=True)


def program(folder, says, code):
    folder.joinpath("nvidia-smi").write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    folder.joinpath("nvidia-smi").chmod(0o755)
    return folder


def test_a_machine_without_a_gpu_is_refused(tmp_path):
    done = run("--venv", tmp_path / "venv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("mlx_cuda: no NVIDIA driver: nvidia-smi is not on PATH; --dry-run shows what would be run\n")
    for says, code in (("NVIDIA-SMI has failed", 9), ("No devices found", 0), ("", 0)):
        done = run("--venv", tmp_path / "venv", path=program(tmp_path, says, code))
        assert done.returncode == 1
        assert f"nvidia-smi lists no GPU: {says or 'it says nothing'}; --dry-run" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("cuda", [12, 13])
def test_what_it_would_run(cuda, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run(tmp_path, "--cuda", cuda, "--venv", tmp_path / "venv", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    commands = done.stdout.splitlines()
    assert [f"mlx[cuda{cuda}]>=0.32" in command for command in commands].index(True) == 3
    for script in ("test_mlx.py", "test_split.py", "compare_backends.py", "peers.py"):
        assert sum(script in command for command in commands[4:]) == 1
    assert all(command.startswith(str(tmp_path / "venv" / "bin")) for command in commands[1:])
    named = [Path(word) for command in commands for word in command.split() if word.endswith(".py")]
    assert all(path.exists() for path in named)


def test_what_it_was_not_given(tmp_path):
    done = run(tmp_path, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no such file: {tmp_path / 'config.json'}" in done.stderr
    assert run("--cuda", "11").returncode == 2


def test_an_installation_that_fails_ends_it(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    done = run("--venv", occupied / "venv", path=program(tmp_path, "GPU 0: a card", 0))
    assert done.returncode == 1
    assert "| an environment | FAILED |" in done.stdout
    assert "russet, with" not in done.stdout
