"""What the service manager hears from us: readiness, reloads, the end, and progress."""

from __future__ import annotations

import os
import socket
import time

import structlog

log = structlog.get_logger()


class ServiceManager:
    """
    Talks to systemd over `$NOTIFY_SOCKET`; without one, says nothing.

    The watchdog is fed by `progressed`, which the loops call when they get somewhere (I13): there is no timer here
    that would go on feeding it for a daemon that has stopped working.
    """

    def __init__(self) -> None:
        self._path = os.environ.get("NOTIFY_SOCKET", "")
        interval_us = int(os.environ.get("WATCHDOG_USEC") or 0) if _is_for_us() else 0
        self._interval_s = interval_us / 1e6 / 4
        self.progress_every_s = self._interval_s or float("inf")
        self._fed_at = 0.0

    def ready(self) -> None:
        """Say that the drain works."""
        self.notify("READY=1")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self.notify("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; what an error has on lines of its own comes behind."""
        self.notify(f"STATUS={' '.join(text.split())}")

    def progressed(self) -> None:
        """Feed the watchdog, four times in its interval at most."""
        if self._interval_s <= 0:
            return
        now = time.monotonic()
        if now - self._fed_at >= self._interval_s:
            self._fed_at = now
            self.notify("WATCHDOG=1")

    def notify(self, state: str) -> None:
        """Send one datagram; a service manager that cannot be reached is no reason to stop."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(state.encode(), address)
        except OSError as exc:
            log.debug("service_manager.unreachable", error=str(exc))


def _is_for_us() -> bool:
    """Tell whether the watchdog is ours: its variables are inherited, WATCHDOG_PID says for whom they are meant."""
    pid = os.environ.get("WATCHDOG_PID")
    return pid is None or pid == str(os.getpid())
