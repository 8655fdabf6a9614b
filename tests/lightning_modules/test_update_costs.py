"""What an update does not compute again, and what it computes without a graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.exploration import FixedSteps
from aegpo.objectives.samples import LossTerms
from aegpo.objectives.transition_samples import Replay
from aegpo.policies import StableDiffusion3
from lightning_modules.aegpo_module import AEGPOModule


def trained(folder: Path, tmp_path: Path, **settings: Any) -> tuple[dict[str, float], AEGPOModule]:
    """What two iterations of two optimizer steps and two passes log in bf16, and the module."""
    module = tiny_module(
        folder, step_selector=FixedSteps([0, 2]), inner_epochs=2, lr=1e-2, **settings
    )
    trainer = tiny_trainer(tmp_path, [], max_epochs=1, precision="bf16-mixed", limit_val_batches=0)
    trainer.fit(module, tiny_data(tmp_path))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, module


def numbers(logged: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in logged.items() if not name.startswith("seconds/")}


def test_below_fp32_the_first_updates_own_means_are_the_old_ones(
    tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged, module = trained(tiny_sd3_folder, tmp_path)

    def scored_twice(samples: Replay, which: Tensor) -> LossTerms:
        samples.rescore([which])
        return samples.loss(which)

    monkeypatch.setattr(Replay, "first_loss", scored_twice)
    expected, other = trained(tiny_sd3_folder, tmp_path)
    assert numbers(logged) == numbers(expected)
    assert logged["ratio/first_max_dev"] == 0.0 < logged["ratio/std"]
    assert "ratio/rollout_max_dev" in logged
    for name, weight in module.policy.trainable_state_dict().items():
        assert weight.equal(other.policy.trainable_state_dict()[name]), name
    # 24 transitions an iteration, half of them in its first update.
    counts, before = module.policy.evaluations.counts, other.policy.evaluations.counts
    assert before["rollout"] - counts["rollout"] == 2 * 12
    assert counts["rollout"] == 2 * (12 * 5 + 12)
    assert counts["update"] == before["update"] == 3 * 2 * 2 * 24


def test_one_branch_of_guidance_trains_as_both_would_draw(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    """The first ratio is 1; of 6 units of an update, 3 for each branch, 4 are left."""
    found = {}
    for branches in ("both", "conditional"):
        policy = partial(
            StableDiffusion3,
            str(tiny_sd3_folder),
            lora_rank=4,
            max_sequence_length=4,
            guidance_scale=3.0,
            guidance_gradient=branches,
        )
        module = tiny_module(tiny_sd3_folder, policy=policy, step_selector=FixedSteps([0, 2]))
        trainer = tiny_trainer(tmp_path, [], max_epochs=1, limit_val_batches=0)
        trainer.fit(module, tiny_data(tmp_path))
        assert float(trainer.callback_metrics["ratio/first_max_dev"]) < 1e-6
        found[branches] = module.policy.evaluations.counts["update"]
    assert found["conditional"] / found["both"] == 4 / 6
