"""A reward that another process computes: with its own environment, on its own GPU, or several."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegpo.distributed import world
from aegpo.rewards.base import Reward, Scores
from aegpo.rewards.group import rows_by_prompt
from aegpo.rewards.service.asking import (
    Asking,
    NoAnswer,
    Patience,
    Silent,
    fetched,
    run_to_its_end,
)
from aegpo.rewards.service.description import Description, read_description
from aegpo.rewards.service.endpoints import Endpoint, endpoints_at
from aegpo.rewards.service.keys import bearer, key_from
from aegpo.rewards.service.wire import (
    METADATA_PATH,
    UnusableMessage,
    decode_answer,
    encode_question,
    said,
)
from aegpo.utilities.images import to_pixels


class RemoteReward(Reward):
    """Asks services that `aegpo serve-reward` runs, and gives their scores as its own.

    Images are rounded to the 256 levels of a PNG: a served reward scores what the same reward here
    would score of the rounded image. A call is cut into requests of `batch` images whatever the
    number of endpoints, so that no score depends on it; each answer is put in its place, once,
    however often its request had to be made. An image whose request fails for good, and one with
    values that are not finite, is missing (NaN); `failures` counts why.

    Args:
        endpoints: Addresses, such as ``http://127.0.0.1:8190``; requests are spread over them, and
            one that fails is stood in for by the others. All must serve the same configuration.
        name: Name in logs and tables.
        api_key_env: Name of the environment variable that holds the key; null for none. The key
            itself never stands in a configuration.
        batch: Images in a request, at most; a groupwise reward gets whole groups.
        concurrency: Requests under way at a time, for each endpoint.
        timeout: Seconds until a request is given up and made again, here or there.
        retries: Further tries of a request at each endpoint, after waits of .5, 1, 2, 4 ... 30 s;
            seven take about a minute, in which a service can be started again.
        patience: Seconds that a request may be put off by endpoints whose queues are full.
        groupwise: Whether the served reward looks at the other images of a prompt.
        parts: Weight of each component of a served `WeightedSum`, 0 for one that is only watched;
            null where there are none.
        digest: Fingerprint of the configuration that must be served, as ``serve-reward`` prints
            it; null for the one that is found first.

    Raises:
        ValueError: If an argument cannot be, or the environment variable is not set.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        endpoints: list[str] | str,
        name: str = "remote",
        api_key_env: str | None = None,
        batch: int = 16,
        concurrency: int = 2,
        timeout: float = 60.0,
        retries: int = 7,
        patience: float = 600.0,
        groupwise: bool = False,
        parts: dict[str, float] | None = None,
        digest: str | None = None,
    ) -> None:
        self.endpoints = endpoints_at([endpoints] if isinstance(endpoints, str) else endpoints)
        if min(batch, concurrency) < 1 or retries < 0:
            raise ValueError(
                f"batch={batch} and concurrency={concurrency} must be at least 1, and "
                f"retries={retries} at least 0"
            )
        if not (timeout > 0 and patience >= 0):
            raise ValueError(
                f"timeout={timeout} must be above 0 and patience={patience} at least 0"
            )
        self.name = name
        self.groupwise = groupwise
        weights = {} if parts is None else parts
        if not all(map(math.isfinite, weights.values())):
            raise ValueError(f"parts={weights} must be finite weights")
        self.part_names = list(weights)
        self.part_weights = {part: weight for part, weight in weights.items() if weight != 0}
        self.batch, self.concurrency = batch, concurrency
        self.patience = Patience(timeout, retries, patience)
        self.digest = digest
        self.api_key_env = api_key_env
        self.failures: Counter[str] = Counter()
        """How many images were not scored so far, by reason."""
        self._headers()  # a missing key is told before anything is loaded

    def setup(self, device: torch.device) -> None:
        """Ask what is served, and refuse what this configuration does not describe.

        Args:
            device: Not used; the reward computes elsewhere.

        Raises:
            ConnectionError: If no endpoint answers, or one refuses the key.
            ValueError: If endpoints serve different rewards, or another than is configured.
        """
        del device
        told = run_to_its_end(self._told())
        served = {place: one for place, one in told.items() if isinstance(one, Description)}
        silent = [f"{place} {why}" for place, why in told.items() if isinstance(why, str)]
        if not served:
            raise ConnectionError(
                f"reward {self.name!r}: {'; '.join(silent)}; start it with `aegpo serve-reward`, "
                "or mend endpoints"
            )
        if silent:
            warnings.warn(
                f"reward {self.name!r}: {'; '.join(silent)}; it goes on with "
                f"{', '.join(map(str, served))}, and asks the others again with each request",
                stacklevel=2,
            )
        first = next(iter(served.values()))
        self._refuse(served, self.digest or first.digest)
        self.digest = self.digest or first.digest
        self.range, self.deterministic = first.range, first.deterministic

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """The scores alone; see `with_parts`."""
        return self.with_parts(images, prompts, metadata).total

    def with_parts(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Scores:
        """Have images scored.

        Args:
            images: (N, 3, H, W) in [0, 1]; values beyond are clipped, all are rounded to 8 bits.
            prompts: N texts.
            metadata: N dicts of plain values.

        Returns:
            (N,) fp32 on the images' device, NaN where no score could be had, and the parts.

        Raises:
            UnusableMessage: If metadata cannot be sent as JSON.
        """
        pixels, finite = to_pixels(images)
        requests = self._requests(prompts, finite)
        table = torch.full((1 + len(self.part_names), len(prompts)), math.nan, device="cpu")
        reasons: Counter[str] = Counter()
        if (unsent := len(prompts) - sum(map(len, requests))) > 0:
            reasons["an image with values that are not finite"] = unsent
        warned: dict[str, None] = {}

        async def ask(asking: Asking, session: Any, number: int, room: asyncio.Semaphore) -> None:
            rows = requests[number]
            texts, about = [prompts[row] for row in rows], [metadata[row] for row in rows]
            async with room:
                body = await asyncio.to_thread(
                    encode_question, pixels[rows], texts, about, self.digest
                )
                try:
                    answer, endpoint = await asking.settled(
                        session,
                        number,
                        body,
                        lambda reply: decode_answer(reply, len(rows), self.part_names),
                    )
                except NoAnswer as error:
                    reasons[str(error)] += len(rows)
                    return
            columns = [answer.scores, *(answer.parts[name] for name in self.part_names)]
            table[:, rows] = torch.tensor(columns, dtype=torch.float32, device="cpu")
            warned.update({f"{endpoint}: {text}": None for text in answer.warnings})

        async def all_of_them() -> None:
            asking = Asking(self.endpoints, self._headers(), self.patience, world()[1])
            room = asyncio.Semaphore(self.concurrency * len(self.endpoints))
            async with asking.session() as session:
                tasks = [
                    asyncio.ensure_future(ask(asking, session, number, room))
                    for number in range(len(requests))
                ]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()

        if requests:
            run_to_its_end(all_of_them())
        self._tell(reasons, warned, len(prompts))
        total, *parts = table.to(images.device).unbind(0)
        return Scores(total, dict(zip(self.part_names, parts, strict=True)))

    def _requests(self, prompts: Sequence[str], finite: Sequence[bool]) -> list[list[int]]:
        """The rows of each request: as many as go into one, or groups as long as they fit."""
        if not self.groupwise:
            sent = [row for row, whole in enumerate(finite) if whole]
            return [sent[at : at + self.batch] for at in range(0, len(sent), self.batch)]
        requests: list[list[int]] = []
        for rows in rows_by_prompt(prompts).values():
            if not all(finite[row] for row in rows):  # what the others are worth depends on it
                continue
            if requests and len(requests[-1]) + len(rows) <= self.batch:
                requests[-1] += rows
            else:
                requests.append(list(rows))
        return requests

    async def _told(self) -> dict[Endpoint, Description | str]:
        """What each endpoint says that it serves, or why it says nothing."""
        asking = Asking(self.endpoints, self._headers(), self.patience)
        async with asking.session() as session:

            async def ask(endpoint: Endpoint) -> Description | str:
                try:
                    status, _, body = await fetched(session, endpoint, METADATA_PATH)
                    if status == 200:
                        return read_description(body)
                except (Silent, UnusableMessage) as error:
                    return str(error)
                text = f"answers {status}: {said(body)}"
                if status in (401, 403):  # of all endpoints, or of the one that has another key
                    raise ConnectionError(
                        f"reward {self.name!r}: {endpoint} {text}; check api_key_env"
                    )
                return text

            found = await asyncio.gather(*map(ask, self.endpoints))
        return dict(zip(self.endpoints, found, strict=True))

    def _refuse(self, served: Mapping[Endpoint, Description], digest: str) -> None:
        """Refuse services that are not what is asked for, or not the same."""
        parts = {name: self.part_weights.get(name, 0.0) for name in self.part_names}
        for place, one in served.items():
            if one.digest != digest:
                wanted = "digest" if self.digest else "another endpoint"
                raise ValueError(
                    f"reward {self.name!r}: {place} serves configuration {one.digest} of "
                    f"{one.name!r}, but {wanted} says {digest}; serve the same everywhere"
                )
            differs = one.differs(self.groupwise, parts, self.batch)
            if differs is not None:
                raise ValueError(f"reward {self.name!r}: {place} {differs}")

    def _tell(self, reasons: Counter[str], warned: Mapping[str, None], count: int) -> None:
        """Warn of what was missing, and of what the other side warned of."""
        for text in list(warned)[:3]:
            warnings.warn(f"reward {self.name!r} at {text}", stacklevel=3)
        if reasons:
            self.failures += reasons
            told = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
            warnings.warn(
                f"reward {self.name!r}: {reasons.total()} of {count} images not scored: {told}",
                stacklevel=3,
            )

    def _headers(self) -> dict[str, str]:
        return {} if self.api_key_env is None else bearer(key_from(self.api_key_env))
