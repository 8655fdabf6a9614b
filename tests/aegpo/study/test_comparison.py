"""Curves over compute and their statistics, by hand."""

import math

import numpy as np
import pytest

from aegpo.study.comparison import (
    FEWEST,
    Target,
    bootstrap,
    difference,
    estimate,
    evaluations_ratio,
    summarize,
)
from aegpo.study.learning_curves import Curve, band


def curve(cost, score):
    return Curve(np.array(cost, float), np.array(score, float))


def line(end, start=0.4, budget=100.0):
    """From `start` at no cost to `end` at the budget."""
    return curve([0, budget], [start, end])


def test_interpolation_is_linear_and_never_goes_beyond_what_was_measured():
    runs = curve([0, 100, 300], [0.4, 0.5, 0.9])
    values = runs.at([0, 50, 100, 200, 300, 301])
    assert values[:5] == pytest.approx([0.4, 0.45, 0.5, 0.7, 0.9])
    assert math.isnan(values[5])


def test_logs_are_joined_at_the_last_cost_up_to_the_score():
    score = {0: 0.4, 3: 0.5, 5: 0.6}
    cost = {1: 10.0, 2: 20.0, 3: 30.0, 4: 44.0}
    joined = Curve.from_logs(score, cost)
    assert joined.cost.tolist() == [0, 30, 44]
    assert joined.score.tolist() == [0.4, 0.5, 0.6]


def test_a_score_measured_twice_at_one_cost_counts_once_and_the_later_one():
    joined = Curve.from_logs({0: 0.4, 2: 0.5, 3: 0.7}, {1: 10.0})
    assert (joined.cost.tolist(), joined.score.tolist()) == ([0, 10], [0.4, 0.7])


@pytest.mark.parametrize(
    ("cost", "score", "words"),
    [
        ([], [], "at least one point"),
        ([0, 1], [0.1], "one score for each cost"),
        ([0, 0], [0.1, 0.2], "must rise"),
        ([0, 1], [0.1, np.nan], "not finite"),
    ],
)
def test_what_is_no_curve_is_refused(cost, score, words):
    with pytest.raises(ValueError, match=words):
        curve(cost, score)


@pytest.mark.parametrize(
    ("target", "budget", "expected"),
    [
        (0.4, 400, 0.0),  # the base has it
        (0.45, 400, 50.0),
        (0.5, 400, 100.0),  # exactly at a measurement
        (0.55, 400, 250.0),  # at the first time, not after the dip: .3 at 200, .8 at 300
        (0.8, 400, 300.0),
        (0.8, 299, math.inf),  # censored by the budget
        (0.81, 400, math.inf),  # never
    ],
)
def test_evaluations_to_a_target(target, budget, expected):
    dips = curve([0, 100, 200, 300, 400], [0.4, 0.5, 0.3, 0.8, 0.7])
    assert dips.evaluations_to(target, budget) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "budget", "expected"),
    [
        (0.5, 40, 35),  # after the dip to .1 at 20
        (0.3, 40, 20 + 10 * 2 / 3),  # stays from the rise after 20 on
        (0.7, 40, math.inf),  # ends at .6
        (0.5, 10, 10 * 5 / 6),  # the dip comes after the budget
        (0.5, 14, math.inf),  # measured at 20, but the line to it is below .5 at 14 already
        (0.0, 40, 0),
    ],
)
def test_a_lasting_passage_is_the_one_after_the_last_fall(target, budget, expected):
    dips = curve([0, 10, 20, 30, 40], [0.0, 0.6, 0.1, 0.4, 0.6])
    assert dips.evaluations_to(target, budget, lasting=True) == pytest.approx(expected)


def test_a_run_that_falls_from_the_target_has_not_reached_it_for_good():
    falls = {seed: curve([0, 50, 100], [0.4, 0.9, 0.5]) for seed in range(3)}
    stays = {seed: curve([0, 50, 100], [0.4, 0.8, 0.8]) for seed in range(3)}
    for lasting, reached in ((False, 3), (True, 0)):
        _, rows = summarize(
            {"stays": stays, "falls": falls}, "stays", Target(100, 0.8, lasting=lasting)
        )
        assert (rows[0]["reached"], rows[1]["reached"]) == (3, reached)
        assert math.isinf(rows[1]["ratio"].value) == lasting


def test_bands():
    runs = {seed: line(end) for seed, end in enumerate([0.4, 0.5, 0.6, 0.8, 1.2])}
    middle, low, high = band(runs, np.array([0.0, 50.0, 101.0]))
    assert middle[:2] == pytest.approx([0.4, 0.5])
    assert low[:2] == pytest.approx([0.4, 0.4])
    assert high[:2] == pytest.approx([0.4, 0.8])
    assert np.isnan([middle[2], low[2], high[2]]).all()
    _, low, high = band(runs, np.array([100.0]), quartiles=True)
    assert (low[0], high[0]) == pytest.approx((0.5, 0.8))


def test_the_bootstrap_of_two_seeds_by_hand():
    # Resamples of {0, 10} have the means 0, 5, 10 with chances 1/4, 1/2, 1/4.
    values = {7: 0.0, 9: 10.0}

    def mean(seeds, others):
        assert list(seeds) == list(others)  # the same seeds of both methods: pairs
        return float(np.mean([values[seed] for seed in seeds]))

    wide = bootstrap(mean, [7, 9], [9, 7])
    assert (wide.value, wide.low, wide.high, wide.paired) == (5.0, 0.0, 10.0, True)
    narrow = bootstrap(mean, [7, 9], [7, 9], level=0.4)  # from the 30th to the 70th percentile
    assert (narrow.low, narrow.high) == (5.0, 5.0)
    assert bootstrap(mean, [7, 9], [7, 9]) == wide  # the same interval every time


def test_other_seeds_are_drawn_for_themselves():
    drawn = set()

    def note(seeds, others):
        drawn.add((tuple(seeds), tuple(others)))
        return 0.0

    assert not bootstrap(note, [0, 1], [5]).paired
    assert drawn == {((a, b), (5,)) for a in (0, 1) for b in (0, 1)}


def test_infinity_survives_the_percentiles_and_undefined_resamples_are_left_out():
    worth = {0: 1.0, 1: math.inf, 2: math.nan}

    def first(seeds, others):
        return worth[seeds[0]]

    estimate = bootstrap(first, [0, 1, 2], [0, 1, 2])
    assert (estimate.low, estimate.high) == (1.0, math.inf)


def test_the_ratio_by_hand():
    # The reference ends at .5, .6, .7, so the target is .6. It takes the reference more than 100
    # (counted as 100), 100 and 100 * .2/.3; the method, which ends at .8, always takes 50.
    reference = {0: line(0.5), 1: line(0.6), 2: line(0.7)}
    method = {seed: line(0.8) for seed in range(3)}
    estimate = evaluations_ratio(method, reference, Target(100))
    assert estimate.value == pytest.approx(0.5)
    assert estimate.paired
    # Three seeds: the range of their ratios to the one target.
    assert (estimate.low, estimate.high, estimate.is_range) == (
        pytest.approx(0.5),
        pytest.approx(0.75),
        True,
    )
    fixed = evaluations_ratio(method, reference, Target(100, 0.6))
    assert (fixed.value, fixed.low, fixed.high) == pytest.approx((0.5, 0.5, 0.75))


def test_unpaired_ratios_are_ratios_of_medians():
    reference = {0: line(0.6), 1: line(0.6)}
    method = {5: line(0.8), 6: line(0.8), 7: line(0.5)}
    estimate = evaluations_ratio(method, reference, Target(100))
    assert not estimate.paired
    assert estimate.value == pytest.approx(0.5)  # median of 50, 50 and infinity
    assert estimate.high == math.inf


def test_methods_that_do_not_get_there_cost_infinity_not_the_budget():
    reference = {seed: line(0.6) for seed in range(3)}
    method = {0: line(0.8), 1: line(0.5), 2: line(0.5)}
    estimate = evaluations_ratio(method, reference, Target(100))
    assert estimate.value == math.inf
    assert estimate.low == pytest.approx(0.5)


def test_a_target_that_the_base_has_is_worth_nothing():
    runs = {0: line(0.3), 1: line(0.3)}
    estimate = evaluations_ratio(runs, runs, Target(100))
    assert math.isnan(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_one_seed_has_no_interval():
    estimate = evaluations_ratio({0: line(0.8)}, {0: line(0.6)}, Target(100))
    assert estimate.value == pytest.approx(0.5)
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_differences_are_paired_by_seed():
    reference = {0: line(0.5), 1: line(0.7), 2: line(0.9)}
    method = {0: line(0.6), 1: line(0.8), 2: line(1.0)}
    estimate = difference(method, reference, lambda run: float(run.at(100)))
    # Pairs differ by .1 without exception, however far the seeds lie apart.
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_rows_of_the_table():
    methods = {"base": {1: line(0.6), 0: line(0.6)}, "new": {0: line(0.5), 1: line(0.8)}}
    score, (base, new) = summarize(methods, "base", Target(100))
    assert score == pytest.approx(0.6)
    assert base["ratio"] is None and base["difference"] is None
    assert (base["seeds"], base["reached"]) == ([0, 1], 2)
    assert new["final"] == pytest.approx([0.5, 0.8])
    assert new["evaluations_to_target"] == [math.inf, pytest.approx(50.0)]
    assert (new["reached"], new["final_median"]) == (1, pytest.approx(0.65))
    assert new["difference"].value == pytest.approx(0.05)
    assert new["mean_median"] == pytest.approx((0.45 + 0.6) / 2)
    assert new["mean_difference"].value == pytest.approx(0.025)


def test_a_slow_reference_may_be_run_longer_than_the_rest():
    # It ends at .6 after 400, so the target is .6; final scores are compared at 100, where it has
    # .45. The method reaches .6 after 50 of its 100, the other not within its 100.
    methods = {
        "base": {seed: line(0.6, budget=400.0) for seed in (0, 1)},
        "new": {seed: line(0.8) for seed in (0, 1)},
        "never": {seed: line(0.5) for seed in (0, 1)},
    }
    target = Target(100, reference_budget=400)
    score, (base, new, never) = summarize(methods, "base", target, {"base": 400})
    assert score == pytest.approx(0.6)
    assert (base["final_median"], base["budget"]) == (pytest.approx(0.45), 400)
    assert base["evaluations_to_target"] == pytest.approx([400, 400])
    assert new["difference"].value == pytest.approx(0.35)
    assert new["ratio"].value == pytest.approx(50 / 400)
    assert never["ratio"].value == math.inf


def test_a_method_counts_as_far_as_it_was_run():
    reference = {0: line(0.6), 1: line(0.6)}
    method = {seed: curve([0, 300], [0.4, 0.7]) for seed in (0, 1)}  # .6 after 200
    assert evaluations_ratio(method, reference, Target(100)).value == math.inf
    assert evaluations_ratio(method, reference, Target(100), 300).value == pytest.approx(2.0)


def test_the_mean_score_is_the_area_under_the_curve():
    bent = curve([0, 100, 300], [0.4, 0.6, 0.6])
    assert bent.mean_to(100) == pytest.approx(0.5)
    assert bent.mean_to(200) == pytest.approx(0.55)  # half of it at .5 on average, half at .6
    assert math.isnan(bent.mean_to(301))


def covered(number, trials, paired):
    """How often low to high holds the true median 0 of normal seeds, and whether it is a range."""
    draws = np.random.Generator(np.random.Philox(key=number)).standard_normal((2, trials, number))
    own = list(range(number))
    other = own if paired else [number + seed for seed in own]
    hits = 0
    for trial in range(trials):
        scores = draws[0, trial]
        base = np.zeros(number) if paired else draws[1, trial]

        def median(seeds, reference, scores=scores, base=base):
            mine = sorted(scores[s] for s in seeds)
            theirs = sorted(base[s % number] for s in reference)
            low, high = (number - 1) // 2, number // 2
            return (mine[low] + mine[high] - theirs[low] - theirs[high]) / 2

        def of_pair(seed, reference, scores=scores, base=base):
            return scores[seed] - base[reference % number]

        if number < FEWEST:
            found = estimate(median, own, other, of_pair)
        else:
            found = bootstrap(median, own, other, resamples=200)
        hits += found.low <= 0 <= found.high
    return hits / trials, found.is_range


@pytest.mark.parametrize(
    ("number", "share"), [(2, 0.5), (3, 0.75), (4, 0.875)], ids=["two", "three", "four"]
)
def test_the_range_of_few_seeds_holds_the_median_as_often_as_is_said(number, share):
    found, is_range = covered(number, 2000, paired=True)
    assert found == pytest.approx(share, abs=0.03)  # four standard errors at most
    assert is_range


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_five_seeds_holds_the_median_as_often_as_is_said(paired):
    found, is_range = covered(FEWEST, 150, paired)
    assert not is_range
    assert 0.88 <= found <= 1  # .94 and .97, less three standard errors


def test_a_range_has_the_ends_of_pairs_where_seeds_differ():
    worth = {0: 1.0, 1: 4.0, 7: 2.0, 8: 3.0, 9: 9.0}

    def median(seeds, others):
        return float(np.median([worth[s] for s in seeds]) - np.median([worth[s] for s in others]))

    found = estimate(median, [0, 1], [7, 8, 9])
    assert (found.value, found.low, found.high) == (-0.5, 1 - 9, 4 - 2)
    assert found.is_range and not found.paired
    assert math.isnan(estimate(median, [0], [7]).low)
    # The fewer of both count.
    assert estimate(median, [0, 1], [7, 8, 9, 0, 1]).is_range


def test_a_score_that_is_no_number_is_left_out_and_counted():
    joined = Curve.from_logs(
        {0: 0.4, 2: math.nan, 3: math.inf, 4: 0.8}, {1: 10.0, 3: 30.0, 4: 40.0}
    )
    assert (joined.cost.tolist(), joined.score.tolist()) == ([0, 40], [0.4, 0.8])
    assert joined.missing == 2
    assert curve([0, 1], [0, 1]).missing == 0
