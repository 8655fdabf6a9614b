"""One row of TensorBoard's HParams, in an event file of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_modules.cli.board.hyperparameters import Value
from lightning_modules.cli.enduring_loggers import appending
from lightning_modules.commands.run_logs import EVENT_FILES

FOLDER = "hparams"
"""Where it lies in the folder of the run.

TensorBoard takes every number of a row's own folder for a column, and the settings of all rows
together for the others, unless one row has said which: so the row gets a folder with those numbers
alone, and rows with different settings stand beside each other.
"""
_FILES = f"{EVENT_FILES}.{FOLDER}"
"""Names of such files, which TensorBoard reads and nobody else writes."""


class Trial:
    """The settings of a run, its numbers so far, and how it ended.

    The file is begun anew by a run that goes on: TensorBoard believes the first of two rows.
    A disk that is full costs a warning, the first time, and what does not fit.

    Args:
        folder: The log folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._file = self._folder / _FILES.replace("*", f"{time.time():017.6f}")
        self._refused = False

    def begin(self, settings: Mapping[str, Value]) -> None:
        """Begin the row, in place of one that is there.

        Args:
            settings: The settings by name.
        """
        info = SessionStartInfo(start_time_secs=time.time())
        for name, value in settings.items():
            ParseDict(value, info.hparams[name])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for before in self._folder.glob(_FILES):
                before.unlink()
            self._file.touch()
        except OSError as error:
            self._refuse(error)
            return
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = HParamsPluginData(session_start_info=info)
        self._summary([_hidden(metadata.SESSION_START_INFO_TAG, start)], 0)

    def note(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Put down numbers; the latest of each is the column's.

        Args:
            numbers: By tag.
            iteration: After how many iterations.
        """
        self._summary([Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()], iteration)

    def end(self, whole: bool) -> None:
        """Put down how the run ended.

        Args:
            whole: Whether it came to its end.
        """
        status = STATUS_SUCCESS if whole else STATUS_FAILURE
        info = SessionEndInfo(status=status, end_time_secs=time.time())
        end = HParamsPluginData(session_end_info=info)
        self._summary([_hidden(metadata.SESSION_END_INFO_TAG, end)], 0)

    def _summary(self, values: list[Summary.Value], iteration: int) -> None:
        self._write(Event(wall_time=time.time(), step=iteration, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        if not self._file.is_file():  # somebody took it away, or it could not be made
            return
        try:
            with appending(self._file) as file, file.open("ab") as stream:
                RecordWriter(stream).write(event.SerializeToString())
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            rank_zero_warn(f"{self._file} could not be written ({error}); the run goes on")


def _hidden(tag: str, data: HParamsPluginData) -> Summary.Value:
    """A message of the plugin's: it is the description of an empty tensor."""
    described = metadata.create_summary_metadata(data)
    return Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
