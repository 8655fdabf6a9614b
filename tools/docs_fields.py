"""Griffe extension: a class's page lists every argument that a config may give it.

A subclass that passes on ``**common`` takes its parents' arguments too, which are documented where
they are defined. The command line finds them there (jsonargparse reads the same sources); here the
signature and the ``Args:`` of the page get them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe

_ITEM = re.compile(r"^ {4}(\w+):.*(?:\n(?: {5,}.*|[ \t]*$))*", re.MULTILINE)
_SECTION = re.compile(r"^Args:\n((?: {4}.*\n|[ \t]*\n)*)", re.MULTILINE)


class InheritedFields(griffe.Extension):
    """Writes inherited arguments into the signature and the docstring of every class."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Go through the classes of a package that was loaded.

        Args:
            pkg: The package.
            loader: What loaded it, and knows the others.
            **kwargs: What griffe passes besides.
        """
        found = list(_classes(pkg))
        lines = [(found_class, _lineage(found_class, loader)) for found_class in found]
        fields = {item.path: list(_fields(lineage)) for item, lineage in lines}
        texts = {item.path: _texts(lineage) for item, lineage in lines}
        for item in found:  # only now, as a class's parents must be read as they are written
            _set_signature(item, fields[item.path])
            _set_docstring(item, [field.name for field in fields[item.path]], texts[item.path])


def _classes(module: griffe.Object) -> Iterator[griffe.Class]:
    for member in list(module.members.values()):
        if isinstance(member, griffe.Class):
            yield member
        elif isinstance(member, griffe.Module):
            yield from _classes(member)


def _lineage(item: griffe.Class, loader: griffe.GriffeLoader) -> list[griffe.Class]:
    """The class and its first parents, as far as they are ours."""
    lineage = [item]
    while bases := lineage[-1].bases:
        path = bases[0].canonical_path if isinstance(bases[0], griffe.Expr) else str(bases[0])
        try:
            parent = loader.modules_collection.get_member(path)
            parent = parent.final_target if isinstance(parent, griffe.Alias) else parent
        except (KeyError, griffe.GriffeError):
            break
        if not isinstance(parent, griffe.Class) or parent in lineage:
            break
        lineage.append(parent)
    return lineage


def _init(item: griffe.Class) -> griffe.Function | None:
    member = item.members.get("__init__")
    return member if isinstance(member, griffe.Function) else None


def _fields(lineage: list[griffe.Class]) -> Iterator[griffe.Parameter]:
    """Arguments of a class: its own, and those of its parents that it passes on."""
    seen: set[str] = {"self"}
    for item in lineage:
        init = _init(item)
        if init is None:
            continue
        rest = None
        for parameter in init.parameters:
            if parameter.kind is griffe.ParameterKind.var_keyword:
                rest = parameter
            elif parameter.name not in seen:
                yield parameter
            seen.add(parameter.name)
        if rest is None:
            return
        seen |= _given(init)


def _given(init: griffe.Function) -> set[str]:
    """Names that an ``__init__`` passes to its parent by itself, which no config can give."""
    given: set[str] = set()
    for node in ast.walk(ast.parse(_dedented(init))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            given |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return given


def _dedented(init: griffe.Function) -> str:
    return f"class _:\n{init.source}" if init.source.startswith(" ") else init.source


def _texts(lineage: list[griffe.Class]) -> dict[str, str]:
    """The lines of ``Args:`` about each argument, from where it is said first."""
    texts: dict[str, str] = {}
    for item in lineage:
        section = _SECTION.search(f"{item.docstring.value}\n") if item.docstring else None
        for line in _ITEM.finditer(section[1]) if section else ():
            texts.setdefault(line[1], line[0].rstrip())
    return texts


def _set_signature(item: griffe.Class, fields: list[griffe.Parameter]) -> None:
    init = _init(item)
    if init is not None:
        init.parameters = griffe.Parameters(init.parameters["self"], *_keywords(fields))


def _keywords(fields: list[griffe.Parameter]) -> Iterator[griffe.Parameter]:
    """Arguments in an order that a signature may have: those without a default first."""
    required = [field for field in fields if field.required]
    yield from [*required, *(field for field in fields if not field.required)]


def _set_docstring(item: griffe.Class, names: list[str], texts: dict[str, str]) -> None:
    documented = [texts[name] for name in names if name in texts]
    if item.docstring is None or not documented:
        return
    section = "Args:\n" + "\n".join(documented) + "\n"
    value = f"{item.docstring.value}\n"
    if _SECTION.search(value):
        item.docstring.value = _SECTION.sub(lambda _: f"{section}\n", value).rstrip()
    else:
        item.docstring.value = f"{value}\n{section}".rstrip()
