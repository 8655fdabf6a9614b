"""Selections in the training step: what is trained on, its costs and logs, and resumption."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import MedianSplitAllocator, UniformAllocator
from aegpo.exploration import FixedSplits, FixedSteps, NoSteps
from aegpo.objectives import NFT, DepthCredit
from aegpo.sde import ODE
from aegpo.selection import AllImages, ByAdvantage, Extremes
from callbacks.cost_logger import CostLogger
from callbacks.decision_log import DecisionLog
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.commands.plan.dry_run import dry_run

IMAGES, KEPT = 2 * 4 * 6, 2 * 4 * 2  # iterations, prompts, images of each


def nft_module(folder, selection=None, **settings):
    settings = {"allocator": UniformAllocator(6), "lr": 1e-2} | settings
    module = tiny_module(
        folder,
        step_selector=NoSteps(),
        objective=NFT(times_per_image=2, kl_coeff=0.0, decay_max=0.0),
        selection=selection,
        **settings,
    )
    module.sde = ODE()
    return module


def fit(tmp_path, module, callbacks=(), ckpt_path=None, **settings):
    settings = {"max_epochs": 1, "limit_val_batches": 0} | settings
    trainer = tiny_trainer(tmp_path, list(callbacks), **settings)
    trainer.fit(module, tiny_data(tmp_path), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def trained(module):
    return torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])


@pytest.fixture(scope="module")
def all_images(tmp_path_factory, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder)
    logged = fit(tmp_path_factory.mktemp("all"), module, [CostLogger()]).callback_metrics
    return module, logged


def test_only_the_chosen_are_paid_for_and_counted(tmp_path, tiny_sd3_folder, all_images):
    module = nft_module(tiny_sd3_folder, Extremes(keep=2, split="even"))
    callbacks = [CostLogger(), DecisionLog()]
    logger = CSVLogger(tmp_path, name="", version="")
    logged = fit(tmp_path, module, callbacks, logger=logger).callback_metrics
    spent, whole = module.policy.evaluations.counts, all_images[0].policy.evaluations.counts
    assert spent["update"] == KEPT * 2 * 3 and whole["update"] == IMAGES * 2 * 3
    # Predictions of theta_old are asked for in the second of two updates.
    assert whole["rollout"] - spent["rollout"] == (IMAGES - KEPT) * 2 / 2
    assert logged["rollout/images"] == IMAGES / 2 and logged["rollout/images_trained"] == KEPT / 2
    assert logged["cost/images"] == logged["cost/rewards"] == IMAGES
    assert logged["cost/images_trained"] == KEPT
    assert logged["cost/per_image"] == logged["cost/evaluations"] / IMAGES
    assert logged["cost/per_trained_image"] == logged["cost/evaluations"] / KEPT
    assert "rollout/images_trained" not in all_images[1]
    assert all_images[1]["cost/images_trained"] == IMAGES
    assert not torch.equal(trained(module), trained(all_images[0]))

    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    rewards = module.last.rewards.reshape(4, 6)
    expected = [sorted((int(one.argmin()), int(one.argmax()))) for one in rewards]
    places = [lines[-1]["index"].index(index) for index in module.last.batch.index.tolist()]
    assert [lines[-1]["kept"][place] for place in places] == expected
    unbuilt = nft_module(tiny_sd3_folder, Extremes(keep=2, split="even"))
    planned = dry_run(unbuilt, 4, [0, 1], set())
    assert (planned.images.low, planned.trained.high) == (IMAGES / 2, KEPT / 2)
    for purpose in ("rollout", "update"):
        assert 2 * planned.evaluations[purpose].high == spent[purpose]


def test_all_images_are_what_there_was_without_a_selection(tmp_path, tiny_sd3_folder, all_images):
    # Nothing is silent here, so that leaving silent groups out changes nothing either.
    for number, selection in enumerate((AllImages(), AllImages(skip_silent=True), Extremes(6))):
        module = nft_module(tiny_sd3_folder, selection)
        (tmp_path / str(number)).mkdir()
        fit(tmp_path / str(number), module, [CostLogger()])
        assert torch.equal(trained(module), trained(all_images[0]))
        assert module.policy.evaluations.counts == all_images[0].policy.evaluations.counts


@pytest.mark.parametrize("kind", ["chains", "tree"])
def test_transitions_that_lead_to_no_chosen_image_leave_the_update(tmp_path, tiny_sd3_folder, kind):
    selector, size = (FixedSteps([0, 2]), 6) if kind == "chains" else (FixedSplits([0], [8]), 8)
    module = tiny_module(
        tiny_sd3_folder,
        step_selector=selector,
        allocator=UniformAllocator(size),
        selection=Extremes(keep=2, split="even"),
        shared_start=kind == "tree",
    )
    seen = []
    samples = module.objective.samples

    def note(experience):
        replay = samples(experience)
        seen.append((experience, replay))
        return replay

    module.objective.samples = note
    logged = fit(tmp_path, module, [CostLogger()], limit_train_batches=1).callback_metrics
    experience, replay = seen[0]
    chosen = experience.weights > 0
    assert torch.equal(chosen, experience.advantages.isfinite()) and int(chosen.sum()) == 4 * 2
    edges = replay.row >= 0
    assert torch.equal(edges, experience.tree.backup(chosen.float()) > 0)
    assert logged["update/transitions"] == int(edges.sum()) < len(edges)
    # The best and the worst of a group are compared with each other: one as good as the other bad.
    whole = module.advantage(experience.rewards, experience.tree.row).values
    pairs = experience.advantages[chosen].reshape(4, 2)
    torch.testing.assert_close(pairs.sum(1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(pairs.diff(dim=1), whole[chosen].reshape(4, 2).diff(dim=1))
    assert float(logged["rollout/advantage_mean"]) == pytest.approx(0, abs=1e-6)
    assert torch.equal(
        replay.advantages, experience.tree.backup(experience.advantages).nan_to_num()
    )


def test_what_all_advantages_have_in_common_is_logged(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder, Extremes(keep=3, baseline="group"))
    logged = fit(tmp_path, module, limit_train_batches=1).callback_metrics
    whole = module.advantage(module.last.rewards, module.last.tree.row).values
    common = float(whole[module.last.weights > 0].mean())
    assert float(logged["rollout/advantage_mean"]) == pytest.approx(common, abs=1e-6)
    assert abs(common) > 0.01


def test_weights_reach_the_loss(tmp_path, tiny_sd3_folder):
    module = nft_module(tiny_sd3_folder, ByAdvantage(keep=2))
    fit(tmp_path, module, limit_train_batches=1)
    weights, row = module.last.weights, module.last.tree.row
    whole = module.advantage(module.last.rewards, row).values
    weighed = (weights * whole)[weights > 0].abs().reshape(4, 2)
    each = whole.abs().reshape(4, 6).mean(1)  # 1 / p makes all of a group alike, up to certainty
    assert bool((weighed <= each[:, None] + 1e-6).all())
    assert int((weights > 0).sum()) == 8


def run(tmp_path, folder, name, max_epochs, ckpt_path=None):
    module = nft_module(folder, ByAdvantage(keep=3), allocator=MedianSplitAllocator(4, 8))
    callbacks = [CostLogger(), RolloutCheckpoint(dirpath=str(tmp_path / name))]
    settings = {"max_epochs": max_epochs, "enable_checkpointing": True}
    return module, fit(tmp_path, module, callbacks, ckpt_path, **settings).callback_metrics


def test_a_resumed_run_draws_and_counts_on(tmp_path, tiny_sd3_folder):
    whole, counted = run(tmp_path, tiny_sd3_folder, "whole", 2)
    run(tmp_path, tiny_sd3_folder, "halves", 1)
    file = tmp_path / "halves" / "last.ckpt"
    resumed, found = run(tmp_path, tiny_sd3_folder, "resumed", 2, ckpt_path=file)
    assert torch.equal(trained(resumed), trained(whole))
    costs = {name: value for name, value in counted.items() if name.startswith("cost/")}
    assert costs == {name: found[name] for name in costs} and costs["cost/images"] == 4 * 4 * 6
    # A checkpoint of before knows no images, and then none are told.
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["aegpo"]["images"]
    torch.save(checkpoint, file)
    _, unknown = run(tmp_path, tiny_sd3_folder, "older", 2, ckpt_path=file)
    assert "cost/evaluations" in unknown and "cost/images" not in unknown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"credit": DepthCredit()}, "model.selection=Extremes chooses among the images' advantage"),
        ({"selection": ByAdvantage(2)}, "model.selection=ByAdvantage weighs images by 1 / p"),
    ],
)
def test_what_would_not_do_as_it_promises_is_refused(settings, message):
    settings = {"selection": Extremes(2)} | settings
    with pytest.raises(ValueError, match=message):
        tiny_module("/nowhere", step_selector=FixedSplits([0, 1], [2, 2]), **settings)
