"""ReferenceCache: what the probe reads of a base, found again by later runs of the same base."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aegpo.entropy.recorder import EntropyRecorder
from aegpo.entropy.reference_curves import CurveFolder, digest_of, fingerprint
from aegpo.exploration import ExplorationSchedule
from aegpo.policies import Policy
from aegpo.prompts import PromptBatch
from aegpo.samplers import sampler_name
from aegpo.sde import SDE
from aegpo.training import Training

_OF_THE_MOMENT = ("training", "max_batch", "decode_batch", "offload")
"""Attributes of a policy that no curve depends on."""


class ReferenceCache:
    """Curves of the reference in a folder.

    A curve is found by everything that it depends on: the weights, the policy's plain settings,
    the precision, the recorder's layers, tokens and rows, what the encoders made of the prompt,
    its noise, the noise levels, the SDE, the sampler and the steps that draw noise.

    Args:
        folder: Where the curves are; created if absent.
        recorder: How entropy is measured.
        trajectories: Trajectories per prompt that a curve is the mean of.
    """

    def __init__(self, folder: str, recorder: EntropyRecorder, trajectories: int) -> None:
        self.folder, self.recorder, self.trajectories = folder, recorder, trajectories
        self._curves: CurveFolder | None = None

    def curves(
        self,
        pl_module: Training,
        batch: PromptBatch,
        sde: SDE,
        schedule: ExplorationSchedule,
        draw: Callable[[PromptBatch, ExplorationSchedule], Tensor],
    ) -> Tensor:
        """Read the curves of a batch, and have those drawn that are not there.

        Args:
            pl_module: The module, its policy inside `reference`.
            batch: The prompts, B of them.
            sde: Which step is taken.
            schedule: Which steps draw noise, a row per prompt.
            draw: Returns (n, T) curves of n prompts.

        Returns:
            (B, T) fp32 on the CPU.
        """
        policy = pl_module.policy
        if self._curves is None:  # the base stays what it is for as long as the run lasts
            self._curves = CurveFolder(self.folder, self._settings(policy))
        steps = f"{type(sde).__name__} {vars(sde)} {sampler_name(pl_module.sampler)}"
        noise = f"{pl_module.noise.fixed()} {self.trajectories} {steps}"
        levels = digest_of([policy.sigmas(pl_module.num_steps)])
        keys = [
            f"{text!r} {index} {noise} {levels} {digest_of([eta])} {_embedded(policy, text)}"
            for text, index, eta in zip(
                batch.prompts, batch.index.tolist(), schedule.eta, strict=True
            )
        ]

        def draw_rows(rows: list[int]) -> Tensor:
            picked = torch.tensor(rows, dtype=torch.int64, device="cpu")
            return draw(batch.select(picked), schedule.select(picked))

        return self._curves.get(keys, pl_module.num_steps, draw_rows)

    def _settings(self, policy: Policy) -> list[object]:
        kind = policy.device.type
        plain = {
            name: value
            for name, value in sorted(vars(policy).items())
            if isinstance(value, int | float | str | None)
            and not name.startswith("_")
            and name not in _OF_THE_MOMENT
        }
        return [
            type(policy).__name__,
            fingerprint(policy.denoiser),
            plain,
            policy.latent_shape,
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            # What a recorder can afford depends on the device.
            vars(self.recorder) | {"_orders": None, "_budget": self.recorder.cost_bound and kind},
        ]


def _embedded(policy: Policy, text: str) -> str:
    """A hash of what the denoiser is told of a text, and of what guidance subtracts."""
    row = policy.encode([text])
    rows = [row] if row.negative is None else [row, row.negative]
    return digest_of([part for one in rows for part in (one.embeds, one.pooled, one.mask)])
