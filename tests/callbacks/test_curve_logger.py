"""Figures and tables of the entropy loops, read back from TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from probe_by_hand import probe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.exploration import EntropyPeaks
from aegpo.prompts import PromptBatch
from callbacks.curve_logger import (
    CurveLogger,
    curve_figure,
    layer_figure,
    prompt_rows,
)
from callbacks.prompt_budgets import PromptBudgets
from callbacks.prompt_reweighter import PromptReweighter
from callbacks.tensorboard import tensorboard_writers

BATCH = PromptBatch(["a dog", "a cat"], torch.tensor([3, 8]), [{}] * 2)


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def train(
    tmp_path: Path,
    folder: Path,
    callbacks: list[L.Callback],
    max_epochs: int = 3,
    name: str = "log",
    **settings: Any,
) -> tuple[Any, EventAccumulator, L.Trainer]:
    """An iteration an epoch; the module, what TensorBoard's file holds, and the trainer."""
    module = tiny_module(folder, num_steps=3, step_selector=EntropyPeaks(top_k=1), lr=1e-2)
    trainer = tiny_trainer(
        tmp_path,
        callbacks,
        max_epochs=max_epochs,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=TensorBoardLogger(tmp_path, name, ""),
    )
    trainer.fit(module, tiny_data(tmp_path, batches_per_epoch=1), weights_only=True, **settings)
    return module, read(tmp_path / name), trainer


def scalars(log: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in log.Scalars(tag)]


def test_numbers_every_time_and_drawings_now_and_then(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    own, callback = probe(), CurveLogger(every_n_iterations=2)
    module, log, _ = train(tmp_path, tiny_sd3_folder, [own, PromptReweighter(), callback])
    assert [event.step for event in log.Scalars("entropy/mean")] == [1, 2, 3]
    assert scalars(log, "rollout/stochastic_share") == pytest.approx([1 / 3] * 3)
    assert scalars(log, "entropy/mean")[-1] == pytest.approx(float(module.entropy.curve.mean()))
    delta = float(module.entropy.delta.mean())
    assert scalars(log, "entropy/delta_mean")[-1] == pytest.approx(delta) and delta > 0
    for tag in ("entropy/curve", "entropy/by_layer"):
        assert [event.step for event in log.Images(tag)] == [1, 3]
    for tag in ("entropy/delta", "allocation/images", "sampler/weights"):
        assert [event.step for event in log.Histograms(tag)] == [1, 3]
    histogram = log.Histograms("allocation/images")[-1].histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (2, 4, 4)
    assert log.Histograms("sampler/weights")[-1].histogram_value.num == 12
    assert all(prompt in text_of(log, "entropy/prompts") for prompt in module.last.batch.prompts)
    (table, steps) = (text_of(log, "allocation/prompts"), [1, 3])
    assert [event.step for event in log.Tensors("allocation/prompts/text_summary")] == steps
    rows = {cells[0]: cells[1:] for cells in cells_of(table)}
    assert sum(int(visits) for _, visits, _ in rows.values()) == 12  # of three iterations
    for prompt, delta in zip(module.last.batch.prompts, module.entropy.delta.tolist(), strict=True):
        assert rows[prompt][0] == f"{delta:.5f}"


def text_of(log: EventAccumulator, tag: str) -> str:
    (text,) = log.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
    return str(text.decode())


def cells_of(table: str) -> list[list[str]]:
    lines = table.strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_without_a_reading_only_what_does_not_need_one_is_logged(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    _, log, _ = train(tmp_path, tiny_sd3_folder, [CurveLogger()], max_epochs=1)
    tags = log.Tags()
    assert "rollout/stochastic_share" in tags["scalars"]
    assert not any(tag.startswith("entropy/") for tag in tags["scalars"])
    assert sorted(tags["histograms"]) == ["allocation/images", "sampler/weights"]
    assert tags["images"] == []
    assert tags["tensors"] == []  # all prompts alike: no table says anything


def test_it_draws_after_a_resume_and_before_the_next_reading(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    def callbacks() -> list[L.Callback]:
        return [probe(every_n_iterations=2), CurveLogger(every_n_iterations=1)]

    *_, trainer = train(tmp_path, tiny_sd3_folder, callbacks(), 1, "first")
    file = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(file)
    _, log, _ = train(tmp_path, tiny_sd3_folder, callbacks(), 2, "second", ckpt_path=str(file))
    assert [event.step for event in log.Images("entropy/curve")] == [2]
    assert log.Tags()["images"] == ["entropy/curve"]  # layers are known once it has read again
    visits = [int(cells[2]) for cells in cells_of(text_of(log, "allocation/prompts"))]
    assert sum(visits) == 8  # also of the iteration before the checkpoint


def test_only_rank_zero_s_tensorboard_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for rank in (0, 1):  # Lightning's own trainers of two ranks, which are not launched
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "events")]
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=loggers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
        )
        assert trainer.global_rank == rank
        own = [loggers[1].experiment] if rank == 0 else []
        assert list(tensorboard_writers(trainer)) == own


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
    rows = prompt_rows(BATCH, torch.tensor([0.25, 0.5]))
    assert rows == [("a cat", "0.50000"), ("a dog", "0.25000")]


def test_it_draws_at_least_every_iteration() -> None:
    with pytest.raises(ValueError, match="every_n_iterations=0"):
        CurveLogger(0)


def test_budgets_of_prompts() -> None:
    budgets = PromptBudgets()
    nan = float("nan")
    budgets.add(BATCH, {3: 2, 8: 2}, None)
    assert not budgets.says_something()
    budgets.add(BATCH, {3: 2, 8: 4}, torch.tensor([nan, 0.25]))
    again = PromptBudgets()
    again.load_state_dict(budgets.state_dict())
    again.add(BATCH, {3: 2, 8: 6}, torch.tensor([0.5, nan]))
    records = [{"prompt": f"p{row}"} for row in range(8)]
    assert again.says_something() and again.table(records) == [
        ("p3", "0.50000", "3", "2.0"),
        ("row 8", "0.25000", "3", "4.0"),
    ]
    other = PromptBatch(["a bat", "a cat"], torch.tensor([3, 8]), [{}] * 2)
    again.add(other, {3: 4, 8: 6}, None)  # another file, of which one prompt stands where it stood
    assert again.of_row[3].visits == 1 and again.of_row[8].visits == 4
    many = PromptBatch([f"p{n}" for n in range(100)], torch.arange(100), [{}] * 100)
    full = PromptBudgets()
    full.add(many, dict.fromkeys(range(100), 2), torch.arange(100) / 100)
    shown = [text for text, *_ in full.table(many_records(100))]
    assert shown == [f"p{n}" for n in (*range(99, 79, -1), *range(19, -1, -1))]
    full.of_row[50].delta = nan
    assert [text for text, *_ in full.table(many_records(100))] == shown


def many_records(number: int) -> list[dict[str, str]]:
    return [{"prompt": f"p{row}"} for row in range(number)]
