"""Writes what a pretraining module has learned as a folder that diffusers can load."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from aegpo.utilities.folders import check_replaceable, published


class ExportPipeline(Callback):
    """Calls the module's ``export(folder)`` after every validation and at the end of the fit.

    With a weight-averaging callback, list this one *before* it: the averaged weights are in
    place from the start of a validation until that callback's own end of it. A folder is
    replaced as a whole, so that a reader never meets a half-written one.

    Args:
        folder: Folder to write; one that an earlier export wrote is replaced, nothing else.
        after_validation: Whether to write after every validation too, not at the end only.
    """

    def __init__(self, folder: str, after_validation: bool = True) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.after_validation = after_validation

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Refuses a module that cannot export and a folder that is taken, before all else."""
        if not callable(getattr(pl_module, "export", None)):
            raise TypeError(
                f"ExportPipeline needs a module with export(folder); {type(pl_module).__name__} "
                "has none; remove the callback or use FlowMatchingModule, AutoencoderModule or "
                "CLIPModule"
            )
        if stage == "fit":
            check_replaceable(self.folder)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Writes the weights that were validated."""
        if self.after_validation and not trainer.sanity_checking:
            try:
                self._export(trainer, pl_module)
            except OSError as error:  # of one export of several; the last one's ends the run
                warnings.warn(f"{self.folder} was not exported ({error})", stacklevel=2)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Writes the final weights."""
        self._export(trainer, pl_module)

    def _export(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            with published(self.folder, replace=True) as folder:
                pl_module.export(folder)  # type: ignore[operator]
