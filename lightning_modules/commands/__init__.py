"""The commands: one place for each, and the one table that names them.

A new command is a function in a file of this folder and its row in `COMMANDS`. The function is the
trainer's method of that name: its first argument is the trainer, its signature and ``Args:`` are
the command's options and their help. It takes ``model``, ``ckpt_path`` and ``weights_only``,
because the config that a run of ``fit`` saves has all three; three more arguments are left to it:

- ``datamodule``: the configured data; a command without it runs where the data no longer is;
- ``run``: the `ConfiguredRun`, what only the command line knows; never an option;
- what it returns: False means that something was found wrong, and becomes exit status 1.

Imported before torch: nothing heavy here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import resolve_name
from typing import Any, Literal

from lightning_modules.arguments.sources import function_parameters

TrainerKind = Literal["checkpoints", "every_rank", "one_batch", "idle"]
"""What the trainer of a command may do; ``lightning_modules.cli.trainer`` says it in settings."""


@dataclass(frozen=True)
class Command:
    """A command, as much of it as ``--help`` and the parser need to know.

    Args:
        name: What is typed.
        help: What ``aegpo --help`` says of it.
        method: Module of the function that becomes the trainer's method, relative to this folder;
            none for Lightning's own commands and for those with arguments of their own.
        program: Module whose ``main()`` runs first, before torch is imported. It is the whole
            command unless there is a method too and ``main()`` returns True.
        trainer: What the method's trainer may do: look at a batch with the run's checkpoints at
            hand, the same on as many processes as it is given, train on one batch, or nothing.
        texts: Options that take texts as they are, and not a list in YAML.
    """

    name: str
    help: str
    method: str | None = None
    program: str | None = None
    trainer: TrainerKind = "checkpoints"
    texts: tuple[str, ...] = ()

    @property
    def on_every_rank(self) -> bool:
        """Whether it runs on as many processes as the trainer has."""
        return self.trainer == "every_rank" or (self.method is None and self.program is None)

    def function(self) -> Callable[..., Any]:
        """Import the function of `method`; it has the command's name."""
        assert self.method is not None, f"{self.name} is no method of the trainer"
        function: Callable[..., Any] = getattr(import_module(self.method, __name__), self.name)
        return function

    def options(self) -> list[str]:
        """Read the names of its own options from the source of its function; nothing is imported.

        Returns:
            The names, in order.

        Raises:
            OnlyImportTells: If they do not stand there.
        """
        return function_parameters(self.path)

    @property
    def path(self) -> str:
        """Where the function of a command that takes a config stands: module and name."""
        if self.method is None:
            return f"lightning.pytorch.trainer.trainer.Trainer.{self.name}"
        return f"{resolve_name(self.method, __name__)}.{self.name}"

    @property
    def takes_config(self) -> bool:
        """Whether it runs on a configured trainer, whose options it then has."""
        return self.method is not None or self.program is None

    def run_program(self) -> bool:
        """Run `program`, if there is one; whether the trainer's method is to follow."""
        if self.program is None:
            return True
        goes_on = import_module(self.program, __name__).main()
        return self.method is not None and goes_on is True


COMMANDS = {
    command.name: command
    for command in (
        Command("fit", "train the configured model"),
        Command("validate", "score it on the held-out prompts"),
        Command("test", "score it on the test prompts"),
        Command("predict", "draw images for prompts"),
        Command(
            "init",
            "write a config, prompts and a reward of your own to start from",
            program=".init.init",
        ),
        Command(
            "plan",
            "say what a run will do and cost, before anything is loaded",
            method=".plan.plan",
            trainer="idle",
        ),
        Command(
            "doctor",
            "check this machine; with --config also the first update of that config",
            method=".doctor.doctor",
            program=".doctor.environment",
            trainer="one_batch",
        ),
        Command(
            "compare",
            "methods x seeds at equal compute, from one file: table and curves",
            program=".compare.compare",
        ),
        Command(
            "replay",
            "what another allocator or step selector would have decided in a logged run",
            program=".replay",
        ),
        Command(
            "signals",
            "measure what attention entropy predicts for a policy and a reward",
            method=".signals",
        ),
        Command(
            "report",
            "one page about a run, or several side by side: curves, samples, entropy, cost",
            program=".report.report",
        ),
        Command(
            "check-reward",
            "try a reward out: form, determinism, batches, broken input, time; what could fool it",
            program=".check_reward",
        ),
        Command(
            "serve-reward",
            "put a reward behind HTTP, for aegpo.rewards.RemoteReward in other processes",
            program=".serve_reward",
        ),
        Command(
            "export",
            "write a checkpoint for diffusers, checked against diffusers, with a model card",
            method=".export.export",
            texts=("prompts",),
        ),
        Command(
            "sample",
            "draw prompts from a checkpoint beside the base, with scores",
            method=".sample",
            texts=("prompts",),
        ),
        Command(
            "evaluate",
            "score base and tuned models on a suite of prompts: one table with intervals",
            method=".evaluate.evaluate",
            program=".evaluate.early",
            trainer="every_rank",
            texts=("tuned", "beside"),
        ),
    )
}
"""The commands by name, in the order of ``--help``."""
