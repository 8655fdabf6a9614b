"""A service of a reward in plain Python: for a scorer whose libraries do not go with ours.

Run by `python examples/reward_service.py 8190` in the scorer's own environment, which needs Pillow
and NumPy; put your model into `score`. docs/rewards_service.md has the protocol. Then, elsewhere:

    aegpo check-reward aegpo.rewards.RemoteReward endpoints=http://127.0.0.1:8190
"""

from __future__ import annotations

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

ABOUT = {"protocol": 1, "name": "redness", "digest": "redness of 2026-11-30", "range": [-1, 1]}
"""`digest` is any text that changes when the scores do."""
ONE_AT_A_TIME = Lock()  # of a model on one GPU


def score(images: list[Any], prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Score uint8 images (H, W, 3): here by how much redder than green they are."""
    return [float((image[..., 0] / 255 - image[..., 1] / 255).mean()) for image in images]


class Service(BaseHTTPRequestHandler):
    """Says what it is, and scores what it is sent."""

    def do_GET(self) -> None:
        """Answer `/health` and `/reward`."""
        self._reply(200, ABOUT if self.path == "/reward" else {"status": "ok"})

    def do_POST(self) -> None:
        """Answer `/score`."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["digest"] not in (None, ABOUT["digest"]):
            return self._reply(409, {"error": f"this service has {ABOUT['digest']!r}"})
        files = [io.BytesIO(base64.b64decode(text)) for text in asked["images"]]
        images = [np.array(Image.open(file, formats=["PNG"])) for file in files]
        with ONE_AT_A_TIME:
            self._reply(200, {"scores": score(images, asked["prompts"], asked["metadata"])})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
