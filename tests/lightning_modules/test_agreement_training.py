"""Training at the steps whose half batches agree: what it costs, logs, and knows after a resume."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.exploration import AgreementSteps, FixedSteps
from aegpo.objectives import NFT
from aegpo.study.decision_log import read_decisions
from aegpo.study.decision_replay import compare_steps
from callbacks.cost_logger import CostLogger
from callbacks.curve_logger import agreement_table
from callbacks.decision_log import DecisionLog
from callbacks.rollout_checkpoint import RolloutCheckpoint


def by_agreement():
    return AgreementSteps(top_k=2, explore=0.3, prior=0.5)


def train(folder, pipeline, max_epochs, selector, ckpt_path=None):
    folder.mkdir(exist_ok=True)
    module = tiny_module(pipeline, step_selector=selector, allocator=UniformAllocator(3), lr=1e-2)
    checkpoint = RolloutCheckpoint(dirpath=str(folder / "checkpoints"))
    trainer = tiny_trainer(
        folder,
        [CostLogger(), DecisionLog(), checkpoint],
        logger=CSVLogger(folder, name="", version=""),
        max_epochs=max_epochs,
        limit_val_batches=0,
        enable_checkpointing=True,
    )
    trainer.fit(module, tiny_data(folder), ckpt_path=ckpt_path, weights_only=True)
    return module, trainer.callback_metrics


def trained(module):
    return torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_sd3_folder):
    folder = tmp_path_factory.mktemp("agreement")
    return folder, *train(folder, tiny_sd3_folder, 3, by_agreement())


def test_measuring_costs_no_evaluation_and_decides_the_steps(tmp_path, tiny_sd3_folder, whole):
    folder, module, logged = whole
    fixed, _ = train(tmp_path, tiny_sd3_folder, 3, FixedSteps([0, 1]))
    assert module.policy.evaluations.counts == fixed.policy.evaluations.counts
    decisions = read_decisions(folder / "decisions.jsonl")
    chosen = [tuple(one.stochastic[0].nonzero().flatten().tolist()) for one in decisions]
    assert all(bool((one.stochastic == one.stochastic[0]).all()) for one in decisions)
    assert all(len(one) == 2 for one in chosen) and len(set(chosen)) > 1
    found = module.step_selector.state_dict()
    # Two steps an iteration, but where all four prompts are in one half.
    assert 6 <= int(found["count"].sum()) <= 2 * 6 and int((found["count"] > 0).sum()) >= 3
    for step in range(4):
        average = float(found["sum"][step] / found["weight"][step].clamp(min=1e-12))
        assert float(logged[f"steps/agreement_{step}"]) == pytest.approx(average, abs=1e-6)
        assert -1 <= average <= 1
    table = agreement_table("steps", logged)
    assert table.splitlines()[0] == "| step | agreement | share |"
    assert len(table.splitlines()) == 2 + 4 and agreement_table("levels", logged) == ""


def test_a_first_update_in_strata_makes_the_same_step(tmp_path, tiny_sd3_folder):
    runs = []
    for name, selector in (
        ("measured", AgreementSteps(top_k=2, explore=0.0, every_n_iterations=1)),
        ("not", FixedSteps([0, 1])),
    ):
        module = tiny_module(
            tiny_sd3_folder, step_selector=selector, allocator=UniformAllocator(3), lr=1e-2
        )
        (tmp_path / name).mkdir()
        trainer = tiny_trainer(tmp_path / name, [], max_epochs=1, limit_train_batches=1)
        trainer.fit(module, tiny_data(tmp_path / name))
        runs.append((trained(module), trainer.callback_metrics))
    (one, logged), (other, expected) = runs
    for name in ("update/loss", "update/gradient_norm", "update/transitions", "ratio/mean"):
        torch.testing.assert_close(logged[name], expected[name], rtol=1e-4, atol=1e-7)
    # Adam's first steps are signs, so a sum in another order may turn single ones.
    assert float(((one - other).abs() < 1e-4).float().mean()) > 0.99


def test_resumed_it_decides_and_learns_as_uninterrupted(tmp_path, tiny_sd3_folder, whole):
    folder, module, _ = whole
    train(tmp_path, tiny_sd3_folder, 2, by_agreement())
    resumed, _ = train(tmp_path, tiny_sd3_folder, 3, by_agreement(), ckpt_path="last")
    assert torch.equal(trained(resumed), trained(module))
    own, expected = resumed.step_selector.state_dict(), module.step_selector.state_dict()
    assert own.keys() == expected.keys() == {"sum", "weight", "count"}
    assert all(torch.equal(own[name], expected[name]) for name in own)
    assert (tmp_path / "decisions.jsonl").read_text() == (folder / "decisions.jsonl").read_text()


def test_its_decisions_are_replayed_from_what_it_had_measured(whole):
    decisions = read_decisions(whole[0] / "decisions.jsonl")
    assert decisions[0].measured is None and decisions[-1].measured is not None
    assert compare_steps(decisions, by_agreement()).same == 1.0
    forgetful = [replace(decision, measured=None) for decision in decisions]
    assert compare_steps(forgetful, by_agreement()).same < 1.0


def test_an_objective_without_steps_is_refused(tiny_sd3_folder):
    with pytest.raises(ValueError, match=r"AgreementSteps measures .*objective=NFT has none"):
        tiny_module(
            tiny_sd3_folder, step_selector=AgreementSteps(), objective=NFT(levels="selected")
        )
