"""
A server that lives and dies with the block that started it: its directory, its account, its process.

Nothing survives the block, not even SIGKILL of the process: on Linux the kernel then signals the server, and
the next start removes the directory. Used for the embedded servers only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import pwd
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio

from outboxd.errors import OutboxdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGKILL)

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_LOG_TAIL_CHARS = 4000
# The caller's PG*, LANG, LC_ALL and TZ would reach initdb and the server: an LC_ALL that is not installed
# makes initdb fail, LANG=C makes a database that knows no UTF-8.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
# A Unix socket's path has at most 107 bytes (103 on macOS): TMPDIR and pytest's directories come close.
_ROOT = Path("/tmp")  # noqa: S108  every directory in it is made by mkdtemp
_MEMORY = Path("/dev/shm")  # noqa: S108  likewise
_MEMORY_BYTES_MIN = 4 * 2**30

# Runs before every server: gives up root, asks Linux for a signal when the parent dies, becomes the server.
# A program of its own and not preexec_fn, which is not safe with threads and unknown to uvloop.
_SHIM = """
import os, sys
parent, uid, gid, death_signal = map(int, sys.argv[1:5])
prctl = None
if sys.platform == "linux":
    import ctypes                   # before setuid: the standard library may lie under /root
    prctl = ctypes.CDLL(None).prctl
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if prctl:
    prctl(1, death_signal)          # PR_SET_PDEATHSIG, after setuid, which clears it
    if os.getppid() != parent: os._exit(1)      # the parent died before prctl
try:
    os.execve(sys.argv[5], sys.argv[5:], os.environ)
except OSError as exc:
    sys.exit(f"{sys.argv[5]}: {exc.strerror}")
"""


class EmbeddedError(OutboxdError):
    """An embedded server could not be started."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose process a server is; -1: the caller's own."""

    uid: int = -1
    gid: int = -1

    @property
    def is_other(self) -> bool:
        """Whether it is not the caller's own."""
        return self.uid >= 0

    def own(self, path: Path) -> None:
        """Give a file or directory to the account."""
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def may_enter(self, directory: Path) -> bool:
        """Tell whether the mode bits let the account pass through."""
        facts = directory.stat()
        bit = 0o100 if facts.st_uid == self.uid else 0o010 if facts.st_gid == self.gid else 0o001
        return bool(facts.st_mode & bit)


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of its own for one server: its socket, its log, data that is thrown away."""

    directory: Path
    account: Account
    log: BinaryIO

    def failure(self, what: str, hint: str = "") -> EmbeddedError:
        """Build an error that ends with the last words of the server."""
        words = Path(self.log.name).read_text(errors="replace").strip()[-_LOG_TAIL_CHARS:]
        return EmbeddedError(f"{what}:\n{words}" if words else what, hint=hint)


def unprivileged_account() -> Account:
    """Return our own account; for root, which PostgreSQL refuses to be, the caller of sudo, else nobody."""
    if os.geteuid() != 0:
        return Account()
    if os.environ.get("SUDO_UID", "0") != "0":
        return Account(int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid)


@contextlib.contextmanager
def private_place(account: Account, *, in_memory: bool = False) -> Iterator[Place]:
    """
    Make a directory that only the account (and root) may enter, and remove it at the end.

    First removes what killed processes of the same account left. The path is short: a Unix socket fits in.

    Args:
        account: Whose servers run there.
        in_memory: Prefer memory to the disk, where it has much room. A database is copied there in 9 ms, on a disk's
            file system in up to 300, all of it the kernel's time for three hundred small files.
    """
    _sweep({os.geteuid(), account.uid})
    root = _MEMORY if in_memory and _has_room_in_memory() else _ROOT
    # Renamed when it is locked: what bears the final name and is not locked was left by a killed process.
    unlocked = Path(tempfile.mkdtemp(prefix="obxnew-", dir=root))
    with (unlocked / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = unlocked.rename(root / unlocked.name.replace("obxnew-", "obx-"))
        try:
            account.own(directory)
            with (directory / "server.log").open("ab") as log:
                yield Place(directory, account, log)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _has_room_in_memory() -> bool:
    """Whether a server can live there; containers have 64 MB, and forbid programs, of which it may need copies."""
    try:
        facts = os.statvfs(_MEMORY)
    except OSError:  # not on macOS
        return False
    is_fit = not facts.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) and os.access(_MEMORY, os.W_OK)
    return is_fit and facts.f_bavail * facts.f_frsize >= _MEMORY_BYTES_MIN


def _sweep(owners: set[int]) -> None:
    for directory in itertools.chain(_ROOT.glob("obx-*"), _MEMORY.glob("obx-*")):
        with contextlib.suppress(OSError):  # locked: alive; gone: another start was faster
            if directory.lstat().st_uid in owners:
                _remove_unless_locked(directory)


def _remove_unless_locked(directory: Path) -> None:
    lock = directory / ".lock"
    if lock.exists():
        # Neither a link nor a pipe may fool us: the directory can belong to another account.
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    shutil.rmtree(directory, ignore_errors=True)  # no lock: a removal that did not come to its end


async def until_ready(
    name: str,
    place: Place,
    process: asyncio.subprocess.Process,
    answers: Callable[[], Awaitable[bool]],
    timeout_s: float,
) -> None:
    """
    Wait until `answers` (one try; False means not yet) returns True.

    Raises:
        EmbeddedError: The process has ended, or `timeout_s` seconds have passed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while not await answers():
                if process.returncode is not None:
                    raise place.failure(f"{name} did not start")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise place.failure(f"{name} does not answer after {timeout_s:g} s") from None


async def run(place: Place, argv: Sequence[object]) -> int:
    """Run a program to its end and return its exit code."""
    async with running(place, argv) as process:
        return await process.wait()


@contextlib.asynccontextmanager
async def running(
    place: Place,
    argv: Sequence[object],
    stop_signals: Sequence[signal.Signals] = STOP_SIGNALS,
    stdout: int | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """
    Run a program as the place's account; leaving the block stops it, whatever cancels us meanwhile.

    `stop_signals` are sent one after another, 10 s apart, until it has ended; the first one is also what
    Linux sends when we die. `stdout` is as for `asyncio.create_subprocess_exec`; None means the place's log.
    """
    account = place.account
    numbers = (os.getpid(), account.uid, account.gid, int(stop_signals[0]))
    shim = [sys.executable, "-I", "-S", "-c", _SHIM, *numbers]
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *map(str, [*shim, *argv]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=place.log if stdout is None else stdout,
            stderr=place.log,
            cwd=place.directory,
            env=_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C in the terminal must reach outboxd only, which then drains
        )
    )
    try:
        yield await asyncio.shield(spawning)
    finally:
        await _whatever_happens(_stop(spawning, stop_signals))


async def _stop(spawning: asyncio.Future[asyncio.subprocess.Process], signals: Sequence[signal.Signals]) -> None:
    await asyncio.wait([spawning])
    if spawning.cancelled() or spawning.exception() is not None:
        return
    process = spawning.result()
    if process.returncode is not None:
        return
    for number in signals:
        if process.returncode is not None:
            break
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.send_signal(number)
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    # What initdb had started; a server's children end with it. macOS says EPERM of a group that is gone.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _whatever_happens(work: Coroutine[Any, Any, None]) -> None:
    """Bring work to its end; a cancellation that arrives meanwhile takes effect afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as exc:
                cancelled = exc
    if cancelled is not None:
        raise cancelled
