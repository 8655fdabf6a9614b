"""Ranks that end together: what a trainer of several needs, from its construction to its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from aegpo.distributed import all_reduce_max, world
from aegpo.utilities.halving import is_out_of_memory
from lightning_modules.arguments.messages import explain_exception
from lightning_modules.cli.failures import explain_memory, is_user_error, refusing_class
from lightning_modules.cli.ranks.links import connect
from lightning_modules.cli.ranks.places import of_error, waited
from lightning_modules.cli.ranks.watch import LAUNCHER, Watch

_HEAR_FIRST = 5.0  # seconds in which another rank may say why a collective broke
_USERS_STATUS = 2

_watch: Watch | None = None
"""Of this process; signals and exit status belong to a process, not to a trainer."""


class EndTogether(L.Callback):
    """Links the ranks for the time of a run, and has them agree on when to end.

    Args:
        end_within: Seconds from a signal to the end of the process, wherever it is.
    """

    def __init__(self, end_within: float) -> None:
        self.end_within = end_within

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Link this rank to the others, as soon as there is a process group."""
        size, rank = world()
        if size == 1:
            return
        watch = start_watch(self.end_within)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        links = connect(rank, size, host, trainer.strategy.broadcast)
        if len(links.connections) < (size - 1 if rank == 0 else 1):
            rank_zero_warn(
                "not every rank reaches rank 0 by a connection of its own; a rank that dies there "
                "is noticed by the next collective only, after trainer.rank_timeout"
            )
        watch.link(links)
        watch.last_words = partial(_finalize, trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the others, or end with them where they are what broke this rank."""
        if _watch is None or not _watch.linked or isinstance(exception, SIGTERMException):
            return
        if waited(exception):
            _watch.wait_to_be_ended(_HEAR_FIRST)
        if isinstance(exception, KeyboardInterrupt):
            _watch.fail("was told to end (Ctrl-C)", 128 + signal.SIGINT)
            return
        _watch.fail(f"failed: {explain_failure(exception)}", _USERS_STATUS)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The run is done; ranks may now leave as they please."""
        if _watch is not None and _watch.linked:
            forget_watch()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """End here if any rank was told to."""
        self._agree(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """End here, but in a training, which would go on in the middle of its validation."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._agree(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """In a training, end after its validation."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._agree(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """End here if any rank was told to."""
        self._agree(trainer)

    def on_predict_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """End here if any rank was told to."""
        self._agree(trainer)

    @staticmethod
    def _agree(trainer: L.Trainer) -> None:
        if _watch is None or not _watch.linked:
            return
        told = int(all_reduce_max(float(_watch.told), trainer.strategy.root_device))
        if told:
            _watch.told = told
            connector(trainer).received_sigterm = True


def _finalize(trainer: L.Trainer) -> None:
    for rank in getattr(trainer.strategy.launcher, "procs", []):
        rank.send_signal(signal.SIGCONT)  # one that was stopped would never hear of the end
    for logger in trainer.loggers if trainer.is_global_zero else []:
        logger.finalize("failed")


class Signals(_SignalConnector):
    """SIGTERM ends a run between two iterations, on all ranks at the same one; so does Ctrl-C.

    Lightning's broadcasts inside the signal's handler, in the middle of any other collective.
    """

    def register_signal_handlers(self) -> None:
        """Take over SIGTERM as Lightning does, and Ctrl-C where something is to be saved."""
        global _told
        super().register_signal_handlers()
        _told = 0  # what ended an earlier run of this process does not end this one
        if self.trainer.state.fn == TrainerFn.FITTING or self.trainer.world_size > 1:
            self._register_signal(signal.SIGINT, self._interrupted)

    def _sigterm_notifier_fn(self, signum: Any, _: Any) -> None:
        self._note(int(signum))

    def _interrupted(self, signum: Any, _: Any) -> None:
        if _told == signal.SIGINT:
            raise KeyboardInterrupt
        rank_zero_info(
            "\nCtrl-C: the run ends after this iteration and saves it; once more ends it at once"
        )
        self._note(int(signum))

    def _note(self, signum: int) -> None:
        global _told
        _told = signum
        if _watch is not None and _watch.linked:
            _watch.told = signum  # the ranks agree at the end of the batch
        else:
            self.received_sigterm = True


_told = 0


def told_by() -> int:
    """The signal that this process was told to end by, 0 for none."""
    return _told if _watch is None or not _watch.told else _watch.told


def connector(trainer: L.Trainer) -> _SignalConnector:
    """What a trainer does with signals."""
    return trainer._signal_connector


def prepare(trainer: L.Trainer, rank_timeout: float | None, end_within: float) -> None:
    """Have the ranks of a trainer that was just built end together.

    Args:
        trainer: The trainer.
        rank_timeout: Seconds that a collective may wait; None for the strategy's own limit.
        end_within: Seconds from a signal to the end of the process.

    Raises:
        ValueError: If a time is not above 0.
    """
    for name, seconds in (("rank_timeout", rank_timeout), ("end_within", end_within)):
        if seconds is not None and seconds <= 0:
            raise ValueError(f"trainer.{name}={seconds} must be above 0 seconds")
    trainer._signal_connector = Signals(trainer)
    strategy: Any = trainer.strategy
    if rank_timeout is not None and hasattr(strategy, "_timeout"):
        strategy._timeout = timedelta(seconds=rank_timeout)
    launcher = strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher) and trainer.world_size > 1:
        strategy._launcher = WatchedLauncher(launcher, end_within)


class WatchedLauncher(_SubprocessScriptLauncher):
    """Has this process and those that it starts watched from then on, and no sooner.

    A trainer that is built and never run leaves a process as it was.

    Args:
        launcher: What the strategy would start its ranks with.
        end_within: Seconds from a signal to the end of the process.
    """

    def __init__(self, launcher: _SubprocessScriptLauncher, end_within: float) -> None:
        places = launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        super().__init__(*places)
        self.end_within = end_within

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the other ranks if nothing else does, then run this one's part."""
        if not self.cluster_environment.creates_processes_externally:
            os.environ[LAUNCHER] = str(os.getpid())
        start_watch(self.end_within)
        return super().launch(function, *args, **kwargs)


def start_watch(end_within: float) -> Watch:
    """The watch of this process, which is started unless there is one."""
    global _watch
    if _watch is None:
        _watch = Watch(end_within)
        _watch.start()
    return _watch


def forget_watch() -> None:
    """End the watch: whatever this process does or starts next is no run of several ranks."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None
        os.environ.pop(LAUNCHER, None)


def end_together(status: int, last_line: str = "") -> None:
    """End this process with the other ranks, if it is one of several whose run is not done.

    Args:
        status: Exit status.
        last_line: What is printed before, to stderr.
    """
    if _watch is not None and _watch.linked:
        print(last_line, end="", file=sys.stderr)
        _watch.leave(status)


def explain_failure(error: BaseException) -> str:
    """Say in one line what ended a rank, and where if it is no message to the user."""
    if is_out_of_memory(error):
        return explain_memory(error)
    first = (str(error).strip().splitlines() or [""])[0]
    if waited(error):
        late = "out" in first.lower() and "tim" in first.lower()
        what = "waited too long for the other ranks" if late else "lost the other ranks"
        advice = "; raise trainer.rank_timeout if one of them may take longer" if late else ""
        return f"{what}: {of_error(error)}{advice} ({first})"
    if isinstance(error, Exception) and is_user_error(error):
        refused = refusing_class(error)
        return f"{refused.__name__}: {first}" if refused else explain_exception(error)
    return f"{type(error).__name__} in {of_error(error)}: {first}"
