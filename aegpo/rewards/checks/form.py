"""What can be said of a reward's scores by looking at them: form, missing values, range."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.rewards.answers import UnusableAnswer, as_scores
from aegpo.utilities.findings import Finding


def check_form(scores: object, number: int) -> Finding:
    """Check that scores are one number for each image, as training reads them, without a graph.

    Args:
        scores: What the reward returned.
        number: Number of images.

    Returns:
        ``failed`` for what no scores can be read from, a warning for a graph.
    """
    name = "shape and dtype"
    try:
        as_scores(scores, number, torch.device("cpu"))
    except UnusableAnswer as error:
        return Finding(name, "failed", f"it {error}")
    if not isinstance(scores, Tensor):
        return Finding(name, "ok", f"a {type(scores).__name__} with {number} scores")
    found = f"{tuple(scores.shape)} {str(scores.dtype).removeprefix('torch.')}"
    if scores.requires_grad:
        detail = f"{found} with a graph, which costs memory; score under torch.no_grad()"
        return Finding(name, "warning", detail)
    return Finding(name, "ok", found)


def check_finite(scores: Tensor) -> Finding:
    """Check that images were scored: infinite scores and none at all fail, a few NaN are a warning.

    Args:
        scores: Shape (N,).

    Returns:
        The finding.
    """
    missing, infinite = int(scores.isnan().sum()), int(scores.isinf().sum())
    if infinite:
        detail = f"{infinite} of {len(scores)} scores are infinite; NaN marks what has no score"
        return Finding("finite", "failed", detail)
    if missing == len(scores):
        detail = "every score is NaN; give images with prompts that it can score"
        return Finding("finite", "failed", detail)
    if missing:
        return Finding("finite", "warning", f"{missing} of {len(scores)} scores are NaN (missing)")
    return Finding("finite", "ok", f"all {len(scores)} scores")


def check_range(scores: Tensor, declared: tuple[float, float] | None) -> Finding:
    """Check scores against the declared range.

    Args:
        scores: Shape (N,); NaN is left out.
        declared: Lowest and highest possible score, or None.

    Returns:
        The finding; a range that is not declared cannot be left.
    """
    low, high = scores[~scores.isnan()].aminmax()
    found = f"{float(low):.4g} to {float(high):.4g}"
    if declared is None:
        return Finding("range", "ok", f"{found}; no range is declared")
    text = f"declared {declared[0]:g} to {declared[1]:g}"
    # A bound computed in float32 may miss the declared one by a rounding.
    slack = 1e-6 * max(1.0, abs(declared[0]), abs(declared[1]))
    if float(low) < declared[0] - slack or float(high) > declared[1] + slack:
        return Finding("range", "failed", f"{found}, outside the {text}")
    return Finding("range", "ok", f"{found}, {text}")
