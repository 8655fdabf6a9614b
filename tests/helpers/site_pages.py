"""The documentation's pages as people read them: their commands, programs and tables."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
SHELLS = ("", "bash", "sh", "console", "shell")
PROGRAMS = ("aegpo", "lightning", "python", "make", "torchrun", "srun", "tensorboard", "vllm", "hf")
"""First words of lines that are commands; what else stands in a block is output or a program."""


@contextmanager
def reading_in(folder: Path) -> Iterator[None]:
    """Be in a reader's folder, whose modules, named as other readers', are the only ones."""
    names = ("my_module", "my_reward", "my_rewards", "own_selector")

    def forget() -> None:
        for name in names:
            sys.modules.pop(name, None)

    with pytest.MonkeyPatch.context() as patch:
        forget()
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield
        forget()


def blocks(page: Path) -> list[Token]:
    """Fenced and indented blocks of a page, in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [token for token in tokens if token.type in ("fence", "code_block")]


def language(block: Token) -> str:
    return block.info.strip().split(" ")[0]


def lines(block: Token) -> list[str]:
    """Its lines, those that go on after a backslash as one."""
    return re.sub(r"\\\n\s*", " ", block.content).splitlines()


def commands(page: Path, shells: tuple[str, ...] = SHELLS) -> list[list[str]]:
    """Words of every command in the blocks of a page, without comments."""
    found = []
    for block in blocks(page):
        for line in lines(block) if language(block) in shells else ():
            typed = line.strip().removeprefix("$ ").replace("$(which aegpo)", "aegpo")
            if re.match(rf"({'|'.join(PROGRAMS)}) ", typed):
                found.append(shlex.split(typed, comments=True))
    return found


def commands_in_text(page: Path) -> list[list[str]]:
    """Words of the commands of ours that stand in sentences and tables, with all they need."""
    text = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    code = [
        child.content for token in text for child in token.children or () if "code" in child.type
    ]
    typed = [shlex.split(words) for words in code if re.match(r"aegpo [\w-]+ .*--config \S", words)]
    return [words for words in typed if not any(len(word) > 1 and "…" in word for word in words)]


def row_starts(page: Path, heading: str) -> list[str]:
    """First cells, without their backticks, of the table under a heading."""
    text = page.read_text(encoding="utf-8")
    table = text[text.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().strip("`") for row in table]
