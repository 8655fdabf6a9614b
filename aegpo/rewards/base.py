"""What every reward answers to: images and their prompts in, one number per image out."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows


class Scores(NamedTuple):
    """What a reward said of N images.

    Attributes:
        total: The score of each image, NaN where it is missing, shape (N,).
        parts: Scores by component, each of shape (N,); empty unless the reward is a composite.
    """

    total: Tensor
    parts: dict[str, Tensor]

    def over_ranks(self) -> tuple[Scores, slice]:
        """The scores of all ranks' images in rank order, and where this rank's own lie in them."""
        columns, own = all_gather_rows(torch.stack([self.total, *self.parts.values()], dim=1))
        total, *parts = columns.unbind(1)
        return Scores(total, dict(zip(self.parts, parts, strict=True))), own

    @staticmethod
    def cat(chunks: Sequence[Scores]) -> Scores:
        """The scores of several chunks of images, one after another; they have the same parts."""
        return Scores(
            torch.cat([chunk.total for chunk in chunks]),
            {name: torch.cat([chunk.parts[name] for chunk in chunks]) for name in chunks[0].parts},
        )


class Reward(abc.ABC):
    """Scores images against the prompts they were made from; higher is better.

    A subclass implements `__call__` and, where the defaults do not hold, overrides the attributes.
    The score of an image depends on that image, its prompt and its metadata only, never on the rest
    of the batch; a `groupwise` reward also looks at the other images of the same prompt.
    """

    name: str
    """Short identifier for logs; the class name in snake case ("shapes_match") unless given."""

    range: tuple[float, float] | None = None
    """Lowest and highest possible score, or None where the score has no bounds."""

    deterministic: bool = True
    """Whether the same image and prompt always score the same."""

    time_limit: float | None = None
    """Longest time that a call may take, in seconds per image; None for any. The module's
    `reward_time_limit` sets it."""

    groupwise: bool = False
    """Whether a score depends on the other images of the same prompt; see `GroupReward`."""

    part_names: Sequence[str] = ()
    """Names of the components that `with_parts` tells apart; empty unless it is a composite."""

    part_weights: Mapping[str, float] = MappingProxyType({})
    """Weight of each component that counts; empty unless the reward is a composite."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def setup(self, device: torch.device) -> None:
        """Prepare for scoring: load weights, move to the device. Called once, before training.

        Args:
            device: Where the images will be.
        """
        del device  # most rewards have nothing to prepare

    @abc.abstractmethod
    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score images.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts, the prompt of each image.
            metadata: N dicts, the dataset's metadata of each prompt.

        Returns:
            (N,) float32 scores; NaN marks an image that could not be scored. A list or an array of
            N numbers, None for a missing one, is taken too, and a tuple of any of these and
            whatever else.
        """

    def with_parts(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Scores:
        """Score images by component too; a composite overrides it.

        Args:
            images: (N, 3, H, W) in [0, 1].
            prompts: N texts, the prompt of each image.
            metadata: N dicts, the dataset's metadata of each prompt.

        Returns:
            What `__call__` returns, and its components under `part_names`.
        """
        return Scores(self(images, prompts, metadata), {})
