"""
Every error that outboxd raises on purpose.

    OutboxdError
    ├── UsageError                  exit 2    the command line asks for something that cannot be
    ├── ConfigError                 exit 78   the configuration is wrong (all problems at once)
    ├── SchemaError                 exit 78   the database lacks a table, column or index
    │   └── PrivilegeError          exit 78   ... or a privilege
    ├── PoolerError                 exit 78   a connection pooler stands where session locks are needed
    ├── FleetError                  exit 78   a living daemon has other outboxes or sharding columns
    ├── StoreUnavailable            exit 69   database or Redis cannot be reached; worth trying again
    ├── StatementFailed             exit 1    the database refused a statement (locked, timed out, broken)
    ├── ActRefused                  exit 1    an operator's act cannot be done as things are; nothing was changed
    ├── WatermarkError              exit 78   what stands as a backfill's watermark is none
    ├── InvalidOutboxError          exit 2    a message that breaks the rules; nothing was written
    ├── OutboxContextError                    outbox_context is used in a way that cannot work; nothing was written
    ├── OutboxFlushError                      a receiver failed while messages were flushed
    ├── OutboxRecursionLimitError             receivers kept writing messages, round after round
    ├── RetryLater                            raised by a receiver: try again after so many seconds
    └── Discard                               raised by a receiver: bury this message

Messages are lower case without a full stop; `hint` is a sentence that says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outboxd.model import Message


class OutboxdError(Exception):
    """Base of all errors of outboxd."""

    exit_code = 1

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.hint = hint


class UsageError(OutboxdError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(OutboxdError):
    """
    The configuration is wrong.

    Args:
        problems: One line each, every one naming its key; never empty.
    """

    exit_code = 78

    def __init__(self, problems: list[str], *, source: str = "", hint: str = "") -> None:
        where = f" in {source}" if source else ""
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count}{where}:\n" + "\n".join(f"  - {p}" for p in problems), hint=hint)
        self.problems = problems


class SchemaError(OutboxdError):
    """The database lacks a table, column, index or privilege."""

    exit_code = 78


class PrivilegeError(SchemaError):
    """The role that connects lacks a privilege."""


class PoolerError(OutboxdError):
    """A connection pooler stands between outboxd and the database, where session locks are needed."""

    exit_code = 78


class FleetError(OutboxdError):
    """A living daemon on this database has other outboxes or sharding columns."""

    exit_code = 78


class StoreUnavailable(OutboxdError):  # noqa: N818  named for the state, as the field does
    """The database cannot be reached."""

    exit_code = 69


class StatementFailed(OutboxdError):  # noqa: N818
    """The database refused a statement; `sqlstate` says why."""

    def __init__(self, message: str, *, sqlstate: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class ActRefused(OutboxdError):  # noqa: N818
    """An operator's act cannot be done as things are in the database; nothing was changed."""


class WatermarkError(OutboxdError):
    """What stands as the watermark of a backfill is none."""

    exit_code = 78


class InvalidOutboxError(OutboxdError):
    """A message breaks the rules of its outbox; nothing was written."""

    exit_code = 2


class OutboxContextError(OutboxdError):
    """outbox_context is used in a way that cannot work."""


class OutboxFlushError(OutboxdError):
    """A receiver failed while messages were flushed; the message stays in the outbox."""

    def __init__(self, text: str, message: Message | None = None) -> None:
        super().__init__(text)
        self.message = message


class OutboxRecursionLimitError(OutboxdError):
    """Receivers kept writing messages: the outbox was not empty after the last round."""


class RetryLater(OutboxdError):  # noqa: N818  an instruction, not a fault
    """
    Raised by a receiver to choose the delay before the next try.

    Args:
        delay_s: Seconds, 0 to 30 days. Counts as a failed attempt.
    """

    def __init__(self, delay_s: float, reason: str = "") -> None:
        self.delay_s = float(delay_s)
        if not 0 <= self.delay_s <= 30 * 86_400:
            raise ValueError(f"delay_s must be between 0 and 30 days, got {delay_s!r}")
        super().__init__(str(reason) or f"the receiver asks for another try in {self.delay_s:g} s")


class Discard(OutboxdError):  # noqa: N818
    """Raised by a receiver to bury the message: it leaves the outbox and is kept as a dead letter."""

    def __init__(self, reason: str) -> None:
        self.reason = str(reason)
        super().__init__(self.reason)
