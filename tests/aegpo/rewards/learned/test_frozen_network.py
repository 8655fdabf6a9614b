from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from aegpo.rewards.learned import frozen_network
from aegpo.rewards.learned.frozen_network import FrozenNetworkReward

CPU = torch.device("cpu")


class Brightness(FrozenNetworkReward):
    """Mean pixel times a weight, plus the prompt's length; counts its calls."""

    def load(self) -> nn.Module:
        torch.rand(7)  # as the random weights of a library would
        network = nn.Linear(1, 1, bias=False).to(self.dtype)
        nn.init.constant_(network.weight, 2)
        self.loads = getattr(self, "loads", 0) + 1
        self.batches: list[int] = []
        self.encoded: list[str] = []
        return network

    def encode_prompt(self, prompt: str) -> Tensor:
        self.encoded.append(prompt)
        return torch.tensor([float(len(prompt))])

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert images.dtype == torch.float32
        self.batches.append(len(images))
        means = images.mean(dim=(1, 2, 3), keepdim=True).flatten(1)
        return (self.network(means) + features).squeeze(1)


def test_batches_prompts_and_gradients() -> None:
    reward = Brightness(batch_size=2)
    reward.setup(CPU)
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = ["aa", "b", "aa", "aa", "b"]
    with torch.autocast("cpu", torch.bfloat16):
        scores = reward(images, prompts, [{}] * 5)
    lengths = torch.tensor([2.0, 1, 2, 2, 1])
    torch.testing.assert_close(scores, (2 * images.mean(dim=(1, 2, 3)) + lengths).detach())
    assert scores.dtype == torch.float32 and not scores.requires_grad
    assert reward.batches == [2, 2, 1] and reward.encoded == ["aa", "b"]
    reward(images, ["c", "b", "c", "b", "aa"], [{}] * 5)
    assert reward.encoded == ["aa", "b", "c"], "prompts are encoded once in a run"
    assert reward(images[:0], [], []).shape == (0,)


def test_the_oldest_prompts_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_network, "MAX_CACHED_PROMPTS", 2)
    reward = Brightness()
    reward.setup(CPU)
    scores = reward(torch.zeros(4, 3, 2, 2), ["a", "bb", "ccc", "a"], [{}] * 4)
    assert scores.tolist() == [1, 2, 3, 1] and reward.encoded == ["a", "bb", "ccc", "a"]


def test_values_beyond_the_range_and_broken_images() -> None:
    reward = Brightness(batch_size=4)
    reward.setup(CPU)
    images = torch.full((4, 3, 2, 2), 0.5)
    images[0] = 3.0
    images[1, 0, 0, 0] = float("nan")
    images[2, 2, 1, 1] = float("inf")
    scores = reward(images, [""] * 4, [{}] * 4)
    assert scores[[0, 3]].tolist() == [2.0, 1.0]
    assert scores.isnan().tolist() == [False, True, True, False]


def test_setup_loads_once_and_leaves_random_state_alone() -> None:
    reward = Brightness(dtype="bfloat16")
    with pytest.raises(RuntimeError, match=r"'brightness' has no network yet; call setup"):
        reward(torch.zeros(1, 3, 2, 2), ["a"], [{}])
    for copied in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        copied.setup(CPU)
        assert copied.network.weight.dtype == torch.bfloat16
    state = torch.get_rng_state()
    reward.setup(CPU)
    reward.setup(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert reward.loads == 1
    assert not reward.network.training and not reward.network.weight.requires_grad
    assert not isinstance(reward, nn.Module)


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("dtype", "int8")])
def test_refuses_settings(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{setting}={value!r}"):
        Brightness(**{setting: value})


@pytest.mark.slow
def test_the_package_imports_no_library_of_models() -> None:
    code = (
        "import sys, aegpo.rewards; "
        "print({'transformers', 'open_clip', 'torchvision', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
