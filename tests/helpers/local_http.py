"""HTTP with what listens on this machine: nothing in between, and never for ever."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterable, Mapping, MutableMapping
from urllib.parse import urlsplit


def forget_proxies(environment: MutableMapping[str, str]) -> None:
    """Take the proxies out of an environment.

    What tests ask is this machine, which a proxy cannot reach; one that swallows requests would
    hold each of them until its limit of time.

    Args:
        environment: Variables, changed in place.
    """
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]


def fetched(
    url: str,
    body: str | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Make one request: a GET, or with a body a POST.

    Args:
        url: Address on this machine.
        body: What is sent; chunks are sent without saying their length before.
        headers: Further headers.
        seconds: How long the other side may be silent.

    Returns:
        Status, body and headers of the answer.

    Raises:
        OSError: If there is none in time.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    with contextlib.closing(connection):
        # A server may answer before it has read all, and close: the answer is there to read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(
                "GET" if body is None else "POST", parts.path, body, dict(headers or {})
            )
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
