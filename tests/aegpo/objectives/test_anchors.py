"""Anchors: a level of each image outside the range, held to the reference's prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_nft import ADVANTAGES, forward_samples
from toy_policy import ToyPolicy

from aegpo.objectives import AWM, NFT, LevelAgreement

RANGE: dict[str, Any] = {"times_per_image": 3, "level_range": (0.2, 0.8), "kl_coeff": 0.0}
OBJECTIVES = [
    NFT(**RANGE, levels="stratified"),
    NFT(**RANGE, levels="random"),
    AWM(**RANGE, ema_kl_coeff=0.0),
]


def anchored(objective: NFT | AWM, coeff: float = 2.0) -> NFT | AWM:
    more: dict[str, Any] = {} if isinstance(objective, NFT) else {"ema_kl_coeff": 0.0}
    return type(objective)(**RANGE, **more, levels=objective.levels.rule, anchor_coeff=coeff)


def moved() -> ToyPolicy:
    policy = ToyPolicy()
    policy.speed.data.fill_(0.9)  # the reference's is 0.5
    return policy


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_image_gets_one_level_outside_the_range(objective: NFT | AWM) -> None:
    plain = forward_samples(objective, ToyPolicy())
    samples = forward_samples(anchored(objective), ToyPolicy())
    assert torch.equal(samples.image, torch.arange(10).repeat_interleave(4))
    assert torch.equal(samples.anchor, torch.tensor([False] * 3 + [True]).repeat(10))
    outside = samples.sigma[samples.anchor]  # here 1 - the share of the schedule
    assert bool(((outside > 0.8) ^ (outside <= 0.2)).all()) and float(outside.min()) > 0
    assert bool((outside > 0.8).any()) and bool((outside < 0.2).any())
    # What is learned at is as without anchors, and no anchor has the noise of another sample.
    assert torch.equal(samples.sigma[~samples.anchor], plain.sigma)
    assert torch.equal(samples.keys[~samples.anchor.cpu()], plain.keys)
    assert len({tuple(key) for key in samples.keys.tolist()}) == 40
    apart = forward_samples(anchored(objective), ToyPolicy(), [2, 0])
    own = torch.cat([torch.arange(28, 40), torch.arange(0, 8)])
    assert torch.equal(apart.sigma, samples.sigma[own])
    assert torch.equal(apart.keys, samples.keys[own])


def test_anchors_are_uniform_over_what_a_range_leaves_out() -> None:
    objective = NFT(times_per_image=1, level_range=(0.0, 0.6), kl_coeff=0.0, anchor_coeff=1.0)
    levels = torch.cat(
        [
            samples.sigma[samples.anchor]
            for iteration in range(40)
            for samples in [forward_samples(objective, ToyPolicy(), iteration=iteration)]
        ]
    )
    assert len(set(levels.tolist())) == 400
    assert 0 < float(levels.min()) < 0.01 and 0.39 < float(levels.max()) <= 0.4
    assert float(levels.mean()) == pytest.approx(0.2, abs=0.02)
    assert float(levels.std()) == pytest.approx(0.4 / 12**0.5, abs=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_anchor_s_loss_is_its_distance_from_the_reference(objective: NFT | AWM) -> None:
    plain, samples = (
        forward_samples(objective, moved()),
        forward_samples(anchored(objective), moved()),
    )
    terms = samples.loss(torch.arange(40))
    at = samples.noised(torch.arange(40)[samples.anchor])
    with torch.no_grad():
        own = samples.experience.policy(at.latents, at.sigma, at.cond)
        with samples.experience.policy.reference():
            distance = (own - samples.experience.policy(at.latents, at.sigma, at.cond)).square()
    expected = 2.0 * distance.flatten(1).mean(1)
    assert float(expected.min()) > 0
    torch.testing.assert_close(terms.loss[samples.anchor].detach(), expected)
    learned = plain.loss(torch.arange(30)).loss
    torch.testing.assert_close(terms.loss[~samples.anchor], learned, equal_nan=True)
    # Micro-batches of any kind, one of nothing but anchors among them, come to the same.
    pieces = [samples.anchor.nonzero().flatten(), (~samples.anchor).nonzero().flatten()]
    for piece in [*pieces, torch.tensor([7, 0, 3]), torch.empty(0, dtype=torch.int64)]:
        part = samples.loss(piece)
        torch.testing.assert_close(part.loss, terms.loss[piece], equal_nan=True)
        for name in ("ratio", "clipped"):
            whole, own_part = getattr(terms, name), getattr(part, name)
            assert (whole is None) == (own_part is None)
            assert whole is None or own_part.shape == piece.shape
    if terms.ratio is not None:
        assert bool((terms.ratio[samples.anchor] == 1).all())
    held = samples.loss((samples.anchor & (samples.row >= 0)).nonzero().flatten()).loss.sum()
    (gradient,) = torch.autograd.grad(held, samples.experience.policy.speed)
    assert float(gradient) > 0  # descent leads from 0.9 back to 0.5


@pytest.mark.parametrize("coeff", [0.0, 1.0])
def test_what_anchors_cost(coeff: float) -> None:
    extra = 10 if coeff else 0
    objective = NFT(**RANGE, decay_rate=0.0, anchor_coeff=coeff)
    samples = forward_samples(objective, policy := moved())
    samples.loss(torch.arange(30 + extra))
    counts = policy.evaluations.counts
    assert (counts["rollout"], counts["update"]) == (30, 3 * (30 + extra))
    assert counts["reference"] == extra


def test_awm_keeps_anchors_of_images_that_say_nothing_and_no_old_value_of_any() -> None:
    objective = AWM(**RANGE, ema_kl_coeff=0.0, anchor_coeff=1.0)
    samples = forward_samples(objective, policy := moved())
    silent = (ADVANTAGES == 0).nonzero().flatten()
    kept = samples.active(torch.arange(40))
    assert len(silent) == 1 and len(kept) == 37  # three levels of the silent image are left out
    own = (samples.image == silent[0]) & samples.anchor
    assert own.nonzero().flatten().tolist()[0] in kept.tolist()
    samples.rescore([torch.arange(40)])
    assert policy.evaluations.counts["rollout"] == 30
    assert bool(samples.old[samples.anchor].isnan().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"level_range": (0.0, 1.0)},
            r"anchor_coeff is of levels outside level_range=\[0.0, 1.0\]",
        ),
        (
            {"level_range": (0.0, 0.6), "levels": LevelAgreement(parts=2)},
            "without a LevelAgreement",
        ),
        ({"level_range": (0.0, 0.6), "anchor_coeff": -1.0}, "anchor_coeff=-1.0 must be at least 0"),
    ],
)
@pytest.mark.parametrize("objective", [NFT, AWM])
def test_what_cannot_be_anchored_is_refused(
    objective: type[NFT | AWM], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**{"anchor_coeff": 1.0, **settings})
