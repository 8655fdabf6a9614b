"""A user's own folder with a module of theirs, and what the command line says to mistakes in it."""

from __future__ import annotations

import pytest

from lightning_modules.cli.lightning_cli import main

USER_MODULE = '''
import abc

import torch
from lightning.pytorch import LightningDataModule, LightningModule


class Reward(abc.ABC):
    @abc.abstractmethod
    def __call__(self): ...


class MyReward(Reward):
    """Mine.

    Args:
        weight: How much it counts.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self): ...


class Sum(Reward):
    """A sum.

    Args:
        parts: What is added.
    """

    def __init__(self, parts: list[Reward]):
        self.parts = parts

    def __call__(self): ...


class Module(LightningModule):
    """A module.

    Args:
        reward: What is climbed.
        lr: Learning rate.
        num_steps: Denoising steps.
    """

    seen = None

    def __init__(self, reward: Reward, lr: float = 0.5, num_steps: int = 4):
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1; raise num_steps")
        self.save_hyperparameters("lr", "num_steps")
        self.reward, self.lr = reward, lr
        self.layer1 = torch.nn.Linear(2, 1)
        Module.seen = self

    def training_step(self, batch, batch_idx):
        return self.layer1(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("score", self.layer1(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(LightningDataModule):
    """Data.

    Args:
        batch_size: Prompts per iteration.
    """

    def __init__(self, batch_size: int = 2):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=self.batch_size)

    val_dataloader = train_dataloader
'''

BASE = """
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: user_module.Module
  init_args:
    reward: {class_path: user_module.MyReward}
data: {class_path: user_module.Data}
"""


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run and return the one line on stderr that it was refused with."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith("Seed set to")]
    assert len(lines) == 1, lines
    return lines[0]
