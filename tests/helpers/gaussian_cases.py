"""Transitions of an old and a new policy as Gaussians, and the terms of their loss."""

from __future__ import annotations

import torch

from aegpo.objectives.surrogate import gaussian_log_ratio
from aegpo.objectives.transition_weights import TransitionTerms


def gaussian_case(
    shift: float, seed: int = 0, n: int = 6, dim: int = 48
) -> dict[str, torch.Tensor]:
    """Transitions between two policies whose means differ by about `shift`, (n, dim)."""
    generator = torch.Generator().manual_seed(seed)
    std = torch.linspace(0.05, 0.7, n)
    old_mean = torch.randn(n, dim, generator=generator)
    z = torch.randn(n, dim, generator=generator)
    mean = old_mean + shift * torch.randn(n, dim, generator=generator)
    return {
        "std": std,
        "old_mean": old_mean,
        "z": z,
        "mean": mean,
        "x": old_mean + std[:, None] * z,
    }


def terms_of(case: dict[str, torch.Tensor]) -> TransitionTerms:
    """What weights and losses see of a case."""
    std = case["std"]
    return TransitionTerms(
        log_ratio=gaussian_log_ratio(case["mean"], case["old_mean"], case["x"], std),
        drift=(case["mean"] - case["old_mean"]).square().mean(dim=1) / (2 * std.square()),
        std=std,
        dt=torch.full_like(std, 0.1),
        mean_std=std.mean(),
        sensitivity=torch.ones_like(std),
        mean_std_per_sensitivity=std.mean(),
    )
