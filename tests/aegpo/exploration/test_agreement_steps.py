"""Steps by agreement: what they are worth, which are chosen, and what a resumed run knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chosen_steps import NOISE
from torch import Tensor

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import AgreementSteps
from aegpo.exploration.half_batches import HalfBatches, HalvesByStep

INDEX = torch.arange(3)


def halves(cosines: list[float]) -> Tensor:
    """Inner products of halves of norms 2 and 3; what stands between steps is not to be read."""
    found = torch.full((2 * len(cosines), 2 * len(cosines)), 9.0)
    for part, cosine in enumerate(cosines):
        first = 2 * part
        found[first, first], found[first + 1, first + 1] = 4.0, 9.0
        found[first, first + 1] = found[first + 1, first] = 6 * cosine
    return found


def steps(selector: AgreementSteps, iteration: int = 0, curve: Tensor | None = None) -> list[int]:
    """The steps that three prompts explore at, of six."""
    reading = None if curve is None else EntropyReading(curve.expand(3, -1), None)
    schedule = selector(reading, NOISE.at(iteration), INDEX, 6)
    assert bool((schedule.stochastic == schedule.stochastic[0]).all())
    return schedule.stochastic[0].nonzero().flatten().tolist()


def test_a_share_of_the_parts_is_measured_and_the_others_stay() -> None:
    found = HalfBatches(4, decay=0.5)
    known = found.learn(halves([0.4, -0.2]), [3, 1])
    assert known.tolist() == [False, True, False, True]
    torch.testing.assert_close(found.agreement, torch.tensor([0.0, -0.2, 0.0, 0.4]).double())
    found.learn(halves([0.1]), [3])
    torch.testing.assert_close(found.agreement[3], torch.tensor((0.1 * 2 + 0.4) / 3).double())


def test_measured_steps_divide_what_the_prior_gave_them() -> None:
    found = HalvesByStep(4, 0.9, 1, prior=1.0)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert torch.equal(found.share(prior), prior.double())
    found.watched = [0, 1]
    found.learn_watched(halves([0.1, 0.6]))
    # .7 in the ratio 1 : 6, counted as much as the prior.
    expected = torch.tensor([(0.1 + 0.4) / 2, (0.6 + 0.3) / 2, 0.2, 0.1]).double()
    torch.testing.assert_close(found.share(prior), expected)
    # Nothing to learn where it was looked: the others come before them.
    nothing = HalvesByStep(4, 0.9, 1, prior=1.0)
    nothing.watched = [0, 1]
    nothing.learn_watched(halves([-0.1, 0.0]))
    expected = torch.tensor([0.2, 0.15, 0.2, 0.1]).double()
    torch.testing.assert_close(nothing.share(prior), expected)


def test_the_steps_of_the_highest_agreement_explore_once_they_were_tried() -> None:
    selector = AgreementSteps(top_k=2, explore=0.0, prior=1e-6)
    truth = [0.1, 0.15, 0.3, 0.4, 0.05]
    assert steps(selector) == [0, 1]  # nothing is known: the earliest
    tried = set()
    for iteration in range(8):
        chosen = steps(selector, iteration)
        tried |= set(chosen)
        assert selector.agreement is not None and selector.agreement.watched == chosen
        selector.agreement.learn_watched(halves([truth[step] for step in chosen]))
    assert steps(selector) == [2, 3]
    assert tried == {0, 1, 2, 3}  # the last one is worth less than both as long as unknown
    metrics = selector.metrics()
    assert metrics["steps/agreement_3"] == pytest.approx(0.4)
    assert sum(metrics[f"steps/share_{step}"] for step in range(5)) == pytest.approx(1, abs=0.02)


def test_entropy_is_the_prior_and_measurements_overrule_it() -> None:
    curve = torch.tensor([0.5, 0.6, 0.9, 0.8, 0.4, 1.0])  # the last step never explores
    selector = AgreementSteps(top_k=2, explore=0.0, prior=1.0, decay=0.0)
    assert steps(selector, curve=curve) == [2, 3]
    for iteration in range(20):
        assert selector.agreement is not None
        chosen = steps(selector, iteration, curve)
        selector.agreement.learn_watched(halves([[0.0, 0.9, 0.0, 0.1, 0.0][s] for s in chosen]))
    assert 1 in steps(selector, curve=curve)


def test_the_last_place_goes_to_another_step_as_often_as_it_says() -> None:
    selector = AgreementSteps(top_k=2, explore=0.5)
    chosen = [steps(selector, iteration) for iteration in range(300)]
    others = [pair[1] for pair in chosen if pair != [0, 1]]
    assert all(pair[0] == 0 for pair in chosen)
    assert 115 < len(others) < 185
    assert set(others) == {2, 3, 4}
    assert chosen[7] == steps(selector, 7)  # keyed by the iteration


def test_draws_are_in_proportion_to_the_shares_above_a_floor() -> None:
    selector = AgreementSteps(top_k=1, mode="draw", explore=0.2, prior=1e-9)
    steps(selector)
    assert selector.agreement is not None
    selector.agreement.watched = [0, 1, 2, 3, 4]
    selector.agreement.learn_watched(halves([0.0, 0.3, 0.1, 0.0, -0.5]))
    drawn = torch.tensor([steps(selector, iteration)[0] for iteration in range(2000)])
    frequency = torch.bincount(drawn, minlength=5) / 2000
    expected = torch.tensor([0.04, 0.64, 0.24, 0.04, 0.04])
    torch.testing.assert_close(frequency, expected, atol=0.035, rtol=0)


def test_it_goes_on_where_a_checkpoint_left_it() -> None:
    selector = AgreementSteps(top_k=2)
    assert selector.state_dict() == {} and selector.metrics() == {}
    steps(selector)
    assert selector.agreement is not None
    selector.agreement.learn_watched(halves([0.4, 0.1]))
    state = selector.state_dict()
    resumed = AgreementSteps(top_k=2)
    resumed.load_state_dict(state)
    assert resumed.state_dict().keys() == state.keys()  # saved again before the first batch
    for iteration in range(5):
        assert steps(resumed, iteration) == steps(selector, iteration)
    assert torch.equal(resumed.state_dict()["sum"], state["sum"])
    # Another number of steps begins anew.
    resumed(None, NOISE, INDEX, 9)
    assert float(resumed.state_dict()["count"].sum()) == 0


def test_splits_stay_where_most_is_learned() -> None:
    selector = AgreementSteps(top_k=3, branching=2, explore=0.0, prior=1e-9)
    selector(None, NOISE, INDEX, 6)
    assert selector.agreement is not None
    selector.agreement.watched = [0, 1, 2, 3, 4]
    selector.agreement.learn_watched(halves([0.1, 0.2, 0.3, 0.0, 0.0]))
    plan = selector(None, NOISE, INDEX, 6).fit(torch.tensor([8, 4, 2]))
    assert plan.branching.tolist() == [[2, 2, 2, 1, 1, 1], [1, 2, 2, 1, 1, 1], [1, 1, 2, 1, 1, 1]]


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"mode": "best"},
        {"explore": 1.5},
        {"prior": 0.0},
        {"decay": 1.0},
        {"every_n_iterations": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        AgreementSteps(**settings)
    with pytest.raises(ValueError, match="top_k=4 needs at least 5"):
        AgreementSteps().validate(4)
