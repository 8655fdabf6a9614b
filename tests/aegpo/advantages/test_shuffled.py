"""Shuffled rewards: the right numbers on the wrong images."""

from __future__ import annotations

import math

import torch

from aegpo.advantages import GroupRelative, ShuffledRewards


def test_groups_keep_their_own_advantages_in_another_order() -> None:
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(0))
    prompt = torch.arange(24) % 2
    true = GroupRelative()(rewards, prompt).values
    shuffled = ShuffledRewards()(rewards, prompt).values
    assert not torch.equal(shuffled, true)
    for group in range(2):
        own = prompt == group
        torch.testing.assert_close(shuffled[own].sort().values, true[own].sort().values)
    assert torch.equal(shuffled, ShuffledRewards()(rewards, prompt).values)
    assert not torch.equal(shuffled, ShuffledRewards(seed=1)(rewards, prompt).values)


def test_no_image_keeps_any_of_its_reward_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.zeros(12, dtype=torch.int64)
    products = []
    for _ in range(800):
        rewards = torch.rand(12, generator=generator)
        true = GroupRelative()(rewards, prompt).values
        products.append((true * ShuffledRewards()(rewards, prompt).values).mean())
    # 1 without the shuffle; 0 with it, within 4 standard errors of sqrt(1 / 11 / 800).
    assert abs(float(torch.stack(products).mean())) < 4 * math.sqrt(1 / 11 / 800)


def test_missing_rewards_stay_missing() -> None:
    rewards = torch.tensor([0.1, math.nan, 0.5, 0.9, 0.7])
    values = ShuffledRewards()(rewards, torch.zeros(5, dtype=torch.int64)).values
    assert float(values[1]) == 0.0
    assert (values[[0, 2, 3, 4]] != 0).all()
