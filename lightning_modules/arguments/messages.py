"""One line for one mistake: jsonargparse's nested messages reduced to what the user got wrong.

A wrong key four classes deep arrives as an exception for every level, each wrapped in the message
that no type of some union fits. The chain of causes has all that a reader needs: the keys on the
way down, the class that the innermost key belongs to, and the first complaint.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import NoReturn

_KEY = re.compile(r'(?:[\s-].*\n)*\s*(?:-\s+)?Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_UNION = "Does not validate against any of the Union subtypes"
_NESTED = re.compile(rf'{_UNION}|Problem with given class_path|Parser key "')


class UserError(Exception):
    """A mistake in a config, on the command line or in a file they name; its text is one line."""


def explain_parsing(message: str, error: BaseException | None, options: Iterable[str]) -> str:
    """Put a parser's complaint on one line.

    Args:
        message: The text that jsonargparse would print.
        error: The exception behind it, with its causes, if there is one.
        options: All options of the parser in dotted form, for suggestions.

    Returns:
        One line: the key, what is wrong with it, what is accepted.
    """
    if error is None:
        return _suggest_option(message, options)
    path: list[str] = []
    owner = None
    leaf = message
    previous = ""
    for cause in _causes(error):
        text = str(cause)
        if text == previous:  # jsonargparse re-raises the same text as another type
            continue
        previous = text
        if key := _KEY.match(text):
            path.append(key[1])
            text = text[key.end() :].strip()
        elif (found := _CLASS.match(text)) is not None:
            owner = found[1]
            text = text[found.end() + 1 :].strip()
        elif text.startswith(_UNION) and not _nested_next(cause):
            # The chain follows a union's first type only; the mistake may be in a later one.
            keys, inner_owner, leaf = _read_union(text)
            path += keys
            owner = inner_owner or owner
            break
        leaf = text
    sentence = _suggest_option(_rewrite_leaf(leaf, owner), options)
    return _one_line(f"{'.'.join(path)}: {sentence}" if path else sentence)


def explain_exception(error: BaseException) -> str:
    """Put an exception from building or running the configured objects on one line.

    Args:
        error: What was raised, perhaps wrapped by jsonargparse.

    Returns:
        The first message in the chain of causes that is not a wrapper's.
    """
    original = error
    for cause in _causes(error):
        original = cause
        if not _NESTED.match(str(cause).lstrip("\n- ")):
            break
    text = str(original)
    if isinstance(original, OSError) and original.strerror and original.errno is not None:
        text = original.strerror + (f": {original.filename}" if original.filename else "")
    return _one_line(text) or type(original).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the closest known name.

    Args:
        name: What was given.
        known: What is accepted.

    Returns:
        A clause to append to a sentence, empty if nothing is close.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _causes(error: BaseException) -> Iterable[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _nested_next(cause: BaseException) -> bool:
    following = cause.__cause__
    return following is not None and _NESTED.match(str(following).lstrip("\n- ")) is not None


def _read_union(text: str) -> tuple[list[str], str | None, str]:
    """Take keys, class and complaint out of a union's own text; the types, if nothing is nested."""
    start = text.find("Problem with given class_path")
    if start < 0:
        return [], None, _describe_union(text)
    keys: list[str] = []
    owner = None
    for line in text[start:].splitlines():
        words = line.strip().removeprefix("- ")
        if found := _CLASS.match(words):
            owner = found[1]
        elif key := re.match(r'Parser key "([^"]+)":', words):
            keys.append(key[1])
        elif words and not words.startswith((_UNION, "Subtypes:", "Errors:")):
            return keys, owner, words
    return keys, owner, _describe_union(text)


def _describe_union(text: str) -> str:
    """Say which types a union takes and what it got."""
    types = re.search(r"Subtypes: [\[(](.*)[\])]", text)
    value = re.search(r"Given value: (.*)", text, re.DOTALL)
    nested = re.search(r"Expected a dot import path string: (\S+)", text)
    if nested:
        return f"there is no class {nested[1]!r}; give its full path, e.g. callbacks.EntropyProbe"
    if types is None or value is None:
        return text
    accepted = [name for name in _split_types(types[1]) if "NoneType" not in name]
    names = ", ".join(map(_plain_type, accepted))
    given = re.sub(r"NestedArg\(key='[^']*', val='?(.*?)'?\)$", r"\1", value[1])
    return _wrong_class(names, given) or f"expected {names}, got {_shorten(given)}"


def _wrong_class(expected: str, given: str) -> str | None:
    """Say what is wrong with a class_path whose class, or whose neighbors, are not accepted."""
    try:
        value = ast.literal_eval(given)
    except (SyntaxError, ValueError):
        return None
    if not isinstance(value, dict) or "class_path" not in value:
        return None
    strangers = [key for key in value if key not in ("class_path", "init_args", "dict_kwargs")]
    if strangers:
        return f"{', '.join(strangers)} stands beside class_path; arguments go below init_args"
    return f"{value['class_path']} is not a {expected}"


def _split_types(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _plain_type(text: str) -> str:
    inner = re.sub(r"<class '([^']+)'>", r"\1", text)
    inner = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", r"\1", inner)
    return re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(\w+)", r"\1", inner)


def _rewrite_leaf(leaf: str, owner: str | None) -> str:
    """Say the innermost complaint in the user's words, with a suggestion where there is one."""
    if unknown := re.match(r"Option '([^']+)' is not accepted", leaf):
        return _unknown_argument(unknown[1], owner)
    if missing := re.search(r"module '([^']+)' has no attribute '([^']+)'", leaf):
        return _unknown_class(missing[1], missing[2])
    if module := re.search(r"No module named '([^']+)'", leaf):
        return f"there is no module {module[1]!r}, neither installed nor in the current folder" + (
            f" (needed by {owner})" if owner and not owner.startswith(module[1]) else ""
        )
    if path := re.search(r"Expected a dot import path string: (\S+)", leaf):
        return f"there is no class {path[1]!r}; give its full path, e.g. callbacks.EntropyProbe"
    if wrong := re.match(r"Expected an? (.+?)\. Got value: (.*)", leaf, re.DOTALL):
        return f"expected {_plain_type(wrong[1])}, got {_shorten(wrong[2])}"
    if required := re.match(r"the following arguments are required: (.+)", leaf):
        names = re.sub(r"\b(?:fit|validate|test|predict|doctor)\.", "", required[1])
        return f"{owner} needs {names}" if owner else f"{names} is required; is a --config missing?"
    if leaf.startswith("Not a valid subclass of"):
        kind = leaf.split()[5].rstrip(".")
        given = re.search(r"Got value: (.*)", leaf)
        value = _shorten(given[1]) if given else "something else"
        return f"expected a {kind} as class_path and init_args, got {value}"
    return leaf


def _unknown_argument(name: str, owner: str | None) -> str:
    if name == "class_path":  # what jsonargparse says of {class_path: ..., lr: ...}
        return "an argument stands beside class_path; arguments go below init_args"
    accepted = _parameters(owner) if owner else []
    if not accepted:
        return f"there is no option {name!r}"
    return (
        f"{owner} has no argument {name!r}{did_you_mean(name, accepted)} "
        f"(it takes {', '.join(accepted)})"
    )


def _unknown_class(module_name: str, name: str) -> str:
    try:
        module = import_module(module_name)
    except Exception:
        known: list[str] = []
    else:
        # __all__ also has what a package imports on first use only.
        names = {*dir(module), *getattr(module, "__all__", ())}
        known = sorted(key for key in names if key[:1].isupper())
    return f"there is no {name!r} in {module_name}{did_you_mean(name, known)}"


def _parameters(class_path: str) -> list[str]:
    """Names of the arguments of a class, its bases' included where it passes them on."""
    module_name, _, name = class_path.rpartition(".")
    try:
        target = getattr(import_module(module_name), name)
    except Exception:
        return []
    names: list[str] = []
    for kind in inspect.getmro(target) if inspect.isclass(target) else (target,):
        function = kind.__dict__.get("__init__") if inspect.isclass(kind) else kind
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        names += [
            p.name
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name != "self"
            and p.name not in names
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _suggest_option(sentence: str, options: Iterable[str]) -> str:
    """Complete the messages about an option that the parser itself does not know."""
    if unknown := re.match(r"\w+ '\w+' does not accept option '([^']+)'", sentence):
        known = list(options)
        roots = {option.partition(".")[0] for option in known}
        root = unknown[1].partition(".")[0]
        hint = did_you_mean(unknown[1], known) if root in roots else did_you_mean(root, roots)
        return f"there is no option {unknown[1]!r}{hint}"
    if unknown := re.match(r"unrecognized arguments: (--)?([\w.]+)", sentence):
        return f"there is no option {unknown[2]!r}{did_you_mean(unknown[2], options)}"
    if unknown := re.match(r"Unexpected config: (\w+):", sentence):
        return f"there is no option {unknown[1]!r}{did_you_mean(unknown[1], options)}"
    if commands := re.match(r'expected "subcommand" to be one of \{(.*)\}', sentence):
        return f"give a command first: {commands[1].replace(',', ', ')}"
    return sentence


def _shorten(value: str, width: int = 80) -> str:
    flat = " ".join(value.split())
    return repr(flat) if len(flat) <= width else repr(flat[: width - 1] + "…")


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _debugging() -> bool:
    return os.environ.get("AEGPO_DEBUG", "0") not in ("", "0")


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)
