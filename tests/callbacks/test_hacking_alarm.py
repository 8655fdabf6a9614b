"""The alarm in real trainings: what has to be said, and what has not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.policies.base import Policy
from aegpo.rewards.base import Reward
from callbacks.canary import Canary
from callbacks.hacking_alarm import HackingAlarm


class Greenness(Redness):
    """Falls as redness rises."""

    name = "greenness"

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        return -super().__call__(images, prompts, metadata)


class Crimson(Redness):
    """Rises as redness does."""

    name = "crimson"


class Tags(L.Callback):
    """What was logged under `alarm/`, after every iteration and evaluation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rows.append(self.read(trainer))

    on_validation_end = on_train_batch_end

    def read(self, trainer: L.Trainer) -> dict[str, float]:
        logged = trainer.callback_metrics.items()
        return {name: float(value) for name, value in logged if name.startswith("alarm/")}


def train(
    folder: Path,
    tmp_path: Path,
    alarm: HackingAlarm,
    watched: Reward,
    *,
    epochs: int = 4,
    ckpt_path: Path | None = None,
    val_images: int = 12,
    lr: float = 2e-2,
) -> tuple[list[str], Tags, L.Trainer, Any]:
    """Train for redness; returns what was said, what was logged, trainer and module."""
    tags, module = Tags(), tiny_module(folder, lr=lr, evaluation_rewards=[watched])
    trainer = tiny_trainer(
        tmp_path, [alarm, Canary(), tags], max_epochs=epochs, num_sanity_val_steps=-1
    )
    data = tiny_data(tmp_path, val_images=val_images, val_batch_size=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    said = [str(one.message) for one in caught if "hacking alarm" in str(one.message)]
    return said, tags, trainer, module


def test_it_tells_of_a_watched_reward_that_falls_and_stops(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    alarm = HackingAlarm("stop", score_fall=0.05, norm_drift=1e6, least_diversity=0.0)
    said, tags, trainer, module = train(tiny_sd3_folder, tmp_path, alarm, Greenness(), epochs=20)
    assert len(said) == 1, said
    iteration = module.iteration
    assert iteration < 40 and trainer.current_epoch < 20, "stopped before its end"
    best = alarm.best["greenness"].iteration
    assert f"alarm at iteration {iteration}: since iteration {best} the watched reward" in said[0]
    assert "greenness went from" in said[0] and "redness is above the base's, from" in said[0]
    assert "standard errors" in said[0] and "so the reward is probably being fooled" in said[0]
    assert f"keep the weights of iteration {best} (" in said[0] and "stops here" in said[0]
    assert "\n" not in said[0]
    last = tags.rows[-1]
    assert last["alarm/raised"] == 1 and last["alarm/reward_rise"] >= 3
    # It stands when the trained reward is gone as well, and ends when the watched one is back.
    alarm._set(trainer, module, "greenness", lambda *_: "not said again")
    assert alarm.standing == {"greenness": iteration}
    alarm._set(trainer, module, "greenness", None)
    assert alarm.standing == {}
    assert last["alarm/fall/greenness"] >= 3
    before = [row for row in tags.rows[:-1] if "alarm/reward_rise" in row]
    assert all(row["alarm/raised"] == 0 for row in before)


def test_it_is_silent_where_all_rewards_rise_together(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    alarm = HackingAlarm(norm_drift=1e6, least_diversity=0.0)
    said, tags, _, _ = train(tiny_sd3_folder, tmp_path, alarm, Crimson(), epochs=6)
    assert said == [] and tags.rows[-1]["alarm/reward_rise"] >= 3
    assert all(row.get("alarm/raised", 0) == 0 for row in tags.rows)


def test_a_fall_without_a_rise_is_no_hacking(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    alarm = HackingAlarm(norm_drift=1e-6, least_diversity=1.0, window=1)
    alarm.threshold = 1e9  # nothing counts as a rise
    said, tags, _, _ = train(tiny_sd3_folder, tmp_path, alarm, Greenness(), epochs=2)
    assert said == [] and abs(tags.rows[-1]["alarm/velocity_norm"]) > 1e-6


def test_norms_and_diversity_beyond_the_base_s_are_told_once(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    alarm = HackingAlarm(threshold=0.5, norm_drift=0.02, window=2, least_diversity=1.0)
    said, tags, _, module = train(tiny_sd3_folder, tmp_path, alarm, Crimson(), epochs=8)
    kinds = ("norm of the velocities", "norm of the clean latents", "diversity inside groups")
    for kind in kinds[:2]:
        assert sum(kind in line for line in said) >= 1, (kind, said, tags.rows[-1])
    last = tags.rows[-1]
    assert abs(last["alarm/velocity_norm"]) > 0.02 and abs(last["alarm/latent_norm"]) > 0.02
    assert last["alarm/raised"] == len(alarm.standing) >= 2
    assert last["alarm/group_diversity"] > 0
    assert not module.policy._forward_hooks, "it listens during evaluations only"


def test_the_norms_are_those_of_the_held_out_images(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    alarm = HackingAlarm()
    train(tiny_sd3_folder, tmp_path, alarm, Crimson(), epochs=1, val_images=4, lr=0.0)
    module = tiny_module(tiny_sd3_folder)
    module.configure_model()
    seen: list[Tensor] = []

    def keep(_: Policy, __: Any, velocity: Tensor) -> None:
        seen.append(velocity.double())

    handle = module.policy.register_forward_hook(keep)
    batch = next(iter(tiny_data(tmp_path, val_images=4, val_batch_size=4).val_dataloader()))
    tree = module.draw(batch)
    handle.remove()
    velocities = torch.stack(seen).square().flatten(2).mean(2).sqrt().mean(0)
    latents = tree.latents.double().square().flatten(1).mean(1).sqrt()
    assert alarm.base is not None
    torch.testing.assert_close(alarm.base.values["velocity_norm"], velocities, rtol=1e-5, atol=0)
    torch.testing.assert_close(alarm.base.values["latent_norm"], latents, rtol=1e-5, atol=0)


def test_a_resumed_run_goes_on_with_the_same_base(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"score_fall": 0, "least_diversity": 1.0, "window": 2}
    whole = HackingAlarm(**settings)
    said, tags, _, _ = train(tiny_sd3_folder, tmp_path, whole, Greenness(), epochs=4)
    assert any("greenness" in line for line in said)
    before, _, trainer, _ = train(
        tiny_sd3_folder, tmp_path, HackingAlarm(**settings), Greenness(), epochs=2
    )
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = HackingAlarm(**settings)
    again, resumed_tags, _, _ = train(
        tiny_sd3_folder,
        tmp_path,
        resumed,
        Greenness(),
        epochs=4,
        ckpt_path=tmp_path / "half.ckpt",
    )
    assert resumed_tags.rows[-1] == tags.rows[-1]
    assert resumed.standing == whole.standing
    assert any("greenness" in line for line in before)
    assert before + again == said, "nothing is told a second time"


def test_other_held_out_prompts_are_not_compared_with_those_before(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    _, _, trainer, _ = train(tiny_sd3_folder, tmp_path, HackingAlarm(), Greenness(), epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    alarm = HackingAlarm()
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]["HackingAlarm"]
    state["base"]["keys"][:, 1] += 1  # as if every prompt had been another
    for best in state["best"].values():
        best["keys"][:, 1] += 1
    alarm.load_state_dict(state)
    module = tiny_module(tiny_sd3_folder, evaluation_rewards=[Greenness()])
    tiny_trainer(tmp_path, [alarm], max_epochs=1).fit(module, tiny_data(tmp_path, val_images=8))
    assert alarm.base is not None and alarm.base.iteration == 2, "the first that knows the prompts"


def test_validate_says_and_keeps_nothing(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    alarm = HackingAlarm(threshold=1e-9, norm_drift=1e-9)
    module = tiny_module(tiny_sd3_folder, evaluation_rewards=[Greenness()])
    trainer = tiny_trainer(tmp_path, [alarm], logger=CSVLogger(tmp_path / "log"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hacking alarm.*")
        trainer.validate(module, tiny_data(tmp_path), verbose=False)
    assert alarm.base is None and not alarm.best
    assert not any(name.startswith("alarm/") for name in trainer.callback_metrics)
    assert not module.policy._forward_hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "shout"}, "action='shout' must be 'warn' or 'stop'"),
        ({"threshold": 0.0}, "threshold=0.0 must be above 0"),
        ({"score_fall": -1.0}, "score_fall=-1.0 must be at least 0"),
        ({"norm_drift": -1.0}, "norm_drift=-1.0 must be above 0"),
        ({"least_diversity": 1.5}, "least_diversity=1.5 must be between 0 and 1"),
        ({"window": 0}, "window=0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HackingAlarm(**settings)
