"""Spaces before punctuation and contractions, deleted as clean_up_tokenization_spaces asks."""

from __future__ import annotations

from russet.tokenizer.detokenizer import Stream

_REPLACED = [
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
]  # fmt: skip


def clean_up(text: str) -> str:
    for found, replacement in _REPLACED:
        text = text.replace(found, replacement)
    return text


class CleanUpStream:
    """clean_up() of another stream's text."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held: list[str] = []

    def push(self, id: int) -> str:
        piece = self._stream.push(id)
        if not piece.strip(" '"):  # Settles nothing: looking at what is held each time would take O(n^2).
            if not self._held and " " not in piece:
                return piece
            self._held.append(piece)
            return ""
        text = "".join(self._held) + piece
        n_settled = _settled(text)
        self._held = [text[n_settled:]] if n_settled < len(text) else []
        return clean_up(text[:n_settled])

    def finish(self) -> str:
        text = clean_up("".join(self._held) + self._stream.finish())
        self._held = []
        return text


def _settled(text: str) -> int:
    """Length of a beginning of `text` that cleans up alone, whatever follows.

    Only spaces are ever deleted, so what is begun at the end of the text is a space, then spaces and
    apostrophes, then perhaps the first letter of n't, 've or 're; n't may have more of both behind its n.
    """
    end = len(text) - 1 if text.endswith(("v", "r")) else len(text.rstrip(" '"))
    if text.endswith("n", 0, end):
        end -= 1
    solid = len(text[:end].rstrip(" '"))
    space = text.find(" ", solid)
    return len(text) if space < 0 else space
