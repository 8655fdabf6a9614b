"""The exploration schedule, where a rollout draws noise and splits, and what chooses it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExplorationSchedule:
    """Noise level and branching of every denoising step, one row per prompt.

    All rollouts of a prompt follow the same row: a group whose members explore at different steps
    compares rewards of unlike spread. The last transition is always deterministic, because its
    noise would stay in the image and its tiny deviation would dominate the policy gradient.

    Args:
        eta: Noise level of each step, in the units of the SDE in use; 0 is a deterministic (ODE)
            step. fp32, shape (B, T).
        branching: Children of every tree node at each step; 1 is no split. int64, shape (B, T).
        priority: Which steps keep their split where a group is too small for all of them, the
            highest first, shape (B, T); None for the earliest first.

    Raises:
        ValueError: If shapes or types disagree, a level is negative or not finite, the last step
            is stochastic, or a step splits without noise.
    """

    eta: Tensor
    branching: Tensor
    priority: Tensor | None = None

    def __post_init__(self) -> None:
        if self.eta.ndim != 2 or self.eta.shape != self.branching.shape or self.eta.shape[1] < 1:
            raise ValueError(
                "eta and branching must both have shape (prompts, steps) with at least one step, "
                f"but got {tuple(self.eta.shape)} and {tuple(self.branching.shape)}"
            )
        if self.priority is not None and self.priority.shape != self.eta.shape:
            raise ValueError(
                f"priority must have the shape of eta, {tuple(self.eta.shape)}, "
                f"but got {tuple(self.priority.shape)}"
            )
        if self.eta.dtype != torch.float32 or self.branching.dtype != torch.int64:
            raise ValueError(
                "eta must be float32 and branching int64, "
                f"but got {self.eta.dtype} and {self.branching.dtype}"
            )
        if not bool(torch.isfinite(self.eta).all()) or bool((self.eta < 0).any()):
            raise ValueError("eta must be finite and at least 0 everywhere")
        if bool((self.eta[:, -1] != 0).any()):
            raise ValueError(
                f"the last step (step {self.num_steps - 1} of {self.num_steps}) must be "
                "deterministic: set eta[:, -1] to 0"
            )
        if bool((self.branching < 1).any()):
            raise ValueError("branching counts children and must be at least 1 everywhere")
        if bool(((self.branching > 1) & (self.eta == 0)).any()):
            raise ValueError(
                "a step can split only where it draws noise: branching > 1 needs eta > 0, "
                "otherwise all children would be the same image"
            )

    @classmethod
    def deterministic(cls, num_prompts: int, num_steps: int) -> ExplorationSchedule:
        """The schedule without any noise (probe, evaluation): eta 0 and no split, (B, T)."""
        return cls.from_mask(
            torch.zeros(num_prompts, num_steps, dtype=torch.bool, device="cpu"), 0.0
        )

    @classmethod
    def from_mask(cls, stochastic: Tensor, eta: float, branching: int = 1) -> ExplorationSchedule:
        """The schedule with one noise level and one branching factor at all marked steps.

        Args:
            stochastic: True where a step explores, shape (B, T).
            eta: Noise level of the marked steps.
            branching: Children per node at the marked steps.

        Returns:
            A schedule of B rows and T steps.
        """
        return cls(
            eta=torch.where(stochastic, eta, 0.0).float(),
            branching=torch.where(stochastic, branching, 1).long(),
        )

    @property
    def num_prompts(self) -> int:
        """B, the number of rows."""
        return self.eta.shape[0]

    @property
    def num_steps(self) -> int:
        """T, the number of denoising steps."""
        return self.eta.shape[1]

    @property
    def stochastic(self) -> Tensor:
        """True where a step draws noise, bool, shape (B, T)."""
        return self.eta > 0

    @property
    def leaves_per_root(self) -> Tensor:
        """Images that one starting noise grows into, int64, shape (B,)."""
        return self.branching.prod(dim=1)

    def select(self, rows: Tensor) -> ExplorationSchedule:
        """The schedule of some prompts.

        Args:
            rows: Prompt rows, int64, shape (n,).

        Returns:
            A schedule of n rows.
        """
        rows = rows.to(self.eta.device)
        priority = None if self.priority is None else self.priority[rows]
        return ExplorationSchedule(self.eta[rows], self.branching[rows], priority)

    def fit(self, group_sizes: Tensor) -> ExplorationSchedule:
        """The schedule with no more splits than the groups have room for.

        In order of priority a split is kept if the leaves per root still divide the group: with
        binary splits 16 images keep 4 of them, 8 keep 3, and 12 keep 2 on each of 3 roots. The
        other steps draw noise as before, without splitting. Chains come back as they are.

        Args:
            group_sizes: Images per prompt, int64, shape (B,).

        Returns:
            A schedule of the same B rows, for which `rollout` accepts these sizes.

        Raises:
            ValueError: If there is not one size per prompt.

        Examples:
            Four steps that split in two make 16 leaves of a root. 16 images have room for that, 8
            for three of the splits, and 12 for two of them on three roots:

            >>> explores = torch.tensor([[True, True, True, True, False]] * 3)
            >>> schedule = ExplorationSchedule.from_mask(explores, eta=0.7, branching=2)
            >>> schedule.fit(torch.tensor([16, 8, 12])).branching
            tensor([[2, 2, 2, 2, 1],
                    [2, 2, 2, 1, 1],
                    [2, 2, 1, 1, 1]])

            The last steps are the first to keep their split where they have the highest priority:

            >>> late = torch.arange(5).expand(3, 5)
            >>> schedule = ExplorationSchedule(schedule.eta, schedule.branching, priority=late)
            >>> schedule.fit(torch.tensor([16, 8, 12])).branching
            tensor([[2, 2, 2, 2, 1],
                    [1, 2, 2, 2, 1],
                    [1, 1, 2, 2, 1]])
        """
        if group_sizes.shape != (self.num_prompts,):
            raise ValueError(
                f"group_sizes has shape {tuple(group_sizes.shape)}, but the schedule has "
                f"{self.num_prompts} prompts"
            )
        if bool((self.branching == 1).all()):
            return self
        earliest = -torch.arange(self.num_steps, device="cpu").expand(self.branching.shape)
        priority = earliest if self.priority is None else self.priority
        order = priority.argsort(dim=1, descending=True, stable=True)
        branching = torch.ones_like(self.branching)
        for row, size in enumerate(group_sizes.tolist()):
            leaves = 1
            for step in order[row].tolist():
                children = int(self.branching[row, step])
                if size % (leaves * children) == 0:
                    branching[row, step] = children
                    leaves *= children
        return ExplorationSchedule(self.eta, branching, self.priority)
