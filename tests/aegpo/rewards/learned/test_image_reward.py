from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_rewards import (
    BLIP_TEXT,
    BLIP_VISION,
    PROMPTS,
    blip_tensors,
    pil_images,
    tiny_image_reward,
    tiny_images,
)
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip import CLIPImageProcessorPil

from aegpo.rewards.learned.image_reward import ImageReward, convert_checkpoint

CPU = torch.device("cpu")


class Published:
    """ImageReward written out from the tensors' published names; counts which it has read."""

    def __init__(self) -> None:
        self.tensors = blip_tensors()
        self.read: list[str] = []

    def get(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return x * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def see(self, pixels: Tensor) -> Tensor:
        """Image tokens, shape (n, 17, 24)."""
        eye, heads = "blip.visual_encoder", BLIP_VISION["num_attention_heads"]
        kernel, bias = (self.get(f"{eye}.patch_embed.proj.{part}") for part in ("weight", "bias"))
        patches = F.conv2d(pixels, kernel, bias, stride=8).flatten(2).transpose(1, 2)
        first = self.get(f"{eye}.cls_token").expand(len(pixels), -1, -1)
        x = torch.cat([first, patches], dim=1) + self.get(f"{eye}.pos_embed")
        for layer in range(BLIP_VISION["num_hidden_layers"]):
            block = f"{eye}.blocks.{layer}"
            qkv = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6))
            x = x + self.linear(f"{block}.attn.proj", attend(*qkv.chunk(3, dim=-1), heads))
            inner = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{eye}.norm", x, 1e-6)

    def look(self, block: str, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """One attention of the text encoder with its residual."""
        q = self.linear(f"{block}.self.query", x)
        k, v = (self.linear(f"{block}.self.{name}", source) for name in ("key", "value"))
        seen = attend(q, k, v, BLIP_TEXT["num_attention_heads"], mask)
        return self.norm(
            f"{block}.output.LayerNorm", x + self.linear(f"{block}.output.dense", seen), 1e-12
        )

    def score(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The standardized score, shape (n,)."""
        image = self.see(pixels)
        reader = "blip.text_encoder"
        x = self.get(f"{reader}.embeddings.word_embeddings.weight")[tokens]
        x = x + self.get(f"{reader}.embeddings.position_embeddings.weight")[: tokens.shape[1]]
        x = self.norm(f"{reader}.embeddings.LayerNorm", x, 1e-12)
        for layer in range(BLIP_TEXT["num_hidden_layers"]):
            block = f"{reader}.encoder.layer.{layer}"
            x = self.look(f"{block}.attention", x, x, mask)
            x = self.look(f"{block}.crossattention", x, image, None)
            inner = F.gelu(self.linear(f"{block}.intermediate.dense", x))
            inner = self.linear(f"{block}.output.dense", inner)
            x = self.norm(f"{block}.output.LayerNorm", x + inner, 1e-12)
        x = x[:, 0]
        for index in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{index}", x)
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention, head by head; `mask` (n, S) is 0 for keys that are padding."""
    out = []
    for a, b, c in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        logits = a @ b.transpose(1, 2) / a.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(mask[:, None] == 0, -torch.inf)
        out.append(logits.softmax(dim=-1) @ c)
    return torch.cat(out, dim=-1)


def test_equals_the_published_network_written_out(tmp_path: Path) -> None:
    reward = tiny_image_reward(tmp_path)
    reward.setup(CPU)
    images = tiny_images()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor(pil_images(images), return_tensors="pt").pixel_values
    vocabulary = reward._tokenizer.get_vocab()
    tokens = torch.zeros(5, 35, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        words = ["[CLS]", *prompt.split(), "[SEP]"]
        tokens[row, : len(words)] = torch.tensor([vocabulary[word] for word in words])
    published = Published()
    expected = published.score(pixels, tokens, (tokens != 0).long())
    scores = reward(images, PROMPTS, [{}] * 5)
    torch.testing.assert_close(scores, expected, rtol=0, atol=5e-3)
    # With the very same pixels only the order of sums differs.
    raw = reward.network(pixels, tokens, (tokens != 0).long())
    standardized = (raw - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(standardized, expected, rtol=0, atol=2e-5)

    used = set(published.read)
    assert len(published.read) == len(used), "every tensor is used once"
    unused = set(published.tensors) - used
    assert {name.rsplit(".", 1)[0] for name in unused} == {
        "blip.vision_proj",
        "blip.text_proj",
        "blip.text_encoder.embeddings",  # position_ids
    }
    assert len(convert_checkpoint(published.tensors)) == len(used)
    assert set(convert_checkpoint(published.tensors)) == set(reward.network.state_dict())


def test_a_checkpoint_that_differs(tmp_path: Path) -> None:
    tensors = blip_tensors()
    tensors["blip.strange"] = torch.zeros(1)
    with pytest.warns(UserWarning, match="1 tensors of the ImageReward .* left out: blip.strange"):
        convert_checkpoint(tensors)
    reward = tiny_image_reward(tmp_path)
    del tensors["blip.strange"], tensors["blip.visual_encoder.blocks.1.attn.proj.bias"]
    torch.save(tensors, tmp_path / ImageReward.filename)
    with pytest.raises(ValueError, match=r"1 missing \(vision.encoder.layers.1.self_attn.proj"):
        reward.setup(CPU)


def test_published_sizes() -> None:
    vision, text = ImageReward.vision_config, ImageReward.text_config
    assert (vision["hidden_size"], vision["num_hidden_layers"]) == (1024, 24)
    for config in (vision, text):
        assert config["hidden_size"] // config["num_attention_heads"] == 64
    with pytest.raises(FileNotFoundError, match=r"^tokenizer='nowhere'"):
        ImageReward(tokenizer="nowhere")
