"""What every family of models must do, checked against the pipeline and plain arithmetic.

The policies come with tiny random pipelines; every function builds what it needs from `build`, a
function that takes the policy's constructor arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from aegpo.entropy import EntropyRecorder
from aegpo.entropy.tokens import TokenSet
from aegpo.noise import KeyedNoise
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout import rollout
from aegpo.schedule import ExplorationSchedule
from aegpo.sde import ODE, FlowSDE
from aegpo.tree import RolloutTree

PROMPTS = [
    "a red circle",
    "two blue stars on one green triangle and three red circles to the left of a purple square "
    "below the yellow star",
    "a",
]
STEPS = 3

Build = Callable[..., DiffusersPolicy]
Positions = Callable[[int, str, int, int], tuple[Tensor, Tensor] | None]
"""Query and key positions of a row of a layer's call, from (row, layer, queries, keys)."""


def shake(policy: DiffusersPolicy, size: float = 0.1) -> None:
    """Moves every trainable weight."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def start(policy: DiffusersPolicy, n: int) -> Tensor:
    """The noise that `draw` starts from, shape (n, C, H, W)."""
    keys = torch.stack([torch.arange(n), torch.zeros(n).long(), torch.zeros(n).long()], dim=1)
    return KeyedNoise(0).normal("start", keys, policy.latent_shape)


def draw(policy: DiffusersPolicy, steps: int = STEPS, observer: Any = None) -> RolloutTree:
    """One deterministic image a prompt."""
    n = len(PROMPTS)
    return rollout(
        policy,
        ODE(),
        policy.encode(PROMPTS),
        ExplorationSchedule.deterministic(n, steps),
        torch.ones(n).long(),
        KeyedNoise(0),
        torch.arange(n),
        observer=observer,
    )


def predictions(policy: DiffusersPolicy) -> Tensor:
    """One prediction a prompt, each at another noise level, shape (n, C, H, W)."""
    n = len(PROMPTS)
    return policy(start(policy, n), torch.linspace(1, 0.2, n), policy.encode(PROMPTS))


def assert_rollout_is_the_pipeline(
    policy: DiffusersPolicy, pipeline: DiffusionPipeline, steps: int = STEPS
) -> None:
    """A deterministic rollout gives the pipeline's own images for the same noise."""
    n = len(PROMPTS)
    expected = policy.pipeline_images(pipeline, PROMPTS, start(policy, n), steps)
    images = draw(policy, steps).images
    assert images is not None and images.shape == expected.shape
    assert (images - expected).abs().max() <= 1e-4
    # Not for want of anything to see.
    assert images.std() > 0.01 and (images[0] - images[1]).abs().max() > 0.01


def assert_rows_are_independent(policy: DiffusersPolicy) -> None:
    """A row is predicted the same alone and beside longer texts."""
    n = len(PROMPTS)
    latents, sigma, cond = start(policy, n), torch.linspace(1, 0.2, n), policy.encode(PROMPTS)
    with torch.no_grad():
        together = policy(latents, sigma, cond)
        for row in range(n):
            one = slice(row, row + 1)
            alone = policy(latents[one], sigma[one], cond.select(one))
            torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=2e-5)


def assert_fresh_adapters_change_nothing(build: Build) -> None:
    """With and without its fresh adapters the policy predicts the same; training is undone."""
    policy = build()
    with torch.no_grad():
        fresh = predictions(policy)
        with policy.reference():
            base = predictions(policy)
        assert torch.equal(fresh, base)
        shake(policy)
        assert (predictions(policy) - base).abs().max() > 1e-3
        with policy.reference():
            assert torch.equal(predictions(policy), base)
    assert {parameter.dtype for parameter in policy.trainable_parameters()} == {torch.float32}


def assert_full_finetuning_keeps_its_reference(build: Build) -> None:
    """The reference of full fine-tuning predicts as the base did."""
    policy = build(full_finetuning=True)
    with torch.no_grad():
        base = predictions(policy)
        shake(policy, 0.02)
        assert (predictions(policy) - base).abs().max() > 1e-3
        with policy.reference():
            assert torch.equal(predictions(policy), base)


def assert_export_is_the_trained_policy(
    build: Build, folder: Path, lora_targets: list[str] | None
) -> None:
    """Diffusers reloads what was trained and draws the policy's images with it."""
    n = len(PROMPTS)
    policy = build(lora_rank=4, lora_alpha=3, lora_targets=lora_targets)
    untrained = draw(policy).images
    shake(policy)
    images = draw(policy).images
    assert images is not None and untrained is not None
    assert (images - untrained).abs().max() > 0.01
    policy.save_pretrained(folder / "lora")
    pipeline = policy.load_clean_pipeline()
    pipeline.load_lora_weights(folder / "lora")
    config = getattr(pipeline, policy.denoiser_name).peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, 3)
    exported = policy.pipeline_images(pipeline, PROMPTS, start(policy, n), STEPS)
    assert (images - exported).abs().max() <= 1e-4

    full = build(full_finetuning=True)
    shake(full, 0.02)
    full.save_pretrained(folder / "full")
    pipeline = type(pipeline).from_pretrained(folder / "full", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    exported = full.pipeline_images(pipeline, PROMPTS, start(full, n), STEPS)
    trained = draw(full).images
    assert trained is not None and (trained - exported).abs().max() <= 1e-4
    assert (trained - untrained).abs().max() > 0.01


def assert_ratio_is_one(policy: DiffusersPolicy) -> None:
    """Recomputed log-probabilities are those of the rollout, and their gradient trains."""
    shake(policy)
    n, cond = len(PROMPTS), policy.encode(PROMPTS)
    stochastic = torch.tensor([[True, True, False]]).expand(n, -1)
    schedule = ExplorationSchedule.from_mask(stochastic, eta=0.7)
    index, ones = torch.arange(n), torch.ones(n).long()
    sde = FlowSDE()
    tree = rollout(policy, sde, cond, schedule, ones, KeyedNoise(0), index, decode=False)
    policy.train()
    recorded = tree.transitions
    for step in (0, 1):
        rows = recorded.step == step
        prompt = recorded.prompt[rows]
        sigma, sigma_next, eta = (
            value.expand(n)
            for value in (tree.sigmas[step], tree.sigmas[step + 1], torch.tensor(0.7))
        )
        velocity = policy(recorded.latents[rows], sigma, cond.select(prompt))
        gaussian = sde.step(velocity, recorded.latents[rows], sigma, sigma_next, eta)
        log_ratio = gaussian.log_prob(recorded.next_latents[rows]) - recorded.log_prob[rows]
        assert log_ratio.abs().max() <= 1e-6
        log_ratio.exp().sum().backward()
    gradients = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) / 2


def assert_checkpointing_changes_no_gradient(build: Build) -> None:
    """Gradient checkpointing computes the same gradients."""
    gradients = []
    for checkpointing in (False, True):
        policy = build(gradient_checkpointing=checkpointing).train()
        assert policy.trained.is_gradient_checkpointing == checkpointing
        shake(policy)
        predictions(policy).square().mean().backward()
        gradients.append([p.grad for p in policy.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-6)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients[0])


def assert_half_precision_is_close(build: Build, atol: float = 0.1) -> None:
    """A bfloat16 base with fp32 adapters predicts, trains and decodes as fp32 nearly does."""
    policy, exact = build(dtype="bfloat16"), build()
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    prediction = predictions(policy)
    assert prediction.dtype == torch.float32
    with torch.no_grad():
        expected = predictions(exact)
    assert (prediction - expected).abs().max() <= atol * expected.abs().max()
    prediction.square().sum().backward()
    gradients = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    noise = start(policy, 2)
    assert policy.decode(noise).dtype == torch.float32
    torch.testing.assert_close(policy.decode(noise), exact.decode(noise), rtol=0, atol=0.05)


def assert_offload_changes_no_image(build: Build) -> None:
    """Offloaded parts are no parameters of the policy and give the same images."""
    plain, offloaded = build(), build(offload=True)
    images = draw(plain).images
    assert images is not None and torch.equal(images, draw(offloaded).images)
    names = {name.split(".")[0] for name, _ in offloaded.named_parameters()}
    assert names == {offloaded.denoiser_name}
    names = {name.split(".")[0] for name, _ in plain.named_parameters()}
    assert names == {plain.denoiser_name, "vae", "text_encoders"}


@contextmanager
def watched_attention() -> Iterator[list[tuple[Tensor, Tensor, Tensor | None]]]:
    """Queries, keys and masks of all calls of F.scaled_dot_product_attention inside."""
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
    original = F.scaled_dot_product_attention

    def watch(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
        calls.append((query.double(), key.double(), mask))
        return original(query, key, *args, **kwargs)

    F.scaled_dot_product_attention = watch
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = original


def assert_every_attention_is_listed(policy: DiffusersPolicy) -> None:
    """`attention_layers` are the layers that call softmax attention, each once a prediction."""
    with watched_attention() as calls, torch.no_grad():
        cond, n = policy.encode(PROMPTS), len(PROMPTS)
        calls.clear()
        policy(start(policy, n), torch.ones(n), cond)
    assert len(calls) == len(policy.attention_layers()) > 0


def assert_entropy_is_the_explicit_softmax(
    policy: DiffusersPolicy, tokens: TokenSet, positions: Positions
) -> None:
    """The recorded entropy is that of a softmax in float64 over positions found by hand.

    Args:
        policy: The policy.
        tokens: The token set to record.
        positions: Where a row of a layer asks and looks, or None where nothing is recorded.
    """
    plain = draw(policy).latents
    recorder = EntropyRecorder(tokens=tokens, rows=None)
    layers = [name for name, _ in policy.attention_layers()]
    cond, n = policy.encode(PROMPTS), len(PROMPTS)
    del cond  # the text encoders attend, too; now their texts are known
    with watched_attention() as calls, recorder.record(policy) as recording:
        assert torch.equal(draw(policy, observer=recording).latents, plain)
    calls = [call for call in calls if len(call[0]) == n * policy.num_evaluations_per_sample]
    calls = calls[: len(layers) * STEPS]  # the decoder attends after the last step
    expected: dict[str, Tensor] = {}
    for number, (query, key, mask) in enumerate(calls):
        step, layer = divmod(number, len(layers))
        for row in range(n):
            chosen = positions(row, layers[layer], query.shape[2], key.shape[2])
            if chosen is None:
                continue
            asked, looked = chosen
            logits = query[row] @ key[row].transpose(-1, -2) / math.sqrt(query.shape[-1])
            if mask is not None:
                seen = mask[row].expand(logits.shape)
                allowed = seen if seen.dtype == torch.bool else seen == 0
                logits = logits.masked_fill(~allowed, -math.inf)
            probability = logits[:, asked][:, :, looked].softmax(dim=-1)
            entropy = torch.special.entr(probability).sum(dim=-1) / math.log(len(looked))
            curve = expected.setdefault(layers[layer], torch.zeros(n, STEPS).double())
            curve[row, step] = entropy.mean()
    assert recording.layer_names == [name for name in layers if name in expected]
    theirs = torch.stack([expected[name] for name in recording.layer_names], dim=1)
    torch.testing.assert_close(recording.per_prompt_layer().double(), theirs, rtol=1e-5, atol=1e-5)
    assert (theirs < 0.9999).any() and (theirs > 0).all()
