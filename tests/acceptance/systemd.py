"""A service manager's notify socket, as systemd would hold it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

WATCHDOG_S = 0.4
SILENCE_S = 3 * WATCHDOG_S  # an interval is over when nothing was heard for as long


class Systemd:
    """Receives notifications; `heard` are their lines, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []
        self.fed_at: list[float] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for line in self._socket.recv(65536).decode().splitlines():
                if line == "WATCHDOG=1":
                    self.fed_at.append(time.monotonic())
                else:
                    self.heard.append(line)

    def silent(self) -> bool:
        """Whether the watchdog would have bitten by now."""
        return bool(self.fed_at) and time.monotonic() - self.fed_at[-1] > SILENCE_S

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def environment(self, *, watchdog: bool = False) -> dict[str, str]:
        interval = {"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))} if watchdog else {}
        return {"NOTIFY_SOCKET": self.address, **interval}
