"""Rewards in chunks beside the rollout, by part, and among a group, in a real training."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import Redness, entropy_callbacks, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.advantages import PerReward
from aegpo.objectives import DepthCredit, LeafCredit
from aegpo.rewards.base import Reward
from aegpo.rewards.group import GroupDiversity
from aegpo.rewards.jpeg import JpegCompressibility
from aegpo.rewards.weighted_sum import WeightedSum
from lightning_modules.aegpo_module import AEGPOModule


class Slow(Redness):
    """Waits as a remote judge does, and remembers who called it and when."""

    name = "slow"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, int, float, float]] = []

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        start = time.perf_counter()
        time.sleep(self.seconds)
        scores = super().__call__(images, prompts, metadata)
        thread = threading.current_thread().name
        self.calls.append((thread, len(images), start, time.perf_counter()))
        return scores


def trained(folder: Path, tmp_path: Path, **settings: Any) -> tuple[AEGPOModule, dict[str, float]]:
    module = tiny_module(folder, **settings)
    trainer = tiny_trainer(tmp_path, entropy_callbacks(), max_epochs=1, limit_val_batches=0)
    trainer.fit(module, tiny_data(tmp_path))
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def weights(module: AEGPOModule) -> dict[str, Tensor]:
    return module.policy.trainable_state_dict()


@pytest.fixture(scope="module")
def in_one(
    tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AEGPOModule, dict[str, float]]:
    """A training whose images are scored in one call."""
    reward = WeightedSum([Redness(), JpegCompressibility()])
    return trained(tiny_sd3_folder, tmp_path_factory.mktemp("in_one"), reward=reward)


@pytest.mark.parametrize("chunks", [3, 9])
def test_chunks_train_the_same_policy(
    in_one: tuple[AEGPOModule, dict[str, float]],
    tiny_sd3_folder: Path,
    tmp_path: Path,
    chunks: int,
) -> None:
    whole, expected = in_one
    reward = WeightedSum([Slow(), JpegCompressibility()])
    module, metrics = trained(tiny_sd3_folder, tmp_path, reward=reward, overlap_chunks=chunks)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(module)[name], value, rtol=0, atol=2e-4)
    assert metrics["reward/mean"] == pytest.approx(expected["reward/mean"], abs=1e-4)
    part = "reward/part/jpeg_compressibility"
    assert metrics[part] == pytest.approx(expected[part], abs=1e-3)
    slow = reward.rewards[0]
    assert isinstance(slow, Slow)
    assert {thread.rpartition("_")[0] for thread, *_ in slow.calls} == {"reward"}
    # Four prompts an iteration, two iterations; a chunk is at least one prompt.
    assert len(slow.calls) == 2 * min(chunks, 4)
    assert sum(images for _, images, *_ in slow.calls) == 2 * 12


def test_a_chunk_is_scored_while_the_next_one_is_drawn(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    reward, drawn = Slow(seconds=0.3), []
    module = tiny_module(tiny_sd3_folder, reward=reward, overlap_chunks=4)
    original = module.scoring.draw_and_score

    def draw(rollout: Any, batch: Any) -> Any:
        def watched(rows: Tensor) -> Any:
            drawn.append(time.perf_counter())
            return rollout(rows)

        return original(watched, batch)

    module.scoring.draw_and_score = draw  # type: ignore[method-assign]
    tiny_trainer(tmp_path, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(
        module, tiny_data(tmp_path)
    )
    _, _, start, end = reward.calls[0]
    assert start < drawn[-1], "later chunks were drawn only after the first one had been scored"
    assert any(start <= moment < end for moment in drawn[1:])


def test_one_chunk_that_fails_costs_its_images_only(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    class Flaky(Redness):
        name = "flaky"

        def __init__(self) -> None:
            self.seen: list[str] = []

        def __call__(self, images: Tensor, prompts: list[str], *args: Any) -> Tensor:
            """Fails on the second prompt of every iteration of four, however often it is asked."""
            self.seen += [] if prompts[0] in self.seen else [prompts[0]]
            if self.seen.index(prompts[0]) % 4 == 1:
                raise ConnectionError("the judge is away")
            return super().__call__(images, prompts, *args)

    with pytest.warns(UserWarning, match="the judge is away"):
        _, metrics = trained(
            tiny_sd3_folder, tmp_path, reward=WeightedSum([Flaky()]), overlap_chunks=4
        )
    assert 2 <= metrics["reward/missing"] <= 4 and metrics["reward/mean"] == metrics["reward/mean"]


def test_recorded_rollouts_cannot_be_drawn_in_chunks(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    module = tiny_module(tiny_sd3_folder, overlap_chunks=2)
    with pytest.raises(ValueError, match="overlap_chunks=2 draws in parts"):
        tiny_trainer(tmp_path, entropy_callbacks(source="rollouts"), max_epochs=1).fit(
            module, tiny_data(tmp_path)
        )
    with pytest.raises(ValueError, match="overlap_chunks=0"):
        tiny_module(tiny_sd3_folder, overlap_chunks=0)


def test_per_reward_advantages_train_and_need_parts(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    def sum_of_both() -> Reward:
        return WeightedSum([Redness(), JpegCompressibility()], [1.0, 1.0])

    module, _ = trained(tiny_sd3_folder, tmp_path, reward=sum_of_both(), advantage=PerReward())
    summed, _ = trained(tiny_sd3_folder, tmp_path, reward=sum_of_both())
    assert any(
        not torch.equal(weights(module)[name], value) for name, value in weights(summed).items()
    )
    assert all(value.isfinite().all() for value in weights(module).values())
    with pytest.raises(ValueError, match="PerReward compares the parts"):
        tiny_module(tiny_sd3_folder, advantage=PerReward())
    with pytest.raises(
        ValueError, match=r"DepthCredit compares their sum anew .* use .*LeafCredit"
    ):
        tiny_module(
            tiny_sd3_folder, reward=sum_of_both(), advantage=PerReward(), credit=DepthCredit()
        )
    tiny_module(tiny_sd3_folder, reward=sum_of_both(), advantage=PerReward(), credit=LeafCredit())


def test_a_groupwise_reward_trains_and_is_not_measured_on_single_images(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    module = tiny_module(
        tiny_sd3_folder, reward=GroupDiversity(), evaluation_rewards=[Redness()], overlap_chunks=2
    )
    trainer = tiny_trainer(tmp_path, [], max_epochs=1)
    trainer.fit(module, tiny_data(tmp_path))
    names = set(trainer.callback_metrics)
    assert "val/redness" in names and not any("diversity" in name for name in names)
    assert float(trainer.callback_metrics["reward/missing"]) == 0
