"""Matrix products on the CPU and on the GPU: float by BLAS against float by Metal, and int8 and int4 on both.

python examples/compare_accelerate_metal.py [--quick] [--plot products.png]

One matrix [n_rows, n_cols] times 1 token, as in decode, to 512, as in prefill. GFLOP/s counts 2 n_rows n_cols a token,
GB/s the bytes of the matrix, once a product; the error is the largest against numpy in float64, in parts of the largest
result. On a Mac BLAS is Accelerate. Elsewhere it is OpenBLAS, and the Metal kernels run in a simulator: then their
results are checked, and no speed of theirs is shown.
"""

import argparse
import platform
import statistics
import time

import numpy as np

from russet import _core
from russet.backends.metal import MetalProduct, open_device
from russet.quantization import Quantization, QuantizedTensor, quantize_matrix

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="a small matrix and few tokens, to see that it runs")
parser.add_argument("--plot", metavar="FILE.png")
args = parser.parse_args()

simulated = platform.system() != "Darwin"
n_rows, n_cols = (160, 256) if args.quick else (1024, 1024) if simulated else (3072, 1024)
token_counts = [1, 16] if args.quick else [1, 4, 32, 128] if simulated else [1, 4, 16, 64, 128, 512]
rounds = 3

rng = np.random.default_rng(0)
w = rng.standard_normal((n_rows, n_cols), np.float32)
weights = {"float32": (w, "f32")} | {
    name: quantize_matrix(w, "f32", Quantization.of(name), name="w") for name in ("int8", "int4")
}


def cpu_product(weight):
    """x -> (y, seconds), through BLAS or russet's int8 kernels, whichever the CPU backend takes."""
    config = _core.Config()
    config.dim = n_cols
    config.n_heads = config.n_kv_heads = config.head_dim = 1
    cpu = _core.Cpu(config, _core.default_threads())
    matrix = weight
    if isinstance(weight, QuantizedTensor):
        q = weight
        arena = _core.Arena(2 * q.codes.nbytes + 4 * q.scales.nbytes + 4096)
        matrix = _core.PackedMatrix(arena, q.codes, q.scales, q.biases, q.dtype, q.bits, q.group_size, 1)

    def run(x):
        start = time.perf_counter()
        y = cpu.norm_linear(None, None, matrix, x)
        return y, time.perf_counter() - start

    return run


device = open_device(simulated=simulated)
print(f"CPU: {_core.cpu_name()}, float products by {_core.matmul_library()}; Metal: {device.info['name']}")
print(f"a matrix of {n_rows} x {n_cols}, median of {rounds}\n")
print("| weights | device | tokens | GFLOP/s | GB/s | error |")
print("|---------|--------|--------|---------|------|-------|")
speeds: dict[str, list[float]] = {}
for name, weight in weights.items():
    quantized = isinstance(weight, QuantizedTensor)
    exact = (weight.dequantized() if quantized else w).astype(np.float64)
    n_bytes = weight.codes.nbytes + weight.scales.nbytes + weight.biases.nbytes if quantized else w.nbytes
    metal = MetalProduct(device, weight)
    inputs = [rng.standard_normal((n_tokens, n_cols), np.float32) for n_tokens in token_counts]
    expected = [x.astype(np.float64) @ exact.T for x in inputs]
    time.sleep(0.3)  # numpy's threads spin for a while when they are done, and would be measured too
    for place, run in (("CPU", cpu_product(weight)), ("Metal", metal.run)):
        for n_tokens, x, right in zip(token_counts, inputs, expected, strict=True):
            y, _ = run(x)
            error = np.abs(y - right).max() / np.abs(y).max()
            assert error < (0.02 if place == "CPU" and quantized else 1e-5), (name, place, n_tokens, error)
            figures = "      - |    -"
            if place == "CPU" or not simulated:
                seconds = statistics.median(run(x)[1] for _ in range(rounds))
                gflops = 2 * n_rows * n_cols * n_tokens / seconds / 1e9
                figures = f"{gflops:7.1f} | {n_bytes / seconds / 1e9:4.1f}"
                speeds.setdefault(f"{name}, {place}", []).append(gflops)
            print(f"| {name:7} | {place:6} | {n_tokens:6} | {figures} | {error:.0e} |")

print("\nOn the CPU int8 and int4 quantise activations too; docs/quantization.md measures what that costs.")
if simulated:
    print("The Metal kernels ran in a simulator: they are right; how fast they are only a Mac can show.")

if args.plot:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, values in speeds.items():
        axes.plot(token_counts, values, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="GFLOP/s", title=f"{n_rows} x {n_cols}")
    axes.set_xticks(token_counts, [str(n) for n in token_counts])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.plot, dpi=150)
    print(f"plot: {args.plot}")
