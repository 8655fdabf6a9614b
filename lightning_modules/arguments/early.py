"""Mistakes that show without importing what a config names: seconds before torch is there.

The sentences are those of the parser (`messages`), which refuses the same things later. What is
not certain here is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_modules.arguments import sources
from lightning_modules.arguments.class_paths import present_path
from lightning_modules.arguments.config_files import config_files
from lightning_modules.arguments.layers import contradicting_layers, read_config
from lightning_modules.arguments.messages import moved, no_argument, no_class, no_module, no_option
from lightning_modules.arguments.parser import join_texts, mistake_in_arguments, second_command
from lightning_modules.arguments.short_help import required_options

TRAINER = "lightning_modules.AEGPOTrainer"
_OF_PARSER = ("config", "help", "print_config", "run_name")
OF_ALL = (*_OF_PARSER, "seed_everything", "trainer", "model", "data")
"""Options of every command that takes a config."""
_DEEPEST = 50
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_OPTION = re.compile(r"--([A-Za-z_][\w.]*)(\+?)")
_Keys = tuple[str, ...]


def early_mistake(
    arguments: Sequence[str],
    commands: Container[str],
    texts: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str | None:
    """Say what is wrong with a command line, as far as that shows without importing anything.

    Args:
        arguments: The command and its arguments.
        commands: Names of all commands.
        texts: Options of the command that take texts as they are, as of `Command.texts`.
        options: Its own options, beside those that all commands have; none if not known.

    Returns:
        One line; None if nothing is, or if only the parser can tell.
    """
    typed = join_texts(list(arguments), texts)
    if not {"-h", "--help"}.isdisjoint(typed):
        return None
    files = config_files(typed)
    return (
        second_command(typed, commands)
        or contradicting_layers(files)
        or mistake_in_arguments(typed)
        or _mistake_in_settings(files, typed[1:], (*options, *OF_ALL) if options else ())
    )


def missing_option(arguments: Sequence[str], path: str | None) -> str | None:
    """Say which option is missing that a command cannot do without.

    Args:
        arguments: The command and its arguments.
        path: Module and name of its function; None for Lightning's commands, which need none.

    Returns:
        One line; None if nothing is, or if only the parser can tell.
    """
    typed = {word.partition("=")[0] for word in arguments}
    if not typed.isdisjoint({"-h", "--help", "--print_config"}) or any(
        word.endswith(".help") for word in typed
    ):
        return None
    files = config_files(arguments)
    if not files and not any(word.startswith("--model") for word in typed):
        return "model is required; is a --config missing?"
    contents = [read_config(file) for file in files]
    if path is None or None in contents:  # settings as text, or what the parser refuses
        return None
    try:
        required = required_options(path)
    except sources.OnlyImportTells:
        return None
    for name, said in required:
        if f"--{name}" not in typed and not any(name in content for content in contents if content):
            return f"{arguments[0]} needs --{name}: {said[:1].lower()}{said[1:]}"
    return None


def _mistake_in_settings(
    files: Sequence[str], typed: Sequence[str], roots: Sequence[str]
) -> str | None:
    """Say which option, class or argument of a class is not there."""
    config = _Config()
    for file in files:
        content = read_config(file)
        if content is None:
            return None
        for key, value in content.items():
            if (mistake := _mistake_in_root(str(key), value, roots)) is not None:
                return mistake
            config.take((str(key),), value)
    for keys, value in _typed_settings(typed):
        if roots and keys[0].removesuffix("+") not in roots:
            return no_option(".".join(keys), roots, keys[0])
        config.take_typed(keys, value)
    return next(iter(config.mistakes.values()), None)


@dataclass
class _Config:
    """Configs laid over each other, as far as their classes are concerned.

    Args:
        classes: By the keys that lead there, without ``init_args``: the class that is chosen.
        mistakes: In the order of the files: what is wrong at some keys, until something else is
            laid over it.
        left: How many values are looked at, so that aliases of aliases come to an end.
    """

    classes: dict[_Keys, str] = field(default_factory=dict)
    mistakes: dict[_Keys, str] = field(default_factory=dict)
    left: int = 2_000

    def take(self, keys: _Keys, value: Any) -> None:
        """Lay a value of a file over what is there."""
        self.left -= 1
        if self.left < 0 or len(keys) > _DEEPEST:
            return
        keys, appended = (*keys[:-1], keys[-1].removesuffix("+")), keys[-1].endswith("+")
        if isinstance(value, dict) and "class_path" not in value:
            self._take_arguments(keys, value)
            return
        if not appended:
            self._forget(keys)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and isinstance(one.get("class_path"), str):
                self._take_class(keys, one, nested=isinstance(value, list))

    def take_typed(self, keys: _Keys, value: str) -> None:
        """Lay a typed option over what is there; of its classes only ours are sure to be meant."""
        if keys[-1] == "class_path":
            keys = keys[:-1]
        owner = self.classes.get(keys[:-1])
        if keys[-1].endswith("+"):
            keys = (*keys[:-1], keys[-1].removesuffix("+"))
        else:
            self._forget(keys)
        if keys[:-1] == ("trainer",) and (mistake := _mistake_in_option(keys[-1])):
            self.mistakes.setdefault(keys, mistake)
            return
        ours = value.partition(".")[0] in sources.OUR_PACKAGES and _CLASS_PATH.fullmatch(value)
        if ours and (mistake := _mistake_in_path(value)):
            self._note(keys, mistake)
        elif owner is not None and (mistake := _mistake_in_name(owner, keys[-1])):
            self._note(keys[:-1], mistake)

    def _take_class(self, keys: _Keys, value: dict[str, Any], *, nested: bool) -> None:
        path = value["class_path"]
        if not _CLASS_PATH.fullmatch(path):
            return  # perhaps the short name of a class that will be imported by then
        if mistake := _mistake_in_path(path):
            self._note(keys, mistake)
            return
        before = {} if not nested else dict(self.classes)
        self.classes[keys] = path
        self._take_arguments(keys, {"init_args": value.get("init_args")})
        self.classes = before if nested else self.classes

    def _take_arguments(self, keys: _Keys, value: dict[str, Any]) -> None:
        """Look at what stands below keys where the class is chosen already, or none is."""
        owner = self.classes.get(keys)
        arguments = value.get("init_args") if owner is not None else value
        if keys == ("trainer",):
            for key, inner in value.items():
                self._take_trainers(str(key), inner)
        elif owner is not None and isinstance(arguments, dict):
            for key, inner in arguments.items():
                name = str(key).removesuffix("+")
                if inner not in ({}, []) and (mistake := _mistake_in_name(owner, name)):
                    self._note(keys, mistake)
                else:
                    self.take((*keys, str(key)), inner)

    def _take_trainers(self, key: str, value: Any) -> None:
        name = key.removesuffix("+")
        keys = ("trainer", name)
        mistake = None if isinstance(value, dict) or not value else _mistake_in_option(name)
        if mistake is None:
            self.take(("trainer", key), value)
        else:
            self.mistakes.setdefault(keys, mistake)

    def _note(self, keys: _Keys, mistake: str) -> None:
        self.mistakes.setdefault(keys, f"{'.'.join(keys)}: {mistake}")

    def _forget(self, keys: _Keys) -> None:
        for known in (self.classes, self.mistakes):
            for below in [one for one in known if one[: len(keys)] == keys]:
                del known[below]


def _typed_settings(typed: Sequence[str]) -> Iterator[tuple[_Keys, str]]:
    for word, after in zip(typed, [*typed, "--"][1:], strict=True):
        name, equals, value = word.partition("=")
        option = _OPTION.fullmatch(name)
        if option is None:
            continue
        keys = tuple(key for key in option[1].split(".") if key != "init_args")
        if not keys:
            continue
        keys = (*keys[:-1], keys[-1] + option[2])
        if keys[-1] == "help" or "dict_kwargs" in keys:
            continue
        yield keys, value if equals else "" if after.startswith("--") else after


def _mistake_in_path(path: str) -> str | None:
    module, _, name = path.rpartition(".")
    try:
        if not sources.is_there(module):
            missing = next(one for one in _packages(module) if not sources.is_there(one))
            parent, _, last = module.rpartition(".")
            if missing == module and parent:  # it might have been a class in there
                mistake = no_class(parent, last, sources.class_names(parent))
            else:
                mistake = no_module(missing)
        elif not sources.has_name(module, name):
            mistake = no_class(module, name, sources.class_names(module))
        else:
            return None
    except sources.OnlyImportTells:
        return None
    now = present_path(path)
    return mistake if now is None else moved(path, now)


def _mistake_in_name(owner: str, name: str) -> str | None:
    try:
        accepted = sources.parameters(owner)
    except sources.OnlyImportTells:
        return None
    return None if name in accepted else no_argument(owner, name, accepted)


def _mistake_in_option(name: str) -> str | None:
    """What to say of an option of the trainer that it lacks."""
    try:
        known = [f"trainer.{one}" for one in sources.parameters(TRAINER)]
    except sources.OnlyImportTells:
        return None
    option = f"trainer.{name}"
    return None if option in known else no_option(option, known)


def _mistake_in_root(key: str, value: Any, roots: Sequence[str]) -> str | None:
    """What to say of a key that no command has, by the first thing below it, as the parser does."""
    if not roots or key in roots or value in ({}, []):
        return None
    path = [key]
    while isinstance(value, dict) and value:
        first = next(iter(value))
        path.append(str(first))
        value = value[first]
    return no_option(".".join(path), roots, key)


def _packages(module: str) -> Iterator[str]:
    """A module's packages, outermost first, and the module."""
    parts = module.split(".")
    for number in range(len(parts)):
        yield ".".join(parts[: number + 1])
