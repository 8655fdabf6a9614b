"""What the rest of AEGPO knows about attention entropy: curves over steps, and ΔEntropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EntropyReading:
    """Attention entropy of a batch of prompts, the one value that closes both AEGPO loops.

    ``curve`` says *when* exploration pays (its peaks become stochastic steps), ``delta`` says on
    *which prompts* (more images, drawn more often).

    Args:
        curve: Entropy(t) of each prompt, shape (B, T), finite; in [0, 1] when normalized by the
            logarithm of the number of keys, in nats otherwise. Kept in fp32.
        delta: ΔEntropy of each prompt, shape (B,), >= 0; None while it is not known. Kept in fp32.

    Raises:
        ValueError: If a shape is wrong, a value is not finite or a delta is negative.
    """

    curve: Tensor
    delta: Tensor | None = None

    def __post_init__(self) -> None:
        _check("curve", self.curve, dim=2)
        object.__setattr__(self, "curve", self.curve.float())
        if self.delta is None:
            return
        _check("delta", self.delta, dim=1)
        if len(self.delta) != len(self.curve):
            raise ValueError(
                f"delta has {len(self.delta)} prompts but curve has {len(self.curve)}; "
                "both need one row per prompt"
            )
        if bool((self.delta < 0).any()):
            raise ValueError("delta holds a negative value; ΔEntropy is an absolute difference")
        object.__setattr__(self, "delta", self.delta.float())

    def __len__(self) -> int:
        """Number of prompts B."""
        return len(self.curve)

    @property
    def num_steps(self) -> int:
        """Number of denoising steps T."""
        return self.curve.shape[1]

    def to(self, device: torch.device | str) -> EntropyReading:
        """The same reading on a device, without gradient."""
        delta = None if self.delta is None else self.delta.detach().to(device)
        return EntropyReading(self.curve.detach().to(device), delta)

    def select(self, rows: Tensor | list[int]) -> EntropyReading:
        """The reading of some prompts.

        Args:
            rows: Prompts to keep, shape (n,), int64 indices or a bool mask of length B.

        Returns:
            A reading of n prompts, in the order of ``rows``.
        """
        index = torch.as_tensor(rows, device=self.curve.device)
        if index.numel() == 0:
            index = index.long()  # an empty list arrives as float
        return EntropyReading(
            self.curve[index], None if self.delta is None else self.delta.to(index.device)[index]
        )


def delta_entropy(policy_curve: Tensor, reference_curve: Tensor) -> Tensor:
    """ΔEntropy of each prompt, the mean over steps of |Entropy_θ(t) - Entropy_ref(t)|.

    AEGPO (arXiv 2602.06825) defines ΔEntropy as an absolute difference between the current policy
    and the base; taking the absolute value before the mean over steps is this project's choice,
    so that a rise at one step cannot hide a fall at another. Nothing else defines ΔEntropy.

    Args:
        policy_curve: Entropy(t) under the current policy, shape (B, T).
        reference_curve: Entropy(t) under the frozen base, same prompts, steps and starting noise,
            shape (B, T).

    Returns:
        ΔEntropy, shape (B,), fp32, >= 0.

    Raises:
        ValueError: If a curve is not (B, T) and finite, or the shapes differ.

    Examples:
        The first prompt rose by 0.2 at one step and fell by 0.2 at the other, the second stayed:

        >>> policy = torch.tensor([[0.9, 0.5], [0.7, 0.7]])
        >>> base = torch.tensor([[0.7, 0.7], [0.7, 0.7]])
        >>> delta_entropy(policy, base)
        tensor([0.2000, 0.0000])
    """
    _check("policy_curve", policy_curve, dim=2)
    _check("reference_curve", reference_curve, dim=2)
    if policy_curve.shape != reference_curve.shape:
        raise ValueError(
            f"policy_curve is {tuple(policy_curve.shape)} but reference_curve is "
            f"{tuple(reference_curve.shape)}; record both on the same prompts and steps"
        )
    difference = policy_curve.float() - reference_curve.to(policy_curve.device).float()
    return difference.abs().mean(dim=1)


def _check(name: str, value: Tensor, dim: int) -> None:
    wanted = {1: "(B,)", 2: "(B, T)"}[dim]
    if value.dim() != dim or not value.is_floating_point():
        raise ValueError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}; it must be floating, {wanted}"
        )
    if dim == 2 and value.shape[1] == 0:
        raise ValueError(f"{name} has no denoising step; it must be {wanted} with T >= 1")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds a value that is not finite; record the entropy again")
