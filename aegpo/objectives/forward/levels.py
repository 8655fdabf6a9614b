"""At which noise levels an image is trained on."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from aegpo.exploration import StepSelector
from aegpo.objectives.base import Experience
from aegpo.objectives.forward.agreement import LevelAgreement, quantile

LevelRule = Literal["random", "stratified", "selected"]
LEVEL_RULES: tuple[str, ...] = get_args(LevelRule)


class DrawnLevels(NamedTuple):
    """The noise levels of all images of a rollout, n together.

    Attributes:
        image: Which image, ascending, shape (n,) int64, on the rollout's device.
        keys: Names of the draws that follow: the prompt's index, the image's number in its group,
            the level's number; shape (n, 3) int64, on the CPU.
        sigma: The level, in (0, 1], shape (n,), on the rollout's device.
        share: Where it lies in the range that levels come from, in [0, 1); of anchors outside that;
            shape (n,), on the CPU.
        anchor: True for an image's level from outside the range, shape (n,) bool, on the rollout's
            device.
    """

    image: Tensor
    keys: Tensor
    sigma: Tensor
    share: Tensor
    anchor: Tensor


class NoiseLevels:
    """Draws some noise levels for each image, by its prompt and its number alone.

    Args:
        rule: "random": steps of the rollout, none twice. "stratified": one level from each of
            `times_per_image` equal parts of the schedule, uniform inside the part and interpolated
            between the rollout's steps. "selected": steps that the step selector chose, none twice.
            A `LevelAgreement`: as "stratified", from equal shares of its distribution.
        times_per_image: Levels of an image.
        level_range: Part of the schedule that levels come from, as shares of its steps: 0 is its
            noisiest level, 1 its end.
        anchored: Whether each image gets one more level, uniform over the rest of the schedule.

    Raises:
        ValueError: If an argument is out of range, or contradicts another.
    """

    def __init__(
        self,
        rule: LevelRule | LevelAgreement,
        times_per_image: int,
        level_range: tuple[float, float],
        anchored: bool = False,
    ) -> None:
        low, high = level_range
        if times_per_image < 1:
            raise ValueError(f"times_per_image={times_per_image} must be at least 1")
        self.agreement = rule if isinstance(rule, LevelAgreement) else None
        if self.agreement is None and rule not in LEVEL_RULES:
            raise ValueError(
                f"levels={rule!r} is unknown; use one of {', '.join(LEVEL_RULES)}, or an "
                "aegpo.objectives.LevelAgreement"
            )
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"level_range=[{low}, {high}] must rise from at least 0 to at most 1: shares of "
                "the schedule, from its noisiest level to its end"
            )
        if rule == "selected" and (low, high) != (0, 1):
            raise ValueError(
                f"levels='selected' takes the steps that the step selector chose, and "
                f"level_range=[{low}, {high}] would take some away; leave it at [0, 1]"
            )
        if anchored and (self.agreement is not None or (low, high) == (0, 1)):
            raise ValueError(
                f"anchor_coeff is of levels outside level_range=[{low}, {high}] of a rule that "
                "takes all inside alike; narrow the range, as to [0, 0.6], without a "
                "LevelAgreement, or set anchor_coeff to 0"
            )
        self.rule, self.times_per_image, self.anchored = rule, times_per_image, anchored
        self.low, self.high = float(low), float(high)

    def _steps(self, num_steps: int) -> Tensor:
        """True for steps of the rollout in the range, shape (T,) bool."""
        share = torch.arange(num_steps, dtype=torch.float64, device="cpu") / num_steps
        return (share >= self.low - 1e-9) & (share < self.high - 1e-9)

    def validate(self, step_selector: StepSelector, num_steps: int) -> None:
        """Check that there are enough noise levels to draw.

        Args:
            step_selector: What chooses the stochastic steps.
            num_steps: T, the number of denoising steps.

        Raises:
            ValueError: If there are not.
        """
        steps = int(self._steps(num_steps).sum())
        if self.rule in ("random", "selected") and self.times_per_image > steps:
            raise ValueError(
                f"times_per_image={self.times_per_image} noise levels are drawn among those of "
                f"model.num_steps={num_steps} denoising steps, {steps} of them in the level_range; "
                "lower it, take more steps, or levels='stratified'"
            )
        if not self.selects(step_selector):
            return
        if not step_selector.explores:
            raise ValueError(
                f"levels='selected' takes the steps that {type(step_selector).__name__} chooses, "
                "and it chooses none; take another step_selector, or levels='random'"
            )
        if step_selector.branching > 1:
            raise ValueError(
                "levels that the step_selector chooses leave the rollout without noise, and chains "
                "without noise cannot branch; set step_selector.branching to 1"
            )

    def selects(self, step_selector: StepSelector | None = None) -> bool:
        """Whether steps are chosen as levels, and so none of them draws noise.

        Args:
            step_selector: What chooses them; with one that chooses none there is no prior.

        Returns:
            True for "selected", and where the choice is a prior.
        """
        if self.agreement is None:
            return self.rule == "selected"
        return step_selector is None or step_selector.explores

    def draw(self, experience: Experience) -> DrawnLevels:
        """Draw the levels of every image.

        Args:
            experience: The rollout of B prompts with N images.

        Returns:
            The levels.
        """
        rows = experience.tree.row.cpu()
        first = torch.searchsorted(rows, rows)  # a prompt's images are neighbors
        number = torch.arange(len(rows), device="cpu") - first
        named = torch.stack([experience.index.cpu()[rows], number], dim=1)
        if self.rule == "stratified" or self.agreement is not None:
            drawn = self._stratified(experience, named)
        else:
            drawn = self._of_steps(experience, named)
        return self._with_anchors(experience, named, drawn) if self.anchored else drawn

    def _of_steps(self, experience: Experience, named: Tensor) -> DrawnLevels:
        tree = experience.tree
        levels = self._among_steps(experience, tree.row.cpu(), named)
        counts = torch.tensor([len(level) for level in levels], dtype=torch.int64, device="cpu")
        level = torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *levels])
        image = torch.arange(len(named), device="cpu").repeat_interleave(counts)
        return DrawnLevels(
            image=image.to(tree.row.device),
            keys=torch.cat([named.repeat_interleave(counts, dim=0), level[:, None]], dim=1),
            sigma=tree.sigmas[level.to(tree.sigmas.device)],
            share=(level / (len(tree.sigmas) - 1) - self.low) / (self.high - self.low),
            anchor=torch.zeros(len(image), dtype=torch.bool, device=tree.row.device),
        )

    def _with_anchors(
        self, experience: Experience, named: Tensor, drawn: DrawnLevels
    ) -> DrawnLevels:
        """Add a level from outside the range to each image, after its others."""
        device = drawn.image.device
        # A number that none of the others has: those are steps, or parts.
        last = len(experience.tree.sigmas) + self.times_per_image
        keys = torch.cat([named, torch.full((len(named), 1), last, device="cpu")], dim=1)
        width = self.high - self.low
        place = experience.noise.uniform("forward anchor", keys, (1,))[:, 0] * (1 - width)
        place = torch.where(place < self.low, place, place + width)
        image = torch.cat([drawn.image, torch.arange(len(named), device=device)])
        order = image.argsort(stable=True)
        return DrawnLevels(
            image=image[order],
            keys=torch.cat([drawn.keys, keys])[order.cpu()],
            sigma=torch.cat([drawn.sigma, self._interpolated(experience, place)])[order],
            share=torch.cat([drawn.share, (place - self.low) / width])[order.cpu()],
            anchor=(torch.arange(len(image), device=device) >= len(drawn.image))[order],
        )

    @staticmethod
    def _interpolated(experience: Experience, place: Tensor) -> Tensor:
        """Noise levels at some places of the schedule, shares of it, shape (n,)."""
        sigmas = experience.tree.sigmas
        num_steps = len(sigmas) - 1
        # Rounding may lift the last place to 1, where nothing is noise any more.
        place = (place * num_steps).clamp(max=num_steps - 1e-3).to(sigmas)
        step = place.long()
        return torch.lerp(sigmas[step], sigmas[step + 1], place - step)

    def _among_steps(self, experience: Experience, rows: Tensor, named: Tensor) -> list[Tensor]:
        """Steps of the rollout for each image, each (at most times_per_image,) int64."""
        num_steps = len(experience.tree.sigmas) - 1
        allowed = self._steps(num_steps).expand(len(experience.index), -1)
        if self.rule == "selected":
            allowed = experience.schedule.stochastic.cpu()
        candidates = [steps.nonzero().flatten() for steps in allowed]
        levels = []
        for row, key in zip(rows.tolist(), named.tolist(), strict=True):
            order = experience.noise.permutation("forward level", key, len(candidates[row]))
            levels.append(candidates[row][order[: self.times_per_image]])
        return levels

    def _stratified(self, experience: Experience, named: Tensor) -> DrawnLevels:
        times, tree = self.times_per_image, experience.tree
        part = torch.arange(times, device="cpu").repeat(len(named))
        keys = torch.cat([named.repeat_interleave(times, dim=0), part[:, None]], dim=1)
        inside = experience.noise.uniform("forward level", keys, (1,))[:, 0]
        share = (part + inside) / times
        if self.agreement is not None:
            density = self.agreement.density(self._chosen(experience, self.agreement.parts))
            rows = tree.row.cpu().repeat_interleave(times)
            share = quantile(density[rows], share).float()
        sigma = self._interpolated(experience, self.low + (self.high - self.low) * share)
        image = torch.arange(len(named), device=tree.row.device).repeat_interleave(times)
        return DrawnLevels(image, keys, sigma, share, torch.zeros_like(image, dtype=torch.bool))

    def _chosen(self, experience: Experience, parts: int) -> Tensor:
        """Share of the steps that were chosen for each prompt in each part, (B, P) float64."""
        chosen = experience.schedule.stochastic.cpu().double()
        num_steps = chosen.shape[1]
        middle = (torch.arange(num_steps, device="cpu") + 0.5) / num_steps
        inside = (middle >= self.low) & (middle < self.high)
        part = ((middle - self.low) / (self.high - self.low) * parts).long().clamp(0, parts - 1)
        counts = torch.zeros(len(chosen), parts, dtype=torch.float64, device="cpu")
        counts.index_add_(1, part, chosen * inside)
        total = counts.sum(1, keepdim=True)
        return torch.where(total > 0, counts / total.clamp(min=1), 1 / parts)
