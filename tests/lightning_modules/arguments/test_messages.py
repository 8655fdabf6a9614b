"""A mistake in a config or on the command line gets one line that says what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from user_folder import refusal

from aegpo.objectives import AWM, NFT
from lightning_modules.arguments.messages import explain_exception


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model: {init_args: {lrr: 1}}", "model: user_module.Module has no argument 'lrr'"),
        ("model: {init_args: {lr: fast}}", "model.lr: expected float, got 'fast'"),
        (
            "model: {init_args: {reward: {class_path: user_module.Sum, init_args: {parts: "
            "[{class_path: user_module.MyReward, init_args: {wieght: 2}}]}}}}",
            "user_module.MyReward has no argument 'wieght'; did you mean 'weight'?",
        ),
        (
            "model: {init_args: {reward: {class_path: user_module.MyRewrd}}}",
            "model.reward: there is no 'MyRewrd' in user_module; did you mean 'MyReward'?",
        ),
        (
            "model: {init_args: {reward: {class_path: user_modul.MyReward}}}",
            "model.reward: there is no module 'user_modul'",
        ),
        ("model: {class_path: torch.optim.AdamW}", "torch.optim.AdamW is not a LightningModule"),
        (
            "model: {class_path: user_module.Module, lr: 3}",
            "stands beside class_path; arguments go below init_args",
        ),
        ("trainer: {max_step: 1}", "'trainer.max_step'; did you mean 'trainer.max_steps'?"),
        ("trainer: {precision: bf17}", "'64', '32', '16', 'bf16'], got 'bf17'"),
        (
            "trainer: {logger: 3}",
            "trainer.logger: expected Logger, Iterable[Logger], bool, got '3'",
        ),
        ("model: {init_args: {reward: 3}}", "model.reward: expected Reward, got '3'"),
        ("model: {init_args: {reward: {class_path: user_module.Sum}}}", "Sum needs parts"),
        ("trainer: {callbacks: [{class_path: Nothing}]}", "there is no class 'Nothing'"),
        (
            "trainer: {callbacks: [{class_path: RichProgressBar, init_args: {leave: 7}}]}",
            "trainer.callbacks.leave: expected bool, got '7'",
        ),
        ("modell: {}", "there is no option 'modell' (in wrong.yaml); did you mean 'model'?"),
        ("modell: {lr: 1}", "did you mean 'model'?"),
        ("trainer: {max_step: []}", "did you mean 'trainer.max_steps'?"),
        ("model: {init_args: {lrr: {}}}", "there is no option 'model.init_args.lrr'"),
        ("model: {init_args: {num_steps: 0}}", "num_steps=0 must be at least 1; raise num_steps"),
        ("trainer: {accelerator: abacus}", "accelerator='abacus'"),
    ],
)
def test_a_wrong_config_gets_one_clear_line(
    user_folder: Path, capsys: pytest.CaptureFixture[str], config: str, expected: str
) -> None:
    (user_folder / "wrong.yaml").write_text(config)
    line = refusal(capsys, "fit", "--config", "base.yaml", "--config", "wrong.yaml")
    assert line.startswith("error: ")
    assert expected in line
    assert "Union" not in line and "class 'float'" not in line


def test_wrong_arguments_get_one_clear_line(
    user_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("fit", "--config", "base.yaml")
    assert "did you mean 'trainer.max_steps'?" in refusal(capsys, *base, "--trainer.max_stpes", "1")
    assert "model is required" in refusal(capsys, "fit")
    assert "missing.yaml" in refusal(capsys, "fit", "--config", "missing.yaml")
    assert "give a command first: fit" in refusal(capsys, "--config", "base.yaml")
    assert "nope.ckpt" in refusal(capsys, *base, "--ckpt_path", "nope.ckpt").lower()
    (user_folder / "broken.yaml").write_text("trainer: {max_steps: [}")
    monkeypatch.setattr("sys.argv", ["aegpo", "fit", "--config", "broken.yaml"])
    with pytest.warns(UserWarning, match="LightningCLI's args"):
        assert '"broken.yaml", line 1' in refusal(capsys, "fit", "--config", "broken.yaml")


def test_messages_of_the_system_name_the_file() -> None:
    error = OSError(28, "No space left on device", "last.ckpt")
    assert explain_exception(error) == "No space left on device: last.ckpt"
    assert explain_exception(ValueError("two\nlines")) == "two lines"


@pytest.mark.parametrize("objective", [NFT, AWM])
def test_a_class_among_several_types_says_itself_what_it_refuses(objective: type) -> None:
    """jsonargparse's cause of it is what the first of the types says, a list of words here."""
    levels = {"class_path": "aegpo.objectives.LevelAgreement", "init_args": {"floor": 2.0}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(objective, "objective")
    path = f"aegpo.objectives.{objective.__name__}"
    config = parser.parse_object(
        {"objective": {"class_path": path, "init_args": {"levels": levels}}}
    )
    with pytest.raises(ValueError, match="floor") as raised:
        parser.instantiate(config)
    said = explain_exception(raised.value)
    assert said.startswith("LevelAgreement: floor=2.0 must be above 0")
