"""
How far each backfill has come: in PostgreSQL, or in Redis for those who share it with an existing installation.

    never seen -> (0, 1)
    under way  -> (lowest key not done, version); of uuid keys the last one done
    finished   -> (0, version that was run + 1)

In PostgreSQL the watermark moves in the transaction that writes the messages: a crash neither skips nor repeats a
batch. In Redis it moves after it, by compare-and-set: a crash in between repeats one batch, and a stale walker cannot
move it back (I12).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import structlog

from outboxd import errors, sql
from outboxd.dsn import masked
from outboxd.source import FRESH

if TYPE_CHECKING:
    from outboxd.session import Fetch, Session

log = structlog.get_logger()

_STATEMENTS = sql.load("backfill.sql")
REDIS_TIMEOUT_S = 5.0
VERSION_MAX = 2**31 - 1
# Moves the key only from the value that was read; a missing key is read as an empty text.
_COMPARE_AND_SET = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2])
    return 1
end
return 0
"""

Result = TypeVar("Result")


class State(msgspec.Struct, frozen=True):
    """Where the walk of a table is."""

    low_bound: str = FRESH
    version: int = 1


def next_step(state: State, target: int) -> State | None:
    """Tell where a walk with the version *target* goes on; None when there is nothing to walk."""
    if target <= 0 or state.version > target:
        return None
    return state if state.version == target else State(FRESH, target)


Work = Callable[["Fetch", State], Awaitable[tuple[Result, State]]]
"""Writes a batch inside a transaction; returns what came of it, and where the walk is then."""


class Watermarks(Protocol):
    """
    Where watermarks are kept. Every method may raise StoreUnavailable, SchemaError or WatermarkError.

    Attributes:
        missing: Walks that began at the lowest key because Redis has no watermark of theirs: new, or lost.
        failures: How often the store did not answer.
    """

    missing: int
    failures: int

    async def get_processing_state(self, table: str) -> State:
        """Tell where the walk of a table is; (0, 1) when it was never seen."""

    async def set_processing_state(self, table: str, state: State) -> None:
        """Set it, whatever it was: for people who rewind or skip."""

    async def advance(self, table: str, work: Work[Result]) -> Result:
        """Do one batch and move the watermark to where it ended."""

    async def close(self) -> None:
        """Close what was opened."""


class PostgresWatermarks:
    """
    Watermarks in `outboxd.backfill_watermark`.

    Args:
        session: The session that writes the batches.
        schema: Of outboxd's own tables.
    """

    def __init__(self, session: Session, schema: str) -> None:
        self._session = session
        self.missing = self.failures = 0
        renderer = sql.Renderer({"schema": sql.quote(schema)}, {})
        names = ("watermark", "lock_watermark", "move_watermark")
        self._sql = {name: renderer.render(_STATEMENTS[name]) for name in names}

    async def get_processing_state(self, table: str) -> State:
        """Tell where the walk of a table is; (0, 1) when it was never seen."""
        rows = await self._session.fetch(f"reading the watermark of {table}", self._sql["watermark"], table)
        return State(*rows[0]) if rows else State()

    async def set_processing_state(self, table: str, state: State) -> None:
        """Set it, whatever it was."""
        async with self._session.transaction(f"setting the watermark of {table}") as fetch:
            await fetch(self._sql["lock_watermark"], table, FRESH, 1)
            await fetch(self._sql["move_watermark"], table, state.low_bound, state.version)

    async def advance(self, table: str, work: Work[Result]) -> Result:
        """Do one batch and move the watermark in its transaction: exactly once."""
        async with self._session.transaction(f"backfilling {table}") as fetch:
            rows = await fetch(self._sql["lock_watermark"], table, FRESH, 1)
            before = State(*rows[0])
            result, after = await work(fetch, before)
            if after != before:
                await fetch(self._sql["move_watermark"], table, after.low_bound, after.version)
        return result

    async def close(self) -> None:
        """Nothing is open beside the session, which is not ours."""


class RedisWatermarks:
    """
    Watermarks in Redis: key `outbox_backfill.<table>`, value `[low_bound, version]` as JSON.

    Args:
        session: The session that writes the batches.
        url: Tells where Redis is, asked at every reconnect.
    """

    def __init__(self, session: Session, url: Callable[[], str]) -> None:
        self._session = session
        self._url = url
        self.missing = self.failures = 0
        self._client: Any = _client_of(self._url())

    async def get_processing_state(self, table: str) -> State:
        """Tell where the walk of a table is; (0, 1) when the key is missing."""
        return _parsed(table, await self._get(table))

    async def set_processing_state(self, table: str, state: State) -> None:
        """Set it, whatever it was."""
        await self._call("SET", _key(table), _encoded(state))

    async def advance(self, table: str, work: Work[Result]) -> Result:
        """
        Write a batch, then move the watermark, unless somebody else has moved it meanwhile: at least once.

        The watermark is written before, too, as it is: a Redis that can be read but not written must not have a batch
        written again and again.
        """
        raw = await self._get(table)
        before = _parsed(table, raw)
        if not raw:
            self.missing += 1
            log.warning("backfill.watermark_missing", table=table, key=_key(table))
        if not await self._call("EVAL", _key(table), raw, _encoded(before)):
            raise errors.WatermarkError(f"redis key {_key(table)} was moved by somebody else at this moment")
        async with self._session.transaction(f"backfilling {table}") as fetch:
            result, after = await work(fetch, before)
        if after != before and not await self._call("EVAL", _key(table), _encoded(before), _encoded(after)):
            log.warning("backfill.superseded", table=table, key=_key(table))
        return result

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _get(self, table: str) -> str:
        return await self._call("GET", _key(table)) or ""

    async def _call(self, command: str, key: str, *arguments: Any) -> Any:
        import redis.asyncio as redis

        if self._client is None:
            self._client = _client_of(self._url())
        try:
            if command == "EVAL":
                return await self._client.eval(_COMPARE_AND_SET, 1, key, *arguments)
            return await self._client.execute_command(command, key, *arguments)
        except Exception as exc:  # of the network, the driver, or what it reads
            if isinstance(exc, redis.ResponseError) and str(exc).startswith("WRONGTYPE"):
                raise errors.WatermarkError(f"redis key {key} holds something that is no text") from exc
            self.failures += 1
            await self._forget()
            raise errors.StoreUnavailable(
                f"redis at {masked(self._url())}: {exc}", hint="Backfills wait for it; the drain does not need it."
            ) from exc

    async def _forget(self) -> None:
        """Connect anew next time: the address may have changed."""
        client, self._client = self._client, None
        if client is not None:
            try:
                await client.aclose()
            except Exception as exc:
                log.debug("backfill.redis_not_closed", error=str(exc))


async def ping(url: str) -> None:
    """
    Ask Redis whether it is there.

    Raises:
        ConfigError: The URL cannot be used.
        StoreUnavailable: Nobody answers, or the login is refused.
    """
    client = _client_of(url)
    try:
        await client.ping()
    except Exception as exc:  # of the network, the driver, or what answers there
        hint = "Look whether Redis runs there, and whether redis_url is right; backfills wait for it."
        raise errors.StoreUnavailable(f"redis at {masked(url)}: {exc}", hint=hint) from exc
    finally:
        await client.aclose()


def _client_of(url: str) -> Any:
    """Make a client; it connects when it is first used."""
    import redis.asyncio as redis  # only who keeps watermarks there pays for it

    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            retry=None,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an unknown parameter would be noticed only there
    except Exception:  # its words may hold a piece of the password
        raise errors.ConfigError(
            ["redis_url is no URL that can be used"],
            hint="In a password, @ : / ? # [ ] and % must be percent-encoded; parameters are those of redis-py.",
        ) from None
    return client


def _key(table: str) -> str:
    return f"outbox_backfill.{table}"


def _encoded(state: State) -> str:
    """Write whole numbers as such, for those who read the key beside us."""
    is_number = state.low_bound == str(_number(state.low_bound))
    low_bound = int(state.low_bound) if is_number else state.low_bound
    return msgspec.json.encode([low_bound, state.version]).decode()


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _parsed(table: str, raw: str) -> State:
    if not raw:
        return State()
    try:
        low_bound, version = msgspec.json.decode(raw, type=tuple[int | str, int])
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise errors.WatermarkError(
            f"redis key {_key(table)} holds {raw[:60]!r}, not [low_bound, version]",
            hint="Delete the key to walk the table from its beginning, or set it with `outboxd backfill rewind`.",
        ) from None
    if not 0 <= version <= VERSION_MAX:
        raise errors.WatermarkError(f"redis key {_key(table)} holds the version {version}, which none can be")
    return State(str(low_bound), version)
