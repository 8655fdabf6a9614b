"""`aegpo evaluate` on the tiny pipeline: the same noise for all, intervals, going on, ranks."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import tiny_data, tiny_module, tiny_trainer
from torch import Tensor

from aegpo.evaluation.suites import Suite
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3
from aegpo.rewards.base import Reward
from datamodules.prompt_datamodule import PromptDataModule
from lightning_modules.aegpo_module import AEGPOModule
from lightning_modules.commands.configured_run import ConfiguredRun
from lightning_modules.commands.evaluate import early
from lightning_modules.commands.evaluate.evaluate import evaluate
from lightning_modules.commands.evaluate.held_out import held_out_suite

PROMPTS = ["a red circle", "a <b>blue</b> | circle", "a green circle", "ein Kreis ★", "a square"]


class Picky(Reward):
    """Fails on one prompt."""

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Tensor:
        if any("ein" in prompt for prompt in prompts):
            raise ValueError("only English")
        return images.flatten(1).mean(1)


def module(folder: Path) -> AEGPOModule:
    return tiny_module(
        folder,
        num_steps=3,
        seed=0,
        evaluation_rewards=[Picky()],
        evaluation_resolution=(24, 16),
        policy=partial(
            StableDiffusion3, pretrained=str(folder), lora_rank=4, max_sequence_length=4
        ),
    )


def suite_file(folder: Path) -> Path:
    file = folder / "prompts.jsonl"
    rows = [
        {"prompt": text, "category": "warm" if number < 2 else "cold"}
        for number, text in enumerate(PROMPTS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def evaluated(tmp_path: Path, folder: Path, name: str, **arguments: Any) -> dict[str, Any]:
    """Run the command with two images a prompt; its result."""
    out = tmp_path / name
    settings: dict[str, Any] = {
        "suite": str(suite_file(tmp_path)),
        "images_per_prompt": 2,
        "prompts_at_once": 2,
    }
    evaluate(tiny_trainer(tmp_path, []), module(folder), out=str(out), **settings | arguments)
    result: dict[str, Any] = json.loads((out / "results.json").read_text())
    return result


@pytest.fixture(scope="module")
def checkpoint(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration with a large learning rate, and what export writes of it."""
    folder = tmp_path_factory.mktemp("run")
    trained = module(tiny_sd3_folder)
    trained.optimizer_factory = partial(torch.optim.AdamW, lr=0.03)
    trainer = tiny_trainer(folder, [], max_epochs=1, limit_val_batches=0)
    trainer.fit(trained, datamodule=tiny_data(folder))
    trainer.save_checkpoint(folder / "last.ckpt")
    trained.policy.save_pretrained(folder / "lora")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def both(
    tiny_sd3_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Base, checkpoint, its LoRA, and the base once more as a pipeline's folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    tuned = [f"lora={checkpoint.parent / 'lora'}", f"again={tiny_sd3_folder}"]
    with pytest.warns(UserWarning, match="only English"):
        result = evaluated(folder, tiny_sd3_folder, "out", ckpt_path=str(checkpoint), tuned=tuned)
    return folder / "out", result


def pixels(out: Path, model: str, prompt: int, image: int = 0) -> np.ndarray:
    with Image.open(out / "images" / model / f"{prompt:05d}_{image}.png") as picture:
        return np.asarray(picture)


def test_models_share_noise_and_scores_are_of_their_images(
    both: tuple[Path, dict[str, Any]],
) -> None:
    out, result = both
    base, tuned, _, again = result["models"]
    assert [one["kind"] for one in result["models"]] == ["base", "checkpoint", "lora", "pipeline"]
    for row in range(len(PROMPTS)):
        assert np.array_equal(pixels(out, "base", row), pixels(out, "again", row))
        assert (pixels(out, "base", row) != pixels(out, "tuned", row)).any()
        apart = pixels(out, "lora", row).astype(int) - pixels(out, "tuned", row)
        assert np.abs(apart).mean() < 0.5  # diffusers adds the same adapters in another order
        for one in (base, tuned):
            drawn = [pixels(out, one["name"], row, image) / 255 for image in range(2)]
            redness = np.mean([(image[..., 0] - image[..., 1]).mean() for image in drawn])
            found = one["scores"]["redness"]["per_prompt"][row]
            assert found == pytest.approx(redness, abs=2e-3)
    assert base["weights"] == again["weights"] != tuned["weights"]
    assert tuned["about"] == {"iteration": 2, "averaged": False}
    apart = tuned["scores"]["redness"]["difference"]
    means = [one["scores"]["redness"]["mean"] for one in (base, tuned)]
    assert apart["mean"] == pytest.approx(means[1] - means[0])
    assert apart["low"] <= apart["mean"] <= apart["high"]
    same = again["scores"]["redness"]["difference"]
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)


def test_what_is_missing_is_counted_and_in_no_mean(both: tuple[Path, dict[str, Any]]) -> None:
    _, result = both
    picky = result["models"][0]["scores"]["picky"]
    assert (picky["missing"], picky["images"], picky["prompts"]) == (2, 10, 4)
    assert picky["per_prompt"][3] is None
    assert picky["categories"]["cold"]["prompts"] == 2


def test_every_number_carries_what_it_was_made_with(both: tuple[Path, dict[str, Any]]) -> None:
    out, result = both
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["score"] for row in rows} == {"redness", "picky", "diversity"}
    for row in rows:
        for text in (
            "guidance_scale=1",
            "steps=3",
            "size=[24, 16]",
            "seed=0",
            "dtype=float32",
            "Euler",
        ):
            assert text in row["settings"]
        assert "torch=" in row["versions"] and row["weights"] and row["prompts_fingerprint"]
    assert result["models"][0]["settings"]["noise_levels"][0] == 1.0
    text = (out / "results.md").read_text()
    assert "guidance_scale 1" in text and "Difference to the base" in text
    with Image.open(out / "grid.png") as grid:
        assert grid.size[0] > 100


@pytest.mark.filterwarnings("ignore:reward")
def test_it_goes_on_where_it_was_killed_and_refuses_another(
    tiny_sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluated(tmp_path, tiny_sd3_folder, "whole")
    out = tmp_path / "whole"
    lost = sorted((out / "scores/base").glob("*.json"))[1]
    kept = sorted((out / "scores/base").glob("*.json"))[0].stat().st_mtime_ns
    lost.unlink()
    (out / "results.json").unlink()
    assert evaluated(tmp_path, tiny_sd3_folder, "whole") == whole
    assert sorted((out / "scores/base").glob("*.json"))[0].stat().st_mtime_ns == kept
    for other in ({"seed": 1}, {"num_steps": 2}, {"limit": 2}, {"images_per_prompt": 1}):
        with pytest.raises(ValueError, match="holds an evaluation with another"):
            evaluated(tmp_path, tiny_sd3_folder, "whole", **other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        evaluated(tmp_path, tiny_sd3_folder, "mine")


@pytest.mark.filterwarnings("ignore:reward")
def test_other_settings_are_another_column(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    evaluated(tmp_path, tiny_sd3_folder, "three", limit=2)
    evaluated(tmp_path, tiny_sd3_folder, "same", limit=2, beside=[str(tmp_path / "three")])
    alike = (tmp_path / "same/results.md").read_text()
    assert "base (three)" in alike and "[1]" not in alike
    evaluated(
        tmp_path, tiny_sd3_folder, "two", limit=2, num_steps=2, beside=[str(tmp_path / "three")]
    )
    text = (tmp_path / "two/results.md").read_text()
    assert (
        "\\[1\\] against redness \\[2\\], picky \\[2\\], diversity \\[2\\]: steps 2 against 3\n"
        in text
    )
    row = next(line for line in text.splitlines() if line.startswith("| base (three)"))
    assert row.split("|")[2].strip() == "–"


def test_wrong_requests_are_refused_in_words(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").touch()
    (tmp_path / "x.json").write_text("{}")
    for arguments, message in (
        ({"suite": None}, "no data.val_file"),
        ({"suite": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"tuned": ["nowhere"]}, "nowhere does not exist"),
        ({"tuned": [f"a={tmp_path / 'x.ckpt'}", f"a={tmp_path / 'x.ckpt'}"]}, "called 'a'"),
        ({"tuned": [f"../a={tmp_path / 'x.ckpt'}"]}, "no name for a folder"),
        ({"tuned": [str(tmp_path)]}, "is no model"),
        ({"beside": [str(tmp_path / "x.json")]}, "no result of aegpo evaluate"),
        ({"beside": ["nowhere"]}, "nowhere does not exist"),
        ({"limit": 0}, "limit=0"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            evaluated(tmp_path, tiny_sd3_folder, "out", run=ConfiguredRun(), **arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_s_own_held_out_prompts_are_the_suite(tmp_path: Path) -> None:
    def suite(file: str, *, val_file: str | None = "auto", **given: Any) -> Suite:
        data = {"train_file": file, "val_file": val_file, **given}
        run = ConfiguredRun(
            config={"data": {"init_args": data}}, build_data=lambda: PromptDataModule(**data)
        )
        return held_out_suite(run)

    bundled = suite("shapes:train")
    assert bundled.source == "shapes:heldout" and len(bundled.prompts) > 100
    file = tmp_path / "mine.jsonl"
    rows = [{"text": f"a {n} hat", "category": f"of {n % 2}", "n": n} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    own = suite(str(file), column="text")
    data = PromptDataModule(str(file), val_file="auto", column="text")
    assert data.val_prompts is not None and len(own.prompts) == 3
    assert own.prompts == [record["prompt"] for record in data.val_prompts.records]
    assert not set(own.prompts) & {record["prompt"] for record in data.train_prompts.records}
    assert own.prompts == [f"a {one['n']} hat" for one in own.metadata]
    assert set(own.categories) <= {"of 0", "of 1"} and own.source.endswith("(its held-out part)")
    named = suite("shapes:train", val_file=str(file), column="text")
    assert len(named.prompts) == 30 and named.protocol == "plain"
    for missing in (None, ""):
        with pytest.raises(ValueError, match=r"no data\.val_file"):
            suite(str(file), val_file=missing)
    no_part = {"data": {"init_args": {"train_file": "a.txt", "val_file": "auto"}}}
    with pytest.raises(ValueError, match=r"no held-out part of a\.txt.*--suite"):
        held_out_suite(ConfiguredRun(config=no_part))


def test_a_lora_that_fits_nothing_is_refused(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {f"unet.no.such.layer.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        evaluated(
            tmp_path, tiny_sd3_folder, "out", tuned=[str(tmp_path / "other.safetensors")], limit=1
        )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--suite", "a/evaluation_metadata.jsonl"], "github.com/djghosh13/geneval"),
        (["--suite=a/x.tsv", "--protocol=parti"], "github.com/google-research/parti"),
        (["--protocol", "parity"], "choose auto, plain, geneval"),
        (["--suite", "nowhere.txt"], "does not exist"),
        (["--beside", "a.json", "--seed", "1"], "--beside a.json does not exist"),
        (["--tuned", "owner/name", "a=b/last.ckpt"], "--tuned a=b/last.ckpt does not exist"),
        (["--reference=nowhere"], "no folder"),
    ],
)
def test_missing_files_are_told_before_anything_is_imported(
    typed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        early.main(typed)
    assert message in capsys.readouterr().err
