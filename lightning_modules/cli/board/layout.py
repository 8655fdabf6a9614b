"""The charts of TensorBoard's page "Custom scalars": what belongs together stands together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from aegpo.utilities.names import tag_name

Layout = dict[str, dict[str, list[Any]]]
"""Of each category its charts by title, in the form of `SummaryWriter.add_custom_scalars`."""
OF_EVERY_ITERATION = ("Rollouts", "Updates", "Entropy(t) and the steps", "ΔEntropy and the prompts")
"""Categories whose numbers a run logs from its first iteration on, or never."""


def custom_scalars(rewards: Sequence[str], logged: Iterable[str] | None = None) -> Layout:
    """Lay the charts out.

    Args:
        rewards: The held-out rewards, as they are written in tags.
        logged: Tags that the first iteration logged; None for all that there are.

    Returns:
        Charts of the tags in docs/logging.md, without those that the run's method never fills.
    """
    scores = {f"held-out {tag_name(name)}": [f"val/{re.escape(name)}$"] for name in rewards}
    of_categories = {
        f"held-out {tag_name(name)} by category": [f"val/{re.escape(name)}/.+"] for name in rewards
    }
    charts = {
        "Scores": scores | of_categories,
        "Rollouts": {
            "reward: mean and spread": ["reward/(mean|std)$"],
            "reward by category": ["reward/category/.+"],
            "reward by part": ["reward/part/.+"],
            "groups that say nothing": ["reward/zero_variance_groups$"],
            "scores that failed": ["(reward|val)/missing$"],
            "images drawn, trained on, previewed": ["rollout/(images|images_trained|previews)$"],
            "mean advantage of what is trained on": ["rollout/advantage_mean$"],
            "height and width, pixels": ["rollout/(height|width)$"],
            "step at which previews decide": ["previews/step$"],
            "correlation of previews with images": ["previews/correlation_.+"],
        },
        "Updates": {
            "ratio": ["ratio/(mean|std|first_max_dev|rollout_max_dev)$"],
            "share of clipped ratios": ["ratio/clip_fraction$"],
            "KL": ["update/kl$"],
            "gradient norm": ["update/gradient_norm$"],
            "loss": ["update/loss$"],
            "samples of an iteration, steps skipped": ["update/(transitions|skipped)$"],
        },
        "Entropy(t) and the steps": {
            "attention entropy, mean over steps": ["entropy/mean$"],
            "share of steps that explore": ["rollout/stochastic_share$"],
            "agreement of half batches": ["(steps|levels)/agreement_.+"],
            "what is drawn by it": ["(steps|levels)/share_.+"],
        },
        "ΔEntropy and the prompts": {
            "ΔEntropy, mean of the batch": ["entropy/delta_mean$"],
            "equally likely prompts": ["sampler/effective_prompts$"],
            "prompts seen, silent prompts": ["sampler/(seen|silent)_share$"],
        },
        "Cost": {
            "model evaluations by purpose": [
                "cost/(evaluations|rollout|probe|reference|update|validation|other)$"
            ],
            "model evaluations per image": ["cost/per_.+"],
            "images drawn, trained on, scores": ["cost/(images|images_trained|rewards)$"],
            "seconds an iteration by phase": ["seconds/.+"],
            "peak memory, GiB": ["memory/peak_gib$"],
        },
        "Alarms": {
            "alarms that stand": ["alarm/raised$"],
            "distances from an alarm": ["alarm/(?!raised).+"],
            "canaries": ["canary/.+"],
        },
    }
    tags = None if logged is None else list(logged)

    def is_filled(category: str, patterns: list[str]) -> bool:
        if tags is None or category not in OF_EVERY_ITERATION:
            return True
        return any(re.match(pattern, tag) for pattern in patterns for tag in tags)

    return {
        category: filled
        for category, titles in charts.items()
        if (
            filled := {
                title: ["Multiline", patterns]
                for title, patterns in titles.items()
                if is_filled(category, patterns)
            }
        )
    }
