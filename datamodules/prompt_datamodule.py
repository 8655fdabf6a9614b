"""Prompts for training, validation and testing, on any number of ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aegpo.noise import run_seed
from aegpo.prompts import PromptBatch, category_of
from aegpo.prompts.known_texts import fingerprints
from aegpo.utilities.checks import require_positive
from datamodules.own_prompts import Auto, final_prompts, shares_of, with_held_out
from datamodules.prompt_dataset import PromptDataset
from datamodules.samplers import DeltaEntropySampler, EveryRankSampler


def categories(prompts: PromptDataset) -> list[str]:
    """Return the field `category` of every prompt, "all" where there is none."""
    return [category_of(record) for record in prompts.records]


class FixedImages(Dataset[dict[str, Any]]):
    """A fixed list of images to draw: prompts repeated so that each category gets an equal part.

    Args:
        prompts: The prompts.
        num_images: Rows, one image each.
    """

    def __init__(self, prompts: PromptDataset, num_images: int) -> None:
        members: dict[str, list[int]] = {}
        for row, name in enumerate(categories(prompts)):
            members.setdefault(name, []).append(row)
        cycles = itertools.cycle([itertools.cycle(rows) for rows in members.values()])
        self.prompts = prompts
        self.rows = [next(next(cycles)) for _ in range(num_images)]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the image's prompt; `index` is the image's own number, the key of its noise."""
        return {**self.prompts[self.rows[index]], "index": index}


class PromptDataModule(L.LightningDataModule):
    """Prompt batches: training prompts by the ΔEntropy sampler, fixed images for evaluation.

    Every rank sees the same batches and takes its share after the images have been allotted, so
    `batch_size` counts the prompts of all ranks together.

    Args:
        train_file: `.txt`, `.jsonl` or `.csv` file of prompts, or a bundled `set:split`, such as
            `shapes:train`.
        val_file: Prompts of the held-out evaluation; "auto" for those that belong to `train_file`:
            the split `heldout` of a bundled set, or a tenth of a file's prompts, which are then not
            trained on; None for no validation.
        test_file: Prompts of `test` and `predict`; "auto" for the split `hard` of the set of
            `train_file`, if it has one; None for those of `val_file`.
        column: Field that holds the prompt in `.jsonl` and `.csv` files.
        shares: Share of the training draws for each value of the field `category`, relative to
            their sum; "auto" for those that the bundled set of `train_file` comes with; None draws
            every prompt alike, as "auto" does for a file.
        batch_size: Prompts per iteration, over all ranks.
        batches_per_epoch: Iterations between two validations and checkpoints.
        val_images: Images of one evaluation, over all prompts.
        val_batch_size: Images drawn together in an evaluation.
        alpha: Exponent of ΔEntropy in the sampler's weights; 0 switches the weighting off.
        delta: Added to ΔEntropy, as a fraction of its mean.
        uniform_share: Share of the draws that ignores ΔEntropy.
        seed: Key of the prompt draws; None for the run's `seed_everything`.

    Raises:
        FileNotFoundError: If a prompt file does not exist.
        ValueError: If a file holds no prompt, a field is missing or a number is out of range.
    """

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        train_file: str,
        val_file: str | None = None,
        test_file: str | None = None,
        column: str = "prompt",
        shares: dict[str, float] | Auto | None = None,
        batch_size: int = 8,
        batches_per_epoch: int = 10,
        val_images: int = 512,
        val_batch_size: int = 128,
        alpha: float = 1.0,
        delta: float = 0.1,
        uniform_share: float = 0.2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if val_images < 0:
            raise ValueError(f"data.val_images={val_images} must be at least 0; 0 draws none")
        require_positive("data.val_batch_size", val_batch_size)
        require_positive("data.batches_per_epoch", batches_per_epoch)
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.val_images, self.val_batch_size = val_images, val_batch_size
        self.train_prompts, self.val_prompts = with_held_out(train_file, val_file, column)
        self.test_prompts = final_prompts(train_file, test_file, column, self.val_prompts)
        names = categories(self.train_prompts)
        known = sorted(set(names))
        given = shares_of(train_file, shares, known)
        strata = torch.tensor([known.index(name) for name in names], device="cpu")
        self.sampler = DeltaEntropySampler(
            self.train_prompts,
            batch_size,
            batches_per_epoch,
            strata=strata if given else None,
            shares=torch.tensor(given, device="cpu") if given else None,
            alpha=alpha,
            delta=delta,
            uniform_share=uniform_share,
            seed=run_seed(seed),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of `batch_size` different prompts, drawn one iteration at a time."""
        return DataLoader(
            self.train_prompts,
            batch_size=self.batch_size,
            sampler=self.sampler,
            collate_fn=PromptBatch.collate,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The fixed images of the held-out evaluation; an empty list without `val_file`."""
        return self._evaluation(self.val_prompts) if self.val_prompts else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The fixed images of the final evaluation.

        Returns:
            Batches of `test_file`'s prompts.

        Raises:
            ValueError: If neither `test_file` nor `val_file` is given.
        """
        if self.test_prompts is None:
            raise ValueError("test and predict need data.test_file or data.val_file")
        return self._evaluation(self.test_prompts)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same images as `test_dataloader`."""
        return self.test_dataloader()

    def _evaluation(self, prompts: PromptDataset) -> DataLoader[Any]:
        images = FixedImages(prompts, self.val_images)
        return DataLoader(
            images,
            batch_size=self.val_batch_size,
            sampler=EveryRankSampler(images),
            collate_fn=PromptBatch.collate,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state and whose it is, kept in every checkpoint."""
        return self.sampler.state_dict() | {"texts": self._texts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue drawing where the checkpoint was written.

        What is known of a prompt goes by its text: in another prompt file, or another order, a
        prompt keeps its ΔEntropy, and one that the checkpoint did not know counts as unseen.
        """
        before = dict(
            zip(state_dict["texts"].tolist(), state_dict["delta_entropy"].tolist(), strict=True)
        )
        texts = self._texts().tolist()
        known = sum(text in before for text in texts)
        if known < len(texts) or len(texts) < len(before):
            rank_zero_info(
                f"data.train_file has {len(texts)} prompts, {known} of which the checkpoint knows; "
                "the others count as unseen"
            )
        delta = torch.tensor([before.get(text, math.nan) for text in texts], device="cpu")
        self.sampler.load_state_dict({**state_dict, "delta_entropy": delta})

    def _texts(self) -> Tensor:
        return fingerprints(record["prompt"] for record in self.train_prompts.records)
