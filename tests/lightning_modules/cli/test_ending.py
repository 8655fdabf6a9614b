"""How a training ends: the last model is scored, and what came of the run is said."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from aegpo.rewards.base import Reward
from callbacks.budget_stop import BudgetStop
from callbacks.evaluate_by_cost import EvaluateByCost
from callbacks.rollout_checkpoint import RolloutCheckpoint
from lightning_modules.cli.ending.run_summary import RunSummary
from lightning_modules.cli.ending.score_the_last import ScoreTheLast


class Scripted(Reward):
    """Scores every held-out image by what is next in a list."""

    name = "the/judge"

    def __init__(self, scores: Sequence[float] = ()) -> None:
        self.scores, self.now = list(scores), 0.5

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return torch.full((len(images),), self.now)


class Turns(L.Callback):
    """Gives the judge its next score, and notes the iteration of each evaluation."""

    def __init__(self, judge: Scripted) -> None:
        self.judge, self.scored = judge, list[int]()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.scored.append(pl_module.iteration)
        self.judge.now = self.judge.scores.pop(0) if self.judge.scores else 0.5


@pytest.fixture
def fit(tmp_path: Path, tiny_sd3_folder: Path) -> Callable[..., list[int]]:
    """Trains as the command line does, two iterations an epoch; the iterations that are scored."""

    def train(
        *callbacks: L.Callback,
        judge: Scripted | None = None,
        ckpt: str | None = None,
        **limits: Any,
    ) -> list[int]:
        turns = Turns(judge or Scripted())
        module = tiny_module(
            tiny_sd3_folder,
            num_steps=2,
            step_selector=FixedSteps([0]),
            allocator=UniformAllocator(2),
            evaluation_rewards=[turns.judge],
        )
        ending = [turns, *callbacks, ScoreTheLast(), RunSummary()]
        trainer = tiny_trainer(tmp_path, ending, **{"enable_checkpointing": False} | limits)
        data = tiny_data(tmp_path, batch_size=2, val_images=2)
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
        return turns.scored

    return train


ONE_ITERATION = 2 * 2 * (2 + 3)
"""Evaluations of two prompts, two images, two steps and one that explores."""


@pytest.mark.parametrize(
    ("callbacks", "limits", "scored"),
    [
        ([], {"max_epochs": 2}, [2, 4]),
        ([], {"max_epochs": 3, "check_val_every_n_epoch": 2}, [4, 6]),
        ([], {"max_epochs": 1, "check_val_every_n_epoch": 5}, [2]),
        ([], {"max_steps": 6, "max_epochs": -1}, [2, 3]),  # two optimizer steps an iteration
        ([], {"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 4]),
        ([BudgetStop(2 * ONE_ITERATION + 1)], {"check_val_every_n_epoch": 9}, [3]),
        ([BudgetStop(ONE_ITERATION)], {"max_epochs": 2, "min_epochs": 2}, [2, 4]),
        ([EvaluateByCost(3 * ONE_ITERATION)], {"max_epochs": 2}, [3, 4]),
        ([], {"max_epochs": 2, "limit_val_batches": 0}, []),
    ],
)
def test_the_last_model_is_scored_whatever_ends_the_run(
    callbacks: list[L.Callback],
    limits: dict[str, Any],
    scored: list[int],
    fit: Callable[..., list[int]],
) -> None:
    assert fit(*callbacks, **limits) == scored


def test_a_run_says_what_it_came_to_and_what_to_do_next(
    fit: Callable[..., list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["aegpo"])
    folder = tmp_path / "my runs"
    log = folder / "x"
    log.mkdir(parents=True)
    (log / "config.yaml").write_text("")  # as SaveRunConfig leaves it

    def said(scores: list[float], epochs: int, **settings: Any) -> str:
        keeps = RolloutCheckpoint(str(tmp_path / "kept"), monitor="auto")
        fit(
            keeps,
            judge=Scripted(scores),
            max_epochs=epochs,
            num_sanity_val_steps=-1,
            enable_checkpointing=True,
            logger=CSVLogger(folder, name="x", version=""),
            log_every_n_steps=1,
            **settings,
        )
        return capsys.readouterr().out

    rose = said([0.25, 0.5, 0.75], 2)
    assert "trained 4 iterations, 80 model evaluations; " in rose and " s\n" in rose
    assert "held-out the/judge: 0.250 → 0.750 (+0.500)\n" in rose and "redness" in rose
    assert "the/judge ended at" not in rose
    assert f"everything is in {log}\n" in rose
    commands = [line.partition(":")[2] for line in rose.splitlines() if line.startswith("  ")]
    verbs = [
        next(word for word in shlex.split(line) if word.isalpha() and word != "aegpo")
        for line in commands
    ]
    assert verbs == ["report", "tensorboard", "sample", "export"]
    for line in commands[2:]:
        words = shlex.split(line)
        assert words[words.index("--config") + 1] == str(log / "config.yaml")
        assert words[words.index("--ckpt_path") + 1] == "best"
    # Another process goes on: its summary is that of the whole run, and it falls.
    (log / "metrics.csv").rename(log / "metrics_1.csv")  # as the command line does
    fell = said([0.625], 3, ckpt=str(tmp_path / "kept" / "last.ckpt"))
    assert "trained 6 iterations, 120 model evaluations; " in fell and "since iteration 4" in fell
    assert "held-out the/judge: 0.250 → 0.625 (+0.375)" in fell
    best = tmp_path / "kept" / "best.ckpt"
    told = "the/judge ended at 0.625, 0.125 below its best of 0.750 after 4 iterations; "
    assert f"{told}--ckpt_path best is that: {best}" in fell
    assert torch.load(best, weights_only=True)["aegpo"]["iteration"] == 4


@pytest.mark.parametrize(("scores", "named"), [([0.75, 0.5], "last"), ([0.25, 0.5], "best")])
def test_the_best_is_advised_unless_it_is_worse_than_the_base(
    scores: list[float],
    named: str,
    fit: Callable[..., list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.yaml").touch()
    settings = {"max_epochs": 1, "num_sanity_val_steps": -1, "enable_checkpointing": True}
    logger = CSVLogger(tmp_path, name="x", version="")
    keeps = RolloutCheckpoint(str(tmp_path / "kept"), monitor="auto")
    fit(keeps, judge=Scripted(scores), logger=logger, **settings)
    assert capsys.readouterr().out.count(f"--ckpt_path {named}") == 2


def test_a_best_that_was_not_kept_is_said(
    fit: Callable[..., list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(judge=Scripted([0.75, 0.5]), max_epochs=2)
    said = capsys.readouterr().out
    assert "0.250 below its best of 0.750 after 2 iterations; no checkpoint of it was kept" in said
    assert "monitor to val/the%2Fjudge" in said and "everything is in" not in said
    fit(judge=Scripted([0.75, 0.5]), max_epochs=1, num_sanity_val_steps=-1)
    said = capsys.readouterr().out
    assert "0.250 below where training began, and was never above that" in said
    fit(judge=Scripted([0.75, 0.749]), max_epochs=1, num_sanity_val_steps=-1)
    said = capsys.readouterr().out
    assert "the/judge: 0.750 → 0.749" in said and "the/judge ended" not in said  # noise
