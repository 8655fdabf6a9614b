"""Lightning data modules: prompts for training by reward, renders for pretraining."""

from datamodules.prompt_datamodule import PromptDataModule
from datamodules.prompt_dataset import PromptDataset
from datamodules.samplers import DeltaEntropySampler

__all__ = ["DeltaEntropySampler", "PromptDataModule", "PromptDataset"]
