"""The shop's own tests, for Django's runner: `test_django_runner.py` runs them. Their databases are made by it."""

from __future__ import annotations

from django.db import connections
from django.test import TestCase, TransactionTestCase

from outboxd.contrib.django.test import outbox_runner
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Account, Member, Organization, Team

BOTH = {"default", "archive"}


class FromNothing:
    def setUp(self) -> None:
        receivers.forget()
        assert (waiting("default"), waiting("archive")) == (0, 0)


class InATransaction(FromNothing, TestCase):
    databases = BOTH

    def test_bulk_operations(self) -> None:
        with outbox_runner():
            first, second = Account.objects.bulk_create([Account(slug="ada"), Account(slug="bob")])
        assert sorted(Account.told) == [(first.pk, "ada", 1), (second.pk, "bob", 1)]
        with outbox_runner():
            Account.objects.update(slug="eve")
            Account.objects.filter(pk=first.pk).delete()
        assert sorted(Account.told[2:], key=str) == [(first.pk, "ACCOUNT"), (second.pk, "eve", 1)]

    def test_messages_are_left(self) -> None:
        Account.objects.create(slug="ada")
        assert waiting("default") == 1


class InATransactionOfTheArchive(FromNothing, TestCase):
    databases = BOTH

    def test_databases_are_apart(self) -> None:
        with outbox_runner("archive"):
            Team.objects.using("archive").create(number=1)
            Account.objects.create(slug="ada")
        assert receivers.shards() == [101]
        assert (waiting("default"), waiting("archive")) == (1, 0)


class WithCommits(FromNothing, TransactionTestCase):
    databases = BOTH

    def test_flushes_on_both_databases(self) -> None:
        account = Account.objects.create(slug="ada")
        assert Account.told == [(account.pk, "ada", 1)]
        Team.objects.using("archive").create(number=2)
        assert receivers.shards() == [102]

    def test_messages_are_left(self) -> None:
        Member.objects.create(organization=Organization.objects.create(), slug="ada")
        Member.objects.using("archive").create(organization=Organization.objects.using("archive").create(), slug="bob")
        assert (waiting("default"), waiting("archive")) == (1, 1)

    def test_messages_are_left_once_more(self) -> None:
        self.test_messages_are_left()


def waiting(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM outbox")
        (number,) = cursor.fetchone()
    return int(number)
