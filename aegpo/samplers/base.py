"""A sampler: the weights with which past velocities move the latents in a step without noise.

The ODE is dx/dσ = v(x, σ). A multistep sampler takes its step from the velocities that it has seen
since it started, without a further evaluation:

    x_{i+1} = x_i + Σ_j w_ij v_j      with j from the step at which it started to i.

Every linear multistep method has this form, those that predict data in logarithmic time among them:
data added to all states adds as much to each of their results, and so x_i has the factor 1.
"""

from __future__ import annotations

import abc

from torch import Tensor

EULER = "Euler"
"""What no sampler is called: each step by its own velocity, as flow models' schedulers and DDIM."""


class Sampler(abc.ABC):
    """Takes the steps that draw no noise; a stochastic step needs a mean of its own and is not its.

    Where a step drew noise the sampler starts anew: the velocity before it belongs to another path,
    and the difference to the next one is of the order of the noise, sqrt(h), where a method of
    second order reads a derivative off it. The step after is therefore Euler's.
    """

    @abc.abstractmethod
    def weights(self, sigmas: Tensor, start: int) -> Tensor:
        """The weights of a path that starts at a step.

        Args:
            sigmas: Falling noise levels, shape (T + 1,), on the CPU.
            start: The first step of the path, from 0 to T - 1.

        Returns:
            w, shape (T - start, T - start) float64 on the CPU, zero above the diagonal: row i holds
            the weights of the velocities of steps start to start + i in step start + i.
        """

    def __repr__(self) -> str:
        """The class and its arguments, which is how checkpoints, plans and cards name it."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


def sampler_name(sampler: Sampler | None) -> str:
    """How a sampler is named where it is told what drew something.

    Args:
        sampler: The sampler; None for the model's own steps.

    Returns:
        "Euler", or the class with its arguments.
    """
    return EULER if sampler is None else repr(sampler)
