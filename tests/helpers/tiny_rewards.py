"""The learned rewards with tiny random networks, from weights in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_pipelines import WORDS, tiny_clip_tokenizer
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from aegpo.rewards.learned.aesthetic import AestheticV2
from aegpo.rewards.learned.hpsv2 import HPSv21
from aegpo.rewards.learned.image_reward import ImageReward
from aegpo.rewards.learned.open_clip_similarity import OpenCLIPSimilarity
from aegpo.rewards.learned.pickscore import PickScore
from aegpo.shapes.pipeline import shapes_tokenizer

SIZE = 32
"""Height and width in pixels of what the tiny networks see."""

PROMPTS = ["a red circle", "two blue squares", "a star above a triangle", "a red circle", "stars"]

BLIP_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
BLIP_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
    "bos_token_id": 2,
    "sep_token_id": 3,
}


def tiny_images(height: int = 44, width: int = 62) -> Tensor:
    """Five images of whole 8-bit values: smooth colors with sharp noise, (5, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(5, 3, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = smooth + 0.3 * torch.randn(5, 3, height, width, generator=generator)
    return (noisy.clamp(0, 1) * 255).round() / 255


def pil_images(images: Tensor) -> list[Image.Image]:
    """The same images as PIL has them, 8-bit RGB."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def text_page(side: int = 1024) -> Tensor:
    """A white page with black strokes of a few pixels, as dense as text, (1, 3, side, side)."""
    generator = torch.Generator().manual_seed(4)
    strokes = (torch.rand(side // 4, side // 4, generator=generator) > 0.3).float()
    page = strokes.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return page.expand(1, 3, side, side).contiguous()


class ResizeMaxSize(torch.nn.Module):
    """The resizing of HPSv2's authors: the longer side to a size, black on the ends of the other.

    Written as their code has it, on what torchvision takes: a PIL image or a tensor.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        scale = self.size / float(max(height, width))
        new = [round(side * scale) for side in (height, width)]
        image = functional.resize(image, new, transforms.InterpolationMode.BICUBIC)
        down, across = self.size - new[0], self.size - new[1]
        ends = [across // 2, down // 2, across - across // 2, down - down // 2]
        return functional.pad(image, ends, fill=0)


def hpsv2_transform(size: int) -> transforms.Compose:
    """What HPSv2's authors compose: the image becomes a tensor of floats before it is resized."""
    return transforms.Compose(
        [
            transforms.ToTensor(),
            ResizeMaxSize(size),
            transforms.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )


def clip_scorer_transform(size: int) -> transforms.Compose:
    """What the public trainers' CLIP scorers compose, for tensors in [0, 1]."""
    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop((size, size)),
            transforms.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )


def tiny_hpsv2(folder: Path) -> HPSv21:
    """HPSv2.1 as {"state_dict": ...} of an open_clip model of two layers."""
    folder.mkdir(exist_ok=True)
    config = folder / "tiny-hps.json"
    vision = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**open_clip.get_model_config("tiny-hps"))
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, folder / HPSv21.filename)
    reward = HPSv21(str(folder))
    reward.architecture = "tiny-hps"
    return reward


def save_tiny_clip(folder: Path) -> Path:
    """A CLIP model of transformers and its processor, with a mean and std of its own."""
    tokenizer = tiny_clip_tokenizer()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 8,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embedding" not in name:
            parameter.data.mul_(3)  # so that images and prompts make a difference
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.25],
    ).save_pretrained(folder)
    return folder


def tiny_pickscore(folder: Path, **settings: Any) -> PickScore:
    """PickScore from one folder for both the model and the processor."""
    save_tiny_clip(folder)
    return PickScore(str(folder), str(folder), **settings)


def save_tiny_open_clip(folder: Path, **vision: Any) -> Path:
    """A model of open_clip with weights and tokenizer, and a mean and std of its own."""
    tokenizer = shapes_tokenizer()
    model = {
        "embed_dim": 16,
        "vision_cfg": {
            **{"image_size": SIZE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
            **vision,
        },
        "text_cfg": {
            **{"context_length": tokenizer.model_max_length, "vocab_size": len(tokenizer)},
            **{"width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "tokenizer"},
        },
    }
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    folder.mkdir(exist_ok=True)
    config = json.dumps({"model_cfg": model, "preprocess_cfg": pixels})
    (folder / "open_clip_config.json").write_text(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**model)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def tiny_open_clip(folder: Path) -> OpenCLIPSimilarity:
    """Any model of open_clip, from a folder."""
    return OpenCLIPSimilarity(str(save_tiny_open_clip(folder)))


def head_tensors(width: int, prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    """The five linear layers as both checkpoints name them."""
    widths = [width, 1024, 128, 64, 16, 1]
    tensors = {}
    for index, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        weight = torch.randn(after, before, generator=generator) / before**0.5
        tensors[f"{prefix}layers.{index}.weight"] = weight
        tensors[f"{prefix}layers.{index}.bias"] = torch.randn(after, generator=generator)
    return tensors


def tiny_aesthetic(folder: Path) -> AestheticV2:
    """The aesthetic predictor on the tiny CLIP model."""
    save_tiny_clip(folder)
    head = head_tensors(16, "", torch.Generator().manual_seed(1))
    torch.save(head, folder / AestheticV2.filename)
    return AestheticV2(str(folder), str(folder))


def blip_tensors() -> dict[str, Tensor]:
    """An ImageReward checkpoint: every name and shape as the authors' code makes them."""
    generator = torch.Generator().manual_seed(2)
    width, inner = BLIP_VISION["hidden_size"], BLIP_VISION["intermediate_size"]
    text, text_inner = BLIP_TEXT["hidden_size"], BLIP_TEXT["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, before: int, after: int) -> None:
        shapes[f"{name}.weight"] = (after, before)
        shapes[f"{name}.bias"] = (after,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    eye = "blip.visual_encoder"
    shapes[f"{eye}.cls_token"] = (1, 1, width)
    shapes[f"{eye}.pos_embed"] = (1, 1 + (SIZE // 8) ** 2, width)
    shapes[f"{eye}.patch_embed.proj.weight"] = (width, 3, 8, 8)
    shapes[f"{eye}.patch_embed.proj.bias"] = (width,)
    for layer in range(BLIP_VISION["num_hidden_layers"]):
        block = f"{eye}.blocks.{layer}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", width, inner)
        linear(f"{block}.mlp.fc2", inner, width)
    norm(f"{eye}.norm", width)

    reader = "blip.text_encoder"
    shapes[f"{reader}.embeddings.word_embeddings.weight"] = (BLIP_TEXT["vocab_size"], text)
    positions = BLIP_TEXT["max_position_embeddings"]
    shapes[f"{reader}.embeddings.position_embeddings.weight"] = (positions, text)
    norm(f"{reader}.embeddings.LayerNorm", text)
    for layer in range(BLIP_TEXT["num_hidden_layers"]):
        block = f"{reader}.encoder.layer.{layer}"
        for kind, source in (("attention", text), ("crossattention", width)):
            linear(f"{block}.{kind}.self.query", text, text)
            linear(f"{block}.{kind}.self.key", source, text)
            linear(f"{block}.{kind}.self.value", source, text)
            linear(f"{block}.{kind}.output.dense", text, text)
            norm(f"{block}.{kind}.output.LayerNorm", text)
        linear(f"{block}.intermediate.dense", text, text_inner)
        linear(f"{block}.output.dense", text_inner, text)
        norm(f"{block}.output.LayerNorm", text)
    linear("blip.vision_proj", width, 8)
    linear("blip.text_proj", text, 8)

    tensors = {
        name: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
        for name, shape in shapes.items()
    }
    for name in tensors:
        if "crossattention.self.value.weight" in name:
            tensors[name] *= 8  # so that the image makes a difference
    tensors[f"{reader}.embeddings.position_ids"] = torch.arange(positions)[None]
    return tensors | head_tensors(text, "mlp.", generator)


def tiny_image_reward(folder: Path) -> ImageReward:
    """ImageReward from a checkpoint in the published layout, and a BERT tokenizer of 40 words."""
    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.save(blip_tensors(), folder / ImageReward.filename)
    reward = ImageReward(str(folder), str(folder))
    reward.vision_config, reward.text_config = BLIP_VISION, BLIP_TEXT  # type: ignore[misc]
    return reward


BUILDERS = {
    "hpsv2": tiny_hpsv2,
    "open_clip": tiny_open_clip,
    "pickscore": tiny_pickscore,
    "aesthetic": tiny_aesthetic,
    "image_reward": tiny_image_reward,
}
"""Reward of each kind from weights in the folder given."""
