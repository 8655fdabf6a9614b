"""Is an exported model the trained one? Weight by weight, and image by image through diffusers.

A LoRA file can lose its scale, a key can fail to match and be skipped with a warning, and a
pipeline can be called with other noise levels than the model was trained with. Each of these gives
plausible pictures of another model, so an export is loaded back and compared before it is believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from aegpo.noise import KeyedNoise
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
    """

    weight_difference: float
    image_difference: float
    half: bool

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
        return (
            f"mean pixel difference {self.image_difference:.1e} (accepted {images:.0e}), trained "
            f"weights differ by {self.weight_difference:.1e} of the largest (accepted "
            f"{weights:.0e})"
        )


def check_export(
    policy: Exportable,
    folder: Path,
    prompts: Sequence[str],
    index: Tensor,
    num_steps: int,
    noise: KeyedNoise,
) -> tuple[ExportCheck, DiffusionPipeline, Tensor]:
    """Write a policy, load it back by diffusers, and draw the same images with both.

    The policy ends on the CPU, so that one of the two models at a time is on its device.

    Args:
        policy: The policy, trained.
        folder: Where `save_pretrained` writes.
        prompts: B texts.
        index: (B,) int64, no row twice; decides with the noise where an image starts.
        num_steps: Denoising steps T.
        noise: Where the images start.

    Returns:
        The differences, the reloaded pipeline on the policy's device, and the policy's own images,
        shape (B, 3, H, W).
    """
    device = policy.device
    tree = deterministic_rollout(policy, prompts, index, num_steps, noise)
    assert tree.images is not None
    policy.save_pretrained(folder)
    pipeline = policy.load_exported(folder)
    reloaded = denoiser_of(pipeline)
    apart = weight_difference(policy.denoiser, reloaded)
    policy.to("cpu")
    index = index.cpu()
    start = start_noise(noise, index, torch.zeros_like(index), policy.latent_shape)
    theirs = policy.pipeline_images(pipeline.to(device), prompts, start, num_steps)
    check = ExportCheck(
        apart, image_difference(tree.images, theirs), reloaded.dtype != torch.float32
    )
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


def weight_difference(trained: nn.Module, reloaded: nn.Module) -> float:
    """Compare what training changed with what came back.

    Adapters are compared as the update that they add to a layer's weight, scale included, since
    that is what a model computes with.

    Args:
        trained: The policy's denoiser; its adapters, or without any its trainable parameters.
        reloaded: The denoiser of the reloaded pipeline.

    Returns:
        Largest difference over the largest value; infinity if a weight is missing on either side.
    """
    theirs = dict(_adapters(reloaded))
    ours: dict[str, Any] = dict(_adapters(trained))
    if not ours:
        theirs = dict(reloaded.named_parameters())
        ours = {name: part for name, part in trained.named_parameters() if part.requires_grad}
        if not ours.keys() <= theirs.keys():
            return math.inf
    elif ours.keys() != theirs.keys():
        return math.inf
    difference = largest = 0.0
    with torch.no_grad():
        for name, part in ours.items():
            own, other = _weight(part), _weight(theirs[name])
            if own.shape != other.shape:
                return math.inf
            apart = float((own - other.to(own.device)).abs().max())
            if not math.isfinite(apart):
                return math.inf
            largest, difference = max(largest, float(own.abs().max())), max(difference, apart)
    return difference / max(largest, torch.finfo(torch.float32).tiny)


def _adapters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def _weight(part: Any) -> Tensor:
    """A layer's update by its adapter, or a parameter; fp32."""
    weight: Tensor = part.get_delta_weight(ADAPTER) if isinstance(part, LoraLayer) else part
    return weight.float()
