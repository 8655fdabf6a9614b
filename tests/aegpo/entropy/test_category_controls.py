"""ΔEntropy within and between categories: what each part keeps, and what it loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aegpo.allocation import MedianSplitAllocator
from aegpo.entropy.category_controls import CategoryControl, CategoryOnly, WithinCategory
from aegpo.entropy.reading import EntropyReading
from aegpo.noise import KeyedNoise
from aegpo.prompts import PromptBatch
from callbacks.controlled_entropy import ControlledEntropy

NOISE = KeyedNoise(0)
CATEGORIES = ["one", "two", "two", "one", "two"]
DELTA = torch.tensor([0.01, 0.40, 0.10, 0.03, 0.10])


def batch(categories: list[str]) -> PromptBatch:
    metadata = [{"category": name} for name in categories]
    return PromptBatch(["a"] * len(metadata), torch.arange(len(metadata)), metadata)


def replaced(control: CategoryControl, delta: Tensor, categories: list[str]) -> Tensor:
    curve = torch.rand(len(delta), 4, generator=torch.Generator().manual_seed(0))
    reading = control(EntropyReading(curve, delta), NOISE, batch(categories))
    assert torch.equal(reading.curve, curve) and reading.delta is not None
    return reading.delta


def test_the_two_parts_by_hand() -> None:
    within = replaced(WithinCategory(), DELTA, CATEGORIES)
    only = replaced(CategoryOnly(), DELTA, CATEGORIES)
    torch.testing.assert_close(within, torch.tensor([0.5, 2.0, 0.5, 1.5, 0.5]))
    torch.testing.assert_close(only, torch.tensor([0.02, 0.20, 0.20, 0.02, 0.20]))
    torch.testing.assert_close(within * only, DELTA)


def test_one_part_decides_by_prompt_and_the_other_by_category() -> None:
    categories = ["one", "one", "two", "two"]
    delta = torch.tensor([0.01, 0.03, 0.4, 0.1])
    for control, sizes in [
        (WithinCategory(), [8, 16, 16, 8]),  # one of each category
        (CategoryOnly(), [8, 8, 16, 16]),
    ]:
        reading = EntropyReading(torch.ones(4, 4), replaced(control, delta, categories))
        assert MedianSplitAllocator(8, 16)(reading, 4).tolist() == sizes


@pytest.mark.parametrize("decay", [0.0, 0.8, 1.0])
def test_the_mean_runs_over_the_iterations_that_drew_the_category(decay: float) -> None:
    generator = np.random.default_rng(0)
    within, only = WithinCategory(decay), CategoryOnly(decay)
    history: dict[str, list[list[float]]] = {"one": [], "two": [], "three": []}
    for _ in range(12):
        categories = generator.choice(["one", "two", "three"], size=4, p=[0.6, 0.3, 0.1]).tolist()
        delta = generator.random(4) + [list(history).index(name) for name in categories]
        for name in set(categories):
            history[name].append(
                [d for d, own in zip(delta, categories, strict=True) if own == name]
            )
        means = []
        for name in categories:
            groups = history[name]
            weights = np.repeat(decay ** np.arange(len(groups))[::-1], [len(g) for g in groups])
            means.append(np.average(np.concatenate(groups), weights=weights))
        values = torch.tensor(delta, dtype=torch.float32)
        np.testing.assert_allclose(replaced(only, values, categories), means, rtol=1e-5)
        np.testing.assert_allclose(replaced(within, values, categories), delta / means, rtol=1e-5)


def test_within_a_category_the_mean_is_one_and_the_order_stays() -> None:
    generator = torch.Generator().manual_seed(1)
    level = {"one": 0.001, "two": 0.1}
    categories = ["one", "two"] * 3
    control, found = WithinCategory(decay=1.0), []
    for _ in range(200):
        delta = torch.rand(6, generator=generator) * torch.tensor([level[n] for n in categories])
        found.append(replaced(control, delta, categories))
        for first in (0, 1):
            assert torch.equal(found[-1][first::2].argsort(), delta[first::2].argsort())
    late = torch.stack(found[50:])
    for first in (0, 1):  # standard error 1/sqrt(3) / sqrt(450) = 0.03
        assert float(late[:, first::2].mean()) == pytest.approx(1.0, abs=0.1)


def test_before_the_first_update_there_is_nothing_to_tell_apart() -> None:
    for control in (WithinCategory(), CategoryOnly()):
        assert replaced(control, torch.zeros(5), CATEGORIES).tolist() == [0.0] * 5
    control = WithinCategory()
    without = control(EntropyReading(torch.ones(5, 4)), NOISE, batch(CATEGORIES))
    assert without.delta is None and control.weight == {}


def test_prompts_without_a_category_share_one() -> None:
    nameless = PromptBatch(["a", "b"], torch.arange(2), [{}, {}])
    reading = EntropyReading(torch.ones(2, 4), torch.tensor([0.1, 0.3]))
    only = CategoryOnly()(reading, NOISE, nameless)
    torch.testing.assert_close(only.delta, torch.tensor([0.2, 0.2]))


def test_the_means_survive_a_checkpoint() -> None:
    first, second = WithinCategory(), WithinCategory()
    replaced(first, DELTA, CATEGORIES)
    one, other = ControlledEntropy(first), ControlledEntropy(second)
    assert one.state_key != ControlledEntropy(CategoryOnly()).state_key
    other.load_state_dict(one.state_dict())
    expected = replaced(first, DELTA.flip(0), CATEGORIES)
    assert torch.equal(replaced(second, DELTA.flip(0), CATEGORIES), expected)
    assert not torch.equal(replaced(WithinCategory(), DELTA.flip(0), CATEGORIES), expected)


def test_refuses_a_decay_outside_its_range() -> None:
    with pytest.raises(ValueError, match=r"decay=1.5 must lie in \[0, 1\]"):
        CategoryOnly(1.5)
