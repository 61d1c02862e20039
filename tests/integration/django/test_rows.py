"""Which rows have changed, and what their messages say: rows are looked at as the database has them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core import serializers
from django.core.exceptions import FieldDoesNotExist
from django.db import DatabaseError, connection, models, transaction
from django.db.models import F, Value
from django.db.models.functions import Lower
from django.db.models.signals import post_save, pre_delete

from outboxd import errors
from tests.integration.django import odd
from tests.integration.django.odd import Computed, Foreman, Moving, Person, Soft, Worker
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Member, Organization, Plain, Team

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.django.conftest import Database

NAMES = {1: "MEMBER", 2: "TEAM", 3: "ACCOUNT"}


@pytest.fixture
def odd_db(db: Database) -> Database:
    odd.create()
    return db


@pytest.fixture
def member(db: Database) -> Member:
    made: Member = Member.objects.create(organization=Organization.objects.create(), slug="ada")
    db.taken()
    return made


def payloads(db: Database) -> list[Any]:
    return [row[2] for row in db.taken()]


def told(db: Database) -> list[tuple[str, int]]:
    """Take the messages out: category and shard."""
    rows = db.rows("DELETE FROM outbox RETURNING id, category, shard_identifier")
    return [(NAMES[category], shard) for _, category, shard in sorted(rows)]


def test_a_manager_that_leaves_rows_out_and_joins(odd_db: Database) -> None:
    soft = Soft.objects.create(slug="ada", boss=odd.Boss.objects.create())
    soft.slug = "bob"
    soft.save()
    assert payloads(odd_db) == [{"slug": "ada", "deleted": False}, {"slug": "bob", "deleted": False}]
    assert Soft.objects.update(deleted=True) == 1
    soft.save(update_fields=["slug"])
    soft.delete()
    assert payloads(odd_db) == [{"slug": "bob", "deleted": True}] * 2 + [{"slug": "bob", "deleted": False}]


def test_columns_that_the_database_generates(odd_db: Database) -> None:
    row = Computed.objects.create(first="ADA")
    row.first = "BOB"
    row.save()
    Computed.objects.update(first="EVE")
    Computed.objects.bulk_create([Computed(first=Lower(Value("JOAN")))])
    assert payloads(odd_db) == [{"slug": "ada"}, {"slug": "bob"}, {"slug": "eve"}, {"slug": "joan"}]
    row.first = "eve"
    row.save()
    Computed.objects.update(seen=1)
    assert payloads(odd_db) == []


def test_what_is_one_for_python_and_not_for_jsonb(odd_db: Database) -> None:
    row = Computed.objects.create(document={"a": [1]})
    for number, value in enumerate((True, 1.0, 1, {"b": 1, "c": 2})):
        if number % 2:
            Computed.objects.update(document={"a": [value]})
        else:
            row.document = {"a": [value]}
            row.save()
        assert len(odd_db.taken()) == 1 + (number == 0)
    row.document = {"a": [{"c": 2, "b": 1}]}
    row.save()
    assert odd_db.taken() == []


def test_another_region_is_told_in_both(odd_db: Database, tmp_path: Path) -> None:
    path = tmp_path / "outboxd.toml"
    regions = '[[outbox]]\nname = "control"\ntable = "control_outbox"\nsilo = "control"\n'
    regions += 'sharding_columns = ["region_name", "shard_scope", "shard_identifier"]\n[scopes.ORG'
    path.write_text(path.read_text().replace("[scopes.ORG", regions, 1))

    def regions_told() -> list[str]:
        return [name for _, name in sorted(odd_db.rows("DELETE FROM control_outbox RETURNING id, region_name"))]

    row = Moving.objects.create(region="eu", slug="ada")
    stale = Moving.objects.get()
    row.region = "us"
    row.save()
    assert regions_told() == ["eu", "eu", "us"]
    Moving.objects.update(region="ap")
    assert regions_told() == ["us", "ap"]
    stale.delete()
    assert regions_told() == ["ap", "eu"]


def test_the_tables_of_parents_have_their_messages(odd_db: Database) -> None:
    foreman = Foreman.objects.create(name="ada")
    everyone = [("MEMBER", 1), ("ACCOUNT", 1), ("TEAM", 1)]
    assert told(odd_db) == everyone
    foreman.name = "bob"
    foreman.save()
    assert told(odd_db) == everyone
    foreman.rank, foreman.seen = 1, 1
    foreman.save()
    assert told(odd_db) == [("TEAM", 1)]
    foreman.salary = 7
    foreman.save(update_fields=["salary"])
    assert told(odd_db) == [("ACCOUNT", 1), ("TEAM", 1)]
    foreman.organization = 2
    foreman.save()
    assert told(odd_db) == [(name, shard) for name, _ in everyone for shard in (1, 2)]
    assert Foreman.objects.update(name="eve") == 1
    assert odd_db.rows("SELECT payload->>'name' FROM outbox") == [("eve",)] * 3
    assert told(odd_db) == [(name, 2) for name, _ in everyone]
    stale = Foreman.objects.get()
    Foreman.objects.update(organization=3)
    odd_db.taken()
    stale.delete()
    assert sorted(told(odd_db)) == sorted((name, shard) for name, _ in everyone for shard in (2, 3))
    foreman = Foreman.objects.create(name="ada", organization=2)
    odd_db.taken()
    Foreman.objects.update(rank=2)
    Foreman.objects.update(seen=2)
    assert told(odd_db) == [("TEAM", 2)] * 2
    Worker(pk=foreman.pk, name="joan", organization=2).save()
    assert told(odd_db) == [("MEMBER", 2), ("ACCOUNT", 2)]
    Person.objects.all().delete()
    assert sorted(told(odd_db)) == [("ACCOUNT", 2), ("MEMBER", 2), ("TEAM", 2)]


def test_a_handler_that_updates_the_row_has_the_newest_message(db: Database, member: Member) -> None:
    def slugify(instance: Member, **_: Any) -> None:
        Member.objects.filter(pk=instance.pk).update(slug="of the handler")

    post_save.connect(slugify, sender=Member)
    try:
        member.slug = "draft"
        member.save()
    finally:
        post_save.disconnect(slugify, sender=Member)
    assert payloads(db) == [{"slug": "draft"}, {"slug": "of the handler"}]


def test_fixtures_over_a_row_that_is_there(db: Database, member: Member) -> None:
    Organization.objects.create()
    (loaded,) = serializers.deserialize("python", serializers.serialize("python", [member]))
    loaded.object.organization_id = 2  # type: ignore[attr-defined]
    loaded.save()
    assert [row[0] for row in db.taken()] == [1, 2]


def test_fixtures_outside_of_a_transaction_are_as_little_written_as_their_messages(db: Database) -> None:
    row = {"model": "shop.member", "pk": 5, "fields": {"organization": Organization.objects.create().pk, "slug": "a"}}
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE outbox RENAME TO gone")
    (loaded,) = serializers.deserialize("python", [row])
    with pytest.raises(errors.SchemaError):
        loaded.save()
    assert not Member.objects.exists()


def test_identifiers_as_django_takes_them(db: Database, member: Member) -> None:
    Member.objects.create(organization_id="1", slug="bob")
    Member(pk=str(member.pk), organization_id="1", slug="eve").save()
    Member.objects.bulk_create([Member(pk="9", organization_id="1", slug=Lower(Value("JOAN")))])
    assert db.taken() == [(1, 2, {"slug": "bob"}), (1, 1, {"slug": "eve"}), (1, 9, {"slug": "joan"})]


def follow(first: Team, second: Team, meet: threading.Barrier, problems: list[Exception]) -> None:
    """Refer to one row, as a foreign key does, and change the other."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM shop_team WHERE id = %s FOR KEY SHARE", [second.pk])
            meet.wait(10)
            first.number += 1
            first.save()
            Team.objects.filter(pk=first.pk).update(number=F("number") + 1)
    except Exception as exc:
        problems.append(exc)
    finally:
        connection.close()


def test_no_deadlock_with_foreign_keys(db: Database) -> None:
    one, two = Team.objects.create(number=1), Team.objects.create(number=2)
    meet, problems = threading.Barrier(2), list[Exception]()
    threads = [threading.Thread(target=follow, args=(*each, meet, problems)) for each in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.parametrize(
    "mistake",
    [
        lambda model: model(pk=None).delete(),
        lambda model: model.objects.all()[:1].delete(),
        lambda model: model.objects.values("slug").delete(),
        lambda model: model.objects.bulk_update([model()], ["slug"]),
        lambda model: model.objects.bulk_create([model(pk=1)], batch_size=-1),
        lambda model: model.objects.bulk_create([], ignore_conflicts=True),
        lambda model: model.objects.update(pk=7),
        lambda model: model.objects.update(nothing=7),
    ],
)
def test_what_is_refused_leaves_the_transaction_alone(
    db: Database, member: Member, mistake: Callable[[type[models.Model]], Any]
) -> None:
    with transaction.atomic():
        Plain.objects.create(slug="before")
        with pytest.raises((ValueError, TypeError, FieldDoesNotExist, errors.OutboxContextError)):
            mistake(Member)
        Plain.objects.create(slug="after")
    assert Plain.objects.count() == 2
    assert db.taken() == []


def test_a_message_that_cannot_be_written_breaks_it(db: Database) -> None:
    team = Team()
    team.outbox_category = "NONE"  # type: ignore[misc]
    with transaction.atomic():
        with pytest.raises(errors.InvalidOutboxError):
            team.save()
        with pytest.raises(transaction.TransactionManagementError):
            Team.objects.count()
        transaction.set_rollback(True)
    assert not Team.objects.exists()


@pytest.mark.parametrize("delete", [lambda: Worker.objects.all().delete(), lambda: Worker.objects.get().delete()])
def test_nobody_moves_a_row_while_it_is_deleted(odd_db: Database, delete: Callable[[], Any]) -> None:
    refused = []

    def move(instance: Person, **_: Any) -> None:
        for table in ("shop_person WHERE id", "shop_worker WHERE person_ptr_id"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                odd_db.rows(f"SELECT 1 FROM {table} = {instance.pk} FOR NO KEY UPDATE NOWAIT")
            refused.append(instance.pk)

    Worker.objects.create(name="ada")
    pre_delete.connect(move, sender=Worker)
    try:
        delete()
    finally:
        pre_delete.disconnect(move, sender=Worker)
    assert len(refused) == 2


def test_updates_of_querysets_of_every_shape(db: Database, member: Member) -> None:
    Member.objects.bulk_create([Member(organization_id=1, slug=slug) for slug in ("bob", "eve")])
    db.taken()
    assert Member.objects.order_by("organization").distinct("organization").update(slug="x") == 3
    assert Member.objects.select_for_update(skip_locked=True).update(slug="y") == 3
    assert Member.objects.filter(organization__isnull=False).values("slug").update(slug="z") == 3
    assert len(db.taken()) == 9


def test_more_rows_than_a_statement_takes_parameters(db: Database, member: Member) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO shop_member (organization_id, slug, seen) SELECT 1, 'x', 0 FROM generate_series(2, 66000)"
        )
    connection.close()
    options = dict(connection.settings_dict["OPTIONS"])
    connection.settings_dict["OPTIONS"] = {**options, "server_side_binding": True}
    try:
        assert Member.objects.update(slug="y") == 66_000
    finally:
        connection.close()
        connection.settings_dict["OPTIONS"] = options
    assert db.rows("SELECT count(*) FROM outbox") == [(66_000,)]


def test_an_error_of_the_database_is_what_it_is_without_us(db: Database, member: Member) -> None:
    receivers.forget()
    with contextlib.suppress(DatabaseError), transaction.atomic():
        Member.objects.update(slug="much too long for what it is to be held in")
    assert (db.taken(), Member.objects.get().slug) == ([], "ada")
