"""A job of the SLURM scheduler that puts itself back into the queue."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping


def requeue_job(environment: Mapping[str, str] = os.environ) -> str:
    """Have SLURM run this job again, from the same command line.

    Args:
        environment: Where SLURM names the job; a task of an array is requeued alone.

    Returns:
        What came of it, in one line.
    """
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    if not job:
        return "not requeued: SLURM_JOB_ID is not set"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"job {job} was not requeued: scontrol cannot be run ({error.strerror})"
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = f" ({lines[-1]})" if lines else ""
        return f"job {job} was not requeued: scontrol ended with status {done.returncode}{said}"
    return f"job {job} was requeued"
