"""What a model expects: the likeliest next tokens, and how well it foresaw a text.

python examples/logits.py [MODEL]      MODEL: a folder or hub id; the built-in demo by default
"""

import sys

import numpy as np

import russet

model = russet.load(*sys.argv[1:2])
text = "It is a truth universally acknowledged, that a single man"
ids = model.tokenizer.encode(text)

logits = model.logits(ids)  # float32 [n_tokens, vocab_size]
probs = np.exp(logits[-1] - logits[-1].max())
probs /= probs.sum()
print(f"After {text!r}:")
for id in np.argsort(probs)[::-1][:5].tolist():
    print(f"  {probs[id]:5.1%}  {model.tokenizer.decode([id])!r}")

scores = model.score(text)  # natural-log probability of each token but the first
print(f"perplexity of the text: {np.exp(-np.mean(scores)):.1f}")
for id, score in zip(ids[1:], scores, strict=True):
    print(f"  {score:7.2f}  {model.tokenizer.decode([id])!r}")
