"""Held-out means: over what could be scored, by category, on however many batches."""

from __future__ import annotations

import math

import pytest
import torch

from aegpo.prompts import PromptBatch
from aegpo.rollout import RolloutTree
from aegpo.rollout.tree import Transitions
from lightning_modules.training.held_out import HeldOut

NAN = float("nan")


def batch(*categories: str) -> PromptBatch:
    metadata = [{"category": category} for category in categories]
    return PromptBatch(["a"] * len(categories), torch.arange(len(categories)), metadata)


def plain_tree(number: int) -> RolloutTree:
    """Black images, one for each prompt, without a stochastic step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    latents = torch.zeros(number, 4, 1, 1)
    return RolloutTree(
        images=torch.zeros(number, 3, 2, 2),
        latents=latents,
        row=torch.arange(number),
        transitions=Transitions(
            latents[:0], latents[:0], latents[:0], nothing, torch.zeros(0), nothing
        ),
        parent=nothing,
        leaf_edge=torch.full((number,), -1),
        sigmas=torch.tensor([1.0, 0.0]),
        num_nodes=number,
    )


def add(held_out: HeldOut, prompts: PromptBatch, scores: list[float]) -> None:
    tree = plain_tree(len(prompts))
    held_out.add(prompts, prompts, tree, {"judge": torch.tensor(scores)})


def test_means_leave_out_what_is_missing_and_count_every_image_once() -> None:
    held_out = HeldOut()
    add(held_out, batch("two", "one", "one"), [0.5, 1.0, NAN])
    add(held_out, batch("two"), [0.25])
    assert held_out.metrics() == {
        "val/judge": pytest.approx((0.5 + 1.0 + 0.25) / 3),
        "val/judge/one": 1.0,
        "val/judge/two": 0.375,
    }
    assert list(held_out.metrics("test")) == ["test/judge", "test/judge/one", "test/judge/two"]


def test_a_slash_in_a_name_is_none_in_the_tag() -> None:
    held_out = HeldOut()
    tree = plain_tree(2)
    prompts = batch("a/b", "missing")
    held_out.add(prompts, prompts, tree, {"my/judge": torch.tensor([0.25, 0.75])})
    assert held_out.metrics() == {
        "val/my%2Fjudge": 0.5,
        "val/my%2Fjudge/a%2Fb": 0.25,
        "val/my%2Fjudge/missing": 0.75,
    }


def test_one_category_has_no_row_of_its_own_and_no_score_is_no_zero() -> None:
    held_out = HeldOut()
    assert held_out.metrics() == {}
    add(held_out, batch("one", "one"), [NAN, NAN])
    (value,) = held_out.metrics().values()
    assert math.isnan(value)
