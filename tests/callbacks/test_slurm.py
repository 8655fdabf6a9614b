"""A job puts itself back into the queue of SLURM, here a program of that name on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks.slurm import requeue_job


def test_every_outcome_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue_job({}) == "not requeued: SLURM_JOB_ID is not set"
    job = {"SLURM_JOB_ID": "12"}
    assert "scontrol cannot be run (No such file" in requeue_job(job)
    stub = tmp_path / "scontrol"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    stub.chmod(0o755)
    assert requeue_job(job) == "job 12 was requeued"
    array = job | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert requeue_job(array) == "job 7_3 was requeued"
    assert (tmp_path / "asked").read_text() == "requeue 12\nrequeue 7_3\n"
    stub.write_text("#!/bin/sh\necho first\necho Invalid job id >&2\nexit 1\n")
    assert requeue_job(job).endswith("scontrol ended with status 1 (Invalid job id)")
