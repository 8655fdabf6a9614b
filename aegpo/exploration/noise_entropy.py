"""The selector of E-GRPO: the entropy of a step's noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.selector import StepSelector, require_steps
from aegpo.noise import KeyedNoise
from aegpo.sde import SDE, FlowSDE
from aegpo.utilities.checks import require_positive


class NoiseEntropy(StepSelector):
    """Explores at the steps whose noise has the highest entropy, after E-GRPO.

    E-GRPO (arXiv 2601.00423) measures a step by the entropy of its transition, in nats per
    dimension h = ln(2 pi e std²) / 2: a closed form of the schedule and the SDE that knows neither
    prompt nor policy, to be set against attention entropy. E-GRPO joins the steps below a threshold
    into longer ones; here they stay deterministic. Equal entropies are resolved in favor of the
    earlier step.

    Args:
        top_k: Steps per prompt.
        eta: Noise level of the steps, in the units of the SDE; above 0.
        sde: The SDE in use; None for `FlowSDE`.
        shift: Shift s of the schedule, sigma = s u / (1 + (s - 1) u) for u from 1 to 0 in equal
            steps; 1 where sigma itself falls in equal steps. The levels of SD 1.5 and SDXL are none
            of these, but there too noise falls from the first step on: 1 chooses the same steps.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If `top_k` is below 1 or `shift` is not above 0.
    """

    def __init__(
        self,
        top_k: int = 4,
        eta: float = 0.7,
        sde: SDE | None = None,
        shift: float = 1.0,
        branching: int = 1,
    ) -> None:
        super().__init__(eta, branching)
        require_positive("top_k", top_k)
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"shift={shift} must be a finite number above 0")
        self.top_k = top_k
        self.sde = sde or FlowSDE()
        self.shift = shift

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the noisiest steps, the same for all prompts; see `StepSelector.mark`."""
        curve = self.curve(explores.shape[1] + 1)
        order = curve[:-1].argsort(descending=True, stable=True)
        explores[:, order[: self.top_k]] = True

    def priority(self, entropy: EntropyReading | None, shape: tuple[int, int]) -> Tensor:
        """The noisiest first; see `StepSelector.priority`."""
        return self.curve(shape[1]).expand(shape)

    def curve(self, num_steps: int) -> Tensor:
        """Entropy of each step's noise.

        Args:
            num_steps: T, the number of denoising steps.

        Returns:
            Nats per dimension, shape (T,); minus infinity where a step draws none.
        """
        even = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device="cpu")
        sigma = (self.shift * even / (1 + (self.shift - 1) * even)).float()
        eta = torch.full((num_steps,), self.eta, device="cpu")
        std = self.sde.coefficients(sigma[:-1], sigma[1:], eta).std
        return 0.5 * math.log(2 * math.pi * math.e) + std.log()

    def validate(self, num_steps: int) -> None:
        """Check that `top_k` steps can explore; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("top_k", self.top_k, num_steps)
        self.sde.check_eta(self.eta)
