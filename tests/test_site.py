"""The documentation's site: built strictly, fetching nothing, with all arguments of all classes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))  # as mkdocs finds its hooks
from docs_site import ALSO, FACES, face  # noqa: E402

NO_FIELDS = {
    # What parts hand to each other: made by them, never by a config.
    *("aegpo.objectives.LossTerms", "aegpo.sde.Coefficients", "aegpo.sde.GaussianStep"),
    "lightning_modules.AEGPOTrainer",  # Lightning's own arguments are documented there
}
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page fetches, links to and can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.classes |= set((values.get("class") or "").split())
        for name in ("id", "name"):
            self.anchors |= {values[name] or ""} if name in values else set()
        relation = values.get("rel") or ""
        if tag in FETCHED and relation not in ("canonical", "prev", "next"):
            self.fetched.append(values.get(FETCHED[tag]) or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")


def built(folder: Path, **changes: Any) -> Path:
    """Build the site into a folder."""
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **changes)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return built(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def outside(pages: dict[Path, Page]) -> Iterator[tuple[str, str]]:
    """What pages fetch from elsewhere."""
    for file, page in pages.items():
        for address in page.fetched:
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
                yield file.name, address
        for address in re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)\)|@import", page.text):
            yield file.name, address


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[tuple[str, str]]:
    """Links to files of the site, or places in them, that are not there."""
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield str(file.relative_to(site)), link
                continue
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if parts.fragment and unquote(parts.fragment) not in anchors:
                yield str(file.relative_to(site)), link


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert len(pages) > 60
    assert not list(outside(pages))
    assert not [file for file, page in pages.items() if "mermaid" in page.classes]  # unpkg.com


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1_000
    assert not list(broken(site, pages))


def test_the_checks_see_planted_faults(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(
        '<link rel="stylesheet" href="https://fonts.example/css"><script src="//cdn/x.js"></script>'
        '<style>@font-face {src: url("https://fonts.example/a.woff2")}</style>'
        '<h2 id="here">x</h2><a href="#here">a</a><a href="#gone">b</a><a href="gone.html">c</a>'
    )
    pages = {file: Page(file)}
    assert len(list(outside(pages))) == 3
    assert [link for _, link in broken(tmp_path, pages)] == ["#gone", "gone.html"]


def test_a_broken_link_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.chdir(ROOT)
    (docs / "index.md").write_text("[to a page](gone.md)\n")
    plain = {"hooks": [], "nav": None, "plugins": [], "docs_dir": str(docs)}
    with pytest.raises(MkDocsException, match="strict"):
        built(tmp_path / "site", **plain)
    (docs / "index.md").write_text("# Here\n\n[to a place](#gone)\n")
    with pytest.raises(MkDocsException, match="strict"):
        built(tmp_path / "site", **plain)


def fields(page: str, path: str) -> set[str]:
    """Arguments in the table of a class."""
    start = page.index(f'id="{path}"')
    end = page.find('<div class="doc doc-object', start)
    rows = re.findall(r'<tr class="doc-section-item">\s*<td>\s*<code>(\w+)', page[start:end])
    return set(rows)


@pytest.mark.parametrize("name", FACES)
def test_every_argument_that_a_config_may_give_is_listed(name: str, site: Path) -> None:
    page = (site / f"reference/{name}.html").read_text(encoding="utf-8")
    package = FACES[name][0]
    paths = [*ALSO.get(name, ()), *(f"{package}.{item}" for item in face(package))]
    differing = {}
    for path in paths:
        module, _, item = path.rpartition(".")
        found = getattr(importlib.import_module(module), item)
        assert f'id="{path}"' in page
        if isinstance(found, type) and path not in NO_FIELDS:
            taken = {parameter.name for parameter in get_signature_parameters(found, None)}
            if taken != fields(page, path):
                differing[path] = taken ^ fields(page, path)
    assert not differing
