"""The gradient of guidance through the conditional prediction alone: value, calls, memory."""

from __future__ import annotations

import policy_contract as contract
import pytest
import torch
from tiny_families import FAMILIES, Family
from torch import Tensor

from aegpo.planning.stand_in import StandInPolicy
from aegpo.policies.base import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy

GUIDED = [family for family in FAMILIES if family.guided]


@pytest.fixture(scope="module", params=GUIDED, ids=lambda family: family.name)
def policy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusersPolicy:
    """A guided policy of each family, its adapters moved."""
    family: Family = request.param
    made = family.built(
        tmp_path_factory.mktemp(family.name),
        **{"lora_rank": 4, "lora_seed": 1, "guidance_gradient": "conditional", **family.guided},
    )
    contract.shake(made)
    return made


def gradient(policy: DiffusersPolicy, prediction: Tensor) -> Tensor:
    """That of some loss by all that is trained, (number of weights,)."""
    weights = policy.trainable_parameters()
    # No loss of the lengths alone, which Qwen-Image's guidance takes from one branch.
    loss = (prediction * contract.start_noise(policy)).sum()
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(weight).flatten() if one is None else one.flatten()
            for one, weight in zip(found, weights, strict=True)
        ]
    )


def test_the_prediction_stays_and_the_gradient_is_that_of_one_branch(
    policy: DiffusersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, sigma, cond = contract.inputs(policy)
    with torch.no_grad():
        drawn = policy(latents, sigma, cond)  # as a rollout does, in one doubled call

    calls: list[tuple[int, bool]] = []
    predict = policy.predict

    def watched(latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        calls.append((len(latents), torch.is_grad_enabled()))
        return predict(latents, sigma, cond)

    monkeypatch.setattr(policy, "predict", watched)
    spent = sum(policy.evaluations.counts.values())
    prediction = policy(latents, sigma, cond)
    assert calls == [(3, True), (3, False)]
    assert sum(policy.evaluations.counts.values()) - spent == 2 * 3
    # Up to what a kernel makes of another number of rows, as between any two chunks.
    contract.assert_close(prediction.detach(), drawn, 1e-5 * float(drawn.abs().max()))

    assert cond.negative is not None
    text = Conditioning(cond.embeds, cond.pooled, cond.mask)
    both = Conditioning.cat([text, cond.negative])
    twice = predict(torch.cat([latents, latents]), torch.cat([sigma, sigma]), both).float()
    conditional, unconditional = twice.chunk(2)
    own = gradient(policy, prediction)
    expected = gradient(policy, policy.guide(conditional, unconditional.detach()))
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    monkeypatch.setattr(policy, "guidance_gradient", "both")
    whole = gradient(policy, policy(latents, sigma, cond))
    assert float((whole - own).norm() / whole.norm()) > 0.05  # it is another gradient


def test_what_autograd_keeps_is_halved(policy: DiffusersPolicy) -> None:
    kept = {}
    weights = {weight.data_ptr() for weight in policy.parameters()}
    for branches in ("conditional", "both"):
        policy.guidance_gradient = branches
        seen: dict[int, int] = {}

        def keep(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            if tensor.data_ptr() not in weights:
                seen[id(tensor.untyped_storage())] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy(*contract.inputs(policy))
        kept[branches] = sum(seen.values())
    policy.guidance_gradient = "conditional"
    assert kept["conditional"] < 0.6 * kept["both"]


@pytest.mark.parametrize(
    ("branches", "message"),
    [("conditional", "which is off"), ("unconditional", "choose both or conditional")],
)
def test_what_has_no_meaning_is_refused(branches: str, message: str) -> None:
    class Plain(StandInPolicy):
        def __init__(self) -> None:
            super(StandInPolicy, self).__init__(guidance_gradient=branches)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=message):
        Plain()
