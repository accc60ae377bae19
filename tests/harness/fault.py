"""Stopping a server's process at a system call on a file, or having the call fail.

A small library (fault.c) is preloaded into the server and takes its orders from a file that both
sides map into memory. The server's own code is what it always is.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg

from ptrack_build import host
from ptrack_build.errors import HostError
from tests.harness import system
from tests.harness.cluster import NotInTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from tests.harness.cluster import Cluster

SOURCE = Path(__file__).with_name("fault.c")
SECONDS = 60.0
POLL_SECONDS = 0.002


class Kind(enum.IntFlag):
    """What is called."""

    WRITE = 1
    SYNC = 2
    RENAME = 4
    TRUNCATE = 8
    UNLINK = 16
    OPENDIR = 32
    READ = 64
    OPEN = 128
    STAT = 256

    @classmethod
    def changes(cls) -> Kind:
        """All that changes a file or makes it durable."""
        return cls.WRITE | cls.SYNC | cls.RENAME | cls.TRUNCATE | cls.UNLINK


class Action(enum.IntEnum):
    """What happens to the call."""

    COUNT = 0
    STOP_BEFORE = 1
    STOP_AFTER = 2
    STOP_AROUND = 3  # before it, and after it once more
    STOP_HALFWAY = 4
    FAIL = 5
    STOP_AND_FAIL = 6  # when it goes on
    FAIL_HALFWAY = 7


class _Control(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in (
            "armed", "kinds", "number", "action", "error", "onwards", "process", "count", "stopped",
        )),
        ("text", ctypes.c_char * 224),
    )  # fmt: skip


def compiler() -> list[str] | None:
    """What compiles the library, as words: the build's own, or None on a machine that has none.

    Raises HostError where CC names one that is not there.
    """
    try:
        return host.compiler()
    except HostError:
        if os.environ.get("CC"):
            raise
        return None


def library(shared: Path) -> Path:
    """The compiled library in a directory that the server's user can read; made where missing."""
    path = shared / "fault.so"
    if not path.exists():
        made = shared / f"fault.{time.monotonic_ns()}.so"
        options = ["-shared", "-fPIC", "-O1", "-o", str(made), str(SOURCE)]
        argv = [*(compiler() or ["cc"]), *options]
        subprocess.run(argv, check=True, capture_output=True, text=True)
        made.chmod(0o755)
        made.rename(path)
    return path


class Fault:
    """Orders for the processes of one cluster, which must not have been started yet."""

    def __init__(self, cluster: Cluster, shared: Path) -> None:
        assert not cluster.running, "the server is started with the library"
        path = cluster.root / "fault"
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        system.own(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._map)
        cluster.env = {"LD_PRELOAD": str(library(shared)), "PTRACK_FAULT": str(path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def order(
        self,
        text: str,
        kinds: Kind,
        action: Action = Action.COUNT,
        *,
        number: int = 1,
        error: int = errno.EIO,
        onwards: bool = False,
        process: int = 0,
    ) -> None:
        """Act on the number-th call of these kinds on a file whose path has the text in it.

        Who is stopped goes on when the order stands: whoever waits for that one comes upon it.

        text: or one of several, with ``|`` between them; with ``$``, at the path's end.
        onwards: on all that follow as well. Counts from nothing.
        process: whose calls alone count, if not 0.
        """
        control = self._control
        control.armed = 0
        waiting = control.stopped
        control.kinds, control.action, control.number = int(kinds), int(action), number
        control.error, control.onwards, control.process = error, int(onwards), process
        control.count = 0
        control.text = text.encode()
        control.armed = 1
        if waiting and control.stopped == waiting:
            control.stopped = 0

    @property
    def count(self) -> int:
        """Calls so far that the order is about."""
        return int(self._control.count)

    @property
    def stopped(self) -> int:
        """The process that is stopped at the call, 0 if none is."""
        return int(self._control.stopped)

    def wait(self) -> int:
        """Wait until a process has come to the call; its id. Raises NotInTime."""
        deadline = time.monotonic() + SECONDS
        while not self.stopped:
            if time.monotonic() > deadline:
                what = f"nobody came to the call; {self.count} before it"
                raise NotInTime(what)
            time.sleep(POLL_SECONDS)
        return self.stopped

    def go_on(self) -> None:
        """Let go who is stopped; the order stands."""
        self._control.stopped = 0

    def clear(self) -> None:
        """No order any more; who is stopped goes on."""
        self._control.armed = 0
        self._control.stopped = 0


def start_killed(cluster: Cluster, orders: Fault, number: int) -> bool:
    """Start, and kill -9 all before the number-th change of a file; False if it came not to it."""
    orders.order("base/|/PG_|global/", Kind.changes(), Action.STOP_BEFORE, number=number)
    cluster.start(wait=False)
    cluster.wait_for(lambda: orders.stopped > 0 or cluster.ready(), "a start to kill")
    came = orders.stopped > 0
    cluster.kill_all()
    orders.clear()
    return came


@contextlib.contextmanager
def beside(
    function: Callable[[], object],
    *,
    killed: Cluster | None = None,
    fails: tuple[type[Exception], ...] = (),
) -> Iterator[threading.Thread]:
    """Something that may be held up; what it fails with is raised when the body has ended.

    killed: what the body kills, and leaves down: it may lose its connection to that. fails: what
    else it may fail with.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except fails:
            pass
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    except BaseException as error:
        for failure in failures:  # it may be why the body has waited in vain
            error.add_note(f"beside it: {failure!r}")
        raise
    thread.join(60)
    if thread.is_alive():
        what = "it did not come to an end"
        raise NotInTime(what)
    # a server that crashes by itself comes back by itself
    if failures and (killed is None or killed.running or not _lost(failures[0])):
        raise failures[0]


def _lost(failure: BaseException) -> bool:
    """Whether it is the end of a connection, or none was to be had."""
    return isinstance(failure, psycopg.OperationalError) and failure.sqlstate is None
