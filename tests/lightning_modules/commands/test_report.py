"""`aegpo report`: the page has what a run left, needs nothing else, and no text in it is markup."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from aegpo.entropy.reading import EntropyReading
from aegpo.study.decision_log import Decision
from aegpo.utilities.names import markdown_text, tag_part
from aegpo.utilities.tables import markdown_table, write_csv
from lightning_modules.commands.report.report import main
from lightning_modules.commands.report.run_files import read_run, table_rows
from lightning_modules.commands.report.settings import changed_settings

HOSTILE = (
    "</td></table><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)> | $a$"
)


class Page(HTMLParser):
    """What a browser would make of a page: elements, sources and texts by element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def config_of(lr: float) -> dict[str, Any]:
    policy = {"pretrained": f"hub/{HOSTILE}", "lora_rank": 8, "guidance_scale": None}
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 3, "devices": "auto", "num_nodes": 1},
        "model": {
            "class_path": "lightning_modules.AEGPOModule",
            "init_args": {
                "policy": {"class_path": "aegpo.policies.StableDiffusion3", "init_args": policy},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}},
                "num_steps": 10,
                "clip_range": 0.5,
                "api_key": "abc",
            },
        },
        "data": {
            "class_path": "datamodules.PromptDataModule",
            "init_args": {"train_file": "prompts.txt", "batch_size": 1},
        },
    }


@pytest.fixture
def run(folder: Path) -> Path:
    """A run of TensorBoard's own files, a grid, a decision log and a config; all texts hostile."""
    log = folder / "runs" / "<b>mine"
    (log / "samples").mkdir(parents=True)
    (folder / "prompts.txt").write_text(f"{HOSTILE}\na red circle\n")
    judge = tag_part("judge<i>")
    with SummaryWriter(str(log)) as writer:
        for step in range(1, 31):
            writer.add_scalar("reward/mean", step / 30, step)
            writer.add_scalar("cost/evaluations", 100 * step, step)
            writer.add_scalar("seconds/update", 2.0, step)
        for step, score in ((0, 0.25), (15, 0.75), (30, 0.5)):
            writer.add_scalar(f"val/{judge}", score, step)
            for category in ("warm", "cold"):
                writer.add_scalar(f"val/{judge}/{category}", score, step)
            writer.add_scalar("alarm/raised", float(step == 30), step)
            Image.new("RGB", (8, 8), (step, 0, 0)).save(log / f"samples/held_out_{step:05d}.png")
        rows = [(markdown_text(HOSTILE), "0.12500")]
        writer.add_text("entropy/prompts", markdown_table(("prompt", "ΔEntropy"), rows), 30)
    (log / "config.yaml").write_text(yaml.safe_dump(config_of(3e-3)))
    (log / "environment.yaml").write_text("torch: 1.2.3\n")
    return log


def decisions(log: Path) -> None:
    explored = torch.zeros(2, 4, dtype=torch.bool)
    explored[:, 1] = True
    reading = EntropyReading(torch.rand(2, 4), torch.tensor([0.5, 0.25]))
    lines = [
        Decision(
            iteration=iteration,
            seed=0,
            index=torch.tensor([0, 1]),
            num_steps=4,
            entropy=reading,
            group_sizes=torch.tensor([16, 8]),
            stochastic=explored,
            branching=torch.ones(2, 4, dtype=torch.int64),
        ).to_json()
        for iteration in range(3)
    ]
    (log / "decisions.jsonl").write_text("\n".join(lines) + "\n")


def written(*arguments: str) -> tuple[Page, str]:
    main(list(arguments))
    out = arguments[arguments.index("--out") + 1] if "--out" in arguments else None
    html = Path(out or f"{arguments[0]}/report.html").read_text(encoding="utf-8")
    return Page(html), html


def test_the_page_has_what_the_run_left(run: Path) -> None:
    page, _ = written(str(run))
    said = " ".join(page.texts)
    assert "judge<i> 0.250 0.500 +0.250 0.750 after 15" in " ".join(said.split())
    assert "raised at 1 evaluations, first after 30 iterations" in said
    assert "0.12500" in said and HOSTILE in page.texts
    (slider,) = page.all("input")
    assert (slider["type"], slider["max"]) == ("range", "2")
    grids = [image for image in page.all("img") if image.get("data-when")]
    assert [image["data-when"] for image in grids] == ["0", "15", "30"]
    assert ["hidden" in image for image in grids] == [True, True, False]
    png = run / "samples/held_out_00015.png"
    assert str(grids[1]["src"]).partition(",")[2] == base64.b64encode(png.read_bytes()).decode()
    figures = [image["alt"] for image in page.all("img") if not image.get("data-when")]
    assert "judge<i> against evaluations and time" in figures and "judge<i> by category" in figures
    assert "model.clip_range" in page.texts and "model.num_steps" not in page.texts  # the default
    assert "model.optimizer.lr" in page.texts and "1.2.3" in page.texts
    assert "abc" not in page.texts  # under the name of a key


def test_no_text_is_markup_and_nothing_is_loaded(run: Path) -> None:
    decisions(run)
    page, html = written(str(run))
    assert len(page.all("script")) == 1 and len(page.all("table")) >= 4
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not page.all("b") and not page.all("i") and not page.all("link")
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.all("meta")[1]["content"]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    for image in page.all("img"):
        kind, _, content = str(image["src"]).partition(",")
        if "svg" in kind:
            assert "<script" not in base64.b64decode(content).decode()
    # By the decision log: every prompt by its text, with its budget.
    rows = list(zip(page.texts, page.texts[2:], page.texts[4:], page.texts[6:], strict=False))
    assert any(row == (HOSTILE, "0.50000", "3", "16.0") for row in rows) or any(
        HOSTILE in row for row in rows
    )
    assert "16.0" in page.texts and "a red circle" in page.texts


def test_runs_stand_side_by_side_with_what_they_differ_in(run: Path, folder: Path) -> None:
    other = folder / "runs" / "other"
    other.mkdir()
    write_csv(
        other / "metrics.csv",
        ("step", "reward/mean", f"val/{tag_part('judge<i>')}"),
        [(1, 0.5, None), (1, None, 0.875)],
    )
    (other / "config.yaml").write_text(yaml.safe_dump(config_of(2e-3)))
    (other / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(other / "figures/entropy_curve_00011.png")
    page, _ = written(str(run), str(other), "--out", "both.html")
    said = " ".join(" ".join(page.texts).split())
    assert [image["data-when"] for image in page.all("img") if image.get("data-when")][-1] == "11"
    assert "<b>mine judge<i> 0.250" in said and "other judge<i> 0.875 0.875" in said
    assert "where the runs differ" in said and "model.optimizer.lr 0.003 0.002" in said


def test_mistakes_are_one_line_and_no_file_is_overwritten(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "there is no folder nowhere" in refused("nowhere")
    assert f"{run.parent} holds no event files" in (told := refused(str(run.parent)))
    assert f"{run} has some" in told
    assert "named twice" in refused(str(run), str(run))
    (folder / "mine.html").write_text("<p>mine")
    assert "mine.html is no page of aegpo report" in refused(str(run), "--out", "mine.html")
    assert (folder / "mine.html").read_text() == "<p>mine"
    main([str(run)])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"reading {run}" and second.startswith("wrote ")
    main([str(run)])  # its own it replaces


def test_a_table_s_cells_come_back() -> None:
    texts = ["a|b", r"back\slash *x*", "<&>", "`~$` _y_"]
    table = markdown_table(("prompt", "n"), [(markdown_text(text), "1") for text in texts])
    assert list(table_rows(table)) == [[text, "1"] for text in texts]


def test_strangers_classes_are_not_imported(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))
    model = {"class_path": "stranger.Model", "init_args": {"lr": 1.0}}
    assert changed_settings({"model": model}) == {"model": "stranger.Model", "model.lr": "1.0"}
    with pytest.raises(ValueError, match="holds no event files"):
        read_run(folder, "x")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs headless Chromium")
def test_a_browser_shows_it_and_refuses_nothing(run: Path, tmp_path: Path) -> None:
    main([str(run), "--out", "page.html"])
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    ended = subprocess.run(
        [
            *browser,
            f"--user-data-dir={tmp_path}/profile",
            "--dump-dom",
            f"file://{tmp_path}/page.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    page = Page(ended.stdout)
    assert len(page.all("script")) == 1 and HOSTILE in page.texts
    assert "Refused" not in ended.stderr and "Security Policy" not in ended.stderr
