from __future__ import annotations

from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from lightning_modules.cli.trainer import AEGPOTrainer, command_settings


def test_a_command_s_trainer_does_what_its_kind_may() -> None:
    checkpoint, timer = ModelCheckpoint(), Timer()
    looking = command_settings("checkpoints", [timer, checkpoint])
    assert looking["callbacks"] == [checkpoint] and looking["enable_checkpointing"]
    assert command_settings("checkpoints", timer)["callbacks"] == []
    one_batch = command_settings("one_batch", [timer, checkpoint])
    assert one_batch["callbacks"] == [] and not one_batch["enable_checkpointing"]
    for settings in (looking, one_batch):
        trainer = AEGPOTrainer(accelerator="cpu", **settings)
        assert (trainer.max_epochs, trainer.limit_train_batches, trainer.loggers) == (1, 1, [])
    idle = command_settings("idle", [timer])
    assert idle["logger"] is False and idle["accelerator"] == "cpu"
    assert not {"callbacks", "max_epochs", "max_steps", "limit_train_batches"} & set(idle)
