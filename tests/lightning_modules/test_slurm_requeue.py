"""A job of SLURM that gets SIGUSR1: a real process, a real signal, a stub for `scontrol`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forked_runs import Forked, start_forked
from killed_runs import write_config

from lightning_modules.commands.run_logs import read_scalars

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "here",
}

NOISE = (
    *("Loading pipeline components", "Loading weights", "deprecated", "in eval mode", "FLOPs"),
    *("TPU", "Tip: ", "Warning"),
)
"""What the libraries say of themselves, and nobody can do anything about."""


def wait_for(text: str, file: Path, process: Forked, seconds: float = 200.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if file.is_file() and text in file.read_text(errors="replace"):
            return
        time.sleep(0.05)
    raise AssertionError(f"{text!r} did not come: {file.read_text(errors='replace')}")


def test_a_job_that_is_told_to_requeue_goes_on(
    folder: Path, tiny_sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n')
    (folder / "scontrol").chmod(0o755)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    write_config(folder, tiny_sd3_folder)
    (folder / "tell.py").write_text(
        "import lightning\n"
        "class Slow(lightning.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, number):\n"
        "        print('at', module.iteration, flush=True)\n"
        "        import time; time.sleep(1.0 if module.iteration == 2 else 0)\n"
    )
    command = ["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]
    command += ["--trainer.callbacks+", "tell.Slow", "--trainer.max_epochs", "3"]
    output = folder / "output.txt"
    process = start_forked(command, output)
    wait_for("at 2", output, process)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(200) == 143
    assert (folder / "asked").read_text() == "requeue 4711\n"
    said = output.read_text()
    assert "told to end: wrote" in said and "job 4711 was requeued" in said
    assert "trainable parameters" in said
    program = [line for line in said.splitlines() if "CoverageWarning" not in line]  # the tests'
    assert [line for line in program if any(word in line for word in NOISE)] == []
    checkpoints = folder / "runs/tiny/checkpoints"
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["aegpo"]["iteration"] == 3
    assert not list(folder.glob("hpc_ckpt*"))  # Lightning's, which every later run would load
    again = start_forked(command, output)
    assert again.wait(200) == 0
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["aegpo"]["iteration"] == 6
    logged = read_scalars(folder / "runs/tiny", ["reward/mean", "val/redness"])
    assert sorted(logged["reward/mean"]) == [1, 2, 3, 4, 5, 6]
    assert sorted(logged["val/redness"]) == [0, 6]
