"""Figures, pictures and tables for whichever loggers can show them, written once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from aegpo.utilities.images import save_png
from aegpo.utilities.names import markdown_text
from aegpo.utilities.tables import markdown_table

FOLDER = "figures"
"""Where figures stand beside the table of a CSVLogger, which holds numbers alone."""


class Pictures:
    """Shows what is no number in a run's loggers, on rank zero.

    TensorBoard gets pictures and tables, and so does every logger with Lightning's `log_image` and
    `log_text`, as Weights & Biases has them; MLflow gets files of both, and a run with a CSVLogger
    PNG and Markdown files beside its table. Other loggers get nothing.
    A picture that the disk refuses costs a warning, the first time.
    """

    def __init__(self) -> None:
        self._refused = False

    def figure(self, trainer: L.Trainer, tag: str, figure: Figure, step: int) -> None:
        """Show a figure.

        Args:
            trainer: The trainer, whose loggers are asked.
            tag: `group/name`.
            figure: The figure.
            step: Training iteration.
        """
        others = []
        for logger in _loggers(trainer):
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, figure, step)
            else:
                others.append(logger)
        if others:
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            self._send(others, tag, picture, step)

    def picture(self, trainer: L.Trainer, tag: str, picture: Image.Image, step: int) -> None:
        """Show a picture; not beside a CSVLogger, where its owner writes it.

        Args:
            trainer: The trainer, whose loggers are asked.
            tag: `group/name`.
            picture: RGB.
            step: Training iteration.
        """
        for logger in _loggers(trainer):
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
            elif not isinstance(logger, CSVLogger):
                self._send([logger], tag, picture, step)

    def table(
        self,
        trainer: L.Trainer,
        tag: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        step: int,
    ) -> None:
        """Show a table of texts.

        Args:
            trainer: The trainer, whose loggers are asked.
            tag: `group/name`.
            header: Name of each column.
            rows: Cells by column, any text.
            step: Training iteration.
        """
        text = markdown_table(header, [[markdown_text(cell) for cell in row] for row in rows])
        for logger in _loggers(trainer):
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(tag, text, step)
            elif hasattr(logger, "log_text"):
                cells = [list(row) for row in rows]
                logger.log_text(tag, columns=list(header), data=cells, step=step)
            elif isinstance(logger, MLFlowLogger):
                client: Any = logger.experiment
                client.log_text(logger.run_id, text, file_name(tag, step, "md"))
            elif isinstance(logger, CSVLogger):
                self._write(logger, file_name(tag, step, "md"), text)

    def _send(self, loggers: Sequence[Any], tag: str, picture: Image.Image, step: int) -> None:
        for logger in loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(tag, [picture], step=step)
            elif isinstance(logger, MLFlowLogger):
                client: Any = logger.experiment
                client.log_image(logger.run_id, picture, file_name(tag, step, "png"))
            elif isinstance(logger, CSVLogger):
                self._write(logger, file_name(tag, step, "png"), picture)

    def _write(self, logger: CSVLogger, name: str, content: Image.Image | str) -> None:
        file = Path(logger.log_dir) / FOLDER / name
        if "://" in logger.log_dir:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(content, encoding="utf-8")
            else:
                save_png(content, file)
        except OSError as error:
            if not self._refused:
                rank_zero_warn(f"{file} could not be written ({error}); the run goes on without it")
            self._refused = True


def file_name(tag: str, step: int, ending: str) -> str:
    """Name a file of a tag and an iteration.

    Args:
        tag: `group/name`.
        step: Training iteration.
        ending: Of the file.

    Returns:
        The name.

    Examples:
        >>> file_name("entropy/curve", 11, "png")
        'entropy_curve_00011.png'
    """
    return f"{tag.replace('/', '_')}_{step:05d}.{ending}"


def _loggers(trainer: L.Trainer) -> list[Any]:
    return list(trainer.loggers) if trainer.is_global_zero else []
