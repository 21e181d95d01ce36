"""Talk with a model: each turn computes only what is new, the rest is in the cache.

python examples/chat.py [MODEL]      MODEL: a folder or hub id; the built-in demo by default
"""

import sys

import russet

model = russet.load(*sys.argv[1:2])
messages = []
for question in ("Good morning!", "Where do you live?"):
    messages.append({"role": "user", "content": question})
    print("you:  ", question)
    print("model:", end=" ")
    answer = ""
    for piece in model.stream(messages, max_tokens=40, seed=1):
        answer += piece.text
        print(piece.text, end="", flush=True)
    messages.append({"role": "assistant", "content": answer})
    print(f"\n       ({piece.cached_tokens} of {piece.prompt_tokens} prompt tokens were in the cache)")
