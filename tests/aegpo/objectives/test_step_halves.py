"""The agreement of a step's half batches: whose gradients are compared, and on which rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_policy import ToyPolicy

from aegpo.exploration import AgreementSteps
from aegpo.noise import KeyedNoise
from aegpo.objectives import NFT, Experience, LevelAgreement, PolicyGradient
from aegpo.objectives.half_gradients import HalfGradients
from aegpo.objectives.transition_samples import Replay
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE

INDEX = torch.tensor([40, 7, 23, 5, 11])
SIZES = torch.tensor([2, 5, 3, 4, 2])


def replay(
    prompts: list[int], selector: AgreementSteps, policy: ToyPolicy, iteration: int = 0
) -> Replay:
    """The samples of some of five prompts, as a rank that holds only these would have them."""
    rows, noise = torch.tensor(prompts, dtype=torch.int64), KeyedNoise(3, iteration)
    schedule = selector(None, noise, INDEX, 6).select(rows)
    cond = policy.encode([0.1 * (1 + prompt) for prompt in prompts])
    tree = rollout(policy, FlowSDE(), cond, schedule, SIZES[rows], noise, INDEX[rows])
    rewards = torch.randn(len(tree), generator=torch.Generator().manual_seed(0))
    return PolicyGradient().samples(
        Experience(
            policy,
            FlowSDE(),
            cond,
            tree,
            schedule,
            rewards,
            rewards,
            INDEX[rows],
            noise,
            agreement=selector.agreement,
        )
    )


def test_each_halfs_gradient_is_that_of_its_own_samples() -> None:
    selector, policy = AgreementSteps(top_k=3), ToyPolicy()
    held = replay([0, 1, 2, 3, 4], selector, policy)
    which = torch.arange(0, len(held.row), 2)
    strata = held.strata(which)
    assert len(strata) == 6
    assert torch.cat(strata).sort().values.tolist() == which.tolist()
    for number, stratum in enumerate(strata):
        assert bool((held.tree.transitions.step[stratum] == number // 2).all())
    prompts = [set(held.row[stratum].tolist()) for stratum in strata]
    halves: list[set[int]] = [set().union(*prompts[half::2]) for half in (0, 1)]
    assert not halves[0] & halves[1] and halves[0] and halves[1]

    alone = []
    for stratum in strata:
        policy.speed.grad = None
        held.loss(stratum).loss.sum().backward()
        assert policy.speed.grad is not None
        alone.append(policy.speed.grad.clone())
    policy.speed.grad = None
    for number, stratum in enumerate(strata):
        held.loss(stratum).loss.sum().backward()
        held.note_gradients(number, [policy.speed])
    own = torch.stack(alone).double()
    assert selector.agreement is not None
    assert selector.agreement.count.tolist() == [1, 1, 1, 0, 0]
    expected = torch.cat([(own[0::2] * own[1::2]).sign().flatten(), torch.zeros(2).double()])
    torch.testing.assert_close(selector.agreement.agreement, expected)  # of one parameter: 1 or -1


def test_a_prompts_half_does_not_depend_on_its_rank() -> None:
    def halves(prompts: list[int], iteration: int) -> dict[int, int]:
        held = replay(prompts, AgreementSteps(top_k=2, explore=0.0), ToyPolicy(), iteration)
        return {
            int(INDEX[prompts][row]): number % 2
            for number, stratum in enumerate(held.strata(torch.arange(len(held.row))))
            for row in held.row[stratum].tolist()
        }

    whole = halves([0, 1, 2, 3, 4], 0)
    assert halves([3, 1], 0) | halves([2, 0, 4], 0) == whole
    assert any(halves([0, 1, 2, 3, 4], iteration) != whole for iteration in range(1, 6))
    # A rank without a prompt takes part with nothing.
    nothing = replay([], AgreementSteps(top_k=2), ToyPolicy())
    assert [len(one) for one in nothing.strata(torch.arange(0))] == [0] * 4


def test_it_is_measured_every_so_often() -> None:
    selector = AgreementSteps(top_k=2, every_n_iterations=3)
    counts = [
        len(replay([0, 1], selector, ToyPolicy(), iteration).strata(torch.arange(4)))
        for iteration in range(4)
    ]
    assert counts == [4, 1, 1, 4]


def test_parts_of_gradients_are_refused_and_copies_are_told() -> None:
    sharded: Any = SimpleNamespace(lockstep=object())
    with pytest.raises(ValueError, match=r"steps by X compare whole gradients.*fsdp2; use ddp, or"):
        HalfGradients(lambda _: None, 2, sharded, KeyedNoise(0), INDEX, ("steps by X", "Y"))
    assert AgreementSteps(top_k=3).gradient_copies == 8
    assert NFT(levels=LevelAgreement(parts=4)).gradient_copies == 10
    assert NFT().gradient_copies == PolicyGradient().gradient_copies == 0
