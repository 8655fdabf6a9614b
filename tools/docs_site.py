"""MkDocs hooks: what the site shows that no file in `docs/` holds.

README, CONTRIBUTING and CHANGELOG become pages, so does every file outside `docs/` that a page
links to, and the reference has a page for each package's face and one for the commands. Links stay
as GitHub follows them, relative to the file they stand in, and are turned into the site's here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from lightning_modules.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files outside `docs/` that are pages of their own, and where they lie on the site."""

FACES = {
    "policies": ("aegpo.policies", "The model: nine families of diffusers pipelines."),
    "rewards": ("aegpo.rewards", "What an image is worth."),
    "objectives": ("aegpo.objectives", "What the updates minimize."),
    "selection": ("aegpo.selection", "Which of the images are trained on."),
    "exploration": ("aegpo.exploration", "Which steps draw noise."),
    "allocation": ("aegpo.allocation", "How many images a prompt gets."),
    "samplers": ("aegpo.samplers", "The steps without noise, if they are not Euler's."),
    "sde": ("aegpo.sde", "One stochastic step."),
    "entropy": ("aegpo.entropy", "What attention says."),
    "advantages": ("aegpo.advantages", "Rewards compared."),
    "callbacks": ("callbacks", "What watches and steers a run: `trainer.callbacks`."),
    "modules": ("lightning_modules", "The training step itself, and the pretraining modules."),
    "data": ("datamodules", "Prompts, and how they are drawn."),
}
"""Page of the reference: the package whose face it shows, and what that is."""

ALSO = {
    "data": ("datamodules.shapes_datamodule.ShapesDataModule",),
    "policies": ("aegpo.policies.diffusers_policy.DiffusersPolicy",),
}
"""Classes that are typed, or subclassed, and stand in no face."""

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ ]*$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml"}
_LARGEST = 100_000
"""Characters of a file that is shown as a page."""


@dataclass(frozen=True)
class _Target:
    """What a link points to: a path from the repository's root, and the anchor behind it."""

    path: str
    anchor: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here.

    Args:
        files: What MkDocs found in `docs/`.
        config: The site's configuration.

    Returns:
        All files.
    """
    for place, page in MOVED.items():
        files.append(File.generated(config, page, content=_read(place)))
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    sources = {file.src_uri: _repository_path(file.src_uri) for file in files.documentation_pages()}
    for page, place in sources.items():
        if page.startswith("reference/"):
            continue
        for target in _targets(_read(place), place):
            shown = _page(target.path)
            made = (ROOT / target.path).is_dir() or not target.path.startswith("docs/")
            if made and files.get_file_from_path(shown) is None:
                files.append(File.generated(config, shown, content=_source_page(target.path, page)))
    _list_the_rest(files, config)
    return files


def _list_the_rest(files: Files, config: MkDocsConfig) -> None:
    """Give the pages of `docs/` that no section of the navigation names one of their own."""
    listed = re.findall(r"[\w/]+[.]md", str(config.nav))
    pages = {file.src_uri for file in files.documentation_pages() if not file.generated_by}
    if config.nav and (rest := sorted(pages - set(listed))):
        config.nav.append({"More": rest})


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into those of the site.

    Args:
        markdown: The page as it is written.
        page: The page.
        config: The site's configuration.
        files: All files of the site.

    Returns:
        The page as the site has it.
    """
    place = _repository_path(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = _target(link[2], place)
        if target is None:
            return link[0]
        here = PurePosixPath(page.file.src_uri).parent.as_posix()
        url = get_relative_url(_page(target.path), f"{here}/" if here != "." else "")
        return f"{link[1]}{url}{target.anchor}{link[3]}"

    return _outside_fences(markdown, lambda text: _LINK.sub(moved, text))


def reference() -> dict[str, str]:
    """Write the pages of the reference: every name of a face by its docstring and signature.

    Returns:
        Their Markdown by their name.
    """
    pages = {}
    for name, (package, what) in FACES.items():
        paths = [*ALSO.get(name, ()), *(f"{package}.{item}" for item in face(package))]
        body = "\n\n".join(f"::: {path}" for path in paths)
        pages[name] = f"# `{package}`\n\n{what}\n\n{body}\n"
    rows = []
    for command in COMMANDS.values():
        rows.append(f"## `aegpo {command.name}`\n\n{command.help[0].upper()}{command.help[1:]}.\n")
        if command.method is not None:
            module = f"lightning_modules.commands{command.method}"
            rows.append(f"::: {module}.{command.name}\n    options:\n      heading_level: 3\n")
    pages["commands"] = (
        "# Commands\n\n`aegpo <command> --help` prints the same. Those with a config also take "
        "every setting of it as a flag.\n\n" + "\n".join(rows)
    )
    return pages


def face(package: str) -> list[str]:
    """Read the names that a package exports from its source.

    Args:
        package: Dotted name of one of the four packages or of a folder in them.

    Returns:
        The names of its `__all__`.

    Raises:
        PluginError: If it has none.
    """
    source = _read(f"{package.replace('.', '/')}/__init__.py")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise PluginError(f"{package} has no __all__; its page of the reference would be empty")


def _read(place: str) -> str:
    return (ROOT / place).read_text(encoding="utf-8")


def _repository_path(src_uri: str) -> str:
    """Where in the repository a page of the site is written."""
    for place, page in MOVED.items():
        if page == src_uri:
            return place
    return f"docs/{src_uri}"


def _page(place: str) -> str:
    """Where on the site a path of the repository lies."""
    if place in MOVED:
        return MOVED[place]
    if (ROOT / place).is_dir():
        return f"files/{place}/index.md"
    return place.removeprefix("docs/") if place.startswith("docs/") else f"files/{place}.md"


def _target(link: str, place: str) -> _Target | None:
    """What a link in a file of the repository points to; None if outside of it or in the file."""
    path, hash_mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return None
    found = normpath(f"{PurePosixPath(place).parent.as_posix()}/{path}")
    if not (ROOT / found).exists():
        raise PluginError(f"{place} links to {link}, and there is no {found}")
    return _Target(found, f"{hash_mark}{anchor}")


def _targets(markdown: str, place: str) -> list[_Target]:
    found: list[_Target] = []

    def collect(text: str) -> str:
        found.extend(
            target
            for link in _LINK.finditer(text)
            if (target := _target(link[2], place)) is not None
        )
        return text

    _outside_fences(markdown, collect)
    return found


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Apply a change to what stands outside of fenced blocks."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _source_page(place: str, linked_from: str) -> str:
    """A file of the repository, or the list of a folder's files, as a page."""
    path = ROOT / place
    head = f"# `{place}`\n\n"
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir() if item.name != "__pycache__")
        return head + "".join(f"- `{name}`\n" for name in names)
    text = path.read_text(encoding="utf-8")
    if len(text) > _LARGEST:
        raise PluginError(f"{linked_from} links to {place}, which is too long for a page")
    return f"{head}````{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
