"""Policies of published size with random weights: what a full-size run needs, and no download.

The denoiser is drawn on the card if there is one, in its own dtype. The text encoders are zeros in
CPU memory: their size and their way to the card are real, what they say of a text is not. Images
are noise; seconds and bytes are those of the real model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from published_pipelines import PIPELINES
from torch import nn

from aegpo.policies.diffusers_policy import DiffusersPolicy
from aegpo.policies.families.flux import Flux
from aegpo.policies.families.stable_diffusion import StableDiffusion
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.policies.families.stable_diffusion_xl import StableDiffusionXL

TINY: dict[str, dict[str, Any]] = {
    "sd35_medium": {
        **{"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128},
        **{"dual_attention_layers": [0], "pos_embed_max_size": 64},
    },
    "flux1_dev": {
        **{"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
        **{"attention_head_dim": 32, "axes_dims_rope": [8, 12, 12]},
    },
    "sdxl": {"block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 1, 1]},
    "sd15": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
}
"""What `tiny` changes in the published configuration of the denoiser."""
TINY_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TINY_ENCODER = {
    **{"num_hidden_layers": 1, "num_layers": 1, "vocab_size": 1000},
    **{"intermediate_size": 64, "d_ff": 64},
}


class RandomWeights(DiffusersPolicy):
    """A policy of published size whose folder, made by `write_pipeline`, has no weights."""

    model: ClassVar[str]
    tiny: ClassVar[bool] = False

    def load_clean_pipeline(self) -> Any:
        """Builds the networks; tokenizers and scheduler are read from the folder."""
        class_name, parts = PIPELINES[self.model]
        device = "cuda" if torch.cuda.is_available() and not self.tiny else "cpu"
        built: dict[str, nn.Module] = {}
        for name, (library, part_class, config) in parts.items():
            if library == "transformers":
                built[name] = self._zeros(part_class, config)
            elif name == self.denoiser_name and self.quantize is not None:
                built[name] = quantized_denoiser(part_class, config, self.quantize, device)
            else:
                small = TINY[self.model] if name == self.denoiser_name else TINY_VAE
                changed = {**config, **small} if self.tiny else config
                built[name] = self._random(part_class, changed, device)
        pipeline = getattr(diffusers, class_name).from_pretrained(
            self._source, local_files_only=True, **built, **self.load_options
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _random(self, part_class: str, config: dict[str, Any], device: str) -> nn.Module:
        with torch.random.fork_rng(), torch.device(device), default_dtype(self._frozen_dtype):
            torch.manual_seed(0)
            network: nn.Module = getattr(diffusers, part_class)(**config)
        return network.to(self._frozen_dtype).eval()

    def _zeros(self, part_class: str, config: dict[str, Any]) -> nn.Module:
        known = getattr(transformers, part_class)
        small = TINY_ENCODER if self.tiny else {}
        with torch.device("meta"):
            network: nn.Module = known(known.config_class(**{**config, **small}))
        network = network.to(self._frozen_dtype).to_empty(device="cpu").eval()
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data.zero_()
        return network


class RandomStableDiffusion3(RandomWeights, StableDiffusion3):
    """Stable Diffusion 3.5 Medium."""

    model = "sd35_medium"


class RandomFlux(RandomWeights, Flux):
    """FLUX.1-dev."""

    model = "flux1_dev"


class RandomStableDiffusionXL(RandomWeights, StableDiffusionXL):
    """Stable Diffusion XL."""

    model = "sdxl"


class RandomStableDiffusion(RandomWeights, StableDiffusion):
    """Stable Diffusion 1.5."""

    model = "sd15"


CLASSES = {
    known.model: known
    for known in (
        RandomStableDiffusion3,
        RandomFlux,
        RandomStableDiffusionXL,
        RandomStableDiffusion,
    )
}
"""The policies by the name of their model file in configs/models."""


def quantized_denoiser(
    part_class: str, config: dict[str, Any], kind: str, device: str
) -> nn.Module:
    """Draws a denoiser layer by layer into 4 or 8 bits, so that it never lies there whole.

    Args:
        part_class: Class of the denoiser.
        config: Its configuration.
        kind: "nf4" or "int8".
        device: Where it ends up.

    Returns:
        The denoiser with bitsandbytes' linear layers, as diffusers would have loaded it.
    """
    import bitsandbytes as bnb
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

    four = kind == "nf4"
    settings = BitsAndBytesConfig(
        load_in_4bit=four,
        load_in_8bit=not four,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with torch.device("meta"), default_dtype(torch.bfloat16):
        network: Any = getattr(diffusers, part_class)(**config)
        network = replace_with_bnb_linear(
            network, modules_to_not_convert=[], quantization_config=settings
        )
    generator = torch.Generator(device=device).manual_seed(0)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            drawn = torch.randn(
                parameter.shape, generator=generator, device=device, dtype=torch.bfloat16
            )
            drawn *= 0.02 if parameter.dim() > 1 else 0.0
            if parameter.dim() == 1 and name == "weight":
                drawn += 1  # a norm's
            if name == "weight" and isinstance(module, bnb.nn.Linear4bit):
                made: Any = bnb.nn.Params4bit(
                    drawn.cpu(), requires_grad=False, quant_type="nf4", module=module
                )
            elif name == "weight" and isinstance(module, bnb.nn.Linear8bitLt):
                made = bnb.nn.Int8Params(drawn.cpu(), requires_grad=False, has_fp16_weights=False)
            else:
                made = nn.Parameter(drawn, requires_grad=False)
            setattr(module, name, made.to(device))
    network.is_quantized = True
    network.is_loaded_in_4bit, network.is_loaded_in_8bit = four, not four
    network.quantization_method = settings.quant_method
    network.config["quantization_config"] = settings
    return network.eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new parameters have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
