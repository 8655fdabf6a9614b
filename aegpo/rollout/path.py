"""The velocities that a multistep sampler remembers of every path of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.samplers import Sampler
from aegpo.transfer import without_waiting


class Paths:
    """Takes the steps without noise of all nodes of a level, each from its own velocities.

    A path starts at the start noise and, anew, after each step that draws noise; a node splits at
    such a step only, so no two nodes ever share a path. Nodes at one step may be on paths of
    different lengths: a row of the schedule is a prompt's own.

    Args:
        sampler: Whose weights are used; None for the Euler step, for which nothing is kept.
        sigmas: Noise levels of the rollout, shape (T + 1,).
        num_nodes: Nodes of its first level.
    """

    def __init__(self, sampler: Sampler | None, sigmas: Tensor, num_nodes: int) -> None:
        self._sampler, self._sigmas = sampler, sigmas.cpu()
        self._start = torch.zeros(num_nodes, dtype=torch.int64, device="cpu")
        self._velocities: dict[int, Tensor] = {}  # of the present nodes, by step
        self._weights: dict[int, Tensor] = {}  # by the step at which a path starts

    def onward(self, step: int, latents: Tensor, velocity: Tensor, euler: Tensor) -> Tensor:
        """Where the step leads without noise.

        Args:
            step: The denoising step.
            latents: The nodes, shape (n, C, H, W).
            velocity: Predicted at them, shape (n, C, H, W).
            euler: Where the Euler step leads, shape (n, C, H, W).

        Returns:
            The next latents, shape (n, C, H, W) fp32; `euler` itself without a sampler.
        """
        if self._sampler is None:
            return euler
        self._velocities[step] = velocity.float()
        starts, path = torch.unique(self._start, return_inverse=True)
        steps = len(self._sigmas) - 1
        table = torch.zeros(len(starts), steps, steps, dtype=torch.float64, device="cpu")
        for row, start in enumerate(starts.tolist()):
            if start not in self._weights:
                self._weights[start] = self._sampler.weights(self._sigmas, start)
            table[row, start:, start:] = self._weights[start]
        weights = without_waiting(table[path, step].float(), latents.device)  # (n, T), at once
        moved = latents.float()
        for past, remembered in list(self._velocities.items()):
            weight = weights[:, past].view(-1, *[1] * (latents.dim() - 1))
            moved = moved + weight * remembered
            if not bool(table[:, step + 1 :, past].any()):  # nobody will need it
                del self._velocities[past]
        return moved

    def follow(self, step: int, parent: Tensor, drew_noise: Tensor) -> None:
        """Go over to the next level.

        Args:
            step: The denoising step that was taken.
            parent: (m,) the node that each of the next level comes from.
            drew_noise: (m,) bool, whether the step drew noise for it.
        """
        if self._sampler is None:
            return
        self._start = torch.where(drew_noise, step + 1, self._start[parent])
        if not torch.equal(parent, torch.arange(len(drew_noise), device="cpu")):
            self._velocities = {
                past: velocity[without_waiting(parent, velocity.device)]
                for past, velocity in self._velocities.items()
            }
