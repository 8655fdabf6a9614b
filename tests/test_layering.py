"""Who may import whom. Imports inside functions count too: a layer is not a matter of timing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("aegpo", "lightning_modules", "datamodules", "callbacks")
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")

# What no file of a package may import, by the first part of the module's name.
FORBIDDEN = {
    "aegpo": (*LIGHTNING, "lightning_modules", "datamodules", "callbacks", "matplotlib"),
    "datamodules": ("lightning_modules", "callbacks"),
    "lightning_modules": ("callbacks", "datamodules"),
    "callbacks": ("lightning_modules", "datamodules"),
}
# Single files that may do more: the CLI ties everything together, and `python -m aegpo` is the CLI
# under the package's name (nothing imports it, which is tested below).
EXEMPT = {
    "lightning_modules/cli.py": {"datamodules"},
    "aegpo/__main__.py": {"lightning_modules"},
}
# The floor of aegpo: files that import nothing of ours, or only what stands beside them.
FLOOR = {
    "aegpo/noise.py": set(),
    "aegpo/prompts.py": set(),
    "aegpo/tree.py": set(),
    "aegpo/gaussian_step.py": set(),
    "aegpo/sde.py": {"aegpo.gaussian_step"},
    "aegpo/compute.py": set(),
    "aegpo/advantages.py": set(),
    "aegpo/doctor.py": set(),
    "aegpo/entropy/attention.py": set(),
    "aegpo/entropy/reading.py": set(),
    "aegpo/rewards/base.py": set(),
    "aegpo/entropy/tokens.py": set(),
    "aegpo/policies/conditioning.py": set(),
    "aegpo/policies/base.py": {
        "aegpo.compute",
        "aegpo.entropy.tokens",
        "aegpo.policies.conditioning",
        "aegpo.policies.embedding_cache",
        "aegpo.policies.trainable",
    },
}


def imported_modules(source: str, package: str = "") -> set[str]:
    """Absolute names of all modules that a file names in an import, wherever it stands.

    `from aegpo import sde` counts as both `aegpo` and `aegpo.sde`; `package` resolves relative
    imports; `import_module("name")` and `__import__("name")` with a literal count as imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            argument = node.args[0]
            if called in ("import_module", "__import__", "run_module") and isinstance(
                argument, ast.Constant
            ):
                names.add(str(argument.value))
    return names


def wrong_arrows(path: str, source: str) -> set[str]:
    """Packages that the file at this path, relative to the root, imports and must not."""
    package = path.split("/")[0]
    roots = {name.split(".")[0] for name in imported_modules(source, module_package(path))}
    return (roots & set(FORBIDDEN[package])) - EXEMPT.get(path, set())


def module_package(path: str) -> str:
    return path.rpartition("/")[0].replace("/", ".")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources() -> dict[str, str]:
    files = (file for package in OURS for file in sorted((ROOT / package).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def import_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Edges between modules, where `import a.b` also runs `a/__init__.py`'s own imports."""
    modules = {module_name(path): path for path in files}
    return {
        name: {
            target
            for target in imported_modules(files[path], module_package(path))
            if target in modules and target != name and not name.startswith(f"{target}.")
        }
        for name, path in modules.items()
    }


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle as a list of modules, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for target in sorted(graph[node]):
            if cycle := visit(target, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


@pytest.mark.parametrize("package", OURS)
def test_no_package_imports_what_is_above_or_beside_it(package: str) -> None:
    files = {path: text for path, text in sources().items() if path.startswith(f"{package}/")}
    assert files, f"no source found in {package}/"
    wrong = {path: arrows for path, text in files.items() if (arrows := wrong_arrows(path, text))}
    assert not wrong


def test_nothing_imports_callbacks() -> None:
    guilty = [
        path
        for path, text in sources().items()
        if not path.startswith("callbacks/")
        and any(name.split(".")[0] == "callbacks" for name in imported_modules(text))
    ]
    assert not guilty


def test_the_program_is_imported_by_nobody() -> None:
    assert not [p for p, text in sources().items() if "aegpo.__main__" in imported_modules(text)]


def test_the_floor_of_aegpo_imports_nothing_of_ours() -> None:
    files = sources()
    for path, allowed in FLOOR.items():
        assert path in files, f"{path} is gone; take it out of FLOOR"
        modules = {module_name(name) for name in files}
        found = {n for n in imported_modules(files[path], module_package(path)) if n in modules}
        inside = {name for name in found if name.startswith("aegpo.")}
        # A package's __init__ on the way down is not an arrow of this file.
        inside = {name for name in inside if not module_name(path).startswith(f"{name}.")}
        assert inside <= allowed, path


def test_aegpo_has_no_cycles() -> None:
    files = {path: text for path, text in sources().items() if path.startswith("aegpo/")}
    assert find_cycle(import_graph(files)) == []


@pytest.mark.parametrize(
    ("path", "source", "arrows"),
    [
        ("aegpo/sde.py", "import torch\nfrom aegpo.noise import KeyedNoise\n", set()),
        ("aegpo/sde.py", "import lightning.pytorch as pl\n", {"lightning"}),
        ("aegpo/sde.py", "def f():\n    from lightning import Trainer\n", {"lightning"}),
        ("aegpo/sde.py", "import importlib as i\ni.import_module('callbacks.x')\n", {"callbacks"}),
        ("aegpo/rewards/a.py", "from ... import callbacks\n", {"callbacks"}),
        ("aegpo/cli.py", "from lightning_modules.entry import main\n", {"lightning_modules"}),
        ("aegpo/__main__.py", "from lightning_modules.entry import main\n", set()),
        ("aegpo/__main__.py", "import callbacks\n", {"callbacks"}),
        ("lightning_modules/cli.py", "import datamodules\n", set()),
        ("lightning_modules/other.py", "import datamodules\n", {"datamodules"}),
        ("callbacks/a.py", "from lightning_modules import AEGPOModule\n", {"lightning_modules"}),
        ("datamodules/a.py", "import aegpo, lightning\n", set()),
    ],
)
def test_the_check_sees_planted_arrows(path: str, source: str, arrows: set[str]) -> None:
    assert wrong_arrows(path, source) == arrows


def test_the_check_sees_planted_cycles() -> None:
    files = {
        "aegpo/__init__.py": "",
        "aegpo/a.py": "from aegpo import b",
        "aegpo/b.py": "from aegpo.c import x",
        "aegpo/c.py": "def f():\n    import aegpo.a",
    }
    assert find_cycle(import_graph(files)) == ["aegpo.a", "aegpo.b", "aegpo.c"]
    files["aegpo/c.py"] = ""
    assert find_cycle(import_graph(files)) == []
