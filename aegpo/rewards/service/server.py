"""A reward behind HTTP: health, metadata, and scores for images.

aiohttp reads and writes HTTP (fsspec brings it, so it is there); everything else is here: who may
ask, how many may wait, and how it ends. Scoring has a thread of its own, see `Scorer`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import torch
from aiohttp import web

from aegpo.rewards.base import Reward
from aegpo.rewards.service.description import describe
from aegpo.rewards.service.keys import opens
from aegpo.rewards.service.scorer import Scorer
from aegpo.rewards.service.wire import (
    HEALTH_PATH,
    METADATA_PATH,
    SCORE_PATH,
    Limits,
    Question,
    UnusableMessage,
    answer_body,
    decode_question,
)
from aegpo.utilities.halving import is_out_of_memory

UPLOAD_SECONDS = 60.0
"""How long a request's body may take to arrive."""
LONGEST_PAUSE = 30
"""Seconds after which a request that was put off is asked to come again, at most."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RewardService:
    """Answers requests about one reward.

    Args:
        reward: The reward, set up.
        device: Where it is given the images.
        digest: Fingerprint of its configuration; see `config_digest`.
        key: What a request must bring as ``Authorization: Bearer <key>``; None for nothing.
        waiting: Requests that may wait for the one that is scored; the next is put off (503).
        limits: How much a request may hold.
    """

    def __init__(
        self,
        reward: Reward,
        device: torch.device,
        digest: str,
        key: str | None = None,
        waiting: int = 16,
        limits: Limits | None = None,
    ) -> None:
        self.reward, self.digest, self.key = reward, digest, key
        self.waiting, self.limits = waiting, limits or Limits()
        self.scorer = Scorer(reward, device)
        self.ending = False
        self.held = 0
        """Requests that were taken in and have no answer yet."""
        self.put_off = 0
        self._began = time.monotonic()

    def app(self) -> web.Application:
        """The routes, for aiohttp's runner."""
        app = web.Application(
            middlewares=[self._guarded], client_max_size=self.limits.megabytes * 10**6
        )
        app.router.add_get(HEALTH_PATH, self._health)
        app.router.add_get(METADATA_PATH, self._metadata)
        app.router.add_post(SCORE_PATH, self._score)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody in without the key, and answer every fault in one line of JSON."""
        try:
            if request.path != HEALTH_PATH and not self._may(request):
                return _error(401, "the key is missing or wrong; give the service's own")
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"more than {self.limits.megabytes} MB were sent; ask in parts")
        except web.HTTPException as error:  # no such path, no such method
            return _error(error.status, f"{request.method} {request.path}: {error.reason}")
        except UnusableMessage as error:
            return _error(error.status, str(error))
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            told = "out of memory" if is_out_of_memory(error) else type(error).__name__
            print(f"error: {told}: {text}", file=sys.stderr, flush=True)
            return _error(500, f"{told}: {text}")

    def _may(self, request: web.Request) -> bool:
        return self.key is None or opens(request.headers.get("Authorization"), self.key)

    async def _health(self, request: web.Request) -> web.Response:
        """Whether it takes requests, and what it has done; for whoever watches it, without key."""
        scorer = self.scorer
        return _json(
            503 if self.ending else 200,
            {
                "status": "ending" if self.ending else "ok",
                "held": self.held,
                "room": self.waiting + 1,
                "requests": scorer.requests,
                "images": scorer.images,
                "missing": scorer.missing,
                "put_off": self.put_off,
                "seconds": round(time.monotonic() - self._began, 1),
            },
        )

    async def _metadata(self, request: web.Request) -> web.Response:
        """What is served."""
        return _json(200, describe(self.reward, self.digest, self.limits))

    async def _score(self, request: web.Request) -> web.Response:
        """Score images, or say why not."""
        if self.ending:
            return _error(503, "the service is ending", retry_after=1)
        if request.content_type != "application/json":
            return _error(415, f"content type {request.content_type}; send application/json")
        if (request.content_length or 0) > self.limits.megabytes * 10**6:
            raise web.HTTPRequestEntityTooLarge(self.limits.megabytes, request.content_length or 0)
        # Before the body is read, so that no more bodies lie in memory than there is room for.
        if self.held > self.waiting:
            self.put_off += 1
            pause = min(LONGEST_PAUSE, max(1, round(self.scorer.seconds)))
            return _error(503, f"{self.held} requests are held already; come again", pause)
        self.held += 1
        try:
            question = await self._question(request)
            scores, warned = await asyncio.wrap_future(self.scorer.submit(question))
        finally:
            self.held -= 1
        return _json(200, answer_body(scores, warned))

    async def _question(self, request: web.Request) -> Question:
        try:
            body = await asyncio.wait_for(request.read(), UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise UnusableMessage("the request did not arrive in time", 408) from None
        question = await asyncio.to_thread(decode_question, body, self.limits)
        if question.digest not in (None, self.digest):
            raise UnusableMessage(
                f"this service's reward has the configuration {self.digest}, not {question.digest}",
                409,
            )
        return question


async def serve(
    service: RewardService,
    sockets: list[socket.socket],
    grace: float,
    started: Callable[[], None],
) -> bool:
    """Serve until SIGTERM or SIGINT; then take nothing more, and finish what was taken.

    Args:
        service: What is served.
        sockets: Where it listens, bound already.
        grace: Seconds that requests have to be finished in; a second signal cuts them short.
        started: Called once it listens.

    Returns:
        Whether every request that was taken has been answered.
    """
    runner = web.AppRunner(
        service.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
    )
    await runner.setup()
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    sites = [web.SockSite(runner, one) for one in sockets]
    try:
        for site in sites:
            await site.start()
        started()
        await signals.get()
        service.ending = True
        for site in sites:
            await site.stop()
        ended = time.monotonic() + grace
        while service.held and time.monotonic() < ended and signals.empty():
            await asyncio.sleep(0.02)
        whole = service.held == 0
    finally:
        await runner.cleanup()
    return whole


def bound_socket(host: str, port: int) -> socket.socket:
    """Take a port, before anything slow is loaded.

    Args:
        host: Name or address to listen at.
        port: Port; 0 for any that is free.

    Returns:
        The socket; nobody can connect before it listens.

    Raises:
        ValueError: If it cannot be had.
    """
    try:
        if not 0 <= port <= 65535:
            raise OverflowError("there is no such port")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen at host={host!r}, port={port} ({reason}); give others (port 0 for any)"
        ) from None
    return made


def _json(status: int, body: Mapping[str, Any]) -> web.Response:
    text = json.dumps(body, allow_nan=False)
    return web.Response(status=status, text=text, content_type="application/json")


def _error(status: int, text: str, retry_after: int | None = None) -> web.Response:
    response = _json(status, {"error": text})
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response
