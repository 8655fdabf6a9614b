"""`Args:` of a dataclass names its fields, in order; of all else ruff and pydoclint see to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("aegpo", "lightning_modules", "datamodules", "callbacks")


def problems(source: str) -> list[str]:
    """Dataclasses whose `Args:` and fields differ; jsonargparse prints these lines as help."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        docstring = f"{ast.get_docstring(node)}\n"
        section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)*)", docstring, re.MULTILINE)
        documented = re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE) if section else []
        fields = [
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        ]
        if documented and documented != fields:
            found.append(f"{node.name}: Args: names {documented}, its fields are {fields}")
    return found


def test_dataclasses_are_documented_as_they_are() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    assert not {str(file): listed for file in files if (listed := problems(file.read_text()))}


def test_the_check_sees_a_planted_mistake() -> None:
    source = '''
@dataclass(frozen=True)
class Data:
    """Fields.

    Args:
        mean: Mean.
            More of it.
    """
    mean: float
    std: float
'''
    assert problems(source) == ["Data: Args: names ['mean'], its fields are ['mean', 'std']"]
    assert problems(source.replace("    std: float\n", "")) == []
