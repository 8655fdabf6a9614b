"""Measures the bundled CLIP as a reward: on rendered truth, on near misses, beside the judge.

python docs/shapes/measure_clip.py
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from aegpo.exploration import FixedSteps
from aegpo.noise import KeyedNoise
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rewards.base import Reward
from aegpo.rewards.learned.open_clip_similarity import OpenCLIPSimilarity
from aegpo.rewards.shapes.judge import ShapesJudge
from aegpo.rewards.shapes.match import ShapesMatch
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE
from aegpo.shapes.captions import exclusive
from aegpo.shapes.prompts import CATEGORIES, Scene, near_misses
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split


def scores(reward: Reward, images: Tensor, texts: list[str]) -> Tensor:
    """A reward's scores, without metadata, shape (n,)."""
    return reward(images, texts, [{}] * len(texts))


def retrieval(clip: OpenCLIPSimilarity, rounds: int) -> None:
    """Print how often a rendered picture finds its own among the held-out captions."""
    scenes = exclusive(split("heldout"))
    texts, num = [scene.text for scene in scenes], len(scenes)
    found: dict[str, list[bool]] = defaultdict(list)
    for seed in range(rounds):
        images = render_batch(scenes, seed=10_000 + seed)
        pairs = images.repeat_interleave(num, dim=0)
        best = scores(clip, pairs, texts * num).view(num, num).argmax(dim=1)
        for row, scene in enumerate(scenes):
            found[scene.category].append(bool(best[row] == row))
    print(f"\nTop-1 of {num} held-out captions, {rounds * num} renders:\n")
    print("| all |", " | ".join(CATEGORIES), "|")
    print("| --- " * (1 + len(CATEGORIES)) + "|")
    every = np.mean([hit for hits in found.values() for hit in hits])
    print(f"| {every:.3f} |", " | ".join(f"{np.mean(found[c]):.3f}" for c in CATEGORIES), "|")


def misses(clip: OpenCLIPSimilarity, rounds: int) -> None:
    """Print the scores of truth and of near misses on held-out renders."""
    scenes = [scene for _ in range(rounds) for scene in split("heldout")]
    images = render_batch(scenes, seed=20_000)
    truth = scores(clip, images, [scene.text for scene in scenes])
    rows: dict[str, list[int]] = defaultdict(list)
    wrong: dict[str, list[Scene]] = defaultdict(list)
    for row, scene in enumerate(scenes):
        for name, miss in near_misses(scene).items():
            rows[name].append(row)
            wrong[name].append(miss)
    print("\n| caption | truth | color | shape | count | relation | of a blank image |")
    print("| --- " * 7 + "|")
    wins, means = [], []
    for name in ("color", "shape", "count", "relation"):
        others = scores(clip, images[rows[name]], [scene.text for scene in wrong[name]])
        wins.append(f"{(truth[rows[name]] > others).float().mean():.3f}")
        means.append(f"{others.mean():.3f}")
    blank = scores(clip, torch.full_like(images, 0.985), [scene.text for scene in scenes])
    print(f"| mean score | {truth.mean():.3f} |", " | ".join(means), f"| {blank.mean():.3f} |")
    share = f"{(truth > blank).float().mean():.3f}"
    print("| truth scores higher | |", " | ".join(wins), f"| {share} |")


def beside_the_judge(clip: OpenCLIPSimilarity, prompts: int, images: int) -> None:
    """Print AUC and Spearman's correlation with the judge on the base's held-out samples."""
    policy = StableDiffusion3(
        "shapes", sigma_spacing="uniform", max_sequence_length=0, max_batch=256
    )
    choices = split("heldout")
    texts = [choices[row * 37 % len(choices)].text for row in range(prompts)]
    index, noise = torch.arange(prompts), KeyedNoise(0)
    schedule = FixedSteps([0, 1, 2, 3])(None, noise, index, 10)
    sizes = torch.full((prompts,), images)
    tree = rollout(policy, FlowSDE(), policy.encode(texts), schedule, sizes, noise, index)
    assert tree.images is not None
    asked = [texts[row] for row in tree.row.tolist()]
    judge = scores(ShapesJudge(), tree.images, asked).numpy()
    good = judge >= 0.9
    print(
        f"\n{len(asked)} samples of the base, {images} for each of {prompts} held-out prompts, "
        f"judge mean {judge.mean():.3f}, {good.sum()} of them at 0.9 or above:\n"
    )
    print("| reward | AUC, judge ≥ 0.9 | Spearman, across | inside prompts (mean) |")
    print("| --- | --- | --- | --- |")
    for reward in (clip, ShapesMatch()):
        values = scores(reward, tree.images, asked).numpy()
        test = stats.mannwhitneyu(values[good], values[~good])
        auc = test.statistic / (good.sum() * (~good).sum())
        inside = [
            stats.spearmanr(values[own], judge[own]).statistic
            for own in ((tree.row == row).numpy() for row in range(prompts))
            if np.ptp(judge[own]) > 0
        ]
        across = stats.spearmanr(values, judge).statistic
        print(f"| {reward.name} | {auc:.2f} | {across:.2f} | {np.mean(inside):.2f} |")


def main() -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes", help="folder of an open_clip model")
    parser.add_argument("--rounds", type=int, default=10, help="renders of each held-out scene")
    parser.add_argument("--prompts", type=int, default=32, help="held-out prompts for the base")
    parser.add_argument("--images", type=int, default=8, help="samples for each of them")
    arguments = parser.parse_args()
    clip = OpenCLIPSimilarity(arguments.model, batch_size=512)
    clip.setup(torch.device("cpu"))
    retrieval(clip, arguments.rounds)
    misses(clip, arguments.rounds)
    beside_the_judge(clip, arguments.prompts, arguments.images)


if __name__ == "__main__":
    main()
