"""ImageReward (arXiv 2304.05977): BLIP with a small head, trained on people's rankings.

The checkpoint is in the layout of the BLIP repository; here it is read into transformers' BLIP,
which is the same network under other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.frozen_network import FrozenNetworkReward, Precision
from aegpo.rewards.learned.linear_head import LinearHead
from aegpo.rewards.learned.weights import (
    check_file,
    check_folder,
    fetch_file,
    load_exactly,
    load_pretrained,
    load_tensors,
)

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the authors' data; the score is standardized by them."""

MAX_TOKENS = 35
"""Tokens of a prompt that are read; the rest is cut off, as in training."""

_PLACES = {
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "blip.visual_encoder.norm.": "vision.post_layernorm.",
    "blip.visual_encoder.blocks.": "vision.encoder.layers.",
    "blip.text_encoder.": "text.",
    "mlp.": "head.",
}
"""How a name in the published layout begins, and how it begins here."""

_IN_BLOCKS = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
"""Names inside a block of the image encoder, there and here; the others are the same."""

_UNUSED = (
    "blip.vision_proj.",  # of BLIP's contrastive loss
    "blip.text_proj.",
    "blip.text_encoder.embeddings.position_ids",  # 0, 1, 2, ...: a constant
)
"""Published tensors that the score does not depend on."""


class BlipScorer(nn.Module):
    """BLIP's image encoder, its text encoder that looks at the image, and the head.

    Args:
        vision: Of the image encoder.
        text: Of the text encoder, with `is_decoder` (so transformers calls cross-attention) and
            `encoder_hidden_size` equal to the image encoder's width.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = LinearHead(text.hidden_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The head's output for the text's first token, [CLS].

        Args:
            pixels: Normalized images, shape (n, 3, size, size).
            tokens: int64, shape (n, S).
            mask: 1 for a token, 0 for padding, int64, shape (n, S).

        Returns:
            Shape (n,), fp32.
        """
        image_tokens = self.vision(pixels).last_hidden_state
        # `is_decoder` of the call is another matter: False lets each token see the whole text.
        text = self.text(
            tokens, attention_mask=mask, encoder_hidden_states=image_tokens, is_decoder=False
        )
        scores: Tensor = self.head(text.last_hidden_state[:, 0])
        return scores


def convert_checkpoint(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names a published checkpoint's tensors as `BlipScorer` does.

    Args:
        published: Tensors under the names of the authors' code.

    Returns:
        The tensors that the score depends on. What is neither these nor known to be unused is left
        out with a warning: the authors read their file leniently too.
    """
    converted = {}
    strange = []
    for name, tensor in published.items():
        if name.startswith(_UNUSED):
            continue
        new = _rename(name)
        if new is None:
            strange.append(name)
        else:
            converted[new] = tensor
    if strange:
        warnings.warn(
            f"{len(strange)} tensors of the ImageReward checkpoint are unknown and left out: "
            f"{', '.join(strange[:3])}",
            stacklevel=2,
        )
    return converted


def _rename(name: str) -> str | None:
    """The name of a published tensor in `BlipScorer`; None if it has no place there."""
    for begin, place in _PLACES.items():
        if name.startswith(begin):
            rest = name.removeprefix(begin)
            if begin == "blip.visual_encoder.blocks.":
                for there, here in _IN_BLOCKS.items():
                    rest = rest.replace(there, here)
            return place + rest
    return None


class ImageReward(FrozenNetworkReward):
    """How people would rank an image for its prompt: standardized, about -2 to 2.

    The names and sizes of the published file are taken from the authors' code, and the computation
    is tested on small files of that layout; the published file itself has not been read yet. If it
    does not fit, `setup` says which tensors differ.

    Args:
        weights: Hub id of a repository with ImageReward.pt, or a path to that file.
        tokenizer: Hub id or folder of BERT's uncased tokenizer.
        batch_size: Images in one call of the network.
        dtype: Of the weights and activations of both encoders.

    Raises:
        FileNotFoundError: If `weights` or `tokenizer` is neither a path nor a hub id.
        ValueError: If another argument is out of range.
    """

    name = "image_reward"

    filename = "ImageReward.pt"
    """The checkpoint's name in the repository."""

    vision_config: ClassVar[dict[str, Any]] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    }
    """BLIP's "large" ViT; transformers' default epsilon is another."""

    text_config: ClassVar[dict[str, Any]] = {
        "vocab_size": 30524,  # BERT's and BLIP's [DEC] and [ENC]
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
    }
    """BERT base, as in the authors' med_config.json; transformers' default has 8 heads."""

    def __init__(
        self,
        weights: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        batch_size: int = 32,
        dtype: Precision = "float32",
    ) -> None:
        super().__init__(batch_size, dtype)
        check_file(weights, self.filename, "weights")
        check_folder(tokenizer, "tokenizer_config.json", "tokenizer")
        self.weights = weights
        self.tokenizer = tokenizer
        self._tokenizer: Any = None

    def load(self) -> Any:
        """BLIP and the head, from a checkpoint that must fill every tensor of theirs."""
        self._tokenizer = load_pretrained(AutoTokenizer, self.tokenizer, "tokenizer")
        tensors = load_tensors(fetch_file(self.weights, self.filename, "weights"))
        width = self.vision_config["hidden_size"]
        network = BlipScorer(
            BlipVisionConfig(**self.vision_config),
            BlipTextConfig(**self.text_config, encoder_hidden_size=width, is_decoder=True),
        )
        load_exactly(network, convert_checkpoint(tensors), f"weights={self.weights!r}")
        network.vision.to(self.dtype)
        network.text.to(self.dtype)
        return network

    def encode_prompt(self, prompt: str) -> Tensor:
        """The prompt's tokens and their mask, int64, shape (2, MAX_TOKENS)."""
        tokens = self._tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        return torch.cat([tokens.input_ids, tokens.attention_mask])

    def score(self, images: Tensor, features: Tensor) -> Tensor:
        """Standardized scores, shape (n,)."""
        pixels = clip_pixels(images, self.vision_config["image_size"], "crop")
        raw: Tensor = self.network(pixels.to(self.dtype), features[:, 0], features[:, 1])
        return (raw - MEAN) / STD
