"""A port for a process group that nothing else on the machine takes before it is used."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _EACH = 10_000, 600
"""Below the ports that systems give to connections, and so many for each process of a test run."""

_numbers = itertools.count(os.getpid() % _EACH)


def free_port() -> int:
    """A port of this test process's own range, another one each time."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    for _ in range(_EACH):
        port = _FIRST + _EACH * worker + next(_numbers) % _EACH
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port is free from {_FIRST + _EACH * worker} on")
