"""The systems that are measured, in the order of the table."""

from __future__ import annotations

from bench.peers.systems.ancestor import ANCESTOR
from bench.peers.systems.chancy import CHANCY, CHANCY_ASYNC
from bench.peers.systems.faststream import FASTSTREAM
from bench.peers.systems.graphile import GRAPHILE
from bench.peers.systems.oban import OBAN
from bench.peers.systems.outboxd import OUTBOXD
from bench.peers.systems.pgboss import PGBOSS
from bench.peers.systems.pgqueuer import PGQUEUER
from bench.peers.systems.procrastinate import PROCRASTINATE

SYSTEMS = [
    OUTBOXD,
    GRAPHILE,
    PGBOSS,
    PGQUEUER,
    OBAN,
    FASTSTREAM,
    CHANCY,
    CHANCY_ASYNC,
    PROCRASTINATE,
    ANCESTOR,
]
