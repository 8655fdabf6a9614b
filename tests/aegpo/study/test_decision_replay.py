"""The decision log's lines and their replay, by hand."""

import math

import pytest
import torch

from aegpo.allocation import MedianSplitAllocator, UniformAllocator
from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import AllSteps, EntropyPeaks, FixedSteps, RandomSteps
from aegpo.noise import KeyedNoise
from aegpo.study.decision_log import Decision, read_decisions
from aegpo.study.decision_replay import compare_sizes, compare_steps, replay_sizes
from lightning_modules.commands.report.figures import draw_decisions


def decide(allocator, selector, iteration, num_steps=6, prompts=4, entropy=True):
    """A decision as a run takes it, from a reading with awkward digits."""
    generator = torch.Generator().manual_seed(iteration)
    index = torch.randperm(100, generator=generator)[:prompts]
    reading = None
    if entropy:
        curve = torch.rand(prompts, num_steps, generator=generator) / 3
        reading = EntropyReading(curve, torch.rand(prompts, generator=generator) * 1e-5)
    sizes = allocator(reading, prompts)
    schedule = selector(reading, KeyedNoise(3, iteration), index, num_steps).fit(sizes)
    return Decision(
        iteration=iteration,
        seed=3,
        index=index,
        num_steps=num_steps,
        entropy=reading,
        group_sizes=sizes,
        stochastic=schedule.stochastic,
        branching=schedule.branching,
        probabilities=torch.rand(prompts, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("entropy", [True, False])
def test_a_line_gives_back_every_bit(entropy):
    before = decide(
        MedianSplitAllocator(2, 4), EntropyPeaks(top_k=2, branching=3), 5, entropy=entropy
    )
    line = before.to_json()
    after = Decision.from_json(line)
    assert "\n" not in line
    for name in ("index", "group_sizes", "stochastic", "branching"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert (after.iteration, after.seed, after.num_steps) == (5, 3, 6)
    if entropy:
        assert torch.equal(after.entropy.curve, before.entropy.curve)
        assert torch.equal(after.entropy.delta, before.entropy.delta)
    else:
        assert after.entropy is None
    assert after.probabilities.tolist() == pytest.approx(before.probabilities.tolist(), rel=1e-8)


def test_a_line_cut_short_is_left_out_and_another_mistake_is_told(tmp_path):
    log = tmp_path / "decisions.jsonl"
    line = decide(UniformAllocator(4), AllSteps(), 0).to_json()
    log.write_text(line + "\n" + line + "\n" + line[:40])
    assert len(read_decisions(log)) == 2
    log.write_text('{"iteration": 0}\n')
    with pytest.raises(ValueError, match="not a line of a decision log"):
        read_decisions(log)


@pytest.mark.parametrize(
    "selector",
    [EntropyPeaks(top_k=2), EntropyPeaks(top_k=3, branching=2), RandomSteps(num=2), AllSteps()],
    ids=["peaks", "tree", "random", "all"],
)
def test_the_original_objects_decide_the_same_again(selector):
    allocator = MedianSplitAllocator(2, 4)
    logged = [decide(allocator, selector, iteration) for iteration in range(8)]
    decisions = [Decision.from_json(decision.to_json()) for decision in logged]
    for decision, sizes in zip(decisions, replay_sizes(decisions, allocator), strict=True):
        assert torch.equal(sizes, decision.group_sizes)
    assert compare_steps(decisions, selector).same == 1.0
    sizes = compare_sizes(decisions, allocator)
    assert (sizes.same, sizes.moved, sizes.correlation) == (1.0, 0.0, pytest.approx(1.0))


def test_other_sizes_by_hand():
    # By ΔEntropy 1, 2, 3, 4 the run gave 2, 2, 4, 4; equal parts are 3 each.
    decision = Decision(
        iteration=0,
        seed=0,
        index=torch.arange(4),
        num_steps=3,
        entropy=EntropyReading(torch.ones(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0])),
        group_sizes=torch.tensor([2, 2, 4, 4]),
        stochastic=torch.tensor([[True, False, False]] * 4),
        branching=torch.ones(4, 3, dtype=torch.int64),
    )
    equal = compare_sizes([decision], UniformAllocator(3))
    assert equal.same == 0.0
    assert equal.moved == pytest.approx(2 / 12)  # one image each from two prompts to two others
    assert math.isnan(equal.correlation)

    # Steps {0} of the run against {0, 1}: never the same, half of the union in common.
    steps = compare_steps([decision], FixedSteps([0, 1]))
    assert (steps.same, steps.overlap) == (0.0, 0.5)
    assert steps.logged.tolist() == [1, 0, 0]
    assert steps.replayed.tolist() == [1, 1, 0]
    # The same steps with another branching are other decisions.
    split = compare_steps([decision], FixedSteps([0], branching=2))
    assert (split.same, split.overlap) == (0.0, 1.0)


def test_a_warm_up_of_fewer_steps_is_compared_too():
    short, long = (
        Decision(
            iteration=number,
            seed=0,
            index=torch.arange(2),
            num_steps=steps,
            entropy=None,
            group_sizes=torch.tensor([2, 2]),
            stochastic=torch.zeros(2, steps, dtype=torch.bool),
            branching=torch.ones(2, steps, dtype=torch.int64),
        )
        for number, steps in enumerate((3, 5))
    )
    agreed = compare_steps([short, long], FixedSteps([0]))
    assert (agreed.same, agreed.overlap) == (0.0, 0.0)
    assert agreed.logged.tolist() == [0] * 5 and agreed.replayed.tolist() == [1, 0, 0, 0, 0]
    figure = draw_decisions([short, long])
    (image,) = (image for axes in figure.axes for image in axes.get_images())
    assert image.get_array().shape == (5, 2)
    axes = figure.axes[0]
    assert axes.get_ylabel() == "denoising step of 5, or its share"
    assert draw_decisions([long]).axes[0].get_ylabel() == "denoising step"


def test_an_empty_log_is_no_agreement():
    with pytest.raises(ValueError, match="empty"):
        compare_sizes([], UniformAllocator(2))
    with pytest.raises(ValueError, match="empty"):
        compare_steps([], AllSteps())
