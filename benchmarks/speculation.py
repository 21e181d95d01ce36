"""What speculation gains on a text that repeats itself, and loses on one that does not.

    python benchmarks/speculation.py [--model FOLDER] [--tokens 200] [--rounds 5] [--draft-model FOLDER]

For the lookup the texts are written already: the model computes every token in full, and its sampler chooses what
stands there. So what repeats is the text's doing, whatever the model would say, and any model of a size will do.

    code edit    a source file, then the same with a name changed
    summary      a page, then a few words of our own around its sentences
    new text     a page, then another page

A draft model is asked for what the model itself says, greedily.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import russet
from report import Table, interleaved, machine, spread
from russet import _core
from russet.backends import Session
from russet.generation import Conversation, Piece, ReplyText, generate
from russet.limits import Limits
from russet.options import GenerateOptions
from russet.speculation import PromptLookup, Speculation

HERE = Path(__file__).resolve().parents[1]


class Scripted:
    """A sampler that works as any other, and then chooses the script's next token."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = iter(script)
        self._sampler = _core.Sampler()

    def sample(self, logits: Any, allowed: Any = None) -> int:
        self._sampler.sample(logits, allowed)
        return next(self._script)

    def wanted(self, allowed: Any = None) -> _core.Wanted:
        return self._sampler.wanted(allowed)

    def append(self, token: int) -> None:
        self._sampler.append(token)


def texts() -> dict[str, tuple[str, str]]:
    """Name -> what is given, and how it goes on."""
    code = (HERE / "python/russet/stop_strings.py").read_text()
    page = (HERE / "docs/quantization.md").read_text()
    sentences = [s for s in page.split(". ") if 60 < len(s) < 200][:8]
    said = [f'And in its {i + 1}. point the page says: "{s}." ' for i, s in enumerate(sentences)]
    return {
        "code edit": (code, code.replace("self._", "self.my_")),
        "summary with quotes": (page, "".join(said)),
        "new text": (page, (HERE / "docs/several_machines.md").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the built-in demo by default")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--draft-model", help="folder of a smaller model")
    parser.add_argument("--n-draft", type=int, default=16)
    parser.add_argument("--given", type=int, default=1000, metavar="N", help="tokens of a text before, at most")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="generated of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    args = parser.parse_args()
    n_tokens, n_rounds = (40, 1) if args.quick else (args.tokens, args.rounds)
    model = russet.load(args.model, quantize=args.quantize, draft_model=args.draft_model)
    print(machine(threads=model.backend.n_threads))
    table = Table("text", "plain tokens/s", "with drafts tokens/s", "ratio", "accepted of drafted")

    def compare(name: str, take: Callable[[bool], Piece]) -> None:
        """take: the last piece of the text, with drafts or without"""
        pieces: dict[str, list[Piece]] = {"plain": [], "drafts": []}
        interleaved({kind: lambda kind=kind: pieces[kind].append(take(kind == "drafts")) for kind in pieces}, n_rounds)
        plain, drafts = ([p.tokens_per_s for p in pieces[kind][1:]] for kind in pieces)
        last = pieces["drafts"][-1]
        ratio = spread([b / a for a, b in zip(plain, drafts, strict=True)], digits=2)
        table.row(name, spread(plain), spread(drafts), ratio, f"{last.accepted_tokens} of {last.drafted_tokens}")

    for name, (given, goes_on) in texts().items():
        script = model.tokenizer.encode(goes_on, add_special_tokens=False)[:n_tokens]
        prompt = model.tokenizer.encode(given)[: min(args.given, model.n_ctx - len(script))]
        known = Conversation(model.session(), model.config)
        known.append(prompt[:-1])

        def written(
            drafts: bool, prompt: list[int] = prompt, script: list[int] = script, session: Session = known.session
        ) -> Piece:
            conversation = Conversation(session.fork(len(prompt) - 1), model.config, known=prompt[:-1])
            most = min(args.n_draft, model.backend.few_tokens - 1)
            *_, last = generate(
                conversation,
                prompt,
                GenerateOptions(max_tokens=len(script), ignore_eos=True, temperature=1.0),
                sampler=Scripted(script),  # type: ignore[arg-type]
                miss=None,
                reply=ReplyText(model.tokenizer.stream_decoder(), None, ()),
                limits=Limits(None, None),
                eos_token_ids=(),
                diagnose=lambda: None,
                speculation=Speculation(conversation, PromptLookup(), most) if drafts else None,
            )
            return last

        compare(f"{name}, lookup", written)
    if model.draft:

        def said(drafts: bool) -> Piece:
            model.clear_cache()
            options = {"speculate": "draft" if drafts else None, "n_draft": args.n_draft}
            *_, last = model.stream("Once upon a time", max_tokens=n_tokens, temperature=0, ignore_eos=True, **options)
            return last

        compare("the model's own, draft model", said)
    table.print()


if __name__ == "__main__":
    main()
