"""Talk with a model: each turn computes only what is new, the rest is in the cache.

python examples/chat.py [MODEL]      MODEL: a folder or hub id; the built-in demo by default
"""

import sys

import russet

model = russet.load(*sys.argv[1:2])
messages = []
for question in ("Good morning!", "Where do you live?"):
    messages.append({"role": "user", "content": question})
    # The demo has no chat template: it goes on with the words alone.
    words = "\n\n".join(message["content"] for message in messages)
    prompt = messages if model.tokenizer.has_chat_template else words + "\n\n"
    print("you:  ", question)
    print("model:", end=" ")
    answer = ""
    for piece in model.stream(prompt, max_tokens=40, seed=1):
        answer += piece.text
        print(piece.text, end="", flush=True)
    messages.append({"role": "assistant", "content": answer})
    print(f"\n       ({piece.cached_tokens} of {piece.prompt_tokens} prompt tokens were in the cache)")
