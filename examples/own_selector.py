r"""A step selector of one's own: explore where Entropy(t) changes fastest, not where it is high.

A training run takes it by name; in this folder:

    aegpo fit --config shapes --config overlays/aegpo \
      --model.step_selector own_selector.SteepestSteps
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegpo.entropy import EntropyReading
from aegpo.exploration import EntropyPeaks, RandomSteps, StepSelector
from aegpo.exploration.selector import require_steps
from aegpo.noise import KeyedNoise


class SteepestSteps(StepSelector):
    """Explores before the largest changes of a prompt's Entropy(t); first steps without a reading.

    Args:
        num: Steps per prompt.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
    """

    def __init__(self, num: int = 3, eta: float = 0.7) -> None:
        super().__init__(eta)
        self.num = num

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark `num` steps of each prompt; see `StepSelector.mark`."""
        if entropy is None:
            explores[:, : self.num] = True
        else:  # T - 1 differences, and T - 1 steps that may explore
            explores.scatter_(1, entropy.curve.diff(dim=1).abs().topk(self.num).indices, True)

    def validate(self, num_steps: int) -> None:
        """Check that `num` steps can explore; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("num", self.num, num_steps)


def main() -> None:
    """Print which steps three selectors choose on two made-up curves."""
    steps = torch.linspace(0, 1, 10)
    curves = torch.stack([torch.sigmoid(20 * (0.5 - steps)), 0.5 + 0.4 * torch.sin(6 * steps)])
    for name, curve in zip(("falling", "waving"), curves, strict=True):
        print(f"{name:<14}" + " ".join(f"{value:.2f}" for value in curve.tolist()))
        for selector in (SteepestSteps(3), EntropyPeaks(top_k=3), RandomSteps(3)):
            schedule = selector(EntropyReading(curve[None]), KeyedNoise(0), torch.arange(1), 10)
            marks = " ".join("  * " if explores else "  . " for explores in schedule.stochastic[0])
            print(f"{type(selector).__name__:<14}{marks}")


if __name__ == "__main__":
    main()
