"""`aegpo doctor` with a config: the first update of a module that draws and learns alike or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from lightning_modules.cli.lightning_cli import main
from lightning_modules.commands.doctor.doctor import check_gradients, check_ratio, doctor


class Drifting(StableDiffusion3):
    """Predicts something else where it learns than where it draws, as dropout left on does."""

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return super().predict(latents, sigma, cond) * (1 + 0.1 * torch.is_grad_enabled())


@pytest.mark.parametrize(
    ("policy", "healthy", "word"),
    [(StableDiffusion3, True, "ok       ratio"), (Drifting, False, "failed   ratio")],
)
def test_doctor_checks_the_first_update(
    tmp_path: Path,
    tiny_sd3_folder: Path,
    capsys: pytest.CaptureFixture[str],
    policy: type[StableDiffusion3],
    healthy: bool,
    word: str,
) -> None:
    factory = partial(policy, str(tiny_sd3_folder), lora_rank=4, max_sequence_length=4)
    module = tiny_module(tiny_sd3_folder, policy=factory)
    trainer = tiny_trainer(tmp_path, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert doctor(trainer, module, tiny_data(tmp_path)) is healthy
    printed = capsys.readouterr().out
    assert word in printed
    assert "ok       gradient" in printed
    assert module.iteration == 0  # nothing was learned


def test_doctor_accepts_a_module_without_a_ratio(
    user_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--config", "base.yaml"])
    assert "builds Module" in capsys.readouterr().out


def test_gradients_and_ratios_by_hand() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    assert check_gradients([weight]).status == "failed"
    weight.grad = torch.tensor([3.0, 4.0])
    assert check_gradients([weight]).detail == "norm 5.00e+00 over 1 tensors"
    weight.grad = torch.tensor([float("nan"), 4.0])
    assert check_gradients([weight]).status == "failed"
    assert check_ratio(1e-7, 1e-6).status == "ok"
    assert check_ratio(2e-6, 1e-6).status == "failed"
    assert check_ratio(float("nan"), 1e-6).status == "failed"
