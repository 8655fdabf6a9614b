"""The examples in docstrings are specification: every module that has one says the truth."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("aegpo", "callbacks", "datamodules", "lightning_modules")

# Only modules with examples are imported: the others cost seconds and have nothing to show.
WITH_EXAMPLES = [
    file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]

CENTRAL = {
    "aegpo.advantages.group_relative.GroupRelative",
    "aegpo.allocation.allocators.MedianSplitAllocator",
    "aegpo.allocation.sharding.shard",
    "aegpo.entropy.reading.delta_entropy",
    "aegpo.exploration.schedule.ExplorationSchedule.fit",
    "aegpo.exploration.windows.SlidingWindow",
    "aegpo.noise.KeyedNoise.normal",
    "aegpo.objectives.surrogate.surrogate",
    "aegpo.planning.counts.Range",
    "aegpo.rollout.tree.RolloutTree.backup",
}
"""What a reader learns the rules from."""


def examples(file: Path) -> list[doctest.DocTest]:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(importlib.import_module(name.removesuffix(".__init__")))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_of_docstrings_hold(file: Path) -> None:
    tests = examples(file)
    assert tests  # `>>> ` stands in a docstring, where it is found
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_central_values_have_examples() -> None:
    missing = CENTRAL - {test.name for file in WITH_EXAMPLES for test in examples(file)}
    assert not missing
