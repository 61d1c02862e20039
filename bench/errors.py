"""What a benchmark may run into and go on without."""

from __future__ import annotations

import asyncpg

from outboxd.errors import OutboxdError


class FailedError(Exception):
    """A measure did not come to its end, or something was found wrong: it counts for nothing, and the others go on."""


TROUBLE = (FailedError, asyncpg.PostgresError, asyncpg.InterfaceError, OutboxdError, OSError)
"""What one measure may end with, without ending the run."""


def described(group: BaseExceptionGroup[Exception]) -> str:
    """Return what the errors of a group say, and of the groups in it."""
    return "; ".join(
        described(each)
        if isinstance(each, BaseExceptionGroup)
        else "\n".join(filter(None, (str(each) or type(each).__name__, _hint(each))))
        for each in group.exceptions
    )


def _hint(exc: Exception) -> str:
    return exc.hint if isinstance(exc, OutboxdError) else ""
