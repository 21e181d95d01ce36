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


def start(command, n_ranks, tmp_path, env=None):
    """The command on every rank, as mlx.launch starts it; the processes."""
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(n_ranks)]))
    env = dict(os.environ, MLX_HOSTFILE=str(hostfile), OMP_NUM_THREADS="1", **(env or {}))
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


def ends(processes, timeout=60):
    """(exit code, stdout, stderr) of each, once all have ended."""
    try:
        return [(p, *p.communicate(timeout=timeout)) for p in processes]
    finally:
        for process in processes:
            process.kill()


def run_jobs(jobs, n_ranks, tmp_path):
    """What the ranks computed."""
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    for process, _, stderr in ends(start([sys.executable, RANK, tmp_path / "jobs.json", tmp_path], n_ranks, tmp_path)):
        assert (process.returncode, stderr) == (0, "")
    return [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(n_ranks)]


def job(shard, *folders, bits=0, **more):
    return {"folders": list(map(str, folders)), "shard": shard, "bits": bits, "prompt": prompt_of(70), **more}


@pytest.mark.parametrize("n_ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shard", ["tensor", "pipeline"])
def test_ranks_give_the_answer_of_one(shard, n_ranks, folders, tmp_path):
    if (shard, n_ranks) == ("tensor", 3):
        pytest.skip("4 key-value heads do not go on 3 ranks")
    jobs = {f"{family} {bits}": job(shard, folder, bits=bits) for family, folder in folders.items() for bits in (0, 8)}
    ranks = run_jobs(jobs, n_ranks, tmp_path)
    for name, said in jobs.items():
        quantize = russet.Quantization(bits=8, group_size=32) if said["bits"] else None
        alone = russet.load(said["folders"][0], backend="mlx", quantize=quantize, n_ctx=100)
        expected = alone.logits(said["prompt"])
        for rank in ranks:
            assert np.abs(rank[f"{name} logits"] - expected).max() / np.ptp(expected) < SAME
            np.testing.assert_array_equal(rank[f"{name} logits"], ranks[0][f"{name} logits"])
            assert rank[f"{name} greedy"].tolist() == alone.generate_tokens(said["prompt"][:25], max_tokens=64)
            assert rank[f"{name} sampled"].tolist() == ranks[0][f"{name} sampled"].tolist()  # by rank 0's seed
            assert rank[f"{name} weight_bytes"] < alone.weight_bytes
