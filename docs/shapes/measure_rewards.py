"""Measures the two Shapes rewards: the judge's bounds, and how the dense reward ranks beside it.

python docs/shapes/measure_rewards.py --samples 2000 > docs/shapes/rewards.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage, stats
from torch import Tensor

from aegpo.exploration import FixedSteps
from aegpo.noise import KeyedNoise
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rewards.shapes.judge import ShapesJudge
from aegpo.rewards.shapes.match import ShapesMatch
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE
from aegpo.shapes.prompts import CATEGORIES, Scene, near_misses
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split


def blur(images: Tensor, sigma: float = 0.7) -> Tensor:
    """Gaussian blur; sigma in pixels."""
    blurred = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(blurred)


def noise(images: Tensor, deviation: float = 0.05) -> Tensor:
    """Gaussian pixel noise."""
    drawn = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    return (images + deviation * torch.from_numpy(drawn)).clamp(0, 1)


def shift(images: Tensor) -> Tensor:
    """Half a pixel down and right, as a resampled anti-aliased picture is."""
    moved = ndimage.shift(images.numpy(), (0, 0, 0.5, 0.5), order=1, mode="nearest")
    return torch.from_numpy(moved)


def judge_table(samples: int) -> None:
    """Print the judge's mean on truth, corrupted truth, other prompts and near misses."""
    judge, rng = ShapesJudge(), np.random.default_rng(0)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "truth": lambda images: images,
        "blur .7 px": blur,
        "noise .05": noise,
        "half-pixel shift": shift,
    }
    misses = ("color", "shape", "count", "relation")
    print("| category |", " | ".join([*changes, "random other prompt", *misses]), "|")
    print("|", " | ".join(["---"] * (2 + len(changes) + len(misses))), "|")
    for category in CATEGORIES:
        pool = [scene for scene in split("train") if scene.category == category]
        scenes = [pool[i] for i in rng.integers(len(pool), size=samples)]
        others = [pool[i] for i in rng.integers(len(pool), size=samples)]
        images = render_batch(scenes, seed=1)

        def score(images: Tensor, scenes: list[Scene]) -> float:
            texts = [scene.text for scene in scenes]
            return float(judge(images, texts, [{}] * len(texts)).mean())

        cells = [score(change(images), scenes) for change in changes.values()]
        different = [row for row in range(samples) if others[row] != scenes[row]]
        cells.append(score(images[different], [others[row] for row in different]))
        near = [near_misses(scene) for scene in scenes]
        row = [f"{cell:.3f}" for cell in cells]
        for miss in misses:
            key = next((name for name in near[0] if miss in name.replace("colour", "color")), None)
            row.append(f"{score(images, [n[key] for n in near]):.3f}" if key else "–")
        print("|", " | ".join([category, *row]), "|")


def correlation_table(groups: int, images: int) -> None:
    """Print Spearman's correlation of match and judge on the base's own samples."""
    policy = StableDiffusion3(
        "shapes", sigma_spacing="uniform", max_sequence_length=0, max_batch=256
    )
    print("\n| category | across images | inside groups (mean) | groups without spread |")
    print("| --- | --- | --- | --- |")
    for category in CATEGORIES:
        pool = [scene.text for scene in split("train") if scene.category == category]
        texts = [pool[i * len(pool) // groups] for i in range(min(groups, len(pool)))]
        index, noise_keys = torch.arange(len(texts)), KeyedNoise(0)
        schedule = FixedSteps([0, 1, 2, 3])(None, noise_keys, index, 10)
        sizes = torch.full((len(texts),), images)
        cond = policy.encode(texts)
        tree = rollout(policy, FlowSDE(), cond, schedule, sizes, noise_keys, index)
        assert tree.images is not None
        prompts = [texts[row] for row in tree.row.tolist()]
        match = ShapesMatch()(tree.images, prompts, [{}] * len(prompts)).numpy()
        judge = ShapesJudge()(tree.images, prompts, [{}] * len(prompts)).numpy()
        across = stats.spearmanr(match, judge).statistic
        inside, flat = [], 0
        for row in range(len(texts)):
            own = (tree.row == row).numpy()
            flat += int(np.ptp(match[own]) == 0)
            if np.ptp(judge[own]) > 0 and np.ptp(match[own]) > 0:
                inside.append(stats.spearmanr(match[own], judge[own]).statistic)
        print(f"| {category} | {across:.2f} | {np.mean(inside):.2f} | {flat} of {len(texts)} |")


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000, help="renders per category")
    parser.add_argument("--groups", type=int, default=24, help="prompts per category")
    parser.add_argument("--images", type=int, default=12, help="images per prompt")
    arguments = parser.parse_args()
    print("# The two Shapes rewards, measured\n")
    print(f"`ShapesJudge`, mean over {arguments.samples} renders a category:\n")
    judge_table(arguments.samples)
    print(
        f"\n`ShapesMatch` beside `ShapesJudge` on the base's samples ({arguments.images} images a "
        "prompt, Flow-SDE on steps 0 to 3 of 10), Spearman's rank correlation:"
    )
    correlation_table(arguments.groups, arguments.images)


if __name__ == "__main__":
    main()
