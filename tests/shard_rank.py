"""What one rank does in test_shard.py: python shard_rank.py JOBS.json OUT; OUT/RANK.npz gets what it computed."""

import json
import os
import sys
from pathlib import Path

import numpy as np

import russet


def main(jobs: list[dict], out: Path) -> None:
    results = {}
    for name, job in jobs.items():
        folder = job["folders"][int(os.environ["MLX_RANK"]) % len(job["folders"])]
        quantize = russet.Quantization(bits=job["bits"], group_size=32) if job["bits"] else None
        model = russet.load(folder, backend="mlx", shard=job["shard"], quantize=quantize, n_ctx=600)
        prompt = job["prompt"]
        results[f"{name} last"] = model.session().forward(prompt * 8)
        results[f"{name} logits"] = model.logits(prompt)
        results[f"{name} greedy"] = model.generate_tokens(prompt[:25], max_tokens=job["n_tokens"])
        results[f"{name} sampled"] = model.generate_tokens(prompt[:5], max_tokens=6, temperature=1.0)
        results[f"{name} weight_bytes"] = model.weight_bytes
        if "signal" in job:
            if model.rank == 1 and job["signal"]:
                os.kill(os.getpid(), job["signal"])
            if model.rank == 1:
                break  # it just ends, before the others
            for _ in range(1000):
                model.generate_tokens(prompt[:25], max_tokens=60)
    np.savez(out / f"{model.rank}.npz", **results)


if __name__ == "__main__":
    try:
        main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    except russet.RussetError as error:
        sys.exit(f"{type(error).__name__}: {error}")
