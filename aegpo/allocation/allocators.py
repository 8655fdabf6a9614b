"""Global allocation: how many images each prompt of an iteration receives.

Every allocator spends a budget that depends on the number of prompts only, so runs with and
without adaptive allocation cost the same. Sizes are made on the CPU, int64, shape (B,).
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from aegpo.entropy.reading import EntropyReading


class Allocator(abc.ABC):
    """Distributes an iteration's images over its prompts.

    A group needs at least 2 images: the advantage of a single one is always 0.
    """

    @property
    @abc.abstractmethod
    def images_per_prompt(self) -> float:
        """Mean number of images per prompt: the budget divided by the number of prompts."""

    @abc.abstractmethod
    def __call__(self, entropy: EntropyReading | None, num_prompts: int) -> Tensor:
        """Choose the group sizes of B prompts.

        Args:
            entropy: Reading of the same B prompts, or None when nothing has been read yet.
            num_prompts: B, prompts in the iteration over all ranks.

        Returns:
            Images per prompt, int64, shape (B,); each at least 2, their sum `budget(B)`.
        """

    def budget(self, num_prompts: int) -> int:
        """Images per iteration for B prompts, whatever the entropy says.

        Args:
            num_prompts: B, prompts in the iteration over all ranks.

        Returns:
            Number of images.
        """
        return round(self.images_per_prompt * num_prompts)

    def validate(self, num_prompts: int) -> None:
        """Check that the budget can be spent exactly, before any model is loaded.

        Args:
            num_prompts: B, prompts in the iteration over all ranks.

        Raises:
            ValueError: If there is no prompt or the budget is not a whole number of images.
        """
        if num_prompts < 1:
            raise ValueError(f"an iteration needs at least 1 prompt, but batch_size={num_prompts}")


def _require_group(name: str, size: int) -> None:
    if size < 2:
        raise ValueError(
            f"{name}={size} makes a group of fewer than 2 images, whose advantage is always 0; "
            f"set {name} to at least 2"
        )


def _equal_sizes(budget: int, num_prompts: int) -> Tensor:
    """The budget in equal parts, (B,); a remainder goes one image each to the first prompts."""
    share, rest = divmod(budget, num_prompts)
    return share + (torch.arange(num_prompts, device="cpu") < rest).long()


def _informative_delta(entropy: EntropyReading | None, num_prompts: int) -> Tensor | None:
    """ΔEntropy (B,) in float64, or None if it cannot tell the prompts apart.

    Equal values everywhere, as before the first update, say no more than a missing reading;
    ranking them would favor prompts by their row.
    """
    if entropy is None or entropy.delta is None:
        return None
    delta = entropy.delta.detach().double().cpu()
    if delta.shape != (num_prompts,):
        raise ValueError(
            f"delta has shape {tuple(delta.shape)}, but there are {num_prompts} prompts"
        )
    return None if bool((delta == delta[0]).all()) else delta


class UniformAllocator(Allocator):
    """Gives every prompt the same number of images.

    Args:
        images_per_prompt: Images per prompt, at least 2.

    Raises:
        ValueError: If `images_per_prompt` is below 2.
    """

    def __init__(self, images_per_prompt: int = 12) -> None:
        _require_group("images_per_prompt", images_per_prompt)
        self._images_per_prompt = images_per_prompt

    @property
    def images_per_prompt(self) -> float:
        """Images per prompt."""
        return float(self._images_per_prompt)

    def __call__(self, entropy: EntropyReading | None, num_prompts: int) -> Tensor:
        """The same size for all, (B,); see `Allocator.__call__`."""
        self.validate(num_prompts)
        return _equal_sizes(self.budget(num_prompts), num_prompts)


class MedianSplitAllocator(Allocator):
    """Gives the half of the prompts with the larger ΔEntropy more images, as AEGPO does.

    AEGPO (arXiv 2602.06825) splits the batch at its median: 16 images above, 8 below, 12 on
    average. Equal values at the median are resolved in favor of the earlier row, so the budget is
    always B (low + high) / 2. With an odd number of prompts the middle one receives the mean.
    Without any ΔEntropy, or when it is the same for all, every prompt receives the mean.

    Args:
        low: Images of a prompt in the lower half, at least 2.
        high: Images of a prompt in the upper half, at least `low`.

    Raises:
        ValueError: If `low` is below 2 or above `high`.

    Examples:
        >>> from aegpo.entropy import EntropyReading
        >>> allocate = MedianSplitAllocator(low=8, high=16)
        >>> delta = torch.tensor([0.3, 0.1, 0.2, 0.4])
        >>> allocate(EntropyReading(torch.ones(4, 10), delta), num_prompts=4)
        tensor([16,  8,  8, 16])

        Of three prompts the middle one receives the mean, as all do before the first reading:

        >>> allocate(EntropyReading(torch.ones(3, 10), delta[:3]), num_prompts=3)
        tensor([16,  8, 12])
        >>> allocate(None, num_prompts=3)
        tensor([12, 12, 12])
    """

    def __init__(self, low: int = 8, high: int = 16) -> None:
        _require_group("low", low)
        if high < low:
            raise ValueError(f"high={high} must be at least low={low}")
        self.low = low
        self.high = high

    @property
    def images_per_prompt(self) -> float:
        """Mean of `low` and `high`."""
        return (self.low + self.high) / 2

    def __call__(self, entropy: EntropyReading | None, num_prompts: int) -> Tensor:
        """`high` for the upper half, `low` for the lower, (B,); see `Allocator.__call__`."""
        self.validate(num_prompts)
        delta = _informative_delta(entropy, num_prompts)
        if delta is None:
            return _equal_sizes(self.budget(num_prompts), num_prompts)
        half = num_prompts // 2
        order = delta.argsort(descending=True, stable=True)
        # Only an odd batch has a middle prompt, and then validate() has found the mean whole.
        sizes = torch.full(
            (num_prompts,), (self.low + self.high) // 2, dtype=torch.int64, device="cpu"
        )
        sizes[order[:half]] = self.high
        sizes[order[num_prompts - half :]] = self.low
        return sizes

    def validate(self, num_prompts: int) -> None:
        """Check that an odd batch has a whole middle size; see `Allocator.validate`."""
        super().validate(num_prompts)
        if num_prompts % 2 and (self.low + self.high) % 2:
            raise ValueError(
                f"an odd batch_size={num_prompts} cannot be split into halves of low={self.low} "
                f"and high={self.high} images; use an even batch_size, or make low + high even"
            )


class ProportionalAllocator(Allocator):
    """Gives every prompt a minimum and shares the rest in proportion to a power of ΔEntropy.

    Shares are rounded by largest remainder, so that a larger ΔEntropy never receives fewer
    images. Without any ΔEntropy, or when it is the same for all, the sizes are equal.

    Args:
        images_per_prompt: Mean number of images per prompt, at least `minimum`.
        minimum: Images that every prompt receives, at least 2.
        power: Exponent on ΔEntropy: 0 shares equally, 1 in proportion, more sharpens.
        maximum: Images that no prompt exceeds, at least `images_per_prompt`; None for any number.
            What is above it goes to the others, by the same rule.

    Raises:
        ValueError: If `minimum` is below 2 or above `images_per_prompt`, `maximum` is below it, or
            `power` is negative.
    """

    def __init__(
        self,
        images_per_prompt: int = 12,
        minimum: int = 2,
        power: float = 1.0,
        maximum: int | None = None,
    ) -> None:
        _require_group("minimum", minimum)
        if images_per_prompt < minimum:
            raise ValueError(
                f"images_per_prompt={images_per_prompt} must be at least minimum={minimum}"
            )
        if not (math.isfinite(power) and power >= 0):
            raise ValueError(f"power={power} must be a finite number of at least 0")
        if maximum is not None and maximum < images_per_prompt:
            raise ValueError(
                f"maximum={maximum} must be at least images_per_prompt={images_per_prompt}, or the "
                "budget cannot be spent"
            )
        self._images_per_prompt = images_per_prompt
        self.minimum, self.maximum = minimum, maximum
        self.power = power

    @property
    def images_per_prompt(self) -> float:
        """Mean number of images per prompt."""
        return float(self._images_per_prompt)

    def __call__(self, entropy: EntropyReading | None, num_prompts: int) -> Tensor:
        """The minimum and a share of the rest, (B,); see `Allocator.__call__`."""
        self.validate(num_prompts)
        delta = _informative_delta(entropy, num_prompts)
        if delta is None:
            return _equal_sizes(self.budget(num_prompts), num_prompts)
        # Dividing by the maximum first keeps the power from over- or underflowing.
        weight = (delta / delta.max()) ** self.power
        shared = self.budget(num_prompts) - self.minimum * num_prompts
        quota = self._capped(shared * (weight / weight.sum()), weight, shared)
        sizes = quota.floor()
        # By remainder; where rounding made remainders equal, by ΔEntropy, then by row.
        order = delta.argsort(descending=True, stable=True)
        order = order[(quota - sizes)[order].argsort(descending=True, stable=True)]
        sizes[order[: shared - int(sizes.sum())]] += 1
        return sizes.long() + self.minimum

    def _capped(self, quota: Tensor, weight: Tensor, shared: int) -> Tensor:
        """Hand what is above the maximum to the others, until nothing is, (B,)."""
        if self.maximum is None:
            return quota
        room = self.maximum - self.minimum
        full = torch.zeros_like(quota, dtype=torch.bool)
        while bool((quota > room).any()):
            full |= quota > room
            rest = torch.where(full, 0.0, weight)
            if not bool(rest.any()):  # the others have no ΔEntropy at all
                rest = (~full).to(weight)
            left = shared - room * int(full.sum())
            quota = torch.where(full, float(room), left * (rest / rest.sum()))
        return quota
