"""Ends some paths of a rollout before their last step, by what they look like on the way."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Stopper(Protocol):
    """Looks at previews, and says which paths go on."""

    def due(self, step: int) -> bool:
        """Whether previews are wanted.

        Args:
            step: The denoising step that was predicted, from 0.

        Returns:
            False to spare them.
        """

    def choose(self, step: int, clean: Tensor, row: Tensor) -> Tensor | None:
        """Choose the paths that go on.

        Args:
            step: The denoising step that was predicted, from 0.
            clean: The data that each path is predicted to end at, x - σ v, shape (n, C, H, W).
            row: Row of each path's prompt, those of one prompt side by side, (n,) on the CPU.

        Returns:
            Numbers of the paths that go on, ascending, int64 on the CPU; None for all.
        """


def paths_that_go_on(
    stopper: Stopper | None,
    step: int,
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor,
    row: Tensor,
) -> Tensor | None:
    """Ask a stopper, if there is one and it wants to see this step.

    Args:
        stopper: The stopper; None lets all paths go on.
        step: The denoising step, from 0.
        latents: Where the paths were, shape (n, C, H, W).
        velocity: Predicted there, shape (n, C, H, W).
        sigma: The noise level there, shape (n,).
        row: Row of each path's prompt, shape (n,) int64 on the CPU.

    Returns:
        Numbers of the paths that go on, int64 on the CPU; None for all.
    """
    if stopper is None or len(row) == 0 or not stopper.due(step):  # a rank may have no prompt
        return None
    level = sigma.view(-1, *[1] * (latents.dim() - 1))
    return stopper.choose(step, latents.float() - level * velocity.float(), row)
