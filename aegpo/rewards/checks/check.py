"""Does a reward keep its promises? What training takes for granted, tried out on a few images."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from aegpo.rewards.answers import as_scores
from aegpo.rewards.base import Reward
from aegpo.rewards.checks.changes import (
    ScoreComparison,
    describe_error,
    is_groupwise,
    score_samples,
)
from aegpo.rewards.checks.form import check_finite, check_form, check_range
from aegpo.rewards.checks.samples import RewardSamples
from aegpo.utilities.findings import Finding


def check_reward(
    reward: Reward, samples: RewardSamples, device: torch.device, tolerance: float = 0.01
) -> Iterator[Finding]:
    """Try a reward out, from its setup to broken input, with about nine calls for each image.

    Args:
        reward: The reward, not set up yet.
        samples: What it scores; images of at least two prompts say most.
        device: Where the images will be.
        tolerance: How far a score may move where it should not, for instance with the rest of its
            batch, in standard deviations of all scores.

    Yields:
        One finding after another; it ends early where nothing more can be learnt.
    """
    samples = replace(samples, images=samples.images.to(device))
    yield (finding := _check_setup(reward, samples, device))
    if finding.status == "failed":
        return
    given = copy.deepcopy(samples)
    random_state = torch.get_rng_state()
    try:
        scores = reward(samples.images, samples.prompts, samples.metadata)
    except Exception as error:  # a user's reward may raise anything
        yield Finding("scores", "failed", f"it {describe_error(error)}")
        return
    yield (finding := check_form(scores, len(samples)))
    if finding.status == "failed":
        return
    yield _check_side_effects(samples, given, random_state)
    scores = as_scores(scores, len(samples), torch.device("cpu"))
    yield check_finite(scores)
    if not bool(scores.isfinite().any()):
        return
    yield check_range(scores, reward.range)
    comparison = ScoreComparison(reward, given, scores, tolerance)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "time and determinism": partial(_check_time, reward, given, comparison, device),
        "batch": comparison.batches,
        "distinct": comparison.distinction,
        "8-bit images": comparison.rounding,
        "NaN image": comparison.broken_image,
        "odd input": partial(_check_odd_input, reward, given),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, "failed", f"it {describe_error(error)}")


def _check_setup(reward: Reward, samples: RewardSamples, device: torch.device) -> Finding:
    """Set the reward up, and say whether it would have scored without."""
    try:
        score_samples(reward, samples.select(samples.groups[0]))
        without = "not needed to score"
    except Exception as error:
        without = f"without it the reward {describe_error(error)}"
    began = time.perf_counter()
    try:
        reward.setup(device)
    except Exception as error:
        return Finding("setup", "failed", f"setup({device}) {describe_error(error)}")
    return Finding("setup", "ok", f"{time.perf_counter() - began:.1f} s on {device}; {without}")


def _check_side_effects(
    samples: RewardSamples, given: RewardSamples, random_state: Tensor
) -> Finding:
    """Whether the call left its arguments and the global random state alone."""
    same = {
        "images": torch.equal(samples.images, given.images),
        "prompts": samples.prompts == given.prompts,
        "metadata": samples.metadata == given.metadata,
    }
    changed = [name for name, unchanged in same.items() if not unchanged]
    if changed:
        detail = f"it changed its {' and '.join(changed)}; work on a copy"
        return Finding("side effects", "failed", detail)
    if not torch.equal(torch.get_rng_state(), random_state):
        detail = "it draws from torch's global generator; use one of its own, so that runs repeat"
        return Finding("side effects", "warning", detail)
    return Finding("side effects", "ok", "arguments and torch's generator are left alone")


def _check_time(
    reward: Reward, samples: RewardSamples, comparison: ScoreComparison, device: torch.device
) -> Iterator[Finding]:
    """Score again, now that everything is warm: how long it takes, and whether it is the same."""
    began = time.perf_counter()
    again = score_samples(reward, samples)
    each = (time.perf_counter() - began) / len(samples)
    told = f"{each:.3g} s" if each >= 1 else f"{1000 * each:.3g} ms"
    yield Finding("time", "ok", f"{told} an image in a batch of {len(samples)} on {device}")
    yield from comparison.repetition(again)


def _check_odd_input(reward: Reward, samples: RewardSamples) -> Iterator[Finding]:
    """Report what a black image and missing texts score; every answer is allowed."""
    first = samples.select(samples.groups[0] if is_groupwise(reward) else [0])
    size = len(first)
    probes = {
        "black image": replace(first, images=torch.zeros_like(first.images)),
        "empty prompt": replace(first, prompts=[""] * size),
        "no metadata": replace(first, metadata=[{} for _ in range(size)]),
    }
    for name, probe in probes.items():
        yield Finding(name, "ok", _outcome(partial(score_samples, reward, probe)))


def _outcome(call: Callable[[], Tensor]) -> str:
    try:
        score = call()[0]
    except Exception as error:
        return describe_error(error)
    return "is missing (NaN)" if bool(score.isnan()) else f"scores {float(score):.4g}"
