"""How steps without noise are taken: higher-order samplers of the probability-flow ODE."""

from aegpo.samplers.adams_bashforth import AdamsBashforth
from aegpo.samplers.base import EULER, Sampler, sampler_name
from aegpo.samplers.from_diffusers import DPMSolver, UniPC

__all__ = ["EULER", "AdamsBashforth", "DPMSolver", "Sampler", "UniPC", "sampler_name"]
