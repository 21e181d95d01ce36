"""The same text by the CPU and by the Metal kernels.

python examples/metal_generate.py [MODEL] [PROMPT]      MODEL: a folder or hub id; the built-in demo by default

On a Mac the second is its GPU. Elsewhere the kernels run in a simulator: what they compute is shown, no speed.
"""

import platform
import sys

import russet

on_mac = platform.system() == "Darwin"
model = sys.argv[1] if len(sys.argv) > 1 else None
prompt = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
n_tokens = 100 if on_mac else 16

texts = {}
for backend in ("cpu", "metal" if on_mac else "metal-sim"):
    loaded = russet.load(model, backend=backend, n_ctx=512)
    pieces = list(loaded.stream(prompt, max_tokens=n_tokens, temperature=0, ignore_eos=True))
    texts[backend] = [piece.token for piece in pieces]
    speed = f", {pieces[-1].tokens_per_s:.0f} tokens/s" if backend != "metal-sim" else ", simulated: no speed is shown"
    print(f"{backend}{speed}\n  {prompt}{''.join(piece.text for piece in pieces)}")

on_cpu, on_gpu = texts.values()
agreeing = next((i for i, (a, b) in enumerate(zip(on_cpu, on_gpu, strict=True)) if a != b), n_tokens)
print(f"the same for {agreeing} of {n_tokens} tokens")
