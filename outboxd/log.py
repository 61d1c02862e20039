"""
The log: structlog on stderr, one event a line, stable dotted names with data in keys.

Standard output belongs to results. Libraries and receivers that use `logging` come out in the same form.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import structlog

from outboxd import dsn

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]

_DSN_KEYS = ("dsn", "session_dsn", "redis_url", "url")
_SECRET_WORDS = ("password", "passwd", "secret", "token", "api_key", "authorization")


class _Writer:
    """Writes lines; a closed or broken stderr must never stop a delivery."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    log = debug = info = warning = error = critical = exception = msg


class _Handler(logging.Handler):
    """Hands records of the standard library to our writer."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.msg(self.format(record))
        except Exception:  # as the standard library does: a bad record is shown, not raised
            self.handleError(record)


def configure(format: Format = "auto", level: Level = "info", *, stream: TextIO | None = None) -> None:  # noqa: A002
    """
    Set up logging for this process; may be called again, and loggers already made follow.

    Args:
        format: `auto` is `console` on a terminal and `json` elsewhere.
        level: Events below it cost one call that does nothing.
        stream: Where to write; None means stderr.
    """
    target = stream or sys.stderr
    writer = _Writer(target)
    renderer = _renderer(format, target)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_shared(), renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    _configure_standard_library(writer, renderer, number)


def configure_as_library() -> None:
    """Hand events to the standard library's logging, unless the application has set structlog up for itself."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def get(**context: Any) -> FilteringBoundLogger:
    """
    Return a logger that follows `configure`, with *context* in every event.

    Safe at import. In a hot loop call `.bind()` once: what comes back skips the look-up of the
    configuration at each call, and keeps the level it was made with.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(**context))


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hide passwords: in DSNs, under keys that name a secret, and in URLs inside any text."""
    for key, value in event.items():
        if key in _DSN_KEYS and isinstance(value, str):
            event[key] = dsn.masked(value)
        elif _names_secret(key) and value:
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = dsn.masked_within(value)
        elif isinstance(value, BaseException):
            event[key] = dsn.masked_within(f"{type(value).__name__}: {value}")
    return event


@functools.lru_cache(maxsize=1_000)
def _names_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_WORDS)


def _shared() -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_secrets,  # last: it must also see the traceback
    ]


def _renderer(format: Format, target: TextIO) -> Processor:  # noqa: A002
    is_terminal = target.isatty()
    if format == "json" or (format == "auto" and not is_terminal):
        return structlog.processors.JSONRenderer(default=str)
    return structlog.dev.ConsoleRenderer(
        colors=is_terminal and "NO_COLOR" not in os.environ,
        # Richer tracebacks show local variables, and so whatever secrets they hold.
        exception_formatter=structlog.dev.plain_traceback,
    )


def _configure_standard_library(writer: _Writer, renderer: Processor, number: int) -> None:
    handler = _Handler(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_shared()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Handler)] + [handler]
    # Details of libraries are nobody's debug output here.
    root.setLevel(max(number, logging.INFO))
