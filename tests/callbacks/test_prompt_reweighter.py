"""What the reweighter passes on, and that it refuses to run without readings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from aegpo.entropy.reading import EntropyReading
from aegpo.prompts import PromptBatch
from callbacks.cost_logger import CostLogger
from callbacks.entropy_probe import EntropyProbe
from callbacks.prompt_reweighter import PromptReweighter
from datamodules.samplers import DeltaEntropySampler

BATCH = PromptBatch(["a", "b", "c"], torch.tensor([3, 0, 1]), [{}] * 3)


def sampler() -> DeltaEntropySampler:
    rows = list(range(4))
    return DeltaEntropySampler(rows, 2, 1, alpha=1.0, delta=1e-9, uniform_share=0.0)


def passed_on(entropy: EntropyReading | None, own: DeltaEntropySampler) -> dict[str, float]:
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        entropy=entropy, log=lambda name, value, rank_zero_only: logged.update({name: value})
    )
    trainer = SimpleNamespace(datamodule=SimpleNamespace(sampler=own))
    PromptReweighter().on_train_batch_end(trainer, module, None, BATCH, 0)
    return logged


def test_a_reading_reaches_the_rows_that_it_is_of() -> None:
    own = sampler()
    logged = passed_on(EntropyReading(torch.zeros(3, 5), torch.tensor([0.4, 0.1, 0.1])), own)
    assert own.delta_entropy.tolist()[:2] == pytest.approx([0.1, 0.1])
    assert float(own.delta_entropy[3]) == pytest.approx(0.4)
    assert bool(own.delta_entropy[2].isnan())
    # The unseen prompt counts as the highest: weights 1, 1, 4, 4 of 10.
    assert own.probabilities().tolist() == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert logged["sampler/effective_prompts"] == pytest.approx(1 / (0.01 + 0.01 + 0.16 + 0.16))
    assert logged["sampler/seen_share"] == 0.75


@pytest.mark.parametrize("entropy", [None, EntropyReading(torch.zeros(3, 5), None)])
def test_without_a_delta_nothing_changes(entropy: EntropyReading | None) -> None:
    own = sampler()
    assert passed_on(entropy, own) == {}
    assert bool(own.delta_entropy.isnan().all())


def test_it_refuses_to_run_without_a_probe() -> None:
    trainer = SimpleNamespace(callbacks=[CostLogger(), PromptReweighter()])
    with pytest.raises(ValueError, match=r"needs the readings of callbacks.EntropyProbe.*remove"):
        PromptReweighter().setup(trainer, None, "fit")
    trainer.callbacks.append(EntropyProbe())
    PromptReweighter().setup(trainer, None, "fit")
