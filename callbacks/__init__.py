"""Lightning callbacks: the entropy loops, and everything that watches a run."""

from callbacks.budget_stop import BudgetStop
from callbacks.canary import Canary
from callbacks.controlled_entropy import ControlledEntropy
from callbacks.cost_logger import CostLogger
from callbacks.curve_logger import CurveLogger
from callbacks.decision_log import DecisionLog
from callbacks.ema import EMA
from callbacks.entropy_probe import EntropyProbe
from callbacks.evaluate_by_cost import EvaluateByCost
from callbacks.free_cores import FreeCores
from callbacks.hacking_alarm import HackingAlarm
from callbacks.progress import RolloutProgressBar
from callbacks.prompt_history import PromptHistory
from callbacks.prompt_reweighter import PromptReweighter
from callbacks.reward_spread import RewardSpread
from callbacks.rollout_checkpoint import RolloutCheckpoint
from callbacks.running_entropy import RunningEntropy
from callbacks.sample_logger import SampleLogger
from callbacks.score_table import ScoreTable
from callbacks.step_spread import TreeSpread, TrialSpread

__all__ = [
    "EMA",
    "BudgetStop",
    "Canary",
    "ControlledEntropy",
    "CostLogger",
    "CurveLogger",
    "DecisionLog",
    "EntropyProbe",
    "EvaluateByCost",
    "FreeCores",
    "HackingAlarm",
    "PromptHistory",
    "PromptReweighter",
    "RewardSpread",
    "RolloutCheckpoint",
    "RolloutProgressBar",
    "RunningEntropy",
    "SampleLogger",
    "ScoreTable",
    "TreeSpread",
    "TrialSpread",
]
