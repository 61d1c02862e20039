"""What docs/postgresql.md says of servers: TLS and failover, with real ones."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from outboxd.embedded import embedded_postgres
from outboxd.server_process import unprivileged_account
from tests.acceptance.servers import ComingAndGoing, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.acceptance.installation import Installation

PASSWORD = "over-tls"
# The wheel's server is built without TLS; those of distributions have it.
WITH_TLS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority, and its key, readable by the server's account."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", cert], capture_output=True, check=True)
    if unprivileged_account().is_other:
        os.chown(key, unprivileged_account().uid, unprivileged_account().gid)
    return cert, key


@contextlib.asynccontextmanager
async def tls_server(folder: Path, port: int) -> AsyncIterator[Path]:
    """Run a server that speaks TLS; yields its certificate."""
    cert, key = certificate(folder, "server")
    settings = {"listen_addresses": "127.0.0.1", "port": port, "ssl": "on"}
    files = {"ssl_cert_file": cert, "ssl_key_file": key}
    async with embedded_postgres(durable=False, settings={**settings, **files}) as dsn:
        admin = await asyncpg.connect(dsn)
        try:
            await admin.execute(f"ALTER ROLE outbox PASSWORD '{PASSWORD}'")
            yield cert
        finally:
            await admin.close()


@pytest.mark.skipif(not WITH_TLS, reason="there is no PostgreSQL with TLS")
async def test_the_server_s_certificate_is_checked(
    bare: Installation, server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOXD_PG_BIN", str(WITH_TLS[-1]))
    port = free_port()
    stranger, _ = certificate(server_folder, "stranger")
    async with tls_server(server_folder, port) as authority:
        through = f"postgresql://outbox:{PASSWORD}@127.0.0.1:{port}/postgres"
        for query, code in (
            (f"sslmode=verify-full&sslrootcert={authority}", 0),
            (f"sslmode=verify-full&sslrootcert={stranger}", 69),
            ("sslmode=verify-full&sslrootcert=system", 69),
            ("sslmode=verify-full&sslrootcert=/nonexistent/ca.pem", 78),
            ("sslmode=require", 0),
        ):
            bare.configure(dsn=f"{through}?{query}")
            process = await bare.run("migrate")
            assert process.returncode == code, f"{query}: {process.stderr}"
            assert ("sslrootcert names" in process.stderr) == (code == 69)
            assert "Traceback" not in process.stderr
            assert PASSWORD not in process.stderr

        bare.configure(dsn=through)
        async with bare.ready_daemon():
            connection = await asyncpg.connect(through)
            encrypted = await connection.fetchval(
                "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                " WHERE application_name LIKE 'outboxd: %'"
            )
            await connection.close()
        assert encrypted, "without sslmode it is tried"


async def test_of_several_hosts_the_primary_is_found_before_and_after_a_failover(
    bare: Installation, server_folder: Path
) -> None:
    first, second = ComingAndGoing(server_folder / "first"), ComingAndGoing(server_folder / "second")
    for server in (first, second):
        server.data.parent.mkdir(mode=0o777)
        server.data.parent.chmod(0o777)
    hosts = f"127.0.0.1:{second.port},127.0.0.1:{first.port}"  # the standby stands first
    bare.configure(dsn=f"postgresql://outbox:{first.PASSWORD}@{hosts}/postgres?target_session_attrs=read-write")
    async with first.started() as bare.connection:
        await bare.migrate()
    subprocess.run(["cp", "-a", first.data, second.data], check=True)
    (second.data / "standby.signal").touch()

    async with second.started() as standby, contextlib.AsyncExitStack() as primary:
        bare.connection = await primary.enter_async_context(first.started())
        async with bare.ready_daemon() as daemon:
            await bare.insert([1])
            await bare.drained(by=daemon)

            await primary.aclose()
            bare.connection = standby
            await standby.fetch("SELECT pg_promote()")

            await daemon.wait_for_event("claims.reopened")
            await bare.insert([2])
            await bare.drained(by=daemon)
    assert len(bare.delivered()) == 2
