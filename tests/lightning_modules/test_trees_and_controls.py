"""Trees, pruning and controls inside a training run."""

import pytest
import torch
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.advantages import ShuffledRewards
from aegpo.allocation import MedianSplitAllocator, UniformAllocator
from aegpo.entropy.controls import InvertedEntropy, RandomEntropy
from aegpo.exploration import EntropyPeaks, FixedSplits, FixedSteps
from aegpo.objectives import DepthCredit, DepthPruning, WidthPruning
from callbacks.controlled_entropy import ControlledEntropy
from callbacks.reward_spread import RewardSpread


def fit(tmp_path, module, callbacks=(), **settings):
    settings = {"max_epochs": 1, "limit_val_batches": 0} | settings
    trainer = tiny_trainer(tmp_path, list(callbacks), **settings)
    trainer.fit(module, tiny_data(tmp_path))
    return trainer


def with_control(control):
    probe, *others = entropy_callbacks()
    return [probe, control, *others]


def test_entropy_trees_fit_their_groups(tmp_path, tiny_sd3_folder):
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=EntropyPeaks(top_k=3, branching=2),
        allocator=MedianSplitAllocator(low=4, high=8),
        credit=DepthCredit(beta=1.0),
        lr=1e-2,
    )
    trainer = fit(tmp_path, module, entropy_callbacks())
    last = module.last
    assert sorted(last.group_sizes.tolist()) == [4, 4, 8, 8]
    assert torch.equal(last.schedule.leaves_per_root, last.group_sizes)  # one root each
    assert (last.schedule.stochastic.sum(1) == 3).all()
    # Where four images split twice, these are the two highest of the three peaks.
    curve = module.entropy.curve[:, :-1]
    for row in (last.group_sizes == 4).nonzero().flatten().tolist():
        peaks = curve[row].argsort(descending=True, stable=True)[:2].sort().values
        assert last.schedule.branching[row].gt(1).nonzero().flatten().tolist() == peaks.tolist()
    assert float(trainer.callback_metrics["ratio/first_max_dev"]) < 1e-6
    assert float(trainer.callback_metrics["update/gradient_norm"]) > 0


def test_a_tree_costs_its_nodes_and_its_edges(tmp_path, tiny_sd3_folder):
    """5 steps, splits at 0 and 2: nodes 1 + 2 + 2 + 4 + 4, edges 2 + 2 + 4 + 4 a prompt."""
    settings = {"step_selector": FixedSplits([0, 2]), "allocator": UniformAllocator(4)}
    module = tiny_module(tiny_sd3_folder, **settings)
    fit(tmp_path, module)
    counts = module.policy.evaluations.counts
    assert counts["rollout"] == 2 * 4 * 13
    assert counts["update"] == 2 * 4 * 12 * 3

    pruned = tiny_module(tiny_sd3_folder, **settings, pruning=WidthPruning())
    fit(tmp_path, pruned)
    counts = pruned.policy.evaluations.counts
    assert counts["rollout"] == 2 * 4 * 13
    assert counts["update"] == 2 * 4 * 10 * 3  # of the four edges at step 3 two are left


def test_correlated_siblings_are_drawn_scored_and_trained_on(tmp_path, tiny_sd3_folder):
    runs = {}
    for scale in (None, 4.0):
        module = tiny_module(
            tiny_sd3_folder,
            step_selector=FixedSplits([0, 2]),
            allocator=UniformAllocator(4),
            credit=DepthCredit(beta=1.0),
            split_scale=scale,
        )
        runs[scale] = fit(tmp_path, module).callback_metrics, module.last.tree
    metrics, tree = runs[4.0]
    assert float(metrics["ratio/first_max_dev"]) < 1e-6
    assert float(metrics["update/gradient_norm"]) > 0
    assert not torch.allclose(tree.latents, runs[None][1].latents, atol=1e-2)


def test_correlated_siblings_without_siblings_are_refused(tiny_sd3_folder):
    with pytest.raises(ValueError, match="EntropyPeaks grows chains without any"):
        tiny_module(tiny_sd3_folder, split_scale=4.0)
    with pytest.raises(ValueError, match="split_scale=0"):
        tiny_module(tiny_sd3_folder, split_scale=0, step_selector=FixedSplits([0, 2]))


def test_a_run_refuses_to_prune_steps_that_do_not_exist(tiny_sd3_folder):
    with pytest.raises(ValueError, match="reach beyond step 3"):
        tiny_module(tiny_sd3_folder, pruning=DepthPruning(start=3, width=2))


def test_a_control_takes_the_place_of_the_reading(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, lr=1e-2)
    callbacks = with_control(ControlledEntropy(InvertedEntropy("curve")))
    fit(tmp_path, module, callbacks)
    probe = callbacks[0]
    true = torch.stack([probe.last[row][0] for row in module.last.batch.index.tolist()])[:, :-1]
    valleys = true.argsort(dim=1)[:, :2].sort(1).values
    chosen = module.last.schedule.stochastic.nonzero()[:, 1].reshape(-1, 2)
    assert torch.equal(chosen, valleys)


def test_a_control_without_a_probe_before_it_is_refused(tmp_path, tiny_sd3_folder):
    probe, *others = entropy_callbacks()
    control = ControlledEntropy(RandomEntropy())
    with pytest.raises(ValueError, match="list it after the probe"):
        fit(tmp_path, tiny_module(tiny_sd3_folder), [control, probe, *others])


def test_reward_spread_decides_the_budget_at_the_next_visit(tmp_path, tiny_sd3_folder):
    module = tiny_module(tiny_sd3_folder, step_selector=FixedSteps([0, 1]), lr=1e-2)
    spread = RewardSpread()
    fit(tmp_path, module, [spread], max_epochs=3)
    assert len(spread.last) == 12  # all prompts, each with its own
    assert len(set(spread.last.values())) == 12 and min(spread.last.values()) > 0
    delta = module.entropy.delta
    assert sorted(module.last.group_sizes.tolist()) == [2, 2, 4, 4]
    sizes = module.last.group_sizes
    assert float(delta[sizes == 4].min()) >= float(delta[sizes == 2].max())
    # What is remembered is the deviation of the last group's rewards.
    row, index = 1, int(module.last.batch.index[1])
    own = module.last.rewards[module.last.tree.row == row]
    assert spread.last[index] == pytest.approx(float(own.std()), rel=1e-5)
    restored = RewardSpread()
    restored.load_state_dict(spread.state_dict())
    assert restored.last == spread.last


@pytest.mark.slow
def test_shuffled_rewards_do_not_train(tmp_path, tiny_sd3_folder):
    """The run of test_aegpo_module that raises the reward, with rewards of other images."""
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=FixedSteps([0, 1, 2]),
        allocator=UniformAllocator(8),
        advantage=ShuffledRewards(),
        lr=2e-2,
        clip_range=0.1,
    )
    trainer = tiny_trainer(tmp_path, [], max_epochs=12, check_val_every_n_epoch=12)
    data = tiny_data(tmp_path, val_images=32, val_batch_size=32)
    before = trainer.validate(module, data, verbose=False)[0]["val/redness"]
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["val/redness"]) < before + 0.01
