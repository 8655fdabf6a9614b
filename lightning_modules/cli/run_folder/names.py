"""A run's name, from which its folder, its logs and its checkpoints follow."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.arguments.layers import OVERLAYS, read_config
from lightning_modules.arguments.messages import UserError
from lightning_modules.cli.process import another_rank
from lightning_modules.cli.run_folder.reservation import NAME, holds_run, reserve

RUN_NAME_HELP = (
    "Name of the run: the folder of its logs and checkpoints inside that of all runs. By default "
    "the config's and, where a run of that name is already, the next number: shapes, shapes-2."
)
_FILES = ("TensorBoardLogger", "CSVLogger")
"""Loggers that write into ``save_dir/name/version``."""
_NAMED_OTHERWISE = {"WandbLogger": "name", "MLFlowLogger": "run_name"}
"""Loggers of services, by the argument that names a run there."""
_BY_LIGHTNING = ("last", "best", "hpc")


@dataclass
class _Place:
    """Where a config says that its run is kept.

    Args:
        above: The folder of all runs.
        logger: The name that the first logger has in the config.
        name: The run's: that and its overlays', or the one that was asked for.
        exact: Whether somebody asked for this very name, so that it gets no number.
        given: Whether it is the `run_name`, which all loggers get.
    """

    above: Path
    logger: str
    name: str
    exact: bool
    given: bool = False

    def folder(self, name: str) -> Path:
        return self.above / name

    def runs(self) -> list[str]:
        """Names of the runs of this config that have a folder, the first of them first."""
        if self.exact:
            return [self.name]
        own, beside = Path(self.name), self.folder(self.name).parent
        pattern = re.compile(rf"{re.escape(own.name)}(?:-(\d+))?")
        there = [pattern.fullmatch(path.name) for path in beside.glob("*") if path.is_dir()]
        found = sorted((int(match[1] or 1), match[0]) for match in there if match is not None)
        return [str(own.with_name(name)) for _, name in found]


def name_run(section: Namespace, command: str, typed: Sequence[str]) -> None:
    """Settle the name of a run, and have its loggers and checkpoints follow it.

    A training that begins gets the config's name (that of the logger, and of the overlays that are
    laid over it) or, where a run of that name is already, that name and the next number. A command
    that asks for a checkpoint gets the run that it is of: the newest with one, for ``last`` and
    ``best``. With ``run_name`` the name is that, without a number.

    Args:
        section: The command's arguments as parsed; the name is written into them.
        command: The command.
        typed: The command line.

    Raises:
        UserError: If the name cannot be a folder's, or another process begins a run there.
    """
    place = _place(section, typed)
    if place is None:
        return
    before = _homes(section)
    asked = section.get("ckpt_path")
    name = None if asked is None else _run_of(str(asked), place)
    if name is None and command == "fit" and not section.get("trainer.fast_dev_run"):
        name = _new(place, moves=_all_inside(section, before))
    name = name or place.name
    _apply(section, place, name, before)


def _configured(section: Namespace) -> Path | None:
    """The folder that the config names, before anything is changed."""
    logger = next(iter(_file_loggers(section)), None)
    if logger is None or logger.init_args.get("version") != "":
        return None
    return Path(str(logger.init_args.get("save_dir"))) / str(logger.init_args.get("name") or "")


def _homes(section: Namespace) -> list[Path]:
    """The run's folder as the config names it: by its logger, or by the run that saved it."""
    homes, saved = [_configured(section)], section.get("run_name")
    for logger in _file_loggers(section)[:1] if saved is not None else []:
        homes.append(Path(str(logger.init_args.get("save_dir"))) / str(saved))
    return [home for home in homes if home is not None]


def _place(section: Namespace, typed: Sequence[str]) -> _Place | None:
    """Read it; None where Lightning numbers the runs itself, or nothing is written into files."""
    given, logger = _given_name(section, typed), next(iter(_file_loggers(section)), None)
    if given is not None:
        _refuse_no_name(given)
        if logger is None:
            _name_services(section, given)
            return None
        above = str(logger.init_args.get("save_dir"))
        return None if "://" in above else _Place(Path(above), "", given, True, given=True)
    folder = _configured(section)
    if folder is None or logger is None or not logger.init_args.get("name"):
        return None
    if "://" in str(logger.init_args.get("save_dir")):
        return None
    exact = _types_logger(typed)
    own = str(logger.init_args.get("name"))
    over = [] if exact else _overlays([str(file) for file in section.get("config") or []])
    return _Place(folder.parent, own, "_".join([own, *over]), exact)


def _given_name(section: Namespace, typed: Sequence[str]) -> str | None:
    """The ``run_name``, unless the logger is named after it: by a later file, or on the line."""
    name = section.get("run_name")
    if any(word.partition("=")[0] == "--run_name" for word in typed):
        return None if name is None else str(name)
    contents = [read_config(str(file)) or {} for file in section.get("config") or []]
    places = [place for place, content in enumerate(contents) if content.get("run_name")]
    later = contents[places[-1] + 1 :] if places else []
    if name is None or _types_logger(typed) or any(map(_names_logger, later)):
        return None
    return str(name)


def _types_logger(typed: Sequence[str]) -> bool:
    return any(word.startswith("--trainer.logger") for word in typed)


def _overlays(files: Sequence[str]) -> list[str]:
    """Names of the overlays after the last file that names the logger's folder itself."""
    names: list[str] = []
    for file in files:
        if _names_logger(read_config(file) or {}):
            names = []
        elif Path(file).resolve().parent.name == OVERLAYS:
            names.append(Path(file).stem)
    return names


def _names_logger(content: dict[str, Any]) -> bool:
    trainer = content.get("trainer")
    logger = trainer.get("logger") if isinstance(trainer, dict) else None
    arguments = logger.get("init_args") if isinstance(logger, dict) else None
    return isinstance(logger, list) or (isinstance(arguments, dict) and "name" in arguments)


def _refuse_no_name(name: str) -> None:
    parts = Path(name).parts
    if not name.strip() or Path(name).is_absolute() or ".." in parts or "://" in name or not parts:
        raise UserError(
            f"--run_name {name!r} names no folder inside that of the runs; give a word, such as "
            "--run_name first_try"
        )


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _new(place: _Place, moves: bool) -> str:
    """The name of a run that begins; it is this process's from now on."""
    if another_rank() or os.environ.get("NODE_RANK", "0") != "0":  # files are rank 0's anyway
        return os.environ.get(NAME) or _first_free(place, moves)
    for number in count(1):
        name = _numbered(place.name, number)
        folder = place.folder(name)
        if place.exact or not moves:
            if not reserve(folder):
                raise UserError(
                    f"another process is writing a run into {folder}; give this one a --run_name "
                    "of its own"
                )
            break
        if not holds_run(folder) and reserve(folder):
            break
    if number > 1:
        rank_zero_info(
            f"{place.folder(place.name)} holds a run already, so this one is {folder} (--run_name "
            "names it otherwise; --ckpt_path last goes on with the newest)"
        )
    os.environ[NAME] = name
    return name


def _first_free(place: _Place, moves: bool) -> str:
    names = (_numbered(place.name, number) for number in count(1))
    if place.exact or not moves:
        return place.name
    return next(name for name in names if not holds_run(place.folder(name)))


def _run_of(asked: str, place: _Place) -> str | None:
    """The run of the checkpoint that is asked for; None for a file that lies in none."""
    runs = place.runs()
    if asked not in _BY_LIGHTNING:
        inside = Path(asked).expanduser().resolve().parents
        of = [name for name in runs if place.folder(name).resolve() in inside]
        return of[-1] if of else None
    written = {name: newest for name in runs if (newest := _newest(place.folder(name)))}
    if not written:
        return runs[-1] if runs else place.name
    name = max(written, key=lambda one: written[one])
    if len(written) > 1:
        rank_zero_info(
            f"--ckpt_path {asked} is that of {place.folder(name)}, the newest of {len(written)} "
            "runs of this config; --run_name names another"
        )
    return name


def _newest(folder: Path) -> float:
    """When the last of a run's checkpoints was written; 0 without one."""
    return max((file.stat().st_mtime for file in folder.glob("*/*.ckpt")), default=0.0)


def _all_inside(section: Namespace, homes: Sequence[Path]) -> bool:
    """Whether all checkpoints go into the run's folder, so that they follow its number."""
    written = [callback.init_args.get("dirpath") for callback in _writers(section)]
    return all(path is None or _inside(str(path), homes) is not None for path in written)


def _inside(path: str, homes: Sequence[Path]) -> Path | None:
    """A path relative to the folder that holds it; None if none of them does."""
    whole = Path(path).expanduser().absolute()
    holding = [home.absolute() for home in homes if home.absolute() in whole.parents]
    return whole.relative_to(holding[0]) if holding else None


def _apply(section: Namespace, place: _Place, name: str, before: Sequence[Path]) -> None:
    section["run_name"] = name
    for logger in _loggers(section):
        if not logger.class_path.endswith(_FILES):
            _name_service(logger, name)
        elif place.given:
            logger.init_args["name"], logger.init_args["version"] = name, ""
        elif logger.init_args.get("version") == "" and logger.init_args.get("name"):
            logger.init_args["name"] += name.removeprefix(place.logger)
    for callback in _writers(section):
        path = callback.init_args.get("dirpath")
        inside = Path("checkpoints") if path is None else _inside(str(path), before)
        if inside is not None:
            callback.init_args["dirpath"] = str(place.folder(name) / inside)


def _name_services(section: Namespace, name: str) -> None:
    """Name a run that has no folder of its own."""
    if not _loggers(section):
        raise UserError("--run_name has no effect without a trainer.logger, whose folder it names")
    for logger in _loggers(section):
        _name_service(logger, name)


def _name_service(logger: Namespace, name: str) -> None:
    argument = _NAMED_OTHERWISE.get(logger.class_path.rpartition(".")[2])
    if argument is not None and logger.init_args.get(argument) is None:
        logger.init_args[argument] = name


def _file_loggers(section: Namespace) -> list[Namespace]:
    return [one for one in _loggers(section) if one.class_path.endswith(_FILES)]


def _loggers(section: Namespace) -> list[Namespace]:
    return _classes(section.get("trainer.logger"))


def _writers(section: Namespace) -> list[Namespace]:
    """The callbacks that write checkpoints into a folder."""
    listed = _classes(section.get("trainer.callbacks"))
    return [
        one
        for one in listed
        if one.class_path.endswith("Checkpoint") and "dirpath" in one.init_args
    ]


def _classes(value: Any) -> list[Namespace]:
    listed = value if isinstance(value, list) else [value]
    return [
        one
        for one in listed
        if isinstance(one, Namespace) and isinstance(one.get("init_args"), Namespace)
    ]
