"""What else has to work on a card: the quickstart, backends, offload, fewer bits."""

from __future__ import annotations

import inspect
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu.families import INDEX, PROMPTS, STEPS
from gpu.parts import Emit, Settings

from aegpo.entropy import EntropyRecorder
from aegpo.exploration import ExplorationSchedule
from aegpo.noise import KeyedNoise
from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.rollout import rollout
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.sde import FlowSDE

BACKENDS = ("native", "_native_flash", "_native_efficient", "_native_math", "_native_cudnn")
ASKED_FOR = "_native_cudnn"
"""Has open faults on Hopper, and so is taken only where it is asked for: a figure, no verdict."""


def feature(item: str, settings: Settings, emit: Emit) -> None:
    """Try one of them.

    Args:
        item: Its name.
        settings: Whether the CPU stands in for the card.
        emit: Takes the rows.
    """
    {
        "quickstart": quickstart,
        "backends": backends,
        "offload": offload,
        "waiting": waiting,
        "nf4": partial(quantized, "nf4"),
        "int8": partial(quantized, "int8"),
    }[item](settings, emit)


def quickstart(settings: Settings, emit: Emit) -> None:
    """Twenty iterations of configs/shapes.yaml by its own command line."""
    from lightning_modules.cli.lightning_cli import AEGPOCLI

    iterations = 2 if settings.tiny else 20
    config = Path(__file__).parents[2] / "configs/shapes.yaml"
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            start = time.perf_counter()
            cli = AEGPOCLI(
                [
                    *("fit", "--config", str(config)),
                    *("--trainer.accelerator", "cpu" if settings.tiny else "gpu"),
                    *("--trainer.max_epochs", "1"),
                    *("--data.batches_per_epoch", str(iterations)),
                    *(("--data.batch_size", "2") if settings.tiny else ()),
                    *(("--data.val_images", "16") if settings.tiny else ()),
                    *("--trainer.check_val_every_n_epoch", "1"),
                ]
            )
            seconds = time.perf_counter() - start
            written = Path("runs/shapes/checkpoints/last.ckpt").is_file()
        finally:
            os.chdir(before)
    module: Any = cli.model
    done = f"{module.iteration} iterations"
    emit("trained", done, module.iteration == iterations and written, f"{iterations}, saved")
    numbers = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    emit("held-out judge", numbers["val/shapes_judge"], 0 < numbers["val/shapes_judge"] <= 1)
    emit("reward/mean", numbers["reward/mean"], 0 < numbers["reward/mean"] <= 1)
    emit("seconds an iteration, start and validations included", seconds / iterations)


def backends(settings: Settings, emit: Emit) -> None:
    """Every attention backend gives math's prediction and a finite gradient."""
    if "attention_backend" not in inspect.signature(DiffusersPolicy.__init__).parameters:
        emit("attention_backend", "policies have no such argument", False)
        return
    dtype = "float32" if settings.tiny else "bfloat16"
    accepted = 1e-4 if settings.tiny else 0.05
    for name in ("StableDiffusion3", "Flux"):
        expected = None
        for backend in ("_native_math", *(one for one in BACKENDS if one != "_native_math")):
            if settings.tiny and backend in ("_native_cudnn", "_native_efficient"):
                continue
            asked_for = backend == ASKED_FOR
            try:
                apart, finite = _try_backend(name, settings, backend, dtype, expected)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
                emit(f"{name} {backend}", reason, None if asked_for else False)
                continue
            expected = apart if expected is None else expected
            apart = 0.0 if apart is expected else apart
            good = bool(apart <= accepted and finite)
            emit(
                f"{name} {backend}",
                f"{apart:.1e} from math, gradient {'finite' if finite else 'NOT finite'}",
                None if asked_for else good,
                f"<= {accepted:.0e}",
            )


def _try_backend(
    name: str, settings: Settings, backend: str, dtype: str, expected: Any
) -> tuple[Any, bool]:
    """The prediction, or how far it is from the expected one, and whether gradients are finite."""
    policy = tiny_policy(name, settings, dtype=dtype, attention_backend=backend).train()
    prediction = policy(*denoiser_inputs(policy))
    prediction.square().mean().backward()
    found = prediction.detach().cpu()
    apart = found if expected is None else float((found - expected).abs().max())
    return apart, finite_gradients(policy)[0]


def offload(settings: Settings, emit: Emit) -> None:
    """Built under the trainer's default device, idle parts are in CPU memory, before and after."""
    card = torch.device("cpu" if settings.tiny else "cuda", None if settings.tiny else 0)
    # On the CPU another default device shows the same fault.
    around = torch.device("meta") if settings.tiny else card
    with around:
        policy = tiny_policy("StableDiffusion3", settings, offload=True)

    def where() -> set[str]:
        parts = [*policy.text_encoders.parameters(), *policy.vae.parameters()]
        return {str(parameter.device) for parameter in parts}

    emit("idle after it was built", str(sorted(where())), where() == {"cpu"}, "cpu")
    images = deterministic_rollout(policy, PROMPTS, INDEX, STEPS, KeyedNoise(0)).images
    assert images is not None
    emit("images finite", bool(images.isfinite().all()), bool(images.isfinite().all()))
    emit("idle after encoding and decoding", str(sorted(where())), where() == {"cpu"}, "cpu")
    denoiser = {parameter.device.type for parameter in policy.trained.parameters()}
    emit("denoiser", str(sorted(denoiser)), denoiser == {card.type}, card.type)


def waiting(settings: Settings, emit: Emit) -> None:
    """No step of a rollout makes the host wait for the card, by torch's own count."""
    policy = tiny_policy("StableDiffusion3", settings)
    cond, sizes = policy.encode(PROMPTS), torch.full((len(PROMPTS),), 2)

    def waits(steps: int) -> int:
        noisy = torch.ones(len(PROMPTS), steps, dtype=torch.bool)
        noisy[:, -1] = False
        schedule = ExplorationSchedule.from_mask(noisy, 0.7)
        arguments = (FlowSDE(), cond, schedule, sizes, KeyedNoise(0), INDEX)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if not settings.tiny:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                with EntropyRecorder().record(policy) as recording:
                    rollout(policy, *arguments, decode=False, observer=recording)
            finally:
                if not settings.tiny:
                    torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(one.message) for one in told)

    waits(4)  # what is made once is made here
    short, long = waits(4), waits(8)
    emit("waits of 4 and of 8 steps", f"{short}, {long}", short == long, "as many")


def quantized(kind: str, settings: Settings, emit: Emit) -> None:
    """Adapters learn on frozen weights in 4 or 8 bits."""
    if settings.tiny:
        emit("skipped", "needs a card", None)
        return
    plain = tiny_policy("StableDiffusion3", settings, dtype="bfloat16")
    policy = tiny_policy("StableDiffusion3", settings, dtype="bfloat16", quantize=kind)
    base = deterministic_rollout(plain, PROMPTS, INDEX, STEPS, KeyedNoise(0)).images
    tree = deterministic_rollout(policy, PROMPTS, INDEX, STEPS, KeyedNoise(0))
    assert tree.images is not None and base is not None
    apart = float((tree.images - base).abs().mean())
    emit("mean pixel from bfloat16", apart, 0 < apart <= 0.2, "above 0, <= 0.2")
    policy(*denoiser_inputs(policy)).square().mean().backward()
    emit(
        "gradients of adapters", finite_gradients(policy)[1], finite_gradients(policy)[0], "finite"
    )


def denoiser_inputs(policy: DiffusersPolicy) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Latents, levels and conditioning of three rows, on the policy's device."""
    keys = torch.stack([INDEX, 0 * INDEX, 0 * INDEX], dim=1)
    latents = KeyedNoise(0).normal("start", keys, policy.latent_shape)
    sigma = policy.sigmas(4)[[0, 1, 3]]
    return latents.to(policy.device), sigma.to(policy.device), policy.encode(PROMPTS)


def finite_gradients(policy: DiffusersPolicy) -> tuple[bool, str]:
    """Whether there are gradients and all are finite, and how many there are."""
    gradients = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
    finite = bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    return finite, f"{len(gradients)} tensors"


def tiny_policy(name: str, settings: Settings, **arguments: Any) -> DiffusersPolicy:
    """A policy on a tiny random pipeline, on the card."""
    from tiny_families import FAMILIES

    family = next(one for one in FAMILIES if one.name == name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with torch.device("cpu"):
            family.pipeline().save_pretrained(folder)
        # Under whatever default device the caller has set: that is what `offload` is about.
        policy = family.policy(**family.arguments(folder, lora_rank=4, **arguments))
    return policy.to("cpu" if settings.tiny else "cuda")
