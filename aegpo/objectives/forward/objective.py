"""What objectives on the forward process share: levels, a lagging behavior policy, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from aegpo.exploration import StepSelector
from aegpo.exploration.half_batches import gradient_copies
from aegpo.objectives.base import Objective
from aegpo.objectives.forward.levels import NoiseLevels
from aegpo.policies.averaged import AveragedWeights
from aegpo.policies.base import Policy


@dataclass(frozen=True)
class Ramp:
    """A decay that grows with the iterations, min(rate · max(i - start, 0), largest).

    Args:
        name: What the arguments are called, for messages.
        rate: Growth per iteration, at least 0.
        largest: In [0, 1).
        start: Iterations before it grows, at least 0.

    Raises:
        ValueError: If a number is out of range.
    """

    name: str
    rate: float
    largest: float
    start: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rate < 0 or not 0 <= self.largest < 1 or self.start < 0:
            raise ValueError(
                f"{self.name}_rate={self.rate} and {self.name}_start={self.start} must be at least "
                f"0, and {self.name}_max={self.largest} at least 0 and below 1"
            )

    @property
    def ever(self) -> bool:
        """Whether it is ever above 0."""
        return self.rate > 0 and self.largest > 0

    def after(self, iterations: int) -> float:
        """The decay after some iterations.

        Args:
            iterations: How many are done, i.

        Returns:
            In [0, 1).
        """
        return min(self.rate * max(iterations - self.start, 0), self.largest)


@dataclass(frozen=True)
class Penalties:
    """What holds the prediction back: mean squared differences to other policies' predictions.

    Args:
        kl_coeff: Weight of that to the reference policy; 0 spares its evaluations.
        ema_kl_coeff: Weight of that to an average of the policy itself; 0 spares its evaluations.
        ema: By which decay that average follows after each iteration.
        anchor_coeff: Weight of that to the reference policy at levels that are not learned at.

    Raises:
        ValueError: If a weight is negative.
    """

    kl_coeff: float
    ema_kl_coeff: float
    ema: Ramp
    anchor_coeff: float = 0.0

    def __post_init__(self) -> None:
        """Check the weights."""
        if min(self.kl_coeff, self.ema_kl_coeff, self.anchor_coeff) < 0:
            raise ValueError(
                f"kl_coeff={self.kl_coeff}, ema_kl_coeff={self.ema_kl_coeff} and "
                f"anchor_coeff={self.anchor_coeff} must be at least 0"
            )

    @property
    def any(self) -> bool:
        """Whether there is one at the levels that are learned at."""
        return self.kl_coeff > 0 or self.ema_kl_coeff > 0


class ForwardObjective(Objective):
    """An objective that learns from images by noising them again; no step needs a log-prob.

    The rollout is drawn by a behavior policy theta_old that follows the trained one after every
    iteration, theta_old <- η theta_old + (1 - η) theta. While η is 0 it is the trained policy of
    the iteration's start, and an iteration's first update needs no prediction of it.

    Args:
        levels: At which noise levels an image is trained on.
        lag: η.
        penalties: What holds the prediction back.
        keeps_old: Whether updates ask for theta_old's predictions after the weights have moved.
    """

    def __init__(
        self, levels: NoiseLevels, lag: Ramp, penalties: Penalties, keeps_old: bool
    ) -> None:
        self.levels, self.lag, self.penalties = levels, lag, penalties
        self.draws_noise = not levels.selects()
        self.old = AveragedWeights() if keeps_old or lag.ever else None
        self.average = AveragedWeights() if penalties.ema_kl_coeff > 0 else None
        self.weight_copies = sum(copy is not None for copy in (self.old, self.average))
        if levels.agreement is not None:
            self.gradient_copies = gradient_copies(levels.agreement.parts)
        self._followed: float | None = None

    def validate(self, step_selector: StepSelector, num_steps: int) -> None:
        """Check that there are enough noise levels to draw; see `Objective.validate`."""
        try:
            self.levels.validate(step_selector, num_steps)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def on_policy(self, iteration: int) -> bool:
        """Whether theta_old is the policy that the iteration starts from.

        Args:
            iteration: The training iteration, from 0.

        Returns:
            True before the lag has begun, and without one.
        """
        followed = self.lag.after(iteration) if self._followed is None else self._followed
        return followed == 0

    def behavior(self, policy: Policy) -> AbstractContextManager[None]:
        """The policy with theta_old; see `Objective.behavior`."""
        return nullcontext() if self.old is None else self.old.active(policy)

    def averaged(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside this context the policy predicts with the average of `ema_kl_coeff`.

        Args:
            policy: The policy that is trained.

        Returns:
            The context.
        """
        return nullcontext() if self.average is None else self.average.active(policy)

    def end_iteration(self, policy: Policy, iteration: int) -> None:
        """Let theta_old and the average follow; see `Objective.end_iteration`."""
        self._followed = self.lag.after(iteration + 1)
        if self.old is not None:
            self.old.follow(policy, self._followed)
        if self.average is not None:
            self.average.follow(policy, self.penalties.ema.after(iteration + 1))

    def state_dict(self) -> dict[str, Any]:
        """theta_old, its latest η and the average; see `Objective.state_dict`."""
        copies = {"behavior": self.old, "average": self.average}
        state: dict[str, Any] = {
            name: copy.state_dict() for name, copy in copies.items() if copy is not None
        }
        if self.levels.agreement is not None:
            state["agreement"] = self.levels.agreement.state_dict()
        return state if self._followed is None else state | {"lag": self._followed}

    def metrics(self) -> dict[str, float]:
        """What levels were found to agree on; see `Objective.metrics`."""
        return {} if self.levels.agreement is None else self.levels.agreement.metrics()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up; see `Objective.load_state_dict`."""
        self._followed = state.get("lag")
        if self.old is not None:
            self.old.load_state_dict(state.get("behavior", {}))
        if self.average is not None:
            self.average.load_state_dict(state.get("average", {}))
        if self.levels.agreement is not None:
            self.levels.agreement.load_state_dict(state.get("agreement", {}))
