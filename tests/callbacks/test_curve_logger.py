"""Figures and tables of the entropy loops, read back from TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import ExplorationSchedule
from aegpo.prompts import PromptBatch
from callbacks.curve_logger import (
    CurveLogger,
    curve_figure,
    layer_figure,
    prompt_table,
)
from callbacks.entropy_probe import EntropyProbe
from callbacks.tensorboard import tensorboard_writers

BATCH = PromptBatch(["a dog", "a cat"], torch.tensor([3, 8]), [{}] * 2)
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)


def module(iteration: int, entropy: EntropyReading | None) -> SimpleNamespace:
    schedule = ExplorationSchedule.from_mask(MASK, 0.7)
    logged: dict[str, float] = {}
    return SimpleNamespace(
        iteration=iteration,
        entropy=entropy,
        last=SimpleNamespace(schedule=schedule, group_sizes=torch.tensor([8, 16])),
        logged=logged,
        log=lambda name, value, rank_zero_only: logged.update({name: value}),
    )


def trainer(logger: TensorBoardLogger, callbacks: list[Any]) -> SimpleNamespace:
    sampler = SimpleNamespace(probabilities=lambda: torch.tensor([0.25, 0.75]))
    return SimpleNamespace(
        loggers=[logger],
        is_global_zero=True,
        callbacks=callbacks,
        datamodule=SimpleNamespace(sampler=sampler),
    )


def read(logger: TensorBoardLogger) -> EventAccumulator:
    logger.experiment.flush()
    accumulator = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def test_numbers_every_time_and_drawings_now_and_then(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    probe = EntropyProbe()
    reading = EntropyReading(torch.full((2, 4), 0.5), torch.tensor([0.25, 0.75]))
    probe.first_curve = probe.reference_curve = torch.full((4,), 0.4)
    probe.per_layer, probe.layer_names = torch.rand(2, 4), ["first", "second"]
    callback = CurveLogger(every_n_iterations=2)
    for iteration in (1, 2, 3):  # the module has counted the iteration already
        own = module(iteration, reading)
        callback.on_train_batch_end(trainer(logger, [callback, probe]), own, None, BATCH, 0)
        assert own.logged == {
            "rollout/stochastic_share": 3 / 8,
            "entropy/mean": 0.5,
            "entropy/delta_mean": 0.5,
        }
    log = read(logger)
    for tag in ("entropy/curve", "entropy/by_layer"):
        assert [event.step for event in log.Images(tag)] == [1, 3]
    for tag in ("entropy/delta", "allocation/images", "sampler/weights"):
        assert [event.step for event in log.Histograms(tag)] == [1, 3]
    histogram = log.Histograms("allocation/images")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (8, 16, 2)


def test_without_a_reading_only_what_does_not_need_one_is_logged(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    own = module(1, None)
    CurveLogger().on_train_batch_end(trainer(logger, []), own, None, BATCH, 0)
    assert own.logged == {"rollout/stochastic_share": 3 / 8}
    tags = read(logger).Tags()
    assert tags["histograms"] == ["allocation/images", "sampler/weights"]
    assert tags["images"] == []


def test_it_draws_after_a_resume_and_before_the_next_reading(tmp_path: Path) -> None:
    probe = EntropyProbe(every_n_iterations=2)
    probe.reference = {3: torch.rand(4)}
    probe.last = {3: (torch.rand(4), torch.tensor(0.5))}
    probe.first_curve = probe.reference_curve = torch.rand(4)
    resumed = EntropyProbe(every_n_iterations=2)
    resumed.load_state_dict(probe.state_dict())
    logger = TensorBoardLogger(tmp_path)
    own = module(1, EntropyReading(torch.rand(2, 4), None))
    CurveLogger().on_train_batch_end(trainer(logger, [resumed]), own, None, BATCH, 0)
    assert read(logger).Tags()["images"] == ["entropy/curve"]


def test_only_rank_zero_s_tensorboard_is_written_to(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    one = SimpleNamespace(loggers=[object(), logger], is_global_zero=True)
    other = SimpleNamespace(loggers=[logger], is_global_zero=False)
    assert list(tensorboard_writers(one)) == [logger.experiment]
    assert list(tensorboard_writers(other)) == []


def test_the_curve_s_figure_holds_the_lines_and_the_shares() -> None:
    curves = {"now": torch.tensor([0.5, 0.25]), "reference": torch.tensor([0.75, 0.125])}
    left, right = curve_figure(curves, torch.tensor([1.0, 0.5])).axes
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert {name: list(values) for name, values in lines.items()} == {
        "now": [0.5, 0.25],
        "reference": [0.75, 0.125],
    }
    assert [bar.get_height() for bar in right.patches] == [1.0, 0.5]


def test_the_heat_map_has_a_row_for_each_layer() -> None:
    axes = layer_figure(torch.tensor([[0.0, 0.5, 1.0]] * 2), ["first", "second"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.images[0].get_array().shape == (2, 3)


def test_the_table_lists_the_largest_delta_first() -> None:
    lines = prompt_table(BATCH, torch.tensor([0.25, 0.5])).splitlines()
    assert lines[2:] == ["| a cat | 0.50000 |", "| a dog | 0.25000 |"]
    batch = PromptBatch(["a <lora:x|1> *dog*", "a cat"], torch.tensor([3, 8]), [{}] * 2)
    lines = prompt_table(batch, torch.tensor([0.5, 0.25])).splitlines()
    assert lines[2] == r"| a &lt;lora:x&#124;1&gt; \*dog\* | 0.50000 |"


def test_it_draws_at_least_every_iteration() -> None:
    with pytest.raises(ValueError, match="every_n_iterations=0"):
        CurveLogger(0)
