"""Levels by agreement: what is measured, what is made of it, and where levels are drawn by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_nft import INDEX, forward_samples
from torch import Tensor
from toy_policy import ToyPolicy

from aegpo.exploration import FixedSplits, FixedSteps, NoSteps
from aegpo.objectives import AWM, NFT, LevelAgreement
from aegpo.objectives.forward.agreement import quantile
from aegpo.objectives.forward.samples import ForwardSamples

EVEN = torch.full((1, 4), 0.25)


def products(cosines: list[float], norms: list[float]) -> Tensor:
    """Inner products of halves, of which only those of one part are looked at."""
    size = 2 * len(cosines)
    found = torch.full((size, size), 9.0, dtype=torch.float64)
    for part, (cosine, norm) in enumerate(zip(cosines, norms, strict=True)):
        first = 2 * part
        found[first, first], found[first + 1, first + 1] = norm**2, (2 * norm) ** 2
        found[first, first + 1] = found[first + 1, first] = cosine * norm * 2 * norm
    return found


def test_levels_are_drawn_by_agreement_above_a_floor() -> None:
    agreement = LevelAgreement(parts=4, floor=0.2, decay=0.5, prior=1.0)
    assert torch.equal(agreement.density(EVEN), EVEN.double())
    agreement.learn(products([0.3, 0.1, -0.5, 0.0], [1.0, 7.0, 1.0, 1.0]))
    torch.testing.assert_close(agreement.agreement, torch.tensor([0.3, 0.1, -0.5, 0.0]).double())
    # One measurement against a prior that counts as one: (3/4, 1/4, 0, 0) and even, at .8.
    expected = torch.tensor([[0.45, 0.25, 0.15, 0.15]]).double()
    torch.testing.assert_close(agreement.density(EVEN), expected)
    # The second counts twice the first, and a half without samples says nothing.
    agreement.learn(products([0.6, 0.4, 0.5, 0.0], [1.0, 0.0, 1.0, 1.0]))
    expected = torch.tensor([0.5, 0.1, 0.5 / 3, 0.0]).double()
    torch.testing.assert_close(agreement.agreement, expected)
    resumed = LevelAgreement(parts=4, floor=0.2, decay=0.5, prior=1.0)
    resumed.load_state_dict(agreement.state_dict())
    assert torch.equal(resumed.density(EVEN), agreement.density(EVEN))
    other = LevelAgreement(parts=3)
    other.load_state_dict(agreement.state_dict())  # of another division: begun anew
    assert float(other.agreement.abs().sum()) == 0


def test_what_was_chosen_is_the_prior() -> None:
    agreement = LevelAgreement(parts=4, floor=0.2, prior=3.0)
    chosen = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(agreement.density(chosen), 0.05 + 0.8 * chosen.double())
    agreement.learn(products([0.0, 0.0, 0.2, 0.0], [1.0] * 4))
    found = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    expected = 0.05 + 0.8 * (0.25 * found + 0.75 * chosen.double())
    torch.testing.assert_close(agreement.density(chosen), expected)


def test_the_quantile_is_the_inverse_of_the_distribution() -> None:
    density = torch.rand(1, 7, generator=torch.Generator().manual_seed(0)).double() + 0.05
    density = (density / density.sum()).expand(101, -1)
    share = torch.linspace(0, 1, 101).double()
    place = quantile(density, share)
    upper = torch.cat([torch.zeros(1).double(), density[0].cumsum(0)])
    part = (place * 7).long().clamp(max=6)
    back = upper[part] + (place * 7 - part) * density[0][part]
    torch.testing.assert_close(back, share)
    assert bool((place.diff() > 0).all())


def test_an_images_levels_lie_in_equal_shares_of_the_distribution() -> None:
    agreement = LevelAgreement(parts=4, floor=0.2, prior=1e-9)
    agreement.learn(products([0.5, 0.0, 0.0, 0.0], [1.0] * 4))
    objective = NFT(times_per_image=4, levels=agreement)
    chosen = [[0], [0], [0]]
    sigma = forward_samples(objective, ToyPolicy(), chosen=chosen).sigma.reshape(10, 4)
    # Masses .85, .05, .05, .05: three of four levels lie in the first quarter of the schedule.
    assert bool((sigma[:, :3] >= 0.75).all())
    assert 0.2 < float((sigma[:, 3] >= 0.75).float().mean()) < 0.8
    evenly = forward_samples(
        NFT(times_per_image=4, levels="stratified"), ToyPolicy(), chosen=chosen
    )
    without = NFT(times_per_image=4, levels=LevelAgreement(parts=4))
    # Without a choice and a measurement it is stratified.
    none = forward_samples(without, ToyPolicy())
    torch.testing.assert_close(none.sigma, evenly.sigma)


@pytest.mark.parametrize("make", [NFT, AWM])
def test_each_halfs_gradient_is_that_of_its_own_samples(make: Any) -> None:
    agreement = LevelAgreement(parts=3, every_n_iterations=2)
    taught: list[Tensor] = []
    agreement.learn = taught.append  # type: ignore[assignment, method-assign]
    settings = {"times_per_image": 5, "kl_coeff": 0.0, "levels": agreement}
    samples = forward_samples(make(**settings), policy := ToyPolicy(), iteration=4)
    rows = torch.arange(45)
    strata = samples.strata(rows)
    assert len(strata) == 6
    assert torch.cat(strata).sort().values.tolist() == rows.tolist()
    share = 1 - samples.sigma
    share = share / 0.9 if make is AWM else share  # its range ends at .9
    for number, stratum in enumerate(strata):
        assert bool(((share[stratum] * 3).long().clamp(max=2) == number // 2).all())
    prompts = [set(samples.row[stratum].tolist()) for stratum in strata]
    halves = [set().union(*prompts[half::2]) for half in (0, 1)]
    assert not halves[0] & halves[1]  # a prompt is in one half

    alone = []
    total = torch.zeros(())
    for stratum in strata:
        policy.speed.grad = None
        if len(stratum):
            samples.first_loss(stratum).loss.sum().backward()
        alone.append(torch.zeros(()) if policy.speed.grad is None else policy.speed.grad.clone())
    policy.speed.grad = None
    for number, stratum in enumerate(strata):
        if len(stratum):
            samples.first_loss(stratum).loss.sum().backward()
        samples.note_gradients(number, [policy.speed])
    total = policy.speed.grad
    torch.testing.assert_close(total, torch.stack(alone).sum())
    own = torch.stack(alone).double()
    assert len(taught) == 1 and int((own != 0).sum()) > 3
    torch.testing.assert_close(taught[0].double(), own[:, None] * own[None], rtol=1e-3, atol=1e-3)


def test_it_is_measured_every_so_often_and_by_the_prompt() -> None:
    objective = NFT(times_per_image=2, levels=LevelAgreement(parts=3, every_n_iterations=3))

    def halves(samples: ForwardSamples) -> dict[int, int]:
        strata = samples.strata(torch.arange(len(samples.sigma)))
        return {
            int(INDEX[row]): number % 2
            for number, stratum in enumerate(strata)
            for row in samples.experience.tree.row[samples.image[stratum]].tolist()
        }

    assert len(forward_samples(objective, ToyPolicy(), iteration=1).strata(torch.arange(9))) == 1
    whole = halves(forward_samples(objective, ToyPolicy(), iteration=3))
    later = [halves(forward_samples(objective, ToyPolicy(), iteration=n)) for n in range(6, 30, 3)]
    assert any(one != whole for one in later)
    samples = forward_samples(objective, ToyPolicy(), [2], iteration=3)
    number = [len(stratum) > 0 for stratum in samples.strata(torch.arange(6))].index(True)
    assert number % 2 == whole[int(INDEX[2])]  # whichever rank holds it


def test_noise_and_chains() -> None:
    levels = LevelAgreement()
    objective = NFT(times_per_image=4, levels=levels)
    assert not objective.draws_noise
    objective.validate(NoSteps(), 2)
    objective.validate(FixedSteps([0, 1]), 4)
    with pytest.raises(ValueError, match=r"set step_selector.branching to 1"):
        objective.validate(FixedSplits([0, 2]), 4)
    assert objective.metrics()["levels/share_0"] == pytest.approx(0.2)
    assert NFT().metrics() == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"parts": 0},
        {"floor": 0.0},
        {"floor": 1.5},
        {"decay": 1.0},
        {"every_n_iterations": 0},
        {"prior": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LevelAgreement(**settings)
