"""`aegpo compare` over real trainings on the tiny pipeline, inside this process to save imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from board_rows import hparams_rows
from tiny_training import PROMPTS

from lightning_modules.cli.lightning_cli import main as run_cli
from lightning_modules.cli.resolve_configs import resolve
from lightning_modules.commands.compare.compare import compare
from lightning_modules.commands.compare.run import ComparedRun
from lightning_modules.commands.compare.settings import Comparison


class Ended:
    def poll(self) -> int:
        return 0

    def kill(self) -> None: ...

    wait = poll


class InProcess:
    """Runs `fit` here; `dies_at` is cut after its first epoch, and this program with it."""

    def __init__(self, dies_at: str = "") -> None:
        self.dies_at = dies_at
        self.started: list[tuple[str, bool]] = []

    def __call__(self, run: ComparedRun, resume: bool, alone: bool) -> Ended:
        self.started.append((run.name, resume))
        arguments = ["fit", "--config", str(run.folder / "resolved.yaml")]
        if run.name == self.dies_at:
            run_cli([*arguments, "--trainer.max_epochs", "1"])
            raise KeyboardInterrupt
        run_cli([*arguments, *(["--ckpt_path", "last"] if resume else [])])
        return Ended()


def test_a_miniature_comparison_killed_and_continued(
    tmp_path: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["aegpo"])
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    policy = {"pretrained": str(tiny_sd3_folder), "lora_rank": 4, "max_sequence_length": 4}
    base = {
        "trainer": {
            "accelerator": "cpu",
            "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.EntropyProbe"}],
        },
        "model": {
            "class_path": "lightning_modules.AEGPOModule",
            "init_args": {
                "policy": {
                    "class_path": "aegpo.policies.StableDiffusion3",
                    "init_args": policy,
                },
                "reward": "aegpo.rewards.JpegCompressibility",
                "sde": "aegpo.sde.FlowSDE",
                "step_selector": {
                    "class_path": "aegpo.exploration.EntropyPeaks",
                    "init_args": {"top_k": 2},
                },
                "allocator": {
                    "class_path": "aegpo.allocation.MedianSplitAllocator",
                    "init_args": {"low": 2, "high": 4},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "num_steps": 4,
            },
        },
        "data": {
            "class_path": "datamodules.PromptDataModule",
            "init_args": {
                "train_file": "prompts.txt",
                "val_file": "prompts.txt",
                "batch_size": 2,
                "batches_per_epoch": 2,
                "val_images": 4,
            },
        },
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    all_steps = {
        "model": {"init_args": {"step_selector": {"class_path": "aegpo.exploration.AllSteps"}}}
    }

    def settings(out: str) -> Comparison:
        return Comparison(
            methods={"peaks": [], "all": [all_steps]},
            base="base.yaml",
            budget=200,
            metric="val/jpeg_compressibility",
            reference="all",
            seeds=[0, 1],
            evaluate_every={"evaluations": 75},
            out=out,
        )

    resolved: dict[str, dict] = {}

    def resolve_all(arguments: list[list[str]]) -> list[dict]:
        for words in arguments:
            if str(words) not in resolved:  # the files do not change
                resolved[str(words)] = resolve(words)
        return [resolved[str(words)] for words in arguments]

    whole = InProcess()
    assert compare(settings("whole"), tmp_path, resolve_all, whole)
    assert len(whole.started) == 4
    with pytest.raises(KeyboardInterrupt):
        compare(settings("cut"), tmp_path, resolve_all, InProcess(dies_at="all, seed 0"))
    rest = InProcess()
    assert compare(settings("cut"), tmp_path, resolve_all, rest)
    assert rest.started == [("all, seed 0", True), ("peaks, seed 1", False), ("all, seed 1", False)]
    for name in ("table.md", "table.csv", "table.json", "curves.csv"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()

    trials = hparams_rows(tmp_path / "cut")  # side by side in TensorBoard
    assert {trial.status for trial in trials.values()} == {1}
    told = [(row.settings["method"], row.settings["seed"]) for row in trials.values()]
    assert sorted(told) == [(name, seed) for name in ("all", "peaks") for seed in (0, 1)]
    selectors = {row.settings["step_selector"] for row in trials.values()}
    assert selectors == {"EntropyPeaks", "AllSteps"}
    rows = (tmp_path / "whole/curves.csv").read_text().splitlines()[1:]
    costs, final = {}, {}
    for row in rows:
        method, seed, cost, score = row.split(",")
        costs.setdefault((method, seed), []).append(float(cost))
        final[method, int(seed)] = pytest.approx(float(score))
    assert len(costs) == 4
    for spent in costs.values():
        assert spent[0] == 0  # the base
        assert len(spent) >= 3  # about every seventy-five evaluations
        assert spent[-2] < 200 <= spent[-1]  # and no iteration after the budget
    for trial in trials.values():
        _, score = trial.numbers["last/jpeg_compressibility"]
        assert final[trial.settings["method"], trial.settings["seed"]] == score
