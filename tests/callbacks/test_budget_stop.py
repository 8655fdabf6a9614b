"""Runs end at a budget of evaluations and are evaluated by cost, also when resumed."""

import pytest
from lightning.pytorch.loggers import CSVLogger
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from callbacks.budget_stop import BudgetStop
from callbacks.cost_logger import CostLogger
from callbacks.evaluate_by_cost import EvaluateByCost
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.commands.run_logs import read_scalars

# 4 prompts × 2 images × (5 steps + 3 × 1 stochastic step) = 64 evaluations an iteration, as long as
# no group scores alike throughout.
ITERATION = 64


def train(folder, pipeline, budget, every, ckpt_path=None):
    folder.mkdir(exist_ok=True)
    callbacks = [
        CostLogger(),
        EvaluateByCost(every),
        BudgetStop(budget),
        RolloutCheckpoint(dirpath=str(folder / "checkpoints")),
    ]
    logs = folder / f"logs-{budget}"
    trainer = tiny_trainer(
        folder,
        callbacks,
        max_epochs=-1,
        enable_checkpointing=True,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        logger=CSVLogger(logs, name="", version=""),
    )
    module = tiny_module(
        pipeline, allocator=UniformAllocator(2), step_selector=FixedSteps([0]), lr=1e-2
    )
    trainer.fit(module, tiny_data(folder, alpha=0.0), ckpt_path=ckpt_path, weights_only=True)
    return read_scalars(logs, ["val/redness", "cost/evaluations"]), trainer


def test_a_run_ends_at_its_budget_and_is_evaluated_by_cost(tmp_path, tiny_sd3_folder):
    # Epochs have two iterations: neither the marks nor the budget lie at their ends.
    logged, trainer = train(tmp_path / "whole", tiny_sd3_folder, 6 * ITERATION + 1, 3 * ITERATION)
    assert logged["cost/evaluations"] == {i: i * ITERATION for i in range(1, 8)}
    assert sorted(logged["val/redness"]) == [0, 3, 6, 7]  # the base, two marks and the end
    assert trainer.lightning_module.iteration == 7

    # The same with an interruption in between, at an epoch's end where no mark was passed.
    first, _ = train(tmp_path / "halves", tiny_sd3_folder, 4 * ITERATION, 3 * ITERATION)
    assert sorted(first["val/redness"]) == [0, 3, 4]
    second, _ = train(
        tmp_path / "halves", tiny_sd3_folder, 6 * ITERATION + 1, 3 * ITERATION, ckpt_path="last"
    )
    assert {i: second["val/redness"][i] for i in (6, 7)} == {
        i: logged["val/redness"][i] for i in (6, 7)
    }
    # What is spent already is not spent again.
    third, trainer = train(
        tmp_path / "halves", tiny_sd3_folder, 7 * ITERATION, 3 * ITERATION, ckpt_path="last"
    )
    assert trainer.lightning_module.iteration == 7
    assert third["cost/evaluations"] == {}


@pytest.mark.parametrize("callback", [BudgetStop, EvaluateByCost])
def test_no_budget_is_refused(callback):
    with pytest.raises(ValueError, match="evaluations=0 must be at least 1"):
        callback(0)


def test_the_probe_is_paid_from_the_budget(tmp_path, tiny_sd3_folder):
    callbacks = [*entropy_callbacks(), BudgetStop(1)]
    trainer = tiny_trainer(tmp_path, callbacks, max_epochs=-1, limit_val_batches=0)
    module = tiny_module(tiny_sd3_folder)
    trainer.fit(module, tiny_data(tmp_path))
    assert module.iteration == 1
