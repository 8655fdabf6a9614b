"""What `aegpo init` writes is a run: it plans, passes the doctor and trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from cli_runs import events, run

from lightning_modules.commands.init.choices import Choice, rewards
from lightning_modules.commands.init.files import commands_of, files_of
from lightning_modules.commands.init.init import main

MINIATURE = ["--trainer.max_epochs=1", "--data.batches_per_epoch=1", "--data.val_images=2"]
MINIATURE += ["--trainer.num_sanity_val_steps=0", "--model.evaluation_steps=2"]


def written(capsys: pytest.CaptureFixture[str], *options: str) -> list[list[str]]:
    """Run it; return the words of the commands that it advises, after `cd`."""
    main(["--out", "my run", *options])
    first, second, *commands = capsys.readouterr().out.splitlines()
    assert first.startswith("wrote config.yaml") and second == "cd 'my run'"
    return [line.partition("#")[0].split()[1:] for line in commands]


@pytest.mark.parametrize(
    ("options", "few"),
    [
        ([], ["--model.allocator.images_per_prompt=4", "--model.selection.keep=2"]),
        (
            ["--model", "sd1.5", "--reward", "file", "--gpus", "0"],
            ["--model.allocator.low=2", "--model.allocator.high=2"],
        ),
    ],
    ids=["shapes", "own_reward"],
)
def test_what_it_writes_is_a_run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    few: list[str],
) -> None:
    commands = written(capsys, *options)
    monkeypatch.chdir(folder / "my run")
    monkeypatch.syspath_prepend(str(folder / "my run"))
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    said = {}
    for command in commands:
        small = {"fit": [*MINIATURE, "--data.batch_size=2", *few], "doctor": few}
        run(monkeypatch, *command, *small.get(command[0], []))
        said[command[0]] = capsys.readouterr().out
    assert "evaluations" in said["plan"] and "ratio" in said["doctor"]
    assert ("check-reward" in said) == ("file" in options)
    log = events(folder / "my run/runs/my run")
    assert log.Scalars("reward/mean")
    watched = "val/my_reward" if "file" in options else "val/shapes_judge"
    assert watched in log.Tags()["scalars"]


def test_it_overwrites_nothing_unless_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(capsys, "--reward", "file")
    mine = folder / "my run/my_reward.py"
    mine.write_text("mine")
    (folder / "my run/config.yaml").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["--out", "my run", "--reward", "file"])
    assert stopped.value.code == 2
    assert "is there already; give another --out, or --overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine" and not (folder / "my run/config.yaml").exists()
    main(["--out", "my run", "--reward", "file", "--overwrite", "true"])
    assert "class MyReward" in mine.read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "sd16"], "there is no model 'sd16'; did you mean 'sd15'?"),
        (["--reward", "pickscor"], "there is no reward 'pickscor'; did you mean 'pickscore'?"),
        (["--model", "sdxl", "--reward", "shapes"], "there is no reward 'shapes'"),
        (["--prompts", "nope.txt"], "--prompts nope.txt is no file"),
        (["--model", "sd15", "--gpus", "12"], "--gpus 12; give 0 to 8, or 16"),
        (["--model", "sd15", "--reward", "ocr", "--prompts", "mine.txt"], "a .txt file has none"),
        (["--model", "other"], "other is a WuerstchenPipeline, for which there is no recipe"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    (folder / "mine.txt").write_text("a red fox\n")
    (folder / "other").mkdir()
    (folder / "other/model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}')
    with pytest.raises(SystemExit) as stopped:
        main(["--out", "new", *options])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (folder / "new").exists()


def test_at_a_terminal_it_asks_for_what_was_not_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, asked = iter(["file", "mine.jsonl", "2", ""]), []

    def answer(question: str) -> str:
        asked.append(question.split("?")[0])
        return next(answers)

    (folder / "mine.jsonl").write_text('{"prompt": "a red fox"}\n{"prompt": "a boat"}\n')
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    main(["--out", "new", "--model", "flux"])
    assert asked == [
        "Which reward",
        "A file with your prompts",
        "How many GPUs",
        "How many GB has each",
    ]
    config = yaml.safe_load((folder / "new/config.yaml").read_text())
    assert config["trainer"]["devices"] == 2 and config["trainer"]["strategy"] == "ddp"
    assert config["data"]["init_args"]["batch_size"] == 2 * 4
    assert config["data"]["init_args"]["train_file"] == "prompts.jsonl"
    assert (folder / "new/prompts.jsonl").read_text() == (folder / "mine.jsonl").read_text()
    assert "hardware/1x24gb --config hardware/quantized --config config" in capsys.readouterr().out


def test_an_answer_that_cannot_be_is_told_and_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["sdxxl", "sdxl", "jpg", "jpeg", "no.txt", "", "one", "8"])
    asked = []

    def answer(question: str) -> str:
        asked.append(question.split()[0])
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    main(["--out", "new"])
    *told, wrote = capsys.readouterr().out.partition("cd new")[0].splitlines()
    assert "".join(word[0] for word in asked) == "WWWWAAHHH"  # the end of the input is a default
    assert [line[:23] for line in told] == [
        "there is no model 'sdxx",
        "there is no reward 'jpg",
        "--prompts no.txt is no ",
        "'one' is no number; giv",
    ]
    assert wrote == "wrote config.yaml, prompts.txt into new: sdxl for jpeg, on 8 GPUs of 24 GB"


def test_a_folder_that_is_taken_is_told_before_anything_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.yaml").touch()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    with pytest.raises(SystemExit):
        main(["--out", "."])
    assert "is there already" in capsys.readouterr().err


def test_where_nobody_can_be_asked_it_says_what_it_took(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--out", "new"])
    assert "into new: shapes for its own rewards, on the CPU\n" in capsys.readouterr().out


@pytest.mark.parametrize("reward", [*rewards(), "file"])
@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd35_medium", "flux1_dev"])
@pytest.mark.parametrize(("gpus", "memory"), [(0, 0), (1, 24), (3, 80), (8, 80), (16, 80)])
def test_its_values_are_the_recipes_until_somebody_changes_them(
    model: str, reward: str, gpus: int, memory: int
) -> None:
    choice = Choice.of("x", model, reward, "", gpus, memory)
    files = files_of(choice)
    config = yaml.safe_load(files["config.yaml"])
    assert all(len(line) <= 200 for line in files["config.yaml"].splitlines())
    steps = {"sd15": 50, "sdxl": 20}.get(model, 10) if gpus else 10
    assert config["model"]["init_args"]["num_steps"] == steps
    assert ("prompts.txt" in files) == (reward not in ("ocr", "geneval"))
    assert ("my_reward.py" in files) == (reward == "file")
    per_gpu = 2 if gpus == 0 else 4 if memory == 24 else 16 if gpus < 8 else 8
    assert config["data"]["init_args"]["batch_size"] == per_gpu * max(1, gpus)
    assert config["trainer"].get("devices") == (3 if gpus == 3 else None)
    assert commands_of(choice)[-1].endswith("--config config.yaml")
