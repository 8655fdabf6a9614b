"""What a policy says about the diffusers pipeline that its user will run after an export."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aegpo.policies.adapters.factors import Factors
from aegpo.policies.adapters.layouts import Form, Layout
from aegpo.policies.base import Policy

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


class Exportable(Policy):
    """A policy whose `save_pretrained` can be checked against diffusers itself.

    `aegpo.export.check.check_export` draws the same images twice: by the policy's deterministic
    rollout and by the ``__call__`` of a pipeline that shares no module with the policy. A policy
    says here how to build that pipeline and how to call it, and nothing more: the closer this stays
    to what a user of diffusers would type, the more the check is worth.
    """

    replaces_scheduler: bool = False
    """Whether `load_exported` gives a pipeline another scheduler than it was saved with."""

    @property
    def beneath(self) -> Mapping[str, Factors]:
        """What was merged into the weights below the trained ones: part of an export's adapters.

        Returns:
            Updates by the name of the denoiser's layer; none by default.
        """
        return {}

    @property
    def beneath_from(self) -> str | None:
        """Where `beneath` is from, for the model card; None without any."""
        return None

    @classmethod
    def layouts(cls, arguments: Mapping[str, Any]) -> tuple[Layout, ...]:
        """As what `save_as` can write it.

        Args:
            arguments: Arguments of the constructor, as given.

        Returns:
            The layouts; "diffusers" is `save_pretrained`.
        """
        del arguments
        return ("diffusers",)

    def save_as(self, folder: str | Path, form: Form) -> None:
        """Writes the policy in one of its `layouts`; `load_exported` reads each.

        Args:
            folder: Exists.
            form: Which, and what a file for other programs is called.
        """
        del form
        self.save_pretrained(folder)

    @abc.abstractmethod
    def load_exported(self, folder: str | Path) -> DiffusionPipeline:
        """Builds a pipeline from what `save_pretrained` wrote, as a user of diffusers does.

        Adapters are loaded onto the pretrained pipeline, read again from where the policy came
        from; a whole pipeline is loaded from the folder alone. No tensor is shared with the policy.

        Args:
            folder: What `save_pretrained` or `save_as` wrote.

        Returns:
            A pipeline on the CPU, in the policy's dtype, without a progress bar, with the scheduler
            whose steps are the policy's.
        """

    @abc.abstractmethod
    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """The arguments with which ``pipeline(prompt, ...)`` computes what the policy computes.

        Steps, guidance, resolution, text length, noise levels: all that is not the default of the
        pipeline's ``__call__``. Plain numbers, strings and lists of them, because they are printed
        in the model card.

        Args:
            num_steps: Denoising steps T, at least 1.

        Returns:
            Arguments by name, without prompt, latents and output type.
        """

    def pipeline_latents(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """Brings noise into the form that the pipeline's call takes as ``latents``.

        Args:
            noise: Standard normal, shape (n, C, H, W) fp32.
            dtype: Of the pipeline's denoiser.

        Returns:
            The noise in that dtype, unless the pipeline packs its latents or keeps them in fp32.
        """
        return noise.to(dtype)

    def tensor_arguments(self, pipeline: DiffusionPipeline, num_prompts: int) -> dict[str, Tensor]:
        """Arguments of the pipeline's call that are tensors, and so no part of a model card.

        Args:
            pipeline: What `load_exported` returned.
            num_prompts: Prompts n of the call.

        Returns:
            Tensors of n rows by name; none, unless the pipeline takes something in no other form.
        """
        del pipeline, num_prompts
        return {}

    def pipeline_images(
        self, pipeline: DiffusionPipeline, prompts: Sequence[str], noise: Tensor, num_steps: int
    ) -> Tensor:
        """Draws what a user of diffusers would get, starting at given noise.

        One call with `pipeline_arguments`: noise levels, encoding, guidance and decoding are left
        to the pipeline.

        Args:
            pipeline: What `load_exported` returned, on any device.
            prompts: n texts.
            noise: Standard normal, before `Policy.initial_latents`, shape (n, C, H, W) fp32.
            num_steps: Denoising steps T, at least 1.

        Returns:
            Images in [0, 1], shape (n, 3, H', W') fp32.
        """
        arguments = self.pipeline_arguments(num_steps)
        if "negative_prompt" in arguments:  # some pipelines want as many as there are prompts
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
        images: Tensor = pipeline(
            prompt=list(prompts),
            latents=self.pipeline_latents(noise.to(pipeline.device), denoiser_of(pipeline).dtype),
            output_type="pt",
            **arguments,
            **self.tensor_arguments(pipeline, len(prompts)),
        ).images
        return images.float()


def denoiser_of(pipeline: DiffusionPipeline) -> ModelMixin:
    """The part of a pipeline that denoises.

    Args:
        pipeline: A text-to-image pipeline.

    Returns:
        Its transformer, or its UNet.
    """
    found: ModelMixin = getattr(pipeline, "transformer", None) or pipeline.unet
    return found
