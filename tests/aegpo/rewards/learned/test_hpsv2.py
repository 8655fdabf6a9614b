from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from tiny_rewards import (
    PROMPTS,
    SIZE,
    hpsv2_transform,
    pil_images,
    text_page,
    tiny_hpsv2,
    tiny_images,
)

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.hpsv2 import HPSv21

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(44, 62), (64, 64)])
def test_equals_the_authors_pipeline(tmp_path: Path, height: int, width: int) -> None:
    reward = tiny_hpsv2(tmp_path)
    reward.setup(CPU)
    images = tiny_images(height, width)
    model = open_clip.create_model("tiny-hps", pretrained=str(tmp_path / HPSv21.filename))
    model.eval()
    tokens = open_clip.get_tokenizer("tiny-hps")(PROMPTS)
    transform = hpsv2_transform(SIZE)
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in pil_images(images)])
        seen, read, _ = model(pixels, tokens)
        expected = (seen @ read.T).diagonal()
    scores = reward(images, PROMPTS, [{}] * 5)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert scores.std() > 0.1


@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (768, 1024), (100, 60), (201, 224)])
def test_edges_overshoot_as_in_the_authors_tensors(tmp_path: Path, height: int, width: int) -> None:
    reward = tiny_hpsv2(tmp_path)
    reward.setup(CPU)
    page = text_page()[:, :, :height, :width]
    expected = hpsv2_transform(224)(pil_images(page)[0])[None]
    pixels = clip_pixels(page, **reward.pixel_settings | {"size": 224})
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)
    if height == width:  # elsewhere most of the strokes keep their size or grow
        clipped = clip_pixels(page, **reward.pixel_settings | {"size": 224, "clip": True})
        assert ((clipped - expected).abs() > 0.02).float().mean() > 0.1


def test_published_settings() -> None:
    reward = HPSv21()
    assert (reward.architecture, reward.filename) == ("ViT-H-14", "HPS_v2.1_compressed.pt")
    assert open_clip.get_model_config("ViT-H-14")["vision_cfg"]["image_size"] == 224
    assert reward.name == "hpsv21" and reward.range == (-1, 1) and reward.deterministic


def test_another_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    reward = tiny_hpsv2(tmp_path)
    tensors = torch.load(tmp_path / HPSv21.filename, weights_only=True)["state_dict"]
    tensors["score_predictor.weight"] = tensors.pop("visual.proj")
    torch.save({"state_dict": tensors}, tmp_path / HPSv21.filename)
    with pytest.raises(ValueError) as caught:
        reward.setup(CPU)
    message = str(caught.value)
    assert "1 missing (visual.proj, ...), 1 unknown (score_predictor.weight, ...)" in message
    assert message.startswith("weights=") and "\n" not in message
    with pytest.raises(FileNotFoundError, match=r"^weights='absent\.pt' is neither a file"):
        HPSv21("absent.pt")
