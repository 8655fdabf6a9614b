"""Where a class of ours is to be found now, for configs that name a module it has left."""

from __future__ import annotations

import pkgutil
from importlib import import_module

OUR_PACKAGES = ("aegpo", "lightning_modules", "datamodules", "callbacks")


def present_path(class_path: str) -> str | None:
    """Find the class path by which a class of ours is named now.

    Args:
        class_path: What was given, for instance ``aegpo.losses.StdWeight``.

    Returns:
        The path to give instead, for instance ``aegpo.objectives.StdWeight``; None if the path is
        not one of ours, if no package of ours has such a class, or if that is its path already.
    """
    module, _, name = class_path.rpartition(".")
    if module.partition(".")[0] not in OUR_PACKAGES:
        return None
    face = public_names().get(name)
    return None if face is None or face == module else f"{face}.{name}"


def public_names() -> dict[str, str]:
    """Look up what our packages, and those one level below them, list in ``__all__``.

    Returns:
        For each public name the package under which it is public, whichever file it stands in.
    """
    faces = list(map(import_module, OUR_PACKAGES))
    faces += [
        import_module(found.name)
        for package in tuple(faces)
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if found.ispkg
    ]
    return {name: face.__name__ for face in faces for name in getattr(face, "__all__", ())}
