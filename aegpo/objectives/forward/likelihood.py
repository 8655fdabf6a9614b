"""The surrogate log-prob of an image at a noise level: how well a velocity matches it."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Weighting = Literal["uniform", "t", "t_squared", "huber", "generalized_huber"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
GAUSSIAN = ("uniform", "t", "t_squared")
_TINY = 1e-10
_POWER = 0.25


def log_likelihood(velocity: Tensor, target: Tensor, sigma: Tensor, weighting: Weighting) -> Tensor:
    """-w(σ) l of the error l = mean_d (v - u)², u = ε - x_0 (AWM, arXiv 2509.25050).

    The weightings of the public code: "uniform" -l; "t" -σ l; "t_squared" -σ² l; "huber"
    -σ (l + 1e-10)^(1/2); "generalized_huber" -σ (l + 1e-10)^(1/4) / (1/4). The first three are,
    up to a constant, the log-density per dimension of a Gaussian around v of variance 1 / (2 w).

    Args:
        velocity: Prediction v, with gradient, shape (n, ...).
        target: u, shape (n, ...).
        sigma: σ of each row, in (0, 1], shape (n,).
        weighting: Which.

    Returns:
        At most 0, fp32 or wider, shape (n,).
    """
    error = (velocity - target).square().flatten(1).mean(1)
    if weighting == "huber":
        return -sigma * (error + _TINY).sqrt()
    if weighting == "generalized_huber":
        return -sigma * (error + _TINY).pow(_POWER) / _POWER
    return -gaussian_weight(sigma, weighting) * error


def gaussian_weight(sigma: Tensor, weighting: Weighting) -> Tensor:
    """w(σ) of a weighting that is a Gaussian's.

    Args:
        sigma: σ of each row, shape (n,).
        weighting: "uniform", "t" or "t_squared".

    Returns:
        Shape (n,).
    """
    return sigma.pow({"uniform": 0, "t": 1, "t_squared": 2}[weighting])
