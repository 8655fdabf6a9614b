"""Ranks that call a sharded denoiser equally often, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aegpo.policies.fsdp.sharding import exchange

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Trained tensors, each with the one that takes its place."""


class Call(NamedTuple):
    """A kind of call of the denoiser; calls of one kind do the same collectives.

    Attributes:
        reference: Whether it is the reference's copy that predicts.
        gradient: Whether a backward pass follows.
        weights: Which weights are gathered: 0 for the trained ones, else a set that lags behind.
    """

    reference: bool
    gradient: bool
    weights: int = 0


_NONE = 0
"""What a rank asks for that has no call left; the kinds of calls follow from 1."""


def _number(call: Call) -> int:
    return 1 + 4 * call.weights + 2 * call.gradient + call.reference


def _call(number: int) -> Call:
    weights, rest = divmod(number - 1, 4)
    return Call(reference=bool(rest % 2), gradient=rest >= 2, weights=weights)


class Idle:
    """What the padding of one stage left behind.

    Attributes:
        outputs: Predictions that count for nothing, with gradient, a scalar each.
    """

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def join(self, loss: Tensor | None) -> Tensor | None:
        """Add the padding to a loss, with weight zero, so that ranks do equal backward passes.

        Args:
            loss: This rank's loss, a scalar; None where it has none.

        Returns:
            The loss, with the same value; None if there is nothing to differentiate.
        """
        for output in self.outputs:
            loss = output * 0 if loss is None else loss + output * 0
        return loss


class Lockstep:
    """Pads calls of a denoiser whose weights are spread over ranks.

    Under FSDP every call gathers weights from all ranks, so a rank that calls once more than the
    others waits for good. Ranks hold groups of different sizes, chunks and prompts, or none at all;
    what they have in common are stages, such as "the rollout" or "one micro-batch". Inside a stage
    every rank asks before each of its calls, by an all-reduce of one number; who wants nothing,
    or another kind of call than was chosen, computes one row for nothing. At the end of a stage a
    rank goes on like that until nobody wants a call.

    Who computes for nothing still gives its part of the weights. So a set of weights that takes the
    place of the trained ones (see `weights`) is a kind of call of its own, and it is in place on
    all ranks exactly while one of its calls runs.

    Args:
        idle_call: Does a call of a kind for nothing, and returns its prediction.
        device: Where the number is reduced.
    """

    def __init__(self, idle_call: Callable[[Call], Tensor], device: torch.device) -> None:
        self._idle_call = idle_call
        self._device = device
        self._stage: Idle | None = None
        self._owners: list[object] = []
        self._pairs: list[Pairs] = []
        self._wanted = self._placed = 0
        self.idle = False
        """Whether the call that runs is for nothing."""
        self.padded = 0
        """Calls for nothing so far."""

    @contextmanager
    def stage(self) -> Iterator[Idle]:
        """Inside, this rank may call as often as it likes; a stage within a stage is the same one.

        Other collectives have no place inside. After an exception nobody is waited for.

        Yields:
            What the padding leaves behind, complete after the context.
        """
        if self._stage is not None:
            yield self._stage
            return
        self._stage = Idle()
        try:
            yield self._stage
            while (chosen := self._agree(_NONE)) != _NONE:
                self._pad(_call(chosen))
        finally:
            self._stage = None
            self._place(0)  # a backward pass gathers again

    @contextmanager
    def weights(self, owner: object, pairs: Pairs) -> Iterator[None]:
        """Inside, calls of this rank are calls with other weights.

        Args:
            owner: Whose weights they are; owners come up in the same order on every rank.
            pairs: Each trained tensor with the one that takes its place, spread alike.

        Yields:
            Nothing.
        """
        if owner not in self._owners:
            self._owners.append(owner)
            self._pairs.append(pairs)
        number = 1 + self._owners.index(owner)
        before, self._wanted = self._wanted, number
        self._pairs[number - 1] = pairs
        try:
            yield
        finally:
            self._wanted = before
            self._place(0)

    def take_turn(self, call: Call) -> None:
        """Wait until it is the turn of a call that this rank is about to do.

        Args:
            call: Its kind.

        Raises:
            RuntimeError: If no stage is open, where other ranks could not know of it.
        """
        if self._stage is None:
            raise RuntimeError(
                "the policy was called outside of `policy.together()`: with "
                "trainer.strategy=fsdp2 every call is one of all ranks; wrap what calls it"
            )
        wanted = _number(call._replace(weights=self._wanted))
        while (chosen := self._agree(wanted)) != wanted:
            self._pad(_call(chosen))
        self._place(self._wanted)

    def _agree(self, wanted: int) -> int:
        """The highest number that any rank asks for."""
        highest = torch.tensor(wanted, device=self._device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def _place(self, number: int) -> None:
        """Exchange contents until a set of weights is where the denoiser gathers from."""
        if self._placed == number:
            return
        for changed in (self._placed, number):
            for trained, other in self._pairs[changed - 1] if changed else ():
                exchange(trained, other)
        self._placed = number
        if self._device.type == "cuda":  # a backward pass does not wait for such writes
            torch.cuda.synchronize(self._device)

    def _pad(self, call: Call) -> None:
        self._place(call.weights)
        self.idle, self.padded = True, self.padded + 1
        try:
            with torch.set_grad_enabled(call.gradient):
                prediction = self._idle_call(call)
        finally:
            self.idle = False
        if call.gradient and self._stage is not None:
            self._stage.outputs.append(prediction.float().sum())
