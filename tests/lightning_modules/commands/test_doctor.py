"""`aegpo doctor` with a config: the first update of a module whose ratio is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules.cli.lightning_cli import main
from lightning_modules.commands.doctor.doctor import check_gradients, check_ratio


@pytest.mark.parametrize(
    ("log_ratio", "status", "word"), [("0.0", 0, "ok       ratio"), ("0.1", 1, "failed   ratio")]
)
def test_doctor_checks_the_first_update(
    user_folder: Path, capsys: pytest.CaptureFixture[str], log_ratio: str, status: int, word: str
) -> None:
    arguments = ["doctor", "--config", "base.yaml", "--model", "user_module.Policy"]
    arguments += ["--model.reward", "user_module.MyReward", "--model.log_ratio", log_ratio]
    if status:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == status
    else:
        main(arguments)
    printed = capsys.readouterr().out
    assert word in printed
    assert "ok       gradient" in printed
    assert not (user_folder / "runs").exists()


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
