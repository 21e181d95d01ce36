"""BLAS or our int8 kernels for many tokens of a quantised model: measured, kept, shown, overridden."""

import json

import numpy as np
import pytest

from affine import random_affine
from kernels import U, assert_close
from russet import _core, crossover
from russet.doctor import diagnose
from russet.errors import UsageError

needs_blas = pytest.mark.skipif(_core.matmul_library() == "none", reason="built without BLAS")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(crossover, "_file", lambda: tmp_path / "cache" / "crossover.json")
    monkeypatch.delenv("RUSSET_CROSSOVER", raising=False)
    return tmp_path / "cache" / "crossover.json"


class Measured:
    """Stands for a matrix, and counts how often it is measured."""

    bits, group_size = 8, 128

    def __init__(self, n_rows=1024, n_cols=1024, tokens=64):
        self.n_rows, self.n_cols, self.tokens = n_rows, n_cols, tokens
        self.blas_tokens = self.n_measured = 0

    def measure_crossover(self, n_threads):
        self.n_measured += 1
        return self.tokens


@needs_blas
def test_a_shape_is_measured_once_and_kept(cache):
    first, same, other = Measured(), Measured(tokens=1), Measured(n_cols=2048, tokens=0)
    crossover.choose([first, same, other], 2)
    assert [(m.n_measured, m.blas_tokens) for m in (first, same, other)] == [(1, 64), (0, 64), (1, 0)]
    again = Measured(tokens=1)
    crossover.choose([again], 2)
    assert (again.n_measured, again.blas_tokens) == (0, 64)
    crossover.choose([again], 1)  # another number of threads
    assert again.n_measured == 1
    assert diagnose().crossover == {
        "1024 x 1024, 8 bits, groups of 128, 1 thread": 1,
        "1024 x 1024, 8 bits, groups of 128, 2 threads": 64,
        "1024 x 2048, 8 bits, groups of 128, 2 threads": 0,
    }


@needs_blas
def test_small_matrices_keep_to_int8():
    small = Measured(n_rows=100, n_cols=128)
    crossover.choose([small], 1)
    assert (small.n_measured, small.blas_tokens) == (0, 0)


@needs_blas
@pytest.mark.parametrize(("said", "tokens"), [("never", 0), ("1", 1), ("300", 300)])
def test_the_environment_overrides(monkeypatch, cache, said, tokens):
    monkeypatch.setenv("RUSSET_CROSSOVER", said)
    matrix = Measured()
    crossover.choose([matrix], 1)
    assert (matrix.n_measured, matrix.blas_tokens) == (0, tokens)
    assert not cache.exists()


@needs_blas
def test_measure_measures_anew(monkeypatch):
    crossover.choose([Measured(tokens=64)], 1)
    monkeypatch.setenv("RUSSET_CROSSOVER", "measure")
    crossover.choose([Measured(tokens=32)], 1)
    assert list(crossover.known().values()) == [32]


@pytest.mark.parametrize("said", ["sometimes", "-1", "0", "1.5", "²"])
def test_nonsense_is_refused(monkeypatch, said):
    monkeypatch.setenv("RUSSET_CROSSOVER", said)
    with pytest.raises(UsageError, match="RUSSET_CROSSOVER: expected 'never', 'measure' or a number of tokens"):
        crossover.choose([Measured()], 1)


@needs_blas
@pytest.mark.parametrize("damage", ["", "[]", "null", "{", '{"x": 1}'])
def test_a_damaged_cache_is_measured_anew(cache, damage):
    cache.parent.mkdir()
    cache.write_text(damage)
    crossover.choose([Measured()], 1)
    assert list(crossover.known().values()) == [64]
    json.loads(cache.read_text())


@needs_blas
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n_tokens", [1, 40])
def test_either_way_gives_the_product(bits, n_tokens):
    rng = np.random.default_rng(bits)
    affine = random_affine(rng, 600, 2048, bits, 128, "bf16")
    x = rng.normal(size=(n_tokens, 2048)).astype(np.float32)
    config = _core.Config()
    config.dim = 2048
    cpu = _core.Cpu(config, 2)
    w = affine.packed()
    size = np.abs(x).astype(np.float64) @ affine.sizes().T
    expected = x @ affine.dequantized().T

    by_int8 = cpu.norm_linear(None, None, w, x)
    w.blas_tokens = 1
    by_blas = cpu.norm_linear(None, None, w, x)
    assert_close(by_blas, expected, (8 + 2048**0.5) * U * size)  # as kernels.sum_bound(), and one rounding a weight
    # Every activation is off by up to 1 / 254 of the largest in its group, here below 5.
    assert_close(by_int8, expected, np.abs(affine.dequantized()).sum(axis=1) * 5 / 254)
    assert not np.array_equal(by_int8, by_blas)


@needs_blas
def test_a_real_measurement_gives_a_number_of_tokens():
    w = random_affine(np.random.default_rng(0), 512, 1024, 8, 128, "bf16", True).packed()
    assert w.measure_crossover(1) in (0, 16, 32, 64, 128, 256, 512)
