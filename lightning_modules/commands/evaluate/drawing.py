"""Draws and scores a suite part by part; a part is done when its file is there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegpo.distributed import world
from aegpo.image_size import Resolution
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.rewards.group import group_diversity
from aegpo.rewards.guarded import guarded_scores
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.samplers import Sampler
from aegpo.utilities.files import remove_leftovers, replacing
from aegpo.utilities.images import save_picture
from aegpo.utilities.tables import finite

DIVERSITY = "diversity"
"""Score of a prompt: root mean square distance of its images from their mean, in [0, 1]."""


@dataclass(frozen=True)
class Drawing:
    """How the images of an evaluation are drawn.

    Args:
        folder: Where images and scores go.
        images_per_prompt: Images of each prompt, k.
        num_steps: Denoising steps.
        noise: Where images start, the same for every model.
        sampler: What takes the steps.
        resolution: Pixels of a square's side, or (height, width); None for the policy's own.
        prompts_at_once: Prompts of one part. Parts are the same on any number of processes and
            after a kill, so that the images are the same to the bit.
    """

    folder: Path
    images_per_prompt: int
    num_steps: int
    noise: KeyedNoise
    sampler: Sampler | None
    resolution: Resolution | None
    prompts_at_once: int

    def draw(
        self, name: str, policy: Policy, batch: PromptBatch, rewards: Sequence[Reward]
    ) -> None:
        """Draw and score this process's parts of a suite, those that are not done.

        Args:
            name: The model.
            policy: It, ready to draw.
            batch: All prompts.
            rewards: What scores the images.
        """
        size, rank = world()
        (self.folder / "images" / name).mkdir(parents=True, exist_ok=True)
        context: AbstractContextManager[Any] = nullcontext()
        if self.resolution is not None:
            context = policy.at_resolution(self.resolution)
        with context:
            for part, rows in list(enumerate(self._parts(len(batch))))[rank::size]:
                file = self.scores_file(name, part)
                if not file.is_file():
                    remove_leftovers(file)
                    record = self._part(name, policy, batch.select(rows), rewards)
                    with replacing(file) as partial:
                        partial.write_text(json.dumps(finite(record), ensure_ascii=False))

    def scores_file(self, name: str, part: int) -> Path:
        """Where the scores of a part are."""
        return self.folder / "scores" / name / f"{part:05d}.json"

    def image_file(self, name: str, index: int, image: int) -> Path:
        """Where an image is."""
        return self.folder / "images" / name / f"{index:05d}_{image}.png"

    def images_of(self, name: str, prompts: int) -> list[Path]:
        """Where all images of a model are, prompt by prompt."""
        images = range(self.images_per_prompt)
        return [self.image_file(name, row, image) for row in range(prompts) for image in images]

    def read(self, name: str, prompts: int) -> dict[str, Any]:
        """Put the parts of a model together.

        Args:
            name: The model.
            prompts: How many prompts there are.

        Returns:
            `scores`, for each score the mean of each prompt; `missing`, how many images each is
            missing for; `size`, height and width of the images.
        """
        parts = range(len(self._parts(prompts)))
        records = [
            json.loads(self.scores_file(name, part).read_text(encoding="utf-8")) for part in parts
        ]
        values: dict[str, list[list[float | None]]] = {}
        for record in records:
            for score, rows in record["scores"].items():
                values.setdefault(score, []).extend(rows)
        return {
            "scores": {score: [_mean(row) for row in rows] for score, rows in values.items()},
            "missing": {
                score: sum(value is None for row in rows for value in row)
                for score, rows in values.items()
            },
            "size": records[0]["size"],
        }

    def _parts(self, prompts: int) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = torch.arange(prompts, device="cpu").split(self.prompts_at_once)
        return parts

    def _part(
        self, name: str, policy: Policy, part: PromptBatch, rewards: Sequence[Reward]
    ) -> dict[str, Any]:
        count = self.images_per_prompt
        tree = deterministic_rollout(
            policy, part.prompts, part.index, self.num_steps, self.noise, count, self.sampler
        )
        images = tree.images
        assert images is not None
        scored = part.repeat(tree.row.cpu())
        scores: dict[str, list[list[float]]] = {}
        for reward in rewards:
            given = guarded_scores(reward, images, scored.prompts, scored.metadata)
            for score, values in _with_parts(reward, given.total, given.parts).items():
                scores[score] = values.reshape(len(part), count).tolist()
        if count > 1:
            spread = group_diversity(images.float(), tree.row)
            scores[DIVERSITY] = [[value] for value in spread.tolist()]
        for number, picture in enumerate(images):
            row, image = divmod(number, count)
            index = int(part.index[row])
            about = {"prompt": part.prompts[row], "model": name, "image": str(image)}
            save_picture(picture, self.image_file(name, index, image), about)
        return {"size": list(images.shape[-2:]), "scores": scores}


def _with_parts(reward: Reward, total: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A reward's scores under its name, and those of its components under both names."""
    return {reward.name: total} | {
        f"{reward.name}.{part}": values for part, values in parts.items()
    }


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
