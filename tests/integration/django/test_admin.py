"""The admin's pages, by requests: who may see and do what, what is shown, what is said when something is wrong."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import psycopg
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client, override_settings

from outboxd import diagnosis, errors
from outboxd.contrib.django import answers, configuration, outbox_context
from tests.integration.django.conftest import CONFIG, RECEIVERS
from tests.integration.django.shop import receivers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.django.conftest import Database

CONTROL = """\
[[outbox]]
name = "control"
table = "control_outbox"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]
"""
PAGE = "/admin/outboxd/outbox/"
MESSAGES, PAUSE = f"{PAGE}default/messages/", f"{PAGE}default/pause/"
SHARD = {"scope": "ORGANIZATION_SCOPE", "shard": "7"}


def save(obj: int = 1, category: str = "TEAM", **more: Any) -> int:
    with outbox_context(flush=more.pop("flush", False)) as outbox:
        number: int = outbox.save(category, shard_identifier=7, object_identifier=obj, **more)
    return number


def user(name: str, *permissions: str) -> Client:
    """Log in somebody of the staff, who has permissions through a group."""
    group = Group.objects.create(name=name)
    group.permissions.set(Permission.objects.filter(content_type__app_label="outboxd", codename__in=permissions))
    made = User.objects.create_user(name, is_staff=True)
    made.groups.add(group)
    client = Client()
    client.force_login(made)
    return client


@pytest.fixture
def operator(db: Database) -> Client:
    return user("ada", "view_outbox", "change_pause")


@pytest.fixture
def regions(db: Database, tmp_path: Path) -> None:
    """A second outbox, which shards by region."""
    (tmp_path / "outboxd.toml").write_text(CONFIG.format(dsn=db.dsn, modules=f'"{RECEIVERS}"') + CONTROL)


def text(client: Client, page: str = PAGE, **given: Any) -> str:
    """Return what a page says, without its tags."""
    answer = client.get(page, given)
    assert answer.status_code == 200, answer.content
    content = re.sub(r"<(nav|header|style|script).*?</\1>", "", answer.content.decode(), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", content).split()))


def post(client: Client, page: str, **given: Any) -> str:
    """Post, and return what the page says that comes of it."""
    answer = client.post(page, given, follow=True)
    assert answer.status_code == 200
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", answer.content.decode()).split()))


def pauses(db: Database) -> list[Any]:
    return db.rows(
        "SELECT kind, shard_scope, shard_identifier, region_name, category, outbox, author, reason,"
        " round(extract(epoch FROM expires_at - created_at))::int FROM outboxd.pause ORDER BY id"
    )


def test_who_may_see_and_who_may_change(db: Database) -> None:
    nobody, reader = user("eve"), user("bob", "view_outbox")
    number = save()
    pages = (PAGE, MESSAGES, f"{MESSAGES}{number}/")
    for page in pages:
        assert Client().get(page).headers["Location"] == f"/admin/login/?next={page}"
        assert nobody.get(page).status_code == 403
        assert reader.get(page).status_code == 200
    for page in (PAUSE, f"{PAGE}default/resume/1/"):
        assert (reader.get(page).status_code, reader.post(page, SHARD).status_code) == (403, 403)
    assert "Outboxes" in text(reader, "/admin/")
    assert "Outboxes" not in text(nobody, "/admin/")
    assert "Pause" not in text(reader)
    assert reader.get(f"{PAGE}none/messages/").status_code == 404
    assert pauses(db) == []


def test_shards_that_wait_are_stuck_or_paused(db: Database, operator: Client) -> None:
    assert "Nothing is switched off" in text(operator)
    receivers.broken.add(1)
    with pytest.raises(errors.OutboxFlushError):
        save(flush=True)
    save(2, "MEMBER")
    shown = text(operator)
    assert "ORGANIZATION_SCOPE 7 region 2 TEAM (2) 1 1 20" in shown
    assert "object 1 is broken" in shown
    assert "in backoff until 20" in shown
    db.rows("UPDATE outboxd.failure SET last_error = '<b>bold</b>' RETURNING 1")
    assert "<b>bold</b>" in text(operator)
    post(operator, PAUSE, **SHARD, reason="they move", lasts="2h")
    shown = text(operator)
    assert "shard ORGANIZATION_SCOPE 7 ada they move 20" in shown
    assert "paused until 20" in shown


def test_pause_and_resume_of_each_kind(db: Database, operator: Client, regions: None) -> None:
    assert "ORGANIZATION_SCOPE" in operator.get(PAUSE, SHARD).content.decode()
    assert "Paused: shard ORGANIZATION_SCOPE 7, pause 1 by ada" in post(operator, PAUSE, **SHARD, lasts="1h30m")
    post(operator, PAUSE, **SHARD, region="eu")
    post(operator, PAUSE, category="TEAM", reason="<i>why</i>")
    post(operator, PAUSE, outbox="region")
    assert pauses(db) == [
        ("shard", 0, "7", None, None, None, "ada", None, 5400),
        ("shard", 0, "7", "eu", None, None, "ada", None, None),
        ("category", None, None, None, 2, None, "ada", "<i>why</i>", None),
        ("outbox", None, None, None, None, "region", "ada", None, None),
    ]
    assert "<i>why</i>" in text(operator)
    assert "Resumed for 1:00:00: category TEAM" in post(
        operator, f"{PAGE}default/resume/3/", lasts="1h", reason="a try"
    )
    assert "resumed; again from 20" in text(operator)
    assert "category TEAM" in text(operator, f"{PAGE}default/resume/3/")
    assert len(pauses(db)) == 4
    post(operator, f"{PAGE}default/resume/3/")
    assert "there is no pause 3, or not any more" in post(operator, f"{PAGE}default/resume/3/")
    assert [row[0] for row in pauses(db)] == ["shard", "shard", "outbox"]
    assert "pause 3 Outbox" in text(operator, "/admin/"), "the admin's own list of recent actions"
    logged = [(str(entry.user), entry.change_message) for entry in LogEntry.objects.filter(object_id="3")]
    what = "category TEAM, pause 3 by ada: <i>why</i>"
    assert logged[1:] == [("ada", f"resumed for 1:00:00: {what}; because: a try"), ("ada", f"paused: {what}")]


def test_what_cannot_be_paused_is_said(db: Database, operator: Client) -> None:
    for given, said in (
        ({}, "what is to be paused?"),
        ({"category": "TEEM"}, "there is no category TEEM, did you mean TEAM?"),
        ({"scope": "0"}, "a shard is named by scope and shard together"),
        ({"scope": "0", "shard": "<b>"}, "shard must be an integer (bigint), got '<b>'"),
        ({"category": "TEAM", "lasts": "soon"}, "the duration must be a duration"),
        ({"outbox": "region", "reason": "a\0b"}, "reason: Null characters are not allowed."),
    ):
        assert said in post(operator, PAUSE, **given)
    assert pauses(db) == []


def test_a_post_needs_its_token(db: Database, operator: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = operator.cookies
    assert strict.post(PAUSE, SHARD).status_code == 403
    token = re.findall('name="csrfmiddlewaretoken" value="(.*?)"', strict.get(PAUSE).content.decode())[-1]
    assert strict.post(PAUSE, {**SHARD, "csrfmiddlewaretoken": token}).status_code == 302
    assert len(pauses(db)) == 1


def test_messages_are_listed_page_by_page(db: Database, operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MESSAGES", 2)
    numbers = [save(obj, category, payload={"a": "secret"}) for obj in range(4) for category in ("TEAM", "MEMBER")]

    def listed(**given: Any) -> list[int]:
        found = operator.get(MESSAGES, given).content.decode()
        assert "secret" not in found
        return [int(number) for number in re.findall(rf'href="{MESSAGES}(\d+)/\?outbox=region"', found)]

    assert listed() == [numbers[7], numbers[6]]
    (older,) = re.findall(r'href="\?(before=\d+)"', operator.get(MESSAGES).content.decode())
    assert listed(**dict([older.split("=")])) == [numbers[5], numbers[4]]
    assert listed(before=numbers[1]) == [numbers[0]]
    assert listed(category="TEAM") == [numbers[6], numbers[4]]
    assert listed(category="2", object="0") == [numbers[0]]
    assert listed(**SHARD, object="1") == [numbers[3], numbers[2]]
    assert listed(scope="0", shard="8") == []
    assert "only the newest 100000 messages were searched" in text(operator, MESSAGES, category="TEAM")
    monkeypatch.setattr(answers, "BOUNDS", diagnosis.Bounds(object_rows=3))
    given = {"object": "0"}
    assert "No such message is among them. Older messages" in text(operator, MESSAGES, **given)
    pages = [[]]
    while older := re.findall(r'href="\?(.*before=\d+)">Older', operator.get(MESSAGES, given).content.decode()):
        given = dict(parse_qsl(html.unescape(older[0])))
        pages.append(listed(**given))
    assert pages == [[], [], [numbers[1], numbers[0]]]
    given = {**SHARD, "category": "TEAM"}
    assert (listed(**given), listed(**given, before=numbers[6])) == ([numbers[6]], [numbers[4]])
    for given, said in (
        ({"scope": "0"}, "a shard is named by its scope and its identifier"),
        ({"category": "TEEM"}, "there is no category TEEM"),
        ({"object": "x"}, "object must be an integer"),
        ({"outbox": "none"}, "there is no outbox none"),
        ({"region": "eu"}, "outbox region has no region_name"),
        ({"before": "x"}, "before: Enter a whole number."),
    ):
        assert said in text(operator, MESSAGES, **given)


def test_messages_of_regions(db: Database, operator: Client, regions: None) -> None:
    save(region_name="eu")
    assert "ORGANIZATION_SCOPE 7 in eu control 1" in text(operator)
    for given in ({}, {"region": "eu"}, {"region": "eu", **SHARD}):
        assert "ORGANIZATION_SCOPE 7 in eu" in text(operator, MESSAGES, outbox="control", **given)
    assert "No such message waits" in text(operator, MESSAGES, outbox="control", region="us")
    assert "outbox control shards by region: region is missing" in text(operator, MESSAGES, outbox="control", **SHARD)


def test_numbers_are_shown_as_they_are_typed(db: Database, operator: Client) -> None:
    save(1234567)
    with override_settings(USE_THOUSAND_SEPARATOR=True):
        for page in (MESSAGES, f"{MESSAGES}1/"):
            assert "1234567" in text(operator, page)
    assert "now" in text(operator, MESSAGES)
    assert f'href="{MESSAGES}?outbox=region"' in operator.get(PAGE).content.decode()


def test_a_message_shows_its_payload(db: Database, operator: Client) -> None:
    number = save(payload={"a": "<script>"}, headers={"b": "<i>"})
    content = operator.get(f"{MESSAGES}{number}/?outbox=region").content.decode()
    assert "&quot;a&quot;: &quot;&lt;script&gt;&quot;" in content
    assert "&quot;b&quot;: &quot;&lt;i&gt;&quot;" in content
    assert "ORGANIZATION_SCOPE 7 (scope 0) Category TEAM (2) Object 1" in text(
        operator, f"{MESSAGES}{number}/?outbox=region"
    )
    large = save(payload="x" * 600_000)
    assert "too large to be shown" in text(operator, f"{MESSAGES}{large}/")
    assert "message 999 is not in outbox region" in text(operator, f"{MESSAGES}999/")
    assert "there is no outbox none" in text(operator, f"{MESSAGES}1/?outbox=none")


def test_databases_are_apart(db: Database, archive: Database, operator: Client) -> None:
    with outbox_context("archive") as outbox:
        outbox.save("TEAM", shard_identifier=9, object_identifier=1)
    assert re.search("Database default .* Database archive .* ORGANIZATION_SCOPE 9", text(operator))
    post(operator, f"{PAGE}archive/pause/", category="TEAM")
    assert (len(pauses(archive)), pauses(db)) == (1, [])


@pytest.fixture
def stranger(db: Database) -> Iterator[str]:
    """The DSN of a role that may do nothing."""
    name = f"{db.name}_stranger"
    with psycopg.connect(db.dsn, autocommit=True) as server:
        server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
        yield psycopg.conninfo.make_conninfo(db.dsn, user=name, password="x")
        server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_trouble_is_said_on_the_page(db: Database, operator: Client, stranger: str, tmp_path: Path) -> None:
    for dsn, said in ((stranger, "GRANT USAGE ON SCHEMA outboxd"), ("host=/nowhere dbname=x", "connecting to")):
        (tmp_path / "outboxd.toml").write_text(CONFIG.format(dsn=dsn, modules=""))
        for page in (PAGE, MESSAGES, f"{MESSAGES}1/", f"{PAGE}default/resume/1/"):
            assert said in text(operator, page)
        assert said in post(operator, PAUSE, **SHARD)
    with override_settings(OUTBOXD_CONFIG=tmp_path / "none.toml"):
        assert "there is no file" in text(operator)
    with override_settings(OUTBOXD_CONFIG={}):
        assert text(operator).endswith("Outboxes OUTBOXD_CONFIG names no database.")


def test_nothing_is_dumped_of_what_has_no_table(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("dumpdata", "outboxd")
    call_command("dumpdata", "outboxd", use_base_manager=True)
    assert capsys.readouterr().out.split() == ["[][]"]


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def submitted(client: Client, page: str) -> dict[str, str]:
    """Return what a browser submits when nothing is typed into a page's form: its fields have one line."""
    found = re.findall(r'name="(\w+)"(?: value="(.*?)")?', client.get(page).content.decode(), re.DOTALL)
    return {name: re.sub(r"[\r\n]", "", html.unescape(value)) for name, value in found if "csrf" not in name}


@pytest.mark.parametrize("shard", ["a", " a", "a ", "", "<b>&\"'", "é\u202e\n", "a\r\nb", "-- x"])
def test_the_shard_that_a_link_names_is_shown_and_paused(db: Database, operator: Client, shard: str) -> None:
    execute("ALTER TABLE outbox ALTER shard_identifier TYPE text")
    configuration.forget()
    for name in {shard, "a", "b"}:
        with outbox_context() as outbox:
            outbox.save("TEAM", shard_identifier=name, object_identifier=1 if name == shard else 2)
    links = re.findall(r'href="(.*?\?.*?shard=.*?)"', operator.get(PAGE).content.decode())
    (listed,) = (link for link in links if query_of(link)["shard"] == shard and "messages" in link)
    (pause,) = (link for link in links if query_of(link)["shard"] == shard and "pause" in link)
    assert re.findall(r"TEAM \(2\) (\d)", text(operator, html.unescape(listed))) == ["1"]
    assert operator.post(html.unescape(pause), submitted(operator, html.unescape(pause))).status_code == 302
    assert db.rows("SELECT shard_identifier FROM outboxd.pause") == [(shard,)]


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(html.unescape(link)).query, keep_blank_values=True))


def test_what_is_typed_wins_over_the_link(db: Database, operator: Client) -> None:
    operator.post(f"{PAUSE}?scope=0&shard=7", {"scope": "0", "shard": "8"})
    assert "a shard is named by scope and shard together" in post(operator, PAUSE, shard="7", scope="")
    assert "shard must be an integer (bigint), got ''" in post(operator, PAUSE, shard="", scope="0")
    assert db.rows("SELECT shard_identifier FROM outboxd.pause") == [("8",)]


def test_an_outbox_may_have_any_name(db: Database, operator: Client, tmp_path: Path) -> None:
    number = save()
    for name in ("a/b", "..", "a?b#c&d", "é b"):
        config = CONFIG.format(dsn=db.dsn, modules="").replace('name = "region"', f'name = "{name}"')
        (tmp_path / "outboxd.toml").write_text(config)
        (link,) = re.findall(rf'href="({MESSAGES}{number}/.*?)"', operator.get(MESSAGES).content.decode())
        assert f"Outbox {name} Shard" in text(operator, html.unescape(link))


def test_times_that_python_does_not_have(db: Database, operator: Client) -> None:
    number = save()
    for time, shown in (
        ("9999-12-31 23:59:59+00", "9999-12-31"),
        ("infinity", "infinity"),
        ("0001-01-01 00:00:00+00 BC", "BC"),
        ("0001-01-01 00:00:00+00", "0001-01-01"),
    ):
        db.rows(f"UPDATE outbox SET scheduled_for = '{time}', date_added = '{time}' RETURNING 1")
        for zone in ("Asia/Tokyo", "America/New_York"):
            with override_settings(TIME_ZONE=zone):
                for page in (PAGE, MESSAGES, f"{MESSAGES}{number}/"):
                    assert shown in text(operator, page), (page, zone)


def test_a_message_is_shown_as_it_is_stored(db: Database, operator: Client) -> None:
    number = save()

    def shown(payload: str) -> str:
        db.rows(f"UPDATE outbox SET payload = ({payload})::jsonb, headers = payload RETURNING 1")
        return html.unescape(operator.get(f"{MESSAGES}{number}/").content.decode())

    assert "1234567890123456.7890" in shown("""'{"n": 1234567890123456.7890}'""")
    assert "9" * 5000 in shown("repeat('9', 5000)")
    assert "[]" in shown("repeat('[', 5000) || repeat(']', 5000)")
    assert "<pre>null</pre>" in shown("'null'")
    assert '<pre>{\n  "a": [\n    {},\n    []\n  ],\n  "b,]": ":"\n}</pre>' in shown(
        """'{"b,]": ":", "a": [{}, []]}'"""
    )


def test_more_pauses_than_are_shown(db: Database, operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PAUSES", 2)
    for _ in range(2):
        post(operator, PAUSE, category="TEAM")
    assert "There are more" not in text(operator)
    said = operator.post(PAUSE, {"category": "MEMBER"}, follow=True).content.decode()
    assert f'<a href="{PAGE}default/resume/3/">Resume</a>' in said
    assert "There are more: these are the oldest 2." in text(operator)
    assert "category MEMBER, pause 3 by ada" in text(operator, f"{PAGE}default/resume/3/")


def test_a_pause_that_has_to_wait_is_given_up(db: Database, operator: Client) -> None:
    with psycopg.connect(db.dsn) as other:
        other.execute("LOCK TABLE outboxd.pause IN SHARE MODE")
        assert "writing a pause: canceling statement due to lock timeout" in post(operator, PAUSE, category="TEAM")
    assert pauses(db) == []


def test_a_user_s_name_may_be_a_number(db: Database, operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(User, "get_username", lambda _: 4711)  # as with a USERNAME_FIELD of integers
    post(operator, PAUSE, category="TEAM")
    assert pauses(db)[0][6] == "4711"


def test_a_pause_stands_where_the_admin_s_log_fails(db: Database, operator: Client) -> None:
    execute("ALTER TABLE django_admin_log ADD CHECK (false) NOT VALID")
    assert "It is done, but the admin's log has no entry of it" in post(operator, PAUSE, category="TEAM")
    assert len(pauses(db)) == 1


def test_a_setting_that_is_no_path(db: Database, operator: Client) -> None:
    for given in (5, b"x", ["x"], {"default": 5}):
        with override_settings(OUTBOXD_CONFIG=given):
            for page in (PAGE, MESSAGES):
                assert "OUTBOXD_CONFIG must be a path, or a dict from database to path, got" in text(operator, page)
