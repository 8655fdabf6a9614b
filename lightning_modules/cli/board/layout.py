"""The charts of TensorBoard's page "Custom scalars": what belongs together stands together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aegpo.utilities.names import tag_name

Layout = dict[str, dict[str, list[object]]]
"""Of each category its charts by title, in the form of `SummaryWriter.add_custom_scalars`."""


def custom_scalars(rewards: Sequence[str]) -> Layout:
    """Lay the charts out.

    Args:
        rewards: The held-out rewards, as they are written in tags.

    Returns:
        Charts of the tags in docs/logging.md; one that a run does not log is empty.
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
    return {
        category: {title: ["Multiline", tags] for title, tags in titles.items()}
        for category, titles in charts.items()
    }
