"""Producing models: whatever Django changes has its message in the same transaction."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from django.core import serializers
from django.db import DatabaseError, connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat
from django.test.utils import CaptureQueriesContext

from outboxd import errors
from outboxd.contrib.django import outbox_context
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Member, Organization, Team

if TYPE_CHECKING:
    from tests.integration.django.conftest import Database


def told(slug: str, number: int = 1, shard: int = 1) -> tuple[int, int, dict[str, str]]:
    return (shard, number, {"slug": slug})


@pytest.fixture
def organizations(db: Database) -> list[Organization]:
    return [Organization.objects.create() for _ in range(3)]


@pytest.fixture
def ada(db: Database, organizations: list[Organization]) -> Member:
    member: Member = Member.objects.create(organization=organizations[0], slug="ada")
    assert db.taken() == [told("ada")]
    return member


@pytest.fixture
def members(db: Database, ada: Member) -> list[Member]:
    """Three, of the same organization."""
    others = Member.objects.bulk_create([Member(organization_id=1, slug=slug) for slug in ("bob", "eve")])
    assert db.taken() == [told("bob", 2), told("eve", 3)]
    return [ada, *others]


def inserts(queries: CaptureQueriesContext) -> int:
    return sum('INSERT INTO "public"."outbox"' in query["sql"] for query in queries.captured_queries)


def test_save_and_delete(db: Database, ada: Member) -> None:
    ada.slug = "grace"
    ada.save()
    assert db.taken() == [told("grace")]
    ada.delete()
    assert db.taken() == [told("grace")]
    assert not Member.objects.exists()


def test_of_updates_the_watched_fields_count_as_they_are_in_the_row(db: Database, ada: Member) -> None:
    ada.seen = 1
    ada.save()
    assert db.taken() == []
    with connection.cursor() as cursor:
        cursor.execute("UPDATE shop_member SET slug = 'behind our back'")
    ada.save()
    assert db.taken() == [told("ada")]
    ada.slug, ada.seen = "not written", 2
    ada.save(update_fields=["seen"])
    assert db.taken() == []
    ada.organization_id = 2
    ada.save(update_fields=["organization"])
    assert db.taken() == [told("ada"), told("ada", shard=2)]


def test_another_shard_is_told_in_both(db: Database, ada: Member) -> None:
    stale = Member.objects.get()
    ada.organization_id = 2
    ada.save()
    assert db.taken() == [told("ada"), told("ada", shard=2)]
    stale.save()
    assert db.taken() == [told("ada", shard=2), told("ada")]
    ada.delete()
    assert db.taken() == [told("ada"), told("ada", shard=2)]


def test_values_that_the_database_computes(db: Database, ada: Member) -> None:
    ada.slug = Concat(F("slug"), Value("!"))
    ada.save()
    assert db.taken() == [told("ada!")]


def test_fixtures_that_are_loaded(db: Database, ada: Member) -> None:
    data = serializers.serialize("json", [ada])
    ada.delete()
    db.taken()
    for each in serializers.deserialize("json", data):
        each.save()
    assert db.taken() == [told("ada")]


def test_a_rollback_takes_them_along(db: Database, ada: Member) -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        ada.slug = "grace"
        ada.save()
        Member.objects.update(slug="x")
        raise ZeroDivisionError
    with transaction.atomic():
        Member.objects.create(organization_id=1, slug="bob")
        with contextlib.suppress(DatabaseError), transaction.atomic():
            Member.objects.create(organization_id=1, slug="too long for what it is to be held in")
    assert db.taken() == [told("bob", 2)]


def test_a_row_whose_message_cannot_be_written_is_not_written(db: Database, organizations: list[Organization]) -> None:
    team = Team(number=2**31 - 1)
    team.outbox_category = "NONE"  # type: ignore[misc]
    with pytest.raises(errors.InvalidOutboxError):
        team.save()
    assert not Team.objects.exists()


def test_bulk_create(db: Database, organizations: list[Organization]) -> None:
    with CaptureQueriesContext(connection) as queries:
        Member.objects.bulk_create([Member(organization_id=1, slug=f"m{n}") for n in range(50)])
    assert inserts(queries) == 1
    assert db.taken() == [told(f"m{n}", n + 1) for n in range(50)]
    assert Member.objects.bulk_create([]) == []


@pytest.mark.parametrize("options", [{"ignore_conflicts": True}, {"update_conflicts": True}])
def test_bulk_create_with_conflicts_is_refused(db: Database, options: dict[str, bool]) -> None:
    with pytest.raises(errors.OutboxContextError, match=r"shop\.Member: bulk_create with conflicts") as caught:
        Member.objects.bulk_create([], **options)
    assert 'capture = true in the [[model]] of table "shop_member"' in caught.value.hint


def test_update(db: Database, members: list[Member]) -> None:
    with CaptureQueriesContext(connection) as queries:
        assert Member.objects.filter(slug__in=["ada", "bob"]).update(slug="x", seen=1) == 2
    assert inserts(queries) == 1
    assert db.taken() == [told("x", 1), told("x", 2)]
    assert Member.objects.filter(slug="x").update(slug=F("slug")) == 2
    assert Member.objects.filter(slug="none").update(slug="y") == 0
    assert db.taken() == []
    with CaptureQueriesContext(connection) as queries:
        assert Member.objects.update(seen=7) == 3
    assert len(queries) == 1
    assert Member.objects.filter(slug="eve").update(organization=2) == 1
    assert db.taken() == [told("eve", 3, 1), told("eve", 3, 2)]
    assert Member.objects.filter(organization=1).order_by("-slug").distinct().update(slug="z") == 2
    assert db.taken() == [told("z", 1), told("z", 2)]


def test_an_update_of_the_key_and_a_raw_delete_are_refused(db: Database, ada: Member) -> None:
    for names in ({"pk": 9}, {"id": 9}):
        with pytest.raises(errors.OutboxContextError, match="an update of the primary key"):
            Member.objects.update(**names)
    with pytest.raises(errors.OutboxContextError, match="_raw_delete"):
        Member.objects.all()._raw_delete("default")
    with pytest.raises(TypeError, match="slice"):
        Member.objects.all()[:1].update(slug="x")


def test_bulk_update(db: Database, members: list[Member]) -> None:
    for member in members:
        member.slug = member.slug.upper()
    with CaptureQueriesContext(connection) as queries:
        assert Member.objects.bulk_update(members, ["slug"]) == 3
    assert inserts(queries) == 1
    assert db.taken() == [told("ADA", 1), told("BOB", 2), told("EVE", 3)]


def test_deletes_of_many(db: Database, members: list[Member]) -> None:
    with CaptureQueriesContext(connection) as queries:
        assert Member.objects.exclude(slug="eve").delete() == (2, {"shop.Member": 2})
    assert inserts(queries) == 1
    assert sorted(row[1] for row in db.taken()) == [1, 2]
    assert Member.objects.bulk_delete(members) == 1
    assert db.taken() == [told("eve", 3)]


def test_cascades_and_related_managers(db: Database, members: list[Member]) -> None:
    team = Team.objects.create(number=5, organization_id=1)
    receivers.forget()
    organization = Organization.objects.get(pk=1)
    organization.members.filter(slug="ada").update(slug="x")
    Organization.objects.get(pk=2).members.add(members[1])
    assert db.taken() == [told("x"), told("bob", 2, 1), told("bob", 2, 2)]
    organization.delete()
    assert sorted(row[1] for row in db.taken()) == [1, 3]
    assert receivers.objects() == [team.pk]  # its foreign key was set to null
    team.refresh_from_db()
    assert team.organization is None


def test_default_flush(db: Database, organizations: list[Organization]) -> None:
    team = Team.objects.create(number=1)
    assert (receivers.shards(), db.objects) == ([101], [])
    team.number = 2
    team.save()
    assert sorted(map(str, receivers.shards())) == ["101", "101", "102"]
    receivers.broken.add(team.pk)
    with pytest.raises(errors.OutboxFlushError):
        Team.objects.update(number=3)
    assert Team.objects.get().number == 3
    db.taken()
    receivers.forget()
    with outbox_context(flush=False):
        Team.objects.bulk_create([Team(), Team()])
    assert (receivers.objects(), len(db.taken())) == ([], 2)
    with transaction.atomic():
        Team.objects.update(number=4)
        assert receivers.seen == []
    assert sorted(map(str, receivers.shards())) == ["100", "100", "103", "104", "104", "104"]


def test_another_database(db: Database, archive: Database) -> None:
    Organization.objects.using("archive").create()
    member = Member(organization_id=1, slug="ada")
    member.save(using="archive")
    Member.objects.using("archive").update(slug="x")
    Team.objects.using("archive").create(number=1)
    assert receivers.shards() == [101]
    member.delete()
    assert db.objects == []
    assert archive.taken() == [told("ada"), told("x"), told("ada")]
