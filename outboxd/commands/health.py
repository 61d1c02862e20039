"""`outboxd health`: ask the daemon on this machine whether it works; for probes of containers and for shells."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

import click

from outboxd import contract, display, errors
from outboxd.commands import shared

if TYPE_CHECKING:
    from outboxd.commands import Context

TIMEOUT_S = 5.0
ALIVE = b"ok\n"


@click.command(name="health")
@click.option("--live", is_flag=True, help="Ask only whether the process turns, not whether the drain works.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(context: Context, *, live: bool, as_json: bool) -> int:
    """
    Ask the daemon of this configuration whether it works.

    It is asked over HTTP, at `http.listen`; no database is needed. Exit code 0 when it is ready (with --live: when it
    is alive), 1 when it is not, 69 when nobody answers.
    """
    listen = context.load().config.http.listen
    if not listen:
        problem = "http.listen is empty: the daemon of this configuration answers no questions"
        raise errors.ConfigError([problem], hint="Set http.listen (OUTBOX_HTTP_LISTEN).")
    reasons = _ask_liveness(listen) if live else _ask_readiness(listen)
    healthy = not reasons
    if as_json:
        shared.echo_json({"healthy": healthy, "reasons": reasons})
    elif healthy:
        display.say("alive" if live else "ready")
    else:
        display.say("\n".join([f"not {'alive' if live else 'ready'}", *(f"  {reason}" for reason in reasons)]))
    return 0 if healthy else 1


def _ask_liveness(listen: str) -> list[str]:
    status, body = _ask(listen, "/healthz")
    return [] if (status, body) == (200, ALIVE) else [_stranger(status)]


def _ask_readiness(listen: str) -> list[str]:
    """Tell why it is not ready; the answer counts only if it is one of ours, whatever its status."""
    status, body = _ask(listen, "/readyz")
    try:
        answer = json.loads(body)
        ready, reasons = answer["ready"] is True, [str(reason) for reason in answer["reasons"]]
    except (ValueError, KeyError, TypeError):
        return [_stranger(status)]
    return reasons if ready == (status == 200) == (not reasons) else [_stranger(status)]


def _ask(listen: str, path: str) -> tuple[int, bytes]:
    """Return status and body."""
    host, port = contract.split_listen(listen)
    local = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  asked, not listened on
    connection = http.client.HTTPConnection(local.get(host, host), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except UnicodeError as exc:
        raise errors.ConfigError([f"http.listen: {listen} is no address: {exc}"]) from exc
    except (OSError, http.client.HTTPException) as exc:
        hint = "Is the daemon running, with this http.listen (OUTBOX_HTTP_LISTEN)?"
        raise errors.StoreUnavailable(f"no daemon answers on {listen}: {exc or type(exc).__name__}", hint=hint) from exc
    finally:
        connection.close()


def _stranger(status: int) -> str:
    return f"the answer (HTTP status {status}) is none of ours: something else than outboxd listens there"
