"""A model on several processes, over MLX's ring on loopback: what they compute, and what becomes of them."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import russet
from russet.model import DEMO
from tiny_models import bound, make, prompt_of

if importlib.util.find_spec("mlx") is None:
    pytest.skip("mlx is not installed", allow_module_level=True)

from russet.backends.mlx.shard import check_heads

#: The largest difference of logits that are the same but for the order of float32 sums, in parts of their spread: as
#: in test_families.py.
SAME = 2e-4

RANK = Path(__file__).with_name("shard_rank.py")

#: Heads of 32 and an MLP of 192, so that each of four ranks has whole groups of 32; tokens are the demo's.
SHAPE = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "num_hidden_layers": 5,
}  # fmt: skip

MODELS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> folder"""
    folders = {}
    for family, changes in MODELS.items():
        folders[family] = tmp_path_factory.mktemp(family)
        make(folders[family], family, **(SHAPE | changes))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / name, folders[family])
    return folders


def start(command, n_ranks, tmp_path):
    """The command on every rank, as mlx.launch starts it; the processes."""
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(n_ranks)]))
    env = dict(os.environ, MLX_HOSTFILE=str(hostfile), OMP_NUM_THREADS="1")
    return [
        subprocess.Popen(
            command, env=dict(env, MLX_RANK=str(rank)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(n_ranks)
    ]  # fmt: skip


def free_ports(n):
    """Ports that nobody has now, and of the first the one below, where rank 0 is watched from."""
    for begin in range(20011 + os.getpid() % 9000, 32000):
        try:
            for port in range(begin - 1, begin + n):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return range(begin, begin + n)
    raise AssertionError("no ports are free")


def ends(processes, timeout=200):
    """(exit code, stdout, stderr) of each, once all have ended."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def start_jobs(jobs, n_ranks, tmp_path):
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    return start([sys.executable, RANK, tmp_path / "jobs.json", tmp_path], n_ranks, tmp_path)


def run_jobs(jobs, n_ranks, tmp_path):
    """What the ranks computed."""
    for code, _, stderr in ends(start_jobs(jobs, n_ranks, tmp_path)):
        assert (code, stderr) == (0, "")
    return [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(n_ranks)]


def job(shard, *folders, bits=0, **more):
    """folders: of all ranks, or of each"""
    job = {"folders": list(map(str, folders)), "shard": shard, "bits": bits, "prompt": prompt_of(70), "n_tokens": 8}
    return job | more


FEW = [("llama", 0), ("qwen3", 8)]  # bits, 0 for floats
OTHERS = [("llama", 8), ("qwen3", 0)]


@pytest.mark.parametrize(
    ("n_ranks", "models"),
    [
        pytest.param(2, FEW, id="2"),
        pytest.param(2, OTHERS, id="2-others", marks=pytest.mark.slow),
        pytest.param(3, FEW, id="3", marks=pytest.mark.slow),
        pytest.param(4, FEW, id="4", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("shard", ["tensor", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_ranks_give_the_answer_of_one(shard, n_ranks, models, folders, tmp_path):
    if (shard, n_ranks) == ("tensor", 3):
        pytest.skip("4 key-value heads do not go on 3 ranks")
    jobs = {f"{family} {bits}": job(shard, folders[family], bits=bits) for family, bits in models}
    ranks = run_jobs(jobs, n_ranks, tmp_path)
    for name, said in jobs.items():
        quantize = russet.Quantization(bits=8, group_size=32) if said["bits"] else None
        alone = russet.load(said["folders"][0], backend="mlx", quantize=quantize, n_ctx=600)
        expected = alone.logits(said["prompt"])
        last = alone.session().forward(said["prompt"] * 8)  # so many tokens that of a first chunk nobody wants logits
        for rank in ranks:
            assert np.abs(rank[f"{name} logits"] - expected).max() / np.ptp(expected) < SAME
            assert np.abs(rank[f"{name} last"] - last).max() / np.ptp(last) < SAME
            np.testing.assert_array_equal(rank[f"{name} logits"], ranks[0][f"{name} logits"])
            assert rank[f"{name} greedy"].tolist() == alone.generate_tokens(
                said["prompt"][:25], max_tokens=said["n_tokens"]
            )
            assert rank[f"{name} sampled"].tolist() == ranks[0][f"{name} sampled"].tolist()  # by rank 0's seed
            assert rank[f"{name} weight_bytes"] < alone.weight_bytes


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["tensor", "pipeline"])
def test_half_precision(shard, tmp_path):
    """Beside the CPU in float32, bounded as one process is in test_mlx.py: a part's rounding is no worse."""
    types = {"f16": torch.float16, "bf16": torch.bfloat16}
    jobs = {}
    for name, dtype in types.items():
        (folder := tmp_path / name).mkdir()
        make(folder, "llama", dtype=dtype, gain=1.0, **(SHAPE | MODELS["llama"]))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / file, folder)
        jobs[name] = job(shard, folder)
    ranks = run_jobs(jobs, 2, tmp_path)
    for name, dtype in types.items():
        expected = russet.load(tmp_path / name, backend="cpu", n_ctx=600).logits(jobs[name]["prompt"])
        for rank in ranks:
            off = np.abs(rank[f"{name} logits"] - expected).max() / np.ptp(expected)
            assert 0 < off < 8 * torch.finfo(dtype).eps
            for what in ("logits", "last", "greedy", "sampled"):
                np.testing.assert_array_equal(rank[f"{name} {what}"], ranks[0][f"{name} {what}"])


# ---- ranks that go away ----


def seconds_to_end(processes):
    begin = time.monotonic()
    codes = [process.wait(60) for process in processes]
    return time.monotonic() - begin, codes


@pytest.mark.parametrize("shard", ["tensor", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others(shard, tmp_path):
    command = [sys.executable, "-m", "russet", "generate", "--backend", "mlx", "--shard", shard]
    # So long a text that it does not end before the kill.
    processes = start([*command, "-n", "-1", "--ignore-eos", "--no-cache", "Once upon a time"], 2, tmp_path)
    try:
        assert processes[0].stdout.read(1)  # it has begun
        processes[1].send_signal(signal.SIGKILL)
        seconds, codes = seconds_to_end(processes)
        assert codes == [1, -signal.SIGKILL]
        assert seconds < 10
        assert "russet: mlx: rank 1 of 2 is lost: its process was killed" in processes[0].stderr.read()
        assert processes[1].stdout.read() == ""  # rank 0 alone writes
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("signal_no", "said"),
    [
        pytest.param(0, "rank 1 of 2 has ended", id="ended"),
        pytest.param(signal.SIGSTOP, "rank 1 of 2 is lost", id="silent", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_comes_no_more_ends_the_others(signal_no, said, folders, tmp_path):
    processes = start_jobs({"all": job("tensor", folders["llama"], signal=int(signal_no))}, 2, tmp_path)
    try:
        assert processes[0].wait(60) == 1
        assert said in processes[0].stderr.read()
    finally:
        for process in processes:
            process.kill()


# ---- what is refused ----


def test_ranks_with_different_checkpoints_are_refused(folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders["llama"], other)
    make(other, "llama", seed=1, **(SHAPE | MODELS["llama"]))
    for code, _, stderr in ends(start_jobs({"all": job("tensor", folders["llama"], other)}, 2, tmp_path)):
        assert code == 1
        assert stderr == (
            "CheckpointError: mlx: rank 1 has other weights in its checkpoint than rank 0; start all with the same\n"
        )


def test_heads_that_do_not_divide_are_refused(folders, tmp_path):
    config, weights = bound(folders["llama"])
    check_heads(config, weights, 2)
    with pytest.raises(russet.UsageError, match="on 3 ranks: it has 4 key-value heads; 2 or 4 would do"):
        check_heads(config, weights, 3)
    _, weights = bound(folders["llama"], quantize="int8")  # o in groups of 128, and down in groups of 64
    with pytest.raises(russet.UsageError, match="groups of 128 inputs, and a rank would have 64; 2 would do"):
        check_heads(config, weights, 4)
    make(tmp_path, "olmo2", **SHAPE)
    with pytest.raises(russet.UsageError, match="it norms all heads together; load with shard='pipeline'"):
        check_heads(*bound(tmp_path), 2)


def test_a_shard_needs_mlx_and_other_ranks(monkeypatch):
    with pytest.raises(russet.UsageError, match="shard: expected tensor or pipeline, got 'heads'"):
        russet.load(DEMO, backend="mlx", shard="heads")
    with pytest.raises(russet.UsageError, match="load with backend='mlx'"):
        russet.load(DEMO, backend="cpu", shard="tensor")
    monkeypatch.delenv("MLX_RANK", raising=False)
    with pytest.raises(russet.BackendError, match=r"start them with `mlx\.launch"):
        russet.load(DEMO, backend="mlx", shard="tensor")


# ---- the command line ----


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mlx.launch") is None, reason="mlx.launch is not on PATH")
def test_mlx_launch(tmp_path):
    """One flag on our side; the text is written once, and is that of one process."""
    generate = [
        "-m",
        "russet",
        "generate",
        "--backend",
        "mlx",
        "--dtype",
        "float32",
        "--temp",
        "0",
        "-n",
        "12",
        "Once upon a time",
    ]
    (first, *_) = free_ports(2)
    launch = ["mlx.launch", "-n", "2", "--starting-port", str(first), "--python", sys.executable, "--"]
    done = subprocess.run(
        [*launch, *generate, "--shard", "tensor"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, *generate], capture_output=True, text=True, timeout=60)
    assert done.stdout == alone.stdout
