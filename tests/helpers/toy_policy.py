"""A policy whose velocity field is known, and schedules to drive it; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aegpo.evaluations import EvaluationCounter


@dataclass(frozen=True)
class ToyConditioning:
    """Stands in for `aegpo.policies.base.Conditioning`: one number per prompt."""

    embeds: Tensor  # (n, 1, 1)

    def __len__(self) -> int:
        return len(self.embeds)

    def select(self, rows: Tensor) -> ToyConditioning:
        return ToyConditioning(self.embeds[rows])


@dataclass(frozen=True)
class ToySchedule:
    """The part of an exploration schedule that a rollout reads, without any validation."""

    eta: Tensor  # (B, T)
    branching: Tensor  # (B, T)

    @property
    def num_steps(self) -> int:
        return self.eta.shape[1]

    @property
    def stochastic(self) -> Tensor:
        return self.eta > 0


class ToyPolicy(nn.Module):
    """``v = speed (1 + c) x sigma - c``, elementwise, c the prompt's number; on 1 x 2 x 2 latents.

    Attributes:
        calls: The number of rows of every call.
        seen: For every call, the latents that it was given.
    """

    num_evaluations_per_sample = 1
    latent_shape = (1, 2, 2)
    lockstep = None

    def __init__(self) -> None:
        super().__init__()
        self.evaluations = EvaluationCounter()
        self.speed = nn.Parameter(torch.tensor(0.5))
        self.calls: list[int] = []
        self.seen: list[Tensor] = []

    def forward(self, latents: Tensor, sigma: Tensor, cond: ToyConditioning) -> Tensor:
        self.evaluations.add(len(latents))
        self.calls.append(len(latents))
        self.seen.append(latents.clone())
        number = cond.embeds.reshape(-1, 1, 1, 1)
        return self.speed * (1 + number) * latents * sigma.reshape(-1, 1, 1, 1) - number

    def encode(self, numbers: list[float]) -> ToyConditioning:
        return ToyConditioning(torch.tensor(numbers).reshape(-1, 1, 1))

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return {"speed": self.speed.detach()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        own, self.speed.data = self.speed.data, torch.tensor(0.5)
        try:
            yield
        finally:
            self.speed.data = own

    def sigmas(self, num_steps: int) -> Tensor:
        return torch.linspace(1, 0, num_steps + 1)

    def initial_latents(self, noise: Tensor, sigma: float) -> Tensor:
        return noise

    def clean_latents(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents).expand(-1, 3, -1, -1)

    def token_layout(self, cond: ToyConditioning) -> int:
        return len(cond)
