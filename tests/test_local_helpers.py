"""What tests wait for comes to an end, and what they ask is this machine."""

from __future__ import annotations

import threading
import urllib.request

import pytest
from alongside import Alongside
from local_http import fetched, forget_proxies

from aegpo.rewards.service.server import bound_socket


def test_work_alongside_returns_raises_or_is_given_up() -> None:
    assert Alongside(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Alongside(lambda: 1 // 0).result()

    def slow() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        Alongside(slow).result()
    over = threading.Event()
    hanging = Alongside(lambda: over.wait(60))
    with pytest.raises(AssertionError, match=r"not ended after 0\.05 s"):
        hanging.result(0.05)
    over.set()
    assert hanging.result()


def test_a_server_that_is_silent_is_given_up() -> None:
    with bound_socket("127.0.0.1", 0) as silent:
        silent.listen()
        with pytest.raises(TimeoutError):
            fetched(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.05)


def test_no_proxy_stands_between() -> None:
    environment = {"http_proxy": "a", "HTTPS_PROXY": "b", "No_Proxy": "c", "PROXY_OF_MINE": "d"}
    forget_proxies(environment)
    assert environment == {"PROXY_OF_MINE": "d"}
    assert urllib.request.getproxies() == {}  # conftest has done it before anything was imported
