"""The variance that steps explain, on a policy of which it is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_policy import ToyConditioning, ToyPolicy

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import EntropyPeaks
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch
from aegpo.rewards.base import Reward
from aegpo.sde import FlowSDE
from aegpo.study.step_trials import single_step_groups
from aegpo.study.step_variance import StepVariance, VarianceTerms, trial_variance

NAN = math.nan
T, K, ETA = 6, 2, 0.7


class Eraser(ToyPolicy):
    """Stands still, but forgets everything at step K: only the noise of steps K to T - 2 counts."""

    def forward(self, latents: Tensor, sigma: Tensor, cond: ToyConditioning) -> Tensor:
        self.evaluations.add(len(latents))
        at_k = (sigma - (1 - K / T)).abs() < 1e-6
        return torch.where(at_k.reshape(-1, 1, 1, 1), T * latents, torch.zeros_like(latents))

    def encode(self, prompts: list[str]) -> ToyConditioning:
        return ToyConditioning(torch.zeros(len(prompts), 1, 1))

    def decode(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, -1, -1)


class Sum(Reward):
    """Sum of the latents: its variance is 4 times that of one of them."""

    name = "sum"

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return images[:, 0].flatten(1).sum(1)


def prompts(count: int, start: int = 0) -> PromptBatch:
    index = torch.arange(start, start + count)
    return PromptBatch([f"prompt {row}" for row in index.tolist()], index, [{}] * count)


def expected() -> list[float]:
    """4 std² of Flow-SDE from step K on; at sigma = 1 it would use the next sigma."""
    sigmas = [1 - step / T for step in range(T)]
    std2 = [ETA**2 * sigma / (1 - sigma) / T if sigma < 1 else 0.0 for sigma in sigmas]
    return [4 * std2[step] if step >= K else 0.0 for step in range(T - 1)] + [0.0]


def trials(batch: PromptBatch, images: int, reward: Reward | None = None) -> list[Tensor]:
    settings = {"num_steps": T, "images": images, "eta": ETA, "purpose": "probe"}
    noise = KeyedNoise(1).apart("trials")
    return [
        single_step_groups(
            Eraser(), FlowSDE(), reward or Sum(), batch, noise, step=step, **settings
        ).rewards
        for step in range(T - 1)
    ]


def test_trials_find_the_step_that_matters_and_how_much() -> None:
    variance = StepVariance(T, decay=0.5)
    variance.update(trial_variance(trials(prompts(200), 6)), 0)
    assert variance.freedom.tolist() == [200 * 5.0] * (T - 1) + [0.0]
    # 1,000 degrees of freedom: a variance is known to sqrt(2 / 1000) = 4.5 %.
    torch.testing.assert_close(
        variance.estimate[:-1], torch.tensor(expected()[:-1]).double(), rtol=0.15, atol=1e-9
    )
    curve = variance.curve(1).float().expand(3, -1)
    chosen = EntropyPeaks(top_k=1)(EntropyReading(curve), KeyedNoise(0), torch.arange(3), T)
    assert chosen.stochastic.nonzero()[:, 1].tolist() == [K] * 3


def test_the_terms_are_the_variances_of_the_groups_that_are_there() -> None:
    rewards = [
        torch.tensor([[1.0, 3.0, 8.0], [1.0, NAN, NAN]]),
        torch.tensor([[NAN, 2.0, 4.0]] * 2),
    ]
    terms = trial_variance(rewards)
    assert terms.freedom.tolist() == [[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    # 1, 3, 8 lie 3, 1, 4 from their mean: 26 squares; 2 and 4 lie 1 and 1.
    torch.testing.assert_close(
        terms.squares, torch.tensor([[26.0, 2.0, 0.0], [0.0, 2.0, 0.0]]).double()
    )


def test_a_reward_that_always_fails_tells_nothing() -> None:
    class Broken(Sum):
        def __call__(self, images: Tensor, prompts: list, metadata: list) -> Tensor:
            return torch.full((len(prompts),), NAN)

    variance = StepVariance(T, decay=0.5)
    with pytest.warns(UserWarning, match="counted missing"):
        variance.update(trial_variance(trials(prompts(2), 3, Broken())), 0)
    assert not variance.known.any() and variance.curve(1).isfinite().all()


def terms(values: list[float], freedom: list[float]) -> VarianceTerms:
    weight = torch.tensor([freedom]).double()
    return VarianceTerms(torch.tensor([values]).double() * weight, weight)


def test_measurements_count_by_freedom_and_fade() -> None:
    variance = StepVariance(3, decay=0.5)
    variance.update(terms([4.0, 1.0, 0.0], [2.0, 3.0, 0.0]), 0)
    variance.update(terms([7.0, 0.0, 0.0], [3.0, 0.0, 0.0]), 1)
    # Two degrees of 4, halved, and three of 7; the step that was left out keeps its own.
    assert variance.estimate[:2].tolist() == pytest.approx([(1 * 4 + 3 * 7) / 4, 1.0])
    assert variance.seen.tolist() == [1, 0, -1]
    variance.update(terms([0.0, 3.0, 0.0], [0.0, 1.5, 0.0]), 2)  # 0.75 of 1 against 1.5 of 3
    assert float(variance.estimate[1]) == pytest.approx((0.75 * 1 + 1.5 * 3) / 2.25)
    only_last = StepVariance(3, decay=0.0)
    only_last.update(terms([4.0, 1.0, 0.0], [2.0, 3.0, 0.0]), 0)
    only_last.update(terms([7.0, 2.0, 0.0], [1.0, 1.0, 0.0]), 1)
    assert only_last.estimate[:2].tolist() == [7.0, 2.0]


def test_unseen_steps_lie_above_all_others_the_longest_unseen_first() -> None:
    variance = StepVariance(6, decay=0.9, revisit_every=10)
    assert variance.curve(0)[:-1].argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    variance.update(terms([5.0, 0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]), 3)
    variance.update(terms([0, -2.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]), 4)
    curve = variance.curve(5)
    assert curve[:-1].argsort(descending=True).tolist() == [2, 3, 4, 0, 1]
    assert float(curve[4]) > 5.0 and curve[1] == 0.0 and curve[5] == 0.0  # clamped; the last step
    variance.update(terms([0, 0, 3.0, 2.0, 1.0, 0], [0, 0, 1.0, 1.0, 1.0, 0]), 5)
    assert variance.curve(12)[:-1].argsort(descending=True).tolist() == [0, 2, 3, 4, 1]
    # Ten iterations after they were seen 0 and 1 are due: before step 2, whatever they explain.
    assert variance.curve(14)[:-1].argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    assert float(variance.curve(14)[1]) > float(variance.curve(14)[2])
    never = StepVariance(6, decay=0.9)
    never.load_state_dict(variance.state_dict())
    assert never.curve(1000)[:-1].argsort(descending=True).tolist() == [0, 2, 3, 4, 1]


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_bad_first_measurement_does_not_shut_a_step_out(top_k: int) -> None:
    """The best step is measured as worthless once, and only chosen steps are measured."""
    truth = [1.0, 2.0, 1.0, 1.0, 9.0, 1.0, 1.0, 0.0]
    shares = {}
    for revisit_every in (20, None):
        variance = StepVariance(8, 0.9, revisit_every)
        chosen = torch.zeros(8)
        for iteration in range(400):
            reading = EntropyReading(variance.curve(iteration).float()[None])
            plan = EntropyPeaks(top_k)(reading, KeyedNoise(0), torch.arange(1), 8)
            steps = plan.stochastic[0]
            seen = torch.tensor(truth).where(steps, torch.zeros(8))
            if not variance.known[4]:
                seen[4] = 0.0  # the mishap
            variance.update(terms(seen.tolist(), steps.double().tolist()), iteration)
            chosen += steps
        shares[revisit_every] = chosen / 400
    assert float(shares[20][:-1].min()) > 0.02  # every step is looked at again
    assert float(shares[20][4]) > 0.6 and float(shares[None][4]) < 0.01


def test_the_state_continues_exactly_and_refuses_other_steps() -> None:
    variance = StepVariance(3, decay=0.9, revisit_every=5)
    variance.update(terms([4.0, 1.0, 0.0], [2.0, 3.0, 0.0]), 0)
    resumed = StepVariance(3, decay=0.9, revisit_every=5)
    resumed.load_state_dict(variance.state_dict())
    for own in (variance, resumed):
        own.update(terms([1 / 3, 0.1, 0.0], [1.0, 1.0, 0.0]), 1)
    assert torch.equal(variance.curve(2), resumed.curve(2))
    with pytest.raises(ValueError, match="variance of 3 denoising steps, but num_steps=4"):
        StepVariance(4, decay=0.9).load_state_dict(variance.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay=1.0 must lie in \[0, 1\)"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": 0.5, "revisit_every": 0}, "revisit_every=0"),
        ({"decay": 0.5, "num_steps": 1}, "num_steps=1"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepVariance(**({"num_steps": 4} | settings))
