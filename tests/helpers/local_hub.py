"""A server on this machine that takes an upload as the hub does; nothing leaves the machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Hub(ThreadingHTTPServer):
    """What the hub was asked, and the files that it holds."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuses = refuses
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, str, Any]] = []
        self.files: dict[str, bytes] = {}


class Answers(BaseHTTPRequestHandler):
    """The four addresses that an upload asks."""

    server: Hub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Make a repository, say how files are sent, take them."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        if self.server.refuses:
            return self.answer({"error": "not yours"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.address}/owner/name"})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            known = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [{"path": file["path"], **known} for file in files]})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.address}/owner/name/commit/1"
            return self.answer({"commitUrl": url, "commitOid": "1"})
        return self.answer({"errors": [], "warnings": []})  # of the model card

    def do_GET(self) -> None:
        """Say that there is nothing yet."""
        self.answer({"siblings": [], "id": "owner/name", "sha": "1"})

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Inside, huggingface_hub asks this server, and somebody is logged in."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with monkeypatch.context() as changed:
        changed.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        changed.setenv("HF_TOKEN", "hf_mine")
        yield server
    server.shutdown()
    server.server_close()
    thread.join(30)
    assert not thread.is_alive()
