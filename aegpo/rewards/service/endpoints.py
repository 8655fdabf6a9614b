"""The addresses of services, and how each has behaved."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aegpo.utilities.secrets import without_secrets

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds that an endpoint is left alone after its first fault, doubled with each that follows.

Without jitter: of few askers, none has to be spread, and a run's waits are those of its twin.
"""


@dataclass(eq=False)
class Endpoint:
    """One address, and how it has behaved.

    Args:
        address: Without a slash at its end.
        faults: Faults in a row.
        rests_until: When it is asked again, by `time.monotonic`.
    """

    address: str
    faults: int = 0
    rests_until: float = -math.inf

    def __str__(self) -> str:
        """As messages have it."""
        told: str = without_secrets(self.address)
        return told

    def rest(self, began: float) -> None:
        """Leave it alone after a fault of a request that began at some time.

        Requests that were under way together fail together; they count as one fault.
        """
        now = time.monotonic()
        if began >= self.rests_until:
            self.faults += 1
            self.rests_until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.faults - 1))


def endpoints_at(addresses: Sequence[str]) -> list[Endpoint]:
    """Read addresses.

    Args:
        addresses: One or more, each once.

    Returns:
        The endpoints, in their order.

    Raises:
        ValueError: If one is no address, or stands there twice, or there is none.
    """
    found = [Endpoint(_address(one)) for one in addresses]
    if not found or len({one.address for one in found}) < len(found):
        raise ValueError(
            f"endpoints={[str(one) for one in found]} must be one address or more, each once"
        )
    return found


def _address(given: str) -> str:
    """An endpoint's address without a slash at its end."""
    told = without_secrets(given)
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or any(map(str.isspace, given)):
        raise ValueError(f"endpoint {told!r} is no address; give one such as http://127.0.0.1:8190")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"endpoint {told!r} holds a password; give a key through api_key_env")
    return given.rstrip("/")
