"""The bundled Shapes world: prompts, their pictures and a small pipeline.

The names below load on first use: the language of the world (`prompts`) needs the standard library
only, the pipeline needs diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aegpo.shapes.pipeline import load_pipeline
    from aegpo.shapes.prompts import Group, Scene, near_misses, parse
    from aegpo.shapes.render import render_batch, shape_mask
    from aegpo.shapes.splits import records, split

__all__ = [
    "Group",
    "Scene",
    "load_pipeline",
    "near_misses",
    "parse",
    "records",
    "render_batch",
    "shape_mask",
    "split",
]

_MODULES = {
    "load_pipeline": "pipeline",
    "records": "splits",
    "render_batch": "render",
    "shape_mask": "render",
    "split": "splits",
}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'prompts')}"), name)
