"""Every command of the README is accepted as written, and runs in miniature."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from lightning_modules.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [shlex.split(line) for line in LINES if line.startswith("aegpo ")]
MINIATURE = [
    *("--trainer.max_epochs", "1", "--trainer.logger", "false"),
    *("--data.init_args.batch_size", "2", "--data.init_args.batches_per_epoch", "1"),
    *("--data.init_args.shares", "null", "--data.init_args.val_images", "4"),
    *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_model_summary", "false"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README assumes it: the configs, and the reader's own reward."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    python = re.findall(r"```python\n# my_module.py\n(.*?)```", README, flags=re.DOTALL)
    (folder / "my_module.py").write_text(python[0])
    return folder


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 8
    assert LINES[:2] == ["make train", "make test"]


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(words[1:]) for words in COMMANDS])
def test_readme_command_runs(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    _, subcommand, *arguments = command
    miniature = [] if "--print_config" in arguments else MINIATURE
    if subcommand in ("plan", "check-reward", "export"):
        miniature = []
    if subcommand == "doctor":
        miniature = ["--data.init_args.batch_size", "2", "--data.init_args.shares", "null"]
    if subcommand == "sample":
        miniature = ["--images_per_prompt", "1", "--num_steps", "3"]
    if subcommand == "signals":
        miniature = ["--prompts", "3", "--images", "2", "--trajectories", "2", "--rows", "8"]
        miniature += ["--model.init_args.num_steps", "5"]
    fresh = subcommand == "fit" and "--ckpt_path" not in arguments
    if fresh and Path("runs/shapes").exists():  # as the README says
        Path("runs/shapes").rename(f"runs/{len(list(Path('runs').iterdir()))}")
    monkeypatch.setattr("sys.argv", ["aegpo", subcommand, *arguments, *miniature])
    with pytest.raises(SystemExit) as stopped:
        main()
        raise SystemExit(0)  # main returns where all went well
    assert stopped.value.code in (0, None)
