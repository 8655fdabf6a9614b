"""Changes by hand: paired over images, and between the first and the latest iterations."""

import math

import pytest
import torch

from aegpo.rewards.drift import FirstAndLatest, HeldOutValues, in_units

NAN = math.nan


def evaluation(iteration: int, index: list[int], values: list[float], text: int = 7):
    keys = torch.tensor([[one, text] for one in index])
    return HeldOutValues(iteration, keys, {"judge": torch.tensor(values, dtype=torch.float64)})


def test_images_are_compared_with_themselves_whatever_their_order() -> None:
    base = evaluation(0, [0, 1, 2, 3], [0.1, 0.9, 0.5, NAN])
    now = evaluation(20, [2, 1, 0, 9], [0.6, 1.1, 0.1, 5.0])
    change = now.since(base, "judge")
    assert change is not None and change.since == 0
    assert change.before == pytest.approx(0.5) and change.now == pytest.approx(0.6)
    # Differences 0.1, 0.2, 0: mean 0.1, deviation 0.1; scores of before have the deviation 0.4.
    assert change.errors == pytest.approx(0.1 / (0.1 / math.sqrt(3)))
    assert change.deviations == pytest.approx(0.1 / 0.4)
    assert str(change) == "from 0.500 to 0.600 (+1.7 standard errors)"


def test_other_prompts_and_missing_scores_are_not_compared() -> None:
    base = evaluation(0, [0, 1], [0.1, 0.9])
    assert evaluation(5, [0, 1], [0.0, 0.0], text=8).since(base, "judge") is None
    assert evaluation(5, [2, 3], [0.0, 0.0]).since(base, "judge") is None
    assert evaluation(5, [0, 1], [NAN, NAN]).since(base, "judge") is None
    assert evaluation(5, [], []).since(base, "judge") is None
    assert base.since(HeldOutValues(0, base.keys, {}), "judge") is None
    one = evaluation(5, [0, 1], [0.5, NAN]).since(base, "judge")
    assert one is not None and one.errors == 0.0, "one image has no error to measure by"


def test_an_evaluation_survives_its_state() -> None:
    now = evaluation(5, [0, 1], [0.5, 0.25])
    again = HeldOutValues(**now.state_dict())
    change = again.since(now, "judge")
    assert change is not None and change.errors == 0.0 and again.iteration == 5


def test_the_latest_iterations_are_compared_with_the_first() -> None:
    numbers = FirstAndLatest(2)
    for reward, share in ((1.0, 1.0), (3.0, 1.0), (50.0, 25.0), (5.0, 13.75)):
        assert numbers.change("reward") is None
        numbers.add({"reward": reward})
        assert numbers.share("reward") == share
    numbers.add({"reward": NAN})  # an iteration without a score
    numbers.add({"reward": 9.0})  # 50 leaves the window
    change = numbers.change("reward")
    assert change is not None and (change.before, change.now) == (2.0, 7.0)
    assert change.errors == pytest.approx(5 / math.sqrt((2 + 8) / 2))

    resumed = FirstAndLatest(2)
    resumed.load_state_dict(numbers.state_dict())
    assert resumed.change("reward") == change
    single = FirstAndLatest(1)
    single.add({"reward": 1.0})
    single.add({"reward": 2.0})
    assert single.change("reward").errors == 0.0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        FirstAndLatest(0)


def test_units_of_nothing() -> None:
    assert in_units(0.0, 0.0) == 0.0 and in_units(1.0, NAN) == 0.0
    assert in_units(-1.0, 0.0) == -math.inf and in_units(3.0, 2.0) == 1.5
