"""What makes a step faster: samplers, one-branch gradients, `auto`, compiled blocks."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from gpu.families import INDEX, PROMPTS, STEPS, Watch
from gpu.features import denoiser_inputs, finite_gradients, tiny_policy
from gpu.parts import Emit, Settings
from torch._dynamo.utils import counters

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout import rollout
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.samplers import AdamsBashforth, DPMSolver, UniPC, sampler_name
from aegpo.sde import ODE

CLOSE = 1e-3
"""Accepted distance between the card's latents and a CPU's, in fp32."""


def faster(item: str, settings: Settings, emit: Emit) -> None:
    """Try one of them.

    Args:
        item: Its name.
        settings: Whether the CPU stands in for the card.
        emit: Takes the rows.
    """
    torch.set_float32_matmul_precision("highest")
    {
        "sampler": samplers,
        "guidance_gradient": guidance_gradient,
        "auto": auto,
        "compiled_blocks": compiled_blocks,
    }[item](settings, emit)


def samplers(settings: Settings, emit: Emit) -> None:
    """Every sampler draws on the card what it draws on a CPU, in as many evaluations as steps."""
    here = tiny_policy("StableDiffusion3", settings)
    there = tiny_policy("StableDiffusion3", Settings(tiny=True))
    for sampler in (None, AdamsBashforth(), DPMSolver(), UniPC()):
        before = sum(here.evaluations.counts.values())
        latents = [
            deterministic_rollout(
                policy, PROMPTS, INDEX, STEPS, KeyedNoise(0), sampler=sampler
            ).latents.cpu()
            for policy in (here, there)
        ]
        spent = sum(here.evaluations.counts.values()) - before
        apart = float((latents[0] - latents[1]).abs().max())
        good = apart <= CLOSE and spent == STEPS * len(PROMPTS)
        emit(
            sampler_name(sampler),
            f"{apart:.1e} from a CPU's, {spent} evaluations",
            good,
            f"<= {CLOSE:.0e}, {STEPS * len(PROMPTS)}",
        )


def guidance_gradient(settings: Settings, emit: Emit) -> None:
    """Through one branch: the same prediction, and a finite gradient; how alike the two are."""
    predictions, gradients = [], []
    for branches in ("both", "conditional"):
        policy = tiny_policy(
            "StableDiffusion3", settings, guidance_scale=3.0, guidance_gradient=branches
        ).train()
        prediction = policy(*denoiser_inputs(policy))
        prediction.square().mean().backward()
        predictions.append(prediction.detach())
        gradients.append(flat_gradient(policy))
        emit(f"gradients, {branches}", finite_gradients(policy)[1], finite_gradients(policy)[0])
    apart = float((predictions[0] - predictions[1]).abs().max())
    emit("prediction, from that of both", apart, apart <= 1e-4, "<= 1e-04")
    cosine = torch.cosine_similarity(gradients[0], gradients[1], dim=0)
    emit("cosine of the gradients", float(cosine))


def auto(settings: Settings, emit: Emit) -> None:
    """Micro-batches and checkpoints are chosen by the device's memory, and the run goes on."""
    from tiny_families import FAMILIES
    from tiny_training import entropy_callbacks, tiny_data, tiny_module

    family = next(one for one in FAMILIES if one.name == "StableDiffusion3")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        family.pipeline().save_pretrained(folder / "pipeline")
        arguments = family.arguments(
            folder / "pipeline", lora_rank=4, gradient_checkpointing="auto"
        )
        watch = Watch()
        module = tiny_module(
            folder, policy=partial(family.policy, **arguments), micro_batch_size="auto"
        )
        trainer = L.Trainer(
            accelerator="cpu" if settings.tiny else "gpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*entropy_callbacks(), watch],
            default_root_dir=folder,
        )
        trainer.fit(module, tiny_data(folder))
    chosen = module.fitting.state_dict(module.micro_batch_size)
    emit("chosen", str(chosen), module.micro_batch_size != "auto" and bool(chosen))
    first = max(row["ratio/first_max_dev"] for row in watch.rows)
    emit("first ratio", first, first <= 1e-5, "within 1e-05 of 1")


def compiled_blocks(settings: Settings, emit: Emit) -> None:
    """They predict what plain ones do; once warm, nothing that a training does makes a graph."""
    plain = tiny_policy("StableDiffusion3", settings)
    policy = tiny_policy("StableDiffusion3", settings, compile=True).train()
    torch._dynamo.reset()
    counters.clear()
    start = time.perf_counter()
    with torch.no_grad():
        found = policy(*denoiser_inputs(policy))
        expected = plain(*denoiser_inputs(plain))
    apart = float((found - expected).abs().max())
    emit("from the plain prediction", apart, apart <= CLOSE, f"<= {CLOSE:.0e}")
    first = since(start)
    start = time.perf_counter()
    updated(policy)
    wait(settings)
    emit("seconds of the first call, and of the first backward", f"{first}, {since(start)}")
    emit("gradients of adapters", finite_gradients(policy)[1], finite_gradients(policy)[0])
    start = time.perf_counter()
    iteration(policy, 2)  # from the second number of rows on a graph takes any
    wait(settings)
    emit("seconds of an iteration with other numbers of rows", since(start))
    warm = compilations()
    for images in (1, 2, 3):
        start = time.perf_counter()
        curve = iteration(policy, images)
    wait(settings)
    emit("seconds of a warm iteration", since(start))
    emit("entropy beside compiled blocks", bool((curve > 0).all()), bool((curve > 0).all()))
    now = compilations()
    emit("graphs and compiled frames, warm and later", f"{warm}, {now}", now == warm, "no new one")


def compilations() -> tuple[int, int]:
    """Graphs that were made, and frames of Python that were compiled, for whatever reason."""
    return counters["stats"]["unique_graphs"], counters["frames"]["total"]


def iteration(policy: DiffusersPolicy, images: int) -> torch.Tensor:
    """What a training asks of a policy: a rollout, one whose entropy is watched, an update.

    Args:
        policy: With compiled blocks.
        images: Of each prompt.

    Returns:
        The curve of the watched one.
    """
    recorder = EntropyRecorder(layers=[policy.attention_layers()[-1][0]])

    def draw(observer: Any = None) -> None:
        rollout(
            *(policy, ODE(), policy.encode(PROMPTS)),
            ExplorationSchedule.deterministic(len(PROMPTS), STEPS),
            *(torch.full_like(INDEX, images), KeyedNoise(0), INDEX),
            observer=observer,
        )

    draw()
    with recorder.record(policy) as recording:
        draw(recording)
    updated(policy, images)
    return recording.curve()


def updated(policy: DiffusersPolicy, times: int = 1) -> None:
    """A forward and backward pass of three rows, or of a multiple of it."""
    latents, sigma, _ = denoiser_inputs(policy)
    latents, sigma = latents.repeat(times, 1, 1, 1), sigma.repeat(times)
    policy(latents, sigma, policy.encode(PROMPTS * times)).square().mean().backward()


def floor(item: str, settings: Settings, emit: Emit) -> None:
    """A full size's forward, update and adapters, as Python and with compiled blocks."""
    from floor import Sizes, measured

    for compiled in (False, True):
        if compiled and settings.tiny:  # its path is that of `compiled_blocks`
            continue
        found = measured(item, Sizes(rounds=3, compiled=compiled, tiny=settings.tiny))
        name = "compiled, " if compiled else ""
        for way, one in found.taken.items():
            share = f"{one.seconds:.3f} s, {100 * found.share(way):.0f} % of the floor"
            emit(f"{name}{way}", share, one.seconds > 0)
        emit(f"{name}adapters, of a forward without", found.taken["forward"].ratio)
        emit(f"{name}all rounds, seconds", found.seconds)


def flat_gradient(policy: DiffusersPolicy) -> torch.Tensor:
    """All gradients in one row."""
    gradients = [p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None]
    return torch.cat(gradients)


def since(start: float) -> str:
    """Seconds since then."""
    return f"{time.perf_counter() - start:.2f}"


def wait(settings: Settings) -> None:
    """Wait for the card."""
    if not settings.tiny:
        torch.cuda.synchronize()
