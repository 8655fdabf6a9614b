"""What holds for every learned reward, on random networks of the real classes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from tiny_rewards import BUILDERS, PROMPTS, pil_images, tiny_images
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from aegpo.rewards.learned.frozen_network import FrozenNetworkReward

CPU = torch.device("cpu")
METADATA: list[dict] = [{}] * 5


@pytest.fixture(scope="module", params=list(BUILDERS))
def reward(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FrozenNetworkReward:
    reward = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    assert isinstance(reward, FrozenNetworkReward)
    # DDP and the sanity check copy what a configuration made.
    reward = pickle.loads(pickle.dumps(copy.deepcopy(reward)))
    reward.setup(CPU)
    return reward


def test_scores_tell_images_apart_but_not_batches(reward: FrozenNetworkReward) -> None:
    images = tiny_images()
    together = reward(images, PROMPTS, METADATA)
    assert together.shape == (5,) and together.dtype == torch.float32
    assert together.std() > 0.05
    if reward.range is not None:
        assert reward.range[0] <= together.min() and together.max() <= reward.range[1]
    again = copy.copy(reward)
    again.batch_size = 2
    order = [4, 2, 0, 3, 1]
    shuffled = again(images[order], [PROMPTS[i] for i in order], METADATA)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=2e-5)
    alone = torch.cat([reward(images[i : i + 1], [PROMPTS[i]], [{}]) for i in range(len(images))])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-5)


def test_prompts_matter_where_they_should(reward: FrozenNetworkReward) -> None:
    images = tiny_images()
    own = reward(images, PROMPTS, METADATA)
    other = reward(images, PROMPTS[1:] + PROMPTS[:1], METADATA)
    assert torch.equal(own, other) == (reward.name == "aesthetic_v2")


def test_rounding_to_8_bits_changes_little(reward: FrozenNetworkReward) -> None:
    noise = torch.rand(5, 3, 44, 62, generator=torch.Generator().manual_seed(5))
    images = (tiny_images() + (noise - 0.5) / 255).clamp(0, 1)
    rounded = torch.stack([to_tensor(image) for image in pil_images(images)])
    assert not torch.equal(images, rounded)
    scores = reward(images, PROMPTS, METADATA)
    difference = (scores - reward(rounded, PROMPTS, METADATA)).abs().max()
    assert 0 < difference < 0.05 * scores.std()


def test_a_broken_image_is_missing_alone(reward: FrozenNetworkReward) -> None:
    images = tiny_images()
    whole = reward(images, PROMPTS, METADATA)
    images[1, 0, 3, 3] = float("nan")
    scores = reward(images, PROMPTS, METADATA)
    assert scores.isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(scores[2:], whole[2:])


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_bfloat16_is_close(kind: str, tmp_path: Path) -> None:
    def scored(dtype: torch.dtype) -> Tensor:
        reward = BUILDERS[kind](tmp_path)
        reward.dtype = dtype
        reward.setup(CPU)
        return reward(tiny_images(), PROMPTS, METADATA)

    exact, coarse = scored(torch.float32), scored(torch.bfloat16)
    assert 0 < (exact - coarse).abs().max() < 0.3 * exact.std()
