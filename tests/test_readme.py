"""Every command of the README runs in miniature as written, and leaves what it is for."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_runs import events
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from lightning_modules.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [shlex.split(line) for line in LINES if line.startswith("aegpo ")]
MINIATURE = [
    *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
    *("--data.init_args.batch_size", "2", "--data.init_args.batches_per_epoch", "1"),
    *("--data.init_args.val_images", "4"),
    *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_model_summary", "false"),
]
RUN = Path("runs/shapes")


def folder_of(arguments):
    """Where a run of these arguments is logged."""
    if "configs/overlays/grpo.yaml" in arguments:
        return Path("runs/aegpo_grpo")
    return Path("runs/aegpo") if "configs/overlays/aegpo.yaml" in arguments else RUN


def checkpoint(run=RUN):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def scalars(tag, run=RUN):
    return events(run).Scalars(tag)


def judge_fit(arguments, printed):
    """What a training writes, and that it is the one asked for."""
    run = folder_of(arguments)
    saved, log = checkpoint(run), events(run)
    assert saved["aegpo"]["iteration"] == 1
    assert any(float(value.abs().sum()) > 0 for name, value in saved["state_dict"].items())
    assert [event.step for event in log.Scalars("reward/mean")] == [1]
    assert [event.step for event in log.Scalars("val/shapes_judge")] == [1]
    assert "held-out scores (val) after 1 iterations" in " ".join(printed.split())
    with Image.open(run / "samples/held_out_00001.png") as picture:
        assert min(picture.size) >= 32 and len(picture.getcolors(10**6) or []) > 16
    curves = "entropy/curve" in log.Tags()["images"]
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert curves == ("configs/overlays/grpo.yaml" not in arguments)
    steps = 20 if "--model.init_args.num_steps" in arguments else 10
    assert config["num_steps"] == steps
    assert (config["objective"] is None) == (run != RUN)
    # Two prompts of 2 and 4 images, of 3, or in the warm-up of 4 in five steps, trained on at 4
    # levels and held to the base at another. Half of these samples are the second update's, and
    # for the levels among them the policy that drew them is asked again.
    drawn, asked = (6 * steps, 0) if run != RUN else (8 * 5, 8 * 5 // 2)
    anchors = asked and 8
    assert drawn + asked - anchors <= scalars("cost/rollout", run)[0].value <= drawn + asked
    own = "my_module.Brightness" in arguments
    assert config["reward"]["class_path"].endswith("Brightness" if own else "ShapesMatch")
    tags = log.Tags()["scalars"]
    assert f"val/{'brightness' if own else 'shapes_match'}" in tags
    assert ("val/shapes_match/count" in tags) == ("prompts.txt" not in arguments and not own)
    assert "trained 1 iterations" in printed and "aegpo sample --config" in printed


def judge_resume(arguments, printed):
    saved = checkpoint()
    assert saved["aegpo"]["iteration"] == 2  # one more than the run that it goes on with
    assert [event.step for event in scalars("reward/mean")] == [1, 2]
    cost = [event.value for event in scalars("cost/evaluations")]
    assert cost[1] > cost[0] > 0


def judge_scores(command, stage):
    def judge(arguments, printed):
        assert f"held-out scores ({stage})" in printed
        done = checkpoint()["aegpo"]["iteration"]
        # Beside the training's own events, which no evaluation adds to.
        (score,) = events(RUN / command).Scalars(f"{stage}/shapes_judge")
        assert score.step == done and 0 <= score.value <= 1

    return judge


def judge_signals(arguments, printed):
    report = json.loads(Path("runs/signals/signals.json").read_text())
    assert report and len(list(Path("runs/signals").glob("*.md"))) >= 1
    assert len(Path("runs/signals/steps.csv").read_text().splitlines()) > 1


def judge_sample(arguments, printed):
    rows = [json.loads(line) for line in Path("samples/scores.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {"a red circle", "two blue circles"}
    files = {row["file"] for row in rows}
    assert files == {str(file.relative_to("samples")) for file in Path("samples").glob("*/*.png")}
    assert all(0 <= row["scores"]["shapes_judge"] <= 1 for row in rows)
    with Image.open("samples/grid.png") as grid:
        assert grid.size[0] > 32


def judge_export(arguments, printed):
    out = Path("exports/shapes")
    assert "trained weights differ by 0.0e+00" in printed
    card = ModelCard.load(out / "README.md")
    assert "| shapes\\_judge |" in card.text and "lora" in card.data.tags  # Markdown shows a _
    assert "shapes_judge" in {result.metric_type for result in card.data.eval_results}
    assert any(load_file(file) for file in out.rglob("*.safetensors"))
    assert (out / "config.yaml").is_file()


def judge_evaluate(arguments, printed):
    result = json.loads(Path("evaluated/results.json").read_text())
    assert [model["name"] for model in result["models"]] == ["base", "tuned"]
    assert {"shapes_match", "shapes_judge"} <= result["models"][1]["scores"].keys()
    assert "Difference to the base" in printed and Path("evaluated/index.html").is_file()


def judge_report(arguments, printed):
    page = (RUN / "report.html").read_text(encoding="utf-8")
    for said in ("shapes_judge", "data:image/svg+xml", "data-when", "model.reward", "torch"):
        assert said in page


def judge_init(arguments, printed):
    assert {path.name for path in Path("my_run").iterdir()} == {
        "config.yaml",
        "prompts.txt",
        "my_reward.py",
    }
    assert "aegpo fit --config shapes --config config.yaml" in printed


def judge_print_config(arguments, printed):
    config = yaml.safe_load(printed)
    assert config["model"]["class_path"].endswith("AEGPOModule")
    assert config["trainer"]["max_epochs"] == 10


def says(*words):
    def judge(arguments, printed):
        assert all(word in printed for word in words), printed

    return judge


JUDGES = {
    "fit": judge_fit,
    "validate": judge_scores("validate", "val"),
    "test": judge_scores("test", "test"),
    "doctor": says("ratio", "over 90 tensors"),
    "plan": says("12,800", "evaluations"),
    "signals": judge_signals,
    "sample": judge_sample,
    "export": judge_export,
    "evaluate": judge_evaluate,
    "check-reward": says("0 failed"),
    "report": judge_report,
    "init": judge_init,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README assumes it: the configs, and the reader's own reward."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    python = re.findall(r"```python\n# my_module.py\n(.*?)```", README, flags=re.DOTALL)
    (folder / "my_module.py").write_text(python[0])
    colors, shapes = ("red", "green", "blue"), ("circle", "square", "cross", "triangle")
    lines = [f"a {color} {shape}" for color in colors for shape in shapes]
    (folder / "prompts.txt").write_text("\n".join(lines))
    return folder


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 8
    assert LINES[:2] == ["make train", "make test"]


def few_images(arguments):
    """Options of a training that make its groups small, whatever allocator it has."""
    named = {"allocator.images_per_prompt": 4, "selection.keep": 2}
    if arguments[-1].endswith("/grpo.yaml"):
        named = {"allocator.images_per_prompt": 3}
    elif arguments[-1].endswith("/aegpo.yaml"):
        named = {"allocator.low": 2, "allocator.high": 4}
    return [f"--model.{key}={value}" for key, value in named.items()]


def go_through(arguments):
    """Run the program as if it was typed."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["aegpo", *arguments])
        main()
        raise SystemExit(0)  # main returns where all went well
    assert stopped.value.code in (0, None)


def prepare(run, fresh):
    """Make room for a new run, or have one where another process ran the commands before."""
    if fresh and run.exists():  # as the README says
        run.rename(f"runs/{len(list(Path('runs').iterdir()))}")
    elif not fresh and not run.exists():
        trained = ["--config", "configs/shapes.yaml"]
        go_through(["fit", *trained, *MINIATURE, *few_images(trained)])


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(words[1:]) for words in COMMANDS])
def test_readme_command_writes_what_it_is_for(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    _, subcommand, *arguments = command
    miniature = [] if "--print_config" in arguments else MINIATURE
    judge = JUDGES[subcommand]
    resumes = subcommand == "fit" and "--ckpt_path" in arguments
    if resumes:
        miniature, judge = [*MINIATURE, "--trainer.max_epochs", "2"], judge_resume
    elif "--print_config" in arguments:
        judge = judge_print_config
    if subcommand in ("plan", "check-reward", "export", "report", "init"):
        miniature = []
    if subcommand == "doctor":
        miniature = ["--data.init_args.batch_size", "2"]
    if subcommand == "sample":
        miniature = ["--images_per_prompt", "1", "--num_steps", "3"]
    if subcommand == "evaluate":
        miniature = ["--limit", "2", "--images_per_prompt", "2", "--num_steps", "3"]
    if subcommand == "signals":
        miniature = ["--prompts", "3", "--images", "2", "--trajectories", "2", "--rows", "8"]
    if subcommand == "fit" and "--print_config" not in arguments:
        miniature = [*miniature, *few_images(arguments)]
    fresh = subcommand == "fit" and not resumes and "--print_config" not in arguments
    run = folder_of(arguments)
    prepare(run, fresh)
    capsys.readouterr()
    go_through([subcommand, *arguments, *miniature])
    judge(arguments, capsys.readouterr().out)
