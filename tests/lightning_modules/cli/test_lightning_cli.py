"""The command line with a tiny module and data in the user's own folder, never the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from aegpo.sde import GaussianStep
from lightning_modules.arguments.configs import differing_hyperparameters, unknown_empty_keys
from lightning_modules.arguments.messages import explain_exception
from lightning_modules.cli import main as entry
from lightning_modules.cli.failures import is_user_error
from lightning_modules.cli.lightning_cli import AEGPOCLI, main
from lightning_modules.commands.doctor.doctor import check_gradients, check_ratio

ROOT = Path(__file__).parents[3]

USER_MODULE = '''
import abc

import torch
from lightning.pytorch import LightningDataModule, LightningModule


class Reward(abc.ABC):
    @abc.abstractmethod
    def __call__(self): ...


class MyReward(Reward):
    """Mine.

    Args:
        weight: How much it counts.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self): ...


class Sum(Reward):
    """A sum.

    Args:
        parts: What is added.
    """

    def __init__(self, parts: list[Reward]):
        self.parts = parts

    def __call__(self): ...


class Module(LightningModule):
    """A module.

    Args:
        reward: What is climbed.
        lr: Learning rate.
        num_steps: Denoising steps.
        log_ratio: What the preflight is to find.
    """

    seen = None

    def __init__(
        self, reward: Reward, lr: float = 0.5, num_steps: int = 4, log_ratio: float = 0.0
    ):
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1; raise num_steps")
        if type(self) is Module:
            self.save_hyperparameters("lr", "num_steps")
        self.reward, self.lr, self.log_ratio = reward, lr, log_ratio
        self.layer1 = torch.nn.Linear(2, 1)
        Module.seen = self

    def training_step(self, batch, batch_idx):
        return self.layer1(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("score", self.layer1(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Policy(Module):
    """With a ratio.

    Args:
        reward: What is climbed.
        log_ratio: What the preflight is to find.
    """

    def __init__(self, reward: Reward, log_ratio: float = 0.0):
        super().__init__(reward, log_ratio=log_ratio)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        raise AssertionError("the preflight stands in for this")

    def ratio_preflight(self, batch):
        self.layer1(batch).mean().backward()
        return self.log_ratio


class Data(LightningDataModule):
    """Data.

    Args:
        batch_size: Prompts per iteration.
    """

    def __init__(self, batch_size: int = 2):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=self.batch_size)

    val_dataloader = train_dataloader
'''

BASE = """
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: user_module.Module
  init_args:
    reward: {class_path: user_module.MyReward}
data: {class_path: user_module.Data}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is the current one: user_module.py and base.yaml."""
    (tmp_path / "user_module.py").write_text(USER_MODULE)
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_module", raising=False)
    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["aegpo"])
    return tmp_path


def parse(*args: str) -> object:
    """Parse and build, without running a command."""

    class Built(Exception):
        pass

    class Stop(AEGPOCLI):
        def after_instantiate_classes(self) -> None:
            raise Built(self)

    try:
        Stop(["fit", "--config", "base.yaml", "--trainer.logger=false", *args])
    except Built as built:
        return built.args[0]
    raise AssertionError("it did not get as far as building the classes")


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run and return the one line on stderr that it was refused with."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith("Seed set to")]
    assert len(lines) == 1, lines
    return lines[0]


# What the light entry answers without Lightning


def test_entry_and_cli_know_the_same_commands() -> None:
    assert sorted(entry.COMMANDS) == sorted([*AEGPOCLI.subcommands(), *entry.STANDALONE])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], "aegpo "),
        (["--help"], "usage: "),
        ([], "usage: "),
        (["doctor", "--help"], "usage: "),
    ],
)
def test_light_answers_load_no_torch(arguments: list[str], expected: str) -> None:
    code = "import sys; from lightning_modules.cli.main import main; main(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected)
    assert done.stdout.endswith("False\n")


def test_python_m_aegpo_refuses_an_unknown_command_with_a_suggestion() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aegpo", "validat"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "did you mean 'validate'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_debug_flag_reaches_the_cli_through_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["aegpo", "fit", "--debug", "--config", "x.yaml"])
    monkeypatch.setenv("AEGPO_DEBUG", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arrived = []
    monkeypatch.setattr(entry, "_run", lambda: arrived.append(list(sys.argv)))
    entry.main()
    assert arrived == [["aegpo", "fit", "--config", "x.yaml"]]
    assert os.environ["AEGPO_DEBUG"] == "1"


def test_a_torchvision_that_does_not_match_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "lightning_modules.cli":
                raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.delenv("AEGPO_DEBUG", raising=False)
    monkeypatch.delitem(sys.modules, "lightning_modules.cli")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        entry._run()
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "torch and torchvision do not match" in line and len(line.splitlines()) == 1


# Configs


def test_later_configs_and_arguments_are_merged(folder: Path) -> None:
    overlay = {
        "model": {"init_args": {"reward": {"init_args": {"weight": 3.0}}, "num_steps": 7}},
        "trainer": {"callbacks+": [{"class_path": "LearningRateMonitor"}]},
    }
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    cli = parse("--config", "overlay.yaml", "--model.lr", "0.25")
    assert type(cli.model.reward).__name__ == "MyReward"  # kept from the first file
    assert (cli.model.reward.weight, cli.model.lr) == (3.0, 0.25)
    assert cli.model.hparams["num_steps"] == 7
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert "LearningRateMonitor" in names


def test_fit_runs_saves_its_config_and_validate_accepts_it(folder: Path) -> None:
    main(["fit", "--config", "base.yaml", "--trainer.logger.name", "mine"])
    saved = folder / "runs/mine/version_0/config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.5
    main(["validate", "--config", str(saved)])
    checkpoint = next((folder / "runs").rglob("*.ckpt"))
    main(["validate", "--config", "base.yaml", "--ckpt_path", str(checkpoint)])


def test_a_checkpoint_never_beats_the_command_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"hyper_parameters": {"lr": 0.5, "num_steps": 4}}, folder / "old.ckpt")
    with caplog.at_level("INFO"):
        cli = parse("--model.lr", "0.125", "--ckpt_path", "old.ckpt")
    assert cli.model.lr == 0.125
    assert "model.lr: the checkpoint was made with 0.5, this run uses 0.125" in caplog.text
    assert "num_steps" not in caplog.text


def test_differing_hyperparameters_by_hand() -> None:
    saved = {"_instantiator": "x", "_class_path": "a.M", "lr": 1, "sde": {"init_args": {"eta": 2}}}
    now = {"class_path": "a.M", "init_args": {"lr": 1, "sde": {"init_args": {"eta": 3}}}}
    assert differing_hyperparameters(saved, now) == [
        "model.sde.init_args.eta: the checkpoint was made with 2, this run uses 3"
    ]


# Mistakes


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
        ("trainer: {precision: bf17}", "got 'bf17'"),
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
    folder: Path, capsys: pytest.CaptureFixture[str], config: str, expected: str
) -> None:
    (folder / "wrong.yaml").write_text(config)
    line = refusal(capsys, "fit", "--config", "base.yaml", "--config", "wrong.yaml")
    assert line.startswith("error: ")
    assert expected in line
    assert "Union" not in line and "class 'float'" not in line


def test_wrong_arguments_get_one_clear_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("fit", "--config", "base.yaml")
    assert "did you mean 'trainer.max_steps'?" in refusal(capsys, *base, "--trainer.max_stpes", "1")
    assert "model is required" in refusal(capsys, "fit")
    assert "missing.yaml" in refusal(capsys, "fit", "--config", "missing.yaml")
    assert "give a command first: fit" in refusal(capsys, "--config", "base.yaml")
    assert "nope.ckpt" in refusal(capsys, *base, "--ckpt_path", "nope.ckpt").lower()
    (folder / "broken.yaml").write_text("trainer: {max_steps: [}")
    monkeypatch.setattr(sys, "argv", ["aegpo", "fit", "--config", "broken.yaml"])
    with pytest.warns(UserWarning, match="LightningCLI's args"):
        assert '"broken.yaml", line 1' in refusal(capsys, "fit", "--config", "broken.yaml")


def test_debug_shows_the_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGPO_DEBUG", "1")
    with pytest.raises(Exception, match="num_steps=0"):
        main(["fit", "--config", "base.yaml", "--model.num_steps", "0"])


def test_empty_keys_of_a_class_that_was_replaced_are_no_mistake() -> None:
    raw = {"model": {"class_path": "a.Old", "init_args": {"options": {}}}, "callbacks+": []}
    new = {"model": {"class_path": "a.New", "init_args": {}}, "callbacks": []}
    assert unknown_empty_keys(raw, new) == []
    new["model"]["class_path"] = "Old"
    assert unknown_empty_keys(raw, new) == ["model.init_args.options"]


def test_faults_keep_their_traceback_and_messages_do_not() -> None:
    with pytest.raises(RuntimeError) as fault:
        torch.ones(2) @ torch.ones(3)
    assert not is_user_error(fault.value)
    # A `raise` statement in one of our files; here aegpo's refusal of a log-prob without noise.
    step = GaussianStep(mean=torch.zeros(1, 4), std=torch.zeros(1, 1))
    with pytest.raises(ValueError) as message:
        step.log_prob(torch.zeros(1, 4))
    assert is_user_error(message.value)
    # The same type from an operation in the same file is a fault.
    with pytest.raises((RuntimeError, TypeError, ValueError)) as wrong_shape:
        GaussianStep(mean=torch.zeros(1, 4), std=torch.ones(1, 1)).log_prob(torch.zeros(1, 3))
    assert not is_user_error(wrong_shape.value)
    assert is_user_error(FileNotFoundError(2, "No such file", "prompts.txt"))
    assert is_user_error(MisconfigurationException("no"))


def test_messages_of_the_system_name_the_file() -> None:
    error = OSError(28, "No space left on device", "last.ckpt")
    assert explain_exception(error) == "No space left on device: last.ckpt"
    assert explain_exception(ValueError("two\nlines")) == "two lines"


# doctor


@pytest.mark.parametrize(
    ("log_ratio", "status", "word"), [("0.0", 0, "ok       ratio"), ("0.1", 1, "failed   ratio")]
)
def test_doctor_checks_the_first_update(
    folder: Path, capsys: pytest.CaptureFixture[str], log_ratio: str, status: int, word: str
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
    assert not (folder / "runs").exists()


def test_doctor_accepts_a_module_without_a_ratio(
    folder: Path, capsys: pytest.CaptureFixture[str]
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
