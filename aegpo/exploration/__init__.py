"""Local exploration: which denoising steps draw noise and split, for each prompt.

A selector gives one row of an `ExplorationSchedule` per prompt.
"""

from aegpo.exploration.agreement_steps import AgreementSteps
from aegpo.exploration.entropy_peaks import EntropyPeaks
from aegpo.exploration.fixed_splits import FixedSplits
from aegpo.exploration.noise_entropy import NoiseEntropy
from aegpo.exploration.schedule import ExplorationSchedule
from aegpo.exploration.selector import StepSelector
from aegpo.exploration.steps import AllSteps, FixedSteps, NoSteps, RandomSteps
from aegpo.exploration.windows import RandomWindow, SlidingWindow

__all__ = [
    "AgreementSteps",
    "AllSteps",
    "EntropyPeaks",
    "ExplorationSchedule",
    "FixedSplits",
    "FixedSteps",
    "NoSteps",
    "NoiseEntropy",
    "RandomSteps",
    "RandomWindow",
    "SlidingWindow",
    "StepSelector",
]
