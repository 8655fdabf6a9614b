"""The recipes for real models: they build, compose with methods, and train tiny stand-ins."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from another_device import BuildsOnMeta
from cli_runs import ROOT, build, configs, events, run
from tiny_flux import tiny_flux
from tiny_rewards import tiny_hpsv2

from aegpo import rewards
from aegpo.prompts.sets.geneval import CLASSES, COLORS
from aegpo.rewards.geneval.clauses import DetectedObject
from aegpo.rewards.learned.hpsv2 import HPSv21
from lightning_modules.cli import main as entry

RECIPES = [
    ("sd35_medium", "pickscore", "1x24gb"),
    ("sd35_medium", "ocr", "1x80gb"),
    ("sd35_medium", "geneval", "8x80gb"),
    ("flux1_dev", "hpsv21", "1x80gb"),
    ("flux1_dev", "pickscore", "8x80gb_full_flux"),
    ("sd35_medium", "jpeg", "2x8x80gb"),
    ("sdxl", "aesthetic", "1x24gb"),
    ("sdxl", "jpeg", "8x80gb"),
    ("sd15", "aesthetic", "8x80gb"),
    ("sd15", "jpeg", "1x24gb"),
]
METHODS = [
    ("sd35_medium", "flow_grpo"),
    ("sd35_medium", "aegpo_nft"),
    ("flux1_dev", "dance_grpo"),
    ("sdxl", "aegpo_tree"),
    ("sd15", "diffusion_nft"),
]
PUBLISHED = [
    ("sd35_medium", "diffusion_nft", "nft", 10, 9),
    ("flux1_dev", "awm", "awm", 14, 6),
]
"""A model, a method, its published settings, and their steps and noise levels for an image."""
OF_THE_BUNDLED_MODEL = {"aegpo", "rollout_entropy", "shapes_clip_reward"}
PIXELS = {"sd35_medium": 16, "flux1_dev": 16, "sdxl": 32, "sd15": 32}
ON_THE_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
ON_THE_CPU += ["--trainer.num_nodes=1"]
AS_ON_A_GPU = {"strategy": {"class_path": "another_device.BuildsOnMeta"}}


def files(*names: str) -> list[str]:
    """Arguments that name configs, such as "models/sd15"."""
    return configs(*(ROOT / f"configs/{name}.yaml" for name in names))


def recipe(model: str, reward: str, hardware: str) -> list[str]:
    return files(f"models/{model}", f"rewards/{reward}", f"hardware/{hardware}")


def test_every_file_is_in_a_recipe() -> None:
    used = [{row[place] for row in RECIPES} for place in range(3)]
    for folder, names in zip(("models", "rewards", "hardware"), used, strict=True):
        found = {file.stem for file in (ROOT / f"configs/{folder}").glob("*.yaml")}
        assert found - {"quantized", "cpu"} == names


@pytest.mark.parametrize(("model", "method"), METHODS)
def test_a_method_goes_over_a_model(folder: Path, model: str, method: str) -> None:
    plain = build(*recipe(model, "jpeg", "1x80gb"), *ON_THE_CPU)
    cli = build(*recipe(model, "jpeg", "1x80gb"), *files(f"overlays/{method}"), *ON_THE_CPU)
    run = folder / f"runs/{model}_{method}"
    before, after = plain.parsed["model"]["init_args"], cli.parsed["model"]["init_args"]
    own = yaml.safe_load((ROOT / f"configs/overlays/{method}.yaml").read_text())
    named = set(own["model"]["init_args"])
    assert {key for key in before if before[key] != after[key]} <= named
    assert after["policy"] == before["policy"]
    probed = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert ("EntropyProbe" in probed) == method.startswith("aegpo")
    assert Path(cli.trainer.checkpoint_callback.dirpath) == run / "checkpoints"


@pytest.mark.parametrize(("model", "method", "published", "steps", "levels"), PUBLISHED)
def test_published_settings_of_a_method_go_over_it(
    folder: Path, model: str, method: str, published: str, steps: int, levels: int
) -> None:
    """24 images, no guidance, an average that is evaluated; the rest is the method's own."""
    over = [*recipe(model, "jpeg", "8x80gb"), *files(f"overlays/{method}"), *ON_THE_CPU]
    plain, cli = build(*over), build(*over, *files(f"published/{published}"))
    before, after = plain.parsed["model"]["init_args"], cli.parsed["model"]["init_args"]
    settings = after["objective"]["init_args"]
    assert after["unguided"] and after["num_steps"] == steps
    assert after["allocator"]["init_args"] == {"images_per_prompt": 24}
    assert settings["times_per_image"] == levels and settings["kl_coeff"] > 0
    own = yaml.safe_load((ROOT / f"configs/published/{published}.yaml").read_text())
    named = own["model"]["init_args"]
    assert {key for key in before if before[key] != after[key]} <= set(named)
    other = before["objective"]["init_args"]
    changed = {key for key in settings if settings[key] != other[key]}
    assert changed <= set(named["objective"]["init_args"])
    assert "EMA" in [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert after["optimizer"]["init_args"]["lr"] == 3e-4


def test_every_published_file_is_tried() -> None:
    found = {file.stem for file in (ROOT / "configs/published").glob("*.yaml")}
    assert found == {published for _, _, published, *_ in PUBLISHED}


def test_methods_name_nothing_of_the_bundled_model() -> None:
    for file in (ROOT / "configs/overlays").glob("*.yaml"):
        text = "\n".join(line.partition("#")[0] for line in file.read_text().splitlines())
        own = any(name in text for name in ("transformer_blocks", "Shapes", "shapes"))
        assert own == (file.stem in OF_THE_BUNDLED_MODEL), file.name


def test_quantized_weights_are_laid_over_a_hardware_file(folder: Path) -> None:
    arguments = recipe("flux1_dev", "hpsv21", "1x24gb")
    cli = build(*arguments, *files("hardware/quantized"), *ON_THE_CPU)
    policy = cli.parsed["model"]["init_args"]["policy"]["init_args"]
    assert policy["quantize"] == "nf4" and policy["offload"] is True


def test_a_callback_that_is_not_there_cannot_be_left_out(folder: Path) -> None:
    with pytest.warns(UserWarning, match="without_callbacks names EntropyProb, which is not"):
        build(
            *recipe("sd15", "jpeg", "1x80gb"),
            *ON_THE_CPU,
            '--trainer.without_callbacks=["EntropyProb"]',
        )


@pytest.mark.parametrize(("model", "method", "published", "steps", "levels"), PUBLISHED)
def test_published_settings_train_on_the_cpu(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    method: str,
    published: str,
    steps: int,
    levels: int,
) -> None:
    small = ["--trainer.max_epochs=1", "--data.batches_per_epoch=1", "--data.val_images=2"]
    small += ["--model.allocator.images_per_prompt=2", "--model.evaluation_steps=2"]
    layers = [f"models/{model}", "hardware/cpu", f"overlays/{method}", f"published/{published}"]
    run(monkeypatch, "fit", *(part for name in layers for part in ("--config", name)), *small)
    scalars = events(folder / f"runs/{model}_{method}").Scalars
    images = scalars("cost/images")[-1].value
    assert images > 0 and scalars("cost/update")[-1].value == 3 * levels * images
    assert scalars("cost/rollout")[-1].value >= steps * images


@pytest.mark.parametrize("model", PIXELS)
def test_a_recipe_is_tried_out_on_the_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    small = ["--trainer.max_epochs=1", "--data.batches_per_epoch=1", "--data.val_images=2"]
    small += ["--model.allocator.low=2", "--model.allocator.high=2", "--model.evaluation_steps=2"]
    run(monkeypatch, "fit", "--config", f"models/{model}", "--config", "hardware/cpu", *small)
    scalars = events(folder / f"runs/{model}").Scalars
    assert scalars("reward/mean")[-1].value < 0 and scalars("cost/update")[-1].value > 0
    assert len(list((folder / "runs/tiny_pipelines").iterdir())) == 1


def test_a_recipe_for_a_gpu_says_how_to_try_it_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["aegpo", "fit", *recipe("sd15", "jpeg", "1x24gb")])
    with pytest.raises(SystemExit):
        entry.main()
    assert "lay --config hardware/cpu over it" in capsys.readouterr().err
    assert not (folder / "runs").exists()


# One iteration of each recipe, with tiny random networks in the place of the published ones.


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sd3_dual_folder: Path,
    tiny_sd15_folder: Path,
    tiny_sdxl_folder: Path,
) -> dict[str, Path]:
    flux = tmp_path_factory.mktemp("tiny_flux")
    tiny_flux().save_pretrained(flux)
    return {
        "sd35_medium": tiny_sd3_dual_folder,
        "flux1_dev": flux,
        "sdxl": tiny_sdxl_folder,
        "sd15": tiny_sd15_folder,
    }


class Segmenter:
    """Finds one object of about every other class, as the pixels have it."""

    labels = frozenset(CLASSES)

    def __init__(self, pretrained: str, device: torch.device) -> None:
        del pretrained, device

    def find(self, images: Any, threshold: float) -> list[list[DetectedObject]]:
        return [
            [
                DetectedObject(name, 0.95, (0.0, 0.0, 4.0, 4.0))
                for place, name in enumerate(CLASSES)
                if int(image.sum(dtype=np.int64)) >> (place % 8) & 1
            ]
            for image in images
        ]


class Colors:
    """Names a color that goes by the pixels."""

    def __init__(self, *_: Any) -> None:
        pass

    def name_colors(self, picture: Any, objects: list[DetectedObject]) -> list[str]:
        return [COLORS[int(picture.sum(dtype=np.int64)) % len(COLORS)] for _ in objects]


READER = '''
import string

from aegpo.rewards.text_reader import TextReader


class Reader(TextReader):
    """Reads some of the letters in every image, more or fewer by its pixels."""

    def prepare(self):
        pass

    def read(self, images):
        return [string.ascii_lowercase[: int(image.sum()) % 27] * 3 for image in images]
'''


def tiny_reward(class_path: str, folder: Path, clip: str) -> dict[str, Any]:
    """Arguments that put tiny networks into a reward."""
    name = class_path.rpartition(".")[2]
    if name == "HPSv21":
        tiny_hpsv2(folder / "hps")
    arguments: dict[str, dict[str, Any]] = {
        "PickScore": {"model": clip, "processor": clip},
        "AestheticV2": {"weights": clip, "clip": clip},
        "HPSv21": {"weights": str(folder / "hps")},
        "OCRAccuracy": {"reader": {"class_path": "my_module.Reader"}},
    }
    return arguments.get(name, {})


@pytest.mark.parametrize(("model", "reward", "hardware"), RECIPES)
def test_a_recipe_trains(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_models: dict[str, Path],
    tiny_clip: Path,
    model: str,
    reward: str,
    hardware: str,
) -> None:
    clip = str(tiny_clip)
    (folder / "my_module.py").write_text(READER)
    monkeypatch.setattr(HPSv21, "architecture", "tiny-hps")
    monkeypatch.setattr("aegpo.rewards.geneval.reward.InstanceSegmenter", Segmenter)
    monkeypatch.setattr("aegpo.rewards.geneval.reward.ColorClassifier", Colors)
    arguments = {"pretrained": str(tiny_models[model]), "resolution": PIXELS[model], "lora_rank": 4}
    if model in ("sd35_medium", "flux1_dev"):
        arguments["max_sequence_length"] = 8
    part = yaml.safe_load((ROOT / f"configs/rewards/{reward}.yaml").read_text())["model"]
    trained = part["init_args"]["reward"]["class_path"]
    watched = [one["class_path"] for one in part["init_args"]["evaluation_rewards"]]
    tiny = {
        "trainer": {
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": 1,
            **AS_ON_A_GPU,
        },
        "model": {
            "init_args": {
                "policy": {"init_args": arguments},
                "reward": {"init_args": tiny_reward(trained, folder, clip)},
                "evaluation_rewards": [
                    {"class_path": path, "init_args": tiny_reward(path, folder, clip)}
                    for path in watched
                ],
                "allocator": {"init_args": {"low": 2, "high": 4}},
                "num_steps": 5,
                "evaluation_steps": 2,
                "micro_batch_size": 8,
            }
        },
        "data": {"init_args": {"batch_size": 2, "batches_per_epoch": 1, "val_images": 2}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    given = [*recipe(model, reward, hardware), "--config", "tiny.yaml"]
    built = BuildsOnMeta.built
    run(monkeypatch, "fit", *given, *ON_THE_CPU[:2])
    assert BuildsOnMeta.built > built

    log = events(folder / f"runs/{model}")
    scalars = {tag: log.Scalars(tag)[-1].value for tag in log.Tags()["scalars"]}
    assert math.isfinite(scalars["reward/mean"])
    # In what a tiny model draws there is nothing to read on some processors, in any image, and
    # then nothing to learn from.
    spread = scalars["reward/std"] > 0
    assert spread or reward == "ocr"
    assert {f"val/{getattr(rewards, path.rpartition('.')[2]).name}" for path in watched} <= set(
        scalars
    )
    assert all(math.isfinite(scalars[tag]) for tag in scalars if tag.startswith("val/"))
    assert scalars["cost/probe"] > 0
    saved = torch.load(folder / f"runs/{model}/checkpoints/last.ckpt", weights_only=True)
    part = "weight" if "full" in hardware else "lora_B"  # adapters begin at zero
    trained = [value for name, value in saved["state_dict"].items() if part in name]
    assert trained and all(bool(value.isfinite().all()) for value in trained)
    assert (sum(float(value.abs().sum()) for value in trained) > 0) == spread
