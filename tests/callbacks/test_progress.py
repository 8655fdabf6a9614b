"""The three numbers beside the progress bar."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from callbacks.progress import RolloutProgressBar


def trainer(**metrics: float) -> SimpleNamespace:
    values = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(callback_metrics=values)


def after(rewards: list[float], average_over: int) -> RolloutProgressBar:
    bar = RolloutProgressBar(average_over)
    bar.load_state_dict({"rewards": rewards})
    return bar


def test_reward_and_change_are_averages_over_the_last_and_first_iterations() -> None:
    bar = after([1.0, 2.0, 9.0, 3.0, 5.0], average_over=2)
    shown = bar.get_metrics(trainer(reward__mean=5.0, cost__evaluations=12345.0), None)
    assert shown == {"reward": "4.000", "change": "+2.500", "evaluations": "12,345"}
    shown = after([3.0, 1.0], average_over=1).get_metrics(trainer(reward__mean=1.0), None)
    assert shown == {"reward": "1.000", "change": "-2.000"}


def test_nothing_is_shown_before_the_first_reward() -> None:
    assert after([], 5).get_metrics(trainer(val__judge=0.5), None) == {}
    shown = after([], 5).get_metrics(trainer(reward__mean=0.25), None)
    assert shown == {"reward": "0.250", "change": "+0.000"}


def test_every_iteration_s_reward_is_kept_and_outlives_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda *args: None)
    bar = RolloutProgressBar()
    for reward in (0.25, 0.5):
        bar.on_train_batch_end(trainer(reward__mean=reward), None, None, None, 0)
    bar.on_train_batch_end(trainer(), None, None, None, 0)
    assert bar.state_dict() == {"rewards": [0.25, 0.5]}
    assert after(bar.state_dict()["rewards"], 1).get_metrics(trainer(reward__mean=0.5), None) == {
        "reward": "0.500",
        "change": "+0.250",
    }


def test_an_average_needs_an_iteration() -> None:
    with pytest.raises(ValueError, match="average_over=0"):
        RolloutProgressBar(0)
