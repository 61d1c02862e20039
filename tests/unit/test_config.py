"""The configuration: what is read from where, and every problem word for word."""

from __future__ import annotations

import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import rich.console

import outboxd
from outboxd import config, errors, load

ROOT = Path(__file__).parent.parent.parent
DEFAULTS = (ROOT / "outboxd" / "config.toml").read_text("utf-8")
VALID = """
[[outbox]]
name = "main"
table = "outbox"

[scopes.ACCOUNT]
value = 1

[categories.ACCOUNT_UPDATE]
value = 1
scope = "ACCOUNT"
"""
MODEL = '[[model]]\ntable = "account"\noutbox = "main"\ncategory = "ACCOUNT_UPDATE"\n'


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "outboxd.toml"


def read(toml: Path, text: str, environ: dict[str, str] | None = None, **overrides: Any) -> config.Config:
    toml.write_text(text, "utf-8")
    return load.load(toml, environ=environ or {}, overrides=overrides).config


def problems(toml: Path, text: str, environ: dict[str, str] | None = None, **overrides: Any) -> list[str]:
    with pytest.raises(errors.ConfigError) as caught:
        read(toml, text, environ, **overrides)
    return caught.value.problems


def entry_of(kind: Any) -> Any:
    """Return the Struct inside `list[…]` or `dict[str, …]`, else None."""
    inner = get_args(kind)[-1] if get_args(kind) else None
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def keys(kind: Any = config.Config, path: str = "") -> dict[str, Any]:
    """Every key of the Structs with its default (`required` when there is none)."""
    found: dict[str, Any] = {}
    for spec in msgspec.structs.fields(kind):
        inner = entry_of(spec.type)
        if isinstance(spec.type, type) and issubclass(spec.type, msgspec.Struct):
            found |= keys(spec.type, f"{path}{spec.name}.")
        elif inner is not None:
            is_list = str(spec.type).startswith("list")
            found |= keys(inner, f"{path}{spec.name}{'[]' if is_list else '.<NAME>'}.")
        elif spec.default_factory is not msgspec.NODEFAULT:
            found[path + spec.name] = spec.default_factory()
        else:
            found[path + spec.name] = "required" if spec.required else spec.default
    return found


def flat(tables: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


# --- the shipped defaults -----------------------------------------------------------------------------


def test_shipped_defaults_and_structs_agree_key_by_key_and_value_by_value() -> None:
    plain = {key: value for key, value in keys().items() if "[]" not in key and "<NAME>" not in key}

    assert plain == flat(tomllib.loads(DEFAULTS))


def test_shipped_examples_show_every_key_of_an_entry_with_its_default() -> None:
    commented = [line for line in DEFAULTS.splitlines() if line.startswith("#")]
    examples = "\n".join(re.sub(r"^# (?=[\[a-z_]|# |$)", "", line) for line in commented)
    start = examples.index("[[outbox]]")
    code = [line for line in examples[start:].splitlines() if re.match(r"\[|[a-z_]+ = ", line)]
    shown = tomllib.loads("\n".join(code))
    tables = {
        "outbox[].": shown["outbox"][0],
        "scopes.<NAME>.": shown["scopes"]["ORGANIZATION_SCOPE"],
        "categories.<NAME>.": shown["categories"]["ORGANIZATION_MEMBER_UPDATE"],
        "model[].": shown["model"][0],
    }
    of_examples = {"scopes.<NAME>.tag", "model[].shard_identifier"}  # an example says more than the default

    for prefix, table in tables.items():
        expected = {key: value for key, value in keys().items() if key.startswith(prefix)}
        assert {prefix + name for name in table} == set(expected)
        for key, default in expected.items():
            if default != "required" and key not in of_examples:
                assert table[key.removeprefix(prefix)] == default, key


def test_shipped_examples_load(toml: Path) -> None:
    commented = [line for line in DEFAULTS.splitlines() if line.startswith("#")]
    text = "\n".join(re.sub(r"^# ?", "", line) for line in commented)
    code = [line for line in text[text.index("[[outbox]]") :].splitlines() if re.match(r"\[|[a-z_]+ = ", line)]

    assert read(toml, "\n".join(code)).outbox[0].name == "region"


def documented() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (`[^`]*`|required) \| (?:`(\w+)`)? ?\| (?=\S)", text, re.MULTILINE)
    return {key: (default.strip("`"), variable) for key, default, variable in rows}


def test_documentation_and_structs_agree_key_by_key() -> None:
    expected = {k: v if v == "required" else json.dumps(v) for k, v in keys().items()}

    assert expected == {key: default for key, (default, _) in documented().items()}


def test_documentation_names_the_variable_of_every_key_that_has_one() -> None:
    assert {v: k for k, (_, v) in documented().items() if v} == config.ENVIRONMENT


# --- where values come from -----------------------------------------------------------------------------


def test_without_a_file_the_defaults_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "PLACES", (Path("outboxd.toml"), tmp_path / "etc.toml"))

    loaded = load.load(environ={})

    assert loaded == load.Loaded(config.Config())


def test_the_file_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "PLACES", (Path("outboxd.toml"), tmp_path / "etc.toml"))
    for name in ("flag", "variable", "outboxd", "etc"):
        (tmp_path / f"{name}.toml").write_text(f'schema = "{name}"')
    environ = {"OUTBOX_CONFIG": str(tmp_path / "variable.toml")}

    assert load.load(tmp_path / "flag.toml", environ=environ).config.schema == "flag"
    assert load.load(environ=environ).config.schema == "variable"
    assert load.load(environ={"OUTBOX_CONFIG": ""}).config.schema == "outboxd"
    assert load.load(environ={}).folder == tmp_path
    (tmp_path / "outboxd.toml").unlink()
    assert load.load(environ={}).source == tmp_path / "etc.toml"


def test_a_misspelt_variable_is_noticed_and_a_stranger_s_is_not(toml: Path) -> None:
    toml.write_text("")
    environ = {"OUTBOX_CONCURENCY": "9", "OUTBOX_OF_MY_APPLICATION": "1", "OUTBOX_DSN_FILE": "", "PATH": "/bin"}

    loaded = load.load(toml, environ=environ)

    assert loaded.strangers == ("OUTBOX_CONCURENCY, did you mean OUTBOX_CONCURRENCY?",)


def test_tables_merge_and_arrays_replace(toml: Path) -> None:
    found = read(toml, "[drain]\nconcurrency = 9\n[receivers]\nmodules = ['a.b']")

    assert found.drain == config.DrainConfig(concurrency=9)
    assert found.receivers.modules == ["a.b"]
    assert read(toml, "").drain.concurrency == 5, "one load must not change the defaults of the next"


VALUES = {
    "OUTBOX_DSN": ("host=a", "host=a"),
    "OUTBOX_SESSION_DSN": ("host=b", "host=b"),
    "OUTBOX_REDIS_URL": ("redis://c", "redis://c"),
    "OUTBOX_SILO_MODE": ("control", "control"),
    "OUTBOX_CONCURRENCY": ("7", 7),
    "OUTBOX_POLL_INTERVAL_S": ("0.25", 0.25),
    "OUTBOX_HTTP_LISTEN": ("0.0.0.0:80", "0.0.0.0:80"),
    "OUTBOX_BACKFILLS_PER_MINUTE": ("12", 12),
    "OUTBOX_LOG_FORMAT": ("json", "json"),
}


def value_at(found: config.Config, key: str) -> Any:
    value: Any = found
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("name", "key"), config.ENVIRONMENT.items())
def test_each_variable_overrides_the_file_also_from_a_file_of_its_own(name: str, key: str, toml: Path) -> None:
    text, expected = VALUES[name]
    secret = toml.with_name("secret")
    secret.write_text(text + "\n")

    assert value_at(read(toml, "", {name: text}), key) == expected
    assert value_at(read(toml, "", {f"{name}_FILE": str(secret)}), key) == expected
    assert problems(toml, "", {name: text, f"{name}_FILE": str(secret)}) == [
        f"{name} and {name}_FILE are both set, set only one"
    ]


def test_flags_override_the_environment(toml: Path) -> None:
    found = read(toml, "", {"OUTBOX_DSN": "host=a", "OUTBOX_SILO_MODE": "region"}, dsn="host=z", silo_mode=None)

    assert found.dsn == "host=z"
    assert found.silo_mode == "region"


def test_an_empty_variable_is_unset_unless_its_key_takes_a_text(toml: Path) -> None:
    text = 'dsn = "host=a"\n[drain]\nconcurrency = 2'
    empty = {"OUTBOX_DSN": "", "OUTBOX_CONCURRENCY": "", "OUTBOX_HTTP_LISTEN": "", "OUTBOX_LOG_FORMAT": ""}

    found = read(toml, text, empty)

    assert (found.dsn, found.drain.concurrency, found.http.listen) == ("", 2, "")


def test_only_newlines_at_the_end_of_a_secret_file_are_cut_off(toml: Path) -> None:
    secret = toml.with_name("dsn")
    secret.write_text("host=a password='x '\r\n\n")

    assert read(toml, "", {"OUTBOX_DSN_FILE": str(secret)}).dsn == "host=a password='x '"


def test_a_secret_file_that_cannot_be_used_is_named(toml: Path) -> None:
    missing, empty, binary = (toml.with_name(n) for n in ("missing", "empty", "binary"))
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    environ = {
        "OUTBOX_DSN_FILE": str(missing),
        "OUTBOX_SESSION_DSN_FILE": str(empty),
        "OUTBOX_REDIS_URL_FILE": str(binary),
    }

    assert problems(toml, "", environ) == [
        f"OUTBOX_DSN_FILE: cannot read {missing}: No such file or directory",
        f"OUTBOX_SESSION_DSN_FILE: {empty} is empty",
        f"OUTBOX_REDIS_URL_FILE: {binary} is not UTF-8",
    ]


def test_a_rotated_secret_is_read_anew_and_a_file_in_between_leaves_the_old_one(toml: Path) -> None:
    secret = toml.with_name("dsn")
    secret.write_text("host=a password=1")
    toml.write_text("")
    loaded = load.load(toml, environ={"OUTBOX_DSN_FILE": str(secret)})

    secret.write_text("host=a password=2\n")
    assert load.read_secret(loaded) == "host=a password=2"
    for broken in ("", "host=a password='2"):
        secret.write_text(broken)
        assert load.read_secret(loaded) == "host=a password=1"
    secret.unlink()
    assert load.read_secret(loaded) == "host=a password=1"
    assert load.read_secret(loaded, "session_dsn") == ""


def test_a_flag_wins_over_a_secret_file_also_when_read_anew(toml: Path) -> None:
    secret = toml.with_name("dsn")
    secret.write_text("host=a")
    toml.write_text("")
    environ = {"OUTBOX_DSN_FILE": str(secret)}

    loaded = load.load(toml, environ=environ, overrides={"dsn": "host=flag"})

    assert load.read_secret(loaded) == "host=flag"


# --- files that cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize("named_by", ["--config", "OUTBOX_CONFIG"])
def test_a_missing_file_that_was_asked_for_is_an_error_with_a_hint(named_by: str, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    path, environ = (missing, {}) if named_by == "--config" else (None, {"OUTBOX_CONFIG": str(missing)})
    with pytest.raises(errors.ConfigError) as caught:
        load.load(path, environ=environ)

    assert caught.value.problems == [f"{named_by}: there is no file {missing}"]
    assert "outboxd init" in caught.value.hint


def test_bad_toml_is_reported_with_line_and_column(toml: Path) -> None:
    [problem] = problems(toml, "[drain]\nconcurrency == 5\n")

    assert problem.startswith("not valid TOML: ")
    assert "line 2, column 14" in problem


def test_a_byte_order_mark_is_no_problem_and_another_encoding_is(toml: Path) -> None:
    toml.write_bytes(b'\xef\xbb\xbfschema = "x"')
    assert load.load(toml, environ={}).config.schema == "x"

    toml.write_bytes(b'schema = "\xff"')
    with pytest.raises(errors.ConfigError, match="it is not UTF-8"):
        load.load(toml, environ={})


# --- problems of one key -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("concurrency = 5", "unknown key concurrency, did you mean drain.concurrency?"),
        ("drain.concurency = 5", "unknown key drain.concurency, did you mean concurrency?"),
        ("drian.concurrency = 5", "unknown key drian, did you mean drain?"),
        ("drain = 5", "drain must be a table, got 5"),
        ("drain.concurrency = true", "drain.concurrency must be an integer from 1 to 10000, got true"),
        ("drain.concurrency = '5'", "drain.concurrency must be an integer from 1 to 10000, got '5'"),
        ("drain.concurrency = 5.0", "drain.concurrency must be an integer from 1 to 10000, got 5.0"),
        ("drain.concurrency = 0", "drain.concurrency must be an integer from 1 to 10000, got 0"),
        ("drain.concurrency = 10001", "drain.concurrency must be an integer from 1 to 10000, got 10001"),
        (
            "drain.poll_interval_s = 0",
            "drain.poll_interval_s must be a number above 0 and at most 86400, got 0",
        ),
        (
            "drain.poll_interval_s = nan",
            "drain.poll_interval_s must be a number above 0 and at most 86400, got nan",
        ),
        (
            "drain.grace_period_s = inf",
            "drain.grace_period_s must be a number from 0 to 86400, got inf",
        ),
        (
            "silo_mode = 'regoin'",
            "silo_mode must be one of control, monolith, region, got 'regoin', did you mean region?",
        ),
        ("log.level = 3", "log.level must be one of debug, error, info, warning, got 3"),
        ("receivers.modules = 'a'", "receivers.modules must be a list of texts, got 'a'"),
        ("receivers.modules = [1]", "receivers.modules must be a list of texts, got [1]"),
        ("outbox = 1", "outbox must be written as [[outbox]] tables, got 1"),
        ("scopes = []", "scopes must be written as tables [scopes.<NAME>], got []"),
        ("scopes.A = 1", "scopes.A must be a table, got 1"),
        ("schema = ''", "schema must be a text of 1 to 63 characters, got ''"),
        ("dsn = 5", "dsn must be a text, got int"),
        ("outbox = [1]", "outbox[0] must be a table, got 1"),
    ],
)
def test_a_broken_key_is_reported_with_its_bounds_and_what_was_got(text: str, expected: str, toml: Path) -> None:
    assert expected in problems(toml, text)


def test_an_entry_is_named_by_its_name_its_table_or_its_place(toml: Path) -> None:
    text = '[[outbox]]\nname = "main"\ntabel = "x"\n[[outbox]]\n[[model]]\ntable = "t"\nreplication_version = -1'

    found = problems(toml, text)

    assert 'outbox "main": unknown key tabel, did you mean table?' in found
    assert 'outbox "main": table is missing' in found
    assert "outbox[1]: name is missing" in found
    assert 'model "t": replication_version must be an integer from 0 to 2147483646, got -1' in found


def test_a_broken_variable_is_named_together_with_its_key(toml: Path) -> None:
    environ = {"OUTBOX_CONCURRENCY": "five", "OUTBOX_HTTP_LISTEN": "nowhere", "OUTBOX_DSN": "host=a sslmod=b"}

    assert problems(toml, "", environ) == [
        "OUTBOX_CONCURRENCY (drain.concurrency) must be an integer from 1 to 10000, got 'five'",
        "OUTBOX_DSN (dsn): unknown parameter sslmod, did you mean sslmode?",
        'OUTBOX_HTTP_LISTEN (http.listen) must be "address:port", ":port" or "", got \'nowhere\'',
    ]


def test_a_flag_that_is_wrong_is_named(toml: Path) -> None:
    [problem] = problems(toml, "", None, silo_mode="x")

    assert problem.startswith("--silo-mode (silo_mode) must be one of")


def test_all_problems_are_reported_at_once_and_the_error_counts_them(toml: Path) -> None:
    toml.write_text("dsm = ''\n[drain]\nconcurrency = 0\n[http]\nlisten = 'x'\n")
    with pytest.raises(errors.ConfigError) as caught:
        load.load(toml, environ={"OUTBOX_LOG_FORMAT": "x"})

    assert len(caught.value.problems) == 4
    assert str(caught.value).startswith(f"4 problems in {toml}:\n  - ")


# --- problems between keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VALID + "[scopes.B]\nvalue = 1", "scopes.B.value: 1 is already the value of ACCOUNT"),
        (
            VALID + "[categories.B]\nvalue = 1\nscope = 'ACCOUNT'",
            "categories.B.value: 1 is already the value of ACCOUNT_UPDATE",
        ),
        (
            VALID + "[categories.B]\nvalue = 2\nscope = 'ACCOUNTS'",
            "categories.B.scope: unknown scope ACCOUNTS, did you mean ACCOUNT?",
        ),
        (VALID + "[[outbox]]\nname = 'main'\ntable = 'b'", "outbox: the name main is used twice"),
        (VALID + "[[outbox]]\nname = 'b'\ntable = 'outbox'", "outbox: the table outbox is used twice"),
        ("backfill.state = 'redis'", 'backfill.state is "redis", but redis_url is empty (OUTBOX_REDIS_URL)'),
        ("redis_url = 'http://x'", "redis_url must begin with one of redis://, rediss://, unix://"),
        ("http.listen = 'x:70000'", 'http.listen must be "address:port", ":port" or "", got \'x:70000\''),
        ("schema = 'pg_mine'", "schema cannot be the name of a schema: 'pg_mine'"),
        (f"schema = '{'ä' * 32}'", f"schema cannot be the name of a schema: '{'ä' * 32}'"),
        (
            "receivers.modules = ['shop/a.py']",
            "receivers.modules: 'shop/a.py' is not a module's name, such as shop.receivers",
        ),
        ('[scopes."a\\n"]\nvalue = 1', "scopes: a name must be 1 to 200 printable characters, got 'a\\n'"),
        (
            "dsn = 'nonsense'",
            "dsn: neither a postgresql:// URL nor key=value pairs (put values with spaces in '')",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(text: str, expected: str, toml: Path) -> None:
    assert problems(toml, text) == [expected]


def test_a_broken_value_causes_no_second_problem_elsewhere(toml: Path) -> None:
    text = VALID.replace("[scopes.ACCOUNT]\nvalue = 1", "[scopes.ACCOUNT]\nvalue = 'one'")

    assert problems(toml, text) == ["scopes.ACCOUNT.value must be an integer from -2147483648 to 2147483647, got 'one'"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["shard_scope"], ["lacks shard_identifier"]),
        (
            ["shard_scope", "shard_identifer"],
            [": unknown column shard_identifer, did you mean shard_identifier?", "lacks shard_identifier"],
        ),
        (["shard_scope", "shard_identifier", "shard_scope"], [": shard_scope stands there twice"]),
        ([], ["lacks shard_scope", "lacks shard_identifier"]),
    ],
)
def test_sharding_columns_that_cannot_make_a_shard_are_refused(
    columns: list[str], expected: list[str], toml: Path
) -> None:
    text = VALID.replace('table = "outbox"', f'table = "outbox"\nsharding_columns = {columns}')

    found = problems(toml, text)

    assert found == [f'outbox "main": sharding_columns{e if e[0] == ":" else " " + e}' for e in expected]


@pytest.mark.parametrize("silo", ["region", "control"])
@pytest.mark.parametrize(
    "columns", [["region_name", "shard_scope", "shard_identifier"], ["shard_identifier", "shard_scope"]]
)
def test_which_columns_shard_is_free_in_every_silo(columns: list[str], silo: str, toml: Path) -> None:
    text = VALID.replace('table = "outbox"', f'table = "o"\nsilo = "{silo}"\nsharding_columns = {columns}')

    assert read(toml, text).outbox[0].sharding_columns == columns


@pytest.mark.parametrize("table", ["", "a.b.c", ".b", "a.", "a\\u0000b", "ä" * 32])
def test_what_cannot_be_a_table_is_refused(table: str, toml: Path) -> None:
    [problem] = problems(toml, VALID.replace('table = "outbox"', f'table = "{table}"'))

    assert problem.startswith('outbox "main": table ')


@pytest.mark.parametrize("table", ["outbox", "app.outbox", 'we"ird name', "x" * 63])
def test_what_can_be_a_table_is_accepted(table: str, toml: Path) -> None:
    assert read(toml, VALID.replace('"outbox"', f"'{table}'")).outbox[0].table == table


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "needs exactly one of shard_identifier and shard_identifier_sql"),
        ("shard_identifier = 'a'\nshard_identifier_sql = 'b'", "needs exactly one of"),
        ("shard_identifier_sql = '  '", "needs exactly one of"),
        (
            "shard_identifier = 'a'\nobject_identifier = ''",
            "object_identifier cannot be the name of a column: ''",
        ),
        ("shard_identifier_sql = 'a'\npayload_sql = \"\\u0000\"", "payload_sql holds a NUL character"),
    ],
)
def test_a_model_without_a_usable_key_is_refused(lines: str, expected: str, toml: Path) -> None:
    [problem] = problems(toml, VALID + MODEL + lines)

    assert problem.startswith(f'model "account": {expected}')


def test_a_model_with_unknown_outbox_or_category_is_refused(toml: Path) -> None:
    text = MODEL.replace('"main"', '"mian"').replace('"ACCOUNT_UPDATE"', '"ACCOUNT_UPDAT"')

    assert problems(toml, VALID + text + "shard_identifier = 'id'") == [
        'model "account": outbox: unknown outbox mian, did you mean main?',
        'model "account": category: unknown category ACCOUNT_UPDAT, did you mean ACCOUNT_UPDATE?',
    ]


def test_two_backfills_of_one_table_would_share_a_watermark(toml: Path) -> None:
    twice = (MODEL + "shard_identifier = 'id'\n") * 2

    assert problems(toml, VALID + twice) == ["model: the backfilled table account is used twice"]
    assert len(read(toml, VALID + twice + "replication_version = 0").model) == 2


@pytest.mark.parametrize("listen", ["", ":9464", "0.0.0.0:1", "[::1]:65535", "localhost:0"])
def test_listen_accepts_addresses_with_a_port(listen: str, toml: Path) -> None:
    assert read(toml, f"http.listen = '{listen}'").http.listen == listen


# --- outboxes of this process ------------------------------------------------------------------------------


def test_the_silo_mode_selects_outboxes(toml: Path) -> None:
    text = VALID + "[[outbox]]\nname = 'c'\ntable = 'c'\nsilo = 'control'"

    names = {mode: [o.name for o in read(toml, text, silo_mode=mode).outboxes] for mode in get_args(config.SiloMode)}

    assert names == {"monolith": ["main", "c"], "region": ["main"], "control": ["c"]}


def test_no_outbox_is_no_error_of_loading_but_can_be_asked_for(toml: Path) -> None:
    with pytest.raises(errors.ConfigError, match="no outbox is configured"):
        read(toml, "").require_outboxes()
    with pytest.raises(errors.ConfigError, match=r'silo_mode is "control", but no outbox .*: main \(region\)'):
        read(toml, VALID, silo_mode="control").require_outboxes()
    assert [o.name for o in read(toml, VALID).require_outboxes()] == ["main"]


# --- secrets -----------------------------------------------------------------------------------------------


def test_no_password_is_ever_shown(toml: Path) -> None:
    text = """
        dsn = "postgresql://u:hunter2@h/d"
        session_dsn = "host=h password='hunter2 x'"
        redis_url = "redis://:hunter2@h"
    """
    found = read(toml, text)
    console = rich.console.Console(file=io.StringIO(), width=1000)
    console.print(found)
    loaded = load.load(toml, environ={})

    for shown in (repr(found), str(found), repr(loaded), str(found.shown()), console.file.getvalue()):  # type: ignore[attr-defined]
        assert "hunter2" not in shown
        assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "dsn = 'postgresql://u:hunter2@h/d?sslmod=x'",
        "dsn = 'postgresql://u:hun/ter2@h/d'",
        "dsn = 'mysql://u:hunter2@h/d'",
        "dsn = 'password=hunter2 nonsense'",
        "redis_url = 'http://:hunter2@h'",
        "redis_url = ['hunter2']",
        "dsn = ['hunter2']",
    ],
)
def test_no_password_is_shown_by_an_error(text: str, toml: Path) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        read(toml, text)

    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_the_package_holds_the_shipped_defaults() -> None:
    assert Path(outboxd.__path__[0], "config.toml").read_text("utf-8") == DEFAULTS
