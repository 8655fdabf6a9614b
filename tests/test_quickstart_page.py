"""The quickstart page, followed as it stands in a new folder, but for two iterations."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from site_pages import ROOT, blocks, language, lines, reading_in

from lightning_modules.cli.main import main

PAGE = ROOT / "docs/quickstart.md"
SHORT = {
    "fit": [
        *("--trainer.max_epochs", "1", "--data.batches_per_epoch", "2", "--data.batch_size", "2"),
        *("--data.val_images", "4", "--model.allocator.images_per_prompt", "4"),
        *("--model.selection.keep", "2"),
    ],
    "evaluate": ["--limit", "2", "--images_per_prompt", "2"],
}
OURS = ("aegpo", "lightning_modules", "callbacks", "datamodules", "lightning")


def run_aegpo(words: list[str], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", [*words, *SHORT.get(words[1], [])])
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, None), shlex.join(words)


def run_shell(lines: list[str]) -> None:
    """What is no command of ours, by a shell that has our environment's Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    subprocess.run(["bash", "-ec", "\n".join(lines)], check=True, timeout=150, env=environment)


def follow(page: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Write the page's files and run its commands in the current folder; ours that were run."""
    done: list[str] = []
    for block in blocks(page):
        name = re.match(r"# (\w+[.]py)\n", block.content)
        if language(block) == "python":
            assert name is not None
            Path(name[1]).write_text(block.content)
            continue
        assert language(block) == "bash"
        shell: list[str] = []
        for line in lines(block):
            if line.startswith("aegpo "):
                words = shlex.split(line, comments=True)
                run_aegpo(words, patch)
                done.append(words[1])
            else:
                shell.append(line)
        if shell:
            run_shell(shell)
    return done


def test_followed_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reading_in(tmp_path):
        done = follow(PAGE, monkeypatch)
        assert done == ["check-reward", "plan", "fit", "report", "evaluate", "export"]
        printed = " ".join(capsys.readouterr().out.split())
        assert "other prompts and metadata make no difference" in printed and "0 failed" in printed
        saved = torch.load("runs/shapes/checkpoints/last.ckpt", weights_only=True)
        assert saved["aegpo"]["iteration"] == 2
        assert "ink" in Path("runs/shapes/report.html").read_text(encoding="utf-8")
        results = json.loads(Path("evaluated/results.json").read_text())
        assert [model["name"] for model in results["models"]] == ["base", "tuned"]
        assert {"ink", "shapes_judge"} <= results["models"][1]["scores"].keys()
        assert "trained weights differ by 0.0e+00" in printed
        assert not any(name in Path("draw.py").read_text() for name in OURS)
        with Image.open("ink.png") as image:
            assert image.size == (32, 32) and len(image.getcolors(10**6) or []) > 16
