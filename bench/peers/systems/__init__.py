"""The systems that are measured, in the order of the table."""

from __future__ import annotations

from bench.peers.systems.ancestor import ANCESTOR
from bench.peers.systems.graphile import GRAPHILE
from bench.peers.systems.outboxd import OUTBOXD
from bench.peers.systems.pgboss import PGBOSS
from bench.peers.systems.pgqueuer import PGQUEUER

SYSTEMS = [OUTBOXD, GRAPHILE, PGBOSS, PGQUEUER, ANCESTOR]
