"""The key of a service, which stands in the environment and nowhere else."""

from __future__ import annotations

import hmac
import os
import re


def key_from(variable: str) -> str:
    """Read a key from an environment variable.

    Args:
        variable: Its name.

    Returns:
        The key.

    Raises:
        ValueError: If it is not set, or cannot be sent in a header.
    """
    key = os.environ.get(variable, "")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError(  # what was given is not repeated: it may be the key
            "api_key_env names no environment variable that is set to a key of visible ASCII "
            "characters; give the name of the variable that holds the key, not the key"
        )
    return key


def bearer(key: str) -> dict[str, str]:
    """The header that brings a key along."""
    return {"Authorization": f"Bearer {key}"}


def opens(given: str | None, key: str) -> bool:
    """Whether a request's header brings the key; takes as long for a wrong one as for the right.

    Args:
        given: The header ``Authorization``, or None.
        key: The service's key.

    Returns:
        Whether it does.
    """
    expected = bearer(key)["Authorization"].encode()
    return hmac.compare_digest((given or "").encode("utf-8", "surrogateescape"), expected)
