"""Height and width, in the order of diffusers: what `resolution` means wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aegpo.noise import KeyedNoise

Resolution = int | tuple[int, int]
"""Pixels: the side of a square image, or (height, width)."""


class Size(NamedTuple):
    """Height and width of an image in pixels, or of its latent.

    Attributes:
        height: Rows.
        width: Columns.
    """

    height: int
    width: int

    @classmethod
    def of(cls, given: int | Sequence[int]) -> Size:
        """The size that a number or a pair stands for.

        Args:
            given: The side of a square, or (height, width).

        Returns:
            The size.

        Raises:
            ValueError: If it is neither.

        Examples:
            >>> Size.of(512)
            Size(height=512, width=512)
            >>> Size.of([768, 512])
            Size(height=768, width=512)
        """
        sides = list(given) if isinstance(given, Sequence) else [given, given]
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ValueError(
                f"resolution={given}; give one number of pixels, or a pair [height, width]"
            )
        return cls(*sides)

    @property
    def area(self) -> int:
        """Height times width."""
        return self.height * self.width

    def __str__(self) -> str:
        """As it is typed: one number for a square."""
        return str(self.height) if self.height == self.width else f"[{self.height}, {self.width}]"


def accepted_size(given: Resolution, multiple: int, largest: int | None) -> Size:
    """Check a resolution against what a model takes.

    Args:
        given: The resolution in pixels.
        multiple: What both sides must be a multiple of, in pixels.
        largest: Most pixels of a side; None for no limit.

    Returns:
        The size in pixels.

    Raises:
        ValueError: If the model does not take it; the nearest sizes that it takes are named.
    """
    size = Size.of(given)
    last = None if largest is None else largest - largest % multiple

    def near(side: int, up: bool) -> int:
        rounded = max((side + (multiple - 1 if up else 0)) // multiple, 1) * multiple
        return rounded if last is None else min(rounded, last)

    below, above = (Size(near(size.height, up), near(size.width, up)) for up in (False, True))
    if below == size:
        return size
    nearest = f"is {below}" if below == above else f"sizes are {below} and {above}"
    raise ValueError(
        f"resolution={size}{'' if size.height == size.width else ' (height, width)'}; this model "
        f"takes multiples of {multiple} pixels"
        + ("" if largest is None else f" up to {largest}")
        + f"; the nearest {nearest}"
    )


def distinct_sizes(given: Resolution | Sequence[Resolution]) -> list[Size]:
    """The sizes that a `resolution` names: one, or the buckets of a list of pairs.

    Args:
        given: A number, a pair (height, width), or a list of pairs.

    Returns:
        One size or more, all different.

    Raises:
        ValueError: If it is none of these, a list is empty, or a bucket is there twice.
    """
    if isinstance(given, int) or (given and all(isinstance(side, int) for side in given)):
        return [Size.of(given)]  # type: ignore[arg-type]  # a flat list is one pair
    sizes = [Size.of(one) for one in given]
    twice = [size for size in sizes if sizes.count(size) > 1]
    if not sizes or twice:
        raise ValueError(
            f"resolution lists {f'the bucket {list(twice[0])} twice' if twice else 'no bucket'}; "
            "give [height, width] pairs, each once"
        )
    return sizes


def bucket_of(buckets: Sequence[Size], noise: KeyedNoise, iteration: int) -> Size | None:
    """The bucket in which an iteration draws its images: each once in as many iterations, shuffled.

    A function of seed and iteration alone, so that every rank has the same one, also after a
    resume.

    Args:
        buckets: The sizes, perhaps none.
        noise: The run's noise.
        iteration: Number of the iteration, from 0.

    Returns:
        The size; None without buckets.
    """
    if not buckets:
        return None
    turn, place = divmod(iteration, len(buckets))
    return buckets[int(noise.fixed().permutation("bucket", (turn,), len(buckets))[place])]
