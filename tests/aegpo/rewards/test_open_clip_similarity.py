"""OpenCLIPSimilarity against open_clip's own preprocessing, tokenizer and encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from aegpo.rewards import CLIPScore, OpenCLIPSimilarity
from aegpo.rewards.open_clip_model import BUNDLED, load_open_clip
from aegpo.rewards.open_clip_preprocess import preprocess
from aegpo.shapes.pipeline import shapes_tokenizer
from aegpo.shapes.prompts import near_misses, split
from aegpo.shapes.render import render_batch

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {
        **{"context_length": 10, "vocab_size": 131, "width": 32, "heads": 2, "layers": 2},
        "hf_tokenizer_name": "tokenizer",
    },
}
PREPROCESS = {"size": 24, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
TEXTS = ["a red circle", "two blue crosses", "a green square above a cyan cross", "a red circle"]


def tiny_clip(seed: int = 0, **changes: Any) -> open_clip.CLIP:
    torch.manual_seed(seed)
    return open_clip.CLIP(**{**MODEL, **changes}).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip's local-dir: reads it."""
    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tiny_clip().state_dict(), folder / "open_clip_model.safetensors")
    shapes_tokenizer().save_pretrained(folder)
    return folder


def bytes_images(height: int, width: int, num: int = 4) -> Tensor:
    """Noisy blocks of whole 8-bit values, with edges for the resizing to overshoot at, all grays:
    between its two passes Pillow also clips, which tensors do not."""
    generator = torch.Generator().manual_seed(height * width)
    blocks = torch.randint(0, 2, (num, 3, height // 4 + 1, width // 4 + 1), generator=generator)
    image = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]
    shade = torch.randint(60, 80, (num, 3, height, width), generator=generator)
    return (image * 100 + shade) / 255


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.rint(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(32, 32), (100, 61), (24, 24), (16, 20), (37, 90)])
@pytest.mark.parametrize(
    ("size", "interpolation"), [(24, "bicubic"), (24, "bilinear"), ((24, 40), "bicubic")]
)
def test_preprocess_agrees_with_open_clips_own(
    shape: tuple[int, int], size: Any, mode: str, interpolation: str
) -> None:
    config = PreprocessCfg(
        size, **{"resize_mode": mode, "interpolation": interpolation, "fill_color": 90}
    )
    images = bytes_images(*shape, num=2)
    own = image_transform_v2(config, is_train=False)
    expected = torch.stack([own(pil(image)) for image in images])
    got = preprocess(images, vars(config))
    assert got.shape == expected.shape
    # Pillow rounds to 8 bits after each of the two passes, and computes with 8-bit weights.
    difference = (got - expected).abs() * torch.tensor(config.std)[:, None, None] * 255
    assert difference.max() <= 2.0 if got.shape[-2:] != shape else difference.max() < 1e-3
    assert difference.mean() < 0.5


def test_equals_open_clip_by_hand(folder: Path) -> None:
    images = bytes_images(24, 24)  # the model's size, so that only the arithmetic is compared
    clip, _, own = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ids = [shapes_tokenizer()(text, padding="max_length").input_ids for text in TEXTS]
    with torch.no_grad():
        pixels = torch.stack([own(pil(image)) for image in images])
        pictures = clip.eval().encode_image(pixels).double()
        texts = clip.encode_text(torch.tensor(ids)).double()
    expected = (pictures * texts).sum(1) / (pictures.norm(dim=1) * texts.norm(dim=1))
    reward = OpenCLIPSimilarity(str(folder), batch_size=3)
    scores = reward(images, TEXTS, [{}] * 4)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)
    assert expected.unique().numel() == 4
    assert reward.range == (-1.0, 1.0)
    alone = [reward(images[row : row + 1], [TEXTS[row]], [{}]) for row in range(4)]
    torch.testing.assert_close(torch.cat(alone), scores, rtol=0, atol=1e-6)
    assert reward(images[:0], [], []).shape == (0,)


def test_every_prompt_is_encoded_once_and_the_model_is_loaded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = OpenCLIPSimilarity(str(folder), batch_size=2)
    assert reward._model is None  # nothing is loaded before it is needed
    before = torch.get_rng_state()
    reward.setup(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    clip = reward._model
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    seen: list[int] = []
    encode = clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda ids: seen.append(len(ids)) or encode(ids))
    images = bytes_images(24, 24)
    first = reward(images, TEXTS, [{}] * 4)
    assert seen == [2, 1]  # three different texts, two at a time
    assert torch.equal(reward(images, TEXTS, [{}] * 4), first)
    assert seen == [2, 1]
    assert reward._model is clip
    monkeypatch.setattr("aegpo.rewards.open_clip_similarity.MAX_CACHED_TEXTS", 1)
    reward(images, TEXTS, [{}] * 4)
    assert list(reward._texts) == [TEXTS[2]]


def test_no_gradient_and_no_autocast_reach_the_model(folder: Path) -> None:
    reward = OpenCLIPSimilarity(str(folder))
    images = bytes_images(24, 24).requires_grad_()
    plain = reward(images, TEXTS, [{}] * 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(images, TEXTS, [{}] * 4)
        reward._texts.clear()
        assert torch.equal(reward(images, TEXTS, [{}] * 4), mixed)
    assert torch.equal(mixed, plain)
    assert not plain.requires_grad


def test_half_precision_is_close(folder: Path) -> None:
    images = bytes_images(24, 24)
    scores = {p: OpenCLIPSimilarity(str(folder), precision=p) for p in ("fp32", "bf16")}
    full, half = (reward(images, TEXTS, [{}] * 4) for reward in scores.values())
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.03


def test_a_broken_image_is_missing_and_the_others_are_not(folder: Path) -> None:
    reward, images = OpenCLIPSimilarity(str(folder)), bytes_images(24, 24)
    whole = reward(images, TEXTS, [{}] * 4)
    images[1, 0, 3, 3], images[2, 1, 0, 0] = float("nan"), float("inf")
    scores = reward(images, TEXTS, [{}] * 4)
    assert scores.isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(scores[[0, 3]], whole[[0, 3]])


def test_checkpoints_of_an_architecture_in_a_json_file(tmp_path: Path) -> None:
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": 49408}}
    del config["text_cfg"]["hf_tokenizer_name"]  # CLIP's own, which open_clip brings
    file = tmp_path / "tiny_architecture.json"
    file.write_text(json.dumps(config))
    clip = tiny_clip(7, text_cfg=config["text_cfg"])
    wrapped = {f"module.{name}": value for name, value in clip.state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "clip.pt")
    reward = OpenCLIPSimilarity(str(file), str(tmp_path / "clip.pt"))
    image = bytes_images(24, 24)[:1]
    score = reward(image, ["a photo"], [{}]).item()
    with torch.no_grad():
        pixels = image_transform_v2(PreprocessCfg(24), is_train=False)(pil(image[0]))
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
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", MODEL)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: None)
    used = {}
    for tag in tags:
        clip, _ = load_open_clip(CLIPScore("tiny", tag).source, "fp32")
        used[tag] = {type(m).__name__ for m in clip.modules() if "GELU" in type(m).__name__}
    assert used == {"openai": {"QuickGELU"}, "other": {"GELU"}}
    default = CLIPScore()
    assert (default.source.name, default.source.pretrained) == ("ViT-L-14", "openai")
    assert default.name == "clip_score"


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
    (tmp_path / "open_clip_config.json").write_text(
        (folder / "open_clip_config.json").read_text().replace('"width": 32', '"width": 64')
    )
    with pytest.raises(FileNotFoundError, match="has no weights"):
        OpenCLIPSimilarity(str(tmp_path))
    save_file(tiny_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="give weights of this architecture") as raised:
        OpenCLIPSimilarity(str(tmp_path)).setup(torch.device("cpu"))
    assert "\n" not in str(raised.value)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_foreign_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="could not load"):
        OpenCLIPSimilarity("ViT-S-32-alt", str(tmp_path / "bad.pt")).setup(torch.device("cpu"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tiny_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="trust_remote_code, which is never given"):
        OpenCLIPSimilarity(str(tmp_path)).setup(torch.device("cpu"))


def test_the_bundled_model_prefers_the_truth_and_is_small() -> None:
    files = list(BUNDLED["shapes"].iterdir())
    assert sum(file.stat().st_size for file in files) <= 6e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    scenes = split("heldout")
    images, texts = render_batch(scenes, seed=3), [scene.text for scene in scenes]
    reward = OpenCLIPSimilarity("shapes", batch_size=128)
    truth = reward(images, texts, [{}] * len(texts))
    for miss in ("color", "shape"):
        others = [near_misses(scene)[miss].text for scene in scenes]
        wrong = reward(images, others, [{}] * len(others))
        assert (truth > wrong).float().mean() > 0.9
