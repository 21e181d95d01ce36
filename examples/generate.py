"""Load a model and let it write, in one go and then piece by piece.

python examples/generate.py [MODEL] [PROMPT]      MODEL: a folder or hub id; the built-in demo by default
"""

import sys

import russet

model = russet.load(*sys.argv[1:2])
prompt = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"

print(prompt + model.generate(prompt, max_tokens=60, seed=1))
print("---")

print(prompt, end="")
for piece in model.stream(prompt, max_tokens=60, temperature=0.8, top_p=0.95, seed=1, stop=["\n\n"]):
    print(piece.text, end="", flush=True)
print(f"\n--- {piece.generated_tokens} tokens, {piece.tokens_per_s:.0f} a second, ended by {piece.finish_reason}")
