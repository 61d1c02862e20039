"""A connection for an operator's command: the right database, and a missing privilege named with its GRANT."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from outboxd import errors, inspection, privileges, session
from outboxd.load import session_dsn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.config import Config
    from outboxd.load import Loaded
    from outboxd.privileges import RoleKind

_PRIVILEGE = "42501"


@contextlib.asynccontextmanager
async def opened(loaded: Loaded, kind: RoleKind, *, name: str) -> AsyncIterator[asyncpg.Connection]:
    """
    Open a connection for one command.

    Args:
        loaded: Tells where the database is, and what must be there.
        kind: What the command does; decides which GRANTs are named when one is missing.
        name: The command, as `pg_stat_activity` shows it.

    Raises:
        SchemaError: Not migrated; or a privilege is missing, also when that shows inside.
        ConfigError, StoreUnavailable: As `session.connect`.
        OutboxdError: Whatever fails inside, translated.
    """
    async with session.visit(session_dsn(loaded), name=name) as connection:
        try:
            await inspection.require_schema(connection, loaded.config)
            yield connection
        except Exception as exc:
            if not _is_about_privileges(exc):
                raise
            raise errors.SchemaError(_text(exc, name), hint=await _grants(connection, loaded.config, kind)) from exc


def _is_about_privileges(exc: BaseException) -> bool:
    return _PRIVILEGE in (getattr(exc, "sqlstate", ""), getattr(exc.__cause__, "sqlstate", ""))


def _text(exc: Exception, name: str) -> str:
    return str(exc) if isinstance(exc, errors.OutboxdError) else f"{name}: {exc}"


async def _grants(connection: asyncpg.Connection, config: Config, kind: RoleKind) -> str:
    role = await connection.fetchval("SELECT current_user::text")
    missing = await privileges.missing_grants(connection, config, role, kind)
    if not missing:
        return "Run `outboxd check`: it names the missing GRANT."
    return "As the owner of the schema, run:\n" + "\n".join(f"  {statement}" for statement in missing)
