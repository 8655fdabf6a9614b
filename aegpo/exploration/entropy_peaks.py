"""The selector that explores at the peaks of attention entropy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration.selector import StepSelector, require_steps
from aegpo.noise import KeyedNoise
from aegpo.utilities.checks import require_positive


class EntropyPeaks(StepSelector):
    """Explores where attention is most dispersed: the peaks of Entropy(t), as AEGPO does.

    AEGPO (arXiv 2602.06825) takes the top 4 steps of the whole trajectory. Its curve per prompt
    and top-K are the defaults here; local maxima, the threshold and the shared curve are our
    options. Equal entropies are resolved in favor of the earlier step. As long as there is no
    reading the first `top_k` steps explore.

    Args:
        top_k: Steps per prompt.
        eta: Noise level of the steps, in the units of the SDE in use; above 0.
        mode: "top_k" takes the `top_k` highest steps. "local_maxima" takes steps that are higher
            than both neighbors first, the highest of them before the others, and fills up to
            `top_k` with the highest of the rest, so both modes explore equally much.
        threshold: Instead of a fixed number, explore wherever the curve, scaled to [0, 1] over
            the prompt's eligible steps, is above this value in [0, 1). A flat curve says nothing
            and falls back to the first `top_k` steps. Only with mode "top_k".
        scope: "prompt" gives each prompt its own steps, "batch" all prompts the peaks of the
            mean curve.
        branching: Children of every tree node at each of the steps; 1 grows chains. A group too
            small for a split at each of them splits at the highest peaks.

    Raises:
        ValueError: If `top_k` is below 1, `threshold` is outside [0, 1) or is combined with local
            maxima, or `mode` or `scope` is unknown.
    """

    def __init__(
        self,
        top_k: int = 4,
        eta: float = 0.7,
        mode: Literal["top_k", "local_maxima"] = "top_k",
        threshold: float | None = None,
        scope: Literal["prompt", "batch"] = "prompt",
        branching: int = 1,
    ) -> None:
        super().__init__(eta, branching)
        require_positive("top_k", top_k)
        if mode not in ("top_k", "local_maxima"):
            raise ValueError(f"mode={mode!r} is unknown; use 'top_k' or 'local_maxima'")
        if scope not in ("prompt", "batch"):
            raise ValueError(f"scope={scope!r} is unknown; use 'prompt' or 'batch'")
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must lie in [0, 1), or be null for top_k")
        if threshold is not None and mode == "local_maxima":
            raise ValueError("threshold and mode='local_maxima' exclude each other; drop one")
        self.top_k = top_k
        self.mode = mode
        self.threshold = threshold
        self.scope = scope

    def mark(
        self, explores: Tensor, entropy: EntropyReading | None, noise: KeyedNoise, index: Tensor
    ) -> None:
        """Mark the peaks of each prompt's curve; see `StepSelector.mark`."""
        if entropy is None:
            explores[:, : self.top_k] = True
            return
        curve = self._curve(entropy)
        if self.threshold is None:
            explores.scatter_(1, self._order(curve)[:, : self.top_k], True)
        else:
            explores[:] = self._above(curve, self.threshold)

    def priority(self, entropy: EntropyReading | None, shape: tuple[int, int]) -> Tensor | None:
        """The highest peaks first; see `StepSelector.priority`."""
        if entropy is None:
            return None
        order = self._order(self._curve(entropy))
        rank = torch.arange(0, -order.shape[1], -1, device="cpu").expand_as(order)
        priority = torch.full(shape, -shape[1], device="cpu")
        priority[:, :-1].scatter_(1, order, rank)
        return priority

    def validate(self, num_steps: int) -> None:
        """Check that `top_k` steps can explore; see `StepSelector.validate`."""
        super().validate(num_steps)
        require_steps("top_k", self.top_k, num_steps)

    def _curve(self, entropy: EntropyReading) -> Tensor:
        """The entropy of the eligible steps, (B, T-1); one curve for all with scope "batch"."""
        curve = entropy.curve[:, :-1]
        if self.scope == "batch":
            curve = curve.mean(dim=0, keepdim=True).expand_as(curve)
        return curve

    def _order(self, curve: Tensor) -> Tensor:
        """The steps of each row from the highest rank to the lowest, (B, T-1)."""
        order = curve.argsort(dim=1, descending=True, stable=True)
        if self.mode == "local_maxima":
            edge = torch.full_like(curve[:, :1], -math.inf)
            padded = torch.cat([edge, curve, edge], dim=1)
            # Strict on the left only, so that a plateau is one peak, at its first step.
            peak = (curve > padded[:, :-2]) & (curve >= padded[:, 2:])
            peaks_first = peak.gather(1, order).int().argsort(dim=1, descending=True, stable=True)
            order = order.gather(1, peaks_first)
        return order

    def _above(self, curve: Tensor, threshold: float) -> Tensor:
        """True where the row's min-max scaled curve exceeds the threshold, (B, T-1)."""
        low, high = curve.amin(dim=1, keepdim=True), curve.amax(dim=1, keepdim=True)
        above = curve - low > threshold * (high - low)
        first = torch.arange(curve.shape[1], device="cpu") < self.top_k
        return torch.where(high > low, above, first)
