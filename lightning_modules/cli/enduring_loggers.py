"""Loggers that neither a full disk nor a name ends a run with: what is lost is said once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from aegpo.utilities.files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def enduring(loggers: Sequence[Logger]) -> list[Logger]:
    """Have Lightning's loggers put up with what a training does to them.

    With a disk that is full TensorBoard's and the CSV logger stop it, with a line about an
    unsupported value or about a file; MLflow's store in files does at the first score by category.
    One of a user's own class stays as it is.

    Args:
        loggers: A trainer's.

    Returns:
        The same objects.
    """
    for logger in loggers:
        kind = _KINDS.get(type(logger))
        if kind is not None and (kind is not FilesMLFlowLogger or _is_in_files(logger)):
            logger.__class__ = kind
    return list(loggers)


class _Disk:
    """What is said of one log that cannot be written: once."""

    def __init__(self) -> None:
        self.said = False

    def refused(self, file: str | Path, error: OSError, then: str) -> None:
        if not self.said:
            self.said = True
            rank_zero_warn(f"{file} could not be written ({error}); the run goes on, {then}")


class _Events:
    """The end of a file of events: takes a record whole or not at all.

    Args:
        file: TensorBoard's own, of a local file.
        path: Its path.
    """

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path, self._disk = file, path, _Disk()

    def write(self, record: bytes) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            self._file.write(record)
        except OSError as error:
            if self._path.exists():  # what follows half a record could not be read
                os.truncate(self._path, size)
            self._disk.refused(self._path, error, "and what it logs until there is room is lost")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class EnduringTensorBoardLogger(TensorBoardLogger):
    """Lightning's, for a disk that may fill up: points are lost until there is room again."""

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer, all of whose events go through one file."""
        new = self._experiment is None
        writer: SummaryWriter = super().experiment
        file_writer: Any = writer.file_writer
        if new and file_writer is not None:
            # The thread that writes would die of an exception, and print it.
            records = file_writer.event_writer._async_writer._writer
            path = Path(os.fsdecode(records._writer.filename))
            if path.is_file():  # not an object store's
                records._writer = _Events(records._writer, path)
        return writer

    @rank_zero_only
    def save(self) -> None:
        """Write the hyperparameters, which are in every checkpoint too."""
        try:
            super().save()
        except OSError as error:
            _Disk().refused(Path(self.log_dir) / self.NAME_HPARAMS_FILE, error, "without it")


class EnduringCSVLogger(CSVLogger):
    """Lightning's, for a disk that may fill up: rows are kept until there is room again.

    Lightning's may leave half a row, and empties the table before it writes a new column.
    """

    @rank_zero_only
    def save(self) -> None:
        """Write the rows since the last time, all of them or none."""
        writer: Any = self.experiment
        if not writer.metrics:
            return
        if not Path(writer.log_dir).is_dir():  # an object store's, which shows whole objects only
            super().save()
            return
        disk = self.__dict__.setdefault("_disk", _Disk())
        table, columns = Path(writer.metrics_file_path), list(writer.metrics_keys)
        known = table.is_file() and set(columns).issuperset(set().union(*writer.metrics))
        try:
            with appending(table) if known else replacing(table) as place:
                if not known and table.is_file():
                    shutil.copyfile(table, place)
                writer.metrics_file_path = str(place)
                super().save()
        except OSError as error:
            writer.metrics_keys = columns  # or the next header would lack the new ones
            disk.refused(table, error, "and its rows are kept until there is room")
        finally:
            writer.metrics_file_path = str(table)


class FilesMLFlowLogger(MLFlowLogger):
    """Lightning's, for a store that is a folder: a metric is a file there.

    So there is no `val/judge/two` beside `val/judge`, which would have to be a folder as well.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, what follows a second slash of a tag after a dot."""
        super().log_metrics({file_of_metric(tag): metrics[tag] for tag in metrics}, step)


def file_of_metric(tag: str) -> str:
    """Name a metric so that no other one's name goes on with a slash.

    Args:
        tag: `group/name` or `group/name/part`.

    Returns:
        With one slash.

    Examples:
        >>> file_of_metric("val/judge"), file_of_metric("val/judge/two")
        ('val/judge', 'val/judge.two')
    """
    group, slash, name = tag.partition("/")
    return group + slash + name.replace("/", ".")


def _is_in_files(logger: Logger) -> bool:
    uri = str(getattr(logger, "_tracking_uri", ""))
    return uri.startswith("file:") or "://" not in uri


@contextmanager
def appending(path: Path) -> Iterator[Path]:
    """Inside, something is put at the end of a file: all of it, or nothing where the disk is full.

    Args:
        path: The file, which is there.

    Yields:
        The same.

    Raises:
        OSError: As it comes; the file is as long as before.
    """
    size = path.stat().st_size
    try:
        yield path
    except OSError:
        os.truncate(path, size)
        raise


_KINDS: dict[type[Logger], type[Logger]] = {
    TensorBoardLogger: EnduringTensorBoardLogger,
    CSVLogger: EnduringCSVLogger,
    MLFlowLogger: FilesMLFlowLogger,
}
