"""RunSummary: what a training came to, and what to do with it, as its last words."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from aegpo.evaluations import total_evaluations
from aegpo.utilities.names import tag_name, tag_part
from lightning_modules.cli.process import program_name
from lightning_modules.commands.run_logs import read_scalars
from lightning_modules.policy_module import PolicyModule

Scores = dict[int, float]
"""A held-out score by the iteration that it was measured after."""
VISIBLE = 0.01
"""Share of a score by which it has to fall to be called fallen: less is noise."""


class RunSummary(L.Callback):
    """Prints each held-out score before and after, the costs, the folder and the next commands.

    A run that was resumed is summed up from its beginning, as far as its log tells.
    """

    def __init__(self) -> None:
        self._scores: dict[str, Scores] = {}
        self._began, self._since = time.monotonic(), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and read what a resumed run scored before."""
        assert isinstance(pl_module, PolicyModule)
        self._began, self._since = time.monotonic(), pl_module.iteration
        folder = trainer.log_dir if trainer.loggers else None  # a collective
        if self._since == 0 or not folder or "://" in folder or not trainer.is_global_zero:
            return
        tags = [f"val/{tag_part(reward.name)}" for reward in pl_module.evaluation_rewards]
        for tag, scores in read_scalars(Path(folder), tags).items():
            before = {when: score for when, score in scores.items() if when <= self._since}
            self._scores[tag] = before | self._scores.get(tag, {})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the scores, the base's among them."""
        assert isinstance(pl_module, PolicyModule)
        for tag, score in pl_module.held_out.metrics("val").items():
            if tag.count("/") == 1 and score == score:  # one that is missing is no number
                self._scores.setdefault(tag, {})[pl_module.iteration] = score

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it on rank zero; a run that failed does not come here."""
        assert isinstance(pl_module, PolicyModule)
        spent = total_evaluations(pl_module.policy.evaluations, pl_module.device)  # a collective
        folder = trainer.log_dir if trainer.loggers else None  # likewise
        if not trainer.is_global_zero:
            return
        seconds, done = time.monotonic() - self._began, pl_module.iteration
        resumed = f" since iteration {self._since}" if self._since else ""
        lines = [
            f"trained {done:,} iterations, {spent:,.0f} model evaluations; "
            f"{duration(seconds)}{resumed}"
        ]
        lines += [_score_line(tag, scores) for tag, scores in self._scores.items()]
        kept = {
            str(writer.monitor): Path(writer.best_model_path)
            for writer in trainer.checkpoint_callbacks
            if isinstance(writer, ModelCheckpoint) and writer.monitor and writer.best_model_path
        }
        lines += [line for tag in self._scores if (line := self._fall(tag, kept)) is not None]
        if folder is not None and "://" not in folder:
            lines.append(f"everything is in {Path(folder)}")
            named = "last" if trainer.checkpoint_callbacks else None
            if kept and not self._base_was_best(next(iter(kept))):
                named = "best"
            lines += next_commands(trainer, Path(folder), named)
        Console(markup=False, highlight=False, soft_wrap=True).print("\n".join(lines))

    def _base_was_best(self, tag: str) -> bool:
        """Whether no trained model scored more than the base; the best that is kept is trained."""
        scores = self._scores.get(tag, {})
        return 0 in scores and scores[0] == max(scores.values())

    def _fall(self, tag: str, kept: dict[str, Path]) -> str | None:
        """Say how far a score ended below its best, and whether that can be had again."""
        scores = self._scores[tag]
        latest, when = scores[max(scores)], max(scores, key=lambda one: (scores[one], one))
        if scores[when] - latest <= VISIBLE * abs(scores[when]):
            return None
        name = tag_name(tag.split("/")[1])
        fell = f"{name} ended at {latest:.3f}, {scores[when] - latest:.3f} below"
        if when == 0:
            return f"{fell} where training began, and was never above that"
        advice = f"no checkpoint of it was kept: set the checkpoint callback's monitor to {tag}"
        if tag in kept:
            advice = f"--ckpt_path best is that: {kept[tag]}"
        return f"{fell} its best of {scores[when]:.3f} after {when} iterations; {advice}"


def _score_line(tag: str, scores: Scores) -> str:
    """One score, before and after."""
    first, last = min(scores), max(scores)
    line = f"held-out {tag_name(tag.split('/')[1])}: {scores[first]:.3f}"
    if first == last:
        return f"{line} after {last:,} iterations"
    since = "" if first == 0 else f" (after {first:,} iterations)"
    change = scores[last] - scores[first]
    return f"{line}{since} → {scores[last]:.3f} ({change:+.3f})"


def next_commands(trainer: L.Trainer, folder: Path, checkpoint: str | None) -> list[str]:
    """The commands that somebody wants who has a trained model.

    Args:
        trainer: The run's trainer, whose data has a prompt to show.
        folder: The run's.
        checkpoint: What `--ckpt_path` finds: best or last; None where the run keeps none.

    Returns:
        One line each.
    """
    config, prog = folder / "config.yaml", program_name()
    lines = [
        f"  one page: {prog} report {shlex.quote(str(folder))}",
        f"  curves:   tensorboard --logdir {shlex.quote(str(folder))}",
    ]
    if checkpoint is None or not config.is_file():
        return lines
    of = f"--config {shlex.quote(str(config))} --ckpt_path {checkpoint}"
    prompts: Any = getattr(trainer.datamodule, "val_prompts", None)  # type: ignore[attr-defined]
    prompts = prompts or getattr(trainer.datamodule, "train_prompts", None)  # type: ignore[attr-defined]
    text = shlex.quote(str(prompts[0]["prompt"])) if prompts else "'a red circle'"
    out = shlex.quote(folder.name)
    return [
        *lines,
        f"  pictures: {prog} sample {of} --prompts {text} --out samples/{out}",
        f"  weights:  {prog} export {of} --out exports/{out}",
    ]


def duration(seconds: float) -> str:
    """Write a time for people.

    Args:
        seconds: At least 0.

    Returns:
        Its two largest units, such as "8 min 12 s".

    Examples:
        >>> duration(7.4), duration(492), duration(93_784)
        ('7 s', '8 min 12 s', '26 h 3 min')
    """
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
