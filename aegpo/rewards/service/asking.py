"""Asking several endpoints the same thing until one of them answers."""

from __future__ import annotations

import asyncio
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

import aiohttp

from aegpo.rewards.service.endpoints import FIRST_PAUSE, LONGEST_PAUSE, Endpoint
from aegpo.rewards.service.wire import SCORE_PATH, UnusableMessage, said

T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""How long a connection may take: a machine that is gone does not refuse, it keeps silent."""
TOLD_AFTER = 5.0
"""Seconds after which it is said that nobody answers, and that they are asked again."""
_BUSY = (429, 503)
_AGAIN = (408, 500, 502, 504)
"""What may go well the next time; every other status is a refusal that stays one."""


@dataclass(frozen=True)
class Patience:
    """How long is waited.

    Args:
        timeout: Seconds until a try is given up.
        retries: Further tries of a request after faults, at each endpoint.
        busy: Seconds that a request may be put off by endpoints which have no room.
    """

    timeout: float
    retries: int
    busy: float


class NoAnswer(Exception):
    """No endpoint has answered a request; the text says why."""


class Fault(Exception):
    """A try failed; another may go well."""


class Silent(Fault):
    """There was no answer at all; the text follows an address."""


class _Refused(Exception):
    """An endpoint does not take this request, whenever it comes."""


class _Busy(Exception):
    """An endpoint has no room."""

    def __init__(self, text: str, pause: float) -> None:
        super().__init__(text)
        self.pause = pause


class Asking:
    """The requests of one call.

    Each goes to the endpoint that has the fewest of them under way; after a fault to another, and
    when all of them rest, it waits for the first that is ready. Once a request is given up because
    nobody answered anything at all, the others are too.

    Args:
        endpoints: Whom to ask; their behavior is kept for the next call.
        headers: Sent with each request.
        patience: How long is waited.
        first: Place of the endpoint that is preferred among equals for the first request.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        headers: Mapping[str, str],
        patience: Patience,
        first: int = 0,
    ) -> None:
        self.endpoints, self.headers, self.patience = list(endpoints), dict(headers), patience
        self.first = first
        self.under_way: Counter[str] = Counter()
        self.answered = 0
        self.silence: str | None = None

    def session(self) -> aiohttp.ClientSession:
        """Connections for this call; used as an asynchronous context."""
        timeout = aiohttp.ClientTimeout(total=self.patience.timeout, sock_connect=CONNECT_SECONDS)
        return aiohttp.ClientSession(headers=self.headers, timeout=timeout)

    async def settled(
        self,
        session: aiohttp.ClientSession,
        number: int,
        body: bytes,
        read: Callable[[bytes], T],
    ) -> tuple[T, Endpoint]:
        """Ask until there is an answer.

        Args:
            session: Connections.
            number: Which request of the call it is; spreads requests over endpoints.
            body: The request.
            read: Reads an answer; what raises `UnusableMessage` counts as a fault.

        Returns:
            What was read, and who said it.

        Raises:
            NoAnswer: If nobody answers it.
        """
        refusals: dict[str, str] = {}
        faults, began, answered_before = 0, time.monotonic(), self.answered
        while True:
            willing = self._willing(refusals)
            endpoint = await self._ready(willing, number)
            tried = time.monotonic()
            try:
                answer = await self._asked(session, endpoint, body, read)
            except _Refused as error:
                refusals[endpoint.address] = f"{endpoint} {error}"
            except _Busy as error:
                self._put_off(endpoint, error, began, willing)
            except Fault as error:
                endpoint.rest(tried)
                faults += 1
                if faults >= (self.patience.retries + 1) * len(willing):
                    text = f"{endpoint} {error}, after {faults} tries"
                    if isinstance(error, Silent) and self.answered == answered_before:
                        self.silence = text
                    raise NoAnswer("; ".join([*refusals.values(), text])) from None
                _tell_of_waiting(f"{endpoint} {error}", began, willing)
            else:
                self.answered += 1
                endpoint.faults, endpoint.rests_until = 0, -math.inf
                return answer, endpoint

    def _willing(self, refusals: Mapping[str, str]) -> list[Endpoint]:
        """The endpoints that have not refused a request."""
        if self.silence is not None:
            raise NoAnswer(self.silence)
        willing = [one for one in self.endpoints if one.address not in refusals]
        if not willing:
            raise NoAnswer("; ".join(refusals.values()))
        return willing

    def _put_off(
        self, endpoint: Endpoint, error: _Busy, began: float, willing: Sequence[Endpoint]
    ) -> None:
        """Leave an endpoint alone for as long as it asks, if there is another or time for that."""
        endpoint.rests_until = time.monotonic() + error.pause
        if min(one.rests_until for one in willing) - began > self.patience.busy:
            raise NoAnswer(f"{endpoint} {error}; patience={self.patience.busy:g} is over") from None
        _tell_of_waiting(f"{endpoint} {error}", began, willing)

    async def _ready(self, willing: Sequence[Endpoint], number: int) -> Endpoint:
        """The endpoint to ask next, once one of them is ready."""
        while True:
            now = time.monotonic()
            ready = [one for one in willing if one.rests_until <= now]
            if ready:
                break
            await asyncio.sleep(min(one.rests_until for one in willing) - now)

        def preference(endpoint: Endpoint) -> tuple[int, int]:
            place = self.endpoints.index(endpoint) - self.first - number
            return self.under_way[endpoint.address], place % len(self.endpoints)

        return min(ready, key=preference)

    async def _asked(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        body: bytes,
        read: Callable[[bytes], T],
    ) -> T:
        """One try."""
        self.under_way[endpoint.address] += 1
        try:
            status, headers, answer = await fetched(session, endpoint, SCORE_PATH, body)
        finally:
            self.under_way[endpoint.address] -= 1
        if status == 200:
            try:
                return read(answer)
            except UnusableMessage as error:
                raise Fault(f"cannot be used: {error}") from None
        text = f"answers {status}: {said(answer)}"
        if status in _BUSY:
            raise _Busy(text, _pause(headers.get("Retry-After")))
        raise Fault(text) if status in _AGAIN else _Refused(text)


def _tell_of_waiting(text: str, began: float, willing: Sequence[Endpoint]) -> None:
    """Say why nothing goes on, for once: a training that waits looks as if it hung."""
    now = time.monotonic()
    if now - began > TOLD_AFTER and all(one.rests_until > now for one in willing):
        warnings.warn(f"waiting for a reward: {text}; it is asked again", stacklevel=2)


async def fetched(
    session: aiohttp.ClientSession, endpoint: Endpoint, path: str, body: bytes | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """Make one request: a GET, or with a body a POST of JSON.

    Args:
        session: Connections, with the key and the limits of time.
        endpoint: Whom to ask.
        path: Of the request.
        body: What is posted.

    Returns:
        The status, the headers and the body of the answer.

    Raises:
        Silent: If there is none, in words.
    """
    address = f"{endpoint.address}{path}"
    headers = {} if body is None else {"Content-Type": "application/json"}
    method = "GET" if body is None else "POST"
    try:
        # A redirect would carry the key elsewhere.
        async with session.request(
            method, address, data=body, headers=headers, allow_redirects=False
        ) as response:
            return response.status, dict(response.headers), await response.read()
    except aiohttp.ConnectionTimeoutError:
        raise Silent(f"cannot be reached within {CONNECT_SECONDS:g} s") from None
    except (asyncio.TimeoutError, TimeoutError):
        seconds = session.timeout.total
        raise Silent(f"has not answered within {seconds:g} s") from None
    except aiohttp.ClientConnectorError as error:
        number = error.os_error.errno
        reason = os.strerror(number) if number and number > 0 else error.os_error
        raise Silent(f"cannot be reached ({reason})") from None
    except (aiohttp.ClientError, OSError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise Silent(f"broke off ({text})") from None


def _pause(retry_after: str | None) -> float:
    """Seconds of a Retry-After header; one that is a date, or none, is taken for the shortest."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return FIRST_PAUSE
    return min(LONGEST_PAUSE, max(FIRST_PAUSE, seconds)) if math.isfinite(seconds) else FIRST_PAUSE


def run_to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Run something asynchronous to its end, wherever this thread is (a notebook has a loop).

    Args:
        work: What is run.

    Returns:
        What it returned.

    Raises:
        BaseException: What it raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(asyncio.run(work))
        except BaseException as error:  # raised where it was asked for
            answer.set_exception(error)

    Thread(target=run, name="remote reward", daemon=True).start()
    return answer.result()
