"""The rewards of an iteration as they are logged."""

from __future__ import annotations

import pytest
import torch

from aegpo.advantages import GroupRelative
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Scores
from lightning_modules.training.metrics import reward_metrics


@pytest.mark.parametrize(
    "names", [("missing", "mean"), ("std", "zero_variance_groups"), ("part/a", "category/b")]
)
def test_every_category_and_part_has_a_tag_of_its_own(names: tuple[str, str]) -> None:
    batch = PromptBatch(["a", "b"], torch.arange(2), [{"category": name} for name in names])
    total = torch.tensor([0.0, 1.0, 3.0, float("nan")])
    groups = torch.tensor([0, 0, 1, 1])
    scores = Scores(total, {"mean": total + 1, "a/b": total + 2})
    logged = reward_metrics(scores, groups, batch, GroupRelative()(total, groups))
    first, second = (name.replace("/", "%2F") for name in names)
    assert logged[f"reward/category/{first}"] == 0.5
    assert logged[f"reward/category/{second}"] == 3.0
    assert logged["reward/mean"] == pytest.approx(4 / 3)
    assert logged["reward/missing"] == 1 and logged["reward/zero_variance_groups"] == 1
    assert logged["reward/part/mean"] == pytest.approx(7 / 3)
    assert logged["reward/part/a%2Fb"] == pytest.approx(10 / 3)
    assert len(logged) == 9
