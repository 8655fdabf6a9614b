"""What the step-variance callbacks publish, from what, at what cost, and after a resume."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from probe_by_hand import TRAINER
from tiny_training import PROMPTS, Redness, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import MedianSplitAllocator, UniformAllocator
from aegpo.entropy import EntropyRecorder
from aegpo.exploration import EntropyPeaks, ExplorationSchedule, FixedSteps, RandomSteps
from aegpo.prompts import PromptBatch
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE
from aegpo.study.split_variance import split_variance
from callbacks.entropy_probe import EntropyProbe
from callbacks.reward_spread import RewardSpread
from callbacks.rollout_checkpoint import RolloutCheckpoint
from callbacks.step_spread import TreeSpread, TrialSpread

T = 5


def batch(*rows: int) -> PromptBatch:
    return PromptBatch([PROMPTS[row] for row in rows], torch.tensor(rows), [{}] * len(rows))


@pytest.fixture
def module(tiny_sd3_folder: Path) -> Any:
    module = tiny_module(tiny_sd3_folder)
    module.configure_model()
    return module


def start(callback: Any, module: Any, rows: tuple[int, ...], iteration: int = 0) -> Any:
    module.iteration = iteration
    callback.on_train_batch_start(TRAINER, module, batch(*rows), 0)
    return module.entropy


def fit(tmp_path: Path, module: Any, callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    settings = {"max_epochs": 1, "limit_val_batches": 0} | settings
    trainer = tiny_trainer(tmp_path, callbacks, **settings)
    trainer.fit(module, tiny_data(tmp_path))
    return trainer


# --------------------------------------------------------------------------- trials


def test_trials_are_groups_that_differ_by_one_step(module: Any) -> None:
    reading = start(TrialSpread(images=4, prompts=2), module, (3, 8, 1), iteration=20)
    variances = torch.zeros(T, dtype=torch.float64)
    noise = module.noise.at(20).apart("trials")
    for step in range(T - 1):
        for row in (3, 8):  # the third prompt of the batch is not measured
            eta = torch.zeros(1, T)
            eta[:, step] = 0.7
            tree = rollout(
                module.policy,
                FlowSDE(),
                module.policy.encode([PROMPTS[row]]),
                ExplorationSchedule(eta, torch.ones(1, T, dtype=torch.int64)),
                torch.tensor([4]),
                noise,
                torch.tensor([row]),
                shared_start=True,
            )
            variances[step] += Redness()(tree.images, [], []).double().var() / 2
    assert reading.curve.shape == (3, T) and reading.delta is None
    for row in range(3):
        torch.testing.assert_close(reading.curve[row], variances.float(), rtol=1e-3, atol=1e-12)
    assert float(variances[:-1].min()) > 0 and float(reading.curve[0, -1]) == 0


def test_trials_are_charged_to_the_probe_and_come_every_few_iterations(module: Any) -> None:
    own = TrialSpread(images=3, prompts=2, every_n_iterations=4)
    cost = 2 * sum(t + 1 + 3 * (T - 1 - t) for t in range(T - 1))
    counts = module.policy.evaluations.counts
    first = start(own, module, (0, 4), iteration=1)  # nothing is known: not later than now
    assert counts["probe"] == cost == module.policy.evaluations.total
    assert torch.equal(start(own, module, (5, 6, 7), iteration=3).curve[0], first.curve[0])
    assert counts["probe"] == cost
    second = start(own, module, (0, 4), iteration=4)
    assert counts["probe"] == 2 * cost
    assert not torch.equal(second.curve, first.curve)  # fresh noise, averaged with the old


def test_trials_do_not_use_the_noise_of_the_training_rollout(module: Any) -> None:
    drawn = {}
    for name, noise in (
        ("own", module.noise.at(3).apart("trials")),
        ("rollout", module.noise.at(3)),
    ):
        schedule = ExplorationSchedule.deterministic(1, T)
        cond, ones = module.policy.encode(PROMPTS[:1]), torch.ones(1, dtype=torch.int64)
        index = torch.tensor([0])
        drawn[name] = rollout(module.policy, FlowSDE(), cond, schedule, ones, noise, index).latents
    assert not torch.allclose(drawn["own"], drawn["rollout"], atol=0.1)
    assert repr(module.noise.at(3).apart("a").normal("b", torch.tensor([[1]]), (2,))) != repr(
        module.noise.at(3).normal("b", torch.tensor([[1]]), (2,))
    )


def test_more_prompts_than_the_batch_has_are_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="prompts=4, but a batch has 2"):
        start(TrialSpread(prompts=4), module, (0, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 1}, "images=1 have no spread"),
        ({"prompts": 0}, "prompts=0 must be at least 1"),
        ({"every_n_iterations": 0}, "every_n_iterations=0"),
        ({"decay": 1.0}, r"decay=1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_numbers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrialSpread(**settings)


def test_the_oracle_decides_the_steps_of_a_run(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=EntropyPeaks(top_k=2, scope="batch"),
        allocator=MedianSplitAllocator(low=2, high=4),
        lr=1e-2,
    )
    own = TrialSpread(images=3, prompts=4, every_n_iterations=1)
    fit(tmp_path, module, [own])
    assert own.variance is not None
    best = own.variance.estimate[:-1].argsort(descending=True)[:2].sort().values.tolist()
    assert module.last.schedule.stochastic.nonzero()[:, 1].tolist() == best * 4
    assert module.last.group_sizes.tolist() == [3] * 4  # no ΔEntropy: uniform
    cost = 2 * 4 * sum(t + 1 + 3 * (T - 1 - t) for t in range(T - 1))
    assert module.policy.evaluations.counts["probe"] == cost


def test_the_delta_of_a_probe_before_it_stays(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    module = tiny_module(tiny_sd3_folder, lr=1e-2)
    probe, own = EntropyProbe(EntropyRecorder(rows=None)), TrialSpread(images=2, prompts=1)
    fit(tmp_path, module, [probe, own])
    rows = module.last.batch.index.tolist()
    assert module.entropy.delta.tolist() == [float(probe.last[row][1]) for row in rows]
    assert float(module.entropy.delta.max()) > 0
    assert torch.equal(module.entropy.curve[0], own.variance.curve(1).float())
    with pytest.raises(ValueError, match="list TrialSpread after the probe"):
        fit(tmp_path, tiny_module(tiny_sd3_folder), [TrialSpread(), EntropyProbe()])


# --------------------------------------------------------------------------- trees


def tree_module(folder: Path, **settings: Any) -> Any:
    settings = {
        "step_selector": EntropyPeaks(top_k=2, branching=2),
        "allocator": UniformAllocator(4),
        "lr": 1e-2,
    } | settings
    return tiny_module(folder, **settings)


class Watch(L.Callback):
    """Notes the steps, the trees and the rewards of every iteration."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        last = pl_module.last
        steps = tuple(last.schedule.stochastic[0].nonzero().flatten().tolist())
        self.rows.append((steps, last.tree, last.rewards, pl_module.entropy.curve))


def test_trees_tell_their_steps_for_nothing(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    module, own, watch = tree_module(tiny_sd3_folder), TreeSpread(decay=0.5), Watch()
    fit(tmp_path, module, [own, watch], max_epochs=4)
    assert module.policy.evaluations.counts["probe"] == 0
    # All four steps are looked at before any of them is chosen for what it explains.
    assert [row[0] for row in watch.rows[:2]] == [(0, 1), (2, 3)]
    squares = freedom = torch.zeros(T, dtype=torch.float64)
    for _, tree, rewards, _ in watch.rows:
        terms = split_variance(tree, rewards, 4)
        squares = 0.5 * squares + terms.squares.sum(0)
        freedom = 0.5 * freedom + terms.freedom.sum(0)
    expected = (squares / freedom)[:-1].clamp(min=0)
    torch.testing.assert_close(own.variance.estimate[:-1], expected)
    curve = watch.rows[-1][3]
    assert torch.equal(curve[0], curve[3])
    assert watch.rows[-1][0] == tuple(sorted(curve[0, :-1].argsort(descending=True)[:2].tolist()))


def test_steps_that_have_not_split_for_long_are_split_again(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    module, own, watch = tree_module(tiny_sd3_folder), TreeSpread(revisit_every=3), Watch()
    fit(tmp_path, module, [own, watch], max_epochs=6)
    split = Counter(step for row in watch.rows for step in row[0])
    assert min(split[step] for step in range(T - 1)) >= 3  # in 12 iterations


@pytest.mark.parametrize(
    "settings",
    [
        {"step_selector": FixedSteps([0, 1])},
        {"step_selector": FixedSteps([0, 1]), "shared_start": True},
        {"step_selector": EntropyPeaks(2, branching=2), "allocator": UniformAllocator(3)},
    ],
    ids=["chains", "chains of two noisy steps", "odd groups"],
)
def test_a_run_without_siblings_is_refused(
    tmp_path: Path, tiny_sd3_folder: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="no rollout of this iteration split"):
        fit(tmp_path, tree_module(tiny_sd3_folder, **settings), [TreeSpread()])


def test_a_shared_start_that_parts_at_one_step_is_a_tree(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    module = tree_module(tiny_sd3_folder, step_selector=RandomSteps(1), shared_start=True)
    own = TreeSpread()
    fit(tmp_path, module, [own])
    last = module.last
    group = last.rewards[last.tree.row == 2]
    step = int(last.schedule.stochastic[2].nonzero())
    terms = split_variance(last.tree, last.rewards, 4)
    assert float(terms.squares[2, step]) == pytest.approx(3 * float(group.var()), rel=1e-4)


# --------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", ["trials", "tree"])
def test_resumed_equals_uninterrupted(tmp_path: Path, tiny_sd3_folder: Path, name: str) -> None:
    def run(folder: str, max_epochs: int, ckpt_path: str | None = None) -> list[Any]:
        own: Any = TrialSpread(2, 2, every_n_iterations=3) if name == "trials" else TreeSpread()
        watch = Watch()
        callbacks = [own, RewardSpread(), watch, RolloutCheckpoint(dirpath=str(tmp_path / folder))]
        settings = {"max_epochs": max_epochs, "enable_checkpointing": True}
        trainer = tiny_trainer(tmp_path, callbacks, limit_val_batches=0, **settings)
        module = tree_module(tiny_sd3_folder)
        trainer.fit(module, tiny_data(tmp_path), ckpt_path=ckpt_path, weights_only=True)
        rows = [(row[0], row[2].tolist(), row[3].tolist()) for row in watch.rows]
        return [*rows, own.variance.estimate[:-1].tolist()]

    whole = run("whole", 4)
    first = run("halves", 2)[:-1]
    assert first + run("halves", 4, ckpt_path="last") == whole


def test_a_state_survives_being_saved_before_it_is_used(module: Any) -> None:
    own = TrialSpread(images=2, prompts=1)
    start(own, module, (0, 4))
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    resumed = TrialSpread(images=2, prompts=1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    again = TrialSpread(images=2, prompts=1)
    again.load_state_dict(resumed.state_dict())
    before = dict(module.policy.evaluations.counts)
    expected = own.variance.curve(3).float()
    assert torch.equal(start(again, module, (5,), iteration=3).curve[0], expected)
    assert module.policy.evaluations.counts == before
