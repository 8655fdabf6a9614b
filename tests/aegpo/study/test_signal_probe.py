"""The measurements on the tiny pipeline."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from tiny_training import PROMPTS, Redness

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import EntropyPeaks, ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.prompts import PromptBatch
from aegpo.rollout import rollout
from aegpo.sde import ODE, FlowSDE
from aegpo.study.rank_correlation import spearman
from aegpo.study.signal_probe import ALL_LAYERS, SignalProbe
from aegpo.study.signal_tables import prompt_table, step_table
from aegpo.study.step_trials import group_spread, mean_cosine, single_step_groups

T, G, M = 4, 3, 2
SETS = ("all_to_all", "image_to_all", "image_to_text", "image_to_image", "text_to_image")
BATCH = PromptBatch(PROMPTS[:3], torch.tensor([5, 7, 9]), [{}, {}, {}])


@pytest.fixture(scope="module")
def policy(tiny_sd3_folder: Path) -> StableDiffusion3:
    """The tiny pipeline with adapters that do something."""
    policy = StableDiffusion3(str(tiny_sd3_folder), lora_rank=4, max_sequence_length=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def probe(policy: StableDiffusion3, batch: PromptBatch = BATCH, **settings: object) -> SignalProbe:
    parts = {"images": G, "trajectories": M, "rows": None} | settings
    selector = EntropyPeaks(top_k=2)
    noise = KeyedNoise(3)
    return SignalProbe(policy, FlowSDE(), Redness(), selector, batch, noise, T, **parts)


def test_only_one_step_is_stochastic_and_the_start_is_shared(policy: StableDiffusion3) -> None:
    spread = probe(policy).step_trials()[0]
    assert spread.shape == (3, T - 1)
    for step in range(T - 1):
        eta = torch.zeros(1, T)
        eta[:, step] = 0.7
        tree = rollout(
            policy,
            FlowSDE(),
            policy.encode(PROMPTS[1:2]),
            ExplorationSchedule(eta, torch.ones(1, T, dtype=torch.int64)),
            torch.tensor([G]),
            KeyedNoise(3).fixed().apart("steps"),
            torch.tensor([7]),
            shared_start=True,
        )
        rewards = Redness()(tree.images, [], [])
        assert float(spread[1, step]) == pytest.approx(float(rewards.std()), rel=1e-3)
        assert float(rewards.std()) > 0


def test_curves_are_those_of_the_recorder(policy: StableDiffusion3) -> None:
    curves = probe(policy).curves("the policy", "probe", {})
    names = [name for name, _ in policy.attention_layers()]
    assert list(curves) == [(tokens, name) for tokens in SETS for name in (ALL_LAYERS, *names)]
    layers = torch.stack([curves["text_to_image", name] for name in names])
    assert torch.equal(curves["text_to_image", ALL_LAYERS], layers.mean(dim=0))
    recorder = EntropyRecorder(tokens="text_to_image", rows=None)
    index = torch.tensor([7 * M, 7 * M + 1])  # both trajectories of the second prompt
    with recorder.record(policy) as recording:
        schedule = ExplorationSchedule.deterministic(2, T)
        cond = policy.encode(PROMPTS[1:2] * 2)
        sizes = torch.ones(2, dtype=torch.int64)
        noise = KeyedNoise(3).fixed().apart("entropy")
        rollout(policy, ODE(), cond, schedule, sizes, noise, index, observer=recording)
    torch.testing.assert_close(
        curves["text_to_image", ALL_LAYERS][1].float(), recording.curve(), rtol=1e-4, atol=1e-5
    )


def test_evaluations_are_what_the_trials_need(policy: StableDiffusion3) -> None:
    signals = probe(policy).measure(trained=True)
    # Single steps: the prefix once, then G images; groups of training and before, T each.
    trials = sum(step + 1 + G * (T - 1 - step) for step in range(T - 1))
    assert signals.evaluations == {
        "rollout": 3 * (trials + 2 * G * T),
        "probe": 5 * 3 * M * T,
        "reference": 5 * 3 * M * T,
        "update": 0,
        "validation": 2 * 3 * G * T,
        "other": 0,
    }


def test_the_base_has_no_second_table_and_costs_nothing_for_it(policy: StableDiffusion3) -> None:
    signals = probe(policy).measure(trained=False)
    assert signals.reference_curves is None and signals.gains is None
    assert signals.evaluations["reference"] == signals.evaluations["validation"] == 0
    assert prompt_table(signals) is None
    assert len(step_table(signals, 2).rows) == 5 * 3  # two layers, and all of them


def test_a_trained_policy_is_compared_with_the_reference(policy: StableDiffusion3) -> None:
    signals = probe(policy).measure(trained=True)
    assert signals.gains is not None and signals.before_curves is None
    assert float(signals.gains.abs().min()) > 0
    table = prompt_table(signals)
    assert table is not None and all(row.mean > 0 for row in table[2:])


def test_a_checkpoint_against_itself_gains_nothing(policy: StableDiffusion3) -> None:
    own = {name: value.clone() for name, value in policy.trainable_state_dict().items()}
    signals = probe(policy).measure(trained=True, before=own)
    assert signals.gains is not None and not signals.gains.any()
    assert signals.before_curves is not None
    for key, curve in signals.curves.items():
        assert torch.equal(curve, signals.before_curves[key])
    assert torch.equal(signals.groups, signals.before_groups)


def test_the_policy_is_left_as_it_was_also_after_a_failure(policy: StableDiffusion3) -> None:
    own = {name: value.clone() for name, value in policy.trainable_state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in own.items()}
    gained = probe(policy).measure(trained=True, before=zeros).gains
    base = probe(policy).measure(trained=True).gains
    torch.testing.assert_close(gained, base)  # adapters of zeros are the reference

    class Broken(SignalProbe):
        def groups(self, whose: str) -> torch.Tensor:
            if whose == "the earlier checkpoint":
                raise RuntimeError("interrupted")
            return super().groups(whose)

    selector, noise = EntropyPeaks(top_k=2), KeyedNoise(3)
    broken = Broken(policy, FlowSDE(), Redness(), selector, BATCH, noise, T, images=2)
    with pytest.raises(RuntimeError, match="interrupted"):
        broken.measure(trained=True, before=zeros)
    for name, value in policy.trainable_state_dict().items():
        assert torch.equal(value, own[name])


def test_prompts_that_do_not_differ_correlate_with_nothing(policy: StableDiffusion3) -> None:
    # One text many times over: what is left between the rows is their noise. Whatever was measured
    # with the same noise would go together, and two groups were: +.62.
    count = 160
    batch = PromptBatch(PROMPTS[:1] * count, torch.arange(count), [{}] * count)
    alike = SignalProbe(
        policy,
        FlowSDE(),
        Redness(),
        EntropyPeaks(top_k=1, eta=0.3),
        batch,
        KeyedNoise(3),
        T,
        images=2,
        trajectories=2,
        rows=None,
    )
    groups, images = alike.groups("the policy"), alike.final_rewards("the policy")
    curves = alike.curves("the policy", "probe", dict.fromkeys(SETS[1:], "not needed"))
    steps = alike.step_trials()[0]
    entropy = curves[SETS[0], ALL_LAYERS].mean(dim=(1, 2))
    measured = {
        "group mean": groups.mean(1),
        "group spread": group_spread(groups),
        "image mean": images.mean(1),
        "image spread": group_spread(images),
        "entropy": entropy,
        **{f"spread of step {step}": steps[:, step] for step in range(T - 1)},
    }
    apart = [name.split()[0] for name in measured]
    found = {
        (one, other): spearman(measured[one], measured[other])
        for (one, first), (other, second) in combinations(zip(measured, apart, strict=True), 2)
        if first != second
    }
    worst = max(found, key=lambda pair: abs(found[pair]))
    assert abs(found[worst]) < 4 / (count - 1) ** 0.5, (worst, found[worst])  # four errors


def test_too_little_to_correlate_is_refused(policy: StableDiffusion3) -> None:
    for settings in ({"images": 1}, {"trajectories": 3}, {"batch": BATCH.select([0, 1])}):
        with pytest.raises(ValueError, match="at least 3 prompts, 2 images and an even number"):
            probe(policy, **settings)


def test_the_agreement_of_a_steps_gradients_is_that_of_its_own_trials(
    policy: StableDiffusion3,
) -> None:
    before = dict(policy.evaluations.counts)
    found = probe(policy, agreement=True)
    spread, agreement = found.step_trials()
    assert agreement is not None and agreement.shape == (T - 1,)
    assert bool((agreement.abs() <= 1).all()) and bool((agreement != 0).all())
    assert torch.equal(spread, probe(policy).step_trials()[0])
    trials = 3 * sum(step + 1 + G * (T - 1 - step) for step in range(T - 1))
    assert policy.evaluations.counts["rollout"] - before["rollout"] == 2 * trials
    assert policy.evaluations.counts["update"] - before["update"] == 3 * 3 * G * (T - 1)
    assert all(parameter.grad is None for parameter in policy.trainable_parameters())

    # By hand: the gradient of each prompt's centered rewards times log-probs.
    groups = single_step_groups(
        policy,
        FlowSDE(),
        Redness(),
        BATCH,
        found.noise.apart("steps"),
        step=1,
        num_steps=T,
        images=G,
        eta=0.7,
        purpose="other",
    )
    advantages = (groups.rewards - groups.rewards.mean(1, keepdim=True)).flatten()
    edges, rows = groups.tree.transitions, []
    for prompt in range(3):
        which = (edges.row == prompt).nonzero().flatten()
        step = edges.step[which]
        sigma, after = groups.tree.sigmas[step], groups.tree.sigmas[step + 1]
        latents = edges.latents[which]
        out = policy(latents, sigma, groups.cond.select(edges.row[which]))
        eta = torch.full((len(which),), 0.7)
        log_prob = FlowSDE().step(out, latents, sigma, after, eta)
        loss = (log_prob.log_prob(edges.next_latents[which]) * advantages[which]).sum()
        gradients = torch.autograd.grad(loss, policy.trainable_parameters())
        rows.append(torch.cat([one.flatten() for one in gradients]))
    one, two, three = rows
    cosines = [
        torch.cosine_similarity(a, b + c, dim=0)
        for a, b, c in ((one, two, three), (two, one, three), (three, one, two))
    ]
    assert float(agreement[1]) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-3)


def test_mean_cosine_by_hand() -> None:
    assert mean_cosine(torch.eye(2).double()) == 0
    alike = torch.ones(4, 4).double()
    assert mean_cosine(alike) == pytest.approx(1)
    # (1, 0), (1, 0), (0, 1), (0, 1): one pairing of three has both halves apart.
    products = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).double()
    assert mean_cosine(products) == pytest.approx(2 / 3)
