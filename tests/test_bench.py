"""bench: what is run and counted, what the machine's limits mean, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import russet
from random_model import random_config, random_weights
from russet import _core, cli
from russet.backends.cpu import CpuBackend
from russet.bench import Bench, Limits, Workload, keys, peak_bytes, products
from russet.checkpoint import open_checkpoint
from russet.config import Reader
from russet.model import DEMO
from russet.models import family_of

# ---- workloads ----


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload(n_prompt=512), "pp512"),
        (Workload(n_generated=128), "tg128"),
        (Workload(n_generated=128, depth=2048), "tg128 @ d2048"),
        (Workload(n_prompt=512, n_generated=128), "pp512+tg128"),
    ],
)
def test_names_are_those_of_llama_bench(workload, name):
    assert workload.name == name


def test_a_workload_is_its_calls(demo, monkeypatch):
    calls, forward = [], CpuBackend.forward

    def recorded(self, parts):
        calls.append([(session.n_tokens, len(tokens)) for session, tokens in parts])
        return forward(self, parts)

    monkeypatch.setattr(CpuBackend, "forward", recorded)
    workload = Workload(n_prompt=300, n_generated=2, depth=5, batch=2)
    seconds = list(Bench(demo).runs(workload, repetitions=3))
    one_run = [(5, 256), (261, 44), (305, 1), (306, 1)]  # 2 x 256 tokens make a chunk of 512
    assert list(workload.calls()) == one_run
    assert calls == [[call] * 2 for call in one_run] * 4  # one run more, that warms up
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_the_context_is_as_deep_as_asked(demo):
    bench = Bench(demo)
    for depth in (7, 3, 0, 4):
        list(bench.runs(Workload(n_generated=2, depth=depth), repetitions=1))
        assert [session.n_tokens for session in bench._sessions] == [depth + 2]


def test_threads_are_changed_without_loading_again(demo):
    before = demo.backend.n_threads
    try:
        bench = Bench(demo)
        for threads in (1, 3, 2):
            measured = bench.measure(Workload(n_generated=1, threads=threads), repetitions=1)
            assert measured.threads == demo.backend.n_threads == threads
    finally:
        demo.backend.n_threads = before


def test_a_session_outlives_a_change_of_threads():
    config = random_config(ffn_dim=300)
    cpu, alone = (CpuBackend(config, random_weights(config), threads=1) for _ in range(2))
    session, other = cpu.session(20), alone.session(20)
    for threads, tokens in ((1, [5, 6, 7]), (3, [8]), (2, [9, 10])):
        cpu.n_threads = threads
        assert cpu.n_threads == threads
        np.testing.assert_array_equal(session.forward(tokens), other.forward(tokens))
    with pytest.raises(russet.UsageError, match="threads: expected 1 to 1024, got 0"):
        cpu.n_threads = 0
    np.testing.assert_array_equal(session.forward([11]), other.forward([11]))


def test_a_batch_that_does_not_fit_shows_the_sum(demo):
    with pytest.raises(russet.NotEnoughMemory, match="for 128,000,000 tokens"):
        Bench(demo).check_memory([Workload(n_prompt=128, batch=10**6)], "1GB")
    Bench(demo).check_memory([Workload(n_prompt=128, batch=2)], "1GB")


# ---- what is counted ----


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "gemma2"])
def test_products_are_the_matrices_of_transformers(family, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_models

    theirs = tiny_models.make_case(tmp_path, family, 0)
    checkpoint = open_checkpoint(tmp_path)
    config = family_of(hf := Reader(checkpoint.config)).config(hf)
    matrices = {name: w.numel() for name, w in theirs.named_parameters() if w.ndim == 2}
    outside = ("embed", "wte", "wpe", "lm_head")
    in_layers = sum(n for name, n in matrices.items() if not any(part in name for part in outside))
    assert products(checkpoint, config) == (in_layers, theirs.get_output_embeddings().weight.numel())


@pytest.mark.parametrize(("pos", "n"), [(0, 1), (0, 9), (3, 1), (3, 4), (4, 1), (5, 7), (30, 2)])
def test_keys_are_those_a_token_by_token_loop_meets(pos, n):
    windows = (0, 5, 1)
    met = [{(layer, key) for key in range(t + 1) if not w or key > t - w}
           for t in range(pos, pos + n) for layer, w in enumerate(windows)]  # fmt: skip
    assert keys(SimpleNamespace(layer_window=windows), pos, n) == (len(set().union(*met)), sum(map(len, met)))


def test_bytes_and_operations_of_a_decode_step(demo):
    c = demo.config
    in_layers = sum(
        t.nbytes // 2 for name, t in demo.checkpoint.tensors.items() if ".layers." in name and len(t.shape) == 2
    )
    n_bytes, n_ops = Bench(demo).cost(Workload(n_generated=1, depth=99, batch=3))
    cache = 3 * 100 * c.n_layers * 2 * c.n_kv_heads * c.head_dim * 2  # float16
    assert n_bytes == demo.weight_bytes + cache
    attention = 2 * 100 * c.n_layers * c.n_heads * c.head_dim
    assert n_ops == 3 * 2 * (in_layers + c.vocab_size * c.dim + attention)


def test_rates_are_those_of_the_median_run(demo):
    bench, workload = Bench(demo), Workload(n_prompt=20, batch=2)
    measured = bench.measurement(workload, [0.5, 0.1, 0.2])
    n_bytes, n_ops = bench.cost(workload)
    assert (measured.tokens_per_s_lowest, measured.tokens_per_s, measured.tokens_per_s_highest) == (80, 200, 400)
    assert measured.gb_per_s == pytest.approx(n_bytes / 0.2 / 1e9)
    assert measured.gop_per_s == pytest.approx(n_ops / 0.2 / 1e9)
    assert measured.seconds == (0.5, 0.1, 0.2)


def test_peak_memory_grows_with_what_is_held():
    n_bytes = peak_bytes() + 50_000_000  # more than was ever occupied
    held = np.ones(n_bytes, np.uint8)
    assert peak_bytes() >= n_bytes
    del held
    assert peak_bytes() >= n_bytes


# ---- the machine ----


def test_read_bandwidth_is_near_a_plain_read_by_numpy():
    data = np.ones(256 << 20, np.uint8).view(np.int32)

    def numpy_gb_per_s() -> float:
        start = time.perf_counter()
        data.max()
        return data.nbytes / (time.perf_counter() - start) / 1e9

    plain = max(numpy_gb_per_s() for _ in range(5))
    # One stream of numpy reaches half of what several do, and more; a loop that was optimised away is infinitely fast,
    # and one that reads a page of zeros from the cache ten times as fast. The rest is room for other programs.
    assert plain / 4 < _core.read_bandwidth(1) < plain * 6


def int8_peak(**environment: str) -> float:
    code = "from russet import _core; print(_core.int8_peak(1))"
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUSSET_")} | environment
    return float(
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.skipif(not {"avx2", "dotprod"} & {*_core.cpu_features()}, reason="no int8 products on this chip")
def test_int8_peak_is_of_the_best_instruction_allowed():
    plain, best = int8_peak(RUSSET_ISA="scalar"), int8_peak()
    assert best > 2 * plain > 0  # the compiler's loop widens every byte first
    # No chip goes above 8 GHz, nor has a core more than 8,192 products a cycle, which is twice AMX.
    assert best < 2 * 8 * 8192


@pytest.mark.parametrize("measure", [_core.read_bandwidth, _core.int8_peak])
@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_thread_counts_are_checked(measure, threads):
    with pytest.raises(russet.UsageError, match="threads: expected 1 to 1024"):
        measure(threads)


# ---- the command ----

LIMITS = {1: Limits(threads=1, read_gb_per_s=50.0, int8_gop_per_s=400.0),
          2: Limits(threads=2, read_gb_per_s=80.0, int8_gop_per_s=800.0)}  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `russet bench` in this process, on a machine whose limits are known."""
    monkeypatch.setattr(cli.bench, "limits", LIMITS.__getitem__)

    def run(*argv: object):
        code = cli.main(["bench", "-m", str(DEMO), *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_every_test_is_a_row(run):
    code, out, err = run("-p", "8,0", "-n", 2, "-d", "0,4", "-t", "1,2", "-b", "1,2", "-r", 1, "-pg", "3,2")
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in out.splitlines() if line.startswith("|")]
    tests = ["pp8", "tg2", "pp3+tg2", "pp8 @ d4", "tg2 @ d4", "pp3+tg2 @ d4"]
    assert rows[2:] == [[test, batch, threads] for threads in "12" for batch in "12" for test in tests]
    assert "2 threads: 80.0 GB/s read, 800 int8 GOP/s" in out


def test_json_has_every_run_and_adds_up(run):
    code, out, _ = run("-p", 0, "-n", 4, "-t", 2, "-r", 3, "--json")
    report = json.loads(out)
    (measured,) = report["measurements"]
    assert code == 0
    assert (measured["test"], measured["threads"], len(measured["seconds"])) == ("tg4", 2, 3)
    assert measured["tokens_per_s"] == pytest.approx(4 / sorted(measured["seconds"])[1])
    assert report["limits"] == [{"threads": 2, "read_gb_per_s": 80.0, "int8_gop_per_s": 800.0}]
    assert report["weight_bytes"] == russet.load(DEMO).weight_bytes
    assert min(report["load_s"], report["first_token_s"], report["peak_bytes"]) > 0


def test_shares_are_of_the_same_number_of_threads(run):
    _, out, _ = run("-p", 0, "-n", 4, "-t", "1,2", "-r", 1)
    for line in (line for line in out.splitlines() if line.startswith("| tg4")):
        _, _, _, threads, _, _, gb_per_s, of_read, gop_per_s, of_int8, _ = line.split("|")
        limit = LIMITS[int(threads)]
        assert int(of_read.strip(" %")) == pytest.approx(100 * float(gb_per_s) / limit.read_gb_per_s, abs=1)
        assert int(of_int8.strip(" %")) == pytest.approx(100 * float(gop_per_s) / limit.int8_gop_per_s, abs=1)


def test_ctrl_c_keeps_what_was_measured(run, monkeypatch):
    runs = Bench.runs

    def interrupted(self, workload, repetitions):
        for i, seconds in enumerate(runs(self, workload, repetitions)):
            if workload.n_generated and i == 2:
                raise KeyboardInterrupt
            yield seconds

    monkeypatch.setattr(Bench, "runs", interrupted)
    code, out, _ = run("-p", 8, "-n", "2,3", "-r", 4, "--json")
    assert code == 130
    assert [(m["test"], len(m["seconds"])) for m in json.loads(out)["measurements"]] == [("pp8", 4), ("tg2", 2)]


def test_ctrl_c_before_anything_prints_nothing(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "first_token_s", interrupted)
    assert run("-p", 8, "-n", 0) == (130, "", "")


@pytest.mark.parametrize("sweep", [("-r", 1), ("-d", "0,4"), ("-t", "1,2", "-d", "0,4"), ("-b", "1,2,3")], ids=str)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plot_is_a_picture(run, tmp_path, sweep, kind):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"speed.{kind}"
    assert run("-p", 8, "-n", 2, "-r", 1, *sweep, "--plot", file)[0] == 0
    assert file.read_bytes().startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_plot_without_matplotlib_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--plot", "x.png") == (2, "", 'russet: --plot needs matplotlib: pip install "russet[plot]"\n')


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-p", 0, "-n", 0], "nothing to measure: expected -p, -n or -pg above 0"),
        (["-p", "many"], "expected integers from 0 on, as 1,2,4, got 'many'"),
        (["-n", "1,,2"], "expected integers from 0 on, as 1,2,4, got '1,,2'"),
        (["-t", 0], "expected integers from 1 on, as 1,2,4, got '0'"),
        (["-b", "0,1"], "expected integers from 1 on, as 1,2,4, got '0,1'"),
        (["-r", 0], "--repetitions: expected at least 1, got 0"),
        (["-pg", "5"], "expected two numbers of tokens, as 512,128, got '5'"),
        (["-p", 8, "-n", 2, "-d", 64, "-c", 71], "--n-ctx: expected at least 72, which the longest test needs, got 71"),
        (["--plot", "x.gif"], "--plot: expected a file that ends in .png, .svg, .pdf, got 'x.gif'"),
        (["--plot", "nowhere/x.png"], "--plot: nowhere: no such folder"),
        (["-t", 5000, "-p", 8], "threads: expected 1 to 1024, got 5000"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_gives_2_and_one_line(run, argv, message):
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
