"""Which policy can be exported in which format, said before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aegpo import policies
from aegpo.planning.policy_size import policy_of
from aegpo.policies.adapters.layouts import Layout
from aegpo.policies.exportable import Exportable


def check_layout(factory: Callable[..., Any], layout: Layout) -> None:
    """Refuse a format that a policy is not written in.

    Args:
        factory: What builds the policy; one that is no class is left to its fate.
        layout: What was asked for.

    Raises:
        ValueError: If there is no such format for it.
    """
    policy, arguments = policy_of(factory)
    if policy is None or not issubclass(policy, Exportable):
        return
    can = policy.layouts(arguments)
    if layout in can:
        return
    if arguments.get("full_finetuning"):
        why = "full fine-tuning trained all weights, and there are no adapters"
    elif layout == "merged":
        why = f"quantize={arguments.get('quantize')} stores the weights in fewer bits"
    else:
        why = (
            "diffusers could not load it back, so that it could not be checked; it can for "
            f"{', '.join(policies_with(layout))}"
        )
    raise ValueError(
        f"--format {layout} does not go with {policy.__name__}: {why}; here there is "
        f"{', '.join(can)}"
    )


def policies_with(layout: Layout) -> list[str]:
    """Name the families of the package that have a format.

    Args:
        layout: The format.

    Returns:
        Names of classes, in the order of the package's face.
    """
    named = [(name, getattr(policies, name)) for name in policies.__all__]
    return [
        name
        for name, kind in named
        if isinstance(kind, type) and issubclass(kind, Exportable) and layout in kind.layouts({})
    ]
