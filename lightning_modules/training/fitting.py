"""How updates fit into memory: micro-batches and gradient checkpointing where they are `auto`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from aegpo.distributed import all_reduce_max
from aegpo.free_memory import free_bytes
from aegpo.planning.activations import kept_bytes
from aegpo.policies.base import Policy
from aegpo.utilities.halving import is_out_of_memory

Auto = Literal["auto"]

SHARE = 0.8
"""Share of the free memory that an update may take; what is left is for fragments and kernels."""
TRANSIENTS = 1.2
"""From what autograd keeps to what a backward pass has at once."""
LATER = 3
"""Copies of the trained weights that the first step makes: gradients, and Adam's two moments."""
IN_CACHE = 96 * 2**20
"""Bytes that autograd keeps of a micro-batch on a CPU: more leave the cache and run no faster
(measured on the bundled model, docs/real_models.md)."""


@dataclass(frozen=True)
class Choice:
    """How an update is computed; its result depends on it in the order of sums alone.

    Args:
        micro_batch_size: Samples evaluated together.
        checkpointing: Whether activations are computed twice instead of kept.
    """

    micro_batch_size: int
    checkpointing: bool


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of an update's forward pass.

    Args:
        at_all: Of any number of samples.
        each: Of each sample.
    """

    at_all: float
    each: float

    def most(self, room: float) -> int:
        """How many samples fit into some bytes, at least 0."""
        if math.isinf(room):
            return 2**31
        return max(0, int((room / TRANSIENTS - self.at_all) // max(self.each, 1.0)))


def choose(
    kept: Mapping[bool, Kept], room: float, samples: int, fixed: int | None, cache: float
) -> Choice:
    """Choose by memory: no checkpointing where that fits, and as many samples as do.

    Args:
        kept: What is kept without (False) and with checkpointing (True); one of them where the
            other is out of the question.
        room: Bytes that an update may take.
        samples: Samples of an update, at least 1.
        fixed: Samples of a micro-batch if they are given; None for as many as fit.
        cache: Bytes beyond which a micro-batch runs no faster; infinite on a card.

    Returns:
        The choice; a micro-batch has one sample at least, also where not even that fits.
    """
    wanted = min(samples, 2 if fixed is None else fixed)
    modes = [mode for mode in sorted(kept) if kept[mode].most(room) >= wanted]
    checkpointing = modes[0] if modes else max(kept)
    if fixed is not None:
        return Choice(fixed, checkpointing)
    own = kept[checkpointing]
    most = max(1, min(samples, own.most(room), own.most(cache * TRANSIENTS)))
    # Micro-batches of one size: no small one is left at the end.
    return Choice(math.ceil(samples / math.ceil(samples / most)), checkpointing)


class Fitting:
    """Chooses what is `auto`, once a run, at its first update.

    The choice is that of the rank with least room, is said in one line, and is stored in
    checkpoints: a resumed run goes on with it.

    Args:
        micro_batch_size: As it was given.
    """

    def __init__(self, micro_batch_size: int | Auto) -> None:
        self._fixed = None if micro_batch_size == "auto" else micro_batch_size
        self._choice: Choice | None = None
        self._done = False

    def choose(
        self,
        policy: Policy,
        loss: Callable[[Tensor], object],
        updates: list[Tensor],
    ) -> int | None:
        """Choose, unless that was done or nothing is `auto`, and tell the policy.

        Every rank has to call it.

        Args:
            policy: The policy, which is run on two samples.
            loss: Scores some samples with a graph.
            updates: The samples of each optimizer step on this rank.

        Returns:
            Samples of a micro-batch, once; None where there is nothing to choose.
        """
        if self._done or (self._fixed is not None and not policy.auto_checkpointing):
            return None
        reason = "as before"
        if self._choice is None:
            samples = int(all_reduce_max(float(max(map(len, updates))), policy.device))
            if samples == 0:  # nobody has anything to learn from, this time
                return None
            own = max(updates, key=len)
            self._choice, reason = self._agreed(policy, loss, own, samples)
        self._done = True
        if policy.auto_checkpointing:
            policy.checkpoint_activations(self._choice.checkpointing)
        rank_zero_info(
            f"updates: micro-batches of {self._choice.micro_batch_size} samples, gradient "
            f"checkpointing {'on' if self._choice.checkpointing else 'off'} ({reason})"
        )
        return self._choice.micro_batch_size

    def _agreed(
        self,
        policy: Policy,
        loss: Callable[[Tensor], object],
        own: Tensor,
        samples: int,
    ) -> tuple[Choice, str]:
        """The choice of the rank with least room, and why."""
        device = policy.device
        coming = LATER * sum(weight.nbytes for weight in policy.trainable_parameters())
        room = SHARE * max(0.0, free_bytes(device) - coming)
        found, each = Choice(samples if self._fixed is None else self._fixed, False), 0.0
        if len(own) > 0:
            kept = _measured(policy, loss, own)
            cache = float(IN_CACHE) if device.type == "cpu" else math.inf
            found = choose(kept, room, samples, self._fixed, cache)
            each = kept[min(kept)].each
        size = -int(all_reduce_max(-float(found.micro_batch_size), device))
        checkpointing = bool(all_reduce_max(float(found.checkpointing), device))
        each, room = all_reduce_max(each, device), -all_reduce_max(-room, device)
        reason = f"a sample keeps {each / 2**20:.1f} MiB, {room / 2**30:.1f} GiB are free for it"
        return Choice(size, checkpointing), reason

    def state_dict(self, micro_batch_size: int | Auto) -> dict[str, Any]:
        """What a resumed run goes on with, empty before the choice.

        Args:
            micro_batch_size: As it is by now: memory may have run out since.

        Returns:
            Of the choice; plain numbers.
        """
        if self._choice is None:
            return {}
        return {
            "micro_batch_size": micro_batch_size,
            "checkpointing": self._choice.checkpointing,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the choice of a checkpoint, as far as it is still to be made.

        Args:
            state: What `state_dict` returned.
        """
        if state:
            fixed = self._fixed
            size = int(state["micro_batch_size"]) if fixed is None else fixed
            self._choice = Choice(size, bool(state["checkpointing"]))


def _measured(policy: Policy, loss: Callable[[Tensor], object], own: Tensor) -> dict[bool, Kept]:
    """What autograd keeps of one sample and of two, in each way that is open."""
    modes = (False, True) if policy.auto_checkpointing else (policy.checkpointing,)
    counter = policy.evaluations
    before = dict(counter.counts)
    kept: dict[bool, Kept] = {}
    for mode in modes:
        if mode != policy.checkpointing:
            policy.checkpoint_activations(mode)
        bytes_of = []
        try:
            for number in sorted({1, min(2, len(own))}):
                bytes_of.append(kept_bytes(policy.denoiser, partial(loss, own[:number])))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            continue  # that way is closed
        each = bytes_of[-1] - bytes_of[0] if len(bytes_of) == 2 else bytes_of[0]
        kept[mode] = Kept(max(0.0, float(bytes_of[0] - each)), float(each))
    # These are nobody's training.
    spent = sum(counter.counts[purpose] - before[purpose] for purpose in before)
    counter.counts = before | {"other": before["other"] + spent}
    return kept or {modes[-1]: Kept(0.0, math.inf)}
