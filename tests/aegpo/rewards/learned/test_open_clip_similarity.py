"""OpenCLIPSimilarity against open_clip's own preprocessing, tokenizer and encoders."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tiny_rewards import (
    PROMPTS,
    SIZE,
    clip_scorer_transform,
    pil_images,
    save_tiny_open_clip,
    text_page,
    tiny_images,
)
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from aegpo.rewards.learned.clip_pixels import clip_pixels
from aegpo.rewards.learned.open_clip_model import (
    BUNDLED,
    CONFIG,
    load_open_clip,
    pixel_settings,
)
from aegpo.rewards.learned.open_clip_similarity import CLIPScore, OpenCLIPSimilarity
from aegpo.shapes.pipeline import shapes_tokenizer
from aegpo.shapes.prompts import near_misses
from aegpo.shapes.render import render_batch
from aegpo.shapes.splits import split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_open_clip(tmp_path_factory.mktemp("clip"))


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def scored(reward: OpenCLIPSimilarity, images: Tensor, texts: list[str]) -> Tensor:
    reward.setup(CPU)
    return reward(images, texts, [{}] * len(texts))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(44, 62), (96, 96), (16, 20), (32, 32)])
def test_pixels_are_what_open_clips_own_transform_makes(
    shape: tuple[int, int], interpolation: str, mode: str
) -> None:
    config = PreprocessCfg(32, **{"resize_mode": mode, "interpolation": interpolation})
    images = tiny_images(*shape).round()  # black and white, so that bicubic weights overshoot
    own = image_transform_v2(config, is_train=False)
    expected = torch.stack([own(image) for image in pil_images(images)])
    got = clip_pixels(images, **pixel_settings(asdict(config)))
    levels = (got - expected) * torch.tensor(config.std)[:, None, None] * 255
    assert levels.abs().max() <= (1.05 if shape != (32, 32) else 1e-3)
    assert levels.abs().mean() < 0.3


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("size", (32, 48), "images of 32x48 by bicubic"),
        ("interpolation", "random", "images of 32x32 by random"),
        ("fill_color", 127, "borders of gray 127"),
    ],
)
def test_preprocessing_that_is_not_made_here_is_named(
    setting: str, value: Any, message: str
) -> None:
    config = asdict(PreprocessCfg(32, resize_mode="longest")) | {setting: value}
    with pytest.raises(ValueError, match=message):
        pixel_settings(config)


def test_equals_open_clip_by_hand(folder: Path) -> None:
    images = tiny_images(SIZE, SIZE)  # not resized, so that only the arithmetic is compared
    clip, _, own = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = [shapes_tokenizer()(text, padding="max_length").input_ids for text in PROMPTS]
    with torch.no_grad():
        pixels = torch.stack([own(image) for image in pil_images(images)])
        pictures = clip.eval().encode_image(pixels).double()
        texts = clip.encode_text(torch.tensor(ids)).double()
    expected = (pictures * texts).sum(1) / (pictures.norm(dim=1) * texts.norm(dim=1))
    reward = OpenCLIPSimilarity(str(folder), batch_size=3)
    scores = scored(reward, images, PROMPTS)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)
    assert expected.unique().numel() == 5
    assert reward.range == (-1.0, 1.0) and reward.name == "open_clip_similarity"
    half = OpenCLIPSimilarity(str(folder), precision="bf16")
    half.setup(CPU)
    assert {weight.dtype for weight in half.network.parameters()} == {torch.bfloat16}


def test_checkpoints_of_an_architecture_in_a_json_file(tmp_path: Path) -> None:
    config = config_of(save_tiny_open_clip(tmp_path / "like"))["model_cfg"]
    config["text_cfg"]["vocab_size"] = 49408
    del config["text_cfg"]["hf_tokenizer_name"]  # CLIP's own, which open_clip brings
    file = tmp_path / "tiny_architecture.json"
    file.write_text(json.dumps(config))
    clip = open_clip.CLIP(**config).eval()
    wrapped = {f"module.{name}": value for name, value in clip.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "clip.pt")
    reward = OpenCLIPSimilarity(str(file), str(tmp_path / "clip.pt"))
    image = tiny_images(SIZE, SIZE)[:1]
    score = scored(reward, image, ["a photo"]).item()
    with torch.no_grad():
        pixels = image_transform_v2(PreprocessCfg(SIZE), is_train=False)(pil_images(image)[0])
        text = clip.encode_text(open_clip.SimpleTokenizer(context_length=10)(["a photo"]))
        expected = nn.functional.cosine_similarity(clip.encode_image(pixels[None]), text)
    assert score == pytest.approx(expected.item(), abs=1e-5)
    # The same file again is known, another of its name is not.
    OpenCLIPSimilarity(str(file), str(tmp_path / "clip.pt"))
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another architecture named 'ViT-B-32'"):
        OpenCLIPSimilarity(str(tmp_path / "ViT-B-32.json"), str(tmp_path / "clip.pt"))


def test_openai_weights_get_the_activation_they_were_trained_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(folder / "open_clip_model.safetensors")
    tags = {"openai": {"file": weights, "quick_gelu": True}, "other": {"file": weights}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config_of(folder)["model_cfg"])
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: None)
    used = {}
    for tag in tags:
        clip, _ = load_open_clip(CLIPScore("tiny", tag).source)
        used[tag] = {type(m).__name__ for m in clip.modules() if "GELU" in type(m).__name__}
    assert used == {"openai": {"QuickGELU"}, "other": {"GELU"}}
    default = CLIPScore()
    assert (default.source.name, default.source.pretrained) == ("ViT-L-14", "openai")
    assert default.name == "clip_score"


@pytest.mark.parametrize("shape", [(512, 512), (1024, 700), (20, 28), (32, 32)])
def test_clip_score_sees_what_the_public_scorers_make_of_tensors(
    folder: Path, shape: tuple[int, int]
) -> None:
    reward = CLIPScore(str(folder), None)
    reward.setup(CPU)
    settings = reward.pixel_settings | {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
    page = text_page()[:, :, : shape[0], : shape[1]]
    expected = clip_scorer_transform(SIZE)(page)
    torch.testing.assert_close(clip_pixels(page, **settings), expected, rtol=0, atol=1e-5)
    own = OpenCLIPSimilarity(str(folder))
    own.setup(CPU)
    assert own.pixel_settings["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "nowhere/clip"}, FileNotFoundError, "no folder here"),
        ({"model": "nowhere.json", "pretrained": "x"}, FileNotFoundError, "does not exist"),
        ({"model": "ViT-L-15", "pretrained": "openai"}, ValueError, "ViT-L-14"),
        ({"model": "ViT-B-32"}, ValueError, "needs pretrained weights; .*laion2b_s34b_b79k"),
        ({"model": "ViT-B-32", "pretrained": "x.pt"}, FileNotFoundError, r"'x\.pt' is no file"),
        ({"model": "shapes", "pretrained": "x.pt"}, ValueError, "leave out pretrained"),
        ({"model": "shapes", "precision": "int8"}, ValueError, "fp32, bf16, fp16"),
        ({"model": "shapes", "batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_loaded(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        OpenCLIPSimilarity(**arguments)
    assert "\n" not in str(raised.value)


def test_folders_that_lack_something_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config\.json"):
        OpenCLIPSimilarity(str(tmp_path))
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        OpenCLIPSimilarity(str(tmp_path))
    wider = config_of(save_tiny_open_clip(tmp_path))
    wider["model_cfg"]["embed_dim"] = 24
    unknown = copy.deepcopy(wider)
    unknown["model_cfg"]["glow"] = 3
    for config, message in (
        ("{}", "must have the keys embed_dim, vision_cfg, text_cfg"),
        ("{", "could not be read: Expecting property name"),
        (json.dumps(wider), "Error.* size mismatch for"),
        (json.dumps(unknown), "unexpected keyword argument 'glow'"),
    ):
        (tmp_path / CONFIG).write_text(config)
        with pytest.raises(ValueError, match=message) as raised:
            OpenCLIPSimilarity(str(tmp_path)).setup(CPU)
        assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_what_the_hub_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    reward = OpenCLIPSimilarity("hf-hub:a/b-none")
    with pytest.raises(FileNotFoundError, match=r"^model='a/b-none' .* hub is out of reach"):
        reward.setup(CPU)
    tagged = OpenCLIPSimilarity("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(FileNotFoundError, match=r"^pretrained='laion2b_s34b_b79k' .* out of reach"):
        tagged.setup(CPU)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_foreign_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="no checkpoint of tensors alone"):
        OpenCLIPSimilarity("ViT-S-32-alt", str(tmp_path / "bad.pt")).setup(CPU)
    config = config_of(save_tiny_open_clip(tmp_path))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code, which is never given"):
        OpenCLIPSimilarity(str(tmp_path)).setup(CPU)


def test_the_bundled_model_prefers_the_truth_and_is_small() -> None:
    files = list(BUNDLED["shapes"].iterdir())
    assert sum(file.stat().st_size for file in files) <= 6e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    scenes = split("heldout")
    images, texts = render_batch(scenes, seed=3), [scene.text for scene in scenes]
    reward = OpenCLIPSimilarity("shapes", batch_size=128)
    truth = scored(reward, images, texts)
    for miss in ("color", "shape"):
        others = [near_misses(scene)[miss].text for scene in scenes]
        wrong = reward(images, others, [{}] * len(others))
        assert (truth > wrong).float().mean() > 0.9
