"""What led to an exception, however deep libraries have wrapped it."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error itself and what led to it, by cause or, where none is named, by context.

    Args:
        error: Any exception.

    Yields:
        Exceptions from the outermost to the first.
    """
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
