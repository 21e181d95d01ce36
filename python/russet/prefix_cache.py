"""PrefixCache: texts whose keys and values are kept, so that a prompt that begins as one of them goes on from there.

They make a radix tree over token ids, whose edges are runs of ids. A leaf has a session that holds the text from the
root to there, and sessions share blocks, so what texts have in common is in memory once:

    (root) --- "You are a pirate. " --- (1) --- "Where is the gold?" --- (2)
                                         |
                                         +----- "Sing!" --- (3)

A prompt that leaves the tree anywhere gets a fork of a session behind that place: "You are a cook." one of (2) or (3),
cut after "You are a ". Where windows or kv_budget have given back what such a fork would see, it is cut at a node
before: (1) has a session of its own if (2) could not be rewound to it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from russet.backends import Session
from russet.config import Rope

NEW_TEXT = "new text"
TURNED_OFF = "turned off"
OTHER_FREQUENCIES = "rope frequencies differ"
GIVEN_BACK = "keys have been given back, by a sliding window or kv_budget"


class Known(NamedTuple):
    """What a prompt can begin with."""

    session: Session  #: the caller's own
    miss: str | None  #: why not all but the prompt's last token is in it; None where it is


@dataclass(slots=True, eq=False)
class _Node:
    edge: list[int]  #: ids that lead here from the node before
    end: int  #: tokens from the root to here
    session: Session | None = None
    children: dict[int, _Node] = field(default_factory=dict)  #: by the first token of their edges
    last_used: int = 0


#: From the root to a node, which is the last.
_Path = list[_Node]


class PrefixCache:
    """Texts that are kept, the least recently used first to go. Threads may share it.

    new_session: makes an empty one
    bytes_per_token: of keys and values
    block_tokens: see Backend
    budget: bytes they may take together; 0 keeps none. Counted in tokens, so that all ranks of a model decide alike.
    """

    def __init__(
        self,
        new_session: Callable[[], Session],
        ropes: Sequence[Rope],
        *,
        bytes_per_token: int,
        block_tokens: int,
        budget: int,
    ) -> None:
        self.budget = budget
        self.n_hits = self.n_misses = self.n_tokens_reused = self.peak_bytes = 0
        self._new_session = new_session
        self._ropes = ropes
        self._bytes_per_token = max(1, bytes_per_token)
        self._block_tokens = block_tokens
        self.forks_share = block_tokens > 0  #: else a fork that goes on is a copy
        self._roots: dict[str, _Node] = {}  # keys that are rotated otherwise are another tree's
        self._clock = 0
        self._lock = threading.RLock()

    def take(self, prompt: Sequence[int]) -> Known:
        """A session with what is known of the prompt, but for its last token: that is computed, for its logits."""
        if not self.budget:
            return Known(self._new_session(), TURNED_OFF)
        with self._lock:
            most = len(prompt) - 1
            root = self._roots.get(frequencies(self._ropes, len(prompt)) or "", _Node([], 0))
            path, n_alike = _follow(root, prompt[:most])
            session = self._session_on(path, n_alike) or self._new_session()
            n_known = session.n_tokens
            self.n_tokens_reused += n_known
            self.n_hits += n_known > 0
            self.n_misses += n_known == 0
            if n_known == most:
                return Known(session, None)
            if n_known < n_alike:
                return Known(session, GIVEN_BACK)
            if n_known > 0:
                return Known(session, f"first {n_known:,} of {len(prompt):,} tokens are known")
            elsewhere = any(_follow(other, prompt)[1] for other in self._roots.values() if other is not root)
            return Known(session, OTHER_FREQUENCIES if elsewhere else NEW_TEXT)

    def put(self, tokens: Sequence[int], session: Session, rotated: str | None) -> None:
        """Keep a text, or as much of its beginning as the budget allows; the session stays the caller's.

        rotated: by which frequencies its keys are; see frequencies()
        """
        tokens = list(tokens[: min(session.n_tokens, self.budget // self._bytes_per_token)])
        if self._block_tokens and len(tokens) < session.n_tokens:
            del tokens[len(tokens) // self._block_tokens * self._block_tokens :]
        if not tokens or rotated is None or not session.can_rewind(len(tokens)):
            return
        with self._lock:
            path, n_alike = _follow(self._roots.setdefault(rotated, _Node([], 0)), tokens)
            has_it = path[-1].session and path[-1].session.can_rewind(n_alike)
            if n_alike < len(tokens) or not has_it:
                if n_alike < path[-1].end:
                    _split(path, n_alike)
                if n_alike < len(tokens):
                    _add_leaf(path, tokens[n_alike:], session.fork(len(tokens)))
                else:
                    path[-1].session = session.fork(len(tokens))
            self._touch(path)
            while self.bytes() > self.budget and self.drop_oldest():
                pass
            self.peak_bytes = max(self.peak_bytes, self.bytes())

    def drop_oldest(self) -> bool:
        """Forget the text that was used longest ago; False where there is none."""
        with self._lock:
            oldest: _Path = []
            for path in self._paths():
                if not path[-1].children and (not oldest or path[-1].last_used < oldest[-1].last_used):
                    oldest = list(path)
            if oldest:
                self._cut_off(oldest)
            return bool(oldest)

    def clear(self) -> None:
        """Forget all texts."""
        with self._lock:
            self._roots.clear()

    def texts(self) -> list[tuple[list[int], Session, str]]:
        """Every text with a fork of its session and its frequencies, a beginning before what goes on from it."""
        with self._lock:
            return [
                ([token for node in path for token in node.edge], path[-1].session.fork(path[-1].end), rotated)
                for rotated, root in self._roots.items()
                for path in _paths(root)
                if path[-1].session
            ]

    def bytes(self) -> int:
        """Of the texts that are kept."""
        with self._lock:
            return sum(self._n_tokens(path[-1]) for path in self._paths()) * self._bytes_per_token

    @property
    def n_texts(self) -> int:
        with self._lock:
            return sum(not path[-1].children for path in self._paths())

    def _session_on(self, path: _Path, n_tokens: int) -> Session | None:
        """The first n_tokens of the last node's text, or as many as it or one before it still has."""
        self._touch(path)
        leaf = path[-1]
        if not self.forks_share and n_tokens == leaf.end and leaf.session and not leaf.children:
            self._cut_off(path)  # going on in a fork would copy it all; it comes back when the longer text is kept
            return leaf.session
        behind = (further[-1] for further in _paths(leaf))
        for node in itertools.chain([leaf], behind, reversed(path)):
            n = min(n_tokens, node.end)
            if n > 0 and node.session and node.session.can_rewind(n):
                return node.session.fork(n)
        return None

    def _cut_off(self, path: _Path) -> None:
        """Remove the leaf that it leads to, and the nodes before that hold nothing then."""
        leaf = path[-1]
        while len(path) > 1 and not path[-1].children:
            first = path.pop().edge[0]
            before = path[-1]
            del before.children[first]
            if self.forks_share and leaf.session and not before.children and leaf.session.can_rewind(before.end):
                before.session = leaf.session.fork(before.end) if before.end else None
            if before.session:
                return

    def _paths(self) -> Iterator[_Path]:
        """To every node but the roots."""
        return (path for root in self._roots.values() for path in _paths(root))

    def _n_tokens(self, node: _Node) -> int:
        """Whose keys and values a node adds: in whole blocks, where it ends in one for all that go on; or in a copy."""
        if not self.forks_share:
            return node.end if node.session else 0
        size, begin = self._block_tokens, node.end - len(node.edge)
        n_going_on = len(node.children) + (node.session is not None)
        n_copies = n_going_on - 1 if node.end % size else 0
        return (-(-node.end // size) - -(-begin // size) + n_copies) * size

    def _touch(self, path: _Path) -> None:
        self._clock += 1
        for node in path:
            node.last_used = self._clock


def frequencies(ropes: Sequence[Rope], text_length: int) -> str | None:
    """By which the keys of a text are rotated: "short" or "long"; None: by those of its very length (dynamic NTK)."""
    if any(rope.dynamic_factor and text_length > rope.original_ctx for rope in ropes):
        return None
    return "long" if is_long(ropes, text_length) else "short"


def is_long(ropes: Sequence[Rope], text_length: int) -> bool:
    """Whether a text of this length has outgrown a longrope's short frequencies."""
    return any(rope.long_inv_freq and text_length > rope.original_ctx for rope in ropes)


def _follow(root: _Node, tokens: Sequence[int]) -> tuple[_Path, int]:
    """The path that the tokens take, to the node on whose edge they leave the tree; and how many they are by then."""
    path, n = [root], 0
    while n == path[-1].end and n < len(tokens) and (node := path[-1].children.get(tokens[n])):
        begin = n
        while n < min(len(tokens), node.end) and tokens[n] == node.edge[n - begin]:
            n += 1
        path.append(node)
    return path, n


def _split(path: _Path, at: int) -> None:
    """A new node, after `at` tokens of the last node's text, takes its place on the path."""
    behind, before = path.pop(), path[-1]
    n = at - before.end
    path.append(_Node(behind.edge[:n], at, None, {behind.edge[n]: behind}, behind.last_used))
    before.children[behind.edge[0]] = path[-1]
    behind.edge = behind.edge[n:]


def _add_leaf(path: _Path, edge: list[int], session: Session) -> None:
    """A leaf after the last node, whose own session is needless if the leaf's can be cut wherever it alone could be."""
    node = path[-1]
    others_end = max((other.end for other in path[:-1] if other.session), default=0)
    if session.can_rewind(others_end + 1):
        node.session = None
    path.append(_Node(edge, node.end + len(edge), session))
    node.children[edge[0]] = path[-1]


def _paths(root: _Node) -> Iterator[_Path]:
    """From a node to each behind it, a beginning before what goes on from it. They are one list, which changes."""
    path, waiting = [root], [iter(root.children.values())]
    while waiting:
        if node := next(waiting[-1], None):
            path.append(node)
            waiting.append(iter(node.children.values()))
            yield path
        else:
            waiting.pop()
            path.pop()
