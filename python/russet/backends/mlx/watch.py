"""Who of several processes is still there: a heartbeat beside MLX, which may wait for a lost one for ever.

Rank 0 has a connection to each of the others and tells all what it hears. A killed process is noticed when the system
closes its connection, a lost machine by its silence.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from russet.errors import BackendError

ARRIVAL_S = 60
BEAT_S = 0.5
SILENCE_S = 10.0  #: without a heartbeat: a rank is lost
GRACE_S = 2.0  #: that MLX has to give up by itself, once a rank is gone

_ALIVE, _ENDED, _LOST = range(3)  # a message is one of them and a rank, in two bytes

_SAID = {
    _ENDED: "has ended, and its own message says why",
    _LOST: "is lost: its process was killed, or its machine cannot be reached",
}


class Watch:
    """Watches the other ranks in a thread of its own.

    Where one is gone while this process waits in MLX, and MLX does not notice, the process ends with a message.

    connections: of rank 0 to each other rank, of every other one to rank 0
    """

    def __init__(self, rank: int, size: int, connections: Mapping[int, socket.socket]) -> None:
        self._rank, self._size = rank, size
        self._connections = dict(connections)
        self._received = dict.fromkeys(connections, b"")  # less than a message
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._gone: dict[int, int] = {}  # rank -> how
        self._gone_at = 0.0
        self._change = threading.Condition()
        self._busy_since: float | None = None
        threading.Thread(target=self._run, name="russet-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the other ranks are waited for. Raises BackendError where one was lost before, or is gone within."""
        if _LOST in self._gone.values():
            raise BackendError(self._message())
        self._busy_since = time.monotonic()
        try:
            yield
        except RuntimeError:
            with self._change:
                self._change.wait_for(lambda: self._gone, timeout=GRACE_S / 2)
            if self._gone:
                raise BackendError(self._message()) from None  # says more than MLX does
            raise
        finally:
            self._busy_since = None

    def say_goodbye(self) -> None:
        """Tell the others that this process ends."""
        self._tell_all(_ENDED, self._rank)

    def wait_for_others(self) -> None:
        """Until all have said goodbye, a short time at most."""
        with self._change:
            self._change.wait_for(lambda: len(self._gone) == self._size - 1, timeout=GRACE_S)

    def _message(self) -> str:
        rank, how = next(iter(self._gone.items()))
        return f"mlx: rank {rank} of {self._size} {_SAID[how]}; start all of them again"

    def _run(self) -> None:
        beat_at = 0.0
        while self._connections:
            rank_of = {connection: rank for rank, connection in self._connections.items()}
            ready, _, _ = select.select(list(rank_of), [], [], BEAT_S)
            for connection in ready:
                self._hear(rank_of[connection], connection)
            now = time.monotonic()
            if now - beat_at >= BEAT_S:
                beat_at = now
                self._tell_all(_ALIVE, self._rank)
            for rank in [rank for rank in self._connections if now - self._heard[rank] > SILENCE_S]:
                self._note(rank, _LOST)
            self._end_if_stuck()
        while True:  # nobody is left to hear
            time.sleep(BEAT_S)
            self._end_if_stuck()

    def _hear(self, rank: int, connection: socket.socket) -> None:
        try:
            received = connection.recv(4096)
        except OSError:
            received = b""
        if not received:
            self._note(rank, _LOST)
            return
        self._heard[rank] = time.monotonic()
        received = self._received[rank] + received
        n_whole = len(received) // 2 * 2
        self._received[rank] = received[n_whole:]
        for how, who in zip(received[:n_whole:2], received[1:n_whole:2], strict=True):
            if how != _ALIVE:
                self._note(who, how)

    def _note(self, rank: int, how: int) -> None:
        """A rank is gone. One that has ended closes its connection later: that is no news."""
        if how == _LOST:
            self._connections.pop(rank, None)
        if rank in self._gone:
            return
        with self._change:
            self._gone_at = self._gone_at or time.monotonic()
            self._gone[rank] = how
            self._change.notify_all()
        if self._rank == 0:
            self._tell_all(how, rank)

    def _tell_all(self, how: int, rank: int) -> None:
        for connection in list(self._connections.values()):
            with suppress(OSError):  # its end is heard where it is listened to
                connection.sendall(bytes([how, rank]))

    def _end_if_stuck(self) -> None:
        """MLX cannot be interrupted: where it waits for who will not come, the process ends here."""
        since = self._busy_since
        if not self._gone or since is None or time.monotonic() - max(since, self._gone_at) < GRACE_S:
            return
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        print("russet:", self._message(), file=sys.stderr, flush=True)
        os._exit(1)


def connect(rank: int, size: int, host: str, port: int) -> dict[int, socket.socket]:
    """The connections that Watch takes; rank 0 listens there. Raises BackendError where a rank does not come."""
    deadline = time.monotonic() + ARRIVAL_S
    connections: dict[int, socket.socket] = {}
    try:
        if rank == 0:
            with socket.create_server((host, port)) as listener:
                while len(connections) < size - 1:
                    listener.settimeout(max(0.01, deadline - time.monotonic()))
                    connection, _ = listener.accept()
                    connection.settimeout(SILENCE_S)
                    connections[connection.recv(1)[0]] = connection
        else:
            connections[0] = _connected(host, port, deadline)
            connections[0].sendall(bytes([rank]))
    except (OSError, IndexError) as error:
        absent = "rank 0" if rank else f"{size - 1 - len(connections)} of {size - 1} other ranks"
        raise BackendError(
            f"mlx: {absent} did not come to {host}:{port} within {ARRIVAL_S} seconds ({error}); "
            "start all ranks at once, with mlx.launch"
        ) from error
    return connections


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=SILENCE_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # rank 0 may be slower to start
