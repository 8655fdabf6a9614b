"""Errors as the hub's client raises them."""

from __future__ import annotations

from huggingface_hub.errors import HfHubHTTPError


def http_error(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    """An error of one kind, of many lines."""
    # Its constructor wants the response of one HTTP library or another.
    error = kind.__new__(kind)
    error.args = ("404 Client Error.\n\nMany lines.",)
    return error
