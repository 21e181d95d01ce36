"""RUSSET_ISA, RUSSET_VARIANT and RUSSET_THREADS: what is forced is what runs, what is malformed is refused."""

import functools
import json
import os
import subprocess
import sys

import pytest

from russet import _core

# Sums of 1,000 products whose bits tell the variants apart: which of them did the fused operation call?
PROBE = """
import json
import numpy as np
from russet import _core
rng = np.random.default_rng(0)
w, x = rng.normal(size=(64, 1000)).astype("f4"), rng.normal(size=(40, 1000)).astype("f4")
config = _core.Config()
config.dim = 1000
cpu = _core.Cpu(config, 1)
ran = {}
for op, table, n_tokens in (("matvec", "matvec_f32", 1), ("matmul", "matmul", 40)):
    y = cpu.norm_linear(None, None, (w, "f32"), x[:n_tokens])
    run = getattr(_core.kernels, op)
    ran[table] = [
        name
        for name, here, _ in _core.kernels.variants()[table]
        if here and np.array_equal(run(name, (w, "f32"), x[:n_tokens]).reshape(y.shape), y)
    ]
print(json.dumps({"features": _core.cpu_features(), "threads": _core.default_threads(), "ran": ran,
                  "variants": _core.kernels.variants()}))
"""


def python(code, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUSSET_")} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


@functools.cache
def probe(**environment):
    done = python(PROBE, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def active(report, op):
    return [name for name, _, is_active in report["variants"][op] if is_active]


def test_every_table_ends_with_its_reference_and_has_one_active_variant():
    for table in _core.kernels.variants().values():
        assert table[-1][0] == "ref"
        assert table[-1][1]
        assert sum(is_active for _, _, is_active in table) == 1
        assert [runs_here for _, runs_here, is_active in table if is_active] == [True]


def test_the_probe_tells_variants_apart():
    # The blocked product adds column after column on every instruction set, so two of them may agree to the bit; the
    # reference, in double, agrees with none.
    report = probe()
    for op in ("matvec_f32", "matmul"):
        (name,) = active(report, op)
        assert name in report["ran"][op]
        assert "ref" not in report["ran"][op] or name == "ref"


def test_scalar_isa_leaves_only_the_references():
    report = probe(RUSSET_ISA="scalar")
    assert report["features"] == []
    for op, table in report["variants"].items():
        assert [name for name, runs_here, _ in table if runs_here] in (["ref"], ["blas", "ref"]), op
    assert report["ran"]["matvec_f32"][-1:] == active(report, "matvec_f32")


@pytest.mark.parametrize("isa", _core.cpu_features())
def test_an_isa_is_a_ceiling(isa):
    report = probe(RUSSET_ISA=isa)
    assert report["features"][-1] == isa
    vectors = {"dotprod": "neon", "i8mm": "neon", "vnni": "avx512", "amx": "avx512"}.get(isa, isa)
    assert active(report, "matvec") == [vectors]
    assert active(report, "attention") == ["amx" if isa == "amx" else vectors]
    dots = {"neon": "ref", "avx512": "avx2"}.get(isa, isa)
    assert active(report, "qmatmul") == [dots]


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in ("matvec_f32", "matmul") for name, runs_here, _ in _core.kernels.variants()[op] if runs_here],
)
def test_a_forced_variant_is_the_one_that_runs(op, name):
    report = probe(RUSSET_VARIANT=f"{op}={name}")
    assert active(report, op) == [name]
    assert name in report["ran"][op]
    others = [other for other in report["variants"] if other != op]
    assert {o: active(report, o) for o in others} == {o: active(probe(), o) for o in others}


# All variants of qmatmul give the same bits, so it is their speed that tells them apart: the plain loop is far slower.
SPEED = """
import time
import numpy as np
from russet import _core
n_rows, n_cols = 1024, 1024
arena = _core.Arena(4 * n_rows * n_cols)
codes = np.random.default_rng(0).integers(0, 2**32, (n_rows, n_cols // 4), dtype=np.uint32)
scales = np.ones((n_rows, n_cols // 128), "f4")
w = _core.PackedMatrix(arena, codes, scales, -128 * scales, "f32", 8, 128)
config = _core.Config()
config.dim = n_cols
cpu = _core.Cpu(config, 1)
x = np.ones((1, n_cols), "f4")
seconds = []
for _ in range(5):
    start = time.thread_time()
    cpu.norm_linear(None, None, w, x)
    seconds.append(time.thread_time() - start)
print([name for name, _, active in _core.kernels.variants()["qmatmul"] if active], min(seconds))
"""


@pytest.mark.skipif("avx2" not in _core.cpu_features(), reason="no variant of qmatmul but ref, or none measured")
def test_a_forced_qmatmul_is_the_one_that_runs():
    said = [python(SPEED, **env).stdout.split() for env in ({}, {"RUSSET_VARIANT": "qmatmul=ref"})]
    assert said[0][0] != "['ref']"
    assert said[1][0] == "['ref']"
    assert float(said[1][1]) > 4 * float(said[0][1])


def test_several_may_be_forced():
    report = probe(RUSSET_VARIANT="norm=ref,gate=ref,matmul=ref")
    for op in ("norm", "gate", "matmul"):
        assert active(report, op) == ["ref"]
    assert active(report, "rope") != ["ref"] or not report["features"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "RUSSET_ISA",
            "avx9",
            "RUSSET_ISA: expected scalar, neon, dotprod, i8mm, avx2, avx512, vnni or amx, got 'avx9'",
        ),
        ("RUSSET_VARIANT", "matmul", r"RUSSET_VARIANT: expected op=name[,op=name], got 'matmul'"),
        ("RUSSET_VARIANT", "norm=ref,,", r"RUSSET_VARIANT: expected op=name[,op=name], got 'norm=ref,,'"),
        ("RUSSET_VARIANT", "matmul=fastest", "RUSSET_VARIANT: matmul has no variant 'fastest' on this machine"),
        ("RUSSET_THREADS", "0", "RUSSET_THREADS: expected 1 to 1024, got '0'"),
        ("RUSSET_THREADS", "two", "RUSSET_THREADS: expected 1 to 1024, got 'two'"),
        ("RUSSET_THREADS", "3x", "RUSSET_THREADS: expected 1 to 1024, got '3x'"),
        ("RUSSET_THREADS", "99999999999999999999", "RUSSET_THREADS: expected 1 to 1024"),
    ],
)
def test_malformed_values_are_refused(variable, value, message):
    code = """
from russet import _core, errors
try:
    _core.default_threads(), _core.kernels.variants()
except errors.UsageError as e:
    print(e)
"""
    done = python(code, **{variable: value})
    assert done.returncode == 0, done.stderr
    assert message in done.stdout


def test_threads_by_environment():
    assert probe(RUSSET_THREADS="5")["threads"] == 5
