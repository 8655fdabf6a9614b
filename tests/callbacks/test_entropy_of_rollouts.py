"""The probe that reads the rollouts: whose entropy, against which reference, when, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probe_by_hand import TRAINER, batch, probe, shake
from tiny_training import entropy_callbacks, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.allocation import UniformAllocator
from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule, FixedSteps
from aegpo.rollout import rollout
from aegpo.sde import FlowSDE
from aegpo.training import Iteration
from lightning_modules.training.decision import Decision

STEPS = 5
STOCHASTIC = torch.tensor([[True, False, True, False, False]])


@pytest.fixture
def module(tiny_sd3_folder: Path) -> Any:
    module = tiny_module(tiny_sd3_folder)
    module.configure_model()
    return module


def visit(
    own: Any, module: Any, rows: tuple[int, ...], images: int = 3, branching: int = 1
) -> list[Tensor]:
    """One iteration without its update; returns what the policy was given at each step."""
    seen: list[Tensor] = []
    prompts = batch(*rows)
    own.on_train_batch_start(TRAINER, module, prompts, 0)
    hook = module.policy.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    schedule = ExplorationSchedule.from_mask(STOCHASTIC.repeat(len(rows), 1), 0.7, branching)
    sizes = torch.full((len(rows),), images)
    noise = module.noise.at(module.iteration)
    decision = Decision(noise, schedule, sizes, torch.arange(len(rows)))
    tree = module.explore(prompts, module.encode(prompts), decision).tree
    hook.remove()
    module.last = Iteration(prompts, schedule, sizes, tree, torch.zeros(len(tree)))
    module.iteration += 1
    own.on_train_batch_end(TRAINER, module, None, prompts, 0)
    return seen


def entropy_of(module: Any, latents: Tensor, step: int, row: int) -> float:
    """Entropy of a single latent at a step, from a call of the policy by itself."""
    policy = module.policy
    cond = policy.encode(batch(row).prompts)
    with EntropyRecorder(rows=None).record(policy) as recording, torch.no_grad():
        recording.begin(0, torch.tensor([0]), policy.token_layout(cond))
        policy(latents[None], policy.sigmas(STEPS)[step, None], cond)
    return float(recording.curve())


def test_a_prompt_s_entropy_is_the_mean_over_its_images(module: Any) -> None:
    own = probe(source="rollouts")
    shake(module)
    seen = visit(own, module, (4, 9), images=4, branching=2)
    # Splits at steps 0 and 2: where each of a prompt's four images comes from, level by level.
    ancestors = [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
    for number, row in enumerate((4, 9)):
        curve = torch.empty(STEPS)
        for step, nodes in enumerate(ancestors):
            first = number * len(set(nodes))
            values = [entropy_of(module, seen[step][first + node], step, row) for node in nodes]
            curve[step] = torch.tensor(values).mean()
        torch.testing.assert_close(own.last[row][0], curve, rtol=0, atol=1e-5)
    assert module.policy.evaluations.counts["probe"] == 0


def test_delta_is_the_distance_to_the_base_at_the_same_noisy_steps(module: Any) -> None:
    own = probe(source="rollouts", trajectories=2)
    shake(module)
    visit(own, module, (4, 9), images=4, branching=2)
    visit(own, module, (4,))
    assert module.policy.evaluations.counts["reference"] == 2 * 2 * STEPS  # once per prompt
    policy, prompts = module.policy, batch(9)
    with policy.reference(), EntropyRecorder(rows=None).record(policy) as recording:
        rollout(
            policy,
            FlowSDE(),
            policy.encode(prompts.prompts),
            ExplorationSchedule.from_mask(STOCHASTIC, 0.7),  # two chains for the tree
            torch.tensor([2]),
            module.noise.fixed(),
            prompts.index,
            decode=False,
            observer=recording,
        )
    base = recording.curve()[0]
    torch.testing.assert_close(own.reference[9], base, rtol=0, atol=1e-6)
    curve, delta = own.last[9]
    assert float(delta) > 1e-4
    assert float(delta) == pytest.approx(float((curve - base).abs().mean()), rel=1e-3)


def test_the_reading_comes_one_visit_late(module: Any) -> None:
    own = probe(source="rollouts")
    visit(own, module, (4, 9))
    assert module.entropy is None  # this decided the first rollout
    first = {row: own.last[row][0] for row in (4, 9)}
    shake(module)
    visit(own, module, (9, 2))
    assert torch.equal(module.entropy.curve[0], first[9])
    unseen = (first[4] + first[9]) / 2
    torch.testing.assert_close(module.entropy.curve[1], unseen)
    assert not torch.allclose(own.last[9][0], first[9], atol=1e-4)
    visit(own, module, (9,))
    assert not torch.equal(module.entropy.curve[0], first[9])


def test_between_two_readings_nothing_is_recorded(module: Any) -> None:
    own = probe(source="rollouts", every_n_iterations=2)
    visit(own, module, (4,))
    visit(own, module, (9,))
    assert list(own.last) == [4] and module.recording is None


def test_recording_leaves_the_run_as_it_was_bit_for_bit(
    tmp_path: Path, tiny_sd3_folder: Path
) -> None:
    modules = []
    for callbacks in ([], entropy_callbacks(source="rollouts")[:1]):
        # A KL runs the base under no_grad inside the step: not a part of the rollout either.
        fixed = {"step_selector": FixedSteps([0, 1]), "allocator": UniformAllocator(3)}
        fixed["kl_coeff"] = 0.1
        modules.append(tiny_module(tiny_sd3_folder, lr=1e-2, **fixed))
        trainer = tiny_trainer(tmp_path, callbacks, limit_val_batches=0)
        trainer.fit(modules[-1], tiny_data(tmp_path))
    plain, watched = modules
    assert torch.equal(plain.last.tree.latents, watched.last.tree.latents)
    for one, other in zip(
        plain.policy.trainable_parameters(), watched.policy.trainable_parameters(), strict=True
    ):
        assert torch.equal(one, other)
    spent, before = watched.policy.evaluations.counts, plain.policy.evaluations.counts
    prompts = len(callbacks[0].reference)
    assert spent["reference"] - before["reference"] == prompts * STEPS
    assert (spent["probe"], spent["rollout"]) == (0, before["rollout"])


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="source='rollout' is unknown; use 'trajectory'"):
        probe(source="rollout")
