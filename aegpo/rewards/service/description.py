"""What a service says of the reward that it serves, written at one end and read at the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aegpo import __version__
from aegpo.rewards.base import Reward
from aegpo.rewards.service.wire import PROTOCOL, Limits, UnusableMessage


@dataclass(frozen=True)
class Description:
    """A served reward, as far as whoever asks it must know it.

    Args:
        name: Its name there.
        digest: Fingerprint of its configuration.
        range: Lowest and highest score, or None.
        deterministic: Whether the same image and prompt always score the same.
        groupwise: Whether a score depends on the other images of a prompt.
        parts: Weight of each component, 0 for one that is only watched.
        images: Images that a request may hold.
    """

    name: str
    digest: str
    range: tuple[float, float] | None
    deterministic: bool
    groupwise: bool
    parts: dict[str, float]
    images: float

    def differs(self, groupwise: bool, parts: Mapping[str, float], batch: int) -> str | None:
        """Say what a configuration has otherwise, and what to set.

        Args:
            groupwise: Whether it takes the reward for groupwise.
            parts: The components that it expects, with their weights.
            batch: Images that it puts into a request.

        Returns:
            One line, or None if nothing differs.
        """
        if self.groupwise != groupwise:
            says = "groupwise" if self.groupwise else "not groupwise"
            return f"serves a reward that is {says}; set groupwise: {str(self.groupwise).lower()}"
        if self.parts != dict(parts):
            wanted = json.dumps(self.parts) if self.parts else "null"
            return f"serves other parts than {json.dumps(dict(parts))}; set parts: {wanted}"
        if batch > self.images:
            return (
                f"takes {self.images:g} images at a time, fewer than batch={batch}; set batch: "
                f"{self.images:g}, or serve with more --max_images"
            )
        return None


def describe(reward: Reward, digest: str, limits: Limits) -> dict[str, Any]:
    """Say what is served.

    Args:
        reward: The reward, set up.
        digest: Fingerprint of its configuration.
        limits: What a request may hold.

    Returns:
        Plain values.
    """
    bounds = reward.range
    finite = bounds is not None and all(map(math.isfinite, bounds))  # JSON knows no infinity
    return {
        "protocol": PROTOCOL,
        "name": reward.name,
        "class_path": f"{type(reward).__module__}.{type(reward).__qualname__}",
        "digest": digest,
        "versions": {"aegpo": __version__, "torch": torch.__version__},
        "range": list(bounds) if bounds is not None and finite else None,
        "deterministic": reward.deterministic,
        "groupwise": reward.groupwise,
        "parts": {name: float(reward.part_weights.get(name, 0.0)) for name in reward.part_names},
        "limits": {
            "images": limits.images,
            "pixels": limits.pixels,
            "megabytes": limits.megabytes,
        },
    }


def read_description(body: bytes) -> Description:
    """Read what `describe` says.

    Args:
        body: As JSON.

    Returns:
        The description; what a service of another maker leaves out has its default.

    Raises:
        UnusableMessage: If it is none, in words that follow an address.
    """
    try:
        read = json.loads(body)
        if read["protocol"] != PROTOCOL:
            raise UnusableMessage(
                f"speaks protocol {read['protocol']}, not {PROTOCOL}; update the older end"
            )
        bounds = read.get("range")
        return Description(
            name=str(read.get("name", "")),
            digest=str(read["digest"]),
            range=None if bounds is None else (float(bounds[0]), float(bounds[1])),
            deterministic=bool(read.get("deterministic", True)),
            groupwise=bool(read.get("groupwise", False)),
            parts={str(name): float(one) for name, one in (read.get("parts") or {}).items()},
            images=float((read.get("limits") or {}).get("images", math.inf)),
        )
    except UnusableMessage:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UnusableMessage("is no service of `aegpo serve-reward`") from None
