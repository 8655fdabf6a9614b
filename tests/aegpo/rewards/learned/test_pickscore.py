from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_rewards import PROMPTS, pil_images, save_tiny_clip, tiny_images
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip import CLIPImageProcessorPil

from aegpo.rewards.learned.pickscore import PickScore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("pickscore"))


def test_equals_the_library_on_pil_images_under_every_scale(folder: Path) -> None:
    images = tiny_images()
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = tokenizer(PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(pil_images(images), return_tensors="pt").pixel_values
        raw = model(**text, pixel_values=pixels).logits_per_image.diagonal()
    factor = model.logit_scale.exp().item()
    expected = {
        "raw/26": raw / 26,
        "raw": raw,
        "(raw-18)/8": (raw - 18) / 8,
        "cosine": raw / factor,
    }
    rounding = 5e-3  # of 8 bits, in a cosine
    for scale, scores in expected.items():
        reward = PickScore(str(folder), str(folder), scale=scale)
        reward.setup(CPU)
        unit = {"raw/26": factor / 26, "raw": factor, "(raw-18)/8": factor / 8, "cosine": 1}[scale]
        found = reward(images, PROMPTS, [{}] * 5)
        torch.testing.assert_close(found, scores, rtol=0, atol=rounding * unit)
        assert found.std() > 20 * rounding * unit
        assert reward.range == ((-1, 1) if scale == "cosine" else None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_logit_scale_is_never_rounded(folder: Path, dtype: str) -> None:
    published = CLIPModel.from_pretrained(folder, local_files_only=True)
    published.logit_scale.data = torch.tensor(100.0).log()  # of CLIP, and about that of PickScore
    published.save_pretrained(folder / "hundred")
    scores = {}
    for scale in ("raw", "cosine"):
        reward = PickScore(str(folder / "hundred"), str(folder), scale=scale, dtype=dtype)  # type: ignore[arg-type]
        reward.setup(CPU)
        scores[scale] = reward(tiny_images(), PROMPTS, [{}] * 5)
        weights = {p.dtype for name, p in reward.network.named_parameters() if "scale" not in name}
        assert weights == {getattr(torch, dtype)}
    torch.testing.assert_close(scores["raw"], 100 * scores["cosine"])


def test_a_long_prompt_is_cut_as_the_tokenizer_cuts_it(folder: Path) -> None:
    reward = PickScore(str(folder), str(folder))
    reward.setup(CPU)
    long = "red " * 40
    scores = reward(tiny_images()[[0, 0]], [long, "red " * 14], [{}] * 2)
    assert scores[0] == scores[1]


def test_refuses_what_it_cannot_use(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scale='raw/100'; choose one of raw/26, raw, \(raw-18"):
        PickScore(scale="raw/100")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"^model=.*neither a folder with config\.json"):
        PickScore(model=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^processor="):
        PickScore(processor=str(tmp_path))
