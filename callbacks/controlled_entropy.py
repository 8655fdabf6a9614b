"""ControlledEntropy: puts a control in the place of the true entropy."""

from __future__ import annotations

from typing import Any

import lightning as L

from aegpo.entropy.controls import EntropyControl
from aegpo.prompts import PromptBatch
from aegpo.training import Training
from callbacks.order import require_probe_before


class ControlledEntropy(L.Callback):
    """Replaces what the probe published, for both loops and the prompt sampler.

    It stands after the callback that publishes `pl_module.entropy`, and costs nothing; the probe
    runs as it would, so that evaluations are equal.

    Args:
        control: What takes the reading's place.
    """

    def __init__(self, control: EntropyControl) -> None:
        self.control = control

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        """Check that a reading is published before this callback's turn."""
        require_probe_before(trainer, self)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Replace the reading of this batch."""
        if pl_module.entropy is not None:
            noise = pl_module.noise.at(pl_module.iteration)
            pl_module.entropy = self.control(pl_module.entropy, noise, batch)

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint, so that two controls can stand side by side."""
        return self._generate_state_key(
            control=type(self.control).__name__, signals=self.control.signals
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the control remembers."""
        return self.control.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.control.load_state_dict(state_dict)
