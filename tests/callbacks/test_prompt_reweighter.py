"""What the reweighter passes on, and that it refuses to run without readings."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from probe_by_hand import probe
from tiny_training import tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import UniformAllocator
from aegpo.entropy.reading import EntropyReading
from aegpo.exploration import FixedSteps
from callbacks.cost_logger import CostLogger
from callbacks.prompt_reweighter import PromptReweighter
from datamodules.prompt_datamodule import PromptDataModule


class Published(L.Callback):
    """Puts readings by hand in the place of the probe's: ΔEntropy is (row + 1) / 10, or unknown."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.index: list[int] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        delta = (batch.index + 1) / 10
        known = {
            "delta": EntropyReading(torch.zeros(len(batch), 2), delta),
            "curve": EntropyReading(torch.zeros(len(batch), 2), None),
            "nothing": None,
        }
        pl_module.entropy = known[self.what]
        self.index += batch.index.tolist()


def train(
    tmp_path: Path, folder: Path, callbacks: list[L.Callback]
) -> tuple[PromptDataModule, list[dict[str, str]]]:
    """Two iterations of four prompts of twelve; the rows of the log."""
    module = tiny_module(
        folder, num_steps=2, step_selector=FixedSteps([0]), allocator=UniformAllocator(2)
    )
    data = tiny_data(tmp_path, alpha=1.0, delta=1e-9, uniform_share=0.0)
    settings = {"logger": CSVLogger(tmp_path, "log", ""), "log_every_n_steps": 1}
    settings |= {"limit_val_batches": 0, "max_epochs": 1}
    tiny_trainer(tmp_path, callbacks, **settings).fit(module, data)
    with (tmp_path / "log/metrics.csv").open() as file:
        return data, list(csv.DictReader(file))


def test_a_reading_reaches_the_rows_that_it_is_of(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    published = Published("delta")
    callbacks = [probe(), published, PromptReweighter()]
    data, rows = train(tmp_path, tiny_sd3_folder, callbacks)
    seen = sorted({*published.index})
    assert 4 < len(seen) <= 8
    told = data.sampler.delta_entropy
    assert told[seen].tolist() == pytest.approx([(row + 1) / 10 for row in seen])
    assert int(told.isnan().sum()) == 12 - len(seen)
    # Prompts that were not seen count as the highest.
    weights = [told[row].item() if row in seen else (max(seen) + 1) / 10 for row in range(12)]
    shares = [weight / sum(weights) for weight in weights]
    assert data.sampler.probabilities().tolist() == pytest.approx(shares)
    last = rows[-1]
    effective = 1 / sum(share**2 for share in shares)
    assert float(last["sampler/effective_prompts"]) == pytest.approx(effective, rel=1e-5)
    assert float(last["sampler/seen_share"]) == pytest.approx(len(seen) / 12)
    assert float(rows[0]["sampler/seen_share"]) == pytest.approx(4 / 12)


@pytest.mark.parametrize("what", ["nothing", "curve"])
def test_without_a_delta_nothing_changes(tmp_path: Path, tiny_sd3_folder: Path, what: str) -> None:
    callbacks = [probe(), Published(what), PromptReweighter()]
    data, rows = train(tmp_path, tiny_sd3_folder, callbacks)
    assert rows and not any(name.startswith("sampler/") for name in rows[-1])
    assert bool(data.sampler.delta_entropy.isnan().all())


def test_it_refuses_to_run_without_a_probe(tmp_path: Path, tiny_sd3_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the readings of callbacks.EntropyProbe.*remove"):
        train(tmp_path, tiny_sd3_folder, [CostLogger(), PromptReweighter()])
