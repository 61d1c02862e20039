"""What `--sql` prints is what psql must get, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOML = """
[[outbox]]
name = "m {x}"
table = "outbox"
key_type = "text"

[scopes.TENANT]
value = 1
"""
ROOT = Path(__file__).parent.parent.parent


def test_a_pipe_keeps_the_control_characters_of_a_literal_and_names_keep_their_braces(tmp_path: Path) -> None:
    file = tmp_path / "outboxd.toml"
    file.write_text(TOML, "utf-8")

    for command in (["inspect", "--sql", "TENANT", "\x1b[31mred"], ["doctor", "--sql"], ["shards", "--sql"]):
        done = subprocess.run(
            [sys.executable, "-m", "outboxd", "--config", str(file), *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "m {x}" in done.stdout
        assert ("'\x1b[31mred'" in done.stdout) == (command[0] == "inspect")
