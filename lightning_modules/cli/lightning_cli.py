"""The command line: Lightning's, with clear errors, no silent overrides and commands of our own.

Model and data are any class of ours or yours by ``class_path``; several ``--config`` files merge.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import aegpo
from lightning_modules.arguments.configs import differing_hyperparameters, unknown_empty_keys
from lightning_modules.arguments.messages import (
    UserError,
    _debugging,
    _fail,
    did_you_mean,
    explain_exception,
    explain_parsing,
)
from lightning_modules.arguments.parser import join_texts
from lightning_modules.cli.failures import (
    _quieten_lightning,
    explain_memory,
    is_out_of_memory,
    is_user_error,
)
from lightning_modules.cli.trainer import AEGPOTrainer
from lightning_modules.commands.export.run_record import (
    RunRecord,
    held_out_prompts,
    log_folders,
    run_config,
)
from lightning_modules.commands.plan.run_length import count_processes

DEFAULT_SEED = 0
WITH_CHECKPOINT = ("signals", "export", "sample")
"""Commands of ours that look at a checkpoint, also at ``--ckpt_path last``."""
WITHOUT_DATA = ("export", "sample")
"""Commands that run where the data of the config no longer is."""
TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "aegpo"},
    },
    "log_every_n_steps": 1,  # a step is a whole rollout and its updates
}
"""What the Trainer does unless a config says otherwise."""

QUIET_TRAINER: dict[str, Any] = {
    "logger": False,
    "callbacks": [],
    "without_callbacks": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "max_epochs": 1,
    "max_steps": -1,
    "max_time": None,
    "limit_train_batches": 1,
    "limit_val_batches": 0,
    "limit_predict_batches": None,
    "num_sanity_val_steps": 0,
    "fast_dev_run": False,
}
"""A trainer that writes nothing and stops after a batch, for commands that only look."""


class AEGPOArgumentParser(LightningArgumentParser):
    """Lightning's parser, which says what is wrong in one line and leaves out the usage dump."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with status 2.

        Args:
            message: jsonargparse's own text.
            ex: The exception behind it.
        """
        # Parsers of nested classes are tried out and may fail without that being an error.
        if not self.exit_on_error or _debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [action.dest for action in parser._actions]
        line = explain_parsing(message, ex, options)
        _fail(line.replace("<unicode string>", _unreadable_config() or "<unicode string>"))


class AEGPOCLI(LightningCLI):
    """Lightning's four commands and those of `AEGPOTrainer` from one set of YAML files.

    Args:
        args: Arguments to parse instead of those of the process.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        typed = sys.argv[1:] if args is None else args
        self._asked_for = next((word for word in typed if word in self.subcommands()), None)
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=AEGPOTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=DEFAULT_SEED,
            parser_class=AEGPOArgumentParser,
            # No default_env: jsonargparse drops AEGPO_FIT__MODEL__LR in silence where the model is
            # chosen by class_path.
            parser_kwargs={"description": f"aegpo {aegpo.__version__}"},
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,  # optimizers are arguments of the modules
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name every subcommand with those arguments of its method that are not options."""
        ours = {"model", "datamodule"}
        return {
            **LightningCLI.subcommands(),
            "plan": ours,
            "doctor": ours,
            "signals": ours,
            "export": ours | {"run"},
            "sample": ours,
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then refuse the unknown keys that jsonargparse lets through.

        Args:
            parser: The main parser.
            args: Arguments to parse instead of those of the process.
        """
        if args is None:
            sys.argv[1:] = join_texts(sys.argv[1:])
        super().parse_arguments(parser, join_texts(args) if isinstance(args, list) else args)
        section = self.config[self.config.subcommand]
        parsed = section.as_dict()
        for file in section.get("config") or []:
            for key in unknown_empty_keys(yaml.safe_load(Path(file).read_text()), parsed):
                parent, _, name = key.rpartition(".")
                known = _at(parsed, parent)
                _fail(f"there is no option {key!r} (in {file}){did_you_mean(name, known)}")

    def _parse_ckpt_path(self) -> None:
        """Keep the config and the command line above the hyperparameters in a checkpoint.

        Lightning does the opposite without a word, so that ``--model.lr 0.1 --ckpt_path last.ckpt``
        trains with the old rate. Here what differs is printed.
        """
        section = self.config[self.config.subcommand]
        path = section.get("ckpt_path")
        if not path or not Path(path).is_file() or "model" not in section:
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:
            return  # the trainer will say what is wrong with the file
        hyperparameters = dict(saved.get("hyper_parameters") or {})
        for line in differing_hyperparameters(hyperparameters, section["model"].as_dict()):
            rank_zero_info(line)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Give its arguments to the command that was asked for alone.

        Those of all commands take as long as parsing does.
        """
        if self._asked_for in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    def instantiate_classes(self) -> None:
        """Build the configured objects; what goes wrong in there is the config's mistake."""
        if self.subcommand in WITHOUT_DATA:
            section = self.config[self.config.subcommand]
            self._run_config = run_config(
                self._parser(self.subcommand).dump(section, skip_none=False)
            )
            self._data = Namespace(data=section.pop("data", None))
        try:
            super().instantiate_classes()
        except (
            ValueError,
            TypeError,
            OSError,
            ImportError,
            MisconfigurationException,
        ) as error:
            raise UserError(explain_exception(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> AEGPOTrainer:
        """Build the trainer; our own commands get one that writes nothing and stops after a batch.

        That of ``plan`` has the config's callbacks and limits, and runs nothing at all.

        Args:
            **kwargs: Trainer arguments that win over the config's.

        Returns:
            The trainer.
        """
        if self.subcommand == "plan":  # also for machines that are not this one
            self.save_config_callback = None
            single = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            kwargs |= {"logger": False, **single}
        if self.subcommand in ("doctor", *WITH_CHECKPOINT):
            self.save_config_callback = None
            kwargs |= QUIET_TRAINER
        if self.subcommand in WITH_CHECKPOINT:  # whoever wrote checkpoints knows which is the last
            configured = self._get(self.config_init, "trainer.callbacks") or []
            kept = [callback for callback in configured if isinstance(callback, Checkpoint)]
            kwargs |= {"callbacks": kept, "enable_checkpointing": bool(kept)}
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, AEGPOTrainer)
        return trainer

    def plan(self, **arguments: Any) -> None:
        """Plan for the processes that the config asks for, whatever this machine has.

        Args:
            **arguments: What ``AEGPOTrainer.plan`` takes.
        """
        assert isinstance(self.trainer, AEGPOTrainer)
        if arguments.get("processes") is None:
            configured = self.config_init[self.config_init.subcommand].trainer
            arguments["processes"] = count_processes(
                configured.accelerator, configured.devices, configured.num_nodes
            )
        self.trainer.plan(**arguments)

    def doctor(self, **arguments: Any) -> None:
        """Run the trainer's check and make its verdict the exit status.

        Args:
            **arguments: What ``AEGPOTrainer.doctor`` takes.
        """
        assert isinstance(self.trainer, AEGPOTrainer)
        if not self.trainer.doctor(**arguments):
            raise SystemExit(1)

    def export(self, **arguments: Any) -> None:
        """Hand the trainer's export what only the command line knows of the run.

        Args:
            **arguments: What ``AEGPOTrainer.export`` takes.
        """
        assert isinstance(self.trainer, AEGPOTrainer)
        files = self.config[self.config.subcommand].get("config") or []
        folders = log_folders(files, self._get(self.config_init, "trainer.logger"))
        parser = self._parser(self.subcommand)
        prompts = held_out_prompts(lambda: parser.instantiate_classes(self._data).data)
        run = RunRecord(self._run_config, folders, prompts)
        self.trainer.export(**arguments, run=run)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and status 2.

    Args:
        args: Arguments instead of those of the process.
    """
    _quieten_lightning()
    try:
        AEGPOCLI(args)
    except UserError as error:
        if _debugging():
            raise
        _fail(str(error))
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        MemoryError,
        MisconfigurationException,
    ) as error:
        if _debugging():
            raise
        if is_out_of_memory(error):
            _fail(explain_memory(error))
        if not is_user_error(error):
            raise
        _fail(explain_exception(error))


def _at(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    for key in filter(None, dotted.split(".")):
        tree = tree[key]
    return tree


def _unreadable_config() -> str | None:
    """Name the config file that YAML cannot read; jsonargparse reports its line without it."""
    for argument in sys.argv[1:]:
        path = Path(argument.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            try:
                yaml.safe_load(path.read_text())
            except yaml.YAMLError:
                return str(path)
    return None
