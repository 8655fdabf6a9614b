"""The first iterations draw and choose otherwise, in whole runs and in resumed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer

from aegpo.allocation import MedianSplitAllocator, RunningSpread, UniformAllocator
from aegpo.exploration import EntropyPeaks, NoSteps
from aegpo.objectives import NFT
from aegpo.rollout import RolloutWarmup
from aegpo.samplers import AdamsBashforth
from aegpo.sde import ODE
from aegpo.selection import Extremes, Previews
from callbacks.prompt_history import PromptHistory
from callbacks.reward_spread import RewardSpread
from callbacks.rollout_checkpoint import RolloutCheckpoint
from callbacks.running_entropy import RunningEntropy
from callbacks.step_spread import TreeSpread, TrialSpread

WARMUP = {"iterations": 3, "num_steps": 3}


class Drawn(L.Callback):
    """Steps, images learned from, and evaluations of rollouts so far, of each iteration."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = pl_module.last
        trained = len(last.tree) if last.weights is None else int((last.weights > 0).sum())
        drawn = pl_module.policy.evaluations.counts["rollout"]
        self.rows.append((len(last.tree.sigmas) - 1, trained, drawn))


class Read(L.Callback):
    """The curves that each iteration finds, a list for every prompt; empty without a reading."""

    def __init__(self) -> None:
        self.curves: list[list[list[float]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        reading = pl_module.entropy
        self.curves.append([] if reading is None else reading.curve.tolist())

    @property
    def steps(self) -> list[int | None]:
        """How many steps they have."""
        return [len(curve[0]) if curve else None for curve in self.curves]


def warm(folder: Path, warmup: RolloutWarmup | None, **settings: Any) -> Any:
    module = tiny_module(
        folder,
        step_selector=NoSteps(),
        objective=NFT(times_per_image=2, kl_coeff=0.0),
        allocator=UniformAllocator(4),
        lr=1e-2,
        seed=0,
        warmup=warmup,
        **settings,
    )
    module.sde = ODE()
    return module


def fit(
    tmp_path: Path, module: Any, *callbacks: L.Callback, epochs: int = 2, **settings: Any
) -> list[tuple[int, int, float]]:
    drawn = Drawn()
    trainer = tiny_trainer(
        tmp_path, [*callbacks, drawn], max_epochs=epochs, limit_val_batches=0, **settings
    )
    trainer.fit(module, tiny_data(tmp_path), weights_only=True)
    return drawn.rows


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.policy.trainable_parameters()])


def test_it_lasts_for_its_iterations_and_then_all_is_as_without(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    chosen = Extremes(keep=2)
    module = warm(tiny_sd3_folder, RolloutWarmup(**WARMUP, selection=chosen))
    assert module.evaluation_steps == 5
    rows = fit(tmp_path, module)
    assert [row[:2] for row in rows] == [(3, 8), (3, 8), (3, 8), (5, 16)]
    # Paid for as drawn; of the second of two updates the old predictions are asked for.
    assert rows[0][2] == 16 * 3 + 8 * 2 / 2
    # The run's own choice where the warm-up makes none, and the steps are of its sampler.
    other = warm(tiny_sd3_folder, RolloutWarmup(**WARMUP, sampler=AdamsBashforth()))
    assert [row[:2] for row in fit(tmp_path, other)] == [(3, 16)] * 3 + [(5, 16)]
    assert other.sampler is None
    plain = warm(tiny_sd3_folder, RolloutWarmup(**WARMUP))
    fit(tmp_path, plain)
    assert not torch.equal(weights(plain), weights(other))
    # As many steps by the same sampler are no change.
    same = warm(tiny_sd3_folder, RolloutWarmup(3, 5))
    without = warm(tiny_sd3_folder, None)
    assert fit(tmp_path, same) == fit(tmp_path, without)
    assert torch.equal(weights(same), weights(without))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_is_resumed_in_it_or_after_it_is_the_whole_one(
    tmp_path: Path, tiny_sd3_folder: Path, epochs: int
) -> None:
    def make() -> Any:
        return warm(tiny_sd3_folder, RolloutWarmup(**WARMUP, sampler=AdamsBashforth()))

    whole, half, resumed = make(), make(), make()
    rows = fit(tmp_path, whole, epochs=3)
    kept = RolloutCheckpoint(dirpath=str(tmp_path / "half"))
    before = fit(tmp_path, half, kept, epochs=epochs, enable_checkpointing=True)
    drawn = Drawn()
    trainer = tiny_trainer(tmp_path, [drawn], max_epochs=3, limit_val_batches=0)
    trainer.fit(
        resumed,
        tiny_data(tmp_path),
        ckpt_path=str(tmp_path / "half/last.ckpt"),
        weights_only=True,
    )
    assert [*before, *drawn.rows] == rows and len(before) == 2 * epochs
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("source", ["trajectory", "rollouts"])
def test_entropy_is_read_anew_of_the_steps_that_follow(
    tmp_path: Path, tiny_sd3_folder: Path, source: str
) -> None:
    module = warm(tiny_sd3_folder, RolloutWarmup(**WARMUP, sampler=AdamsBashforth()))
    probe, *others = entropy_callbacks(source=source)
    seen = Read()
    fit(tmp_path, module, probe, *others, seen, epochs=3)
    first = [3, 3, 3] if source == "trajectory" else [None, 3, 3]
    assert seen.steps == [*first, *([5, 5, 5] if source == "trajectory" else [None, 5, 5])]
    assert {len(curve) for curve in probe.reference.values()} == {5}


@pytest.mark.parametrize(
    "publishers",
    [
        lambda: [RewardSpread()],
        lambda: [PromptHistory(RunningSpread(), category_visits=2.0)],
        lambda: [*entropy_callbacks(), RewardSpread()],
        lambda: [*entropy_callbacks(), RunningEntropy(0.5)],
    ],
    ids=["spread", "history", "probe_and_spread", "running_mean"],
)
def test_what_callbacks_publish_has_the_steps_that_follow(
    tmp_path: Path, tiny_sd3_folder: Path, publishers: Any
) -> None:
    def run(epochs: int, *callbacks: L.Callback, **resume: Any) -> Any:
        module = warm(tiny_sd3_folder, RolloutWarmup(**WARMUP))
        module.allocator = MedianSplitAllocator(2, 4)
        module.step_selector = EntropyPeaks(top_k=1)  # which wants a curve of as many steps
        module.objective = NFT(times_per_image=1, levels="selected", kl_coeff=0.0)
        seen = Read()
        trainer = tiny_trainer(
            tmp_path,
            [*publishers(), seen, *callbacks],
            max_epochs=epochs,
            limit_val_batches=0,
            enable_checkpointing=bool(callbacks),
        )
        trainer.fit(module, tiny_data(tmp_path), weights_only=True, **resume)
        return seen, weights(module)

    whole, end = run(3)
    steps = whole.steps
    assert steps[1:] == [3, 3, 5, 5, 5] and steps[0] in (None, 3)
    kept = RolloutCheckpoint(dirpath=str(tmp_path / "half"))
    first, _ = run(2, kept)
    rest, same = run(3, ckpt_path=str(tmp_path / "half/last.ckpt"))
    assert [*first.curves, *rest.curves] == whole.curves and torch.equal(same, end)


@pytest.mark.parametrize("kind", [TreeSpread, TrialSpread])
def test_a_curve_by_the_number_of_a_step_does_not_go_with_it(
    tmp_path: Path, tiny_sd3_folder: Path, kind: type[L.Callback]
) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} knows steps by their number.*3 at"):
        fit(tmp_path, warm(tiny_sd3_folder, RolloutWarmup(**WARMUP)), kind())


def test_what_it_cannot_go_with_is_refused_before_anything_is_loaded() -> None:
    nowhere = Path("/nowhere")
    warmup = RolloutWarmup(**WARMUP)
    with pytest.raises(ValueError, match=r"model.warmup draws in 3 steps at first.*objectives.NFT"):
        tiny_module(nowhere, warmup=warmup)
    with pytest.raises(ValueError, match=r"model\.previews learns at which step"):
        warm(nowhere, warmup, selection=Extremes(2), previews=Previews())
    with pytest.raises(ValueError, match="iterations=0 must be at least 1"):
        RolloutWarmup(0, 3)
    with pytest.raises(ValueError, match="num_steps=1 must be at least 2"):
        RolloutWarmup(3, 1)
