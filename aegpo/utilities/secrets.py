"""Takes out of a config what nobody else may read, before it is published or printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""Stands where a secret stood."""

_NAMES = (
    r"(?:api|access|private|secret)_?key|(?:\w+_)?(?:token|secret|password|passwd|credentials?)"
)
_SECRET = re.compile(_NAMES, re.IGNORECASE)
_ENVIRONMENT = re.compile(r"[A-Z_][A-Z0-9_]*")
_IN_TEXT = (  # what stands in the group stays
    re.compile(r"(://)[^/\s@]+(?=@)"),  # user:password of an address
    re.compile(rf"([?&](?:{_NAMES}|key|sig|[\w-]*signature)=)[^&#\s]+", re.IGNORECASE),
    re.compile(r"()\b(?:sk-|hf_|gh[a-z]_|github_pat_|AKIA|xox[a-z]-)[\w-]{12,}"),  # by their look
)


def without_secrets(value: Any) -> Any:
    """Hide passwords in addresses, values under names such as `api_key`, and what looks like a key.

    Args:
        value: A plain value, or dicts and lists of such, however deep. A value under a name that
            ends with `_env` stays if it has the form of an environment variable's name.

    Returns:
        The same, with `HIDDEN` in the place of each secret.
    """
    if isinstance(value, str):
        for pattern in _IN_TEXT:
            value = pattern.sub(rf"\1{HIDDEN}", value)
        return value
    if isinstance(value, Mapping):
        return {name: _under(str(name), entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry) for entry in value]
    return value


def _under(name: str, value: Any) -> Any:
    if isinstance(value, str):
        variable = name.lower().endswith("_env")
        if _SECRET.fullmatch(name) or (variable and not _ENVIRONMENT.fullmatch(value)):
            return HIDDEN
    return without_secrets(value)
