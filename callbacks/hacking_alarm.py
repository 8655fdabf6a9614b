"""HackingAlarm: says when the reward rises and everything else gets worse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from aegpo.distributed import all_gather_rows
from aegpo.prompts import PromptBatch
from aegpo.prompts.known_texts import fingerprints
from aegpo.rewards.drift import Change, FirstAndLatest, HeldOutValues, root_mean_square
from aegpo.training import Training
from aegpo.utilities.names import tag_part

Action = Literal["warn", "stop"]
Line = Callable[[str, Change], str]

NORMS = {"velocity_norm": "norm of the velocities", "latent_norm": "norm of the clean latents"}
"""What is measured of every held-out image beside its scores: the root mean square of its
predictions over all steps, and of its final latents."""

SLOWER = "raise kl_coeff or lower the learning rate"
"""What slows any kind of hacking down."""


class HackingAlarm(L.Callback):
    """Warns in one line, or stops, when the trained reward rises and something else gives way.

    Every evaluation compares the held-out images one by one with those of earlier evaluations,
    whose noise was the same. The trained reward has *risen* if it is `threshold` standard errors
    above the base's, of the paired differences of held-out images or of the means of the latest
    and the first `window` iterations. Then it is an alarm if

    - a watched reward (`model.evaluation_rewards`) is `threshold` standard errors below its best
      evaluation, and by more than `score_fall` standard deviations;
    - the norm of the velocities or of the clean latents has drifted from the base's by more than
      `norm_drift` standard deviations;
    - the diversity inside groups, over the latest `window` iterations, is below `least_diversity`
      of what it was over the first `window`, by `threshold` standard errors.

    (Standard deviations are those between the held-out images of then.)

    The base is the first evaluation of the run, so keep `trainer.num_sanity_val_steps: -1`. The
    line comes when an alarm begins, not while it stands; the tags `alarm/…` say how far it is to
    the next. All but the norms was computed anyway: by the evaluation, and for `Canary`.

    Args:
        action: `warn`, or `stop` to end the training as well when an alarm begins.
        threshold: Standard errors that count as a rise or a fall; above 0.
        score_fall: Standard deviations that a watched reward may fall however certain its fall is;
            at least 0.
        norm_drift: Standard deviations that a norm may drift; above 0.
        least_diversity: Share of the first iterations' diversity that has to be left, in [0, 1];
            0 for no such alarm.
        window: Iterations over which reward and diversity inside groups are averaged.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        action: Action = "warn",
        threshold: float = 3.0,
        score_fall: float = 0.1,
        norm_drift: float = 3.0,
        least_diversity: float = 0.5,
        window: int = 10,
    ) -> None:
        if action not in get_args(Action):
            raise ValueError(f"HackingAlarm action={action!r} must be 'warn' or 'stop'")
        for name, value in (("threshold", threshold), ("norm_drift", norm_drift)):
            if not value > 0:
                raise ValueError(f"HackingAlarm {name}={value} must be above 0")
        if not score_fall >= 0:
            raise ValueError(f"HackingAlarm score_fall={score_fall} must be at least 0")
        if not 0 <= least_diversity <= 1:
            raise ValueError(
                f"HackingAlarm least_diversity={least_diversity} must be between 0 and 1"
            )
        self.action, self.threshold, self.score_fall = action, threshold, score_fall
        self.norm_drift, self.least_diversity = norm_drift, least_diversity
        self.base: HeldOutValues | None = None
        self.best: dict[str, HeldOutValues] = {}
        self.iterations = FirstAndLatest(window)
        self.standing: dict[str, int] = {}
        self._risen: Change | None = None
        self._norms: list[Tensor] = []
        self._hook: RemovableHandle | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Forget the last evaluation's images."""
        self._rows = []

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Listen to what the policy predicts."""
        self._norms = []
        if trainer.state.fn == TrainerFn.FITTING:
            self._hook = pl_module.policy.register_forward_hook(
                lambda _, __, velocity: self._norms.append(root_mean_square(velocity))
            )

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Training,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores and norms of this rank's images."""
        self._listen_no_more()
        if trainer.state.fn != TrainerFn.FITTING:
            return
        own = outputs.batch
        levels = [norms for norms in self._norms if len(norms) == len(own)]
        columns = [
            torch.stack(levels).mean(0) if levels else torch.zeros(len(own), device="cpu"),
            root_mean_square(outputs.latents),
            *(outputs.scores[name] for name in self._rewards(pl_module)),
        ]
        keys = torch.stack([own.index.cpu(), fingerprints(own.prompts)], dim=1)
        self._rows.append((keys, torch.stack([one.cpu().double() for one in columns], dim=1)))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        """Compare all ranks' images with those of before."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        names = [*NORMS, *self._rewards(pl_module)]
        no_keys = torch.zeros(0, 2, dtype=torch.int64, device="cpu")
        no_values = torch.zeros(0, len(names), dtype=torch.float64, device="cpu")
        keys, _ = all_gather_rows(torch.cat([no_keys, *(keys for keys, _ in self._rows)]))
        values, _ = all_gather_rows(torch.cat([no_values, *(values for _, values in self._rows)]))
        order = keys[:, 0].argsort()
        columns = dict(zip(names, values[order].unbind(1), strict=True))
        evaluation = HeldOutValues(pl_module.iteration, keys[order], columns)
        self._evaluated(trainer, pl_module, evaluation)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the images of the latest iterations with those of the first."""
        rewards, _ = all_gather_rows(pl_module.last.rewards)
        diversity, _ = all_gather_rows(pl_module.last.group_diversity)
        self.iterations.add(
            {"reward": float(rewards.nanmean()), "diversity": float(diversity.mean())}
        )
        left, change = self.iterations.share("diversity"), self.iterations.change("diversity")
        if change is not None:
            alike = change.errors <= -self.threshold and left < self.least_diversity
            line = partial(self._alike, change) if alike else None
            self._set(trainer, pl_module, "group_diversity", line)
        pl_module.log("alarm/group_diversity", left, rank_zero_only=True)
        pl_module.log("alarm/raised", float(len(self.standing)), rank_zero_only=True)

    def _evaluated(self, trainer: L.Trainer, pl_module: Training, now: HeldOutValues) -> None:
        """Raise and take back alarms by an evaluation, and log how far they are."""
        trained, names = pl_module.reward.name, self._rewards(pl_module)
        if self.base is None or now.since(self.base, "latent_norm") is None:  # other prompts
            self.base = now
        self._risen = now.since(self.base, trained) if trained in names else None
        metrics = {}
        if self._risen is not None:
            metrics["alarm/reward_rise"] = self._risen.errors
        for name in [name for name in names if name != trained]:
            best = self.best.setdefault(name, now)
            change = now.since(best, name)
            if change is None:
                self.best[name] = now
                continue
            metrics[f"alarm/fall/{tag_part(name)}"] = -change.errors
            far = change.errors <= -self.threshold and change.deviations < -self.score_fall
            line = partial(self._fallen, now, best, change, name) if far else None
            self._set(trainer, pl_module, name, line)
            if change.now > change.before:
                self.best[name] = now
        for name in NORMS:
            drift = now.since(self.base, name)
            if drift is not None:
                metrics[f"alarm/{name}"] = drift.deviations
                far = abs(drift.deviations) > self.norm_drift
                line = partial(self._drifted, drift, name) if far else None
                self._set(trainer, pl_module, name, line)
        if not trainer.sanity_checking:  # Lightning drops what is logged there
            metrics["alarm/raised"] = float(len(self.standing))
            pl_module.log_dict(metrics, rank_zero_only=True)

    def _set(self, trainer: L.Trainer, pl_module: Training, kind: str, line: Line | None) -> None:
        """Let an alarm begin, if the trained reward has risen; it ends where nothing is wrong.

        It does not end because the trained reward falls too at last.
        """
        if line is None:
            self.standing.pop(kind, None)
            return
        changes = (self._risen, self.iterations.change("reward"))
        rise = next((one for one in changes if one and one.errors >= self.threshold), None)
        if kind in self.standing or rise is None:
            return
        self.standing[kind] = pl_module.iteration
        stops = "; the training stops here" if self.action == "stop" else ""
        said = line(pl_module.reward.name, rise)
        rank_zero_warn(f"hacking alarm at iteration {pl_module.iteration}: {said}{stops}")
        if self.action == "stop":
            trainer.should_stop = True

    def _fallen(
        self,
        now: HeldOutValues,
        best: HeldOutValues,
        fall: Change,
        name: str,
        trained: str,
        rise: Change,
    ) -> str:
        """The line of a watched reward that has fallen although the trained one has risen."""
        since = now.since(best, trained) if trained in now.values else None
        both = since is not None and since.errors <= -self.threshold
        reason = (
            f"{trained} itself went {since}, so the policy drifts"
            if both
            else "so the reward is probably being fooled"
        )
        return (
            f"since iteration {fall.since} the watched reward {name} went {fall} on the held-out "
            f"images, while the trained {trained} is above the base's, {rise}; {reason}: keep the "
            f"weights of iteration {fall.since} (RolloutCheckpoint with monitor: val/"
            f"{tag_part(name)} has them), and {SLOWER}{'' if both else ', or train on both'}"
        )

    @staticmethod
    def _drifted(drift: Change, name: str, trained: str, rise: Change) -> str:
        """The line of a norm that is beyond the base's."""
        return (
            f"since iteration {drift.since} the {NORMS[name]} went {drift}, which is "
            f"{drift.deviations:+.1f} deviations between the images of then, while the trained "
            f"{trained} went {rise}: look at the pictures (too bright, too much contrast, empty?), "
            f"and {SLOWER}"
        )

    @staticmethod
    def _alike(diversity: Change, trained: str, rise: Change) -> str:
        """The line of groups whose images look alike."""
        return (
            f"since the first {diversity.since} iterations the diversity inside groups went "
            f"{diversity}, while the trained {trained} went {rise}: the images of a prompt become "
            f"alike; {SLOWER}, or train on GroupDiversity too (WeightedSum)"
        )

    @staticmethod
    def _rewards(pl_module: Training) -> list[str]:
        """The rewards that held-out images are scored by, the same on all ranks."""
        return [reward.name for reward in pl_module.evaluation_rewards]

    def on_exception(
        self, trainer: L.Trainer, pl_module: Training, exception: BaseException
    ) -> None:
        """Leave the policy as it was."""
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """The base, the best evaluations, the iterations, and which alarms stand."""
        return {
            "base": None if self.base is None else self.base.state_dict(),
            "best": {name: best.state_dict() for name, best in self.best.items()},
            "iterations": self.iterations.state_dict(),
            "standing": dict(self.standing),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        base = state_dict["base"]
        self.base = None if base is None else HeldOutValues(**base)
        self.best = {name: HeldOutValues(**best) for name, best in state_dict["best"].items()}
        self.iterations.load_state_dict(state_dict["iterations"])
        self.standing = dict(state_dict["standing"])
