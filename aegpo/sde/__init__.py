"""Denoising steps as Gaussian transitions: ODE, Flow-SDE, Dance-SDE, CPS and DDIM."""

from aegpo.sde.base import ODE, SDE, Coefficients
from aegpo.sde.euler_maruyama import DanceSDE, FlowSDE
from aegpo.sde.exact_marginals import CPS, DDIM
from aegpo.sde.gaussian_step import GaussianStep

__all__ = ["CPS", "DDIM", "ODE", "SDE", "Coefficients", "DanceSDE", "FlowSDE", "GaussianStep"]
