"""The selector that explores where two halves of a batch ask for the same change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.half_batches import HalfBatches, HalvesByStep, gradient_copies
from aegpo.exploration.selector import StepSelector, require_steps
from aegpo.noise import KeyedNoise
from aegpo.utilities.checks import require_positive


class AgreementSteps(StepSelector):
    """Explores at the steps whose gradient two halves of the batch agree on.

    In an iteration's first update the gradient of each stochastic step is taken from the prompts of
    either half of the batch; s = <g_a, g_b> / (|g_a| |g_b|), averaged over iterations, says how
    much of it is signal. It costs no evaluation, only smaller micro-batches and 2 · `top_k` + 2
    copies of the trained gradients. All prompts explore at the same steps. Until a step was
    measured it is worth what Entropy(t) says, above its lowest step, or without a reading as much
    as any other: one that was not tried comes before those that were found to be worse than the
    average.

    Args:
        top_k: Steps of each prompt.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        mode: "top_k" takes the `top_k` steps of the highest worth. "draw" draws them in proportion
            to it, none twice.
        explore: In [0, 1]: "top_k" gives the last place, in this share of the iterations, to a step
            drawn from the others; "draw" spreads this share of the chance evenly.
        decay: How much of the running average is kept at a measurement, in [0, 1).
        every_n_iterations: Iterations between two measurements.
        prior: Measurements that Entropy(t), or equal worth without it, counts as; above 0.
        branching: Children of every tree node at each of the steps; 1 grows chains.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        top_k: int = 4,
        eta: float = 0.7,
        mode: Literal["top_k", "draw"] = "top_k",
        explore: float = 0.1,
        decay: float = 0.95,
        every_n_iterations: int = 1,
        prior: float = 4.0,
        branching: int = 1,
    ) -> None:
        super().__init__(eta, branching)
        require_positive("top_k", top_k)
        if mode not in ("top_k", "draw"):
            raise ValueError(f"mode={mode!r} is unknown; use 'top_k' or 'draw'")
        if not 0 <= explore <= 1 or not prior > 0:
            raise ValueError(f"explore={explore} must lie in [0, 1], and prior={prior} be above 0")
        self.top_k, self.mode, self.explore = top_k, mode, explore
        self.decay, self.every_n_iterations, self.prior = decay, every_n_iterations, prior
        HalfBatches(1, decay, every_n_iterations)  # refuses wrong values before the run starts
        self.gradient_copies = gradient_copies(top_k)
        self._restored: Mapping[str, Any] = {}
        self._share = torch.zeros(0, dtype=torch.float64, device="cpu")

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the steps, the same for all prompts; see `StepSelector.mark`."""
        measured = self._measured(explores.shape[1])
        share = measured.share(self._prior(entropy, explores.shape[1]))
        self._share = share
        chosen = self._draw(share, noise) if self.mode == "draw" else self._best(share, noise)
        measured.watched = chosen.sort().values.tolist()
        explores[:, chosen] = True

    def priority(self, entropy: EntropyReading | None, shape: tuple[int, int]) -> Tensor:
        """The steps of the highest worth first; see `StepSelector.priority`."""
        priority = torch.full((shape[1],), -1.0, dtype=torch.float64, device="cpu")
        steps = shape[1] - 1
        priority[:-1] = self._measured(steps).share(self._prior(entropy, steps))
        return priority.expand(shape)

    def validate(self, num_steps: int) -> None:
        """Check that `top_k` steps can explore; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("top_k", self.top_k, num_steps)

    def metrics(self) -> dict[str, float]:
        """Mean agreement of each step so far, and the share that it was chosen by."""
        return {} if self.agreement is None else self.agreement.told("steps", self._share)

    def state_dict(self) -> dict[str, Any]:
        """What was measured; see `StepSelector.state_dict`."""
        return dict(self._restored) if self.agreement is None else self.agreement.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it; see `StepSelector.load_state_dict`."""
        self._restored, self.agreement = dict(state), None

    def _measured(self, steps: int) -> HalvesByStep:
        """The running measurement, which begins anew for another number of steps."""
        if self.agreement is None or self.agreement.parts != steps:
            self.agreement = HalvesByStep(steps, self.decay, self.every_n_iterations, self.prior)
            self.agreement.load_state_dict(self._restored)
            self._restored = {}
        return self.agreement

    @staticmethod
    def _prior(entropy: EntropyReading | None, steps: int) -> Tensor:
        """Share of each step by the batch's mean curve above its lowest step, (P,) float64."""
        even = torch.full((steps,), 1 / steps, dtype=torch.float64, device="cpu")
        if entropy is None or len(entropy.curve) == 0:
            return even
        curve = entropy.curve[:, :-1].double().mean(0)
        above = curve - curve.min()
        total = float(above.sum())
        return above / total if total > 0 else even

    def _best(self, share: Tensor, noise: KeyedNoise) -> Tensor:
        order = share.argsort(descending=True, stable=True)
        chosen, others = order[: self.top_k], order[self.top_k :]
        key = torch.zeros(1, 1, dtype=torch.int64, device="cpu")
        whether, which = noise.uniform("agreement steps", key, (2,))[0].tolist()
        if len(others) and whether < self.explore:
            chosen = torch.cat([chosen[:-1], others[int(which * len(others))][None]])
        return chosen

    def _draw(self, share: Tensor, noise: KeyedNoise) -> Tensor:
        """Steps drawn one after the other in proportion to their worth (Gumbel's top k)."""
        chance = self.explore / len(share) + (1 - self.explore) * share
        keys = torch.arange(len(share), device="cpu")[:, None]
        uniform = noise.uniform("agreement steps", keys, (1,))[:, 0].double()
        gumbel = -(-uniform.clamp(min=1e-12).log()).clamp(min=1e-12).log()
        return (chance.log() + gumbel).argsort(descending=True, stable=True)[: self.top_k]
