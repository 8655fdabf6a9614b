"""What sources say of a module is what its import says."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.arguments import sources
from lightning_modules.arguments.sources import OnlyImportTells

MODULE = """
from typing import TYPE_CHECKING
import decimal as numbers
if TYPE_CHECKING:
    from fractions import Fraction
try:
    from nowhere import Thing
except ImportError:
    Thing = None
class Base:
    def __init__(self, one, *, two=2): ...
class Passing(Base):
    def __init__(self, three, **rest): super().__init__(**rest)
class Plain(Passing): ...
class Both(Base, Exception): ...
class Bare: ...
"""


@pytest.fixture
def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules, from which nothing may be imported."""
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    (folder / "read_module.py").write_text(MODULE)
    (folder / "dynamic.py").write_text("class A: ...\ndef __getattr__(name): return A\n")
    (folder / "starred.py").write_text("from read_module import *\nclass A: ...\n")
    (folder / "broken.py").write_text("class A(:\n")
    return folder


def test_names_are_those_that_an_import_would_bind(written: Path) -> None:
    known = ["Bare", "Base", "Both", "Passing", "Plain", "TYPE_CHECKING", "Thing"]
    assert sources.class_names("read_module") == known
    assert sources.has_name("read_module", "numbers")
    assert not sources.has_name("read_module", "Fraction")
    assert sources.is_there("read_module") and not sources.is_there("reed_module")
    assert not sources.is_there("read_module.inner")
    assert "read_module" not in sys.modules


def test_arguments_are_followed_to_the_classes_that_they_are_passed_to(written: Path) -> None:
    assert sources.parameters("read_module.Base") == ["one", "two"]
    assert sources.parameters("read_module.Plain") == ["three", "one", "two"]
    assert sources.parameters("read_module.Bare") == []
    with pytest.raises(OnlyImportTells):
        sources.parameters("read_module.Both")


@pytest.mark.parametrize("module", ["dynamic", "starred", "broken", "sys"])
def test_what_a_source_leaves_open_is_left_open(written: Path, module: str) -> None:
    with pytest.raises(OnlyImportTells):
        sources.has_name(module, "B")
    with pytest.raises(OnlyImportTells):
        sources.class_names(module)


def test_a_package_of_others_may_make_modules_of_its_own() -> None:
    assert sources.is_there("torch.optim.adamw")
    with pytest.raises(OnlyImportTells):
        sources.is_there("torch.nowhere")


def test_all_that_is_public_here_is_read_as_it_is_imported() -> None:
    read = 0
    for name, face in sources.public_names().items():
        assert sources.has_name(face, name)
        found = getattr(import_module(face), name)
        try:
            told = sources.parameters(f"{face}.{name}")
        except OnlyImportTells:
            continue
        assert told == _inspected(found), f"{face}.{name}"
        read += 1
    assert read > 80


def test_classes_of_our_packages_are_those_of_their_imports() -> None:
    for face in {*sources.public_names().values(), "aegpo.exploration.windows"}:
        module: Any = import_module(face)
        bound = {*vars(module), *getattr(module, "__all__", ())}
        assert sources.class_names(face) == sorted(n for n in bound if n[:1].isupper()), face


def _inspected(kind: type) -> list[str]:
    names: list[str] = []
    for one in inspect.getmro(kind):
        if one is object or "__init__" not in vars(one):
            continue
        found = inspect.signature(vars(one)["__init__"]).parameters.values()
        named = [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names += [name for name in named[1:] if name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            break
    return names
