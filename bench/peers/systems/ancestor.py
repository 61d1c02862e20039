"""The algorithm that outboxd descends from, on the same table."""

from __future__ import annotations

from pathlib import Path

from bench.peers.install import Environment
from bench.peers.system import W2, W3, Settings, System
from bench.peers.systems.outboxd import STATEMENTS

DOCUMENTED = "bench/peers/ancestor.py"
ANCESTOR = System(
    key="ancestor",
    name="ancestor's algorithm",
    package=None,
    role="ancestor",
    environment=Environment(),
    program=Path(__file__).parent.parent / "ancestor.py",
    settings=(
        Settings("five ranges", 5_000, documented=DOCUMENTED, latency=False),
        Settings("five ranges", 20_000, documented=DOCUMENTED, loads=(W2, W3)),
    ),
    statements=STATEMENTS,
)
