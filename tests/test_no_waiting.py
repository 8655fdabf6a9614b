"""Rollout and update run ahead of a device: in no step the host waits for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from counted_device import NAME, Apart, counted
from tiny_families import FAMILIES, Family

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.objectives import Experience, PolicyGradient
from aegpo.policies import StableDiffusion3
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout import RolloutTree, rollout
from aegpo.samplers import AdamsBashforth, Sampler
from aegpo.sde import FlowSDE
from lightning_modules.training.optimizer_step import optimizer_step

AHEAD = [family for family in FAMILIES if family.name != "ZImage"]
"""Z-Image is given a list of texts, each cut to its length, which has to be read in every call."""
THEIRS = "transformer_qwenimage.py:169"
"""diffusers' own: the length of the text, as a number that it makes a tensor of in every call."""
TEXTS = ["a red circle", "two blue stars"]
INDEX, SIZES = torch.tensor([7, 3]), torch.tensor([2, 4])


def schedule(num_steps: int) -> ExplorationSchedule:
    """All steps but the last draw noise, and trees split at the first."""
    noisy = torch.ones(2, num_steps, dtype=torch.bool)
    noisy[:, -1] = False
    chains = ExplorationSchedule.from_mask(noisy, 0.5)
    branching = torch.ones(2, num_steps, dtype=torch.int64)
    branching[:, 0] = 2
    return ExplorationSchedule(chains.eta, branching)


def draw(
    policy: DiffusersPolicy,
    cond: Conditioning,
    num_steps: int,
    sampler: Sampler | None = None,
) -> RolloutTree:
    with EntropyRecorder(rows=4).record(policy) as recording:
        return rollout(
            policy,
            FlowSDE(),
            cond,
            schedule(num_steps),
            SIZES,
            KeyedNoise(0),
            INDEX,
            sampler=sampler,
            decode=False,
            observer=recording,
        )


@pytest.mark.parametrize("family", AHEAD, ids=lambda family: family.name)
def test_no_step_of_a_rollout_waits(family: Family, tmp_path: Path) -> None:
    family.pipeline().save_pretrained(tmp_path)
    policy = family.policy(**family.arguments(tmp_path, lora_rank=4, lora_seed=1, **family.guided))
    cond = policy.encode(TEXTS)
    plain = draw(policy, cond, 2)
    with counted(policy.trained) as waits:
        there = cond.to(NAME)
        waits.found.clear()
        tree = draw(policy, there, 2)
        short = Counter(waits.found)
        waits.found.clear()
        draw(policy, there, 3)
    assert isinstance(tree.latents, Apart)
    torch.testing.assert_close(tree.latents.held, plain.latents)
    per_step = {at: n for at, n in (waits.found - short).items() if not at.endswith(THEIRS)}
    assert not per_step, f"a step more makes the host wait: {per_step}"


def test_no_step_of_a_sampler_waits(tiny_sd3_folder: Path) -> None:
    policy = tiny(tiny_sd3_folder)
    cond = policy.encode(TEXTS)
    with counted(policy.trained) as waits:
        there = cond.to(NAME)
        draw(policy, there, 4, AdamsBashforth())
        short = Counter(waits.found)
        waits.found.clear()
        draw(policy, there, 6, AdamsBashforth())
    assert not waits.found - short, dict(waits.found - short)
    assert sum(waits.found.values()) == 1, dict(waits.found)  # are the latents finite?


def test_an_update_reads_once_an_optimizer_step(tiny_sd3_folder: Path) -> None:
    policy = tiny(tiny_sd3_folder)
    cond = policy.encode(TEXTS)
    with counted(policy.trained) as waits:
        there = cond.to(NAME)
        tree = draw(policy, there, 4)
        rewards = Apart(torch.linspace(-1, 1, len(tree)))
        samples = PolicyGradient(kl_coeff=0.1).samples(
            Experience(
                *(policy, FlowSDE(), there, tree, schedule(4), rewards, rewards),
                *(INDEX, KeyedNoise(0)),
            )
        )
        first, second = samples.split(INDEX, 2, KeyedNoise(0))
        waits.found.clear()
        samples.rescore(list(second.split(2)))
        for which in first.split(2):
            samples.first_loss(which).loss.sum().backward()
        losses = [samples.loss(which).loss for which in second.split(2)]
        torch.cat(losses).sum().backward()
        assert not waits.found, f"an update makes the host wait: {dict(waits.found)}"
        weights = policy.trainable_parameters()
        optimizer = torch.optim.AdamW(weights, foreach=False)
        taken = optimizer_step(optimizer, weights, 1.0, torch.cat(losses).detach())
        assert taken.taken and taken.norm > 0
        assert sum(waits.found.values()) == 1, dict(waits.found)


def test_what_makes_the_host_wait_is_found() -> None:
    with counted() as waits:
        there = torch.ones(3).to(NAME, non_blocking=True)
        there[there.new_zeros(2, dtype=torch.int64)].add_(1)
        assert not waits.found
        ways = [
            lambda: torch.ones(3).to(NAME),
            lambda: there.cpu(),
            lambda: bool(there.sum() > 0),
            lambda: there[there > 0],
            lambda: there.nonzero(),
            lambda: there.isfinite().all().item(),
            lambda: there.copy_(torch.ones(3)),
        ]
        for number, way in enumerate(ways):
            way()
            assert sum(waits.found.values()) > number, f"way {number} is not seen"


def tiny(folder: Path) -> StableDiffusion3:
    """A small policy that no other test has."""
    return StableDiffusion3(
        str(folder), lora_rank=4, lora_seed=1, max_sequence_length=8, sigma_spacing="uniform"
    )
