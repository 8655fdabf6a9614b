"""A reward of one's own: a class with one method, tried out before a run depends on it.

Run by `python examples/own_reward.py`. Two commands take it by name; in this folder:

    aegpo check-reward own_reward.NamedColor
    aegpo fit --config ../configs/shapes.yaml --model.reward own_reward.NamedColor
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegpo.rewards import Reward
from aegpo.rewards.checks.check import check_reward
from aegpo.rewards.checks.samples import shapes_samples
from aegpo.shapes.prompts import COLORS


class NamedColor(Reward):
    """The share of an image's colored pixels that have a color which the prompt names.

    Args:
        width: Squared RGB distance up to which a pixel counts as white paper.
    """

    range = (0.0, 1.0)

    def __init__(self, width: float = 0.2) -> None:
        self.width = width

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        """Score images (N, 3, H, W) in [0, 1]; fp32, shape (N,)."""
        colors = images.new_tensor(list(COLORS.values()))[:, :, None, None]  # (C, 3, 1, 1)
        nearest = (images[:, None] - colors).square().sum(dim=2).argmin(dim=1)  # (N, H, W)
        colored = (images - 1).square().sum(dim=1) > self.width
        named = torch.tensor([[name in prompt for name in COLORS] for prompt in prompts])
        right = named.to(images.device).gather(1, nearest.flatten(1)) & colored.flatten(1)
        share = right.sum(dim=1) / colored.sum(dim=(1, 2)).clamp(min=1)
        return share.where(images.isfinite().all(dim=(1, 2, 3)), torch.nan)  # NaN: not scored


def main() -> None:
    """Score four scenes and their near misses, then check what training takes for granted."""
    samples, reward = shapes_samples(num_prompts=4), NamedColor()
    scores = reward(samples.images, samples.prompts, samples.metadata)
    for rows in samples.groups:
        right, *wrong = (f"{value:.2f}" for value in scores[rows].tolist())
        print(f"{samples.prompts[rows[0]]}: {right}, where one thing is wrong {', '.join(wrong)}")
    for finding in check_reward(reward, samples, torch.device("cpu")):
        print(f"{finding.status:<8} {finding.name:<26} {finding.detail}")


if __name__ == "__main__":
    main()
