"""Prompts' earlier visits in a real run: what is published, drawn, shuffled and resumed."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import ProportionalAllocator, RunningSpread, SkipSilent, Visits
from aegpo.exploration import FixedSteps
from callbacks.cost_logger import CostLogger
from callbacks.prompt_history import PromptHistory
from callbacks.rollout_checkpoint import RolloutCheckpoint

FAITHFUL = {"alpha": 1.0, "delta": 1e-6, "uniform_share": 0.0}
"""Prompts are drawn in proportion to what the sampler is told."""


class Dead(Redness):
    """Scores all images of a circle alike."""

    def __call__(self, images, prompts, metadata):
        scores = super().__call__(images, prompts, metadata)
        dead = torch.tensor(["circle" in prompt for prompt in prompts], dtype=torch.bool)
        return scores.masked_fill(dead, 0.5)


def fit(tmp_path, folder, history, max_epochs=4, ckpt_path=None, name="run"):
    module = tiny_module(
        folder,
        step_selector=FixedSteps([0, 1]),
        allocator=ProportionalAllocator(3, minimum=2, maximum=5),
        reward=Dead(),
    )
    checkpoint = RolloutCheckpoint(dirpath=str(tmp_path / name))
    trainer = tiny_trainer(
        tmp_path,
        [history, CostLogger(), checkpoint],
        max_epochs=max_epochs,
        limit_val_batches=0,
        enable_checkpointing=True,
    )
    data = tiny_data(tmp_path, **FAITHFUL)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, data, trainer


def dead(data) -> torch.Tensor:
    return torch.tensor(["circle" in record["prompt"] for record in data.train_prompts.records])


def test_silent_prompts_are_drawn_less_and_live_ones_get_more_images(tmp_path, tiny_sd3_folder):
    history = PromptHistory(SkipSilent(explore=0.5, floor=0.25))
    module, data, trainer = fit(tmp_path, tiny_sd3_folder, history, max_epochs=6)
    silent = dead(data)
    # The first three batches of four see the twelve prompts once.
    assert all(history.visits[index].count >= 1 for index in range(12))
    for index in range(12):
        visits = history.visits[index]
        assert visits.silent == (visits.count if silent[index] else 0)
        assert visits.variance > 0 or bool(silent[index])
    chances = data.sampler.probabilities()
    expected = torch.tensor([history.rule(history.visits[index]) for index in range(12)]).double()
    torch.testing.assert_close(chances, expected / expected.sum(), rtol=1e-3, atol=1e-6)
    assert float(chances[silent].max()) < float(chances[~silent].min())
    assert trainer.callback_metrics["sampler/silent_share"] == pytest.approx(4 / 12)
    assert module.entropy is not None and module.entropy.delta is not None

    spread = PromptHistory(RunningSpread(), draws=False)
    module, data, _ = fit(tmp_path, tiny_sd3_folder, spread, max_epochs=6)
    assert bool(data.sampler.delta_entropy.isnan().all())
    sizes = dict(
        zip(module.last.batch.index.tolist(), module.last.group_sizes.tolist(), strict=True)
    )
    assert sum(sizes.values()) == 12 and max(sizes.values()) <= 5
    alive = [size for index, size in sizes.items() if not silent[index]]
    assert all(size == 2 for index, size in sizes.items() if silent[index]) or not alive


def test_shuffled_visits_say_nothing_and_vary_as_much(tmp_path, tiny_sd3_folder):
    found = {}
    for shuffled in (False, True):
        history = PromptHistory(RunningSpread(), draws=False, shuffled=shuffled)
        _, data, _ = fit(tmp_path, tiny_sd3_folder, history, max_epochs=5)
        silent = dead(data)
        found[shuffled] = {index: visits.variance for index, visits in history.visits.items()}
    wrong = [index for index, value in found[True].items() if silent[index] and value > 0]
    assert wrong and not [i for i, value in found[False].items() if silent[i] and value > 0]


def test_a_resumed_run_remembers(tmp_path, tiny_sd3_folder):
    def history():
        return PromptHistory(SkipSilent(), shuffled=True)

    whole = history()
    _, data, _ = fit(tmp_path, tiny_sd3_folder, whole, 4, name="whole")
    fit(tmp_path, tiny_sd3_folder, history(), 2, name="halves")
    resumed = history()
    last = tmp_path / "halves/last.ckpt"
    _, again, _ = fit(tmp_path, tiny_sd3_folder, resumed, 4, ckpt_path=last, name="resumed")
    assert resumed.visits == whole.visits
    assert torch.equal(again.sampler.delta_entropy, data.sampler.delta_entropy)


def test_a_category_speaks_for_prompts_that_were_never_drawn(tmp_path, tiny_sd3_folder):
    """One visit of a dead category, and the sampler passes over the rest of it."""
    history = PromptHistory(SkipSilent(explore=0.5, floor=0.01), category_visits=2.0)
    module = tiny_module(tiny_sd3_folder, step_selector=FixedSteps([0, 1]), reward=Dead())
    data = tiny_data(tmp_path, **FAITHFUL)
    for record in data.train_prompts.records:
        record["category"] = "dead" if "circle" in record["prompt"] else "alive"
    tiny_trainer(tmp_path, [history], max_epochs=1, limit_val_batches=0).fit(module, data)
    silent = dead(data)
    seen = [index for index in history.visits if silent[index]]
    assert 0 < len(seen) < int(silent.sum())  # a batch of four has seen some of the dead ones
    mean = Visits.mean([history.visits[index] for index in seen])
    ratings = history.ratings()
    assert ratings[seen[0]] == history.rule(history.visits[seen[0]].leaning_on(mean, 2.0))
    chances = data.sampler.probabilities()
    for index in range(12):
        assert ratings[index] < 1 if silent[index] else ratings[index] == 1
    assert float(chances[silent].max()) < float(chances[~silent].min())


def test_a_record_leans_on_its_kind_the_less_the_more_it_was_visited():
    kind = Visits.mean([Visits(3, 3, 0.0), Visits(1, 0, 0.2)])
    assert kind == Visits(4, 1.5, 0.1)
    assert Visits().leaning_on(kind, 2.0) == Visits(0, 1.5, 0.1)
    assert Visits(2, 0, 0.3).leaning_on(kind, 2.0) == Visits(2, 0.75, pytest.approx(0.2))


def test_another_file_under_the_same_rows_is_forgotten_at_once(tmp_path, tiny_sd3_folder):
    history = PromptHistory(SkipSilent())
    fit(tmp_path, tiny_sd3_folder, history, 3)
    texts = [record["prompt"] for record in tiny_data(tmp_path).train_prompts.records]
    assert history.texts.stale(texts) == []
    assert sorted(history.texts.stale(["another", *texts[1:6]])) == [0, *range(6, 12)]


class Own(L.LightningDataModule):
    """A user's data: batches and nothing else."""

    def __init__(self, data) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self):
        return self.data.train_dataloader()


def test_data_that_lists_no_prompts_has_no_categories(tmp_path, tiny_sd3_folder):
    def fit_own(history):
        module = tiny_module(tiny_sd3_folder, step_selector=FixedSteps([0, 1]), reward=Dead())
        trainer = tiny_trainer(tmp_path, [history], max_epochs=1, limit_val_batches=0)
        trainer.fit(module, Own(tiny_data(tmp_path)))
        return history

    assert fit_own(PromptHistory(SkipSilent(), draws=False)).visits
    with pytest.raises(ValueError, match=r"category_visits=2.0 needs data that lists its"):
        fit_own(PromptHistory(SkipSilent(), draws=False, category_visits=2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "decay=1"),
        ({"category_visits": -1.0}, "category_visits=-1"),
        ({"category_visits": float("inf")}, "category_visits=inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptHistory(SkipSilent(), **settings)
