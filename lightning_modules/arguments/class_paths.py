"""Where a class of ours is to be found now, for configs that name a module it has left."""

from __future__ import annotations

from lightning_modules.arguments.sources import OUR_PACKAGES, public_names


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
