"""What the commands that look at messages show of a database with all kinds of trouble."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import outboxd
from tests.drains import write
from tests.processes import run
from tests.trouble import (
    CATEGORY_OFF,
    DEEP,
    DEEP_ROWS,
    EU_FAILING,
    FAILING,
    FUTURE,
    HEALTHY,
    INVISIBLE,
    ORGANIZATION,
    PAUSED,
    SKIPPING,
    SWITCHED_OFF,
    UNHANDLED,
    UNKNOWN,
    US_HEALTHY,
    US_PAUSED,
    USER,
    Trouble,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


async def told(trouble: Trouble, *arguments: str) -> list[dict[str, Any]]:
    done = await run(*arguments, "--json", config=trouble.file)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


CUT = "there may be more (--limit)"


async def shown(trouble: Trouble, *arguments: str) -> str:
    done = await run(*arguments, config=trouble.file)
    assert (done.returncode, [line for line in done.stderr_lines if CUT not in line]) == (0, [])
    return done.stdout


def by_shard(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["shard_scope"], row["shard_identifier"], row["region_name"]): row for row in rows}


async def test_shards_are_listed_deepest_first_each_with_its_state(trouble: Trouble) -> None:
    rows = await told(trouble, "shards", "--limit", "100")
    found = by_shard(rows)
    state = {shard: row["state"] for shard, row in found.items()}

    assert [row["depth"] for row in rows] == sorted((row["depth"] for row in rows), reverse=True)
    assert (rows[0]["shard_identifier"], rows[0]["depth"], rows[0]["due"]) == (DEEP, DEEP_ROWS, DEEP_ROWS)
    assert state == {
        (ORGANIZATION, HEALTHY, None): "due",
        (ORGANIZATION, DEEP, None): "due",
        (ORGANIZATION, FAILING, None): "in backoff",
        (ORGANIZATION, SKIPPING, None): "due",
        (ORGANIZATION, PAUSED, None): "paused",
        (ORGANIZATION, SWITCHED_OFF, None): "paused",
        (ORGANIZATION, CATEGORY_OFF, None): "paused",
        (ORGANIZATION, FUTURE, None): "not due",
        (ORGANIZATION, UNKNOWN, None): "in backoff",
        (ORGANIZATION, UNHANDLED, None): "in backoff",
        (USER, EU_FAILING, "eu"): "in backoff",
        (USER, US_HEALTHY, "us"): "due",
        (USER, US_PAUSED, "us"): "paused",
        (USER, US_PAUSED, "eu"): "due",
    }
    assert (ORGANIZATION, INVISIBLE, None) not in found
    assert not any(row["is_estimate"] for row in rows)
    paused = found[ORGANIZATION, PAUSED, None]
    assert paused["because"] == "shard paused by ada: their endpoint is down"
    assert paused["until"] is not None
    assert found[ORGANIZATION, CATEGORY_OFF, None]["because"] == "category AUDIT paused by ada: bad deploy"
    option = "outbox.disabled_shards.ORGANIZATION_SCOPE"
    because = f"shard off by option {option}, set by grace: they write too much"
    assert found[ORGANIZATION, SWITCHED_OFF, None]["because"] == because
    assert "answers 503 for object 31" in found[ORGANIZATION, FAILING, None]["because"]
    assert "answers 503 for object 41" in found[ORGANIZATION, SKIPPING, None]["because"]


async def test_what_is_switched_off_is_shown_even_where_its_shard_is_not(trouble: Trouble) -> None:
    text = await shown(trouble, "shards", "--limit", "1")

    assert len(text.partition("\n\n")[0].splitlines()) == 2
    switched_off = text.partition("switched off now:\n")[2].splitlines()
    assert sorted(line.strip().partition(",")[0] for line in switched_off) == [
        "category AUDIT",
        "shard ORGANIZATION_SCOPE 5",
        "shard ORGANIZATION_SCOPE 6",
        "shard USER_SCOPE 22 in us",
    ]
    assert "over long ago" not in text


async def test_a_paused_backfill_is_shown_as_well(trouble: Trouble) -> None:
    trouble.file.write_text(
        trouble.file.read_text() + '[[model]]\ntable = "member"\noutbox = "region"\ncategory = "MEMBER"\n'
        'shard_identifier = "organization_id"\n'
    )
    for arguments in (["--backfill", "member"], ["--backfill-all"]):
        assert (await run("pause", *arguments, config=trouble.file)).returncode == 0

    everything, region, control = [
        (await shown(trouble, "shards", *arguments)).partition("switched off now:\n")[2]
        for arguments in ([], ["--outbox", "region"], ["--outbox", "control"])
    ]

    assert "backfill of member, pause 5" in everything
    assert "backfill of every table, pause 6" in everything
    assert "backfill of member" in region
    assert "backfill of member" not in control


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(["inspect", "1", "21"], True), (["object", "6", "231"], True), (["explain", "1", "21"], True),
     (["depth", "6"], True), (["inspect", "1", "21", "--outbox", "region"], False),
     (["drain", "1", "21"], True), (["drain", "1", "21", "--outbox", "region"], False),
     (["retry", "1", "21"], True), (["retry", "1", "21", "--outbox", "region"], False),
     (["inspect", "1", "24", "--region", "eu"], False), (["inspect", "0", "1"], False)],
)  # fmt: skip
async def test_where_nothing_is_found_the_outbox_with_regions_is_named(
    trouble: Trouble, arguments: list[str], other: bool
) -> None:
    done = await run(*arguments, config=trouble.file)

    note = "note: only outbox region was looked at; outbox control has regions: look there with --region NAME"
    assert done.returncode == (arguments[0] == "retry")
    assert (note in done.stderr_lines) == other


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [(["inspect", "9", "1"], "scope 9"), (["explain", "9", "1"], "scope 9"), (["retry", "9", "1"], "scope 9"),
     (["pause", "--scope", "9", "--shard", "1"], "scope 9"), (["pause", "--category", "999"], "category 999"),
     (["depth", "999"], "category 999"), (["object", "999", "91"], "category 999"),
     (["retry", "0", "9", "--category", "999"], "category 999")],
)  # fmt: skip
async def test_a_number_that_stands_for_nothing_is_taken_and_that_is_said(
    trouble: Trouble, arguments: list[str], unknown: str
) -> None:
    done = await run(*arguments, config=trouble.file)

    assert done.stderr.startswith(f"note: the configuration has no {unknown} (it has: ")
    assert done.returncode == (1 if arguments == ["retry", "9", "1"] else 0)


async def test_every_way_to_switch_something_off_is_seen(trouble: Trouble) -> None:
    connection = trouble.connection
    await connection.execute(
        "INSERT INTO outboxd.option (key, value, expires_at) VALUES"
        """ ('outbox.disabled_outboxes', '["control", "nothing"]', NULL),"""
        """ ('outbox.disabled_categories', '["TEAM", 7]', NULL),"""
        """ ('outbox.disabled_shards.USER_SCOPE', '{"not": "a list"}', NULL)"""
    )
    await connection.execute(
        """UPDATE outboxd.option SET value = '["2", 1.0]' WHERE key = 'outbox.disabled_shards.ORGANIZATION_SCOPE'"""
    )

    found = by_shard(await told(trouble, "shards", "--limit", "100"))

    assert found[USER, US_HEALTHY, "us"]["because"] == "outbox off by option outbox.disabled_outboxes"
    assert {row["state"] for row in found.values() if row["outbox"] == "control"} == {"paused"}
    assert [found[ORGANIZATION, shard, None]["state"] for shard in (DEEP, HEALTHY)] == ["paused", "paused"]
    assert (
        found[ORGANIZATION, SWITCHED_OFF, None]["because"] == "category TEAM off by option outbox.disabled_categories"
    )
    failing = found[ORGANIZATION, FAILING, None]
    assert failing["state"] == "in backoff"
    assert failing["because"].startswith("category TEAM off by option outbox.disabled_categories; attempt 3 failed")


async def test_stuck_shards_are_those_that_have_failed(trouble: Trouble) -> None:
    found = by_shard(await told(trouble, "shards", "--stuck"))
    text = await shown(trouble, "shards", "--stuck", "--region", "eu")

    assert set(found) == {
        *((ORGANIZATION, shard, None) for shard in (FAILING, SKIPPING, UNKNOWN, UNHANDLED)),
        (USER, EU_FAILING, "eu"),
    }
    failing = found[ORGANIZATION, FAILING, None]
    assert (failing["depth"], failing["attempts"], failing["object_identifier"]) == (12, 3, 31)
    assert failing["next_attempt"] > failing["newest"] >= failing["oldest"]
    assert found[ORGANIZATION, UNKNOWN, None]["category_name"] == "999"
    titles, row = text.splitlines()[:2]
    assert titles.split() == ["shard", "category", "depth", "next", "try", "oldest", "newest", "tries"]
    assert row.split()[:6] == ["USER_SCOPE", "21", "in", "eu", "PROFILE", "2"]
    assert "USER_SCOPE 21 in eu, object 231: tests.trouble_receivers.replicate raised ConnectionError" in text


async def test_of_a_stuck_shard_what_holds_it_is_shown(trouble: Trouble) -> None:
    for arguments in (
        ["--scope", "0", "--shard", str(FAILING), "--reason", "x", "--author", "ada", "--expires", "2h"],
        ["--category", "SKIPPING", "--author", "ada"],
        ["--scope", "1", "--shard", str(EU_FAILING), "--region", "us"],
    ):
        assert (await run("pause", *arguments, config=trouble.file)).returncode == 0

    found = by_shard(await told(trouble, "shards", "--stuck"))
    text = await shown(trouble, "shards", "--stuck")

    assert {key: row["paused"] for key, row in found.items() if row["paused"]} == {
        (ORGANIZATION, FAILING, None): "shard paused by ada: x",
        (ORGANIZATION, SKIPPING, None): "category SKIPPING paused by ada",
    }
    assert found[ORGANIZATION, FAILING, None]["paused_until"] is not None
    assert found[ORGANIZATION, SKIPPING, None]["paused_until"] is None
    assert re.search(rf"ORGANIZATION_SCOPE {FAILING} .* paused for (2 h|1 h 59 min) ", text)
    assert f"ORGANIZATION_SCOPE {FAILING}, object 31: shard paused by ada: x; tests.trouble_receivers" in text
    assert "switched off now:\n" in text
    await trouble.connection.execute("DELETE FROM outboxd.failure")
    assert "switched off now:\n" in await shown(trouble, "shards", "--stuck")


async def test_where_pauses_add_up_the_last_end_is_shown(trouble: Trouble) -> None:
    shard = ["--scope", "0", "--shard", str(FAILING)]
    for arguments in (["--outbox", "region", "--expires", "1h"], shard, [*shard, "--expires", "2h"]):
        assert (await run("pause", *arguments, "--author", "ada", config=trouble.file)).returncode == 0

    deepest = by_shard(await told(trouble, "shards", "--limit", "100"))
    stuck = by_shard(await told(trouble, "shards", "--stuck"))

    assert deepest[ORGANIZATION, FAILING, None]["until"] is None
    assert deepest[ORGANIZATION, FAILING, None]["because"].startswith("shard paused by ada; attempt 3")
    assert deepest[ORGANIZATION, HEALTHY, None]["because"] == "outbox paused by ada"
    assert deepest[ORGANIZATION, HEALTHY, None]["until"] is not None
    assert stuck[ORGANIZATION, FAILING, None]["paused_until"] is None


async def test_of_a_shard_with_several_failing_objects_the_worst_is_named(trouble: Trouble) -> None:
    connection = trouble.connection
    message = await write(connection, shard=SKIPPING, obj=45, category="SKIPPING")
    await connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id,"
        " attempts) VALUES ('region', 0, $1, 4, '45', $2, 9), ('region', 0, '77', 4, '1', 999, 1)",
        str(SKIPPING),
        message,
    )

    found = by_shard(await told(trouble, "shards", "--stuck"))

    worst = found[ORGANIZATION, SKIPPING, None]
    assert (worst["object_identifier"], worst["attempts"], worst["failing_objects"]) == (45, 9, 2)
    gone = found[ORGANIZATION, "77", None]
    assert (gone["depth"], gone["next_attempt"]) == (None, None)
    assert "? means that the message which failed is gone" in await shown(trouble, "shards", "--stuck")


async def test_inspect_shows_the_newest_messages_first(trouble: Trouble) -> None:
    rows = await told(trouble, "inspect", "ORGANIZATION_SCOPE", str(DEEP))
    same = await told(trouble, "inspect", "0", str(FAILING), "--limit", "100")

    assert [row["object_identifier"] for row in rows] == list(range(10_000 + DEEP_ROWS, 10_000 + DEEP_ROWS - 50, -1))
    assert rows[0]["payload"] == {"n": DEEP_ROWS}
    assert rows[0]["is_due"]
    assert [(row["object_identifier"], row["attempts"]) for row in same[-2:]] == [(32, None), (31, 3)]


async def test_huge_payloads_are_cut_for_people_and_left_out_of_documents(trouble: Trouble) -> None:
    connection = trouble.connection
    await write(connection, shard=70, obj=1, payload="".join(f"{n:x}" for n in range(60_000)))
    await write(connection, shard=70, obj=2, payload="\x1b[31m" + "x" * 10_000_000)
    await write(connection, shard=70, obj=3, payload={"text": "\x1b[31m\n" + "long " * 50})

    rows = await told(trouble, "inspect", "0", "70")
    text = await shown(trouble, "inspect", "0", "70")

    assert [row["payload"] is None for row in rows] == [False, True, True]
    assert rows[0]["payload"]["text"].startswith("\x1b[31m\nlong")
    assert rows[2]["payload_size"] > 65_536
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert text.count(" bytes)") == 2


async def test_payloads_that_python_cannot_read_are_shown_as_they_are(trouble: Trouble) -> None:
    payloads = [
        "null",
        "9" * 5_000,
        "[" * 3_000 + "]" * 3_000,
        '{"n": 1.50, "exact": 0.1000000000000000055511151231257827}',
    ]
    for payload in payloads:
        await trouble.connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)"
            " VALUES (0, 70, 1, 70, $1)",
            payload,
        )

    for arguments in (("inspect", "0", "70"), ("object", "MEMBER", "70", "--outbox", "region")):
        document = (await run(*arguments, "--json", config=trouble.file)).stdout
        text = await shown(trouble, *arguments)
        for payload in payloads:
            assert re.sub(r"\s", "", payload) in re.sub(r"\s", "", document)
            assert f" {payload[:39]}" in text


async def test_depth_and_object_take_names_and_numbers(trouble: Trouble) -> None:
    by_name, by_number = await told(trouble, "depth", "MEMBER"), await told(trouble, "depth", "1")
    nothing = await told(trouble, "depth", "4711")
    (member,) = await told(trouble, "object", "MEMBER", "31")
    same = await told(trouble, "object", "1", "31")
    everywhere = await told(trouble, "object", "PROFILE", "221", "--outbox", "control")
    in_region = await told(trouble, "object", "PROFILE", "221", "--region", "us")
    profiles = await told(trouble, "depth", "PROFILE", "--outbox", "control")

    waiting = 10 + 3 + DEEP_ROWS // 2 + 4 + 2
    assert by_name == by_number
    assert (by_name[0]["depth"], by_name[0]["due"]) == (waiting, waiting - 12)
    assert (nothing[0]["depth"], nothing[0]["category_name"], nothing[0]["oldest"]) == (0, "4711", None)
    assert (member["shard_identifier"], member["attempts"], member["payload"]) == (FAILING, 3, {"slug": "member-31"})
    assert same == [member]
    assert sorted(row["region_name"] for row in everywhere) == ["eu", "us"]
    assert [row["region_name"] for row in in_region] == ["us"]
    assert profiles[0]["depth"] == 6


async def test_nothing_is_said_in_words(trouble: Trouble) -> None:
    for table in ("outbox", "control_outbox", "outboxd.failure", "outboxd.pause", "outboxd.option"):
        await trouble.connection.execute(f"DELETE FROM {table}")

    assert await shown(trouble, "shards") == "no message waits there\n"
    assert await shown(trouble, "shards", "--stuck") == "no shard is in backoff\n"
    region = ("--outbox", "region")
    assert await shown(trouble, "inspect", "0", "1", *region) == (
        "no message waits in shard 1 of ORGANIZATION_SCOPE, outbox region\n"
    )
    assert await shown(trouble, "object", "1", "1", *region) == "no message waits there, in outbox region\n"
    assert (await shown(trouble, "depth", "1", *region)).splitlines()[1].split() == [
        "MEMBER",
        "region",
        "0",
        "0",
        "-",
        "-",
    ]
    assert await told(trouble, "shards") == []


@pytest.mark.parametrize(
    ("arguments", "which"),
    [(["shards"], "deepest"), (["shards", "--stuck"], "first"), (["inspect", "0", "3"], "newest"),
     (["object", "6", "221", "--outbox", "control"], "newest"), (["dead-letters", "list"], "newest")],
)  # fmt: skip
async def test_a_list_that_ends_at_its_limit_says_so(trouble: Trouble, arguments: list[str], which: str) -> None:
    cut = await run(*arguments, "--limit", "1", config=trouble.file)
    whole = await run(*arguments, "--limit", "100", config=trouble.file)

    assert cut.stderr == f"the {which} 1: there may be more (--limit)\n"
    assert whole.stderr == ""
    assert (await run(*arguments, "--limit", "1", "--json", config=trouble.file)).stderr == cut.stderr


async def test_times_that_python_does_not_know_are_shown(trouble: Trouble) -> None:
    for time in ("infinity", "-infinity", "20000-01-01", "0044-03-15 BC"):
        await trouble.connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, scheduled_for, date_added)"
            f" VALUES (0, 71, 1, 1, '{time}', '{time}')"
        )

    lines = (await shown(trouble, "inspect", "0", "71")).splitlines()
    shards = await shown(trouble, "shards", "--limit", "100")

    assert len(lines) == 5
    assert "ORGANIZATION_SCOPE 71" in shards


async def test_the_functions_answer_what_the_commands_do(trouble: Trouble) -> None:
    connection, config = trouble.connection, trouble.config

    deepest = await outboxd.get_shard_depths_descending(connection, config, 2)
    of_control = await outboxd.get_shard_depths_descending(connection, config, outboxes=[config.outboxes[1]])
    total = await outboxd.get_total_outbox_count(connection, config)

    assert [(each.shard_identifier, each.depth) for each in deepest] == [(DEEP, DEEP_ROWS), (FAILING, 12)]
    assert {each.outbox for each in of_control} == {"control"}
    assert len(of_control) == 4
    rows = sum([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("outbox", "control_outbox")])
    assert (total.messages, total.is_estimate) == (rows, False)
