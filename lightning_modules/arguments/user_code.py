"""Failures in a user's own files: what was raised, in which file and line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lightning_modules.arguments.sources import OUR_PACKAGES

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib")}
_OURS = {Path(__file__).parents[2] / package for package in OUR_PACKAGES}


def is_users(file: str | None) -> bool:
    """Whether a file of Python is a user's: neither installed nor of this program."""
    if file is None or file.startswith("<") or not Path(file).is_file():
        return False
    parents = set(Path(file).resolve().parents)
    return parents.isdisjoint({root.resolve() for root in _INSTALLED | _OURS})


def place_in_user_code(error: BaseException) -> str | None:
    """Say where in a user's file something was raised.

    Args:
        error: What was raised, with its traceback.

    Returns:
        File and line, as ``my_module.py, line 4``: the innermost line of a user's that led there;
        None if there is none.
    """
    if isinstance(error, SyntaxError) and is_users(error.filename):
        return f"{Path(str(error.filename)).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = next((frame for frame in reversed(frames) if is_users(frame.filename)), None)
    return None if own is None else f"{Path(own.filename).name}, line {own.lineno}"


def describe(error: BaseException) -> str:
    """Put what was raised on one line, with its place if that is in a user's file.

    Args:
        error: What was raised.

    Returns:
        ``text (my_module.py, line 4)`` for what somebody wrote into a ``raise``; with the type
        before it for what an operation there ended in.
    """
    text = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    name = type(error).__name__
    place = place_in_user_code(error)
    if place is None:
        return text or name
    frames = traceback.extract_tb(error.__traceback__)
    said = bool(frames) and (frames[-1].line or "").startswith("raise ") and text
    what = text if said else f"{name}: {text}" if text else name
    return f"{what} ({place})"


def broken_import(message: str) -> str | None:
    """Find a class in a message whose module exists and cannot be imported.

    The parser tries class paths one after the other and forgets what was raised on the way.

    Args:
        message: The parser's complaint, in which class paths stand.

    Returns:
        One line with the cause; None if all of a user's modules can be imported.
    """
    for path in dict.fromkeys(_DOTTED.findall(message)):
        module, _, name = path.rpartition(".")
        if name == "py":  # a file in the text of an exception
            continue
        try:
            spec = find_spec(module.partition(".")[0])
            if spec is None or not is_users(spec.origin):
                continue
            import_module(module)
        except (SystemExit, Exception) as error:  # a user's module may raise anything
            if isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name)):
                continue  # there is no such module; that is said as such
            return f"{path} cannot be imported: {_with_type(error)}"
    return None


def missing_methods(class_path: str) -> list[str]:
    """Names of the methods that a class would need to be built; none if it cannot be found."""
    module, _, name = class_path.rpartition(".")
    try:
        return sorted(getattr(import_module(module), name).__abstractmethods__)
    except Exception:  # a user's module may raise anything
        return []


def _with_type(error: BaseException) -> str:
    text, name = describe(error), type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"
