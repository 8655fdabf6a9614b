import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.samplers import DeltaEntropySampler

DATASET = list(range(20))


def sampler(**arguments):
    return DeltaEntropySampler(
        DATASET, **({"batch_size": 4, "num_batches": 5, "seed": 3} | arguments)
    )


@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(1, 20), seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 1.0]))
def test_a_batch_never_holds_a_prompt_twice(batch_size, seed, alpha):
    drawn = sampler(batch_size=batch_size, seed=seed, alpha=alpha).draw()
    assert len(drawn.unique()) == batch_size


def test_unseen_prompts_are_drawn_first():
    own = sampler()
    seen = []
    for _ in range(5):
        drawn = own.draw()
        own.update(drawn, torch.rand(4))
        seen.append(drawn)
    assert len(torch.cat(seen).unique()) == 20  # every prompt once before any prompt twice


def test_probabilities_follow_the_formula():
    own = sampler(alpha=2.0, delta=0.5, uniform_share=0.25)
    delta = torch.arange(20).float()
    own.update(torch.arange(20), delta)
    weights = (delta.double() / 9.5 + 0.5) ** 2
    expected = 0.25 / 20 + 0.75 * weights / weights.sum()
    torch.testing.assert_close(own.probabilities(), expected)


def test_high_delta_entropy_is_drawn_more_often():
    own = sampler(uniform_share=0.0, batch_size=1)
    own.update(torch.arange(20), torch.tensor([10.0] + [0.1] * 19))
    counts = torch.bincount(torch.cat([own.draw() for _ in range(400)]), minlength=20)
    expected = 400 * float(own.probabilities()[0])
    assert abs(float(counts[0]) - expected) < 4 * (expected * (1 - expected / 400)) ** 0.5


def test_alpha_zero_ignores_delta_entropy():
    own = sampler(alpha=0.0)
    own.update(torch.arange(20), torch.arange(20).float())
    torch.testing.assert_close(own.probabilities(), torch.full((20,), 0.05, dtype=torch.float64))


def test_strata_get_their_shares_in_every_batch():
    strata = torch.tensor([0] * 5 + [1] * 15)
    own = sampler(strata=strata, shares=torch.tensor([0.5, 0.5]))
    for _ in range(10):
        assert (strata[own.draw()] == 0).sum() == 2


@pytest.mark.parametrize("shares", [[0.1, 0.2, 0.7], [1, 2, 7], [0.15, 0.7, 0.15], [0.3, 0.6, 0.1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_that_fit_exactly_are_accepted_and_met(shares, dtype):
    parts = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    sizes = (parts * 10 - 1e-6).ceil().long()  # as many prompts of each as a batch of 10 can need
    strata = torch.repeat_interleave(torch.arange(3), sizes)
    own = DeltaEntropySampler(
        list(range(len(strata))), 10, 5, strata, torch.tensor(shares, dtype=dtype)
    )
    counts = torch.stack([torch.bincount(strata[own.draw()], minlength=3) for _ in range(50)])
    assert (counts.sum(1) == 10).all() and (counts <= sizes).all()
    torch.testing.assert_close(counts.double().mean(0), 10 * parts, rtol=0, atol=0.3)


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_a_draw_that_falls_between_two_strata_gives_neither_too_many(start, monkeypatch):
    strata = torch.tensor([0] * 2 + [1] * 7 + [2] * 2)
    own = DeltaEntropySampler(list(range(11)), 10, 5, strata, torch.tensor([0.15, 0.7, 0.15]))
    monkeypatch.setattr(own.noise, "uniform", lambda *_: torch.full((1, 12), start))
    counts = torch.bincount(strata[own.draw()], minlength=3)
    assert counts.sum() == 10 and counts[1] == 7


def test_a_resumed_sampler_draws_the_same_next_batch():
    first = sampler()
    for _ in range(3):
        first.update(first.draw(), torch.rand(4))
    second = sampler()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.draw(), second.draw())


def test_values_that_are_not_finite_are_ignored():
    own = sampler()
    own.update(torch.tensor([0, 1]), torch.tensor([float("nan"), 2.0]))
    assert own.delta_entropy.isfinite().sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 21}, "between 1 and the 20 prompts"),
        ({"uniform_share": 1.5}, "uniform_share=1.5"),
        ({"strata": torch.tensor([0] + [1] * 19), "shares": torch.ones(2)}, "stratum 0 has 1"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)


def test_a_state_of_another_dataset_is_refused():
    state = sampler().state_dict()
    state["delta_entropy"] = torch.zeros(7)
    with pytest.raises(ValueError, match="knows 7 prompts"):
        sampler().load_state_dict(state)


@pytest.mark.parametrize("alpha", [1e3, 1e9])
def test_a_steep_exponent_draws_the_highest_of_each_stratum(alpha):
    strata = torch.tensor([0, 1]).repeat(10)
    own = sampler(alpha=alpha, strata=strata, uniform_share=0.2)
    delta = torch.arange(20).float()
    own.update(torch.arange(20), delta)
    chances = own.probabilities()
    assert bool(chances.isfinite().all())
    for stratum, highest in ((0, 18), (1, 19)):
        torch.testing.assert_close(chances[strata == stratum].sum().item(), 1.0)
        assert float(chances[highest]) > 0.8
    # As the formula has it, where float64 can.
    gentle = sampler(alpha=3.0, strata=strata, uniform_share=0.2)
    gentle.update(torch.arange(20), delta)
    expected = gentle.probabilities()
    relative = gentle._powers_of_the_highest(delta.double() / 9.5 + 0.1)
    rebuilt = 0.2 / 10 + 0.8 * gentle._normalized(relative)
    torch.testing.assert_close(rebuilt, expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"alpha": float("nan")}, "alpha=nan finite"),
        ({"alpha": float("inf")}, "alpha=inf finite"),
        ({"delta": float("inf")}, "delta=inf finite"),
        ({"shares": torch.tensor([1.4, -0.4])}, r"shares \[1.4, -0.4\] must be finite"),
        ({"shares": torch.tensor([0.0, 0.0])}, "one of them above it"),
        ({"shares": torch.tensor([1.0, float("nan")])}, "must be finite"),
    ],
)
def test_numbers_that_mean_no_draw_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        sampler(**({"strata": torch.tensor([0, 1]).repeat(10)} | arguments))
