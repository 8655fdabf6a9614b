from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from callbacks.ema import EMA


class Watch(L.Callback):
    """The weights after every iteration, and those that held-out images are drawn with."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.trained.append(copy(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.evaluated.append(copy(pl_module))


def copy(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.policy.trainable_state_dict().items()}


def expected_average(
    start: dict[str, Tensor], trained: list[dict[str, Tensor]], decay: float
) -> Any:
    average = {name: value.double() for name, value in start.items()}
    for n, weights in enumerate(trained, start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = {k: keep * v + (1 - keep) * weights[k].double() for k, v in average.items()}
    return average


def train(folder: Path, tmp_path: Path, epochs: int, **settings: Any) -> tuple[Any, Watch, Any]:
    watch, module = Watch(), tiny_module(folder)
    trainer = tiny_trainer(tmp_path, [EMA(decay=0.5), watch], max_epochs=epochs)
    trainer.fit(module, tiny_data(tmp_path), **settings)
    return module, watch, trainer


def test_held_out_images_are_drawn_with_the_average_and_training_is_untouched(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    module, watch, trainer = train(tiny_sd3_folder, tmp_path, 2)
    plain = tiny_module(tiny_sd3_folder)
    tiny_trainer(tmp_path, [], max_epochs=2).fit(plain, tiny_data(tmp_path))
    for name, value in copy(plain).items():
        assert torch.equal(copy(module)[name], value), "averaging must not change the training"
    start = copy(tiny_module_built(tiny_sd3_folder))
    average = expected_average(start, watch.trained, 0.5)
    changed = False
    for name, value in average.items():
        torch.testing.assert_close(module.averaged[name].double(), value, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(watch.evaluated[-1][name].double(), value, rtol=1e-5, atol=1e-8)
        changed |= not torch.equal(watch.evaluated[-1][name], watch.trained[-1][name])
    assert changed, "the average is not the last weights"

    trainer.save_checkpoint(tmp_path / "run.ckpt")
    validated = Watch()
    tiny_trainer(tmp_path, [validated]).validate(
        tiny_module(tiny_sd3_folder),
        tiny_data(tmp_path),
        ckpt_path=tmp_path / "run.ckpt",
        verbose=False,
    )
    for name, value in module.averaged.items():
        assert torch.equal(validated.evaluated[0][name], value)


def tiny_module_built(folder: Path) -> Any:
    module = tiny_module(folder)
    module.configure_model()
    return module


def test_a_resumed_run_is_the_same_run(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    whole, _, _ = train(tiny_sd3_folder, tmp_path, 2)
    _, _, trainer = train(tiny_sd3_folder, tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = train(tiny_sd3_folder, tmp_path, 2, ckpt_path=tmp_path / "half.ckpt")
    for name, value in copy(whole).items():
        assert torch.equal(copy(resumed)[name], value)
        assert torch.equal(resumed.averaged[name], whole.averaged[name])


def test_weights_are_put_back_after_a_failed_validation(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    class Broken(Watch):
        def on_validation_batch_end(self, *_: Any) -> None:
            raise KeyError("broken")

    broken, module = Broken(), tiny_module(tiny_sd3_folder)
    trainer = tiny_trainer(tmp_path, [EMA(decay=0.5), broken], max_epochs=1)
    with pytest.raises(KeyError):
        trainer.fit(module, tiny_data(tmp_path))
    for name, value in broken.trained[-1].items():
        assert torch.equal(copy(module)[name], value)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_iterations": 0}])
def test_bad_arguments(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="EMA"):
        EMA(**settings)
