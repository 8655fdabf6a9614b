"""SANA as a policy (arXiv 2410.10629)."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor, nn

from aegpo.entropy.tokens import TokenLayout
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.diffusers_policy import scaled_decode
from aegpo.policies.families.flow_policy import FlowPolicy

HUMAN_INSTRUCTION: list[str] = (
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
"""Lines that the pipeline puts before a prompt, unless it is told otherwise."""

_SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
_CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


class Sana(FlowPolicy):
    """A SANA or SANA 1.5 pipeline.

    SANA is published with a DPM-Solver, whose steps no stochastic sampler shares: this policy runs
    a FlowMatchEulerDiscreteScheduler with the same flow shift, and images of the pipeline are the
    policy's once it has that scheduler. `sigma_spacing` "uniform" gives the DPM-Solver's noise
    levels to 0.001.

    Its self-attention is linear and has no softmax, hence no entropy: recorded is the
    cross-attention, where image tokens look at the text.

    LoRA groups: "attention" (both), "self_attention", "cross_attention".

    Args:
        pretrained: Hub id or folder of a SanaPipeline.
        max_sequence_length: Text tokens per prompt.
        complex_human_instruction: Lines put before every prompt but the negative one; None for
            none of them.
        **common: Arguments of `FlowPolicy` and `DiffusersPolicy`.

    Raises:
        ValueError: If an argument is out of range, or the scheduler is not for flow matching.
    """

    pipeline_class = SanaPipeline
    replaces_scheduler = True
    text_arguments = (*FlowPolicy.text_arguments, "complex_human_instruction")
    lora_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": (*_SELF, *_CROSS),
        "self_attention": _SELF,
        "cross_attention": _CROSS,
    }

    def __init__(
        self,
        pretrained: str,
        max_sequence_length: int = 300,
        complex_human_instruction: list[str] | None = HUMAN_INSTRUCTION,
        **common: Any,
    ) -> None:
        if max_sequence_length < 1:
            raise ValueError(f"max_sequence_length={max_sequence_length}; it must be 1 or more")
        super().__init__(pretrained, **common)
        self.max_sequence_length = max_sequence_length
        self.complex_human_instruction = complex_human_instruction

    def attention_layers(self) -> list[tuple[str, nn.Module]]:
        """The cross-attention layers, the only ones with a softmax."""
        return [layer for layer in super().attention_layers() if layer[0].endswith("attn2")]

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The velocity, noise - data, of one call of the transformer, shape (n, C, H, W)."""
        dtype = self.compute_dtype
        prediction: Tensor = self.denoiser(
            hidden_states=latents.to(dtype),
            timestep=self.timestep(sigma) * self.trained.config.timestep_scale,
            encoder_hidden_states=cond.embeds.to(dtype),
            encoder_attention_mask=cond.mask,
            return_dict=False,
        )[0]
        # A model that also learned its variance predicts it in further channels.
        return prediction[:, : latents.shape[1]]

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Runs Gemma on the prompts behind their instruction."""
        return self._encode(texts, self.complex_human_instruction)

    def encode_negative(self) -> Conditioning:
        """The row that guidance subtracts: `negative_prompt`, which gets no instruction."""
        return self._encode([self.negative_prompt], None)

    def blank_conditioning(self, num_rows: int) -> Conditioning:
        """Rows of `max_sequence_length` tokens."""
        length, width = self.max_sequence_length, self.trained.config.caption_channels
        return Conditioning(
            torch.zeros(num_rows, length, width, device=self.device),
            mask=torch.ones(num_rows, length, dtype=torch.bool, device=self.device),
        )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Undoes the latent scaling and runs the deep-compression decoder."""
        return scaled_decode(self.vae, latents)

    def token_layout(self, cond: Conditioning) -> TokenLayout:
        """Image tokens look at text tokens in the layers named attn2."""
        return TokenLayout(
            num_image=self.num_image_tokens,
            num_text=cond.embeds.shape[1],
            image_first=True,
            text_mask=cond.mask,
            cross_layers=("attn2",),
        )

    def sampling_scheduler(self, scheduler: Any) -> Any:
        """The Euler scheduler with the flow shift of the pipeline's own, or with `shift`."""
        return super().sampling_scheduler(flow_euler_scheduler(scheduler))

    def pipeline_arguments(self, num_steps: int) -> dict[str, Any]:
        """Those of every flow model, and what the pipeline would otherwise decide by itself."""
        arguments = super().pipeline_arguments(num_steps)
        # Sizes off the published list would be drawn at another one and resized.
        arguments["use_resolution_binning"] = False
        arguments["complex_human_instruction"] = self.complex_human_instruction
        if self.complex_human_instruction == HUMAN_INSTRUCTION:
            del arguments["complex_human_instruction"]  # many lines, and the pipeline's own
        return arguments

    def _encode(self, texts: list[str], instruction: list[str] | None) -> Conditioning:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        return Conditioning(embeds, mask=mask.bool())


def flow_euler_scheduler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """The Euler scheduler of a flow-matching model that was published with another one.

    Args:
        scheduler: A FlowMatchEulerDiscreteScheduler with a static shift, or a scheduler with
            `use_flow_sigmas` and its `flow_shift` (DPM-Solver, UniPC).

    Returns:
        The first kind as it is; for the second kind a new one with the same shift.

    Raises:
        ValueError: If it is neither.
    """
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not config.use_dynamic_shifting:
        return scheduler
    if not config.get("use_flow_sigmas"):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} has no static flow shift; give a pipeline with "
            "use_flow_sigmas, as SANA is published, or with a FlowMatchEulerDiscreteScheduler "
            "without dynamic shifting"
        )
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config.num_train_timesteps, shift=config.flow_shift
    )
