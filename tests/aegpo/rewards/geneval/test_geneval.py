"""The models behind GenEval: tiny random ones of the real classes, read by hand beside the code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from aegpo.prompts.sets.geneval import COLORS
from aegpo.rewards.geneval.clauses import DetectedObject
from aegpo.rewards.geneval.instance_segmentation import InstanceSegmenter
from aegpo.rewards.geneval.object_colors import ColorClassifier, crop_object
from aegpo.rewards.geneval.reward import GenEvalReward

CPU = torch.device("cpu")
QUERIES = 4
LABELS = {0: "dog", 1: "sofa", 2: "cat"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Mask2Former that is sure to see QUERIES dogs, of random outlines."""
    folder = tmp_path_factory.mktemp("detector")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=QUERIES,
            id2label=LABELS,
            label2id={name: number for number, name in LABELS.items()},
        )
        model = Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            model.class_predictor.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
            # Random features are small; larger ones make masks that differ between the queries.
            model.model.transformer_module.queries_features.weight.mul_(5)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIP in a folder as open_clip saves them."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 16,
            "patch_size": 8,
            "head_width": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(text))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def reward(detector: str, clip: str) -> GenEvalReward:
    reward = GenEvalReward(detector=detector, clip_model=clip, clip_pretrained=None, batch_size=2)
    reward.setup(CPU)
    return reward


def pictures(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, 6, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (48, 40))


def pixels() -> np.ndarray:
    return (pictures() * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def wants(count: int, **more: object) -> dict[str, object]:
    return {"include": [{"class": "dog", "count": count, **more}]}


def test_objects_are_those_of_the_raw_output(detector: str) -> None:
    found = InstanceSegmenter(detector, CPU).find(pixels(), 0.3)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector).eval()
    processor = Mask2FormerImageProcessor.from_pretrained(detector)
    assert len(found) == 3 and any(found)
    for image, objects in zip(pixels(), found, strict=True):
        with torch.no_grad():
            out = model(**processor(images=[image], return_tensors="pt"))
        masks = torch.nn.functional.interpolate(
            out.masks_queries_logits, (384, 384), mode="bilinear"
        )
        inside = masks[0] > 0
        sure = (masks[0].sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(1)
        scores = out.class_queries_logits[0].softmax(-1)[:, 0] * sure
        expected = sorted(score for score in scores.tolist() if score >= 0.3)
        assert sorted(item.score for item in objects) == pytest.approx(expected, abs=1e-4)
        for item in objects:
            assert item.label == "dog" and item.mask is not None
            assert item.mask.shape == (48, 40) and item.mask.dtype == bool
            rows, columns = np.nonzero(item.mask)
            corner = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box == corner


def test_numbers_are_scored_image_by_image(reward: GenEvalReward, detector: str) -> None:
    found = [len(o) for o in InstanceSegmenter(detector, CPU).find(pixels(), 0.3)]
    assert max(found) >= 2
    metadata = [wants(1), wants(2), wants(4)]
    scores = reward(pictures(), ["", "", ""], metadata)
    assert scores.dtype == torch.float32
    expected = [1 - abs(n - c) / n for n, c in zip((1, 2, 4), found, strict=True)]
    assert scores.tolist() == pytest.approx(expected)
    turned = reward(pictures().flip(0), ["", "", ""], metadata[::-1])
    assert torch.equal(turned.flip(0), scores)


def test_one_broken_image_is_missing(reward: GenEvalReward) -> None:
    images = pictures()
    images[1, 0, 0, 0] = float("inf")
    scores = reward(images, [""] * 3, [wants(2)] * 3)
    whole = reward(pictures(), [""] * 3, [wants(2)] * 3)
    assert scores.isnan().tolist() == [False, True, False]
    assert torch.equal(scores[[0, 2]], whole[[0, 2]])


def test_only_the_surest_objects_of_a_color_clause_are_looked_at(
    reward: GenEvalReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    def purple(picture: np.ndarray, objects: list[DetectedObject]) -> list[str]:
        seen.append([item.score for item in objects])
        return ["purple"] * len(objects)

    assert reward._segmenter is not None
    found = reward._segmenter.find(pixels()[:1], 0.3)[0]
    everything = wants(len(found), color="purple")
    monkeypatch.setattr(reward._colors, "name_colors", purple)
    assert reward(pictures(1), [""], [everything]).item() == 1
    assert reward(pictures(1), [""], [wants(len(found), color="red")]).item() == 0.5
    assert seen[0] == seen[1] == sorted((item.score for item in found), reverse=True)
    reward(pictures(1), [""], [wants(1, color="red")])
    assert seen[2] == seen[0][:1]


def test_an_object_is_cut_out_on_gray() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    mask[2, 2] = False
    crop = np.asarray(crop_object(picture, DetectedObject("dog", 1.0, (2, 1, 5, 3), mask=mask)))
    expected = picture[1:3, 2:5].copy()
    expected[1, 0] = 0x99
    assert np.array_equal(crop, expected)
    with pytest.raises(ValueError, match="dog was found without a mask"):
        crop_object(picture, DetectedObject("dog", 1.0, (2, 1, 5, 3)))


def test_colors_are_those_of_the_nearest_text(clip: str) -> None:
    mask = np.ones((48, 40), dtype=bool)
    dog = DetectedObject("dog", 1.0, (0, 0, 40, 48), mask=mask)
    colors = ColorClassifier(clip, None, CPU)
    named = [colors.name_colors(picture, [dog])[0] for picture in pixels()]

    model, preprocess = open_clip.create_model_from_pretrained(clip)
    tokenizer = open_clip.get_tokenizer(clip)
    with torch.no_grad():
        texts = torch.stack(
            [
                torch.nn.functional.normalize(
                    sum(
                        model.encode_text(tokenizer([text]), normalize=True)[0]
                        for text in (
                            f"a photo of a {color} dog",
                            f"a photo of a {color}-colored dog",
                            f"a photo of a {color} object",
                        )
                    ),
                    dim=0,
                )
                for color in COLORS
            ]
        )
        crops = torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels()])
        expected = (model.encode_image(crops) @ texts.T).argmax(1)
    assert named == [COLORS[number] for number in expected.tolist()]
    assert colors.name_colors(pixels()[0], []) == []


def test_ranges_belong_to_the_scoring() -> None:
    assert GenEvalReward().range == (-14, 1)
    assert GenEvalReward("accurate").range == GenEvalReward("strict").range == (0, 1)


def test_mistakes_are_told_in_one_line(reward: GenEvalReward, clip: str, tmp_path: Path) -> None:
    def message(call: object) -> str:
        with pytest.raises((ValueError, RuntimeError, FileNotFoundError)) as caught:
            call()  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    images = pictures(1)
    assert "no list of GenEval clauses" in message(lambda: reward(images, ["a dog"], [{}]))
    dgo = {"include": [{"class": "dgo", "count": 1}]}
    assert "'dgo'" in (said := message(lambda: reward(images, [""], [dgo])))
    assert "did you mean 'dog'?" in said
    couch = {"include": [{"class": "couch", "count": 1}]}  # GenEval's name of the sofa
    assert reward(images, [""], [couch]).item() == 0
    assert "call setup" in message(lambda: GenEvalReward()(images, [""], [wants(1)]))
    assert "scoring='exact'" in message(lambda: GenEvalReward("exact"))  # type: ignore[arg-type]
    assert "batch_size=0" in message(lambda: GenEvalReward(batch_size=0))
    assert "could not be loaded" in message(lambda: InstanceSegmenter(str(tmp_path), CPU))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor"}'
    )
    assert "no instance segmentation" in message(lambda: InstanceSegmenter(str(tmp_path), CPU))
    assert "could not be loaded" in message(lambda: ColorClassifier("ViT-L-15", None, CPU))
    nothing = f"local-dir:{tmp_path}"
    assert "could not be loaded" in message(lambda: ColorClassifier(nothing, None, CPU))
