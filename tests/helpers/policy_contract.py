"""What every family of models promises, as checks that a family's tests call on tiny pipelines.

A `build` makes a policy from the family's own folder and keyword arguments, `lora_rank=4` unless
told otherwise. Prompts have 3, 22 and 1 words, of which a text encoder may take less.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.export.check import ExportCheck, check_export
from aegpo.export.model_card import loading_code
from aegpo.noise import KeyedNoise
from aegpo.objectives.transition_samples import Replay
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout import RolloutTree, rollout
from aegpo.sde import ODE, SDE

PROMPTS = [
    "a red circle",
    "two blue stars on one green triangle and three red circles to the left of a purple square "
    "below the yellow star",
    "a",
]
NOISE = KeyedNoise(0)
INDEX = torch.tensor([7, 3, 5])

Build = Callable[..., DiffusersPolicy]
P = TypeVar("P", bound=DiffusersPolicy)
Positions = Callable[[str, int, int, Tensor], tuple[Sequence[int], Sequence[int]] | None]
"""(layer, queries, keys, text mask of the row) to the positions of both by hand, None for none."""


def shared(build: Callable[..., P], keep: int = 6) -> Callable[..., P]:
    """`build`, for tests that only look at a policy: the same arguments give the same object.

    A policy that is handed out again has to be as it was built.

    Args:
        build: Makes a policy.
        keep: How many to keep of those that were asked for last.
    """
    built: dict[str, tuple[P, list[Tensor]]] = {}

    def look(*args: Any, **arguments: Any) -> P:
        key = repr((args, sorted(arguments.items())))
        if key in built:
            policy, before = built.pop(key)
            now = policy.trainable_parameters()
            assert not policy.training and all(parameter.grad is None for parameter in now)
            assert all(map(torch.equal, now, before)), "a test changed what others look at"
        else:
            policy = build(*args, **arguments)
            before = [parameter.detach().clone() for parameter in policy.trainable_parameters()]
        built[key] = policy, before
        if len(built) > keep:
            del built[next(iter(built))]
        return policy

    return look


def draw(
    policy: DiffusersPolicy,
    num_steps: int = 3,
    *,
    rows: Sequence[int] = (0, 1, 2),
    sde: SDE | None = None,
    eta: float = 0.0,
    observer: Any = None,
) -> RolloutTree:
    """One image for each of some prompts; all steps but the last are stochastic where eta > 0."""
    schedule = ExplorationSchedule.deterministic(len(rows), num_steps)
    if eta > 0:
        stochastic = torch.ones(len(rows), num_steps, dtype=torch.bool)
        stochastic[:, -1] = False
        schedule = ExplorationSchedule.from_mask(stochastic, eta)
    cond = policy.encode([PROMPTS[row] for row in rows])
    ones = torch.ones(len(rows), dtype=torch.int64)
    index = INDEX[list(rows)]
    return rollout(policy, sde or ODE(), cond, schedule, ones, NOISE, index, observer=observer)


def start_noise(policy: DiffusersPolicy) -> Tensor:
    """The noise that `draw` starts all prompts from."""
    zeros = torch.zeros_like(INDEX)
    return NOISE.normal("start", torch.stack([INDEX, zeros, zeros], dim=1), policy.latent_shape)


def base_pipeline(policy: DiffusersPolicy) -> Any:
    """The pretrained pipeline as diffusers has it, with the scheduler that the policy names."""
    pipeline = policy.load_clean_pipeline()
    pipeline.scheduler = policy.sampling_scheduler(pipeline.scheduler)
    return pipeline


def pipeline_images(policy: DiffusersPolicy, pipeline: Any, num_steps: int = 3) -> Tensor:
    """What the pipeline draws where the policy calls `draw`."""
    noise = start_noise(policy)
    with torch.no_grad():
        return policy.pipeline_images(pipeline, PROMPTS, noise, num_steps).float()


def inputs(policy: DiffusersPolicy) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, levels of the policy's own schedule and conditioning, three rows."""
    sigma = policy.sigmas(4)[[0, 1, 3]]
    return start_noise(policy), sigma, policy.encode(PROMPTS)


def shake(policy: DiffusersPolicy, by: float = 0.1) -> None:
    """Moves every trainable weight."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Same shape, finite, and nowhere further apart than the tolerance."""
    assert got.shape == expected.shape and bool(got.isfinite().all())
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=tolerance)


def assert_rollout_is_the_pipeline(policy: DiffusersPolicy, num_steps: int = 3) -> None:
    """A deterministic rollout is the pipeline's own image, and a row depends on itself alone."""
    expected = pipeline_images(policy, base_pipeline(policy), num_steps)
    tree = draw(policy, num_steps)
    assert_close(tree.images, expected)
    assert expected.std() > 1e-2, "an image without contrast would hide every mistake"
    for row in range(len(PROMPTS)):
        assert_close(draw(policy, num_steps, rows=[row]).images, expected[row : row + 1])


@contextmanager
def captured(policy: DiffusersPolicy) -> Iterator[list[tuple[str, Tensor, Tensor, Any]]]:
    """An independent look at the denoiser: the innermost module, queries, keys, mask of a call."""
    original = F.scaled_dot_product_attention
    calls: list[tuple[str, Tensor, Tensor, Any]] = []
    running: list[str] = []

    def capture(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        mask = rest[0] if rest else named.get("attn_mask")
        if running:  # else it is a text encoder's or a decoder's
            calls.append((running[-1], query, key, mask))
        return original(query, key, value, *rest, **named)

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: running.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = []
    for name, module in policy.denoiser.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    F.scaled_dot_product_attention = capture
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


def assert_every_attention_is_a_layer(policy: DiffusersPolicy, num_layers: int) -> None:
    """Each softmax attention of one prediction belongs to one watched layer, and no layer to none.

    Args:
        policy: The policy.
        num_layers: Their number, counted by hand.
    """
    with torch.no_grad(), captured(policy) as calls:
        policy.predict(*inputs(policy))
    names = [name for name, _ in policy.attention_layers()]
    assert sorted(name for name, *_ in calls) == sorted(names) and len(names) == num_layers


def assert_recorded_entropy_is_the_explicit_softmax(
    policy: DiffusersPolicy, tokens: Any, positions: Positions
) -> None:
    """Recording changes no image, and its entropies are those of a float64 softmax.

    Args:
        policy: The policy, with or without guidance.
        tokens: Token set of the recorder.
        positions: Which tokens it means in each layer, worked out by hand.
    """
    plain = draw(policy, 2).images
    recorder = EntropyRecorder(tokens=tokens, rows=None)
    with captured(policy) as calls, recorder.record(policy) as recording:
        assert torch.equal(draw(policy, 2, observer=recording).images, plain)
    masks = policy.encode(PROMPTS).mask
    assert masks is not None

    recorded = recording.per_prompt_layer()
    seen: dict[str, list[Tensor]] = {}
    for name, query, key, mask in calls:
        values = [
            None
            if where is None
            else _explicit_entropy(query[row], key[row], _row(mask, row), where)
            for row in range(len(PROMPTS))  # with guidance the conditional rows come first
            for where in [positions(name, query.shape[2], key.shape[2], masks[row])]
        ]
        if values[0] is not None:
            seen.setdefault(name, []).append(torch.stack(values))
    assert set(recording.layer_names) == set(seen)
    for layer, name in enumerate(recording.layer_names):
        expected = torch.stack(seen[name], dim=1)
        assert_close(recorded[:, layer], expected.float(), 1e-5)
    assert recorded.std() > 1e-5, "uniform attention would hide every mistake"


def _row(mask: Tensor | None, row: int) -> Tensor | None:
    """One row of an attention mask, broadcastable to (heads, queries, keys)."""
    if mask is None:
        return None
    return mask[row if len(mask) > 1 else 0] if mask.dim() == 4 else mask


def _explicit_entropy(
    query: Tensor, key: Tensor, mask: Tensor | None, where: tuple[Sequence[int], Sequence[int]]
) -> Tensor:
    """Mean entropy over heads and queries, divided by the logarithm of the number of keys."""
    asked, looked = (list(positions) for positions in where)
    scores = query.double() @ key.double().transpose(1, 2) / math.sqrt(query.shape[-1])
    if mask is not None:
        barred = ~mask if mask.dtype == torch.bool else mask.isneginf()
        scores = scores.masked_fill(barred, -math.inf)
        scores = scores if mask.dtype == torch.bool else scores + mask.masked_fill(barred, 0)
    scores = scores[:, asked][:, :, looked]
    p = scores.softmax(dim=-1)
    entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(dim=-1)
    return (entropy / scores.isfinite().sum(dim=-1).double().log()).mean()


def assert_adapters_are_a_users_lora(build: Build, folder: Path, **arguments: Any) -> None:
    """Fresh adapters change nothing, the reference stays the base, and diffusers loads them."""
    policy = build(lora_alpha=3, **arguments)
    assert {parameter.dtype for parameter in policy.trainable_parameters()} == {torch.float32}
    base = pipeline_images(policy, base_pipeline(policy))
    with torch.no_grad():
        fresh = policy(*inputs(policy))
        with policy.reference():
            assert torch.equal(policy(*inputs(policy)), fresh)
        assert_close(draw(policy).images, base)
        shake(policy)
        with policy.reference():
            assert torch.equal(policy(*inputs(policy)), fresh)
    trained = draw(policy).images
    assert (trained - base).abs().max() > 1e-3
    policy.save_pretrained(folder)
    pipeline = base_pipeline(policy)
    pipeline.load_lora_weights(folder)
    loaded = getattr(pipeline, policy.denoiser_name)
    (adapter,) = loaded.peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (4, 3)
    assert_close(pipeline_images(policy, pipeline), trained)


def assert_full_finetuning_is_a_users_pipeline(build: Build, folder: Path) -> None:
    """What was trained wholly loads as a pipeline; the reference stays the base."""
    policy = build(full_finetuning=True)
    with torch.no_grad():
        untrained = policy(*inputs(policy))
    base = pipeline_images(policy, base_pipeline(policy))
    shake(policy, 0.02)
    trained = draw(policy).images
    assert (trained - base).abs().max() > 1e-3
    with policy.reference(), torch.no_grad():
        assert torch.equal(policy(*inputs(policy)), untrained)
        assert_close(draw(policy).images, base)
    policy.save_pretrained(folder)
    pipeline = policy.pipeline_class.from_pretrained(folder, local_files_only=True)
    pipeline.scheduler = policy.sampling_scheduler(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    assert_close(pipeline_images(policy, pipeline), trained)


def exported(policy: DiffusersPolicy, folder: Path) -> tuple[ExportCheck, Any, Tensor]:
    """What `aegpo export` measures: differences, the reloaded pipeline, the policy's images."""
    return check_export(policy, folder, PROMPTS, INDEX, 3, NOISE)


def assert_export_passes_its_check(build: Build, folder: Path, **arguments: Any) -> None:
    """What is written passes, and the code of its model card loads and calls the trained model."""
    policy = build(**arguments)
    source = "" if policy.full_finetuning else str(policy.pipeline.name_or_path)
    base = draw(policy).images
    shake(policy, 0.02 if policy.full_finetuning else 0.1)
    check, pipeline, images = exported(policy, folder)
    assert check.passed, check
    assert (images - base).abs().max() > 1e-3, "an untrained model would pass as well"

    call = policy.pipeline_arguments(2)
    accepted = inspect.signature(policy.pipeline_class.__call__).parameters
    assert call.keys() < accepted.keys() and all(map(_is_plain, call.values()))
    code = loading_code(pipeline, source, str(folder), PROMPTS[0], call, policy.replaces_scheduler)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == policy.image_size[::-1]  # PIL says width, height
    scope["pipeline"].set_progress_bar_config(disable=True)
    tolerance = 0.02 if check.half else 1e-4
    difference = (pipeline_images(policy, scope["pipeline"]) - images).abs().mean()
    assert difference <= tolerance


def _is_plain(value: Any) -> bool:
    """Whether Python prints a value as it would be typed."""
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def assert_first_ratio_is_one(policy: DiffusersPolicy, sde: SDE, eta: float) -> None:
    """Recomputed log-probs are the rollout's, and the gradient reaches the adapters alone."""
    # Moved, because fresh up-projections are zero and give the down-projections no gradient.
    shake(policy)
    tree = draw(policy, 4, sde=sde, eta=eta)
    assert len(tree.transitions) == 3 * len(PROMPTS)
    stochastic = torch.tensor([[True, True, True, False]]).expand(len(PROMPTS), -1)
    schedule = ExplorationSchedule.from_mask(stochastic, eta)
    advantages = torch.ones(len(tree.transitions))
    policy.train()
    replay = Replay(policy, sde, policy.encode(PROMPTS), tree, schedule, advantages)
    for step in range(3):
        rows = (tree.transitions.step == step).nonzero().flatten()
        now = replay.step(rows)
        log_ratio = now.log_prob(tree.transitions.next_latents[rows])
        log_ratio = log_ratio - tree.transitions.log_prob[rows]
        assert log_ratio.abs().max() <= 1e-6
        now.log_prob(tree.transitions.next_latents[rows]).sum().backward()
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert gradients.keys() <= {n for n, p in policy.named_parameters() if p.requires_grad}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > len(gradients) / 2


def assert_half_precision_works(build: Build, tolerance: float = 0.05) -> None:
    """A bfloat16 base under fp32 adapters: fp32 results near the fp32 model's, and a gradient.

    Args:
        build: Of the family.
        tolerance: Largest error of a prediction, as a share of the predictions' own deviation.
    """
    whole, half = build(), build(dtype="bfloat16")
    assert {p.dtype for p in half.trainable_parameters()} == {torch.float32}
    frozen = [p for p in half.denoiser.parameters() if not p.requires_grad]
    assert torch.bfloat16 in {p.dtype for p in frozen}
    expected = whole(*inputs(whole)).detach()
    got = half(*inputs(half))
    assert got.dtype == torch.float32
    each = (slice(None), *[None] * (got.dim() - 1))
    deviation = expected.flatten(1).std(1)[each]
    assert_close(got / deviation, expected / deviation, tolerance)
    got.square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in half.trainable_parameters())
    tree = draw(half)
    assert tree.latents.dtype == tree.images.dtype == torch.float32
    assert bool(tree.images.isfinite().all())
    latents = start_noise(whole)
    assert_close(half.decode(latents), whole.decode(latents), 0.05)


def assert_checkpointing_changes_no_gradient(build: Build) -> None:
    """Activations that are computed twice give the gradients of those that are stored."""
    gradients = []
    for checkpointing in (False, True):
        policy = build(gradient_checkpointing=checkpointing).train()
        assert policy.denoiser.is_gradient_checkpointing == checkpointing
        shake(policy)
        policy(*inputs(policy)).square().mean().backward()
        gradients.append([p.grad for p in policy.trainable_parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        if plain is not None:
            torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-6)
    assert any(plain is not None and bool(plain.any()) for plain in gradients[0])


def assert_offload_hides_what_is_idle(build: Build) -> None:
    """The same images, with encoders and decoder outside of what moves with the policy."""

    def parts(policy: DiffusersPolicy) -> set[str]:
        return {name.split(".")[0] for name, _ in policy.named_parameters()}

    plain, offloaded = build(), build(offload=True)
    assert parts(offloaded) == {plain.denoiser_name}
    assert parts(plain) == {plain.denoiser_name, "vae", "text_encoders"}
    assert torch.equal(draw(offloaded).images, draw(plain).images)


def assert_autocast_rounds_no_row_of_text(build: Build) -> None:
    """Under autocast predictions are fp32 and cached embeddings what anybody else gets.

    Args:
        build: Of the family, with guidance.
    """
    policy, other = build(), build()
    assert policy.num_evaluations_per_sample == 2
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert policy(*inputs(policy)).dtype == torch.float32
    assert torch.equal(policy.encode(PROMPTS).embeds, other.encode(PROMPTS).embeds)
