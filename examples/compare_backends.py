"""The same prompt on every backend that is here: what it says, how fast, and how far its logits are from the CPU's.

python examples/compare_backends.py [MODEL] [--prompt TEXT] [--tokens 32] [--plot backends.png]

Time to first token and tokens/s are shown for backends that are what they will be on a user's machine. The simulator
of the Metal kernels, and MLX's CPU build where there is no GPU for it, compute the same numbers as on a Mac at no speed
that means anything: theirs is not shown.
"""

import argparse
import platform

import numpy as np

import russet
from russet.doctor import diagnose

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", help="a folder or hub id; the built-in demo by default")
parser.add_argument("--prompt", default="Once upon a time")
parser.add_argument("--tokens", type=int, default=32)
parser.add_argument("--plot", metavar="FILE.png")
args = parser.parse_args()

on_mac = platform.system() == "Darwin"
reports = [b for b in diagnose().backends if not (on_mac and b.name == "metal-sim")]
for report in reports:
    if not report.available:
        print(f"left out: {report.name}: {report.reason}")

texts: dict[str, list[int]] = {}
last_logits: dict[str, np.ndarray] = {}
speeds: dict[str, float] = {}
print("\n| backend | first token, s | tokens/s | GB/s | tokens as the CPU's | logits off, of their spread |")
print("|---------|----------------|----------|------|---------------------|-----------------------------|")
for name in (report.name for report in reports if report.available):
    model = russet.load(args.model, backend=name, n_ctx=512)
    ids = model.tokenizer.encode(args.prompt)
    pieces = list(model.stream(ids, max_tokens=args.tokens, temperature=0, ignore_eos=True))
    texts[name] = [piece.token for piece in pieces]
    text_of_all = ids + next(iter(texts.values()))  # the CPU's, so that all answer the same question
    last_logits[name] = model.logits(text_of_all)[-1]

    figures = " " * 14 + " | " + " " * 8 + " |     "
    if on_mac or name == "cpu":
        speeds[name] = pieces[-1].tokens_per_s
        gb_per_s = speeds[name] * model.weight_bytes / 1e9
        figures = f"{pieces[-1].first_token_s:14.3f} | {speeds[name]:8.1f} | {gb_per_s:4.1f}"
    differs = [a != b for a, b in zip(texts[name], texts["cpu"], strict=True)]
    agreeing = differs.index(True) if True in differs else args.tokens
    off = np.abs(last_logits[name] - last_logits["cpu"]).max() / np.ptp(last_logits["cpu"])
    print(f"| {name:9} | {figures} | {agreeing:9} of {args.tokens:3} | {off:.1e} |")

if args.plot:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 1 + 0.5 * len(speeds)), layout="constrained")
    axes.barh(list(speeds), list(speeds.values()))
    axes.invert_yaxis()
    axes.set(xlabel="tokens/s", title=f"{args.tokens} tokens, one by one")
    figure.savefig(args.plot, dpi=150)
    print(f"plot: {args.plot}")
