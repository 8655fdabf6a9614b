"""Is an exported model the trained one? Weight by weight, and image by image through diffusers.

A LoRA file can lose its scale, a key can fail to match and be skipped with a warning, and a
pipeline can be called with other noise levels than the model was trained with. Each of these gives
plausible pictures of another model, so an export is loaded back and compared before it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aegpo.noise import KeyedNoise
from aegpo.policies.adapters.factors import Factors, base_weight, read_factors, summed
from aegpo.policies.adapters.layouts import DIFFUSERS, Form, Layout
from aegpo.policies.exportable import Exportable, denoiser_of
from aegpo.policies.lora import ADAPTER
from aegpo.rollout.deterministic import deterministic_rollout
from aegpo.rollout.loop import start_noise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

IMAGE_TOLERANCE, HALF_IMAGE_TOLERANCE = 1e-4, 0.02
"""Accepted mean difference of an image's pixels in [0, 1], in fp32 and in half precision.

Sums in another order leave about 1e-7 in fp32 and, because a pipeline also keeps its latents in
half precision, 0.006 in bf16. The largest difference of a pixel is no measure: denoising amplifies
rounding where an edge may fall on either of two pixels (0.5 in bf16 on the bundled model).
"""

WEIGHT_TOLERANCE, HALF_WEIGHT_TOLERANCE = 1e-5, 0.02
"""Accepted difference of a trained weight, as a share of the largest one."""


@dataclass(frozen=True)
class ExportCheck:
    """How far a reloaded export is from the policy.

    Attributes:
        weight_difference: Largest difference of a trained weight over the largest such weight.
        image_difference: Mean difference of the pixels, of the image where it is largest.
        half: Whether the reloaded model computes below fp32.
        rounding: Of a merged pipeline, what rounding did to the update: the norm of the error over
            that of the update; None where nothing is merged.
    """

    weight_difference: float
    image_difference: float
    half: bool
    rounding: float | None = None

    @property
    def passed(self) -> bool:
        """Whether both differences are accepted; one that is not finite never is."""
        weights, images = self._accepted
        return self.weight_difference <= weights and self.image_difference <= images

    @property
    def _accepted(self) -> tuple[float, float]:
        if self.half:
            return HALF_WEIGHT_TOLERANCE, HALF_IMAGE_TOLERANCE
        return WEIGHT_TOLERANCE, IMAGE_TOLERANCE

    def __str__(self) -> str:
        weights, images = self._accepted
        rounded = f", rounding changed the update by {self.rounding or 0:.1%} of its norm"
        merged = "" if self.rounding is None else rounded
        return (
            f"mean pixel difference {self.image_difference:.1e} (accepted {images:.0e}), trained "
            f"weights differ by {self.weight_difference:.1e} of the largest (accepted "
            f"{weights:.0e}){merged}"
        )


def check_export(
    policy: Exportable,
    folder: Path,
    prompts: Sequence[str],
    index: Tensor,
    num_steps: int,
    noise: KeyedNoise,
    form: Form = DIFFUSERS,
) -> tuple[ExportCheck, DiffusionPipeline, Tensor]:
    """Write a policy, load it back by diffusers, and draw the same images with both.

    The policy ends on the CPU, so that one of the two models at a time is on its device.

    Args:
        policy: The policy, trained.
        folder: Where it is written; exists.
        prompts: B texts.
        index: (B,) int64, no row twice; decides with the noise where an image starts.
        num_steps: Denoising steps T.
        noise: Where the images start.
        form: As what it is written.

    Returns:
        The differences, the reloaded pipeline on the policy's device, and the policy's own images,
        shape (B, 3, H, W).

    Raises:
        ValueError: If diffusers cannot read a file for other programs back.
    """
    device = policy.device
    tree = deterministic_rollout(policy, prompts, index, num_steps, noise)
    assert tree.images is not None
    policy.save_as(folder, form)
    pipeline = _load(policy, folder, form.layout)
    reloaded = denoiser_of(pipeline)
    apart = weight_difference(policy.denoiser, reloaded, policy.beneath)
    rounding = _rounding(policy.denoiser, reloaded) if form.layout == "merged" else None
    policy.to("cpu")
    index = index.cpu()
    start = start_noise(noise, index, torch.zeros_like(index), policy.latent_shape)
    theirs = policy.pipeline_images(pipeline.to(device), prompts, start, num_steps)
    images, half = image_difference(tree.images, theirs), reloaded.dtype != torch.float32
    check = ExportCheck(apart, images, half, rounding)
    return check, pipeline, tree.images


def image_difference(ours: Tensor, theirs: Tensor) -> float:
    """Compare images.

    Args:
        ours: Images in [0, 1], shape (n, 3, H, W).
        theirs: The same images by other means.

    Returns:
        Mean absolute difference of the pixels of the image where it is largest; infinity if the
        shapes differ.
    """
    if ours.shape != theirs.shape:
        return math.inf
    difference = (ours.cpu().float() - theirs.cpu().float()).abs()
    return float(difference.flatten(1).mean(1).max())


def weight_difference(
    trained: nn.Module, reloaded: nn.Module, beneath: Mapping[str, Factors] | None = None
) -> float:
    """Compare what training changed with what came back.

    Adapters are compared as the update that they add to a layer's weight, scale included, since
    that is what a model computes with; a layer without an adapter has an update of zero. Where
    adapters came back as part of the weights, these are compared.

    Args:
        trained: The policy's denoiser; its adapters, or without any its trainable parameters.
        reloaded: The denoiser of the reloaded pipeline.
        beneath: Updates that were merged into the weights of `trained`, and that what came back has
            to hold as well.

    Returns:
        Largest difference over the largest value; infinity if a weight is missing on either side.
    """
    difference = largest = 0.0
    with torch.no_grad():
        for own, other in _weights(trained, reloaded, beneath or {}):
            if own.shape != other.shape:
                return math.inf
            apart = float((own.float() - other.to(own.device).float()).abs().max())
            if not math.isfinite(apart):
                return math.inf
            largest = max(largest, float(own.float().abs().max()))
            difference = max(difference, apart)
    return difference / max(largest, torch.finfo(torch.float32).tiny)


_MISSING = torch.empty(0, 0, device="cpu")


def _weights(
    trained: nn.Module, reloaded: nn.Module, beneath: Mapping[str, Factors]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of the same weight, or of the same update."""
    ours, theirs = read_factors(trained, ADAPTER), read_factors(reloaded, ADAPTER)
    if ours and theirs:
        own = summed(beneath, ours) if beneath else ours
        for name in own.keys() | theirs.keys():
            found = [part[name].update() for part in (own, theirs) if name in part]
            yield found[0], found[1] if len(found) == 2 else torch.zeros_like(found[0])
        return
    if ours:
        for name in beneath.keys() | ours.keys():
            update = ours[name].update() if name in ours else 0
            yield base_weight(trained, name).float() + update, base_weight(reloaded, name)
        return
    there = dict(reloaded.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            yield parameter, there.get(name, _MISSING)


def _rounding(trained: nn.Module, merged: nn.Module) -> float | None:
    """What merging lost: the norm of the error over the norm of the update."""
    error = size = 0.0
    with torch.no_grad():
        for name, part in read_factors(trained, ADAPTER).items():
            update = part.update().cpu()
            wanted = base_weight(trained, name).float().cpu() + update
            error += float((base_weight(merged, name).float().cpu() - wanted).square().sum())
            size += float(update.square().sum())
    return math.sqrt(error / size) if size else None


def _load(policy: Exportable, folder: Path, layout: Layout) -> DiffusionPipeline:
    """The written model by diffusers; one line if a file for others is none for diffusers."""
    if layout in ("diffusers", "merged"):
        return policy.load_exported(folder)
    try:
        return policy.load_exported(folder)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        reason = shorten(str(error), 120, placeholder=" ...") or type(error).__name__
        raise ValueError(
            f"diffusers does not read its adapters back from the layout {layout}, so that they "
            f"cannot be checked ({reason}); export --format diffusers or merged"
        ) from error
