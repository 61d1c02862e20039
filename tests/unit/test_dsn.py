"""DSNs: what providers print works, asyncpg understands what we pass, and no password is ever shown."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from asyncpg import connect_utils
from hypothesis import given
from hypothesis import strategies as st

from outboxd import dsn, errors

if TYPE_CHECKING:
    from pathlib import Path


def problems(text: str) -> list[str]:
    with pytest.raises(errors.ConfigError) as caught:
        dsn.connect_arguments(text)
    return caught.value.problems


def refusal(text: str) -> str:
    """What is said against a DSN; empty when it is understood. Any other error passes."""
    try:
        dsn.parameters(text)
    except errors.ConfigError as exc:
        return str(exc)
    return ""


def as_asyncpg_reads(text: str) -> tuple[list[Any], Any]:
    """What asyncpg makes of our arguments: addresses and parameters."""
    arguments = dsn.connect_arguments(text)
    names = (
        "dsn", "host", "port", "user", "password", "passfile", "database", "ssl", "service", "direct_tls",
        "server_settings", "target_session_attrs", "krbsrvname", "gsslib", "servicefile",
    )  # fmt: skip
    read: Any = vars(connect_utils)["_parse_connect_dsn_and_args"]
    addresses, parameters = read(**{n: arguments.get(n) for n in names})
    return addresses, parameters


PRINTED = {
    "plain": "postgres://u:p%40ss@db.example.com:6543/app",
    "neon": "postgresql://u:p%40ss@ep-x.eu.aws.neon.tech:6543/app?sslmode=require&channel_binding=require",
    "neon, endpoint": "postgres://u:p%40ss@h:6543/app?options=endpoint%3Dep-x&sslmode=require",
    "supabase": "postgres://u:p%40ss@aws-0.pooler.supabase.com:6543/app?pgbouncer=true&connection_limit=1",
    "prisma": "postgresql://u:p%40ss@h:6543/app?schema=shop&pool_timeout=10&socket_timeout=5&sslaccept=strict",
    "sqlalchemy": "postgresql+asyncpg://u:p%40ss@h:6543/app?ssl=require",
    "node": "postgres://u:p%40ss@h:6543/app?sslmode=no-verify",
    "libpq's own": "postgresql://u:p%40ss@h:6543/app?keepalives=1&keepalives_idle=5&gssencmode=disable"
    "&sslcompression=0&client_encoding=utf8&load_balance_hosts=random&connect_timeout=5&tcp_user_timeout=1",
    "conninfo": r"host=h port=6543 dbname=app user=u password='p@ss' sslmode = require",
}


@pytest.mark.parametrize("text", PRINTED.values(), ids=PRINTED.keys())
def test_what_providers_print_reaches_the_same_place(text: str) -> None:
    [(_, port)], parameters = as_asyncpg_reads(text)

    assert port == 6543
    assert (parameters.user, parameters.password, parameters.database) == ("u", "p@ss", "app")
    assert set(parameters.server_settings or {}) <= {"options", "search_path"}


def test_no_dsn_leaves_everything_to_libpqs_variables() -> None:
    assert dsn.connect_arguments("") == dsn.connect_arguments("  ") == {}


@pytest.mark.parametrize("host", ["postgresql://u@h", "postgresql://", "host=h", "postgresql://?sslmode=require"])
def test_what_a_dsn_leaves_out_is_not_set(host: str) -> None:
    assert not {"database", "password", "port", "timeout"} & set(dsn.connect_arguments(host))


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("postgres://a:1,b:2/d", [("a", 1), ("b", 2)]),
        ("postgres://a,b/d", [("a", 5432), ("b", 5432)]),
        ("postgres://a:1,b/d", [("a", 1), ("b", 5432)]),
        ("host=a,b port=1 dbname=d", [("a", 1), ("b", 1)]),
        ("postgres://[::1]:7,[fe80::1]/d", [("::1", 7), ("fe80::1", 5432)]),
        ("postgres:///d?host=/run/pg&port=7", ["/run/pg/.s.PGSQL.7"]),
        ("postgres://%2Frun%2Fpg/d", ["/run/pg/.s.PGSQL.5432"]),
        (
            "postgres://u@/d?host=/cloudsql/project:region:instance",
            ["/cloudsql/project:region:instance/.s.PGSQL.5432"],
        ),
        ("hostaddr=10.0.0.1 dbname=d", [("10.0.0.1", 5432)]),
        ("host=a hostaddr=10.0.0.1 dbname=d", [("a", 5432)]),
    ],
)
def test_hosts_and_sockets(text: str, addresses: list[Any]) -> None:
    assert as_asyncpg_reads(text)[0] == addresses


def test_conninfo_quotes_and_backslashes() -> None:
    text = r"password='it\'s a \\ b' user = a\ b dbname='' application_name=x\'y host=h"
    found = dsn.parameters(text)

    assert found == {
        "password": r"it's a \ b",
        "user": "a b",
        "dbname": "",
        "application_name": "x'y",
        "host": "h",
    }


@given(user=st.text(min_size=1), password=st.text(min_size=1), database=st.text(min_size=1))
def test_any_percent_encoded_part_survives(user: str, password: str, database: str) -> None:
    def quote(text: str) -> str:
        return "".join(f"%{byte:02X}" for byte in text.encode())

    found = dsn.parameters(f"postgresql://{quote(user)}:{quote(password)}@h/{quote(database)}")

    assert found == {"user": user, "password": password, "host": "h", "dbname": database}


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "verifies", "checks_name"),
    [
        ("allow", False, False),
        ("prefer", False, False),
        ("require", False, False),
        ("no-verify", False, False),
    ],
)
def test_modes_without_a_certificate_authority(mode: str, verifies: bool, checks_name: bool) -> None:
    context = as_asyncpg_reads(f"postgres://h/d?sslmode={mode}")[1].ssl

    assert (context.verify_mode is ssl.CERT_REQUIRED, context.check_hostname) == (verifies, checks_name)


def test_disable_means_no_tls() -> None:
    assert as_asyncpg_reads("postgres://h/d?sslmode=disable")[1].ssl is False


@pytest.mark.parametrize("mode", ["", "&sslmode=require", "&sslmode=verify-full", "&sslmode=verify-ca"])
def test_the_systems_authorities_always_verify_certificate_and_name(mode: str) -> None:
    context = dsn.connect_arguments(f"postgres://h/d?sslrootcert=system{mode}")["ssl"]

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_the_systems_authorities_with_direct_tls() -> None:
    text = "postgres://h/d?sslrootcert=system&sslnegotiation=direct"

    assert as_asyncpg_reads(text)[1].ssl_negotiation is connect_utils.SSLNegotiation.direct


def test_the_systems_authorities_without_tls_is_a_contradiction() -> None:
    assert problems("postgres://h/d?sslrootcert=system&sslmode=disable") == [
        "dsn: sslrootcert=system needs TLS, but sslmode is disable"
    ]


def test_certificate_files_are_handed_on(tmp_path: Path) -> None:
    root = tmp_path / "root & ca.crt"
    root.write_text("")

    found = dsn.connect_arguments(f"host=h sslmode=verify-ca sslrootcert='{root}'")

    assert parse_qs(found["dsn"].partition("?")[2]) == {
        "sslmode": ["verify-ca"],
        "sslrootcert": [str(root)],
    }


def test_every_certificate_file_that_cannot_be_read_is_named() -> None:
    text = "postgres://h/d?sslrootcert=/no/root&sslcert=/no/cert&sslkey=/no/key"

    assert problems(text) == [
        f"dsn: ssl{name}: cannot read /no/{path}: No such file or directory"
        for name, path in (("cert", "cert"), ("key", "key"), ("rootcert", "root"))
    ]


def test_a_client_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "client.crt"
    file.write_text("nothing")

    [problem] = problems(f"postgres://h/d?sslrootcert=system&sslcert={file}")

    assert problem.startswith(f"dsn: sslcert {file}: ")


def test_the_form_is_checked_without_touching_files() -> None:
    assert dsn.parameters("postgres://h/d?sslrootcert=/no/root")["sslrootcert"] == "/no/root"


# --- other parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("connect_timeout=5", {"timeout": 5.0}),
        ("connect_timeout=0", {}),
        ("connect_timeout=-1", {}),
        ("pgbouncer=true", {"statement_cache_size": 0}),
        ("pgbouncer=false", {}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("application_name=shop", {"server_settings": {"application_name": "shop"}}),
        ("options=-c%20jit%3Doff", {"server_settings": {"options": "-c jit=off"}}),
        ("options=-c+jit%3Doff", {"server_settings": {"options": "-c jit=off"}}),
        ("schema=sh%22op", {"server_settings": {"search_path": '"sh""op"'}}),
        ("schema=public", {}),
        ("schema=a&search_path=b", {"server_settings": {"search_path": "b"}}),
        ("app.tenant=7", {"server_settings": {"app.tenant": "7"}}),
        ("passfile=/p", {"passfile": "/p"}),
        ("sslrootcert=", {}),
    ],
)
def test_each_parameter_becomes_what_asyncpg_knows(query: str, expected: dict[str, Any]) -> None:
    found = dsn.connect_arguments(f"postgres://h/d?{query}")

    assert {k: v for k, v in found.items() if k not in ("host", "database")} == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmod=require", "unknown parameter sslmod, did you mean sslmode?"),
        ("zzzzzzzzzz=1", "unknown parameter zzzzzzzzzz"),
        ("replication=database", "parameter replication is not supported"),
        ("require_auth=scram-sha-256", "parameter require_auth is not supported"),
        (
            "target_session_attrs=master",
            "target_session_attrs must be one of any, primary, standby, read-write, read-only, "
            "prefer-standby, got 'master'",
        ),
        ("sslnegotiation=fast", "sslnegotiation must be one of postgres, direct, got 'fast'"),
        ("connect_timeout=5s", "connect_timeout must be a number of seconds, got '5s'"),
        ("port=0", "port must be a number from 1 to 65535"),
        ("port=65536", "port must be a number from 1 to 65535"),
        ("port=1,2", "2 ports for 1 hosts"),
        ("sslmode", "a parameter after the ? has no value"),
    ],
)
def test_a_wrong_parameter_is_named(query: str, expected: str) -> None:
    assert problems(f"postgres://h/d?{query}") == [f"dsn: {expected}"]


def test_all_problems_of_a_dsn_are_reported_under_its_key() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        dsn.connect_arguments("postgres://h:x/d?a=1&sslmode=on", key="session_dsn")

    assert caught.value.problems == [
        "session_dsn: host and port cannot be told apart; in a password, @ : / ? # [ ] and % must be percent-encoded"
    ]
    with pytest.raises(errors.ConfigError) as caught:
        dsn.connect_arguments("postgres://h/d?aa=1&connect_timeout=x", key="session_dsn")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["mysql://h/d", "://h", "jdbc:postgresql://h/d", "app", "host=h user", "host='h"])
def test_what_is_no_dsn_is_refused(text: str) -> None:
    [problem] = problems(text)

    assert problem.startswith(("dsn: unknown scheme", "dsn: neither a postgresql:// URL nor key=value"))


# --- secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("postgresql://u:hunter2@h:5432/d?sslmode=require", "postgresql://u:***@h:5432/d?sslmode=require"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql://h/d?user=u&password=hunter2&x=y", "postgresql://h/d?user=u&password=***&x=y"),
        ("postgresql://h/d?sslpassword=hunter2", "postgresql://h/d?sslpassword=***"),
        ("postgresql://h/d?pass%77ord=hunter2", "postgresql://h/d?pass%77ord=***"),
        ("host=h password=hunter2 user=u", "host=h password=*** user=u"),
        (r"host=h password = 'hunter2 \' x' user=u", "host=h password = *** user=u"),
        ("host=h password='hunter2", "host=h password=***"),
        ("host=h PASSWORD=hunter2", "host=h PASSWORD=***"),
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?password=***"),
        ("hunter2", "***"),
    ],
)
def test_masked_shows_all_but_the_password(text: str, shown: str) -> None:
    assert dsn.masked(text) == shown


@pytest.mark.parametrize(
    "password", ["hunt@er2", "hunt/er2", "hunt?er2", "hunt#er2", "hunt:er2", "hunt?a=er2", "1/er2"]
)
def test_a_password_with_a_stray_character_stays_hidden(password: str) -> None:
    text = f"postgresql://u:{password}@h/d"

    assert "er2" not in dsn.masked(text)
    assert "er2" not in refusal(text)


@given(st.text())
def test_masked_never_raises(text: str) -> None:
    dsn.masked(text)
    dsn.masked(f"postgresql://{text}")
    dsn.masked_within(text)


SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(SECRET)
def test_a_url_is_either_understood_or_refused_without_showing_its_password(junk: str) -> None:
    password = f"{junk}hunter2"
    text = f"postgresql://u:{password}@h/d"

    assert "hunter2" not in dsn.masked(text)
    assert "hunter2" not in refusal(text)


@given(st.text())
def test_whatever_is_given_is_understood_or_a_config_error(text: str) -> None:
    for candidate in (text, f"postgresql://{text}", f"host=h {text}"):
        assert refusal(candidate) is not None


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach postgresql://u:hunter2@h/d: no",
        "redis://:hunter2@h",
        "cannot reach host=h password=hunter2 dbname=d: no",
        "password = hunter2",
    ],
)
def test_passwords_of_dsns_inside_a_text_are_masked(text: str) -> None:
    assert dsn.masked_within(text) == text.replace("hunter2", "***")


def test_a_password_with_a_stray_at_sign_inside_a_text_is_masked_as_a_whole() -> None:
    assert dsn.masked_within("no answer from postgresql://u:hun@ter2@h/d") == "no answer from postgresql://u:***@h/d"
