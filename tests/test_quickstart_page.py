"""The quickstart page, followed as it stands in a new folder, but for two iterations of eighty."""

from __future__ import annotations

import json
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


def run_python(words: list[str]) -> None:
    """A program of plain diffusers, in a process that knows nothing of this project."""
    check = f"assert not {set(OURS)} & set(sys.modules)"
    program = f"import runpy, sys; runpy.run_path({words[1]!r}, run_name='__main__'); {check}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def follow(page: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Write the page's files and run its commands in the current folder; what was run."""
    done: list[str] = []
    for block in blocks(page):
        name = re.match(r"# (\w+[.]py)\n", block.content)
        if language(block) == "python":
            assert name is not None
            Path(name[1]).write_text(block.content)
            continue
        assert language(block) == "bash"
        shell: list[str] = []
        for line in [*lines(block), ""]:
            ours = line.startswith(("aegpo ", "python "))
            if shell and (ours or not line):
                subprocess.run(["bash", "-ec", "\n".join(shell)], check=True, timeout=60)
                shell = []
            words = shlex.split(line, comments=True) if ours else []
            if ours:
                done.append(words[1])
                run_aegpo(words, patch) if words[0] == "aegpo" else run_python(words)
            elif line:
                shell.append(line)
    return done


def test_followed_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reading_in(tmp_path):
        done = follow(PAGE, monkeypatch)
        assert done == ["check-reward", "plan", "fit", "report", "evaluate", "export", "draw.py"]
        printed = " ".join(capsys.readouterr().out.split())
        assert "other prompts and metadata make no difference" in printed and "0 failed" in printed
        saved = torch.load("runs/shapes/checkpoints/last.ckpt", weights_only=True)
        assert saved["aegpo"]["iteration"] == 2
        assert "ink" in Path("runs/shapes/report.html").read_text(encoding="utf-8")
        results = json.loads(Path("evaluated/results.json").read_text())
        assert [model["name"] for model in results["models"]] == ["base", "tuned"]
        assert {"ink", "shapes_judge"} <= results["models"][1]["scores"].keys()
        assert "trained weights differ by 0.0e+00" in printed
        with Image.open("ink.png") as image:
            assert image.size == (32, 32) and len(image.getcolors(10**6) or []) > 16
