"""Compiled blocks: one graph for all of a kind, kept while attention is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, Family
from torch import Tensor, nn
from torch._dynamo.utils import counters

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives.transition_samples import Replay
from aegpo.policies import StableDiffusion3
from aegpo.policies.speed.compiled_blocks import repeated_blocks
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import FlowSDE

PROMPTS = ["a red circle", "a blue square", "a green star"]
STEPS = 2


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often each graph ran; no kernel is compiled for it."""
    runs: list[int] = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        number = len(runs)
        runs.append(0)

        def run(*given: Any) -> Any:
            runs[number] += 1
            return graph.forward(*given)

        return run

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    yield runs
    torch._dynamo.reset()


def draw(policy: StableDiffusion3, prompts: int, observer: Any = None) -> Replay:
    """A rollout of one image a prompt with noise at its first step, as samples."""
    steps = torch.zeros(prompts, STEPS, dtype=torch.bool)
    steps[:, 0] = True
    schedule = ExplorationSchedule.from_mask(steps, 0.7)
    cond, sde, ones = policy.encode(PROMPTS[:prompts]), FlowSDE(), torch.ones(prompts).long()
    index = torch.arange(prompts)
    tree: RolloutTree = rollout(
        policy, sde, cond, schedule, ones, KeyedNoise(0), index, observer=observer
    )
    return Replay(policy, sde, cond, tree, schedule, torch.ones(prompts))


def iteration(policy: StableDiffusion3, prompts: int, observer: Any = None) -> None:
    """A rollout and its update."""
    samples = draw(policy, prompts, observer)
    samples.loss(torch.arange(prompts)).loss.sum().backward()


def test_blocks_are_compiled_once_also_while_some_are_watched(graphs: list[int]) -> None:
    policy = StableDiffusion3(
        "shapes", lora_rank=2, lora_seed=0, max_sequence_length=0, compile=True
    )
    iteration(policy, 3)
    # Of four blocks the last has no stream of text behind it, and into the first no gradient flows.
    assert graphs == [3 * STEPS, STEPS, 1, 2, 1]
    iteration(policy, 2)
    made = len(graphs)
    assert made <= 2 * 5  # another number of rows, from now on any

    recorder = EntropyRecorder(layers=["transformer_blocks.1.attn"])
    for _ in range(2):
        before = sum(graphs)
        with recorder.record(policy) as recording:
            draw(policy, 3, recording)
        assert sum(graphs) - before == 3 * STEPS  # all blocks but the watched one
        assert bool((recording.curve() > 0).all())
        iteration(policy, 3)
        iteration(policy, 2)
    with pytest.raises(KeyError), recorder.record(policy):
        raise KeyError
    iteration(policy, 3)
    assert counters["stats"]["unique_graphs"] == len(graphs) == made


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_blocks_that_repeat(family: Family) -> None:
    pipeline = family.pipeline()
    denoiser = getattr(pipeline, family.policy.denoiser_name)
    blocks = repeated_blocks(denoiser)
    assert blocks != [denoiser] and len(set(blocks)) == len(blocks)
    names = {type(block).__name__ for block in blocks}
    assert all("Block" in name for name in names), names
    assert repeated_blocks(nn.Linear(1, 1))[0].__class__ is nn.Linear
