"""A tiny policy that runs out of memory, or of finite numbers, where a test wants it to."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from aegpo.distributed import world
from aegpo.policies.conditioning import Conditioning
from aegpo.policies.families.stable_diffusion3 import StableDiffusion3


def take(rows: int, fits: int, kind: str) -> None:
    """Need more memory than there is if there are more rows than fit.

    Args:
        rows: Rows.
        fits: How many of them fit.
        kind: "cpu" lets torch's allocator refuse, "cuda" raises what a GPU's does.
    """
    if rows <= fits:
        return
    if kind == "cpu":
        torch.empty(rows << 50, dtype=torch.uint8)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


class Faulty(StableDiffusion3):
    """The tiny SD3 with a memory for few rows, and a poison for its gradients.

    Args:
        arguments: Those of `StableDiffusion3`.
        memory: What memory runs out like, "cpu" or "cuda".
        fits: Rows that fit without a graph.
        decodes: Latents that fit into the decoder.
        learns: Rows that fit in a backward pass, whose last blocks were done by then.
        only_rank: The rank to which this happens; None for all.
        settings: Further arguments of `StableDiffusion3`.
    """

    def __init__(
        self,
        *arguments: Any,
        memory: str = "cpu",
        fits: int = 1000,
        decodes: int = 1000,
        learns: int = 1000,
        only_rank: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.memory, self.fits, self.decodes, self.learns = memory, fits, decodes, learns
        self.only_rank = only_rank
        self.poison: str | None = None
        self.denoiser.transformer_blocks[0].register_forward_hook(self._watch_backward)  # type: ignore[union-attr,operator,index]

    def _here(self) -> bool:
        return self.only_rank in (None, world()[1])

    def _watch_backward(self, block: nn.Module, inputs: Any, output: Any) -> None:
        if not (torch.is_grad_enabled() and self._here()):
            return
        for one in output:
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(lambda gradient: take(len(gradient), self.learns, self.memory))

    def predict(self, latents: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        prediction = super().predict(latents, sigma, cond)
        if not torch.is_grad_enabled():
            if self._here():  # after the call, so that a recorder has seen all of its rows
                take(len(latents), self.fits, self.memory)
        elif self.poison == "loss":
            wrong = torch.zeros(len(latents), 1, 1, 1)
            wrong[0] = float("nan")
            prediction = prediction + wrong
        elif self.poison == "gradient":
            prediction.register_hook(lambda gradient: gradient * float("inf"))
        return prediction

    def decode_latents(self, latents: Tensor) -> Tensor:
        if self._here():
            take(len(latents), self.decodes, self.memory)
        return super().decode_latents(latents)


class Poison(L.Callback):
    """Poisons the updates of some iterations, and notes what was logged and learned in each.

    Args:
        kind: "loss" or "gradient".
        iterations: Which iterations; empty for none.
        only_rank: The rank to which it happens; None for all.
    """

    def __init__(self, kind: str, iterations: list[int], only_rank: int | None = None) -> None:
        self.kind, self.iterations, self.only_rank = kind, iterations, only_rank
        self.skipped: list[float] = []
        self.moved: list[bool] = []
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        here = self.only_rank in (None, world()[1])
        poisoned = here and pl_module.iteration in self.iterations
        pl_module.policy.poison = self.kind if poisoned else None
        weights = pl_module.policy.trainable_state_dict()
        self.before = {name: value.clone() for name, value in weights.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.skipped.append(float(trainer.callback_metrics["update/skipped"]))
        after = pl_module.policy.trainable_state_dict()
        self.moved.append(
            any(not torch.equal(after[name], was) for name, was in self.before.items())
        )
