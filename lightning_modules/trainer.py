"""The Trainer behind the command line: Lightning's, plus one method for each command of ours."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_modules.preflight import run_preflight


class AEGPOTrainer(Trainer):
    """A Trainer whose extra methods are extra subcommands.

    A new subcommand is a method here, its name in ``AEGPOCLI.subcommands`` and a line in
    ``entry.COMMANDS``. Each takes ``ckpt_path`` and ``weights_only``, because the config that a
    run of ``fit`` saves contains both and is to be accepted by every command.
    """

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> bool:
        """Check the first update of a config on one small rollout: ratio 1, finite gradient.

        Args:
            model: The configured module.
            datamodule: The configured data.
            ckpt_path: Checkpoint to start from instead of the base model.
            weights_only: Whether to load that checkpoint without unpickling objects.

        Returns:
            Whether nothing failed.
        """
        return run_preflight(self, model, datamodule, ckpt_path, weights_only)
