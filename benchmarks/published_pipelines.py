"""The networks of published pipelines as configuration files, without weights.

What is not written here is the default of the diffusers or transformers class. Numbers of
parameters check it: `NUM_PARAMETERS` of the denoisers, from their model cards and papers. The
tokenizers are stand-ins that know no words: only lengths matter to a plan.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_L: dict[str, Any] = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    **{"num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768},
}
CLIP_G: dict[str, Any] = {
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32},
    **{"num_attention_heads": 20, "max_position_embeddings": 77, "projection_dim": 1280},
}
T5_XXL: dict[str, Any] = {
    **{"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24},
    **{"num_heads": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
VAE_16: dict[str, Any] = {
    **VAE,
    **{"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
}

DIFFUSION: dict[str, Any] = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"steps_offset": 1, "timestep_spacing": "leading"},
}

Part = tuple[str, str, dict[str, Any]]
"""Library, class and configuration of a part."""

PIPELINES: dict[str, tuple[str, dict[str, Part]]] = {
    "sd35_medium": (
        "StableDiffusion3Pipeline",
        {
            "transformer": (
                "diffusers",
                "SD3Transformer2DModel",
                {
                    **{"num_layers": 24, "num_attention_heads": 24},
                    **{"caption_projection_dim": 1536, "pos_embed_max_size": 384},
                    **{"dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"},
                },
            ),
            "vae": ("diffusers", "AutoencoderKL", VAE_16),
            "text_encoder": ("transformers", "CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": ("transformers", "T5EncoderModel", T5_XXL),
        },
    ),
    "flux1_dev": (
        "FluxPipeline",
        {
            "transformer": ("diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
            "vae": ("diffusers", "AutoencoderKL", VAE_16),
            "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
            "text_encoder_2": ("transformers", "T5EncoderModel", T5_XXL),
        },
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "unet": (
                "diffusers",
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "block_out_channels": [320, 640, 1280],
                    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
                    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
                    "transformer_layers_per_block": [1, 2, 10],
                    "attention_head_dim": [5, 10, 20],
                    "cross_attention_dim": 2048,
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": ("diffusers", "AutoencoderKL", VAE),
            "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
        },
    ),
    "sd15": (
        "StableDiffusionPipeline",
        {
            "unet": (
                "diffusers",
                "UNet2DConditionModel",
                {"sample_size": 64, "cross_attention_dim": 768},
            ),
            "vae": ("diffusers", "AutoencoderKL", VAE),
            "text_encoder": ("transformers", "CLIPTextModel", CLIP_L),
        },
    ),
}
NUM_PARAMETERS = {"sd35_medium": 2.24, "flux1_dev": 11.90, "sdxl": 2.57, "sd15": 0.86}
"""Of the denoisers, in billions."""


SCHEDULERS: dict[str, Part] = {
    "sd35_medium": ("diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux1_dev": (
        "diffusers",
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "use_dynamic_shifting": True},
    ),
    "sdxl": ("diffusers", "EulerDiscreteScheduler", DIFFUSION),
    "sd15": ("diffusers", "DDIMScheduler", {**DIFFUSION, "set_alpha_to_one": False}),
}
ABSENT = ("feature_extractor", "image_encoder", "safety_checker")
"""Parts of a pipeline's index that published folders leave empty or nobody loads here."""


def write_pipeline(name: str, folder: Path) -> Path:
    """Writes the JSON files of a pipeline's networks to a folder and returns it."""
    class_name, parts = PIPELINES[name]
    parts = {**parts, "scheduler": SCHEDULERS[name]}
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in parts if "text_" in part]
    index: dict[str, Any] = {"_class_name": class_name}
    index |= {part: [row[0], row[1]] for part, row in parts.items()}
    expected = inspect.signature(getattr(diffusers, class_name)).parameters
    index |= {part: [None, None] for part in ABSENT if part in expected}
    folder.mkdir(parents=True)
    for part, (_, part_class, config) in parts.items():
        (folder / part).mkdir()
        config = {"_class_name": part_class, "model_type": MODEL_TYPES.get(part_class), **config}
        written = {key: value for key, value in config.items() if value is not None}
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / file).write_text(json.dumps(written))
    for part in tokenizers:
        long = parts[part.replace("tokenizer", "text_encoder")][1] == "T5EncoderModel"
        tokenizer = wordless_t5() if long else wordless_clip()
        tokenizer.save_pretrained(folder / part)
        index[part] = ["transformers", type(tokenizer).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def wordless_clip() -> CLIPTokenizer:
    """A tokenizer of 77 tokens that knows where a text begins and ends."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def wordless_t5() -> T5Tokenizer:
    """A tokenizer with nothing but padding, end and unknown tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


MODEL_TYPES = {
    "CLIPTextModel": "clip_text_model",
    "CLIPTextModelWithProjection": "clip_text_model",
    "T5EncoderModel": "t5",
}
