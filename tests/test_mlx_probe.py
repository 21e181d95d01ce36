"""MLX that is absent, broken, too new, or on no GPU: russet works, and says why it is off."""

import json
import re
import subprocess
import sys

import pytest

import russet
from russet import BackendError
from russet.backends.mlx import probe
from russet.doctor import diagnose


@pytest.fixture(autouse=True)
def asked_anew():
    probe._found.cache_clear()
    yield
    probe._found.cache_clear()


#: What mlx/core.py does -> what is said of it.
STUBS = {
    "raises": (
        "raise ImportError('libmlx.so: cannot open shared object file')",
        "installed, but cannot be imported: ImportError: libmlx.so: cannot open shared object file; install it again",
    ),
    "exits": ("import os; os._exit(3)", "installed, but cannot be imported: it ended with code 3; install it again"),
    "aborts": ("import os; os.abort()", r"installed, but cannot be imported: .*(code -6|Aborted).*; install it again"),
    "talks": ("print('hello'); __version__ = '0.32.1'", "installed, but cannot be imported: "),
    "too new": ("__version__ = '0.33.0'", r"version 0.33.0 is not one that russet was tested with \(0.32\); pip"),
    "too old": ("__version__ = '0.3.2'", r"version 0.3.2 is not one that russet was tested with \(0.32\); pip"),
    "no device": (
        "__version__, array_equal = '0.32.9', print\ndef ones(shape): raise RuntimeError('[metal] No Metal device.')",
        r"installed, but cannot compute here: RuntimeError: \[metal\] No Metal device.; install it again",
    ),
    "hangs": ("import time; time.sleep(30)", "does not answer within 1 seconds; install it again"),
}


@pytest.mark.parametrize(("code", "reason"), STUBS.values(), ids=STUBS)
def test_a_broken_mlx_does_no_harm(code, reason, tmp_path, monkeypatch):
    package = tmp_path / "mlx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlx", raising=False)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    if "sleep" in code:
        monkeypatch.setattr(probe, "_TIMEOUT_S", 1)
    with pytest.raises(BackendError, match=f"^mlx: {reason}"):
        russet.load(backend="mlx")
    (said,) = [backend for backend in diagnose().backends if backend.name == "mlx"]
    assert not said.available
    assert re.match(reason, said.reason)
    assert russet.load(n_ctx=16).backend.name == "cpu"


def test_no_mlx_at_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx", None)
    with pytest.raises(BackendError, match=re.escape('mlx: not installed; pip install "russet[mlx]"')):
        russet.load(backend="mlx")
    assert russet.load(n_ctx=16).generate("Once", max_tokens=2)


def test_a_host_program_is_not_started_again(tmp_path, monkeypatch):
    pytest.importorskip("mlx.core")
    host = tmp_path / "Notes"
    host.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    host.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(host))
    assert probe.find().version.startswith(probe.TESTED)
    monkeypatch.setattr(sys, "base_exec_prefix", str(tmp_path))
    probe._found.cache_clear()
    with pytest.raises(BackendError, match=r"mlx: cannot be asked: .*No such file"):
        probe.find()
    assert not (tmp_path / "started").exists()


def test_it_is_asked_once(monkeypatch):
    pytest.importorskip("mlx.core")
    asked = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: asked.append(args) or run(*args, **options))
    found = probe.find()
    assert probe.find() is found
    assert len(asked) == 1
    assert found.version.startswith(probe.TESTED)
    (said,) = [backend for backend in diagnose().backends if backend.name == "mlx"]
    assert said.available
    assert said.reason.startswith(f"MLX {found.version} on {found.device}")


def test_auto_takes_mlx_where_it_has_the_gpu_of_a_mac(monkeypatch):
    pytest.importorskip("mlx.core")
    monkeypatch.delenv("RUSSET_BACKEND")
    on_gpu, on_cpu = (probe.Mlx("0.32.0", gpu, "Apple M4", 8 * 10**9 if gpu else 0) for gpu in (True, False))
    monkeypatch.setattr(probe, "_found", lambda: on_gpu)
    monkeypatch.setattr(probe._found, "cache_clear", lambda: None, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert russet.load(n_ctx=16).backend.name == "cpu"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert russet.load(n_ctx=16).backend.name == "mlx"
    assert russet.load(n_ctx=16, dtype="float16").backend.dtype == "f16"
    assert russet.load(n_ctx=16, backend="cpu").backend.name == "cpu"
    monkeypatch.setenv("RUSSET_BACKEND", "cpu")
    assert russet.load(n_ctx=16).backend.name == "cpu"
    monkeypatch.setenv("RUSSET_BACKEND", "gpu")
    with pytest.raises(BackendError, match="backend: expected auto, cpu, mlx, metal, metal-sim, got 'gpu'"):
        russet.load(n_ctx=16)
    monkeypatch.delenv("RUSSET_BACKEND")
    for found in (on_cpu, "installed, but cannot compute here: no Metal device"):
        monkeypatch.setattr(probe, "_found", lambda found=found: found)
        assert russet.load(n_ctx=16).backend.name == "cpu"


def test_the_gpu_says_what_it_can_hold(monkeypatch):
    pytest.importorskip("mlx.core")
    monkeypatch.setattr(probe, "find", lambda: probe.Mlx("0.32.0", True, "Apple M1", 10**6))
    with pytest.raises(russet.NotEnoughMemory, match=r"1\.00 MB"):
        russet.load(backend="mlx", n_ctx=16)


def test_russet_alone_never_imports_mlx():
    code = """
import json, sys, russet
from russet.doctor import diagnose
diagnose()
model = russet.load(backend="cpu", n_ctx=16)
model.generate("Once", max_tokens=2)
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "mlx"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_tested_versions_are_those_of_the_extra():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    bounds = set(re.findall(r'"mlx(?:\[cpu\])?>=(\d+)\.(\d+),<(\d+)\.(\d+)', text))
    assert len(bounds) == 1
    (low_major, low, high_major, high) = next(iter(bounds))
    assert low_major == high_major
    assert tuple(f"{low_major}.{minor}" for minor in range(int(low), int(high))) == probe.TESTED
