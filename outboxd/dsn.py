"""
DSNs as providers print them, turned into arguments for asyncpg.

asyncpg sends every parameter that it does not know to the server, which then refuses the connection.
So each parameter is sorted here: an argument, a TLS parameter, a server setting, one that is
meaningless to us, or a mistake. No message and no mask ever shows a password.
"""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import unquote, urlencode

from outboxd import errors, suggest

_SCHEMES = ("postgres://", "postgresql://", "postgresql+asyncpg://")
# `no-verify` is node's word for libpq's `require`.
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify")
_TRUE = ("1", "true", "on", "yes")

_PLACE = {"host", "hostaddr", "port", "dbname", "database", "user", "password", "passfile", "service"}
_SSL_FILES = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
# asyncpg takes these only inside a DSN, not as arguments.
_SSL = {
    "sslmode", "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"
} | _SSL_FILES  # fmt: skip
_ARGUMENTS = {"target_session_attrs", "krbsrvname", "gsslib", "connect_timeout"}
# `options` goes to the server as it is: it holds -c settings, or the endpoint for a provider's proxy.
_SETTINGS = {
    "application_name", "options", "search_path", "statement_timeout", "lock_timeout", "timezone", "role",
    "idle_in_transaction_session_timeout",
}  # fmt: skip
_TRANSLATED = {"pgbouncer", "schema", "ssl"}
# Of libpq (keepalives are ours to set, see session.py), and of the pools of other libraries. asyncpg has no
# channel binding: Neon prints it as `require`, and TLS is what protects the login then.
_IGNORED = {
    "channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "gssdelegation",
    "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
    "load_balance_hosts", "requiressl", "sslcertmode", "sslcompression", "sslsni", "sslkeylogfile",
    "min_protocol_version", "max_protocol_version", "servicefile", "uselibpqcompat",
    "connection_limit", "max_connections", "pool_size", "pool_timeout", "pool_mode", "max_overflow",
    "socket_timeout",
    "statement_cache_size", "prepared_statement_cache_size", "prepared_statements", "prepare_threshold",
    "sslaccept", "sslidentity", "supa", "workaround",
}  # fmt: skip
# Each asks for a protection or a protocol that we cannot give; to drop it in silence would be a lie.
_REFUSED = {"replication", "require_auth", "requirepeer", "sslcrldir", "scram_client_key", "scram_server_key"}
_KNOWN = _PLACE | _SSL | _ARGUMENTS | _SETTINGS | _TRANSLATED | _IGNORED
_SESSION_ATTRS = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")

_SECRETS = ("password", "sslpassword")
_CONNINFO = re.compile(r"\s*(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?:\s+|$)", re.DOTALL)
_AUTHORITY = re.compile(r"(?s)([a-z][a-z0-9+.-]*://)([^:]*):(.*)@", re.IGNORECASE)
_QUERY_ITEM = re.compile(r"([?&])([^=&?]+)=([^&]*)")
_CONNINFO_SECRET = re.compile(r"(?is)(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)")
_URL_IN_TEXT = re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@]*):\S+@", re.IGNORECASE)


def connect_arguments(dsn_text: str, *, key: str = "dsn") -> dict[str, Any]:
    """
    Turn a DSN into keyword arguments for `asyncpg.connect`.

    Args:
        dsn_text: A URL or a libpq `key=value` string; empty means libpq's own variables.
        key: What the messages call it.

    Returns:
        Any of `dsn` (only TLS parameters and the service), `host` and `port` (lists), `user`, `password`,
        `database`, `passfile`, `ssl`, `timeout` (seconds), `server_settings`, `statement_cache_size` and
        `target_session_attrs`. What is absent comes from libpq's variables.

    Raises:
        ConfigError: Not a DSN, an unknown parameter, a bad value, or a certificate file that cannot be read.
    """
    found = parameters(dsn_text, key=key)
    missing = [f"{key}: {k}: {why}" for k in sorted(_SSL_FILES & set(found)) if (why := _unreadable(found, k))]
    if missing:
        raise errors.ConfigError(missing)
    result = _places(found) | _tls(found, key)
    for name in ("user", "password", "passfile", "target_session_attrs", "krbsrvname", "gsslib"):
        if name in found:
            result[name] = found[name]
    # libpq's 0 means to wait for ever; ours is then the default.
    if int(found.get("connect_timeout", "0")) > 0:
        result["timeout"] = float(found["connect_timeout"])
    if found.get("pgbouncer", "").lower() in _TRUE:
        result["statement_cache_size"] = 0
    settings = _server_settings(found)
    return {**result, "server_settings": settings} if settings else result


def parameters(dsn_text: str, *, key: str = "dsn") -> dict[str, str]:
    """
    Split a DSN into libpq's parameters and check them, without touching files or the network.

    Raises:
        ConfigError: All problems; names parameters, never the password.
    """
    text = dsn_text.strip()
    if not text:
        return {}
    if "://" in text.partition("=")[0]:
        found, problem = _from_url(text)
    else:
        found, problem = _from_conninfo(text)
    problems = [problem] if problem else _problems(found)
    if problems:
        raise errors.ConfigError([f"{key}: {p}" for p in problems])
    return found


def masked(dsn_text: str) -> str:
    """Return the DSN (or Redis URL) for display, with `***` for its passwords; never raises."""
    if "://" in dsn_text.partition("=")[0]:
        # Up to the last @: a password with a stray @, / or ? in it is hidden as a whole.
        text = _AUTHORITY.sub(r"\1\2:***@", dsn_text, count=1)
        return _QUERY_ITEM.sub(_mask_item, text)
    if "=" in dsn_text:
        return _CONNINFO_SECRET.sub(r"\1***", dsn_text)
    return "***" if dsn_text else ""


def masked_within(text: str) -> str:
    """Hide the passwords of any DSNs in a longer text, such as an error message."""
    if "://" in text:  # up to the last @ of the word: a password may hold one that is not encoded
        text = _URL_IN_TEXT.sub(r"\1:***@", text)
    return _CONNINFO_SECRET.sub(r"\1***", text) if "=" in text else text


def _mask_item(match: re.Match[str]) -> str:
    separator, name, _ = match.groups()
    return f"{separator}{name}=***" if unquote(name) in _SECRETS else match.group()


def _from_url(text: str) -> tuple[dict[str, str], str]:
    """Parse by hand: urllib lets a `#` or `[` in a password change the host."""
    scheme = next((s for s in _SCHEMES if text.lower().startswith(s)), "")
    if not scheme:
        return {}, f"unknown scheme {text.partition('://')[0]}, use postgresql://"
    rest, _, query = text[len(scheme) :].partition("?")
    authority, _, database = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    if "@" in database or (not userinfo and ":" in authority and _has_stray_at(query)):
        return {}, _BAD_AUTHORITY
    found = {"user": user, "password": password, "dbname": database}
    found = {name: unquote(value) for name, value in found.items() if value}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if not equals:
            return {}, "a parameter after the ? has no value"
        found[unquote(name)] = unquote(value.replace("+", "%20") if name == "options" else value)
    return _with_hosts(found, hosts)


def _has_stray_at(query: str) -> bool:
    """Whether this looks like the rest of a password with a `?` in it: no name of it may be shown."""
    names = {item.partition("=")[0] for item in query.split("&")}
    return "@" in query and not names <= _KNOWN


def _with_hosts(found: dict[str, str], hosts: str) -> tuple[dict[str, str], str]:
    """Split `a:1,b:2,[::1]:3`; hosts of the query stand behind those of the authority."""
    if not hosts:
        return found, ""
    names, ports = [], []
    for part in hosts.split(","):
        match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", part)
        if match is None:
            return {}, _BAD_AUTHORITY
        names.append(unquote(match[1].strip("[]")))
        ports.append(match[2] or "")
    return {"host": ",".join(names), **({"port": ",".join(ports)} if any(ports) else {}), **found}, ""


_BAD_AUTHORITY = "host and port cannot be told apart; in a password, @ : / ? # [ ] and % must be percent-encoded"


def _from_conninfo(text: str) -> tuple[dict[str, str], str]:
    found = {}
    position = 0
    while position < len(text):
        match = _CONNINFO.match(text, position)
        if match is None:
            return {}, "neither a postgresql:// URL nor key=value pairs (put values with spaces in '')"
        value = match[2][1:-1] if match[2].startswith("'") else match[2]
        found[match[1]] = re.sub(r"(?s)\\(.)", r"\1", value)
        position = match.end()
    return found, ""


def _problems(found: dict[str, str]) -> list[str]:
    problems = []
    for name in found:
        if name in _REFUSED:
            problems.append(f"parameter {name} is not supported")
        elif name not in _KNOWN and "." not in name:  # a name with a dot is a custom server setting
            problems.append(f"unknown parameter {name}{_nearest(name)}")
    checks = {
        "sslmode": _SSL_MODES,
        "target_session_attrs": _SESSION_ATTRS,
        "sslnegotiation": ("postgres", "direct"),
    }
    for name, allowed in checks.items():
        if name in found and found[name] not in allowed:
            problems.append(f"{name} must be one of {', '.join(allowed)}, got {found[name]!r}")
    if not re.fullmatch(r"-?\d{1,6}", found.get("connect_timeout", "0")):
        problems.append(f"connect_timeout must be a number of seconds, got {found['connect_timeout']!r}")
    return problems + _place_problems(found)


def _nearest(name: str) -> str:
    """Suggest a parameter, but never list all seventy."""
    text = suggest.nearest(name, _KNOWN)
    return text if text.startswith(",") else ""


def _place_problems(found: dict[str, str]) -> list[str]:
    problems = []
    ports = [p for p in found.get("port", "").split(",") if p]
    if any(not re.fullmatch(r"\d{1,5}", p) or not 0 < int(p) < 65_536 for p in ports):
        # The text may be a piece of a password with a stray character: it is not shown.
        problems.append("port must be a number from 1 to 65535")
    hosts = found.get("host", found.get("hostaddr", "")).split(",")
    if len(ports) > 1 and len(ports) != len(hosts):
        problems.append(f"{len(ports)} ports for {len(hosts)} hosts")
    if found.get("sslrootcert") == "system" and found.get("sslmode") == "disable":
        problems.append("sslrootcert=system needs TLS, but sslmode is disable")
    return problems


def _unreadable(found: dict[str, str], name: str) -> str:
    """Say why the file of a parameter cannot be read; empty when it can."""
    path = found[name]
    if not path or (name == "sslrootcert" and path == "system"):
        return ""
    try:
        with open(path, "rb"):
            return ""
    except OSError as exc:
        return f"cannot read {path}: {exc.strerror}"


def _places(found: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    hosts = found.get("host") or found.get("hostaddr") or ""
    if hosts:
        result["host"] = [h or "localhost" for h in hosts.split(",")]
    ports = found.get("port", "")
    if ports:
        numbers = [int(p or 5432) for p in ports.split(",")]
        result["port"] = numbers[0] if len(numbers) == 1 else numbers
    database = found.get("dbname") or found.get("database")
    return {**result, "database": database} if database else result


def _tls(found: dict[str, str], key: str) -> dict[str, Any]:
    """Sort out TLS: a context with the system's authorities, else what asyncpg reads from a DSN."""
    if found.get("sslrootcert") == "system":
        direct = {"direct_tls": True} if found.get("sslnegotiation") == "direct" else {}
        return {"ssl": _system_context(found, key), **direct, **_service(found)}
    carried = {name: value for name, value in found.items() if name in _SSL and value}
    if "ssl" in found and "sslmode" not in found:
        carried["sslmode"] = _mode_of_flag(found["ssl"])
    if carried.get("sslmode") == "no-verify":
        carried["sslmode"] = "require"
    carried |= _service(found)
    return {"dsn": "postgresql://?" + urlencode(carried)} if carried else {}


def _mode_of_flag(value: str) -> str:
    """Read `ssl=true` of JDBC and node, and `ssl=require` of SQLAlchemy."""
    return value if value in _SSL_MODES else "require" if value.lower() in _TRUE else "prefer"


def _service(found: dict[str, str]) -> dict[str, str]:
    return {"service": found["service"]} if found.get("service") else {}


def _system_context(found: dict[str, str], key: str) -> ssl.SSLContext:
    """Check the server's certificate and name against the system's authorities, as verify-full does."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    if found.get("sslcert"):
        try:
            context.load_cert_chain(found["sslcert"], found.get("sslkey") or None, lambda: found.get("sslpassword", ""))
        except ssl.SSLError as exc:
            raise errors.ConfigError([f"{key}: sslcert {found['sslcert']}: {exc}"]) from exc
    return context


def _server_settings(found: dict[str, str]) -> dict[str, str]:
    settings = {name: value for name, value in found.items() if name in _SETTINGS or "." in name}
    # Prisma's name for the schema of its tables; public is where the server looks anyway.
    if found.get("schema", "public") != "public":
        settings.setdefault("search_path", '"' + found["schema"].replace('"', '""') + '"')
    return settings
