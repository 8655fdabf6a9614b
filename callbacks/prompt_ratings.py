"""What callbacks that rate prompts by earlier visits share: publishing, and gathering ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from aegpo.distributed import all_gather_rows
from aegpo.entropy.reading import EntropyReading
from aegpo.prompts import PromptBatch
from aegpo.training import Iteration, Training


def publish_ratings(pl_module: Training, batch: PromptBatch, ratings: Mapping[int, float]) -> None:
    """Put the prompts' ratings in the place of ΔEntropy; the curve stays, or is 0 without one.

    Without a probe the reading is that of the iteration before, which may have had other steps.

    Args:
        pl_module: Whose reading is replaced.
        batch: Its prompts, B.
        ratings: By dataset row. A prompt that has none counts as the mean of those that do; if none
            does, there is no ΔEntropy.
    """
    reading = pl_module.entropy
    shape = (len(batch), pl_module.num_steps)
    if reading is not None and reading.curve.shape != shape:
        reading = None
    if ratings:
        mean = sum(ratings.values()) / len(ratings)
        delta = torch.tensor([ratings.get(row, mean) for row in batch.index.tolist()], device="cpu")
        curve = torch.zeros(shape, device="cpu")
        pl_module.entropy = EntropyReading(curve if reading is None else reading.curve, delta)
    else:
        pl_module.entropy = None if reading is None else EntropyReading(reading.curve)


def by_prompt(last: Iteration, of_group: Callable[[Tensor], float]) -> dict[int, float]:
    """A number of each prompt's rewards in an iteration, over all ranks; every rank calls it.

    Args:
        last: The iteration, as far as this rank has it.
        of_group: Makes the number of a group's rewards, NaN where missing, shape (n,).

    Returns:
        The number by dataset row.
    """
    groups = [last.rewards[last.tree.row == row] for row in range(len(last.batch))]
    numbers = [of_group(group) for group in groups]  # of a rank without prompts, none
    columns = [
        last.batch.index.double().cpu(),
        torch.tensor(numbers, dtype=torch.float64, device="cpu"),
    ]
    gathered, _ = all_gather_rows(torch.stack(columns, dim=1))
    return {int(index): number for index, number in gathered.tolist()}
