"""What the tiny pipelines share: a CLIP tokenizer and encoder, and how a pipeline is made ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

WORDS: tuple[str, ...] = (
    *("a", "an", "and", "one", "two", "three", "four", "the", "of", "to", "on"),
    *("red", "green", "blue", "yellow", "purple", "orange", "circle", "square", "triangle"),
    *("circles", "squares", "triangles", "star", "stars", "left", "right", "above", "below"),
)
"""Words that the tiny tokenizer knows as single tokens; any other text falls back to letters."""
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
"""An autoencoder of Stable Diffusion's kind that halves height and width, in 4 channels."""
FLOW_VAE: dict[str, Any] = {**VAE, "use_quant_conv": False, "use_post_quant_conv": False}
"""The same as flow models have it."""


def tiny_clip_tokenizer(words: Sequence[str] = WORDS, max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer made in memory.

    Args:
        words: Lower-case ASCII words that become one token each.
        max_length: Tokens per prompt, start and end tokens included.

    Returns:
        The tokenizer.
    """
    letters = _byte_letters()
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for letter in letters:
        vocabulary[letter + "</w>"] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def tiny_clip_text_encoder(tokenizer: CLIPTokenizer, width: int = 16) -> nn.Module:
    """A two-layer CLIP text encoder of the given width, with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: nn.Module = CLIPTextModelWithProjection(config)
    return encoder


def _byte_letters() -> list[str]:
    """The 256 printable letters that byte-level tokenizers write for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]


def ready(pipeline: Any) -> Any:
    """Put all networks of a pipeline into evaluation mode, and leave its progress bar out."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
