"""Web servers fork: a child flushes on threads and connections of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.produce.test_capture import CONFIGURATION
from tests.processes import run

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, sys
import psycopg
from outboxd import outbox_context, receiver
from outboxd.producer import Producer, use

@receiver("MEMBER")
def heard(message):
    print(role, message.object_identifier, flush=True)

def write(number):
    with psycopg.connect(sys.argv[2]) as connection, outbox_context(connection, flush=True) as outbox:
        outbox.save("MEMBER", shard_identifier=1, object_identifier=number)

role = "parent"
use(Producer.load(sys.argv[1], receivers=[heard]))
write(1)
child = os.fork()
if not child:
    role = "child"
    write(2)
    sys.stdout.flush()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
write(3)
"""


async def test_a_fork_after_a_flush(database: str, tmp_path: Path) -> None:
    config = tmp_path / "outboxd.toml"
    config.write_text(CONFIGURATION.format(dsn=database))
    (tmp_path / "forking.py").write_text(PROGRAM)

    ended = await run(str(config), database, program=("forking",), module_path=tmp_path)

    assert (ended.returncode, ended.stdout_lines) == (0, ["parent 1", "child 2", "parent 3"]), ended.stderr
