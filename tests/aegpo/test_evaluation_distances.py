"""FID and KID on the Shapes CLIP, and a page that is safe against any text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from aegpo.evaluation.distances import (
    ImageFeatures,
    Reference,
    distances,
    features_of,
    images_in,
    reference_of,
)
from aegpo.evaluation.documents import markdown, page
from aegpo.evaluation.results import ModelScores, result_of
from aegpo.evaluation.suites import Suite
from aegpo.utilities.images import save_picture

CPU = torch.device("cpu")


def unbiased_mmd(one: np.ndarray, other: np.ndarray) -> float:
    """KID of all images at once: the polynomial kernel of degree 3, without the diagonals."""

    def kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left @ right.T / left.shape[1] + 1) ** 3

    own = [kernel(features, features) for features in (one, other)]
    pairs = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own]
    return float(sum(pairs) - 2 * kernel(one, other).mean())


def test_fid_and_kid_are_their_formulas_on_the_given_features() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(60, 5, generator=generator)
    theirs = 1.5 * torch.randn(60, 5, generator=generator) + 0.5
    found = distances(ours, Reference("x", "shapes", theirs))
    one, other = ours.double().numpy(), theirs.double().numpy()
    covariances = np.cov(one.T), np.cov(other.T)
    means = one.mean(0) - other.mean(0)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found["fid"] == pytest.approx(expected, rel=1e-3)
    assert found["kid"] == pytest.approx(unbiased_mmd(one, other), rel=1e-3)
    assert found["images"] == 60
    state = torch.get_rng_state()
    again = distances(ours, Reference("x", "shapes", theirs))
    assert again == found and torch.equal(torch.get_rng_state(), state)
    same = distances(theirs, Reference("x", "shapes", theirs))
    assert abs(same["fid"]) < 1e-3 and same["kid"] < found["kid"]


def test_a_folder_of_images_by_the_bundled_network(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        image = torch.rand(3, 32, 32, generator=generator)
        save_picture(image, tmp_path / f"{number}.png", {})
    (tmp_path / "notes.txt").touch()
    network = ImageFeatures("shapes")
    reference = reference_of(str(tmp_path), "shapes", network, CPU)
    assert reference.name.startswith(f"{tmp_path.name}: 3 images (")
    alone = features_of(network, images_in(tmp_path)[2:], CPU)
    assert torch.allclose(reference.features[2:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="holds 0 images"):
        (tmp_path / "none").mkdir()
        images_in(tmp_path / "none")
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        ImageFeatures("nowhere")


HOSTILE = "</td><script>alert(1)</script>|`x` \"&'\n<img src=x onerror=alert(2)>"


def hostile() -> dict[str, object]:
    suite = Suite(HOSTILE, "plain", [HOSTILE, "b"], [{"category": HOSTILE}, {"category": "b"}])
    settings = {"images_per_prompt": 1, "negative_prompt": HOSTILE, "steps": 2}
    models = [
        ModelScores(name, "base", HOSTILE, "0" * 16, settings, {}, {HOSTILE: [0.5, 0.25]}, {})
        for name in ("base", HOSTILE)
    ]
    return result_of(suite, models, {HOSTILE: {"question": HOSTILE}}, {"torch": "1"})


def test_a_page_shows_every_text_and_runs_none(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "x.png")
    gallery = [(HOSTILE, [(HOSTILE, tmp_path / "x.png")])]
    text = page({"own": hostile(), HOSTILE: hostile()}, gallery).decode()
    assert "<script" not in text and "<img src=x" not in text
    assert text.count("<img ") == 1 and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    assert "data:image/jpeg;base64," in text and 'name="viewport"' in text


def test_markdown_keeps_its_tables() -> None:
    lines = markdown({"own": hostile()}).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert "<script" not in "".join(line.split("`")[0] for line in lines)
    assert all(line.count("|") >= 3 and line.endswith("|") for line in tables)
    assert json.loads(json.dumps(hostile()))["format"] == "aegpo evaluation 1"
