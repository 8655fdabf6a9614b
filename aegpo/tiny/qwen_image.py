"""A tiny Qwen-Image pipeline with random weights, and the tokenizer of the Qwen family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from aegpo.tiny.parts import WORDS, ready

TEMPLATE_WORDS: tuple[str, ...] = (
    *("system", "Describe", "the", "image", "by", "detailing", "color", "shape", "size", "texture"),
    *("quantity", "text", "spatial", "relationships", "of", "objects", "and", "background"),
    *("user", "assistant"),
)
"""Words of Qwen-Image's prompt template: with them its 34 tokens are 34 here, too."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_pairs(words: Sequence[str], space: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of bytes and words, and the merges that lead to the words.

    Args:
        words: ASCII words that become one token each, with or without a space before them.
        space: How the tokenizer writes a space.

    Returns:
        The vocabulary and the merges.
    """
    vocabulary = {letter: i for i, letter in enumerate(sorted({*ByteLevel.alphabet(), space}))}
    merges: list[tuple[str, str]] = []
    # With their space first: such merges never meet inside of another word.
    for word in [*(space + word for word in words), *words]:
        left = word[0]
        for right in word[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    return vocabulary, merges


def tiny_qwen_tokenizer(words: Sequence[str] = (*TEMPLATE_WORDS, *WORDS)) -> Qwen2Tokenizer:
    """Qwen's byte-level tokenizer with few words and a short chat template, made in memory."""
    vocabulary, merges = byte_pairs(words, "Ġ")
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[special] = len(vocabulary)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen_image(*, seed: int = 0) -> QwenImagePipeline:
    """A Qwen-Image pipeline of ~0.1 M parameters, scheduler set up as the published one's.

    The autoencoder halves height and width and has 4 channels; patches are 2x2: images of 16 pixels
    are latents (4, 8, 8) and 16 image tokens. The text is embedded in 32 channels.

    Args:
        seed: Of the random weights.

    Returns:
        The pipeline, on the CPU.
    """
    tokenizer = tiny_qwen_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 48}
    config = Qwen2_5_VLConfig(
        text_config={
            **size,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **size,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Qwen2_5_VLForConditionalGeneration(config)
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        )
    pipeline = QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    return ready(pipeline)
