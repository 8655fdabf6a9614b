"""The printed table: scores by category, and their change since the first evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aegpo.prompts import PromptBatch
from callbacks.score_table import ScoreTable
from lightning_modules.training.held_out import HeldOut


def module(metrics: dict[str, float], iteration: int) -> SimpleNamespace:
    held_out = SimpleNamespace(metrics=lambda stage: metrics if stage == "val" else {})
    return SimpleNamespace(held_out=held_out, iteration=iteration)


RANK_ZERO = SimpleNamespace(is_global_zero=True)
BASE = {"val/judge": 0.5, "val/judge/count": 0.25, "val/judge/two": 0.75}
LATER = {"val/judge": 0.625, "val/judge/count": 0.5, "val/judge/two": 0.75}


def cells(text: str) -> list[str]:
    return " ".join(text.replace("│", " ").split()).split()


def test_the_first_table_has_no_change_and_the_second_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = ScoreTable()
    table.on_validation_end(RANK_ZERO, module(BASE, 0))
    first = capsys.readouterr().out
    assert "held-out scores (val) after 0 iterations" in " ".join(first.split())
    assert cells(first)[-5:-1] == ["judge", "0.500", "0.250", "0.750"]
    table.on_validation_end(RANK_ZERO, module(LATER, 20))
    second = capsys.readouterr().out
    assert "after 20 iterations" in second
    assert cells(second)[-8:-1] == [
        *("judge", "0.625", "(+0.125)", "0.500", "(+0.250)", "0.750", "(+0.000)")
    ]


def test_a_resumed_run_compares_with_the_first_scores_of_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = ScoreTable()
    before.on_validation_end(RANK_ZERO, module(BASE, 0))
    resumed = ScoreTable()
    resumed.load_state_dict(before.state_dict())
    capsys.readouterr()
    resumed.on_validation_end(RANK_ZERO, module(LATER, 40))
    assert "(+0.125)" in capsys.readouterr().out


def test_other_ranks_and_empty_evaluations_print_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = ScoreTable()
    table.on_validation_end(SimpleNamespace(is_global_zero=False), module(BASE, 0))
    table.on_validation_end(RANK_ZERO, module({}, 0))
    table.on_test_end(RANK_ZERO, module(BASE, 0))
    assert capsys.readouterr().out == ""
    assert table.first == BASE


def test_any_name_has_its_column_and_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    own: Any = HeldOut()
    categories = ["16/9", "[red]", "[/x]", "mean"]
    metadata = [{"category": category} for category in categories]
    prompts = PromptBatch(["a"] * 4, torch.arange(4), metadata)
    tree: Any = SimpleNamespace(images=torch.zeros(4, 3, 2, 2))
    own.add(prompts, prompts, tree, {"my/judge": torch.tensor([0.125, 0.25, 0.5, 1.0])})
    ScoreTable().on_validation_end(RANK_ZERO, SimpleNamespace(held_out=own, iteration=0))
    printed = capsys.readouterr().out
    for text in (*categories, "my/judge", "0.469", "0.125", "0.250", "0.500", "1.000"):
        assert text in printed


def test_names_of_rewards_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {f"val/a_long_reward_name/{category}": 0.5 for category in "abcd"}
    scores = {"val/a_long_reward_name": 0.5, **scores}
    table = ScoreTable()
    for iteration in range(2):
        table.on_validation_end(RANK_ZERO, module(dict(scores), iteration))
    assert capsys.readouterr().out.count("a_long_reward_name") == 2
