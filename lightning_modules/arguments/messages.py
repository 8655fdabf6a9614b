"""One line for one mistake: jsonargparse's nested messages reduced to what the user got wrong.

A wrong key four classes deep arrives as a text of as many levels of indentation, with every type of
every union on the way. What a reader needs of it are the keys on the way down, the class that the
innermost key belongs to, and what is said there: of an unknown key, an unknown class or a wrong
type. Other complaints are passed on as they are.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import NoReturn

from lightning_modules.arguments import sources
from lightning_modules.arguments.class_paths import present_path
from lightning_modules.arguments.user_code import broken_import, describe, missing_methods

_LEVEL = re.compile(
    r"""Parser key "(?P<key>[^"]+)":|Problem with given class_path '(?P<owner>[^']+)':"""
)
_WRAPPER = re.compile(rf"Does not validate against any of the Union subtypes|{_LEVEL.pattern}")
_REFUSAL = re.compile(r"^ *- (?!Expected a|Import path \S+ does not|Does not validate)(.+)$", re.M)


class UserError(Exception):
    """A mistake in a config, on the command line or in a file they name; its text is one line."""


def debugging() -> bool:
    """Whether errors are to keep their traceback: ``--debug``, or AEGPO_DEBUG=1."""
    return os.environ.get("AEGPO_DEBUG", "0") not in ("", "0")


def fail(line: str) -> NoReturn:
    """Print a user's mistake and exit with status 2.

    Args:
        line: What is wrong and what to do.

    Raises:
        SystemExit: Always.
    """
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def explain_parsing(message: str, options: Sequence[str]) -> str:
    """Put a parser's complaint on one line.

    Args:
        message: The text that jsonargparse would print.
        options: All options of the parser in dotted form, for suggestions.

    Returns:
        One line: the key, what is wrong with it, what is accepted.
    """
    keys, owner, complaint = _innermost(message)
    sentence = (
        broken_import(message)
        or _unknown_option(complaint, options)
        or _missing(complaint, owner, options)
        or _unknown_argument(complaint, owner)
        or _unknown_class(complaint, owner)
        or _abstract_class(complaint)
        or _wrong_type(complaint)
        or complaint
    )
    return _one_line(f"{'.'.join(keys)}: {sentence}" if keys else sentence)


def explain_exception(error: BaseException) -> str:
    """Put an exception from building or running the configured objects on one line.

    Args:
        error: What was raised, perhaps wrapped by jsonargparse.

    Returns:
        The first message in the chain of causes that is not a wrapper's; with file and line where
        that is in a user's file.
    """
    original, wrapper = error, error
    while _WRAPPER.match(str(original).lstrip("\n- ")) and original.__cause__ is not None:
        original, wrapper = original.__cause__, original
    text = describe(original)
    if text.startswith("Expected a"):  # a union's first type, and the value was of another
        text = next(iter(_REFUSAL.findall(str(wrapper))), text)
    if isinstance(original, OSError) and original.strerror and original.errno is not None:
        name = original.filename  # of TensorBoard's files it is bytes
        name = os.fsdecode(name) if isinstance(name, bytes) else name
        text = original.strerror + (f": {name}" if name else "")
    return _one_line(text) or type(original).__name__


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Suggest the closest known name.

    Args:
        name: What was given.
        known: What is accepted.

    Returns:
        A clause for the end of a sentence, empty if nothing is close; a name that begins so first.
    """
    whole = [one for one in known if name and one.startswith(name)]
    close = difflib.get_close_matches(name, whole or known, n=1, cutoff=0.0 if whole else 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def no_option(name: str, known: Sequence[str], part: str | None = None) -> str:
    """What to say of an option that is not `known`, or of which this `part` is not."""
    return f"there is no option {name!r}{did_you_mean(part or name, known)}"


def no_argument(owner: str, name: str, accepted: Sequence[str]) -> str:
    """What to say of an argument that a class does not have; `accepted` are those it has."""
    return (
        f"{owner} has no argument {name!r}{did_you_mean(name, accepted)} "
        f"(it takes {', '.join(accepted) or 'none'})"
    )


def no_class(module: str, name: str, known: Sequence[str]) -> str:
    """What to say of a class that its module does not have; `known` are those it has."""
    return f"there is no {name!r} in {module}{did_you_mean(name, known)}"


def no_module(module: str) -> str:
    """What to say of a module that cannot be found."""
    return f"there is no module {module!r}, neither installed nor in the current folder"


def moved(old: str, now: str) -> str:
    """What to say of a class of ours that was named by where it stood once."""
    return f"{old} is now {now}"


def _innermost(message: str) -> tuple[list[str], str | None, str]:
    """Follow a nested message to its innermost level: keys, class, and what is said there."""
    keys: list[str] = []
    owner: str | None = None
    deepest = -1
    complaint: list[str] = []
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip())
        level = None if line.lstrip().startswith("Given value") else _LEVEL.search(line)
        if deepest >= 0 and line.strip() and indent <= deepest:
            break  # another type of a union: the first one that led anywhere counts
        if level is None:
            complaint.append(line)
            continue
        deepest = indent
        keys += [level["key"]] if level["key"] else []
        owner = level["owner"]
        complaint = [line[level.end() :]]
    text = "\n".join(complaint).strip()
    # A class behind a function that builds it is named beside the value only.
    text, _, value = text.partition(". Got value: Namespace(")
    named = re.search(r"class_path='([^']+)'", value)
    return keys, named[1] if named else owner, text


def _unknown_option(complaint: str, options: Sequence[str]) -> str | None:
    """What to say of an option or a command that the parser itself does not know."""
    roots = sorted({option.partition(".")[0] for option in options})
    if unknown := re.match(r"\w+ '\w+' does not accept option '([^']+)'", complaint):
        root = unknown[1].partition(".")[0]
        known = options if root in roots else roots
        return no_option(unknown[1], known, None if root in roots else root)
    if loose := re.match(r"unrecognized arguments: (?!--)(-?)([^ =]+)", complaint):
        meant = loose[2] if loose[2].partition(".")[0] in roots else "name"
        return f"{loose[1] + loose[2]!r} belongs to no option; give options as --{meant} value"
    unknown = re.match(r"unrecognized arguments: (?:--)?([^ =]+)", complaint)
    if unknown := unknown or re.match(r"Unexpected config: (\w+):", complaint):
        root, dot, _ = unknown[1].partition(".")
        lost = dot and root not in roots
        return no_option(unknown[1], roots if lost else options, root if lost else None)
    if commands := re.match(r'expected "subcommand" to be one of \{(.*)\}', complaint):
        return f"give a command first: {commands[1].replace(',', ', ')}"
    return None


def _missing(complaint: str, owner: str | None, options: Sequence[str]) -> str | None:
    """What to say of options or arguments that have to be given."""
    required = re.match(r"the following arguments are required: (.+)", complaint)
    if required is None:
        return None
    if owner is not None:
        return f"{owner} needs {required[1]}"
    given = [name.strip() for name in required[1].split(",")]  # perhaps with the command's name
    names = [name if name in options else name.partition(".")[2] or name for name in given]
    return f"{', '.join(names)} is required; is a --config missing?"


def _unknown_argument(complaint: str, owner: str | None) -> str | None:
    """What to say of a key that a class does not have."""
    unknown = re.search(r"Option '([^']+)' is not accepted", complaint)
    if unknown is None:
        return None
    if unknown[1] == "class_path":  # what jsonargparse says of {class_path: ..., lr: ...}
        return "an argument stands beside class_path; arguments go below init_args"
    if owner is None:
        return f"there is no option {unknown[1]!r}"
    return no_argument(owner, unknown[1], _parameters(owner))


def _unknown_class(complaint: str, owner: str | None) -> str | None:
    """What to say of a class path that leads nowhere, or to a class of another kind."""
    missing = re.search(r"module '([^']+)' has no attribute '([^']+)'", complaint)
    module = re.search(r"No module named '([^']+)'", complaint)
    if owner and (missing or module) and (now := present_path(owner)):
        return moved(owner, now)
    if missing:
        return no_class(missing[1], missing[2], _class_names(missing[1]))
    if module:
        needed = owner and not owner.startswith(module[1])
        return no_module(module[1]) + (f" (needed by {owner})" if needed else "")
    plain = re.search(r"Subtypes: .*<class '(?:bool|float|int|str)'>", complaint)
    short = re.search(r"Expected a dot import path string: (\S+)", complaint)
    if short and not plain:  # a value that could be a number or a text was hardly meant as a class
        return f"there is no class {short[1]!r}; give its full path, e.g. callbacks.EntropyProbe"
    wrong = re.search(r"Import path (\S+) does not correspond to a subclass of (\S+)", complaint)
    wrong = wrong or re.search(r"Expected '(\S+)' to be a subclass of <class '(\S+)'>", complaint)
    return f"{wrong[1]} is not a {wrong[2]}" if wrong else None


def _abstract_class(complaint: str) -> str | None:
    """What to say of a class that cannot be built."""
    abstract = re.search(r"but (\S+) is abstract", complaint)
    if abstract is None:
        return None
    names = missing_methods(abstract[1])
    kind = "method" if len(names) == 1 else "methods"
    return f"{abstract[1]} lacks the {kind} {', '.join(names)}" if names else None


def _wrong_type(complaint: str) -> str | None:
    """What to say of a value that is not of the type, or of any of the types."""
    patterns = (
        r"Subtypes: [\[(]([^\n]*)[\])]\n.*?Given value: (.*)",
        r"Type (.+) expects a function or a callable class: .*Got value: (.*)",
        r"(?:Expected an?|Not a valid subclass of) (.+?)\. Got value: ([^\n]*)",
    )
    found = (re.search(pattern, complaint, re.DOTALL) for pattern in patterns)
    wrong = next(filter(None, found), None)
    if wrong is None:
        return None
    expected = re.sub(r"<class '([^']+)'>", r"\1", wrong[1])
    expected = re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(\w+)", r"\1", expected).replace(", NoneType", "")
    given = " ".join(wrong[2].split())
    if given == "None":
        return f"expected {expected}, got null"
    return f"expected {expected}, got {given if len(given) <= 80 else given[:79] + '…'!r}"


def _class_names(module_name: str) -> list[str]:
    """Names of classes in a module, those included that it imports on first use only."""
    try:
        return sources.class_names(module_name)
    except sources.OnlyImportTells:
        pass
    try:
        module = import_module(module_name)
    except Exception:  # a user's module may raise anything
        return []
    return sorted(n for n in {*dir(module), *getattr(module, "__all__", ())} if n[:1].isupper())


def _parameters(class_path: str) -> list[str]:
    """Names of the arguments of a class, its bases' included where it passes them on."""
    try:
        return sources.parameters(class_path)
    except sources.OnlyImportTells:
        module_name, _, name = class_path.rpartition(".")
    try:
        target = getattr(import_module(module_name), name)
    except Exception:  # a user's module may raise anything
        return []
    names: list[str] = []
    for kind in inspect.getmro(target) if inspect.isclass(target) else (target,):
        function = kind.__dict__.get("__init__") if inspect.isclass(kind) else kind
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        own = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names += [name for name in own if name != "self" and name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
