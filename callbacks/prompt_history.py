"""PromptHistory: draws and budgets by the rewards of a prompt's earlier visits."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aegpo.allocation import PromptRule, Visits
from aegpo.noise import KeyedNoise
from aegpo.planning.counts import PlansEvaluations
from aegpo.prompts import PromptBatch, category_of
from aegpo.prompts.known_texts import KnownTexts
from aegpo.training import Training
from callbacks.prompt_ratings import by_prompt, publish_ratings


class PromptHistory(L.Callback, PlansEvaluations):
    """Remembers how the rewards of each prompt's images differed, and rates the prompt by a rule.

    The rating takes the place of ΔEntropy for the allocator, and right after a visit for the prompt
    sampler, whose `data.alpha`, `data.delta` and `data.uniform_share` say what is made of it: with
    1, a small number and 0 a prompt is drawn in proportion to it. Prompts that were never drawn
    are drawn first, and for the allocator count as the mean of those that were; with
    `category_visits` both count as what their category has shown. It costs no evaluation.

    Args:
        rule: What a prompt is worth by its visits.
        decay: Share of the past in running means, in [0, 1); 0 knows the last visit alone.
        draws: Whether the prompt sampler is told.
        shuffled: The control: the visits of an iteration are entered under each other's prompts, so
            that ratings vary as much and say nothing.
        category_visits: How many visits of a prompt's own the mean record of its category (the
            field `category` of the prompt file) weighs as much as; 0 knows each prompt by itself.
            A file with many prompts that say nothing is seen through after a few of them.

    Raises:
        ValueError: If `decay` or `category_visits` is out of range, or, as training starts, if
            categories are asked for and the data does not list its prompts.
    """

    publishes = ("delta",)

    def __init__(
        self,
        rule: PromptRule,
        decay: float = 0.5,
        draws: bool = True,
        shuffled: bool = False,
        category_visits: float = 0.0,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"PromptHistory: decay={decay} must be at least 0 and below 1")
        if not 0 <= category_visits < math.inf:
            raise ValueError(
                f"PromptHistory: category_visits={category_visits} must be finite and at least 0"
            )
        self.rule, self.decay, self.draws, self.shuffled = rule, decay, draws, shuffled
        self.category_visits = category_visits
        self.visits: dict[int, Visits] = {}
        self.texts = KnownTexts()
        self.categories: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Take note of the prompts' categories; forget those whose text is another one now."""
        prompts = getattr(trainer.datamodule, "train_prompts", None)  # type: ignore[attr-defined]
        if prompts is None:
            if self.category_visits:
                raise ValueError(
                    f"PromptHistory: category_visits={self.category_visits} needs data that lists "
                    "its `train_prompts`, as PromptDataModule does; leave it out"
                )
            return
        self.categories = [category_of(record) for record in prompts.records]
        for index in self.texts.stale([record["prompt"] for record in prompts.records]):
            self.visits.pop(index, None)

    def ratings(self) -> dict[int, float]:
        """What each prompt is worth of which something is known, by dataset row."""
        if not self.category_visits:
            return {index: self.rule(visits) for index, visits in self.visits.items()}
        members: dict[str, list[Visits]] = {}
        for index, visits in self.visits.items():
            members.setdefault(self.categories[index], []).append(visits)
        of_category = {category: Visits.mean(several) for category, several in members.items()}
        return {
            index: self.rule(
                self.visits.get(index, Visits()).leaning_on(
                    of_category[category], self.category_visits
                )
            )
            for index, category in enumerate(self.categories)
            if category in of_category
        }

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Training, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Publish the ratings of this batch, as far as they are known."""
        for index in self.texts.replaced(batch):
            self.visits.pop(index, None)
        publish_ratings(pl_module, batch, self.ratings())

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        """Enter the visits of this iteration, of all ranks, and tell the sampler."""
        of_prompt = by_prompt(pl_module.last, _variance)
        # The batch's own order: that of the ranks changes with their number.
        order = batch.index.tolist()
        entered = [of_prompt[index] for index in order]
        if self.shuffled:
            noise = pl_module.noise.at(pl_module.iteration)
            entered = _shuffled(entered, noise)
        for index, variance in zip(order, entered, strict=True):
            self.visits[index] = self.visits.get(index, Visits()).after(variance, self.decay)
        silent = sum(visits.silent > 0 for visits in self.visits.values()) / len(self.visits)
        pl_module.log("sampler/silent_share", silent, rank_zero_only=True)
        if self.draws:
            ratings = self.ratings()
            sampler = trainer.datamodule.sampler  # type: ignore[attr-defined]
            sampler.update(
                torch.tensor(list(ratings), device="cpu"),
                torch.tensor(list(ratings.values()), device="cpu"),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the visits."""
        return {
            "visits": {
                index: [one.count, one.silent, one.variance] for index, one in self.visits.items()
            },
            "texts": self.texts.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.visits = {index: Visits(*one) for index, one in state_dict["visits"].items()}
        self.texts.load_state_dict(state_dict["texts"])


def _variance(rewards: Tensor) -> float:
    """Unbiased variance of the rewards of one group that are known, NaN for fewer than two."""
    finite = rewards[rewards.isfinite()].double()
    if len(finite) < 2:
        return float("nan")
    # Compared exactly: the mean of equal floats may be off by a rounding error.
    return 0.0 if bool((finite == finite[0]).all()) else float(finite.var())


def _shuffled(values: list[float], noise: KeyedNoise) -> list[float]:
    order = noise.permutation("shuffled visits", (), len(values))
    return [values[place] for place in order.tolist()]
