"""The config that `fit` leaves in its log folder, which every command takes."""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from aegpo.utilities.files import replacing
from lightning_modules.commands.report.environment import ENVIRONMENT, environment_of

_MARK = "# written by aegpo fit, which replaces it unless it was changed: "


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` and `environment.yaml` into the log folder when a training starts.

    Only `fit` writes one: the config of `validate` has options that no other command knows. A run
    without a logger has no folder of its own, so it leaves none. A file that is there is replaced
    only if an earlier run wrote it and nobody changed it since; otherwise the next free name is
    taken.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet: what is refused must not replace the config of the run that is there.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: Which of Lightning's commands runs.
        """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the config of a new run, before it draws anything.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        if trainer.ckpt_path is None:
            self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the config of a resumed run, whose checkpoint fits as a whole.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        self._write(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave no event file of a run that was refused before it began.

        Args:
            trainer: The trainer.
            pl_module: The module.
            exception: What ended it.
        """
        if not self.already_saved:
            forget_event_files(trainer)

    def resolved(self) -> dict[str, Any]:
        """The config as it is written, read back: seed, trainer, model, data and fit's own."""
        config: dict[str, Any] = yaml.safe_load(self._text())
        return config

    def _text(self) -> str:
        return str(self.parser.dump(self.config, skip_unset=False, skip_validation=True))

    def _write(self, trainer: L.Trainer) -> None:
        """Write it on the first rank, once."""
        if self.already_saved or not trainer.loggers:  # the same on every rank
            return
        self.already_saved = True
        folder = trainer.log_dir  # a collective
        if not trainer.is_global_zero or folder is None or "://" in folder:
            return
        wanted = Path(folder) / self.config_filename
        path = free_place(wanted)
        if path != wanted:
            rank_zero_info(
                f"{wanted} was not written by aegpo fit, or was changed since, and stays; this "
                f"run's config is {path}"
            )
        text = self._text()
        with replacing(path) as partial:
            partial.write_text(f"{_MARK}{_fingerprint(text)}\n{text}", encoding="utf-8")
        with replacing(path.with_name(ENVIRONMENT)) as partial:
            partial.write_text(yaml.safe_dump(environment_of(trainer), sort_keys=False))


def forget_event_files(trainer: L.Trainer) -> None:
    """Remove the event files that this process has begun; TensorBoard makes them at its first word.

    Args:
        trainer: The trainer of a run that drew nothing.
    """
    for logger in trainer.loggers:
        writer: Any = logger._experiment if isinstance(logger, TensorBoardLogger) else None
        if writer is None or getattr(writer, "file_writer", None) is None:
            continue
        file = Path(writer.file_writer.event_writer._file_name)
        writer.close()
        file.unlink(missing_ok=True)
        logger._experiment = None  # type: ignore[attr-defined]


def free_place(wanted: Path) -> Path:
    """Say where a run's config may be written.

    Args:
        wanted: Where it should be.

    Returns:
        That or the first of `config_1.yaml`, `config_2.yaml`, ... that is not there, or is as an
        earlier run left it.
    """
    path = wanted
    for number in count(1):
        if not path.exists() or _is_untouched(path):
            break
        path = wanted.with_stem(f"{wanted.stem}_{number}")
    return path


def is_saved_config(path: Path) -> bool:
    """Whether a run wrote a config.

    Args:
        path: Any file.

    Returns:
        True also if somebody changed it since.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _is_untouched(path: Path) -> bool:
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return first == _MARK + _fingerprint(rest)


def _fingerprint(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
