"""Configs of the package by their names, from any folder, in a checkout and in a wheel."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_modules.arguments.config_files import mistake_in_file
from lightning_modules.arguments.shipped import (
    shipped_config,
    shipped_names,
    with_shipped_configs,
)
from lightning_modules.commands.compare.settings import Comparison, Overlays

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shapes", "shapes.yaml"),
        ("shapes.yaml", "shapes.yaml"),
        ("configs/shapes.yaml", "shapes.yaml"),
        ("overlays/grpo", "overlays/grpo.yaml"),
        ("hardware/1x24gb.yaml", "hardware/1x24gb.yaml"),
        ("models/sd15", "models/sd15.yaml"),
    ],
)
def test_a_name_is_a_file_of_the_package(name: str, file: str, folder: Path) -> None:
    assert Path(shipped_config(name)).read_text() == (ROOT / "configs" / file).read_text()


def test_what_is_there_or_is_no_name_stays(folder: Path) -> None:
    (folder / "shapes.yaml").write_text("seed_everything: 1")
    assert shipped_config("shapes.yaml") == "shapes.yaml"
    for text in ("nothing", "../configs/shapes", "/shapes", "seed_everything: 1", "{}", "", ".."):
        assert shipped_config(text) == text


def test_a_command_line_gets_the_files(folder: Path) -> None:
    grpo = shipped_config("overlays/grpo")
    words = ["fit", "-c", "overlays/grpo", "--config=overlays/grpo", "--out", "overlays/grpo"]
    expected = ["fit", "-c", grpo, f"--config={grpo}", "--out", "overlays/grpo"]
    assert with_shipped_configs(words) == expected


def test_a_mistyped_name_is_told(folder: Path) -> None:
    told = "there is no config overlays/grpoo; did you mean 'overlays/grpo'?"
    assert mistake_in_file("overlays/grpoo") == told


def test_a_comparison_names_them_too(folder: Path) -> None:
    (folder / "mine.yaml").write_text("seed_everything: 1")
    methods = {"a": Overlays(["overlays/grpo", "mine.yaml"])}
    found = Comparison(methods, "shapes", 1, "val/x", "a", out="x").arguments(folder)["a"]
    given = [shipped_config("shapes"), shipped_config("overlays/grpo"), str(folder / "mine.yaml")]
    assert found[1::2] == given


@pytest.mark.slow
def test_a_wheel_holds_them_all_and_finds_them(tmp_path: Path, folder: Path) -> None:
    """Built without a network from the files of the repository, and used without the checkout."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("aegpo", "lightning_modules", "callbacks", "datamodules", "configs"):
        (source / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    subprocess.run(
        [sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120
    )
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from lightning_modules.arguments.shipped import shipped_names, shipped_config\n"
        "print(*shipped_names()); print(shipped_config('overlays/grpo'))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "installed")],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    assert printed[0].split() == shipped_names() and "hardware/8x80gb" in shipped_names()
    assert printed[1] == str(tmp_path / "installed/aegpo/configs/overlays/grpo.yaml")
    assert importlib.resources.files("aegpo").joinpath("configs/shapes.yaml").is_file()
