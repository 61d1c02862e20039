"""Access to the database: a connection for an operator's command, and a missing privilege named with its GRANT."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

from outboxd import errors, inspection, privileges, session
from outboxd.load import session_dsn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.load import Loaded
    from outboxd.privileges import RoleKind

GRANTS_S_MAX = 15.0
"""How long an error waits for its GRANTs to be found."""


@contextlib.asynccontextmanager
async def opened(loaded: Loaded, kind: RoleKind, *, name: str) -> AsyncIterator[asyncpg.Connection]:
    """
    Open a connection for one command.

    Args:
        loaded: Tells where the database is, and what must be there.
        kind: What the command does; decides which GRANTs are named when one is missing.
        name: The command, as `pg_stat_activity` shows it.

    Raises:
        SchemaError: Not migrated.
        PrivilegeError: Also when that shows inside.
        ConfigError, StoreUnavailable: As `session.connect`.
        OutboxdError: Whatever fails inside, translated.
    """
    dsn = functools.partial(session_dsn, loaded)
    async with naming_grants(dsn, loaded.config, kind), session.visit(dsn(), name=name) as connection:
        await inspection.require_schema(connection, loaded.config)
        yield connection


@contextlib.asynccontextmanager
async def naming_grants(dsn: Callable[[], str], config: Config, kind: RoleKind) -> AsyncIterator[None]:
    """Name the GRANTs in the error, when a privilege turns out to be missing inside."""
    try:
        yield
    except errors.SchemaError as exc:
        await name_grants(exc, dsn, config, kind)
        raise


async def require_outbox(connection: asyncpg.Connection, outbox: OutboxConfig) -> None:
    """
    Refuse to drain an outbox whose deliveries could not be settled: they would be made again and again.

    Raises:
        PrivilegeError: Names the GRANTs.
    """
    with inspection.translated(f"looking at table {outbox.table}"):
        missing = await privileges.missing_on_outbox(connection, outbox)
    _refuse(missing, f"table {outbox.table}")


async def require_own_tables(dsn: Callable[[], str], config: Config) -> None:
    """
    Refuse to drain where failures could not be written down.

    Raises:
        PrivilegeError: Names the GRANTs.
    """
    async with session.visit(dsn(), name="inspect") as connection:
        missing = await privileges.missing_on_schema(connection, config)
    _refuse(missing, f"schema {config.schema}")


def _refuse(missing: list[str], what: str) -> None:
    if missing:
        raise errors.PrivilegeError(f"the role that connects lacks privileges on {what}", hint=_to_run(missing))


def _to_run(missing: list[str]) -> str:
    return "As the owner of what is named, run:\n" + "\n".join(f"  {grant}" for grant in missing)


async def name_grants(
    exc: errors.OutboxdError, dsn: Callable[[], str], config: Config, kind: RoleKind, *, walks: bool = False
) -> None:
    """
    Put the GRANTs that are missing into the hint of an error about a privilege; any other is left as it is.

    A table without a schema in its name is passed over in silence where the role may not use the schema: to the server
    there is no such table. So when something is missing, USAGE of a schema is looked for as well.

    Args:
        exc: The error; as it is, too, where no GRANT would help (a policy of the table) or nobody can be asked.
        dsn: Tells where to ask, as the role that met the error.
        config: Whose tables.
        kind: What the role is for.
        walks: As in `privileges.missing_grants`.
    """
    if not isinstance(exc, errors.SchemaError):
        return
    with contextlib.suppress(errors.OutboxdError, TimeoutError):
        async with asyncio.timeout(GRANTS_S_MAX), session.visit(dsn(), name="grants") as connection:
            role = await connection.fetchval("SELECT current_user::text")
            missing = await privileges.missing_grants(connection, config, role, kind, walks=walks)
            hides = any(grant.startswith("GRANT USAGE ON SCHEMA ") for grant in missing)
            if hides or (missing and isinstance(exc, errors.PrivilegeError)):
                exc.hint = _to_run(missing)
