"""`outbox_context` on Django: its own transactions, savepoints and hooks of commit."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection, transaction
from django.db.models.signals import post_save
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

import outboxd
from outboxd import errors, producer
from outboxd.claims import SHARD_CLASS
from outboxd.contrib.django import configuration, outbox_context, receiver
from outboxd.producer import counts
from tests.integration.django.conftest import CONFIG, RECEIVERS
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Member, Organization, Plain, Team

if TYPE_CHECKING:
    from pathlib import Path

    from outboxd.producer.blocking import SyncOutbox
    from tests.integration.django.conftest import Database


def save(outbox: SyncOutbox, obj: int = 1) -> None:
    outbox.save("TEAM", shard_identifier=7, object_identifier=obj, payload={"a": "it's 100% :p1 $1"})


def saved() -> int:
    return counts.saved.get(("region", "TEAM"), 0)


def test_messages_are_committed_with_the_change(db: Database) -> None:
    before = saved()
    with outbox_context() as outbox:
        Plain.objects.create(slug="ada")
        save(outbox)
        assert (db.objects, saved()) == ([], before)
    assert db.taken() == [(7, 1, {"a": "it's 100% :p1 $1"})]
    assert Plain.objects.count() == 1
    assert saved() == before + 1
    with outboxd.outbox_context(transaction.atomic()) as outbox:
        save(outbox, 2)
    with outboxd.outbox_context(connection) as outbox:
        save(outbox, 3)
    assert db.objects == [2, 3]


def test_a_rollback_takes_them_along(db: Database) -> None:
    with contextlib.suppress(ZeroDivisionError), outbox_context() as outbox:
        Plain.objects.create(slug="ada")
        save(outbox)
        raise ZeroDivisionError
    with pytest.raises(errors.InvalidOutboxError), outbox_context() as outbox:
        outbox.save("NONE", shard_identifier=7, object_identifier=1)
    assert (db.objects, Plain.objects.count()) == ([], 0)


def test_contexts_and_atomic_blocks_nest(db: Database) -> None:
    with outbox_context() as outer:
        save(outer, 1)
        with contextlib.suppress(ZeroDivisionError), outbox_context() as inner:
            save(inner, 2)
            raise ZeroDivisionError
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(), outbox_context() as inner:
            save(inner, 3)
            raise ZeroDivisionError
        with transaction.atomic(), outbox_context() as inner:
            save(inner, 4)
        save(outer, 5)
        assert db.objects == []
    assert db.objects == [1, 4, 5]


def test_flush_delivers_after_the_commit_in_threads(db: Database) -> None:
    with outbox_context(flush=True) as outbox:
        row = Plain.objects.create(slug="ada")
        save(outbox, row.pk)
        assert receivers.seen == []
    assert (receivers.objects(), receivers.read, db.objects) == ([row.pk], ["ada"], [])
    assert threading.get_ident() not in receivers.threads
    left = db.rows(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert sorted(name for (name,) in left) == ["", "outboxd: flush"]  # this thread's own, and the flush's


def test_a_failed_flush_is_told_to_whoever_has_opened_the_transaction(db: Database) -> None:
    receivers.broken.add(1)
    with pytest.raises(errors.OutboxFlushError, match="object 1 is broken"), outbox_context(flush=True) as outbox:
        save(outbox)
    assert db.objects == [1]


def test_inside_a_transaction_of_the_application_s_flush_comes_after_its_commit(db: Database) -> None:
    before = saved()
    with transaction.atomic():
        with outbox_context(flush=True) as outbox:
            save(outbox)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            with outbox_context(flush=True) as outbox:
                save(outbox, 2)
            raise ZeroDivisionError
        assert (receivers.seen, saved()) == ([], before)
    assert (receivers.objects(), db.objects, saved()) == ([1], [], before + 1)


def test_its_failure_is_a_line_in_the_log_and_other_hooks_run(db: Database) -> None:
    receivers.broken.add(1)
    hooks = []
    with capture_logs() as lines, transaction.atomic():
        transaction.on_commit(lambda: hooks.append("first"))
        with outbox_context(flush=True) as outbox:
            save(outbox)
        transaction.on_commit(lambda: hooks.append("last"))
    assert hooks == ["first", "last"]
    assert db.objects == [1]
    failed = [line for line in lines if line["event"] == "flush.failed"]
    assert [(line["message_id"], "object 1 is broken" in line["error"]) for line in failed] == [(1, True)]


def test_a_block_that_django_rolls_back_without_a_word_has_written_nothing(db: Database) -> None:
    before = saved()
    with outbox_context(flush=True) as outbox:
        save(outbox)
        transaction.set_rollback(True)
    assert (db.objects, receivers.seen, saved()) == ([], [], before)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_block_that_fails_at_its_end_leaves_the_one_around_open(db: Database, is_lost: bool) -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        Plain.objects.create(slug="before")
        swallowed = contextlib.suppress(DatabaseError)
        with contextlib.suppress(DatabaseError), outbox_context(), swallowed, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())" if is_lost else "SELECT nothing")
        assert (connection.in_atomic_block, connection.get_autocommit()) == (True, False)
        with contextlib.suppress(DatabaseError):
            Plain.objects.create(slug="after")
        raise ZeroDivisionError
    assert not connection.in_atomic_block
    assert db.rows("SELECT slug FROM shop_plain") == []


def test_what_is_committed_together_is_flushed_once(db: Database) -> None:
    db.rows(f"SELECT pg_advisory_lock({SHARD_CLASS}, hashtext(concat_ws('/', 'outbox'::regclass::oid, 0, 7)))")
    with capture_logs() as lines, transaction.atomic():
        for obj in range(3):
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                with outbox_context(flush=True, flush_timeout_s=0.2) as outbox:
                    save(outbox, -1)
                raise ZeroDivisionError
            with outbox_context(flush=True, flush_timeout_s=0.2) as outbox:
                save(outbox, obj)
    failed = [line["message_id"] for line in lines if line["event"] == "flush.failed"]
    assert failed == [db.rows("SELECT min(id) FROM outbox")[0][0]]
    assert db.objects == [0, 1, 2]
    db.rows("SELECT pg_advisory_unlock_all()")
    with transaction.atomic():
        for obj in (3, 4):
            with outbox_context(flush=True) as outbox:
                save(outbox, obj)
    assert (receivers.objects(), db.objects) == ([0, 1, 2, 3, 4], [])


def test_default_flush_holds_where_nobody_says_otherwise(db: Database, archive: Database) -> None:
    for atomic in (transaction.atomic, contextlib.nullcontext):
        with atomic(), outbox_context():
            Team.objects.create(number=1)
        assert (receivers.shards(), db.objects) == ([101], [])
        receivers.forget()
    with outboxd.outbox_context(flush=False), transaction.atomic(), outbox_context():
        Team.objects.create(number=1)
    with outbox_context("archive", flush=False):
        Team.objects.create(number=1)
    assert (receivers.shards(), len(db.taken())) == ([], 2)


def test_default_flush_inside_a_save_of_a_model_without(db: Database) -> None:
    def follow(**_: object) -> None:
        Team.objects.create(number=1)

    organization = Organization.objects.create()
    post_save.connect(follow, sender=Member)
    try:
        Member.objects.create(organization=organization, slug="ada")
    finally:
        post_save.disconnect(follow, sender=Member)
    assert (receivers.shards(), db.taken()) == ([101], [(1, 1, {"slug": "ada"})])


def test_with_autocommit_off_nobody_tells_of_the_commit(db: Database) -> None:
    transaction.set_autocommit(False)
    try:
        for _ in range(2):  # as the first statement, and later
            refused = pytest.raises(errors.OutboxContextError, match="nobody can tell when it is committed")
            with refused, outbox_context(flush=True):
                pass
            Team.objects.create(number=1)
        assert db.objects == []
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert (receivers.seen, len(db.taken())) == ([], 2)


def test_without_receivers_the_daemon_is_woken(daemons_db: Database) -> None:
    with transaction.atomic(), outbox_context(flush=True) as outbox:
        save(outbox)
    assert daemons_db.objects == [1]
    with pytest.raises(errors.OutboxFlushError, match="1 of 1 messages are not delivered"):
        outbox.delivered(timeout_s=0)
    daemons_db.taken()
    outbox.delivered(timeout_s=0)


def test_each_database_has_a_configuration_of_its_own(db: Database, archive: Database) -> None:
    with outbox_context("archive", flush=True) as outbox:
        save(outbox, 1)
    assert receivers.objects() == [1]
    with outbox_context("archive") as outbox:
        save(outbox, 2)
    with outboxd.outbox_context(transaction.atomic(using="archive")) as outbox:
        save(outbox, 3)
    assert (db.objects, archive.objects) == ([], [2, 3])


def test_a_flush_that_works_in_another_database_says_so(db: Database, archive: Database, tmp_path: Path) -> None:
    elsewhere = "leads to another database .* than was written in"
    with override_settings(OUTBOXD_CONFIG=tmp_path / "outboxd.toml"):
        with outbox_context(flush=True) as outbox:
            save(outbox, 1)
        for _ in range(2):
            with (
                pytest.raises(errors.OutboxFlushError, match=elsewhere),
                outbox_context("archive", flush=True) as outbox,
            ):
                save(outbox, 2)
        with capture_logs() as lines, transaction.atomic(using="archive"):
            Team.objects.using("archive").create()
        with outbox_context(flush=True) as outbox:
            save(outbox, 3)
            with outbox_context("archive", flush=False) as inner:
                save(inner, 4)
    assert [line["event"] for line in lines] == ["flush.failed"]
    assert receivers.objects() == [1, 3]
    assert (db.objects, len(archive.objects)) == ([], 4)


def test_a_flush_connects_as_django_does(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outboxd.toml").write_text(CONFIG.format(dsn="", modules=f'"{RECEIVERS}"'))
    parts = {name: value for name, value in conninfo_to_dict(db.dsn).items() if name != "sslmode"}
    (tmp_path / "services").write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in parts.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    given = dict(connection.settings_dict)
    nothing = dict.fromkeys(("NAME", "USER", "PASSWORD", "HOST", "PORT"), "")
    options = {"service": "shop", "options": "-c statement_timeout=9s", "target_session_attrs": "read-write"}
    connection.settings_dict.update(nothing, OPTIONS=options)
    try:
        with outbox_context(flush=True) as outbox:
            save(outbox, 1)
        assert receivers.objects() == [1]
        assert conninfo_to_dict(configuration.dsn_of("default")).items() >= options.items()
    finally:
        connection.close()
        connection.settings_dict.update(given)


def test_a_daemon_s_receivers_write_by_the_configuration_of_the_database(
    db: Database, archive: Database, tmp_path: Path
) -> None:
    path = tmp_path / "archive.toml"
    path.write_text(path.read_text().replace("[categories.TEAM]\nvalue = 2", "[categories.TEAM]\nvalue = 7"))
    producer.use(configuration.producer_of("default"))  # as the daemon of it does
    try:
        for alias in (None, "archive"):
            with outbox_context(alias) as outbox:
                save(outbox)
        with override_settings(OUTBOXD_CONFIG={}), outbox_context() as outbox:
            save(outbox)
    finally:
        producer.use(None)
    asked = "SELECT category FROM outbox"
    assert (db.rows(asked), archive.rows(asked)) == ([(2,), (2,)], [(7,)])


def test_what_is_written_on_two_databases_is_flushed_when_both_have_committed(db: Database, archive: Database) -> None:
    with outbox_context(flush=True) as outer:
        save(outer, 1)
        with transaction.atomic(using="archive"), outbox_context("archive") as inner:
            save(inner, 2)
        assert receivers.seen == []
    assert sorted(map(str, receivers.objects())) == ["1", "2"]
    assert (db.objects, archive.objects) == ([], [])


def test_a_database_without_a_configuration(db: Database) -> None:
    with (
        override_settings(OUTBOXD_CONFIG={}),
        pytest.raises(ImproperlyConfigured, match="no configuration for the database default"),
    ):
        outbox_context()


def test_something_else_of_django_is_refused(db: Database) -> None:
    with pytest.raises(errors.OutboxContextError, match=r"takes no django\.db\.models"):
        outboxd.outbox_context(Plain.objects.all())


def test_async_receivers_are_refused() -> None:
    async def late(_: object) -> None: ...

    with pytest.raises(TypeError, match=r"outboxd\.receiver"):
        receiver("TEAM")(late)


def test_greenlets_instead_of_threads_are_refused(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_ident = threading.get_ident
    monkeypatch.setattr(threading, "get_ident", lambda: get_ident())  # as gevent does, whose threads are none
    with pytest.raises(errors.OutboxContextError, match="made greenlets of threads"), outbox_context(flush=True):
        pytest.fail("nothing may be written")
    with outbox_context() as outbox:
        save(outbox)
    (tmp_path / "outboxd.toml").write_text(CONFIG.format(dsn=db.dsn, modules=""))
    configuration.forget()
    with outbox_context(flush=True) as outbox:  # which wakes the daemon
        save(outbox, 2)
    assert db.objects == [1, 2]
