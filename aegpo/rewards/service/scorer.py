"""The one thread of a service that scores, one request after another."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.guarded import guarded_scores, telling
from aegpo.rewards.service.wire import Question
from aegpo.utilities.halving import halving

MOST_WARNINGS, LONGEST_WARNING = 5, 300
"""How many warnings are sent with a reply, and of how many characters each."""

Scored = tuple[Scores, list[str]]
"""Scores, and what `guarded_scores` would have warned of."""


@dataclass(eq=False)
class _Job:
    question: Question
    answer: Future[Scored] = field(default_factory=Future)


class Scorer:
    """Scores requests in the order in which they come, each as one batch.

    Requests are never put together, so that a score does not depend on who else asks. A request
    that nobody waits for any more is left out. Faults of the reward are `guarded_scores`': missing
    scores and a warning.

    Args:
        reward: The reward, set up.
        device: Where it is given the images.
    """

    def __init__(self, reward: Reward, device: torch.device) -> None:
        self.reward, self.device = reward, device
        self.requests = self.images = self.missing = 0
        """Scored so far."""
        self.seconds = 1.0
        """What the last request took."""
        self.busy = False
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        # A daemon: the process may end while a reward hangs.
        threading.Thread(target=self._work, name="scorer", daemon=True).start()

    def submit(self, question: Question) -> Future[Scored]:
        """Have a request scored.

        Args:
            question: The request.

        Returns:
            What becomes its scores; cancelling it takes the request back unless it has begun.
        """
        job = _Job(question)
        self._jobs.put(job)
        return job.answer

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if not job.answer.set_running_or_notify_cancel():
                continue
            self.busy = True
            began = time.monotonic()
            try:
                scored = self._score(job.question)
            except BaseException as error:  # memory ran out; raised where it is waited for
                job.answer.set_exception(error)
            else:
                self.requests += 1
                self.images += len(job.question.prompts)
                self.missing += int(scored[0].total.isnan().sum())
                job.answer.set_result(scored)
            self.seconds = time.monotonic() - began
            self.busy = False

    def _score(self, question: Question) -> Scored:
        """Score a request whole; where memory runs out, in halves, unless groups need it whole."""
        images, count = question.images.to(self.device), len(question.prompts)

        def run(size: int) -> Scores:
            chunks = [slice(first, first + size) for first in range(0, count, size)]
            return Scores.cat(
                [
                    guarded_scores(
                        self.reward, images[rows], question.prompts[rows], question.metadata[rows]
                    )
                    for rows in chunks
                ]
            )

        told: list[str] = []
        with telling(told.append):
            scores, _ = halving(
                run, count, count, setting="images in a request", possible=not self.reward.groupwise
            )
        lines = dict.fromkeys(" ".join(text.split()) for text in told)
        return scores, [line[:LONGEST_WARNING] for line in lines][:MOST_WARNINGS]
