"""Every public name in aegpo/ is documented, and `Args:` names what the signature has.

jsonargparse prints these lines as `--help`, so a renamed argument must be renamed in both places.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("aegpo", "lightning_modules", "datamodules", "callbacks")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods; overrides of a framework's hooks are left out."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, Definition) and not item.name.startswith("_"):
                        yield f"{node.name}.{item.name}", item


def documented_arguments(docstring: str) -> list[str]:
    """Names in the `Args:` section, in order."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)*)", docstring + "\n", re.MULTILINE)
    if section is None:
        return []
    lines = [line for line in section[1].splitlines() if line.strip()]
    indent = len(lines[0]) - len(lines[0].lstrip())
    found = (re.match(rf" {{{indent}}}\*{{0,2}}(\w+)(?: \(.*?\))?:", line) for line in lines)
    return [match[1] for match in found if match]


def accepted_arguments(node: Definition) -> list[str] | None:
    """Names in a signature; a class has its constructor's or fields', None if it inherits them."""
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if getattr(item, "name", None) == "__init__"]
        if inits:
            return accepted_arguments(inits[0])  # type: ignore[arg-type]
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return [
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
        return None
    parts = node.args
    names = [a.arg for a in [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]]
    names += [a.arg for a in (parts.vararg, parts.kwarg) if a is not None]
    return [name for name in names if name not in ("self", "cls")]


def problems(source: str, need_docstrings: bool) -> list[str]:
    """What is undocumented, and where `Args:` and the signature differ."""
    found = []
    for name, node in public_definitions(ast.parse(source)):
        docstring = ast.get_docstring(node)
        if docstring is None:
            overrides = any("override" in ast.unparse(d) for d in node.decorator_list)
            # An implementation of an abstract method is documented on the abstract one.
            is_method = "." in name
            if need_docstrings and not overrides and not is_method:
                found.append(f"{name}: no docstring")
            continue
        documented, accepted = documented_arguments(docstring), accepted_arguments(node)
        if documented and accepted is not None and documented != accepted:
            found.append(f"{name}: Args: names {documented}, the signature {accepted}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented_as_they_are(package: str) -> None:
    found = {
        file.relative_to(ROOT).as_posix(): listed
        for file in sorted((ROOT / package).rglob("*.py"))
        if (listed := problems(file.read_text(), need_docstrings=True))
    }
    assert not found


def test_modules_are_documented() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    bare = [file for file in files if not ast.get_docstring(ast.parse(file.read_text()))]
    assert not bare


def test_the_check_sees_planted_mistakes() -> None:
    source = '''
def bare(): ...

def renamed(sigma: float, eta: float) -> None:
    """Step.

    Args:
        sigma: Noise level.
            More of it.
        beta: Another.

    Returns:
        Nothing: it is a test.
    """

class Right:
    """Right.

    Args:
        top_k: How many.
    """
    def __init__(self, top_k: int) -> None: ...
    def method(self): ...

@dataclass(frozen=True)
class Data:
    """Fields.

    Args:
        mean: Mean.
    """
    mean: float
    std: float

class Subclass(Right):
    """Inherits its constructor.

    Args:
        top_k: How many.
    """
'''
    assert problems(source, need_docstrings=True) == [
        "bare: no docstring",
        "renamed: Args: names ['sigma', 'beta'], the signature ['sigma', 'eta']",
        "Data: Args: names ['mean'], the signature ['mean', 'std']",
    ]
    assert len(problems(source, need_docstrings=False)) == 2
