"""Query rows by what they cost beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_pipelines import tiny_sd3
from toy_policy import ToyPolicy

from aegpo.entropy import EntropyRecorder, Recording
from aegpo.entropy.cost import LOGIT, Budget, forward_operations
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies import StableDiffusion3
from aegpo.rollout import rollout
from aegpo.sde import ODE


@pytest.fixture(scope="module")
def policy(tiny_sd3_folder: Path) -> StableDiffusion3:
    return StableDiffusion3(str(tiny_sd3_folder), lora_rank=4, lora_seed=0, max_sequence_length=0)


def record(policy: StableDiffusion3, recorder: EntropyRecorder) -> Recording:
    cond = policy.encode(["a red circle", "a blue star"])
    schedule = ExplorationSchedule.deterministic(2, 2)
    with recorder.record(policy) as recording:
        rollout(
            *(policy, ODE(), cond, schedule, torch.tensor([1, 2]), KeyedNoise(0)),
            *(torch.tensor([3, 5]),),
            decode=False,
            observer=recording,
        )
    return recording


def test_a_linear_layer_costs_two_operations_a_weight_and_token(policy: StableDiffusion3) -> None:
    once = forward_operations(policy)
    before = dict(policy.evaluations.counts)
    assert forward_operations(policy) == once and policy.evaluations.counts == before
    model = tiny_sd3().transformer
    blocks = [
        weight.numel()
        for name, weight in model.transformer_blocks.named_parameters()
        if weight.dim() == 2 and "norm1" not in name
    ]
    text = policy.blank_conditioning(1).embeds.shape[1]
    fewest = min(text, policy.num_image_tokens)
    assert once > 2 * sum(blocks) * fewest


def test_rows_are_what_the_bound_pays_for(
    policy: StableDiffusion3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside so small a model a logit at its real cost would pay for no row.
    monkeypatch.setitem(LOGIT, "cpu", 2.0)
    exact = record(policy, EntropyRecorder(tokens="all_to_all", rows=None))
    layers, config = policy.attention_layers(), policy.trained.config
    tokens = policy.num_image_tokens + policy.blank_conditioning(1).embeds.shape[1]
    row = config.num_attention_heads * tokens * (2 * config.attention_head_dim + 2)
    for rows in (1, 3):
        share = (rows + 0.5) * row * len(layers) / forward_operations(policy)
        bounded = EntropyRecorder(tokens="all_to_all", rows=None, cost_bound=share)
        given = EntropyRecorder(tokens="all_to_all", rows=rows)
        assert bounded.affordable == ""
        assert torch.equal(record(policy, bounded).curve(), record(policy, given).curve())
        assert bounded.affordable.startswith(f"{rows} query rows a head in {len(layers)} layers")
        assert not torch.equal(record(policy, bounded).curve(), exact.curve())


def test_a_layer_reads_one_row_at_least_and_no_more_than_rows(policy: StableDiffusion3) -> None:
    least = EntropyRecorder(rows=None, cost_bound=1e-12)
    assert torch.equal(
        record(policy, least).curve(), record(policy, EntropyRecorder(rows=1)).curve()
    )
    one = EntropyRecorder(rows=1, cost_bound=0.9)
    assert torch.equal(record(policy, one).curve(), record(policy, EntropyRecorder(rows=1)).curve())


@pytest.mark.parametrize("bound", [0.0, 1.0, -0.1, float("nan")])
def test_the_bound_is_a_share(bound: float) -> None:
    with pytest.raises(ValueError, match=r"cost_bound is .*; give a share"):
        EntropyRecorder(cost_bound=bound)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cost_bound=0.01 is .*; set rows instead"):
        Budget(0.01, cast("Any", ToyPolicy()), 1)
