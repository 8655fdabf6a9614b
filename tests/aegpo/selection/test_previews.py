"""Early stopping by previews: what is drawn, which paths go on, and from which step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.rollout import RolloutTree, rollout
from aegpo.samplers import AdamsBashforth
from aegpo.sde import ODE
from aegpo.selection import AllImages, Extremes, Previews

INDEX, SIZES, T = torch.tensor([40, 7, 23]), torch.tensor([6, 3, 5]), 7
NOISE = KeyedNoise(3, 1)  # of an iteration that is not watched


def draw(policy: ToyPolicy, rows: Tensor, stopper: Any = None, sampler: Any = None) -> RolloutTree:
    cond = policy.encode([0.1 * (1 + row) for row in rows.tolist()])
    schedule = ExplorationSchedule.deterministic(len(rows), T)
    return rollout(
        policy,
        ODE(),
        cond,
        schedule,
        SIZES[rows],
        NOISE,
        INDEX[rows],
        sampler=sampler,
        stopper=stopper,
    )


def brightness(clean: Tensor, row: Tensor) -> Tensor:
    assert len(clean) == len(row)
    return clean.flatten(1).mean(1)


def knowing(correlations: list[float]) -> Previews:
    """Previews that have seen these correlations."""
    previews = Previews(every_n_iterations=10)
    moments = [[one, 1.0, 1.0] for one in correlations]
    previews.load_state_dict({"moments": torch.tensor(moments, dtype=torch.float64)})
    return previews


@pytest.mark.parametrize("sampler", [None, AdamsBashforth()])
def test_the_extremes_go_on_and_end_where_they_would_have(sampler: Any) -> None:
    previews, rows = knowing([0.1, 0.2, 0.9, 0.8, 0.95, 0.99]), torch.arange(3)
    assert previews.step() == 2
    policy = ToyPolicy()
    whole = draw(policy, rows, sampler=sampler)
    spent = dict(policy.evaluations.counts)
    stopper = previews.begin(Extremes(keep=4, split="even"), brightness, NOISE, INDEX, T)
    tree = draw(policy, rows, stopper, sampler)
    assert torch.bincount(tree.row).tolist() == [4, 3, 4]
    assert stopper.scored == 14 and not stopper.watches
    # Three steps of all, and four of those that are left.
    assert tree.num_nodes == 14 * 3 + 11 * 4
    now = policy.evaluations.counts
    assert sum(now.values()) - sum(spent.values()) == 14 * 3 + 11 * 4
    # Each is one of the whole rollout, in its order.
    places = [
        (one == whole.latents).flatten(1).all(1).nonzero().flatten().tolist()
        for one in tree.latents
    ]
    assert all(len(place) == 1 for place in places)
    kept = [place[0] for place in places]
    assert kept == sorted(kept)

    # The choice by hand, from previews of the third step: x - sigma v.
    seen: list[Tensor] = []

    class Look:
        def due(self, step: int) -> bool:
            return step == 2

        def choose(self, step: int, clean: Tensor, row: Tensor) -> None:
            seen.append(brightness(clean, row))

    draw(policy, rows, Look(), sampler)
    expected = []
    for row in range(3):
        member = (whole.row == row).nonzero().flatten()
        order = member[seen[0][member].argsort()].tolist()
        expected += order if len(order) <= 4 else [*order[:2], *order[-2:]]
    assert kept == sorted(expected)


def test_a_prompts_images_do_not_depend_on_its_rank() -> None:
    def images(rows: list[int]) -> dict[int, Tensor]:
        which = torch.tensor(rows)
        previews = knowing([0.9] * 6)
        stopper = previews.begin(Extremes(keep=2), brightness, NOISE, INDEX[which], T)
        tree = draw(ToyPolicy(), which, stopper)
        return {row: tree.latents[tree.row == number] for number, row in enumerate(rows)}

    whole, parts = images([0, 1, 2]), images([2, 0]) | images([1])
    assert all(torch.equal(whole[row], parts[row]) for row in range(3))


def test_a_watched_rollout_is_finished_and_its_correlations_are_those_inside_groups() -> None:
    previews = Previews(bound=0.9, decay=0.5)
    policy = ToyPolicy()
    stopper = previews.begin(Extremes(keep=2), brightness, NOISE, INDEX, T)
    assert stopper.watches  # nothing is known
    seen: list[Tensor] = []
    choose = stopper.choose

    def note(step: int, clean: Tensor, row: Tensor) -> Tensor | None:
        seen.append(brightness(clean, row))
        return choose(step, clean, row)

    stopper.choose = note  # type: ignore[method-assign]
    tree = draw(policy, torch.arange(3), stopper)
    assert len(tree) == 14 and stopper.scored == 14 * (T - 1) and len(seen) == T - 1
    rewards = torch.randn(14, generator=torch.Generator().manual_seed(0))
    rewards[4] = torch.nan
    stopper.learn(rewards, tree.row)
    known = rewards.isfinite()
    for step in range(T - 1):
        pairs = []
        for row in range(3):
            member = (tree.row == row) & known
            one = torch.stack([seen[step][member], rewards[member]]).double()
            pairs.append(one - one.mean(1, keepdim=True))
        x, y = torch.cat(pairs, 1)
        expected = float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())
        assert float(previews.correlation[step]) == pytest.approx(expected, rel=1e-5)
    # What was seen before counts half as much.
    moments = previews.state_dict()["moments"].clone()
    previews.learn(torch.ones(T - 1, 3, dtype=torch.float64))
    torch.testing.assert_close(previews.state_dict()["moments"], moments / 2 + 1)
    resumed = Previews(bound=0.9)
    resumed.load_state_dict(previews.state_dict())
    assert torch.equal(resumed.correlation, previews.correlation)
    assert resumed.metrics() == previews.metrics()


def test_it_watches_every_so_often_and_stops_nowhere_below_the_bound() -> None:
    previews = knowing([0.1, 0.84, 0.2, 0.1, 0.1, 0.1])
    assert previews.step() is None and previews.metrics()["previews/step"] == 6
    selection = Extremes(keep=2)
    watched = [
        previews.begin(selection, brightness, KeyedNoise(0, i), INDEX, T).watches for i in range(21)
    ]
    assert [i for i, one in enumerate(watched) if one] == [0, 10, 20]
    stopper = previews.begin(selection, brightness, NOISE, INDEX, T)
    assert len(draw(ToyPolicy(), torch.arange(3), stopper)) == 14 and stopper.scored == 0
    # Another number of steps begins anew.
    assert previews.begin(selection, brightness, NOISE, INDEX, 5).watches
    assert previews.correlation.tolist() == [0] * 4
    with pytest.raises(TypeError, match="need Extremes, not AllImages"):
        previews.begin(AllImages(), brightness, NOISE, INDEX, T)


def test_a_group_whose_previews_cannot_be_read_is_finished() -> None:
    def unreadable(clean: Tensor, row: Tensor) -> Tensor:
        return brightness(clean, row).masked_fill(row == 0, torch.nan)

    stopper = knowing([0.9] * 6).begin(Extremes(keep=2), unreadable, NOISE, INDEX, T)
    tree = draw(ToyPolicy(), torch.arange(3), stopper)
    assert torch.bincount(tree.row).tolist() == [6, 2, 2]


@pytest.mark.parametrize(
    "settings", [{"bound": 0.0}, {"bound": 1.0}, {"decay": 1.0}, {"every_n_iterations": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Previews(**settings)
