"""`aegpo sample` on the tiny pipeline: pictures, their metadata, scores and the grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from tiny_training import Redness, tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.rewards.base import Reward
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.sample import sample

PROMPTS = ["a red circle", "ein grüner Kreis ★"]


class Picky(Reward):
    """Reads the metadata; fails on one prompt, and scores the other's first image only."""

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if "ein" in prompts[0]:
            raise ValueError("only English")
        return torch.tensor([metadata[0].get("weight", 1.0), float("inf")])


class Stateful(Callback):
    """Leaves something in the checkpoint, as the callbacks of a training do."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}


class Broken(Redness):
    """Cannot be set up."""

    name = "broken"

    def setup(self, device: torch.device) -> None:
        raise ImportError("pip install something")


def sampled(
    tmp_path: Path,
    folder: Path,
    name: str,
    checkpoint: str | None = None,
    size: tuple[int, int] | None = None,
    **arguments: Any,
) -> Path:
    """Run the command with two images per prompt; its folder."""
    settings: dict[str, Any] = {"evaluation_rewards": [Picky(), Broken()]}
    module = tiny_module(folder, num_steps=4, seed=0, evaluation_resolution=size, **settings)
    settings = {"prompts": PROMPTS, "images_per_prompt": 2} | arguments
    out = tmp_path / name
    sample(tiny_trainer(tmp_path, []), module, checkpoint, out=str(out), **settings)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def pixels(out: Path, model: str, prompt: int = 0, image: int = 0) -> np.ndarray:
    return np.asarray(Image.open(out / model / f"{prompt:04d}_{image}.png"))


@pytest.fixture(scope="module")
def checkpoint(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One iteration with a large learning rate."""
    folder = tmp_path_factory.mktemp("run")
    module = tiny_module(tiny_sd3_folder, num_steps=4, seed=0, lr=0.03)
    trainer = tiny_trainer(folder, [Stateful()], max_epochs=1, limit_val_batches=0)
    trainer.fit(module, datamodule=tiny_data(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt")


@pytest.mark.filterwarnings("ignore:reward")
def test_base_beside_tuned_with_scores_of_what_could_be_scored(
    tiny_sd3_folder: Path,
    tmp_path: Path,
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    out = sampled(tmp_path, tiny_sd3_folder, "both", checkpoint)
    told = [str(warning.message) for warning in recwarn]
    assert not [one for one in told if "callbacks" in one], "the training's are left out on purpose"
    found = rows(out)
    assert len(found) == 2 * 2 * 2
    by_file = {row["file"]: row for row in found}
    assert sorted(by_file) == sorted(str(f.relative_to(out)) for f in out.glob("*/*.png"))
    for name, row in by_file.items():
        with Image.open(out / name) as picture:
            assert picture.text["prompt"] == row["prompt"]
            assert picture.text["model"] == row["model"] == name.split("/")[0]
            image = np.asarray(picture) / 255
        redness = (image[..., 0] - image[..., 1]).mean()
        assert row["scores"]["redness"] == pytest.approx(redness, abs=2e-3)
        first_english = name.endswith("0000_0.png")
        assert row["scores"]["picky"] == (1.0 if first_english else None)
        assert "broken" not in row["scores"]
    assert (pixels(out, "base") != pixels(out, "tuned")).any()
    assert (pixels(out, "base", image=0) != pixels(out, "base", image=1)).any()

    grid = Image.open(out / "grid.png")
    assert grid.size == (8 * (128 + 4), 128 + 40)  # 2 prompts of 2 base and 2 tuned images
    cells = [np.asarray(grid)[:128, left : left + 128] for left in range(0, 8 * 132, 132)]
    order = [("base", 0, 0), ("base", 0, 1), ("tuned", 0, 0), ("tuned", 0, 1)]
    order += [(model, 1, image) for model, _, image in order]
    for cell, place in zip(cells, order, strict=True):
        assert np.array_equal(cell[4::8, 4::8], pixels(out, *place))
    printed = capsys.readouterr().out
    assert "picky: base 1.0000, tuned 1.0000" in printed


@pytest.mark.filterwarnings("ignore:reward")
def test_without_a_checkpoint_the_same_base_alone(
    tiny_sd3_folder: Path, tmp_path: Path, checkpoint: str
) -> None:
    base = sampled(tmp_path, tiny_sd3_folder, "base_only")
    assert {row["model"] for row in rows(base)} == {"base"}
    both = sampled(tmp_path, tiny_sd3_folder, "both", checkpoint)
    for prompt in range(2):
        assert np.array_equal(pixels(base, "base", prompt), pixels(both, "base", prompt))
    other = sampled(tmp_path, tiny_sd3_folder, "seed", seed=1)
    fewer = sampled(tmp_path, tiny_sd3_folder, "steps", num_steps=2)
    assert (pixels(other, "base") != pixels(base, "base")).any()
    assert (pixels(fewer, "base") != pixels(base, "base")).any()


@pytest.mark.filterwarnings("ignore:reward")
def test_a_prompt_file_brings_its_metadata(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a red circle", "weight": 0.25}\n')
    out = sampled(tmp_path, tiny_sd3_folder, "file", prompts=None, prompt_file=str(file))
    assert [row["scores"]["picky"] for row in rows(out)] == [0.25, None]


@pytest.mark.filterwarnings("ignore:reward")
@pytest.mark.parametrize("how", ["run", "column"])
def test_a_prompt_file_may_have_its_own_column(
    tiny_sd3_folder: Path, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text('caption,prompt\n"a red circle, big",wrong\n')
    run = ConfiguredRun({"data": {"init_args": {"column": "caption"}}})
    given = {"run": run} if how == "run" else {"column": "caption"}
    out = sampled(tmp_path, tiny_sd3_folder, how, prompts=None, prompt_file=str(file), **given)
    assert {row["prompt"] for row in rows(out)} == {"a red circle, big"}


def test_wrong_requests_are_refused_in_words(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"prompts": None}, "either --prompts"),
        ({"prompt_file": "a.txt"}, "either --prompts"),
        ({"prompts": []}, "--prompts is empty"),
        ({"images_per_prompt": 0}, "images_per_prompt=0"),
        ({"num_steps": 0}, "num_steps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            sampled(tmp_path, tiny_sd3_folder, "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:reward")
def test_pictures_that_are_no_squares_keep_their_sides(
    tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    out = sampled(tmp_path, tiny_sd3_folder, "upright", size=(32, 16))
    assert pixels(out, "base").shape == (32, 16, 3)
    with Image.open(out / "grid.png") as grid:  # four images of 64 x 128 and their captions
        assert grid.size[0] == 4 * (64 + 4) and grid.size[1] >= 128 + 40
