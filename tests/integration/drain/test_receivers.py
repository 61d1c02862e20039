"""Whatever a receiver is and does, its delivery has one outcome and the drain goes on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import live
from tests.drains import Recorder, configure, drain_once, draining, failures, remaining, until_empty, write, write_many
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    import asyncpg

    from outboxd.model import Message

BASE_EXCEPTIONS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), StopIteration("end")]
EXCEPTIONS = [*BASE_EXCEPTIONS, TimeoutError(), BaseExceptionGroup("many", [ValueError("one"), KeyboardInterrupt()])]


def of_type(value: object) -> str:
    return type(value).__name__


async def assert_that_only_shard_1_failed(
    dsn: str, connection: asyncpg.Connection, receiver: Any, *, words: str = "", **drain: Any
) -> None:
    """Drain shards 1 (where the receiver is to fail) to 4, one after another, in one process that must live on."""
    for shard in range(1, 5):
        await write(connection, shard=shard)
    seen = Recorder()

    async with draining(dsn, {"MEMBER": [receiver, seen]}, configure(concurrency=1, **drain)) as pipeline:
        await eventually(lambda: pipeline.totals()["failures"] == 1 and pipeline.totals()["delivered"] == 3)
        await write(connection, shard=5)
        await eventually(lambda: 5 in seen.shards)

    assert sorted(seen.shards) == [2, 3, 4, 5]
    assert len(await remaining(connection)) == 1
    [failure] = await failures(connection)
    assert (failure["shard_identifier"], failure["attempts"]) == ("1", 1)
    assert words in failure["last_error"]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=of_type)
async def test_a_receiver_may_raise_anything(
    database: str, connection: asyncpg.Connection, error: BaseException
) -> None:
    async def raises(message: Message) -> None:
        if message.shard_identifier == 1:
            raise error

    await assert_that_only_shard_1_failed(database, connection, raises)


@pytest.mark.parametrize("error", BASE_EXCEPTIONS, ids=of_type)
async def test_a_receiver_may_raise_anything_after_it_was_suspended(
    database: str, connection: asyncpg.Connection, error: BaseException
) -> None:
    async def raises(message: Message) -> None:
        await asyncio.sleep(0)
        if message.shard_identifier == 1:
            raise error

    await assert_that_only_shard_1_failed(database, connection, raises)


@pytest.mark.parametrize("error", BASE_EXCEPTIONS, ids=of_type)
async def test_a_plain_function_may_raise_anything(
    database: str, connection: asyncpg.Connection, error: BaseException
) -> None:
    def raises(message: Message) -> None:
        if message.shard_identifier == 1:
            raise error

    await assert_that_only_shard_1_failed(database, connection, raises)


async def test_the_error_names_receiver_and_exception(database: str, connection: asyncpg.Connection) -> None:
    async def breaks(_message: Message) -> None:
        raise LookupError("no such organization")

    await write(connection)
    await drain_once(database, {"MEMBER": breaks})

    [failure] = await failures(connection)
    assert "breaks" in failure["last_error"]
    assert "LookupError: no such organization" in failure["last_error"]


@pytest.mark.parametrize("value", [False, 0, ValueError("returned, not raised"), object()])
async def test_what_a_receiver_returns_does_not_matter(
    database: str, connection: asyncpg.Connection, value: object
) -> None:
    async def returns(_message: Message) -> object:
        return value

    await write(connection)
    await drain_once(database, {"MEMBER": returns})

    assert await remaining(connection) == []


async def test_a_receiver_may_cancel_its_own_task_and_wait(database: str, connection: asyncpg.Connection) -> None:
    async def cancels(message: Message) -> None:
        if message.shard_identifier == 1:
            _cancel_this_task()
            await asyncio.Event().wait()

    await assert_that_only_shard_1_failed(database, connection, cancels, words="cancelled")


async def test_a_receiver_may_cancel_its_own_task_and_raise(database: str, connection: asyncpg.Connection) -> None:
    async def cancels(message: Message) -> None:
        if message.shard_identifier == 1:
            _cancel_this_task()
            raise ValueError("cancelled, then raised")

    await assert_that_only_shard_1_failed(database, connection, cancels)


@pytest.mark.parametrize("suspends", [False, True])
async def test_a_receiver_may_cancel_its_own_task_and_return(
    database: str, connection: asyncpg.Connection, suspends: bool
) -> None:
    async def cancels(message: Message) -> None:
        if suspends:
            await asyncio.sleep(0)
        if message.shard_identifier == 1:
            _cancel_this_task()

    for shard in range(1, 5):
        await write(connection, shard=shard)
    async with draining(database, {"MEMBER": cancels}, configure(concurrency=1)) as pipeline:
        await eventually(lambda: sum(pipeline.totals()[key] for key in ("delivered", "failures")) == 4)

    # Whether that is a success or a failure of its own message, it is none of another one.
    assert {failure["shard_identifier"] for failure in await failures(connection)} <= {"1"}
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE shard_identifier <> 1") == 0


def _cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def test_a_receiver_that_awaits_something_cancelled_fails(database: str, connection: asyncpg.Connection) -> None:
    async def awaits_cancelled(message: Message) -> None:
        if message.shard_identifier == 1:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

    await assert_that_only_shard_1_failed(database, connection, awaits_cancelled, words="cancelled")


async def test_a_receiver_that_does_not_return_in_time_fails(database: str, connection: asyncpg.Connection) -> None:
    cancelled = asyncio.Event()

    async def hangs(message: Message) -> None:
        if message.shard_identifier == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    await assert_that_only_shard_1_failed(
        database, connection, hangs, words="did not return within 0.1 s", receiver_timeout_s=0.1
    )
    assert cancelled.is_set()


async def test_a_receiver_that_outlives_its_cancellation_is_named_once(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "OVERDUE_S", 0.05)
    opened = asyncio.Event()

    async def stubborn(_message: Message) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await opened.wait()

    await write(connection)
    async with draining(database, stubborn, configure(receiver_timeout_s=0.05)) as pipeline:
        named = await eventually(pipeline.live.overdue)
        assert pipeline.live.overdue() == []
        opened.set()
        await eventually(lambda: not pipeline.live.deadlines)

    assert "stubborn" in named[0]


async def test_a_plain_function_that_does_not_return_in_time_fails(
    database: str, connection: asyncpg.Connection
) -> None:
    release = threading.Event()

    def hangs(message: Message) -> None:
        if message.shard_identifier == 1:
            release.wait(30)

    try:
        await assert_that_only_shard_1_failed(
            database, connection, hangs, words="did not return within 0.1 s", receiver_timeout_s=0.1
        )
    finally:
        release.set()


async def test_plain_functions_that_hang_do_not_use_up_the_threads_of_the_others(
    database: str, connection: asyncpg.Connection
) -> None:
    """Abandoned threads run on; a daemon whose every thread hangs once would otherwise never deliver again."""
    release = threading.Event()
    seen: list[Any] = []

    def hangs(message: Message) -> None:
        if message.object_identifier in range(6):
            release.wait(30)
        else:
            seen.append(message.shard_identifier)

    await write_many(connection, 10, shards=10)
    try:
        config = configure(concurrency=2, receiver_timeout_s=0.1, retry_on_new_message_s=3600)
        async with draining(database, {"MEMBER": hangs}, config) as pipeline:
            await eventually(lambda: pipeline.totals()["delivered"] == 4)
            assert len(set(seen)) == 4
    finally:
        release.set()


async def test_a_timeout_of_the_receiver_s_own_is_its_failure(database: str, connection: asyncpg.Connection) -> None:
    async def times_out(message: Message) -> None:
        if message.shard_identifier == 1:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()

    await assert_that_only_shard_1_failed(database, connection, times_out, words="TimeoutError")


async def test_a_slow_receiver_delays_only_its_own_shard(database: str, connection: asyncpg.Connection) -> None:
    release = asyncio.Event()

    async def slow(message: Message) -> None:
        if message.shard_identifier == 1:
            await release.wait()

    await write_many(connection, 40, shards=10)
    seen = Recorder()
    async with draining(database, {"MEMBER": [slow, seen]}, configure(concurrency=2)):
        await eventually(lambda: len(seen.messages) == 36)
        release.set()
        await until_empty(connection)


async def test_a_plain_function_runs_in_a_thread_of_its_own(database: str, connection: asyncpg.Connection) -> None:
    threads: list[threading.Thread] = []

    def plain(_message: Message) -> None:
        threads.append(threading.current_thread())

    await write(connection)
    await drain_once(database, {"MEMBER": plain})

    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert threads[0].name != threading.main_thread().name


async def test_an_async_function_runs_in_the_event_loop(database: str, connection: asyncpg.Connection) -> None:
    threads: list[threading.Thread] = []

    async def in_loop(_message: Message) -> None:
        threads.append(threading.current_thread())

    await write(connection)
    await drain_once(database, {"MEMBER": in_loop})

    assert threads == [threading.current_thread()]


async def test_a_plain_function_may_return_a_coroutine(database: str, connection: asyncpg.Connection) -> None:
    done: list[int] = []

    async def work(message: Message) -> None:
        await asyncio.sleep(0)
        done.append(message.id)

    def plain(message: Message) -> Coroutine[Any, Any, None]:
        return work(message)

    written = await write(connection)
    await drain_once(database, {"MEMBER": plain})

    assert done == [written]
    assert await remaining(connection) == []


async def test_a_plain_function_whose_coroutine_fails_has_failed(database: str, connection: asyncpg.Connection) -> None:
    async def work(message: Message) -> None:
        if message.shard_identifier == 1:
            raise ValueError("inside the coroutine")

    def plain(message: Message) -> Coroutine[Any, Any, None]:
        return work(message)

    await assert_that_only_shard_1_failed(database, connection, plain, words="inside the coroutine")


async def test_an_object_that_is_called_like_a_function_is_a_receiver(
    database: str, connection: asyncpg.Connection
) -> None:
    class Plain:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def __call__(self, message: Message) -> None:
            self.ids.append(message.id)

    plain, asynchronous = Plain(), Recorder()
    written = await write(connection)

    await drain_once(database, {"MEMBER": [plain, asynchronous]})

    assert plain.ids == asynchronous.ids == [written]


async def test_an_async_function_may_await_what_is_not_a_coroutine(
    database: str, connection: asyncpg.Connection
) -> None:
    class Awaitable:
        def __await__(self) -> Generator[Any, Any, str]:
            return asyncio.sleep(0, "done").__await__()

    results: list[object] = []

    async def awaits(_message: Message) -> None:
        results.append(await Awaitable())
        results.append(await asyncio.get_running_loop().run_in_executor(None, lambda: "executed"))
        results.append(await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2)))

    await write(connection)
    await drain_once(database, {"MEMBER": awaits})

    assert results == ["done", "executed", [1, 2]]


@pytest.mark.parametrize("suspends", [False, True], ids=["at once", "after it was suspended"])
async def test_what_a_receiver_sets_in_its_context_is_gone_with_it(
    database: str, connection: asyncpg.Connection, suspends: bool
) -> None:
    tenant: contextvars.ContextVar[int] = contextvars.ContextVar("tenant")
    seen: list[tuple[object, object]] = []

    async def binds(message: Message) -> None:
        before = tenant.get(None)
        token = tenant.set(message.id)
        if suspends:
            await asyncio.sleep(0)
        seen.append((before, tenant.get()))
        if message.id % 2:
            tenant.reset(token)

    ids = [await write(connection, shard=shard) for shard in range(1, 5)]
    await drain_once(database, {"MEMBER": binds}, configure(concurrency=1))

    assert seen == [(None, written) for written in ids]


async def test_a_hard_stop_cancels_the_delivery_and_its_message_stays(
    database: str, connection: asyncpg.Connection
) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def waits(_message: Message) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    written = await write(connection)
    async with draining(database, {"MEMBER": waits}) as pipeline:
        await eventually(entered.is_set)
        pipeline.stop_hard()
        await eventually(cancelled.is_set)

    assert await remaining(connection) == [written]
    assert await failures(connection) == []


async def test_a_soft_stop_waits_for_the_delivery_under_way_and_settles_it(
    database: str, connection: asyncpg.Connection
) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def waits(_message: Message) -> None:
        entered.set()
        await release.wait()

    await write(connection, obj=1)
    second = await write(connection, obj=2)
    async with draining(database, {"MEMBER": waits}) as pipeline:
        await eventually(entered.is_set)
        pipeline.stop()
        release.set()

    assert await remaining(connection) == [second]
