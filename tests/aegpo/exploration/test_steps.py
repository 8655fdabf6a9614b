from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import (
    AllSteps,
    EntropyPeaks,
    ExplorationSchedule,
    FixedSteps,
    NoSteps,
    RandomSteps,
    SlidingWindow,
    StepSelector,
)
from aegpo.noise import KeyedNoise

NOISE = KeyedNoise(7)


def chosen(
    selector: StepSelector,
    num_steps: int,
    curve: list[list[float]] | None = None,
    noise: KeyedNoise = NOISE,
    num_prompts: int = 2,
) -> list[list[int]]:
    """Step numbers that explore, one list per prompt."""
    entropy = None if curve is None else EntropyReading(torch.tensor(curve))
    index = torch.arange(num_prompts if curve is None else len(curve)) * 10
    schedule = selector(entropy, noise, index, num_steps)
    assert schedule.num_steps == num_steps and schedule.num_prompts == len(index)
    return [row.nonzero().flatten().tolist() for row in schedule.stochastic]


@st.composite
def curves(draw: st.DrawFn) -> list[list[float]]:
    num_steps = draw(st.integers(5, 12))
    value = st.integers(0, 6).map(float)  # few values, so that ties are common
    row = st.lists(value, min_size=num_steps, max_size=num_steps)
    return draw(st.lists(row, min_size=1, max_size=5))


class TestSchedule:
    def test_mask_becomes_levels_and_children(self) -> None:
        mask = torch.tensor([[True, False, True, False], [False, False, False, False]])
        schedule = ExplorationSchedule.from_mask(mask, 0.5, branching=3)
        assert schedule.eta.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0]]
        assert schedule.branching.tolist() == [[3, 1, 3, 1], [1, 1, 1, 1]]
        assert schedule.leaves_per_root.tolist() == [9, 1]
        assert schedule.select(torch.tensor([1])).eta.tolist() == [[0, 0, 0, 0]]

    def test_deterministic_has_no_noise(self) -> None:
        schedule = ExplorationSchedule.deterministic(2, 3)
        assert schedule.eta.tolist() == [[0.0] * 3] * 2
        assert schedule.leaves_per_root.tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("eta", "branching", "message"),
        [
            ([[0.7, 0.7]], [[1, 1]], "must be deterministic"),
            ([[0.0, 0.0]], [[2, 1]], "branching > 1 needs eta > 0"),
            ([[-0.1, 0.0]], [[1, 1]], "at least 0"),
            ([[float("nan"), 0.0]], [[1, 1]], "finite"),
            ([[0.1, 0.0]], [[0, 1]], "at least 1"),
            ([[0.1, 0.0]], [[1, 1, 1]], "shape"),
        ],
    )
    def test_refuses(self, eta: list, branching: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ExplorationSchedule(torch.tensor(eta), torch.tensor(branching))

    def test_refuses_other_types(self) -> None:
        with pytest.raises(ValueError, match="float32"):
            ExplorationSchedule(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2).long())


class TestNoSteps:
    def test_no_step_explores_and_it_says_so(self) -> None:
        assert chosen(NoSteps(), 5) == [[], []]
        assert not NoSteps().explores and AllSteps().explores

    def test_refuses_too_few_steps_as_every_selector(self) -> None:
        with pytest.raises(ValueError, match="num_steps=1"):
            NoSteps().validate(1)


class TestFixedSelectors:
    def test_all_steps_but_the_last(self) -> None:
        assert chosen(AllSteps(), 4) == [[0, 1, 2]] * 2

    def test_fixed_steps_carry_level_and_branching(self) -> None:
        schedule = FixedSteps([3, 0], eta=0.4, branching=2)(None, NOISE, torch.arange(1), 6)
        torch.testing.assert_close(schedule.eta, torch.tensor([[0.4, 0, 0, 0.4, 0, 0]]))
        assert schedule.branching.tolist() == [[2, 1, 1, 2, 1, 1]]

    @settings(deadline=None)
    @given(st.integers(2, 12), st.data())
    def test_random_steps(self, num_steps: int, data: st.DataObject) -> None:
        num = data.draw(st.integers(1, num_steps - 1))
        rows = chosen(RandomSteps(num), num_steps, num_prompts=4)
        for row in rows:
            assert len(row) == num and max(row) <= num_steps - 2
        assert rows == chosen(RandomSteps(num), num_steps, num_prompts=4)

    def test_random_steps_belong_to_the_prompt_not_to_its_row(self) -> None:
        index = torch.arange(40)
        eta = RandomSteps(3)(None, NOISE, index, 10).eta
        backwards = RandomSteps(3)(None, NOISE, index.flip(0), 10).eta
        assert torch.equal(backwards.flip(0), eta)
        assert len(eta.unique(dim=0)) > 20
        later = RandomSteps(3)(None, NOISE.at(1), index, 10).eta
        assert (later != eta).any(dim=1).float().mean() > 0.8
        # Every eligible step is drawn about equally often: 40 · 3 / 9 = 13.
        assert (eta > 0).sum(dim=0)[:-1].min() >= 5

    def test_window_slides_clamps_and_wraps(self) -> None:
        # T = 8 has eligible steps 0..6; starts 0, 2, 4 -> 3 (moved back to fit), then 0 again.
        window = SlidingWindow(width=4, iterations_per_position=2, stride=2)
        starts = [window.start(iteration, 8) for iteration in range(7)]
        assert starts == [0, 0, 2, 2, 3, 3, 0]
        assert chosen(window, 8, noise=NOISE.at(5)) == [[3, 4, 5, 6]] * 2

    def test_window_without_stride_stays_and_fixed_noise_is_the_first_position(self) -> None:
        assert SlidingWindow(2, 1, stride=0).start(100, 8) == 0
        assert chosen(SlidingWindow(2, 1), 8, noise=NOISE.at(3).fixed()) == [[0, 1]] * 2

    @settings(deadline=None)
    @given(st.integers(2, 12), st.integers(0, 4), st.data())
    def test_window_is_always_whole_and_covers_everything(
        self, num_steps: int, stride: int, data: st.DataObject
    ) -> None:
        width = data.draw(st.integers(1, num_steps - 1))
        window = SlidingWindow(width, 1, stride)
        seen: set[int] = set()
        for iteration in range(num_steps):
            start = window.start(iteration, num_steps)
            assert start >= 0 and start + width <= num_steps - 1
            seen |= set(range(start, start + width))
        if 0 < stride <= width:
            assert seen == set(range(num_steps - 1))


class TestEntropyPeaks:
    def test_takes_the_highest_steps_and_never_the_last(self) -> None:
        curve = [[0.1, 0.9, 0.2, 0.8, 0.3, 1.0], [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]]
        assert chosen(EntropyPeaks(top_k=3), 6, curve) == [[1, 3, 4], [0, 1, 2]]

    def test_without_a_reading_the_first_steps(self) -> None:
        assert chosen(EntropyPeaks(top_k=3), 6) == [[0, 1, 2]] * 2
        assert chosen(EntropyPeaks(top_k=3, threshold=0.5), 6) == [[0, 1, 2]] * 2

    def test_ties_go_to_the_earlier_step(self) -> None:
        assert chosen(EntropyPeaks(top_k=2), 5, [[0.3] * 5, [0.1, 0.2, 0.2, 0.2, 0]]) == [
            [0, 1],
            [1, 2],
        ]

    def test_local_maxima_come_first_then_the_highest_rest(self) -> None:
        # Maxima at 1 (.9) and 4 (.5); step 2 (.8) is higher than 4 but no maximum.
        curve = [[0.1, 0.9, 0.8, 0.4, 0.5, 0.3, 1.0]]
        assert chosen(EntropyPeaks(top_k=2, mode="local_maxima"), 7, curve) == [[1, 4]]
        assert chosen(EntropyPeaks(top_k=3, mode="local_maxima"), 7, curve) == [[1, 2, 4]]
        assert chosen(EntropyPeaks(top_k=2), 7, curve) == [[1, 2]]

    def test_a_plateau_is_one_maximum_and_ends_count(self) -> None:
        curve = [[0.6, 0.2, 0.5, 0.5, 0.1, 0.4, 0.0]]
        assert chosen(EntropyPeaks(top_k=3, mode="local_maxima"), 7, curve) == [[0, 2, 5]]

    def test_threshold_on_the_scaled_curve(self) -> None:
        # Scaled over steps 0..4: 0, .5, 1, .25, .75; the last value would change it to 0...
        curve = [[1.0, 2.0, 3.0, 1.5, 2.5, 100.0], [4.0] * 6]
        steps = chosen(EntropyPeaks(top_k=2, threshold=0.4), 6, curve)
        assert steps == [[1, 2, 4], [0, 1]]
        assert chosen(EntropyPeaks(threshold=0.0), 6, curve[:1]) == [[1, 2, 3, 4]]

    def test_scope_batch_follows_the_mean_curve(self) -> None:
        curve = [[0.0, 1.0, 0.2, 0.0], [0.0, 0.0, 0.9, 0.0]]  # mean 0, .5, .55
        assert chosen(EntropyPeaks(top_k=1, scope="batch"), 4, curve) == [[2], [2]]
        assert chosen(EntropyPeaks(top_k=1), 4, curve) == [[1], [2]]

    @settings(deadline=None)
    @given(curves(), st.integers(1, 4), st.sampled_from(["top_k", "local_maxima"]))
    def test_k_per_row_and_never_last(
        self, curve: list[list[float]], top_k: int, mode: str
    ) -> None:
        num_steps = len(curve[0])
        for row in chosen(EntropyPeaks(top_k=top_k, mode=mode), num_steps, curve):
            assert len(row) == top_k and num_steps - 1 not in row

    @settings(deadline=None)
    @given(curves(), st.integers(1, 4))
    def test_top_k_picks_the_largest(self, curve: list[list[float]], top_k: int) -> None:
        for row, picked in zip(
            curve, chosen(EntropyPeaks(top_k=top_k), len(curve[0]), curve), strict=True
        ):
            rest = [value for step, value in enumerate(row[:-1]) if step not in picked]
            assert min(row[step] for step in picked) >= max(rest, default=0.0)

    @settings(deadline=None)
    @given(curves(), st.floats(0, 0.99))
    def test_threshold_always_explores(self, curve: list[list[float]], threshold: float) -> None:
        for row in chosen(EntropyPeaks(threshold=threshold), len(curve[0]), curve):
            assert 1 <= len(row) <= len(curve[0]) - 1

    def test_refuses_a_reading_of_other_steps_or_prompts(self) -> None:
        reading = EntropyReading(torch.rand(2, 6))
        with pytest.raises(ValueError, match=r"shape \(2, 6\)"):
            EntropyPeaks()(reading, NOISE, torch.arange(2), 8)
        with pytest.raises(ValueError, match="3 prompts"):
            EntropyPeaks()(reading, NOISE, torch.arange(3), 6)


@pytest.mark.parametrize(
    ("selector", "num_steps", "message"),
    [
        (EntropyPeaks(top_k=12), 10, "top_k=12 needs at least 13 denoising steps"),
        (EntropyPeaks(top_k=10), 10, "lower top_k or raise num_steps"),
        (RandomSteps(num=5), 5, "num=5 needs at least 6"),
        (SlidingWindow(width=4), 4, "width=4 needs at least 5"),
        (FixedSteps([0, 9]), 10, "choose steps from 0 to 8"),
        (AllSteps(), 1, "at least 2 denoising steps"),
    ],
)
def test_validate_names_what_to_change(
    selector: StepSelector, num_steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        selector.validate(num_steps)
    with pytest.raises(ValueError, match=message):  # nor is it done quietly later
        selector(None, NOISE, torch.arange(2), num_steps)
    selector.validate(30)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AllSteps(eta=0.0), "eta=0.0 must be"),
        (lambda: AllSteps(eta=float("inf")), "finite"),
        (lambda: AllSteps(branching=0), "branching=0"),
        (lambda: FixedSteps([]), "one or more"),
        (lambda: FixedSteps([1, 1]), "different"),
        (lambda: FixedSteps([-1]), "from 0 up"),
        (lambda: RandomSteps(0), "num=0"),
        (lambda: SlidingWindow(width=0), "width=0"),
        (lambda: SlidingWindow(iterations_per_position=0), "iterations_per_position=0"),
        (lambda: SlidingWindow(stride=-1), "stride=-1"),
        (lambda: EntropyPeaks(top_k=0), "top_k=0"),
        (lambda: EntropyPeaks(mode="peaks"), "mode='peaks'"),
        (lambda: EntropyPeaks(scope="all"), "scope='all'"),
        (lambda: EntropyPeaks(threshold=1.0), "threshold=1.0"),
        (lambda: EntropyPeaks(mode="local_maxima", threshold=0.5), "exclude each other"),
    ],
)
def test_constructors_refuse(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
