"""The gradients of two halves of a batch, taken from an update's own micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from aegpo.distributed import all_reduce_rows
from aegpo.noise import KeyedNoise
from aegpo.policies.base import Policy


class HalfGradients:
    """Parts an update's samples by part of the schedule and half of the prompts, and compares.

    Which half a prompt is in depends on the prompt and the iteration alone, so it is the same on
    any rank. No evaluation is added: the update's own backward passes are noted stratum by stratum.

    Args:
        learn: Told the inner products of the 2 K gradients, shape (2 K, 2 K), on the CPU.
        num_parts: K, the parts of the schedule.
        policy: The policy that is trained.
        noise: Keyed noise of the iteration.
        index: Dataset row of each prompt, shape (B,) int64.
        name: What compares, and what to use instead, for the message.

    Raises:
        ValueError: If ranks hold parts of the gradients.
    """

    def __init__(
        self,
        learn: Callable[[Tensor], object],
        num_parts: int,
        policy: Policy,
        noise: KeyedNoise,
        index: Tensor,
        name: tuple[str, str],
    ) -> None:
        if policy.lockstep is not None:
            raise ValueError(
                f"{name[0]} compare whole gradients, of which each rank has a part under "
                f"trainer.strategy=fsdp2; use ddp, or {name[1]}"
            )
        self._learn, self.num_strata = learn, 2 * num_parts
        prompts = noise.uniform("half of the batch", index.cpu()[:, None], (1,))
        self._half = (prompts[:, 0] < 0.5).long()
        self._rows = torch.zeros(0, 0, device="cpu")
        self._total = torch.zeros(0, device="cpu")

    def strata(self, which: Tensor, part: Tensor, row: Tensor) -> list[Tensor]:
        """Part some samples.

        Args:
            which: The samples, shape (n,) int64.
            part: Part of the schedule of each, below K, shape (n,) int64, on the CPU.
            row: Row of each one's prompt, shape (n,) int64, on the CPU.

        Returns:
            2 K parts of `which`, the halves of a part neighbors.
        """
        stratum = (2 * part + self._half[row]).to(which.device)
        return [which[stratum == number] for number in range(self.num_strata)]

    def note(self, stratum: int, parameters: Sequence[nn.Parameter]) -> None:
        """Keep each stratum's own gradient, and at the last one compare the halves.

        Every rank calls it for every stratum, in their order; the last one is a collective.

        Args:
            stratum: Which one's backward passes are done.
            parameters: The trained parameters, with this rank's gradients so far.
        """
        total = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float()
                for p in parameters
            ]
        )
        if stratum == 0:
            self._rows = total.new_empty(self.num_strata, len(total))
            self._total = torch.zeros_like(total)
        torch.sub(total, self._total, out=self._rows[stratum])
        self._total = total
        if stratum == self.num_strata - 1:
            rows = all_reduce_rows(self._rows)
            self._learn((rows @ rows.t()).cpu())
            self._rows = total.new_empty(0, 0)
