"""A run's charts and its row in HParams, read by TensorBoard's own plugins from the event files."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from board_rows import custom_layout, hparams_rows
from cli_runs import ROOT, build
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tiny_training import Redness, tiny_data, tiny_module
from torch import Tensor
from warm_ranks import WarmRanks

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from callbacks.cost_logger import CostLogger
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.cli.board.hyperparameters import ALWAYS, hyperparameters
from lightning_modules.cli.board.layout import custom_scalars
from lightning_modules.cli.board.run_board import RunBoard
from lightning_modules.cli.board.trial import FOLDER, Trial
from lightning_modules.cli.ending.score_the_last import ScoreTheLast
from lightning_modules.commands.run_logs import read_event_file

UNKNOWN, SUCCESS, FAILURE = 0, 1, 2


class Judge(Redness):
    """Scores every image by what is next in a list, one after each iteration."""

    name = "the/judge"

    def __init__(self, *scores: float) -> None:
        self.scores, self.calls = scores, 0

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        self.calls += 1
        return torch.full((len(images),), self.scores[min(self.calls, len(self.scores)) - 1])


class Interrupt(L.Callback):
    """Presses Ctrl-C."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.iteration == 2:
            raise KeyboardInterrupt


def train(tmp_path: Path, folder: Path, judge: Judge, *callbacks: L.Callback, **limits: Any) -> Any:
    """Train as the command line does, an iteration an epoch, and score after each."""
    module = tiny_module(
        folder,
        num_steps=2,
        step_selector=FixedSteps([0]),
        allocator=UniformAllocator(2),
        evaluation_rewards=[judge],
    )
    ckpt = limits.pop("ckpt", None)
    loggers = [CSVLogger(tmp_path / "csv", "", ""), TensorBoardLogger(tmp_path / "runs", "one", "")]
    settings: dict[str, Any] = {"logger": loggers, "log_every_n_steps": 1, "max_epochs": 3}
    keeps = RolloutCheckpoint(str(tmp_path / "kept"))
    ending = [CostLogger(), *callbacks, keeps, ScoreTheLast(), RunBoard()]
    own = {"num_sanity_val_steps": -1, "enable_checkpointing": True} | limits
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    trainer = L.Trainer(
        accelerator="cpu", callbacks=ending, default_root_dir=tmp_path, **quiet | settings | own
    )
    data = tiny_data(tmp_path, batch_size=2, batches_per_epoch=1, val_images=2, val_batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_row_tells_of_a_run_that_ends_is_interrupted_and_goes_on(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path, tiny_sd3_folder, Judge(0.25, 0.75, 0.5), Interrupt())
    ((name, row),) = hparams_rows(tmp_path / "runs").items()
    assert name == "one/hparams" and row.status == FAILURE
    assert row.numbers["last/the%2Fjudge"] == (2, 0.5)
    assert row.numbers["best/the%2Fjudge"] == (2, 0.75)
    _, seconds = row.numbers["spent/seconds"]
    assert seconds > 0

    ckpt = str(tmp_path / "kept/last.ckpt")
    module = train(tmp_path, tiny_sd3_folder, Judge(0.625), ckpt=ckpt)
    ((_, row),) = hparams_rows(tmp_path / "runs").items()
    assert row.status == SUCCESS
    assert row.numbers["last/the%2Fjudge"] == (3, 0.625)
    assert row.numbers["best/the%2Fjudge"] == (3, 0.75)  # before it was interrupted
    assert row.numbers["spent/evaluations"] == (3, module.policy.evaluations.total)
    assert row.numbers["spent/seconds"][1] > seconds
    assert {tag.partition("/")[0] for tag in row.numbers} == {"last", "best", "spent"}
    assert len(list((tmp_path / f"runs/one/{FOLDER}").iterdir())) == 1


def test_the_charts_show_every_group_of_tags(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    train(tmp_path, tiny_sd3_folder, Judge(0.5), max_epochs=1)
    layout = custom_layout(tmp_path / "runs")
    found = [category.title for category in layout.category]
    assert found == ["Scores", "Rollouts", "Updates", "Cost", "Alarms"]  # no entropy is read
    (events,) = (tmp_path / "runs/one").glob("events*")
    logged = set(read_event_file(events).Tags()["scalars"])
    shown = {
        chart.title: {tag for tag in logged if any(matches(regex, tag) for regex in tags(chart))}
        for category in layout.category
        for chart in category.chart
    }
    assert shown["held-out the/judge"] == {"val/the%2Fjudge"}
    assert shown["held-out the/judge by category"] == {
        "val/the%2Fjudge/cold",
        "val/the%2Fjudge/warm",
    }
    assert shown["reward: mean and spread"] == {"reward/mean", "reward/std"}
    assert logged - set().union(*shown.values()) <= {"epoch"}
    nothing = {title for title, found in shown.items() if not found}
    assert nothing <= set(custom_scalars([])["Cost"]) | set(custom_scalars([])["Alarms"])


NO_NUMBERS = {
    *("entropy/curve", "entropy/by_layer", "entropy/delta", "entropy/prompts"),
    *("allocation/images", "sampler/weights", "steps/agreement", "levels/agreement"),
    *("samples/held_out", "allocation/prompts"),
}


def test_every_documented_number_is_in_a_chart() -> None:
    lines = (ROOT / "docs/logging.md").read_text(encoding="utf-8").splitlines()
    first = [line.split("|")[1] for line in lines if line.startswith("| `")]
    documented = {tag for cell in first for tag in re.findall("`(.+?)`", cell)}
    documented = {tag for tag in documented - NO_NUMBERS if not tag.startswith("test/")}
    own_row = {tag for tag in documented if tag.startswith(("last/", "best/", "spent/"))}
    assert len(documented) > 50
    charts = [
        regex
        for titles in custom_scalars(["judge"]).values()
        for _, regexes in titles.values()
        for regex in regexes
    ]
    for tag in documented - own_row:
        logged = tag.replace("<reward>", "judge").replace("<", "").replace(">", "")
        assert any(matches(regex, logged) for regex in charts), tag
    for regex in charts:
        assert not any(matches(regex, tag) for tag in NO_NUMBERS)


def matches(regex: str, tag: str) -> bool:
    """As the plugin does it."""
    return re.compile(regex).match(tag) is not None


def tags(chart: Any) -> list[str]:
    return list(chart.multiline.tag)


def test_two_ranks_write_one_row(tmp_path: Path, tiny_sd3_folder: Path, pair: WarmRanks) -> None:
    pair.run(on_rank, tmp_path, tiny_sd3_folder)
    (row,) = hparams_rows(tmp_path / "runs").values()
    assert row.status == SUCCESS and row.numbers["last/the%2Fjudge"] == (2, 0.5)
    assert len(list((tmp_path / f"runs/one/{FOLDER}").iterdir())) == 1
    assert len(list((tmp_path / "runs/one").glob("events*"))) == 1
    assert custom_layout(tmp_path / "runs").category[0].title == "Scores"


def on_rank(tmp_path: Path, folder: Path) -> None:
    ranks = {"devices": 2, "strategy": "ddp", "max_epochs": 2, "num_sanity_val_steps": 0}
    train(tmp_path, folder, Judge(0.25, 0.5), **ranks)


def test_a_row_has_the_settings_that_matter_and_no_secret() -> None:
    base = hyperparameters(build("--config", str(ROOT / "configs/shapes.yaml")).parsed)
    assert {**base, "objective": "NFT", "policy.lora_rank": 32, "num_steps": 10, "seed": 0} == base
    assert base["optimizer.lr"] == 6e-4 and base["allocator.images_per_prompt"] == 16
    assert base["callbacks"] == "EntropyProbe, PromptReweighter"
    assert all(len(str(value)) <= 120 for value in base.values())
    assert not any(name.startswith(("trainer.logger", "policy.compile")) for name in base)
    given = {
        "class_path": "aegpo.rewards.VLMJudge",
        "init_args": {"address": "https://me:word@host/v1?api_key=abc", "questions": "x" * 300},
    }
    model = {"class_path": "lightning_modules.AEGPOModule", "init_args": {"reward": given}}
    found = hyperparameters({"model": model, "seed_everything": 3})
    assert found["objective"] == "PolicyGradient" and found["reward"] == "VLMJudge"
    assert "word" not in str(found) and "abc" not in str(found) and found["seed"] == 3
    assert len(str(found["reward.questions"])) == 120
    assert set(ALWAYS) & set(found) == {"objective", "seed"}


def test_a_full_disk_costs_the_row_what_does_not_fit(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.begin({"objective": "NFT", "lr": 0.5, "shared": True})
    trial.note({"last/judge": 0.25}, 1)
    (file,) = (tmp_path / FOLDER).iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, before[1]))
    try:
        with pytest.warns(UserWarning, match="could not be written"):
            trial.note({"last/judge": 0.5}, 2)
        trial.note({"last/judge": 0.75}, 3)  # said once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trial.note({"last/judge": 0.875}, 4)
    (row,) = hparams_rows(tmp_path).values()
    assert row.settings == {"objective": "NFT", "lr": 0.5, "shared": True}
    assert row.numbers == {"last/judge": (4, 0.875)} and row.status == UNKNOWN
    (tmp_path / "taken").mkdir()
    (tmp_path / f"taken/{FOLDER}").write_text("a file is in the way")
    refused = Trial(tmp_path / "taken")
    with pytest.warns(UserWarning, match="could not be written"):
        refused.begin({})
    refused.note({"last/judge": 0.5}, 1)
