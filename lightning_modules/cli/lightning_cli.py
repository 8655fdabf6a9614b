"""The command line: Lightning's, with clear errors, no silent overrides and commands of our own.

Model and data are any class of ours or yours by ``class_path``; several ``--config`` files merge.
"""

from __future__ import annotations

import inspect
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

import aegpo
from aegpo.utilities.checkpoint_files import CheckpointFiles
from aegpo.utilities.halving import is_out_of_memory
from lightning_modules.arguments.config_files import config_files
from lightning_modules.arguments.configs import (
    differing_hyperparameters,
    forgotten_key,
    mistake_in_seed,
)
from lightning_modules.arguments.layers import contradicting_layers
from lightning_modules.arguments.messages import UserError, debugging, fail
from lightning_modules.arguments.parser import OneLineErrors, join_texts, second_command
from lightning_modules.arguments.user_code import place_in_user_code
from lightning_modules.cli import trainer as trainers
from lightning_modules.cli.before_running import is_ready
from lightning_modules.cli.failures import (
    explain_building,
    explain_memory,
    is_user_error,
    quieten_lightning,
)
from lightning_modules.cli.process import program_name, tell_warnings_in_a_line
from lightning_modules.cli.ranks.places import waited
from lightning_modules.cli.ranks.together import (
    end_together,
    explain_failure,
    forget_watch,
    told_by,
)
from lightning_modules.cli.run_folder.names import RUN_NAME_HELP, name_run
from lightning_modules.cli.run_folder.reservation import release
from lightning_modules.cli.saved_config import SaveRunConfig
from lightning_modules.cli.tiny_models import use_tiny_model
from lightning_modules.cli.trainer import AEGPOTrainer
from lightning_modules.commands import COMMANDS
from lightning_modules.commands.configured_run import RUN_KEYS, ConfiguredRun

DEFAULT_SEED = 0
INTERRUPTED = 128 + signal.SIGINT
"""Status of a run that Ctrl-C ended, as shells have it."""
_OF_USERS = (ValueError, TypeError, RuntimeError, OSError, MemoryError, MisconfigurationException)
"""Kinds of errors that what a user asked for may have caused."""


class AEGPOArgumentParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, which says what is wrong in one line and leaves out the usage dump."""


class AEGPOCLI(LightningCLI):
    """Lightning's four commands and those of `AEGPOTrainer` from one set of YAML files.

    Args:
        args: Arguments to parse instead of those of the process.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        typed = self._typed = sys.argv[1:] if args is None else args
        known = self.subcommands()
        asked = next((word for word in typed if word in known), None)
        if asked is not None:  # alone: each costs a parser, and the import of what it uses
            self.subcommands = lambda: {asked: known[asked]}  # type: ignore[method-assign]
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=AEGPOTrainer,
            trainer_defaults=trainers.DEFAULTS,
            seed_everything_default=DEFAULT_SEED,
            parser_class=AEGPOArgumentParser,
            # No default_env: jsonargparse drops AEGPO_FIT__MODEL__LR in silence where the model is
            # chosen by class_path.
            parser_kwargs={"description": f"aegpo {aegpo.__version__}", "prog": program_name()},
            save_config_callback=SaveRunConfig,
            auto_configure_optimizers=False,  # optimizers are arguments of the modules
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name every subcommand with those arguments of its method that are not options."""
        ours = [command.name for command in COMMANDS.values() if command.method is not None]
        return LightningCLI.subcommands() | {name: {"model", "datamodule", "run"} for name in ours}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to no class.

        Args:
            parser: A command's.
        """
        parser.add_argument("--run_name", type=str | None, default=None, help=RUN_NAME_HELP)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then refuse the unknown keys that jsonargparse lets through.

        Args:
            parser: The main parser.
            args: Arguments to parse instead of those of the process.
        """
        typed = sys.argv[1:] if args is None else args
        if isinstance(typed, list) and typed and typed[0] in COMMANDS:
            typed = join_texts(typed, COMMANDS[typed[0]].texts)
            mistake = second_command(typed, COMMANDS) or contradicting_layers(config_files(typed))
            if mistake is not None:
                fail(mistake)
        if args is None:
            sys.argv[1:], typed = typed, None
        super().parse_arguments(parser, typed)
        parsed = (section := self.config[self.config.subcommand]).as_dict()
        forgotten = (forgotten_key(str(file), parsed) for file in section.get("config") or [])
        mistake = mistake_in_seed(parsed.get("seed_everything")) or next(
            filter(None, forgotten), None
        )
        if mistake is not None:
            fail(mistake)

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
            saved = CheckpointFiles().load_checkpoint(path, lazy=True)
            hyperparameters = dict(saved.get("hyper_parameters") or {})
        except Exception:
            return  # the trainer will say what is wrong with the file
        for line in differing_hyperparameters(hyperparameters, section["model"].as_dict()):
            rank_zero_info(line)

    def _dump_config(self) -> None:
        """Write down for checkpoints what was parsed, as Lightning does, but check it no more."""
        if not hasattr(self, "config_dump"):
            settings = {"skip_unset": False, "skip_link_targets": False, "skip_validation": True}
            text = self.parser.dump(self.config, format="yaml", **settings)
            self.config_dump = yaml.safe_load(text)[self.config.subcommand]

    def instantiate_classes(self) -> None:
        """Build the configured objects; what goes wrong in there is the config's mistake.

        The data is built only for a command that takes it.
        """
        section, parser = self.config[self.subcommand], self._parser(self.subcommand)
        name_run(section, str(self.subcommand), self._typed)
        use_tiny_model(section)
        if "run" in self._takes():
            text = parser.dump(section, skip_unset=False, skip_validation=True)  # it was parsed
            config = yaml.safe_load(text)
            self._run_config = {key: config[key] for key in RUN_KEYS if key in config}
            self._data_config = Namespace(data=section.get("data"))  # type: ignore[no-untyped-call]
        if "datamodule" not in self._takes():
            section.pop("data", None)
        callbacks = section.get("trainer.callbacks")
        if isinstance(callbacks, Namespace):  # in a list an exception keeps its file and line
            section["trainer.callbacks"] = [callbacks]
        try:
            super().instantiate_classes()
        except (
            ValueError,
            TypeError,
            OSError,
            ImportError,
            MisconfigurationException,
        ) as error:
            raise UserError(explain_building(error)) from error
        except Exception as error:
            if place_in_user_code(error) is None:
                raise
            raise UserError(explain_building(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> AEGPOTrainer:
        """Build the trainer; our own commands get one that does as much as they need.

        Args:
            **kwargs: Trainer arguments that win over the config's.

        Returns:
            The trainer.
        """
        command = COMMANDS[str(self.subcommand)]
        if self.subcommand != "fit":
            self.save_config_callback = None
        if command.method is not None:
            callbacks = self._get(self.config_init, "trainer.callbacks")
            kwargs |= trainers.command_settings(command.trainer, callbacks)
            devices = self._get(self.config_init, "trainer.devices")
            machines = self._get(self.config_init, "trainer.num_nodes")
            alone = command.trainer not in ("idle", "every_rank")
            if alone and (str(devices) not in ("1", "auto") or machines > 1):
                given = f"{devices} devices" + (f" of {machines} machines" if machines > 1 else "")
                rank_zero_info(f"{command.name} runs on one process, not on {given}")
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, AEGPOTrainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Hand a command that asks for it what only the command line knows of the run."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if "run" in self._takes():
            section, parser = self.config_init[subcommand], self._parser(subcommand)
            arguments["run"] = ConfiguredRun(
                config=self._run_config,
                files=[Path(str(file)) for file in section.get("config") or []],
                trainer=section.trainer.as_dict(),
                build_data=lambda: parser.instantiate_classes(self._data_config).data,
            )
        return arguments

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; where one of ours returns False, something was found wrong: status 1."""
        if not is_ready(self.trainer, self.model, subcommand, self.config_init[subcommand]):
            return
        if COMMANDS[subcommand].method is None:
            if subcommand == "fit":
                trainers.say_busy_cores(self.trainer)
            super()._run_subcommand(subcommand)
            return
        function = getattr(self, subcommand, getattr(self.trainer, subcommand))
        if function(**self._prepare_subcommand_kwargs(subcommand)) is False:
            raise SystemExit(1)

    def _takes(self) -> set[str]:
        """Names of the arguments of the trainer's method."""
        return set(inspect.signature(getattr(AEGPOTrainer, str(self.subcommand))).parameters)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and status 2.

    A run that was told to end by a signal ends with 128 and its number, 143 for SIGTERM and 130 for
    Ctrl-C, after what its callbacks do then. All of several ranks end, with a status that is not 0.

    Args:
        args: Arguments instead of those of the process.
    """
    quieten_lightning()
    tell_warnings_in_a_line()
    try:
        _run(args)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, KeyboardInterrupt):  # of which Lightning makes status 1
            status = INTERRUPTED
        end_together(status)
        raise SystemExit(status) from end
    except BaseException:
        end_together(1, traceback.format_exc())
        raise
    finally:
        forget_watch()  # of a run that ended before its ranks were linked
        release()


def _run(args: list[str] | None) -> None:
    try:
        AEGPOCLI(args)
    except SIGTERMException as told:  # Lightning's has status 0, as if the run were finished
        raise SystemExit(128 + (told_by() or signal.SIGTERM)) from told
    except SystemExit as left:  # by a user's class it would look as if the run were finished
        place = place_in_user_code(left)
        if place is None or debugging():
            raise
        fail(f"sys.exit({'' if left.code is None else left.code}) was called ({place})")
    except UserError as error:
        if debugging():
            raise
        fail(str(error))
    except _OF_USERS as error:
        if debugging():
            raise
        if is_out_of_memory(error):
            fail(explain_memory(error))
        if not is_user_error(error) and not waited(error):
            raise
        fail(explain_failure(error))
