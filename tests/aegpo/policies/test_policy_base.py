from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aegpo.entropy.tokens import TokenLayout
from aegpo.policies.base import Policy
from aegpo.policies.conditioning import Conditioning


class Linear(Policy):
    """prediction = weight * (latents + sigma + pooled); texts are numbers."""

    def __init__(self, guidance_scale: float = 1.0, max_batch: int = 64, decode_batch: int = 64):
        super().__init__(guidance_scale, max_batch, decode_batch)
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)
        self.calls: list[int] = []

    @property
    def denoiser(self) -> nn.Module:
        return self

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (1, 2, 2)

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        self.calls.append(len(latents))
        assert cond.pooled is not None
        return self.weight * (latents + (sigma + cond.pooled[:, 0])[:, None, None, None])

    def encode_texts(self, texts: list[str]) -> Conditioning:
        column = torch.tensor([float(text or "-1") for text in texts])[:, None]
        return Conditioning(embeds=column[:, :, None], pooled=column)

    def decode_latents(self, latents: Tensor) -> Tensor:
        self.calls.append(len(latents))
        return latents.expand(-1, 3, -1, -1)

    def sigmas(self, num_steps: int) -> Tensor:
        return torch.linspace(1, 0, num_steps + 1)

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        return TokenLayout(4, 1, True)

    def reference(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save_pretrained(self, folder: str | Path) -> None:
        raise NotImplementedError


def latents(n: int) -> Tensor:
    return torch.arange(4.0 * n).view(n, 1, 2, 2)


def test_forward_chunks_counts_and_keeps_order() -> None:
    policy = Linear(max_batch=2)
    sigma = torch.linspace(0.1, 1, 5)
    with policy.evaluations.charge("rollout"):
        prediction = policy(latents(5), sigma, policy.encode(["1", "2", "3", "4", "5"]))
    shift = (sigma + torch.arange(1.0, 6))[:, None, None, None]
    torch.testing.assert_close(prediction, 2 * (latents(5) + shift))
    assert policy.calls == [2, 2, 1]
    assert policy.evaluations.counts["rollout"] == 5


def test_guidance_by_hand() -> None:
    # cond 2 (x + s + 3), uncond 2 (x + s - 1): uncond + 4 (cond - uncond) = 2 (x + s - 1) + 32.
    policy = Linear(guidance_scale=4.0, max_batch=5)
    sigma = torch.full((3,), 0.5)
    prediction = policy(latents(3), sigma, policy.encode(["3"] * 3))
    torch.testing.assert_close(prediction, 2 * (latents(3) - 0.5) + 32)
    assert policy.calls == [4, 2], "max_batch=5 rows hold two samples of two rows"
    assert policy.evaluations.counts["other"] == 6 and policy.num_evaluations_per_sample == 2


def test_an_update_costs_three_evaluations_per_sample() -> None:
    policy = Linear()
    with policy.evaluations.charge("update"):
        policy(latents(4), torch.ones(4), policy.encode(["1"] * 4))
    assert policy.evaluations.total == 12


def test_half_precision_predictions_come_back_in_fp32() -> None:
    policy = Linear().to(torch.bfloat16)
    cond = Conditioning(torch.zeros(1, 1, 1), pooled=torch.zeros(1, 1, dtype=torch.bfloat16))
    prediction = policy(latents(1).bfloat16(), torch.ones(1, dtype=torch.bfloat16), cond)
    assert prediction.dtype == torch.float32


def test_no_rows_give_an_empty_prediction() -> None:
    policy = Linear()
    cond = policy.encode(["1"]).select(slice(0, 0))
    assert policy(latents(0), torch.zeros(0), cond).shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("rows", "sigma", "prompts"), [(2, 1, 2), (2, 2, 1), (1, 2, 2)], ids=["sigma", "cond", "x"]
)
def test_forward_refuses_rows_that_disagree(rows: int, sigma: int, prompts: int) -> None:
    policy = Linear()
    with pytest.raises(ValueError, match="one row per latent"):
        policy(latents(rows), torch.ones(sigma), policy.encode(["1"] * prompts))


def test_forward_refuses_other_latent_shapes() -> None:
    policy = Linear()
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\), expected \(n, 1, 2, 2\)"):
        policy(torch.zeros(1, 1, 4, 4), torch.ones(1), policy.encode(["1"]))


def test_guidance_needs_negative_rows() -> None:
    cond = Linear().encode(["1"])
    with pytest.raises(ValueError, match="needs conditioning with `negative`"):
        Linear(guidance_scale=2.0)(latents(1), torch.ones(1), cond)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale=0.5"),
        ({"max_batch": 0}, "max_batch=0"),
        ({"max_batch": 1, "guidance_scale": 2.0}, "2 rows with guidance"),
        ({"decode_batch": 0}, "decode_batch=0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Linear(**arguments)  # type: ignore[arg-type]


def test_encode_wants_a_list_of_texts() -> None:
    with pytest.raises(ValueError, match="needs a list of texts"):
        Linear().encode("a red circle")


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_no_texts_are_no_rows_of_the_usual_shape(guidance_scale: float) -> None:
    policy = Linear(guidance_scale=guidance_scale)
    nothing, one = policy.encode([]), policy.encode(["1"])
    assert len(nothing) == 0 and nothing.embeds.shape[1:] == one.embeds.shape[1:]
    assert (nothing.negative is None) == (one.negative is None)
    image = policy.decode(torch.zeros(1, 1, 2, 2))
    assert policy.decode(torch.zeros(0, 1, 2, 2)).shape == (0, *image.shape[1:])


def test_decode_chunks_clamps_and_has_no_gradient() -> None:
    policy = Linear(decode_batch=2)
    images = policy.decode(torch.tensor([-1.0, 0.25, 3.0])[:, None, None, None].expand(3, 1, 2, 2))
    assert policy.calls == [2, 1] and not images.requires_grad
    assert images[:, 0, 0, 0].tolist() == [0, 0.25, 1] and images.shape == (3, 3, 2, 2)


def test_only_trainable_tensors_travel() -> None:
    policy = Linear()
    assert policy.trainable_parameters() == [policy.weight]
    state = {name: tensor.clone() for name, tensor in policy.trainable_state_dict().items()}
    policy.weight.data.fill_(7)
    policy.load_trainable_state_dict(state)
    assert list(state) == ["weight"] and policy.weight.item() == 2 and policy.weight.requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "weight is missing"),
        ({"weight": torch.tensor(1.0), "frozen": torch.tensor(1.0)}, "frozen is not trainable"),
        ({"weight": torch.ones(2)}, r"weight has shape \(2,\), expected \(\)"),
    ],
)
def test_foreign_weights_are_refused(state: dict[str, Tensor], message: str) -> None:
    policy = Linear()
    with pytest.raises(ValueError, match=message):
        policy.load_trainable_state_dict(state)
    assert policy.weight.item() == 2
