"""The service as any program sees it that speaks HTTP."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import Any

import pytest
from alongside import Alongside
from local_http import fetched
from PIL import Image
from served_rewards import DIGEST, Mean, served

from aegpo.rewards.service import server
from aegpo.rewards.service.server import bound_socket
from aegpo.rewards.service.wire import Limits

JSON = {"Content-Type": "application/json"}


def request(count: int = 1, **changes: Any) -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 51)).save(file, "PNG")
    images = [base64.b64encode(file.getvalue()).decode()] * count
    body = {"images": images, "prompts": ["a"] * count, "metadata": [{}] * count}
    return json.dumps(body | changes)


def call(
    url: str, path: str, body: str | None = None, headers: Mapping[str, str] = JSON
) -> tuple[int, dict[str, Any], HTTPMessage]:
    status, answer, about = fetched(url + path, body, headers)
    return status, json.loads(answer), about


def test_health_metadata_and_scores() -> None:
    with served(Mean()) as (url, _):
        status, score, _ = call(url, "/score", request(2, digest=DIGEST))
        assert status == 200 and score["warnings"] == [] and score["parts"] == {}
        assert score["scores"] == pytest.approx([0.4 + 1 / 99] * 2)
        status, about, _ = call(url, "/reward")
        assert status == 200 and about["name"] == "mean" and about["digest"] == DIGEST
        assert about["range"] == [0.0, 3.0] and set(about["versions"]) == {"aegpo", "torch"}
        status, health, _ = call(url, "/health")
        assert status == 200 and health["status"] == "ok"
        assert (health["requests"], health["images"], health["held"]) == (1, 2, 0)


def test_every_refusal_is_a_line_of_json_with_its_status() -> None:
    limits = Limits(images=2, pixels=16, megabytes=1)
    with served(Mean(), limits=limits, key="k") as (url, service):
        auth = JSON | {"Authorization": "Bearer k"}
        for headers in (JSON, JSON | {"Authorization": "Bearer K"}, JSON | {"Authorization": "k"}):
            assert call(url, "/score", request(), headers)[0] == 401
            assert call(url, "/reward", None, headers)[0] == 401
        assert call(url, "/health")[0] == 200  # whoever watches it needs no key
        for status, path, body, headers, told in (
            (200, "/score", request(2), auth, None),
            (404, "/nowhere", None, auth, "GET /nowhere: Not Found"),
            (405, "/score", None, auth, "Method Not Allowed"),
            (415, "/score", request(), {"Authorization": "Bearer k"}, "send application/json"),
            (400, "/score", "{", auth, "no JSON"),
            (413, "/score", request(3), auth, "at most 2"),
            (413, "/score", " " * 2_000_000, auth, "more than 1 MB"),
            (409, "/score", request(digest="other"), auth, f"configuration {DIGEST}, not other"),
        ):
            found, answer, _ = call(url, path, body, headers)
            assert found == status, (path, answer)
            assert told is None or (told in answer["error"] and "\n" not in answer["error"])
        chunks = (b" " * 100_000 for _ in range(20))  # of a length that is not told before
        assert fetched(f"{url}/score", chunks, auth)[0] == 413
        assert service.held == 0 and service.scorer.images == 2


def test_a_full_queue_is_told_before_the_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Mean(0.5), waiting=1) as (url, service):
        asked = [Alongside(lambda: call(url, "/score", request())) for _ in range(2)]
        limit = time.monotonic() + 20
        while service.held < 2:
            assert time.monotonic() < limit
            time.sleep(0.01)
        status, answer, headers = call(url, "/score", "no JSON" * 100_000)
        assert status == 503 and "2 requests are held already" in answer["error"]
        assert 1 <= int(headers["Retry-After"]) <= 30
        assert [one.result()[0] for one in asked] == [200, 200]
        assert service.scorer.images == 2 and service.put_off == 1


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.2)
    with served(Mean(), waiting=0) as (url, service):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
            assert b" 408 " in slow.recv(1000)
        assert call(url, "/score", request())[0] == 200 and service.held == 0


def test_a_port_that_is_taken_is_one_line() -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at host='127.0.0.1', port={port} "):
            bound_socket("127.0.0.1", port)
    with pytest.raises(ValueError, match="cannot listen"):
        bound_socket("no.such.host.invalid", 0)
    with pytest.raises(ValueError, match="cannot listen"):
        bound_socket("127.0.0.1", 99999)
