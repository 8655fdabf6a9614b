"""Rewards behind HTTP: in this process, in one of their own, and endpoints that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from alongside import Alongside
from forkserver import begin, forkserver
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.service.server import RewardService, bound_socket

CPU = torch.device("cpu")
DIGEST = "0123456789abcdef"


class Mean(Reward):
    """An image's mean plus the length of its prompt and what its metadata says.

    It counts the images it was asked about, and waits `seconds` for each call.
    """

    range = (0.0, 3.0)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls, self.asked = seconds, 0, 0

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        self.calls += 1
        self.asked += len(prompts)
        time.sleep(self.seconds)
        more = torch.tensor([len(p) / 99 + one.get("more", 0) for p, one in zip(prompts, metadata)])  # noqa: B905
        return images.mean((1, 2, 3)) + more


class Place:
    """Where something listens.

    Attributes:
        url: Its address.
        loop: The loop that serves it, in a thread.
    """

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.loop = url, loop


@contextmanager
def listening(app: web.Application, taken: socket.socket | None = None) -> Iterator[Place]:
    """An application at a port of its own, served by a thread until the end of the context."""
    taken = taken or bound_socket("127.0.0.1", 0)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, taken).start()
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield Place(f"http://127.0.0.1:{taken.getsockname()[1]}", loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def served(reward: Reward, **settings: Any) -> Iterator[tuple[str, RewardService]]:
    """A service of a reward in this process: its address and itself."""
    service = RewardService(reward, CPU, **{"digest": DIGEST, **settings})
    with listening(service.app()) as place:
        yield place.url, service


Misbehavior = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def misbehaving(*answers: Misbehavior) -> Iterator[tuple[str, list[int]]]:
    """An endpoint that answers requests to score as told, the last one for ever.

    Its address, and a list with the length of each body that it was sent.
    """
    asked: list[int] = []

    async def score(request: web.Request) -> web.StreamResponse:
        asked.append(len(await request.read()))
        return await answers[min(len(asked), len(answers)) - 1](request)

    app = web.Application(client_max_size=10**8)
    app.router.add_post("/score", score)
    with listening(app) as place:
        yield place.url, asked


def says(status: int, text: str = "", **headers: str) -> Misbehavior:
    """Always the same answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=named)

    return answer


async def hangs(request: web.Request) -> web.StreamResponse:
    """No answer for a minute."""
    await asyncio.sleep(60)
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """The connection is cut in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"scores": [')
    assert request.transport is not None
    request.transport.abort()
    return response


class ServedProcess:
    """`aegpo serve-reward` in a process of its own.

    Args:
        folder: Where its output goes, and where it runs.
        *arguments: After the command.
        port: 0 for any.
        seconds: How long it may take until it serves; a process that does not is killed.
    """

    def __init__(self, folder: Path, *arguments: str, port: int = 0, seconds: float = 60) -> None:
        self.output = folder / f"served{time.monotonic_ns()}.txt"
        self.process = forkserver().Process(
            target=_serve,
            name="serve-reward",
            args=(folder, [*arguments, "--port", str(port)], dict(os.environ), self.output),
            daemon=True,  # whatever happens here, Python's end does not wait for it
        )
        Alongside(self.process.start).result(120)  # the first waits until the server has imported
        try:
            self._wait_for_start(seconds)
        except BaseException:
            self.__exit__()
            raise
        self.url = "http://" + self.said().split("http://")[1].split()[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def _wait_for_start(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while "serving" not in self.said():
            assert self.process.is_alive(), f"it has ended: {self.said()}"
            assert time.monotonic() < limit, f"it does not serve after {seconds:g} s: {self.said()}"
            time.sleep(0.02)

    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text() if self.output.exists() else ""

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int | None:
        """Send a signal; its status, negative for a signal that it did not take."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.process.join(seconds)
        return self.process.exitcode

    def __enter__(self) -> ServedProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join(30)
        assert self.process.exitcode is not None, "it does not end"


def _serve(folder: Path, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin(environment, output)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    from lightning_modules.commands.serve_reward import main

    main(arguments)
