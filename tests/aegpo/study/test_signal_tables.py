"""The two tables on measurements made up by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aegpo.prompts import PromptBatch
from aegpo.study.signal_probe import Signals
from aegpo.study.signal_report import NOT_TRAINED, make_report, write_report
from aegpo.study.signal_tables import prompt_table, step_table
from aegpo.study.step_trials import group_spread

SPREAD = torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.125, 0.25]] * 2)
"""Variances 16 : 4 : 1 or 16 : 1 : 4, of 21; powers of two, so that means are exact."""


def constant_curves(rows: list[list[float]]) -> Tensor:
    """Entropy of four equal trajectories, (B, 4, T)."""
    return torch.tensor(rows, dtype=torch.float64)[:, None].repeat(1, 4, 1)


def made_up(**parts: object) -> Signals:
    """Four prompts, two categories, T = 4."""
    batch = PromptBatch(
        ["a", "b", "c", "d"],
        torch.arange(4),
        [{"category": "x"}, {"category": "x"}, {"category": "y"}, {"category": "y"}],
    )
    falling = [[0.875, 0.5, 0.25, 0.96875]] * 4
    knowing = [[0.875, 0.5, 0.25, 0.96875], [0.875, 0.25, 0.5, 0.96875]] * 2
    signals = Signals(
        prompts=batch,
        step_spread=SPREAD,
        curves={
            ("image_to_all", "all"): constant_curves([[0.1, 0.5, 0.6, 0.9]] * 4),
            ("all_to_all", "last"): constant_curves(falling),
            ("all_to_all", "own"): constant_curves(knowing),
        },
        reference_curves=None,
        before_curves=None,
        groups=torch.tensor([[0.0, 2.0], [0.0, 4.0], [0.0, 6.0], [0.0, 9.0]]),
        before_groups=None,
        gains=None,
        skipped={"image_to_text": "no text"},
        evaluations={"rollout": 1200, "probe": 34, "update": 0},
    )
    return replace(signals, **parts)


def test_steps_by_hand() -> None:
    table = step_table(made_up(), top_k=1)
    assert table.spread == pytest.approx([0.5, 0.1875, 0.1875])
    assert table.variance_share == pytest.approx([32 / 42, 5 / 42, 5 / 42])
    assert table.oracle_steps == [0]
    assert table.oracle_share == pytest.approx(16 / 21)
    assert table.random_share == pytest.approx(1 / 3)
    own, last, wrong = table.rows[0], table.rows[1], table.rows[2]
    assert [own.layer, last.layer, wrong.layer] == ["own", "last", "all"]
    # ranks 3 1.5 1.5 of the spread against 3 1.5 1.5, 3 2 1 and 1 2 3
    found = [row.correlation for row in table.rows]
    assert found == pytest.approx([1, math.sqrt(0.75), -math.sqrt(0.75)])
    assert (wrong.tokens, wrong.layer, wrong.steps) == ("image_to_all", "all", [2])
    assert wrong.share == pytest.approx(5 / 42)
    assert last.steps == [0]
    assert last.share == pytest.approx(16 / 21)
    assert last.entropy == pytest.approx([0.875, 0.5, 0.25, 0.96875])


def test_the_agreement_of_gradients_is_a_row_of_its_own() -> None:
    agreement = torch.tensor([0.1, 0.5, 0.3]).double()
    report = make_report(made_up(agreement=agreement), 2, {})
    row = report.steps.rows[0]
    assert (row.tokens, row.layer, row.steps) == ("gradient agreement", "", [1, 2])
    assert row.share == pytest.approx(10 / 42)  # of the variances 32, 5, 5
    assert row.correlation == pytest.approx(-math.sqrt(0.75))
    assert report.step_rows()[0][-5:] == ["–", "0.100", "0.500", "0.300", "–"]
    assert len(report.steps.rows) == len(make_report(made_up(), 2, {}).steps.rows) + 1


def test_the_last_step_is_never_chosen_and_k_steps_are() -> None:
    table = step_table(made_up(), top_k=2)
    assert [row.steps for row in table.rows if row.layer == "all"] == [[1, 2]]
    with pytest.raises(ValueError, match="top_k=4"):
        step_table(made_up(), top_k=4)


def test_a_curve_of_ones_own_is_told_from_the_common_one() -> None:
    rows = {row.layer: row for row in step_table(made_up(), top_k=2).rows}
    assert rows["own"].own_correlation == pytest.approx(1)
    assert math.isnan(rows["last"].own_correlation)  # all prompts have the same curve
    assert rows["own"].own_share == pytest.approx(20 / 21)
    assert rows["last"].own_share == pytest.approx((20 + 17) / 42)


def test_the_oracle_is_not_flattered_by_its_own_noise() -> None:
    # No step matters more than another: 4 of 9 hold 44 % and no oracle has more.
    generator = torch.Generator().manual_seed(0)
    shares, in_sample = [], []
    curves = {("all_to_all", "all"): torch.rand(24, 2, 10, generator=generator)}
    batch = PromptBatch(["a"] * 24, torch.arange(24), [{}] * 24)
    for _ in range(60):
        spread = group_spread(torch.randn(24 * 9, 8, generator=generator)).view(24, 9)
        table = step_table(made_up(step_spread=spread, curves=curves, prompts=batch), 4)
        shares.append(table.oracle_share)
        in_sample.append(sum(table.variance_share[step] for step in table.oracle_steps))
    assert sum(shares) / 60 == pytest.approx(4 / 9, abs=0.008)
    assert sum(in_sample) / 60 > 0.47
    # With one prompt there is nobody else to choose by.
    alone = made_up(step_spread=torch.where(torch.arange(4)[:, None] > 0, math.nan, SPREAD))
    report = make_report(alone, 1, {})
    assert math.isnan(report.steps.oracle_share) and "hold –" in report.step_notes[0]


def test_a_prompt_without_scores_is_left_out() -> None:
    spread = SPREAD.clone()
    spread[1, 0] = math.nan
    kept = SPREAD[[0, 2, 3]].mean(0).tolist()
    assert step_table(made_up(step_spread=spread), 1).spread == pytest.approx(kept)
    with pytest.raises(ValueError, match="no prompt has two scored images"):
        step_table(made_up(step_spread=torch.full_like(SPREAD, math.nan)), 1)


def test_group_spread_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2, 3], [1.0, math.nan, 3], [math.nan, math.nan, 3], [2.0, 2, 2]])
    spread = group_spread(rewards)
    assert spread[[0, 1, 3]].tolist() == pytest.approx([1.0, math.sqrt(2), 0.0])
    assert spread[2].isnan()


def trained(deltas: Tensor, gains: list[float], before: Tensor | None = None) -> Signals:
    """A policy whose ΔEntropy is (B, M): each prompt's trajectories differ by a constant."""
    zeros = torch.zeros(4, deltas.shape[1], 4, dtype=torch.float64)
    key = ("text_to_image", "all")
    return made_up(
        curves={key: zeros + deltas[:, :, None]},
        reference_curves={key: zeros},
        before_curves=None if before is None else {key: zeros + before[:, :, None]},
        before_groups=torch.tensor([[0.0, 8.0], [0.0, 6.0], [0.0, 4.0], [0.0, 2.0]]),
        gains=torch.tensor(gains)[:, None].repeat(1, 2),
    )


def test_prompts_by_hand() -> None:
    deltas = torch.tensor([[1.0, 2, 4, 3], [2, 1, 3, 4], [3, 4, 2, 1], [4, 3, 1, 2]]) / 10
    deltas += torch.tensor([0.0, 0.01, 0.02, 0.04])[:, None]  # all averages in this order
    table = prompt_table(trained(deltas, [0.4, 0.3, 0.1, 0.24], before=0.5 - deltas))
    assert table is not None
    spread, gained, row = table
    assert (spread.tokens, gained.tokens, row.tokens) == (
        "reward spread",
        "reward gained",
        "text_to_image",
    )
    # ranks 1 2 3 4 of ΔEntropy, 1 2 3 4 of the spread, 4 3 1 2 of the gain
    assert row.spread == pytest.approx(1)
    assert row.spread_within == pytest.approx(1)
    assert row.gained == pytest.approx(1 - 6 * (9 + 1 + 4 + 4) / 60)
    assert row.foretold == pytest.approx(-row.gained)  # earlier ΔEntropy runs the other way
    # less the category's mean: ΔEntropy -.005 .005 -.01 .01, the gain .05 -.05 -.07 .07
    assert row.gained_within == pytest.approx(1 - 6 * (1 + 1) / 60)
    # first halves .15 .16 .37 .39, second .35 .36 .17 .19
    assert row.retest_half == pytest.approx(1 - 6 * (4 + 4 + 4 + 4) / 60)
    assert row.retest_half_within == pytest.approx(1)
    assert row.mean == pytest.approx(0.2675)
    assert spread.gained == pytest.approx(-row.gained)  # before training the spread ran down
    assert gained.retest_half == pytest.approx(1)
    # Swapping the first pair of the gain gives 1, and there are but four orders inside two pairs.
    assert row.gained_chance == pytest.approx(1)


def test_one_trajectory_is_compared_with_its_neighbor() -> None:
    same = torch.tensor([1.0, 2, 3, 4])
    deltas = torch.stack([same, same, same, same.flip(0)], dim=1) / 10  # pairs +1 and -1
    table = prompt_table(trained(deltas, [0.1, 0.2, 0.3, 0.4]))
    assert table is not None and table[-1].retest_one == pytest.approx(0)


def test_delta_that_is_zero_correlates_with_nothing() -> None:
    table = prompt_table(trained(torch.zeros(4, 4), [0.1, 0.2, 0.3, 0.4]))
    assert table is not None
    assert table[-1].mean == 0
    assert math.isnan(table[-1].gained) and math.isnan(table[-1].retest_half)


def test_files_say_what_the_tables_say(tmp_path: Path) -> None:
    report = make_report(made_up(), 1, {"prompts": 4})
    files = write_report(report, tmp_path / "deep" / "signals")
    assert [file.name for file in files] == ["signals.md", "steps.csv", "signals.json"]
    page = files[0].read_text()
    assert "prompts 4." in page and NOT_TRAINED in page
    assert "1,234 model evaluations (1,200 rollout, 34 probe)" in page
    assert "Skipped image_to_text: no text." in page
    assert "| image_to_all | all | -0.87 | – | 2 | 12% | 12% | 0.100 |" in page
    stored = json.loads(files[2].read_text())  # NaN is no JSON
    assert stored["prompts"] is None
    assert [row["own_correlation"] for row in stored["steps"]["rows"]] == [1.0, None, None]
    header, spread, *rows = files[1].read_text().splitlines()
    assert header.startswith("tokens,layer,correlation,own_correlation,steps,share,own_share,entr")
    assert spread.startswith("reward_spread,,,,0,0.761905,,0.5,0.1875,0.1875,")
    assert len(rows) == 3


def test_an_old_second_table_does_not_outlive_a_run_without_one(tmp_path: Path) -> None:
    deltas = torch.arange(16.0).view(4, 4) / 100
    with_table = make_report(trained(deltas, [0.1, 0.3, 0.2, 0.4]), 1, {})
    names = [file.name for file in write_report(with_table, tmp_path)]
    assert "prompts.csv" in names
    page = (tmp_path / "signals.md").read_text()
    assert "| tokens | layer | mean | retest 1 | retest half | within | spread | within |" in page
    assert "foretold" not in page  # no earlier checkpoint
    write_report(make_report(made_up(), 1, {}), tmp_path)
    assert not (tmp_path / "prompts.csv").exists()
