"""The training step on the tiny pipeline: ratio, gradient, costs, missing rewards."""

import pytest
import torch
from tiny_training import (
    Redness,
    entropy_callbacks,
    tiny_data,
    tiny_module,
    tiny_trainer,
)

from aegpo.allocation import UniformAllocator
from aegpo.exploration import AllSteps, EntropyPeaks, FixedSteps
from aegpo.objectives import Experience
from aegpo.rewards.base import Reward
from lightning_modules.training.decision import Decision


def fit(tmp_path, module, callbacks=(), **settings):
    trainer = tiny_trainer(tmp_path, list(callbacks), **settings)
    trainer.fit(module, tiny_data(tmp_path))
    return trainer


def first_replay(tmp_path, folder, **settings):
    """One rollout of the tiny module before any update, with advantages of both signs."""
    module = tiny_module(folder, step_selector=FixedSteps([0, 2, 3]), **settings)
    module.configure_model()
    data = tiny_data(tmp_path)
    batch = next(iter(data.train_dataloader()))
    schedule = module.step_selector(None, module.noise, batch.index, module.num_steps)
    decision = Decision(module.noise, schedule, torch.tensor([2, 4, 2, 4]), torch.arange(4))
    cond = module.encode(batch)
    tree, pending = module.explore(batch, cond, decision)
    rewards = module.score(pending).total
    experience = Experience(
        module.policy,
        module.sde,
        cond,
        tree,
        schedule,
        rewards,
        module.advantage(rewards, tree.row).values,
        batch.index,
        module.noise,
    )
    return module, module.objective.samples(experience)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8, 100])
def test_before_the_first_update_the_ratio_is_one(tmp_path, tiny_sd3_folder, micro_batch_size):
    _, replay = first_replay(tmp_path, tiny_sd3_folder)
    rows = torch.arange(len(replay.tree.transitions))
    for micro in rows.split(micro_batch_size):
        _, terms = replay.terms(micro)
        assert float(terms.log_ratio.detach().abs().max()) < 1e-6


def test_the_first_gradient_is_that_of_advantage_times_log_prob(tmp_path, tiny_sd3_folder):
    module, replay = first_replay(tmp_path, tiny_sd3_folder)
    rows = torch.arange(len(replay.tree.transitions))
    parameters = module.policy.trainable_parameters()
    loss = replay.loss(rows).loss.sum()
    own = torch.autograd.grad(loss, parameters, allow_unused=True)
    step = replay.step(rows)
    log_prob = step.log_prob(replay.tree.transitions.next_latents)
    plain = torch.autograd.grad(
        -(replay.advantages * log_prob).sum(), parameters, allow_unused=True
    )
    compared = 0
    for ours, theirs in zip(own, plain, strict=True):
        if theirs is not None and float(theirs.abs().max()) > 0:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-9)
            compared += 1
    assert compared > 0


def test_training_raises_a_reward_that_can_be_raised(tmp_path, tiny_sd3_folder):
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=FixedSteps([0, 1, 2]),
        allocator=UniformAllocator(8),
        lr=2e-2,
        clip_range=0.1,
    )
    trainer = tiny_trainer(tmp_path, [], max_epochs=12, check_val_every_n_epoch=12)
    data = tiny_data(tmp_path, val_images=32, val_batch_size=32)
    before = trainer.validate(module, data, verbose=False)[0]["val/redness"]
    trainer.fit(module, data)
    after = float(trainer.callback_metrics["val/redness"])
    assert after > before + 0.01


def test_evaluations_are_counted_by_purpose(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, step_selector=EntropyPeaks(top_k=2))
    fit(tmp_path, module, entropy_callbacks(), max_epochs=1, limit_val_batches=0)
    counts = module.policy.evaluations.counts
    assert counts["rollout"] == 2 * 12 * 5  # iterations x images x steps
    assert counts["probe"] == 2 * 4 * 5  # one trajectory a prompt
    assert counts["reference"] == 2 * 4 * 5  # eight prompts, each seen for the first time
    assert counts["update"] == 2 * 12 * 2 * 3  # two stochastic steps, forward and backward


def test_the_reference_is_probed_once_per_prompt(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder)
    fit(tmp_path, module, entropy_callbacks(), max_epochs=5, limit_val_batches=0)
    assert module.policy.evaluations.counts["reference"] == 12 * 5  # twelve prompts in all


def test_the_first_reading_sees_no_difference_and_a_later_one_does(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, lr=1e-2)
    fit(tmp_path, module, entropy_callbacks(), max_epochs=1, limit_train_batches=1)
    assert float(module.entropy.delta.abs().max()) == 0.0
    module = tiny_module(tiny_sd3_folder, lr=1e-2)
    fit(tmp_path, module, entropy_callbacks(), max_epochs=2)
    assert float(module.entropy.delta.min()) > 0.0
    assert sorted(module.last.group_sizes.tolist()) == [2, 2, 4, 4]
    high = module.entropy.delta[module.last.group_sizes == 4].min()
    assert bool((module.entropy.delta[module.last.group_sizes == 2] <= high).all())


def test_without_a_probe_training_is_the_uniform_baseline(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder)
    fit(tmp_path, module, max_epochs=1)
    assert module.entropy is None
    assert module.last.group_sizes.tolist() == [3, 3, 3, 3]
    assert module.last.schedule.stochastic[0].tolist() == [True, True, False, False, False]


def test_kl_to_the_reference_is_zero_at_first_and_then_positive(tmp_path, tiny_sd3_folder):
    module, replay = first_replay(tmp_path, tiny_sd3_folder, kl_coeff=0.1)
    rows = torch.arange(len(replay.tree.transitions))
    assert float(replay.loss(rows).kl.max()) == 0.0
    module = tiny_module(tiny_sd3_folder, kl_coeff=0.1, lr=1e-2)
    trainer = fit(tmp_path, module, max_epochs=1)
    assert float(trainer.callback_metrics["update/kl"]) > 0
    assert module.policy.evaluations.counts["reference"] > 0


def test_all_steps_over_two_inner_epochs_leave_the_ratio_one_only_at_first(
    tmp_path, tiny_sd3_folder
):
    module = tiny_module(
        tiny_sd3_folder, step_selector=AllSteps(), inner_epochs=2, lr=1e-2, clip_range=1e-5
    )
    trainer = fit(tmp_path, module, max_epochs=1)
    assert float(trainer.callback_metrics["ratio/first_max_dev"]) < 1e-6
    assert float(trainer.callback_metrics["ratio/std"]) > 1e-6
    assert float(trainer.callback_metrics["ratio/clip_fraction"]) > 0


class Broken(Reward):
    """Fails on some images."""

    name = "broken"
    range = None
    deterministic = True

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, images, prompts, metadata):
        """Red minus green, not a number for the first images of each call."""
        scores = images[:, 0].flatten(1).mean(1)
        scores[: round(self.share * len(scores))] = float("inf")
        return scores


@pytest.mark.filterwarnings("ignore:reward 'broken'")
def test_failed_rewards_are_missing_and_not_zero(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, reward=Broken(0.25))
    trainer = fit(tmp_path, module, max_epochs=1)
    assert float(trainer.callback_metrics["reward/missing"]) == 3
    assert float(trainer.callback_metrics["reward/mean"]) > 0.1
    assert all(bool(p.isfinite().all()) for p in module.policy.trainable_parameters())


@pytest.mark.filterwarnings("ignore:reward 'broken'")
def test_too_many_failed_rewards_stop_the_run(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, reward=Broken(0.75))
    told = r"'broken' failed on 9 of 12 images of iteration 2, .* for the 3rd time in a row"
    with pytest.raises(RuntimeError, match=told):
        fit(tmp_path, module, max_epochs=3, limit_val_batches=0)
    assert module.iteration == 2  # two such iterations were survived


@pytest.mark.filterwarnings("ignore:reward '(broken|away)'")
def test_a_bad_iteration_is_survived_and_a_reward_that_never_worked_is_not(
    tmp_path, tiny_sd3_folder
):
    class Away(Broken):
        calls = 0

        def __call__(self, *args):
            """No score in the second iteration, whose call is tried again and prompt by prompt."""
            self.calls += 1
            if 2 <= self.calls <= 2 + 1 + 4:
                raise ConnectionError("away")
            return super().__call__(*args)

    module = tiny_module(tiny_sd3_folder, reward=Away(0.0))
    trainer = fit(tmp_path, module, max_epochs=2, limit_val_batches=0)
    assert module.iteration == 4 and float(trainer.callback_metrics["reward/missing"]) == 0
    assert all(bool(p.isfinite().all()) for p in module.policy.trainable_parameters())
    with pytest.raises(RuntimeError, match=r"'broken' failed on 12 of 12 images of iteration 0"):
        fit(tmp_path, tiny_module(tiny_sd3_folder, reward=Broken(1.0)), limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:reward 'broken'")
def test_missing_held_out_scores_are_counted_and_too_many_stop_the_run(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, evaluation_rewards=[Broken(0.3)])
    trainer = fit(tmp_path, module, max_epochs=1)
    assert float(trainer.callback_metrics["val/missing"]) > 0
    module = tiny_module(tiny_sd3_folder, evaluation_rewards=[Broken(0.9)])
    with pytest.raises(RuntimeError, match=r"'broken' failed on \d of \d held-out images"):
        fit(tmp_path, module, max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_selector": EntropyPeaks(top_k=5)}, "top_k=5"),
        ({"num_steps": 1}, "num_steps=1 must be at least 2"),
        ({"micro_batch_size": 0}, "micro_batch_size=0 must be at least 1"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"evaluation_rewards": [Redness()]}, "give each its own name"),
    ],
)
def test_impossible_settings_are_refused_before_anything_loads(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_module("/nowhere", **settings)
