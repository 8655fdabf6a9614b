"""The judge against a server of our own: what it is asked, and what becomes of each answer."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aegpo.rewards.judge_answer import Read, read_score
from aegpo.rewards.vlm_judge import VLMJudge

CPU = torch.device("cpu")


class FakeServer(ThreadingHTTPServer):
    """Answers by the text of the prompt, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.pending = self.most_pending = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        if self.headers.get("Authorization") == "Bearer wrong":
            self.reply(401, {"error": {"message": "bad key"}})
        else:
            self.reply(200, {"object": "list", "data": [{"id": "judge", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"][0]["text"]
        with self.server.lock:
            earlier = sum(
                text == other["messages"][0]["content"][0]["text"] for other in self.asked
            )
            self.asked.append(body)
            self.server.pending += 1
            self.server.most_pending = max(self.server.most_pending, self.server.pending)
        if "slow" in text:
            self.server.ended.wait(60)
        elif "late" in text:
            time.sleep(0.3)
        with self.server.lock:
            self.server.pending -= 1
        if "broken" in text or ("moody" in text and not earlier):
            self.reply(500, {"error": {"message": "out of memory"}}, {"retry-after-ms": "1"})
        elif "refused" in text:
            self.reply(400, {"error": {"message": "no such image"}})
        elif "no protocol" in text:
            self.reply(200, {"hello": "world"})
        else:
            answer = text.split("answer:")[1]
            self.reply(200, {"choices": [{"index": 0, "message": {"content": answer}}]})

    @property
    def asked(self) -> list[dict[str, Any]]:
        return self.server.asked

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        try:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the client has given up

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    fake.ended.set()
    fake.shutdown()
    fake.server_close()
    thread.join(30)
    assert not thread.is_alive()


def connect(server: FakeServer, **arguments: Any) -> VLMJudge:
    arguments = {"timeout": 30.0, "template": "{prompt}", "retries": 1, **arguments}
    arguments = {"model": "judge", **arguments}
    judge = VLMJudge(server.url, **arguments)
    judge.setup(CPU)
    return judge


def score(judge: VLMJudge, *prompts: str) -> list[float]:
    images = torch.rand(len(prompts), 3, 4, 6, generator=torch.Generator().manual_seed(0))
    scores = judge(images, list(prompts), [{}] * len(prompts))
    assert scores.dtype == torch.float32 and scores.shape == (len(prompts),)
    return scores.tolist()


def test_the_judge_gets_the_question_and_the_very_image(server: FakeServer) -> None:
    images = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    judge = connect(
        server, template='{"rate": "{prompt}", "from": {low}, "to": {high}} answer: score 3'
    )
    assert judge(images, ["a {high} hat"], [{}]).tolist() == [0.5]  # the middle of 1 to 5
    (asked,) = server.asked
    question, image = asked["messages"][0]["content"]
    assert question["text"].startswith('{"rate": "a {high} hat", "from": 1, "to": 5}')
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("judge", 0, 64)
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(sent, (images[0] * 255).round().byte().permute(1, 2, 0).numpy())

    connect(server, image_size=6)(images, ["answer: score 1"], [{}])
    data = server.asked[-1]["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (6, 4)


def test_the_default_template_asks_for_what_is_read() -> None:
    judge = VLMJudge("http://localhost:1/v1", "m", scale=(0, 10))
    question = judge._question("two cats")
    assert "Text: two cats" in question and "Final Score: <a number from 0 to 10>" in question
    assert read_score("Final Score: 7", judge.scale) == Read(7.0)
    assert read_score(question, judge.scale) is None  # a judge that repeats it gives no score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Final Score: 5", 1),
        ("**Score** = 3.5", 0.625),
        ('{"score": 1}', 0),
        ("Final Score (1-5): 4", 0.75),
        ("Final Score: 4. Alignment score 80%", 0.75),
        ("At first a score: 2, but the hat is green.\nFinal Score: **4/5**", 0.75),
    ],
)
def test_numbers_in_many_shapes(server: FakeServer, answer: str, expected: float) -> None:
    assert score(connect(server), f"answer: {answer}") == pytest.approx([expected])


def test_a_pattern_and_a_scale_of_ones_own(server: FakeServer) -> None:
    judge = connect(server, pattern=r"<(\d+)>", scale=(0, 100))
    assert score(judge, "answer: score 3 <25>") == [0.25]


def test_what_fails_is_missing_for_its_own_image_and_counted(server: FakeServer) -> None:
    judge = connect(server, timeout=5)
    prompts = ["answer: score 5", "answer: I like it", "broken", "answer: score 9", "refused"]
    prompts += ["no protocol", "answer: score 2"]
    with pytest.warns(UserWarning, match=r"vlm_judge: 5 of 7 images were not scored: 1 x "):
        scores = score(judge, *prompts)
    assert np.isnan(scores).tolist() == [False, True, True, True, True, True, False]
    assert (scores[0], scores[6]) == (1.0, 0.25)
    assert judge.failures.total() == 5
    told = "\n".join(judge.failures)
    for reason in ("without a number", "out of memory", "outside the scale of 1 to 5"):
        assert reason in told
    assert "no such image" in told and "outside the protocol" in told
    asked = [body["messages"][0]["content"][0]["text"] for body in server.asked]
    assert asked.count("broken") == 2 and asked.count("refused") == 1  # only one is worth a retry


def test_a_server_that_recovers_costs_no_score(server: FakeServer) -> None:
    judge = connect(server)
    assert score(judge, "moody answer: score 4") == [0.75]
    assert len(server.asked) == 2 and not judge.failures


def test_a_slow_answer_is_given_up(server: FakeServer) -> None:
    judge = connect(server, timeout=0.4, retries=0)
    began = time.monotonic()
    with pytest.warns(UserWarning, match="1 of 2 images .* APITimeoutError"):
        scores = score(judge, "slow answer: score 4", "answer: score 4")
    assert time.monotonic() - began < 30  # the server would take twice as long
    assert np.isnan(scores).tolist() == [True, False]


def test_requests_run_side_by_side_and_scores_keep_their_order(server: FakeServer) -> None:
    judge = connect(server, concurrency=4)
    numbers = [1, 5, 2, 4, 3, 1, 5, 2]
    # The first of every four is late, so that answers come back in another order.
    prompts = [f"{'late ' * (i % 4 == 0)}answer: score {n}" for i, n in enumerate(numbers)]
    assert score(judge, *prompts) == [(number - 1) / 4 for number in numbers]
    assert 1 < server.most_pending <= 4
    server.most_pending = 0
    assert score(connect(server, concurrency=1), *prompts[1:4]) == [1, 0.25, 0.75]
    assert server.most_pending == 1


def test_a_broken_image_is_not_sent(server: FakeServer) -> None:
    judge = connect(server)
    images = torch.full((2, 3, 4, 4), 0.5)
    images[0, 0, 0, 0] = float("nan")
    with pytest.warns(UserWarning, match="not finite"):
        scores = judge(images, ["answer: score 5"] * 2, [{}] * 2)
    assert scores.isnan().tolist() == [True, False] and len(server.asked) == 1


def test_the_key_comes_from_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("JUDGE_KEY", "sk-0123456789abcdef", "0123456789ABCDEF"):
        with pytest.raises(ValueError, match="names no environment variable that is set") as told:
            VLMJudge(server.url, "judge", api_key_env=given)
        assert given not in str(told.value)
    monkeypatch.setenv("JUDGE_KEY", "abc")
    judge = connect(server, api_key_env="JUDGE_KEY")
    assert server.keys == ["Bearer abc"]
    assert "abc" not in json.dumps({k: str(v) for k, v in vars(judge).items() if k[0] != "_"})
    monkeypatch.setenv("JUDGE_KEY", "wrong")
    with pytest.raises(ConnectionError, match=r"bad key.*check base_url and api_key_env"):
        connect(server, api_key_env="JUDGE_KEY")


def test_what_cannot_work_is_told_before_training(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="does not list model='other'; it has judge"):
        connect(server, model="other")
    with pytest.raises(RuntimeError, match="call setup"):
        score(VLMJudge(server.url, "judge"), "a")
    with pytest.raises(ConnectionError, match=r"the judge at http://\*\*\*@127.0.0.1:9/v1 cannot"):
        VLMJudge("http://me:hidden@127.0.0.1:9/v1", "judge").setup(torch.device("cpu"))
    with pytest.raises(ConnectionError, match="start the server"):
        VLMJudge("http://127.0.0.1:9/v1", "judge", retries=0).setup(CPU)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'aegpo\[vlm\]'"):
        VLMJudge(server.url, "judge").setup(CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"template": "Rate it."}, "no {prompt}"),
        ({"scale": (5, 1)}, "a lower and a higher"),
        ({"pattern": "score"}, "has 0 groups"),
        ({"pattern": "("}, "no regular expression"),
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        VLMJudge(**{"base_url": "http://localhost:1/v1", "model": "m", **arguments})
    assert "\n" not in str(refused.value)
