"""FSDP2 by a flag: the trained model spread over all ranks, checkpoints as one process has them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy
from torch.optim import Optimizer

from aegpo.policies.base import Policy
from aegpo.policies.fsdp.sharding import gathered, shard_like
from aegpo.policies.trainable import copy_trainable_tensors
from aegpo.utilities.checkpoint_files import CheckpointFiles
from lightning_modules.training.resuming import policy_tensors


class FSDP2(ModelParallelStrategy):
    """Weights, gradients, optimizer state, reference and averages spread over all ranks.

    The policy is built whole on every rank's CPU and takes up a checkpoint there; then its denoiser
    is spread, part by part, on the ranks' devices. A checkpoint is one file that rank zero writes
    and that one process reads, or any number of them.

    Args:
        process_group_backend: "nccl" on GPUs and "gloo" on CPUs by default.
        timeout: How long a collective may wait.
    """

    strategy_name = "fsdp2"

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The weights of a checkpoint go into the whole policy, before it is spread."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state comes by `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """One mesh over all ranks of all nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Spread the policy, then do what Lightning does.

        Args:
            trainer: The trainer.

        Raises:
            ValueError: If module, policy or optimizer cannot be spread.
        """
        policy = getattr(self.lightning_module, "policy", None)
        if not isinstance(policy, Policy):
            raise ValueError(
                f"trainer.strategy=fsdp2 spreads a policy over ranks, and "
                f"{type(self.lightning_module).__name__} has none; use ddp"
            )
        policy.shard(self.device_mesh["data_parallel"])
        # What FSDP allocates at a first call under inference mode is of no use to a training.
        for loop in (
            trainer.fit_loop.epoch_loop.val_loop,
            trainer.validate_loop,
            trainer.test_loop,
            trainer.predict_loop,
        ):
            loop.inference_mode = False
        super().setup(trainer)
        for optimizer in self.optimizers:
            if type(optimizer).__module__.startswith("bitsandbytes"):
                raise ValueError(
                    f"model.optimizer={type(optimizer).__name__} of bitsandbytes cannot step "
                    "tensors that are spread over ranks; with trainer.strategy=fsdp2 use "
                    "torch.optim.AdamW, whose state is spread too"
                )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module puts its trained tensors into a checkpoint by itself."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take over the trained tensors, whether the policy is spread already or not.

        Args:
            checkpoint: A checkpoint's content.
            strict: Not used: no tensor may lack.
        """
        del strict
        assert self.lightning_module is not None
        policy: Any = self.lightning_module.policy
        copy_trainable_tensors(policy, policy_tensors(checkpoint["state_dict"]))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's own state, of spread tensors until `save_checkpoint` collects them."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = inner.state_dict()
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of the state that a run on any number of ranks wrote.

        Args:
            checkpoint: A checkpoint's content.
        """
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            state = {
                number: {
                    name: shard_like(value, parameters[number])
                    if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
                    else value
                    for name, value in of_one.items()
                }
                for number, of_one in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None
    ) -> None:
        """Collect everything that is spread on rank zero, which writes one file.

        Args:
            checkpoint: What to save; tensors in it may be spread.
            filepath: The file.
            storage_options: Not supported, as by Lightning's own strategy.
        """
        whole = gathered(checkpoint, keep=self.is_global_zero)
        super().save_checkpoint(whole, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint on every rank; the ranks of a machine share its pages in memory.

        Args:
            checkpoint_path: The file.
            weights_only: False unpickles objects, which runs the code in the file; None is True.

        Returns:
            Its content, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no checkpoint, or holds objects that may not be unpickled.
        """
        files = self.checkpoint_io
        if isinstance(files, CheckpointFiles):
            return files.load_checkpoint(checkpoint_path, weights_only=weights_only, lazy=True)
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


StrategyRegistry.register(
    FSDP2.strategy_name,
    FSDP2,
    description="The trained model spread over all ranks by FSDP2",
    override=True,  # whoever imports this module anew
)
