"""The bundled world's Stable Diffusion 3 pipeline: real diffusers classes, three million weights.

Everything that a large pipeline has is here in small, so that code written against
``StableDiffusion3Pipeline`` cannot tell the difference: two CLIP text encoders with their
tokenizers, a transformer with joint attention, an autoencoder and a flow-matching scheduler. There
is no T5; reload a saved folder with ``text_encoder_3=None, tokenizer_3=None``, as
:func:`load_pipeline` does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from aegpo.shapes.prompts import COLORS, NUMBERS, RELATIONS, SHAPES
from aegpo.shapes.splits import split

BASE = Path(__file__).parent / "base"
"""The bundled, pretrained pipeline."""

IMAGE_SIZE = 32
"""Side of a rendered image in pixels."""

MAX_TEXT_TOKENS = 10
"""Length of a tokenized prompt, start and end included; the longest prompt of the world has 8
words."""

WORDS = tuple(
    dict.fromkeys(
        [
            *("a", *NUMBERS, "and", *" ".join(RELATIONS).split(), *COLORS, *SHAPES),
            *(scene.text.split()[-1] for scene in split("train") if scene.category == "count"),
        ]
    )
)
"""Every word a prompt may hold, plurals last; each is a single token."""

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
"""Start and end of a text, as CLIP writes them; the end also pads."""


def _merge(word: list[str], left: str, right: str) -> list[str]:
    """Joins every neighboring ``left``, ``right`` of a word's pieces, from left to right."""
    joined: list[str] = []
    for piece in word:
        if joined and joined[-1] == left and piece == right:
            joined[-1] = left + right
        else:
            joined.append(piece)
    return joined


def shapes_tokenizer() -> CLIPTokenizer:
    """Builds a CLIP tokenizer in which every word of the world is one token.

    Returns:
        A byte-pair tokenizer over the small letters; an unknown word falls apart into pieces, as
        with the real one.
    """
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges: list[tuple[str, str]] = []
    # Byte-pair training on the word list itself: any other order of merges would let a pair of
    # one word break another ("ri" of "right" inside "triangle").
    while any(len(word) > 1 for word in words):
        left, right = next((word[0], word[1]) for word in words if len(word) > 1)
        merges.append((left, right))
        words = [_merge(word, left, right) for word in words]
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += [left + right for left, right in merges]
    vocab = {piece: row for row, piece in enumerate([*pieces, *SPECIAL])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TEXT_TOKENS)


def shapes_text_encoder(
    tokenizer: CLIPTokenizer, hidden_size: int, num_layers: int
) -> CLIPTextModelWithProjection:
    """Builds an untrained CLIP text encoder for ``tokenizer``.

    Args:
        tokenizer: Its vocabulary and length decide the embedding tables.
        hidden_size: Width of the encoder and of its projection.
        num_layers: Transformer layers, at least 2: the pipeline reads the second last.

    Returns:
        The encoder, in training mode, fp32.

    Raises:
        ValueError: If ``num_layers`` is below 2.
    """
    if num_layers < 2:
        raise ValueError(
            f"num_layers={num_layers}, but SD3 reads the text encoder's second last layer; "
            "use 2 or more"
        )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, hidden_size // 32),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def shapes_autoencoder(
    block_out_channels: tuple[int, ...] = (24, 32, 48), latent_channels: int = 4
) -> AutoencoderKL:
    """Builds an untrained autoencoder that halves the image once for every block but the last.

    Args:
        block_out_channels: Channels at each resolution, multiples of 8.
        latent_channels: Channels of the latent.

    Returns:
        The autoencoder, in training mode, fp32; ``shift_factor`` 0 and ``scaling_factor`` 1
        until the latents' statistics are known.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
        block_out_channels=block_out_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def shapes_pipeline(  # noqa: PLR0913  # settings, given by name
    vae: str | None = None,
    num_layers: int = 4,
    num_heads: int = 4,
    head_dim: int = 32,
    text_hidden_size: int = 64,
    text_layers: int = 2,
    patch_size: int = 2,
    seed: int = 0,
) -> StableDiffusion3Pipeline:
    """Builds the tiny pipeline around an autoencoder; transformer and text encoders are untrained.

    Args:
        vae: Folder of a saved ``AutoencoderKL``; the bundled one by default. "untrained" builds
            a new one.
        num_layers: Joint-attention blocks of the transformer.
        num_heads: Attention heads.
        head_dim: Width of a head; the transformer is ``num_heads * head_dim`` wide.
        text_hidden_size: Width of each of the two text encoders.
        text_layers: Layers of each text encoder.
        patch_size: Side in latent pixels of what is one image token, 1, 2 (16 tokens with the
            bundled autoencoder) or another divisor of the latent's side.
        seed: Seed of the initial weights.

    Returns:
        The pipeline, on the CPU in fp32.

    Raises:
        FileNotFoundError: If ``vae`` names a folder without an autoencoder.
        ValueError: If the latent's side is no multiple of ``patch_size``.
    """
    folder = BASE / "vae" if vae is None else Path(vae)
    if vae != "untrained" and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no autoencoder in '{folder}' (expected a config.json saved by AutoencoderKL); "
            "train one with configs/shapes_vae.yaml or give another folder"
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds every GPU
        if vae == "untrained":
            autoencoder = shapes_autoencoder()
        else:
            autoencoder = AutoencoderKL.from_pretrained(folder)
            # Or the pipeline would be saved with the path that this one was read from.
            autoencoder.register_to_config(_name_or_path="")
        tokenizer = shapes_tokenizer()
        encoders = [shapes_text_encoder(tokenizer, text_hidden_size, text_layers) for _ in "12"]
        downsampling = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        latent_size = IMAGE_SIZE // downsampling
        if patch_size < 1 or latent_size % patch_size:
            raise ValueError(
                f"patch_size={patch_size}, but the latent is {latent_size} pixels wide; "
                "give a divisor of that"
            )
        transformer = SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=patch_size,
            in_channels=autoencoder.config.latent_channels,
            out_channels=autoencoder.config.latent_channels,
            num_layers=num_layers,
            attention_head_dim=head_dim,
            num_attention_heads=num_heads,
            joint_attention_dim=2 * text_hidden_size,
            caption_projection_dim=num_heads * head_dim,
            pooled_projection_dim=2 * text_hidden_size,
            pos_embed_max_size=latent_size // patch_size,
            qk_norm="rms_norm",
        )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=shapes_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def load_pipeline(folder: str | Path = BASE) -> StableDiffusion3Pipeline:
    """Loads a saved pipeline that has no T5.

    Args:
        folder: Folder written by ``save_pretrained``; the bundled base by default.

    Returns:
        The pipeline, on the CPU in fp32, in evaluation mode.

    Raises:
        FileNotFoundError: If ``folder`` holds no pipeline.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(
            f"no pipeline in '{folder}' (expected model_index.json); give a folder saved by "
            "save_pretrained, for example the bundled aegpo/shapes/base"
        )
    with torch.device("cpu"):
        return StableDiffusion3Pipeline.from_pretrained(
            folder, text_encoder_3=None, tokenizer_3=None
        )
