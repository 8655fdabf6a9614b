"""Tiny FLUX.1 and FLUX.2 pipelines with random weights: the real classes, well below a megabyte.

Every builder depends on `seed` alone and leaves torch's global random state as it found it. Images
are 2 * sample_size pixels, latents (channels, sample_size, sample_size): with resolution=16 there
are 16 image tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from aegpo.tiny.parts import (
    FLOW_VAE,
    VAE,
    WORDS,
    ready,
    tiny_clip_text_encoder,
    tiny_clip_tokenizer,
)

# A chat template may be handed texts or lists of parts, as the two pipelines do.
MISTRAL_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] "
    "{% for part in message['content'] %}{{ part['text'] }} {% endfor %}{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def tiny_flux(*, seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """A FLUX.1 pipeline with two double and two single blocks.

    Args:
        seed: Of the random weights.
        guidance_embeds: Give the transformer the guidance embedding of dev, or none, as schnell.

    Returns:
        The pipeline, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip_tokenizer, t5_tokenizer = tiny_clip_tokenizer(), tiny_t5_tokenizer()
        clip = CLIPTextModel(tiny_clip_text_encoder(clip_tokenizer).config)
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer),
                **{"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
            )
        )
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKL(**FLOW_VAE, sample_size=16, scaling_factor=0.7, shift_factor=0.1)
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if guidance_embeds
        else FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    return ready(
        FluxPipeline(
            scheduler=scheduler,
            vae=vae,
            text_encoder=clip,
            tokenizer=clip_tokenizer,
            text_encoder_2=t5,
            tokenizer_2=t5_tokenizer,
            transformer=transformer,
        )
    )


def tiny_flux2(*, seed: int = 0) -> Flux2Pipeline:
    """A FLUX.2 [dev] pipeline: a Mistral 3 of 30 layers, which the pipeline reads three of."""
    tokenizer = tiny_word_tokenizer()
    text = {
        **{"model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 8},
        **{"intermediate_size": 16, "num_hidden_layers": 30, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 4},
    }
    vision = {
        **{"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Mistral3ForConditionalGeneration(
            Mistral3Config(
                text_config=text,
                vision_config=vision,
                image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            )
        )
        parts = _flux2_parts(guidance_embeds=True)
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(),
        tokenizer=tokenizer,
        chat_template=MISTRAL_TEMPLATE,
    )
    return ready(Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **parts))


def tiny_flux2_klein(*, seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    """A FLUX.2 [klein] pipeline: a Qwen 3 of 27 layers, which the pipeline reads three of.

    Args:
        seed: Of the random weights.
        is_distilled: Whether it says that it is distilled to few steps.

    Returns:
        The pipeline, on the CPU.
    """
    tokenizer = tiny_qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=27,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
            )
        )
        parts = _flux2_parts(guidance_embeds=False)
    return ready(
        Flux2KleinPipeline(
            text_encoder=encoder, tokenizer=tokenizer, is_distilled=is_distilled, **parts
        )
    )


def tiny_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows `WORDS` and letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    pieces += [(chr(code), -4.0) for code in range(ord("a"), ord("z") + 1)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def tiny_word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that pads on the left, as Mistral's does."""
    special = ("<unk>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[system]", "[user]")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", padding_side="left"
    )


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer that knows single bytes only."""
    letters = [letter for letter in tiny_clip_tokenizer(words=()).get_vocab() if len(letter) == 1]
    vocabulary = {letter: index for index, letter in enumerate(sorted(letters))}
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[token] = len(vocabulary)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=QWEN_TEMPLATE,
    )


def _flux2_parts(*, guidance_embeds: bool) -> dict[str, Any]:
    """Transformer, autoencoder and scheduler of a FLUX.2 pipeline."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(**VAE, sample_size=16)
    # Statistics of no trivial value, or the test would not see whether they are used.
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler}
