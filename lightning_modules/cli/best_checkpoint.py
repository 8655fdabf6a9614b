"""Which checkpoint of a run was the best, for a process that did not train it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from aegpo.utilities.checkpoint_files import CheckpointFiles
from lightning_modules.arguments.messages import UserError

_OTHERWISE = "give the file of one, or --ckpt_path last"


def best_checkpoint(callbacks: Iterable[Callback]) -> str:
    """Find the best checkpoint by what a run's last one says of it.

    Lightning knows it only in the process that trained.

    Args:
        callbacks: The run's, one of which wrote checkpoints into a folder that it names.

    Returns:
        The file.

    Raises:
        UserError: If none is known, in one line.
    """
    writers = [one for one in callbacks if isinstance(one, ModelCheckpoint) and one.dirpath]
    if not writers:
        raise UserError(
            "--ckpt_path best: no callback of this config names a folder of checkpoints (dirpath); "
            + _OTHERWISE
        )
    # A run that monitors several scores names several; the first is asked for, as Lightning does.
    writer = next((one for one in writers if one.monitor), writers[0])
    folder = Path(str(writer.dirpath))
    newest = sorted(folder.glob("last*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not newest:
        raise UserError(
            f"--ckpt_path best: there is no last checkpoint in {folder} that says which was best; "
            "give the file of one"
        )
    named = _best_named(CheckpointFiles().load_checkpoint(newest[-1]), writer.monitor)
    if not named:
        raise UserError(
            f"--ckpt_path best: {newest[-1]} knows of no best checkpoint, which a run keeps only "
            f"if its checkpoint callback has a monitor, such as val/<reward>; {_OTHERWISE}"
        )
    # Beside the last one first: the folder may have been moved or copied since.
    for file in (newest[-1].with_name(Path(named).name), Path(named)):
        if file.is_file():
            return str(file)
    raise UserError(
        f"--ckpt_path best: {newest[-1]} names {named}, which is not there; {_OTHERWISE}"
    )


def _best_named(checkpoint: dict[str, Any], monitor: str | None) -> str:
    states = checkpoint.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        known = isinstance(state, dict) and state.get("monitor") and state.get("best_model_path")
        if known and monitor in (None, state["monitor"]):
            return str(state["best_model_path"])
    return ""
