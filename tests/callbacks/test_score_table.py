"""The printed table: scores by category, and their change since the first evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tiny_training import PROMPTS, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.allocation import UniformAllocator
from aegpo.exploration import FixedSteps
from aegpo.rewards.base import Reward
from callbacks.score_table import ScoreTable
from datamodules.prompt_datamodule import PromptDataModule


class ByCategory(Reward):
    """Scores by the prompt's category alone."""

    def __init__(self, scores: dict[str, float], name: str = "judge") -> None:
        self.scores, self.name = scores, name

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return torch.tensor([self.scores[row["category"]] for row in metadata])


BASE = {"count": 0.25, "two": 0.75}
LATER = {"count": 0.5, "two": 0.75}


class Case:
    """A module, its prompts and trainers on them; the two categories of `BASE` by default."""

    def __init__(
        self, tmp_path: Path, folder: Path, categories: Sequence[str] = ("count", "two")
    ) -> None:
        self.tmp_path, self.judge = tmp_path, ByCategory(BASE)
        self.module = tiny_module(
            folder,
            num_steps=2,
            step_selector=FixedSteps([0]),
            allocator=UniformAllocator(2),
            reward=self.judge,
        )
        lines = [
            f'{{"prompt": "{prompt}", "category": "{category}"}}'
            for prompt, category in zip(PROMPTS, itertools.cycle(categories), strict=False)
        ]
        file = tmp_path / "by_category.jsonl"
        file.write_text("\n".join(lines))
        numbers = {"batch_size": 2, "batches_per_epoch": 1, "val_images": len(categories)}
        self.data = PromptDataModule(str(file), val_file=str(file), test_file=str(file), **numbers)

    def trainer(self, table: ScoreTable, **settings: Any) -> L.Trainer:
        return tiny_trainer(self.tmp_path, [table], **settings)

    def validate(self, table: ScoreTable, scores: dict[str, float], **settings: Any) -> L.Trainer:
        self.judge.scores = scores
        trainer = self.trainer(table)
        trainer.validate(self.module, self.data, verbose=False, **settings)
        return trainer


@pytest.fixture
def case(tmp_path: Path, tiny_sd3_folder: Path) -> Case:
    return Case(tmp_path, tiny_sd3_folder)


def cells(text: str) -> list[str]:
    return " ".join(text.replace("│", " ").split()).split()


def test_the_first_table_has_no_change_and_the_second_has(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ScoreTable()
    case.validate(table, BASE)
    first = capsys.readouterr().out
    assert "held-out scores (val) after 0 iterations" in " ".join(first.split())
    assert cells(first)[-5:-1] == ["judge", "0.500", "0.250", "0.750"]
    case.judge.scores = LATER
    trainer = case.trainer(table, max_epochs=1)
    trainer.fit(case.module, case.data)
    second = capsys.readouterr().out
    assert "after 1 iterations" in second
    expected = ["judge", "0.625", "(+0.125)", "0.500", "(+0.250)", "0.750", "(+0.000)"]
    assert cells(second)[-8:-1] == expected

    # A resumed run compares with the first scores of all.
    trainer.save_checkpoint(case.tmp_path / "saved.ckpt")
    resumed = ScoreTable()
    path = str(case.tmp_path / "saved.ckpt")
    case.validate(resumed, LATER, ckpt_path=path, weights_only=True)
    third = capsys.readouterr().out
    assert cells(third)[-8:-1] == expected and "after 1 iterations" in third


def test_other_ranks_and_evaluations_of_another_kind_print_nothing(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = case.validate(ScoreTable(), BASE)
    capsys.readouterr()
    # Lightning's own trainer of the second of two ranks, which is not launched.
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    second = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=case.tmp_path,
    )
    assert (second.global_rank, second.is_global_zero) == (1, False)
    table = ScoreTable()
    table.on_validation_end(second, case.module)
    assert capsys.readouterr().out == ""
    first = {f"val/judge/{name}": score for name, score in BASE.items()}
    assert table.first == {"val/judge": 0.5, **first}
    table = ScoreTable()
    case.module.held_out.means.clear()  # an evaluation of no image
    table.on_validation_end(trainer, case.module)
    assert (capsys.readouterr().out, table.first) == ("", {})


def test_the_table_of_a_test_is_called_so(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = case.trainer(ScoreTable())
    trainer.test(case.module, case.data, verbose=False)
    assert "held-out scores (test) after 0 iterations" in " ".join(capsys.readouterr().out.split())


def test_any_name_has_its_column_and_its_row(
    tmp_path: Path, tiny_sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = ["16/9", "[red]", "[/x]", "mean"]
    case = Case(tmp_path, tiny_sd3_folder, categories)
    case.judge.name = "my/judge"
    case.validate(ScoreTable(), dict(zip(categories, (0.125, 0.25, 0.5, 1.0), strict=True)))
    printed = capsys.readouterr().out
    for text in (*categories, "my/judge", "0.469", "0.125", "0.250", "0.500", "1.000"):
        assert text in printed


def test_names_of_rewards_are_never_cut(
    tmp_path: Path, tiny_sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(tmp_path, tiny_sd3_folder, "abcd")
    case.judge.name = "a_long_reward_name"
    table = ScoreTable()
    for _ in range(2):
        case.validate(table, dict.fromkeys("abcd", 0.5))
    assert capsys.readouterr().out.count("a_long_reward_name") == 2
