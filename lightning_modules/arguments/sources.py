"""What a module holds, read from its source: nothing is imported, so the answer comes at once.

Whatever a source does not settle, such as names that are made while it runs, raises
`OnlyImportTells`.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

OUR_PACKAGES = ("aegpo", "lightning_modules", "datamodules", "callbacks")
_MAKES_NAMES = re.compile(r"\b(?:exec|globals|vars|setattr)\(|\bsys\.modules\b")
_PLAIN_BASES = frozenset({"object", "ABC", "abc.ABC", "Protocol"})


class OnlyImportTells(Exception):  # no error: a question for somebody else
    """What the source leaves open."""


@dataclass
class _Names:
    """The names that a module binds at its top level.

    Args:
        bound: Each with the statement that binds it.
        for_types: Those that are bound for type checkers alone.
        listed: The names of ``__all__``.
        more: Whether it may have others, which only its import would tell.
    """

    bound: dict[str, ast.stmt] = field(default_factory=dict)
    for_types: dict[str, ast.stmt] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    more: bool = False


def is_there(module: str) -> bool:
    """Whether there is a module of this name, neither it nor its packages being imported.

    Args:
        module: Dotted name.

    Returns:
        Whether it is there.

    Raises:
        OnlyImportTells: If a package of somebody else's may make it while it is imported.
    """
    return _spec(module) is not None


def has_name(module: str, name: str) -> bool:
    """Whether a module that is there has a class or another name.

    Args:
        module: Dotted name.
        name: What is looked for in it.

    Returns:
        Whether it has it.

    Raises:
        OnlyImportTells: If its source does not settle that.
    """
    names = _names(module)
    found = name in names.bound or name in names.listed or _is_submodule(module, name)
    if not found and names.more:
        raise OnlyImportTells(f"{module}.{name}")
    return found


def class_names(module: str) -> list[str]:
    """Names of classes in a module, those included that it imports on first use only.

    Args:
        module: Dotted name.

    Returns:
        The names, sorted.

    Raises:
        OnlyImportTells: If its source does not settle that.
    """
    names = _names(module)
    if names.more:
        raise OnlyImportTells(module)
    return sorted(name for name in {*names.bound, *names.listed} if name[:1].isupper())


def parameters(class_path: str) -> list[str]:
    """Names of the arguments of a class.

    Args:
        class_path: Module and class, for instance ``aegpo.exploration.EntropyPeaks``.

    Returns:
        The names, in order.

    Raises:
        OnlyImportTells: If its source does not settle that, as where it passes some on.
    """
    module, _, name = class_path.rpartition(".")
    return _arguments(module, name)


def function_parameters(path: str) -> list[str]:
    """Names of the arguments of a method or a command's function, its first left out.

    Args:
        path: Module, class if it is a method, and name.

    Returns:
        The names, in order.

    Raises:
        OnlyImportTells: If its source does not settle that.
    """
    function = function_source(path)
    if function.args.kwarg is not None:
        raise OnlyImportTells(path)
    return _taken(function)


def function_source(path: str) -> ast.FunctionDef:
    """Read a method or a function as it is written; arguments and errors as above."""
    module, _, name = path.rpartition(".")
    bound: dict[str, ast.stmt] | None = None
    try:
        bound = _names(module).bound
    except OnlyImportTells:
        module, _, kind = module.rpartition(".")
        holder = _names(module).bound.get(kind)
        if isinstance(holder, ast.ClassDef):
            bound = {one.name: one for one in holder.body if isinstance(one, ast.FunctionDef)}
    function = (bound or {}).get(name)
    if not isinstance(function, ast.FunctionDef):
        raise OnlyImportTells(path)
    return function


def public_names() -> dict[str, str]:
    """Look up what our packages, and those one level below them, list in ``__all__``.

    Returns:
        For each public name the package under which it is public, whichever file it stands in.
    """
    faces = list(OUR_PACKAGES)
    for package in OUR_PACKAGES:
        places = _locations(package)
        faces += [f"{package}.{one.name}" for one in pkgutil.iter_modules(places) if one.ispkg]
    return {name: face for face in faces for name in _names(face).listed}


def _spec(module: str) -> ModuleSpec | None:
    return _spec_from(module, (os.getcwd(), *sys.path))


@cache
def _spec_from(module: str, places: tuple[str, ...]) -> ModuleSpec | None:
    """The spec of a module, as long as modules are looked for in the same places."""
    parent, _, last = module.rpartition(".")
    if not parent:
        try:
            return find_spec(module)
        except (ImportError, ValueError) as error:
            raise OnlyImportTells(module) from error
    above = _spec(parent)
    if above is None:
        return None
    spec = PathFinder.find_spec(module, above.submodule_search_locations or [])
    if spec is None and (not _is_read_through(parent) or last in _names(parent).bound):
        raise OnlyImportTells(module)
    return spec


def _is_read_through(module: str) -> bool:
    """Whether a package is ours, or a plain file: neither makes modules of its own."""
    spec = _spec(module)
    ours = module.partition(".")[0] in OUR_PACKAGES
    return ours or (spec is not None and spec.submodule_search_locations is None)


def _locations(package: str) -> list[str]:
    spec = _spec(package)
    return list((spec and spec.submodule_search_locations) or [])


def _is_submodule(module: str, name: str) -> bool:
    return PathFinder.find_spec(f"{module}.{name}", _locations(module)) is not None


def _names(module: str) -> _Names:
    spec = _spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise OnlyImportTells(module)
    return _names_in(module, spec.origin)


@cache
def _names_in(module: str, file: str) -> _Names:
    try:
        text = Path(file).read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError) as error:
        raise OnlyImportTells(module) from error
    names = _Names()
    _bind(tree.body, names, names.bound)
    ours = module.partition(".")[0] in OUR_PACKAGES
    if not ours and ("__getattr__" in names.bound or _MAKES_NAMES.search(text)):
        names.more = True
    return names


def _bind(body: Iterable[ast.stmt], names: _Names, into: dict[str, ast.stmt]) -> None:
    for statement in body:
        for name in _bound_by(statement):
            into[name] = statement
            names.more |= name == "*"
        if isinstance(statement, ast.Assign) and _bound_by(statement) == ["__all__"]:
            names.listed, certain = _literal(statement.value)
            names.more |= not certain
        for_types = isinstance(statement, ast.If) and _written(statement.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        for part in _bodies(statement):
            first = part is getattr(statement, "body", None)
            _bind(part, names, names.for_types if for_types and first else into)


def _bound_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [one.asname or one.name.partition(".")[0] for one in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [one.asname or one.name for one in statement.names]
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For):
        targets = [statement.target]
    inside = (node for target in targets for node in ast.walk(target))
    return [n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    if not isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
        return
    for part in ("body", "orelse", "finalbody"):
        yield getattr(statement, part, [])
    for handler in getattr(statement, "handlers", []):
        yield handler.body


def _literal(value: ast.expr) -> tuple[list[str], bool]:
    """The texts of a list, and whether it is written out."""
    try:
        return list(map(str, ast.literal_eval(value))), True
    except ValueError:
        return [], False


def _written(node: ast.expr) -> str:
    return ast.unparse(node)


def _arguments(module: str, name: str) -> list[str]:
    """The arguments of a class as a module names it; what it inherits is looked up there."""
    names = _names(module)
    statement = names.bound.get(name) or names.for_types.get(name)
    if isinstance(statement, ast.ImportFrom):
        original = next(one.name for one in statement.names if name in (one.asname, one.name))
        return _arguments(_imported_from(module, statement), original)
    if not isinstance(statement, ast.ClassDef) or statement.decorator_list:
        raise OnlyImportTells(f"{module}.{name}")
    methods = {one.name: one for one in statement.body if isinstance(one, ast.FunctionDef)}
    if "__new__" in methods or statement.keywords:
        raise OnlyImportTells(f"{module}.{name}")
    own: list[str] = []
    if (init := methods.get("__init__")) is not None:
        own = _taken(init)
        if init.args.kwarg is None:
            return own
    bases = [_written(base).partition("[")[0] for base in statement.bases]
    bases = [base for base in bases if base not in _PLAIN_BASES]
    if len(bases) > 1 or any("." in base for base in bases):
        raise OnlyImportTells(f"{module}.{name}")
    inherited = [argument for base in bases for argument in _arguments(module, base)]
    return own + [argument for argument in inherited if argument not in own]


def _taken(function: ast.FunctionDef) -> list[str]:
    """Names of all arguments but the first: the object or, of a command, the trainer."""
    taken = function.args
    return [one.arg for one in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)][1:]


def _imported_from(module: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return str(statement.module)
    spec = _spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    parts = module.split(".")
    parts = parts[: len(parts) - statement.level + package]
    return ".".join([*parts, *filter(None, [statement.module])])
