from __future__ import annotations

import pytest
import torch

from aegpo.advantages import GroupRelative, PerReward
from aegpo.rewards.base import Scores

PROMPT = torch.tensor([0, 0, 0, 1, 1, 1, 1])
WIDE = torch.tensor([10.0, 20.0, 60.0, 0.0, 5.0, 5.0, 9.0])
NARROW = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4, 0.4, 0.1])


def by_hand(part: torch.Tensor) -> torch.Tensor:
    values = torch.zeros(7)
    for prompt in (0, 1):
        own = part[prompt == PROMPT]
        values[prompt == PROMPT] = (own - own.mean()) / (own.std() + 1e-4)
    return values


def test_a_weight_means_what_it_says() -> None:
    total = WIDE + 2 * NARROW
    scores = Scores(total, {"wide": WIDE, "narrow": NARROW})
    weights = {"wide": 1.0, "narrow": 2.0}
    got = PerReward().of_scores(scores, weights, PROMPT)
    torch.testing.assert_close(got.values, by_hand(WIDE) + 2 * by_hand(NARROW))
    summed = GroupRelative().of_scores(scores, weights, PROMPT)
    torch.testing.assert_close(summed.values, by_hand(total))
    # On the sum the wide reward alone decides; compared by part, the narrow one does.
    assert summed.values[:3].argmax() == 2 and got.values[:3].argmax() != summed.values[:3].argmax()


def test_the_batch_can_be_normalized() -> None:
    scores = Scores(WIDE, {"wide": WIDE, "narrow": NARROW})
    weights = {"wide": 1.0, "narrow": 1.0}
    got = PerReward(normalize_batch=True).of_scores(scores, weights, PROMPT).values
    assert got.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)
    raw = by_hand(WIDE) + by_hand(NARROW)
    torch.testing.assert_close(got / got[0], raw / raw[0])


def test_missing_parts_and_silent_groups() -> None:
    flat = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 2.0, 3.0])
    wide = WIDE.clone()
    wide[6] = float("nan")
    scores = Scores(wide + flat, {"wide": wide, "flat": flat})
    got = PerReward().of_scores(scores, {"wide": 1.0, "flat": 1.0}, PROMPT)
    assert got.missing == 1 and got.values[6] == 0
    # The first group has nothing to learn by the second part, but by the first one.
    assert got.zero_variance.tolist() == [False, False]
    torch.testing.assert_close(got.values[:3], by_hand(WIDE)[:3])
    silent = PerReward().of_scores(Scores(flat, {"flat": flat}), {"flat": 1.0}, PROMPT)
    assert silent.zero_variance.tolist() == [True, False]


def test_parts_and_weights_must_agree() -> None:
    scores = Scores(WIDE, {"wide": WIDE})
    for weights in ({"wide": 1.0, "narrow": 2.0}, {}):
        with pytest.raises(ValueError, match="a score for each part that counts"):
            PerReward().of_scores(scores, weights, PROMPT)
