"""Scores a pipeline folder on the Shapes world, and draws a grid of its samples.

    python docs/base/evaluate.py aegpo/shapes/base --grid docs/base/samples.png

Noise is fixed by the seed: two folders see the same prompts and the same starting noise.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from diffusers.utils import logging
from matplotlib import pyplot as plt
from torch import Tensor

from aegpo.rewards.base import Reward
from aegpo.rewards.shapes.judge import ShapesJudge
from aegpo.shapes.pipeline import BASE, load_pipeline
from aegpo.shapes.prompts import CATEGORIES, Scene
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import SPLITS, split


def by_category(scores: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Means of ``scores`` ``(n,)`` over all images, over each category, and over the categories."""
    means = {}
    for category in CATEGORIES:
        rows = [row for row, scene in enumerate(scenes) if scene.category == category]
        if rows:
            means[category] = scores[rows].mean().item()
    balanced = sum(means.values()) / len(means)
    return {"all": scores.mean().item(), **means, "mean of categories": balanced}


def main() -> None:
    """Prints one JSON line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=str(BASE), help="pipeline folder")
    parser.add_argument("--splits", nargs="+", default=["heldout"], choices=SPLITS)
    parser.add_argument("--images", type=int, default=512, help="images for each split")
    parser.add_argument("--steps", type=int, default=10, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense", action="store_true", help="score with ShapesMatch too")
    parser.add_argument("--truth", action="store_true", help="score autoencoded renders instead")
    parser.add_argument("--grid", help="PNG to draw 64 samples into")
    arguments = parser.parse_args()

    logging.disable_progress_bar()
    pipeline = load_pipeline(arguments.folder)
    pipeline.set_progress_bar_config(disable=True)
    rewards: dict[str, Reward] = {"judge": ShapesJudge()}
    if arguments.dense:
        from aegpo.rewards.shapes.match import ShapesMatch

        rewards["match"] = ShapesMatch()
    # Linear from 1 to 1/T; the scheduler appends the final 0.
    sigmas = np.linspace(1.0, 1.0 / arguments.steps, arguments.steps).tolist()
    for name in arguments.splits:
        # A stride coprime to the split's size spreads any number of images over all categories.
        choices = split(name)
        scenes = [choices[row * 37 % len(choices)] for row in range(arguments.images)]
        texts = [scene.text for scene in scenes]
        if arguments.truth:
            truth = 2.0 * render_batch(scenes, arguments.seed) - 1.0
            with torch.no_grad():
                latents = pipeline.vae.encode(truth).latent_dist.mode()
                images = ((pipeline.vae.decode(latents).sample + 1.0) / 2.0).clamp(0, 1)
        else:
            images = torch.cat(
                [
                    pipeline(
                        texts[start : start + 128],
                        num_inference_steps=arguments.steps,
                        sigmas=sigmas,
                        guidance_scale=arguments.guidance,
                        max_sequence_length=0,
                        generator=torch.Generator().manual_seed(arguments.seed + start),
                        output_type="pt",
                    ).images
                    for start in range(0, len(texts), 128)
                ]
            )
        for reward_name, reward in rewards.items():
            scores = reward(images, texts, [{"category": scene.category} for scene in scenes])
            means = {k: round(v, 3) for k, v in by_category(scores, scenes).items()}
            print(json.dumps({"split": name, "reward": reward_name, **means}))
        if arguments.grid:
            scores = rewards["judge"](images[:64], texts[:64], [{}] * 64)
            figure, axes = plt.subplots(8, 8, figsize=(14, 15))
            for axis, image, text, score in zip(axes.flat, images, texts, scores, strict=False):
                axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_title(f"{text}\n{score:.2f}", fontsize=6)
                axis.axis("off")
            figure.tight_layout(pad=0.4)
            figure.savefig(arguments.grid, dpi=80)
            plt.close(figure)


if __name__ == "__main__":
    main()
