"""Where nothing is said a policy does what its pipeline does, but for what the docs list."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from aegpo import policies
from aegpo.policies.diffusers_policy import DiffusersPolicy

ROOT = Path(__file__).parents[3]
FAMILIES = [
    family
    for name in policies.__all__
    if isinstance(family := getattr(policies, name), type) and issubclass(family, DiffusersPolicy)
]
BY_MODEL = {
    ("Flux", "guidance_scale"),
    ("Flux2", "guidance_scale"),
    ("Flux2Klein", "guidance_scale"),
}
"""None stands for the pipeline's own where the model takes guidance; checked with the families."""
UNUSED = {("QwenImage", "guidance_scale")}
"""Arguments of the base class that the family's constructor does not pass on."""


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def own_defaults(family: type[DiffusersPolicy]) -> dict[str, Any]:
    """Defaults of the constructor and of those that it hands the rest on to."""
    found: dict[str, Any] = {}
    for parent in reversed(family.__mro__):
        if "__init__" in vars(parent):
            found |= defaults(parent.__init__)
    return found


def test_what_differs_from_diffusers_is_in_the_documentation() -> None:
    assert len(FAMILIES) == 9
    differing = {}
    for family in FAMILIES:
        own, theirs = own_defaults(family), defaults(family.pipeline_class.__call__)
        for name in own.keys() & theirs.keys():
            place = (family.__name__, name)
            # No negative text and an empty one are one to a pipeline.
            if (own[name] or None) == (theirs[name] or None) or place in BY_MODEL | UNUSED:
                continue
            differing[place] = (own[name], theirs[name])
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs/policies.md").read_text(),
        re.MULTILINE,
    )
    assert differing == {(c, a): (float(ours), float(theirs)) for c, a, ours, theirs in rows}


def test_guidance_that_the_model_takes_is_the_pipelines_own() -> None:
    for family in (policies.Flux, policies.Flux2):
        theirs = defaults(family.pipeline_class.__call__)["guidance_scale"]
        assert family.default_guidance == theirs
    arguments = own_defaults(policies.Flux2Klein) | {"guidance_scale": None}
    theirs = defaults(policies.Flux2Klein.pipeline_class.__call__)["guidance_scale"]
    assert policies.Flux2Klein.classifier_free_guidance(arguments) == theirs
