"""A line between rank 0 and every other rank, which tells of an end and breaks at a death.

The operating system closes the connections of a process that dies, however it dies, so a broken one
is a dead rank: at once, and never because a machine is slow, as the lack of a heartbeat would be.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_CONNECT = 20.0  # seconds for a rank to reach rank 0


@dataclass(frozen=True)
class End:
    """Why a rank ended before its run was done.

    Attributes:
        rank: Which.
        line: What happened, one line.
        status: The exit status of all ranks.
        failed: False where the run is done, or all ranks end it together.
    """

    rank: int
    line: str
    status: int
    failed: bool = True


KILLED = "ended without a word: killed from outside, or by the system for want of memory"


class Links:
    """This rank's connections: on rank 0 one to each other rank, on the others one to rank 0.

    Args:
        rank: This rank.
        connections: By the rank at the other end.
    """

    def __init__(self, rank: int, connections: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.connections = dict(connections)
        self.root_is_gone = False
        self._partial: dict[int, bytes] = dict.fromkeys(connections, b"")
        self._ended: set[int] = set()

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have a selector wait for what the others say."""
        for rank, connection in self.connections.items():
            selector.register(connection, selectors.EVENT_READ, rank)

    def tell(self, end: End, but: int | None = None) -> None:
        """Tell all other ranks, rank 0 on behalf of the others; what cannot be sent is lost."""
        message = json.dumps(asdict(end)).encode() + b"\n"
        for rank, connection in self.connections.items():
            if rank != but:
                try:
                    connection.sendall(message)
                except OSError:
                    continue

    def hear(self, rank: int, selector: selectors.BaseSelector) -> Iterator[End]:
        """What came from a rank: its end, or that of another one; its death is one too."""
        connection = self.connections[rank]
        try:
            received = connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            selector.unregister(connection)
            self.root_is_gone = self.root_is_gone or rank == 0
            if rank not in self._ended:
                self._ended.add(rank)
                yield End(rank, KILLED, 1)
            return
        *lines, self._partial[rank] = (self._partial[rank] + received).split(b"\n")
        for line in lines:
            end = End(**json.loads(line))
            self._ended.add(end.rank)
            if end.failed:
                self.tell(end, but=rank)
                yield end

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections.values():
            connection.close()


def connect(rank: int, size: int, host: str, share: Any) -> Links:
    """Connect this rank; every rank of the group calls it.

    Args:
        rank: This rank.
        size: Number of ranks, 2 or more.
        host: Where the other ranks find rank 0.
        share: Hands an object of rank 0 to all ranks, a collective.

    Returns:
        The connections; a rank that cannot reach rank 0 has none.
    """
    if rank > 0:
        port, token = share(None)
        return Links(rank, _reach(host, port, f"{token}:{rank}"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1" if host in ("127.0.0.1", "localhost") else "", 0))
        listener.listen(size)
        listener.settimeout(_CONNECT)
        token = secrets.token_hex(16)
        share((listener.getsockname()[1], token))
        connections: dict[int, socket.socket] = {}
        try:
            while len(connections) < size - 1:
                connection, _ = listener.accept()
                connection.settimeout(_CONNECT)
                claimed, _, number = connection.makefile().readline().strip().partition(":")
                if secrets.compare_digest(claimed, token) and number.isdigit():
                    connections[int(number)] = connection
        except OSError:  # who is late is not watched; the collectives' own limit holds for it
            pass
    return Links(0, connections)


def _reach(host: str, port: int, greeting: str) -> dict[int, socket.socket]:
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT)
        connection.sendall(f"{greeting}\n".encode())
    except OSError:
        return {}
    return {0: connection}
