from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_rewards import head_tensors, pil_images, tiny_aesthetic, tiny_images
from transformers import CLIPModel
from transformers.models.clip import CLIPImageProcessorPil

from aegpo.rewards.learned.aesthetic import AestheticV2

CPU = torch.device("cpu")


def test_equals_five_matrix_products_of_the_library_embedding(tmp_path: Path) -> None:
    reward = tiny_aesthetic(tmp_path)
    reward.setup(CPU)
    images = tiny_images()
    model = CLIPModel.from_pretrained(tmp_path, local_files_only=True).eval()
    # OpenAI's mean and std, whatever the folder says: the predictor was trained with them.
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    with torch.no_grad():
        pixels = processor(pil_images(images), return_tensors="pt").pixel_values
        pooled = model.vision_model(pixels).pooler_output
    hidden = pooled @ model.visual_projection.weight.detach().T
    hidden = hidden / hidden.norm(dim=-1, keepdim=True)
    tensors = torch.load(tmp_path / AestheticV2.filename, weights_only=True)
    for layer in (0, 2, 4, 6, 7):
        hidden = hidden @ tensors[f"layers.{layer}.weight"].T + tensors[f"layers.{layer}.bias"]
    scores = reward(images, [""] * 5, [{}] * 5)
    torch.testing.assert_close(scores, hidden[:, 0], rtol=0, atol=5e-3)
    assert scores.std() > 0.1


def test_a_predictor_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    reward = tiny_aesthetic(tmp_path)
    torch.save(head_tensors(24, "", torch.Generator()), tmp_path / AestheticV2.filename)
    with pytest.raises(ValueError, match=r"^weights=.*1 of another shape \(layers.0.weight"):
        reward.setup(CPU)
    with pytest.raises(FileNotFoundError, match=r"^clip='nowhere'"):
        AestheticV2(clip="nowhere")
