"""Running a server's programs as the user they may run as, and looking at processes.

PostgreSQL refuses to run as root, so under root every program of the installation goes
through :func:`popen` or :func:`run` and becomes the unprivileged user of
:func:`ptrack_build.host.server_user`. Under any other user nothing changes hands.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptrack_build.host import server_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_NAPS = 10
_NAP_SECONDS = 0.01
_STOPPED_SECONDS = 10.0
_IPC_RMID = 0
_HELD_SECONDS = 10.0
_LOOKED_INTO_SECONDS = 0.5
_DEAD = frozenset("ZX")
_STOPPED = frozenset("tTZX")

_LIBC = ctypes.CDLL(None, use_errno=True)

# What PostgreSQL's programs would take from the caller's environment.
_CLEARED = ("PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE", "PGTZ")


class ProgramFailed(AssertionError):
    """A program that had to succeed did not.

    Attributes:
        returncode: of the program; negative for a signal.
        output: stdout and stderr together.
    """

    def __init__(self, argv: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"{shlex.join(argv)} returned {returncode}\n{output}")
        self.returncode = returncode
        self.output = output


class NotStopped(AssertionError):
    """A process that was told to stop runs on, or waits in a system call."""


@functools.cache
def _setpriv() -> str | None:
    return shutil.which("setpriv")


@functools.cache
def _identity() -> tuple[tuple[str, ...], dict[str, Any]]:
    """What makes a command the server's user: words in front of it, or arguments of Popen.

    Words where that can be: Popen forks for its own arguments, which copies a big process, and
    else it need not.
    """
    user = server_user()
    if user is None:
        return (), {}
    setpriv = _setpriv()
    if setpriv is None:
        return (), {"user": user.uid, "group": user.gid, "extra_groups": []}
    return (
        setpriv, f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--",
    ), {}  # fmt: skip


@functools.cache
def _die_with_parent() -> tuple[str, ...]:
    """Words in front of a command that have the kernel kill it when we die.

    They come after those that change the user, which would clear it.
    """
    setpriv = _setpriv()
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that PostgreSQL's programs get: ours without any ``PG*`` defaults."""
    env = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    user = server_user()
    if user is not None:
        env.update(USER=user.name, LOGNAME=user.name, HOME="/")
    env.update({"LC_ALL": "C", "LC_MESSAGES": "C", "PGTZ": "UTC"})
    env.update(extra or {})
    return env


def popen(
    argv: Sequence[str | Path],
    *,
    output: IO[bytes],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a long-running program as the server's user; it is killed when we die.

    Args:
        output: where stdout and stderr go, opened by the caller.
    """
    words, arguments = _identity()
    return subprocess.Popen(
        [*words, *_die_with_parent(), *(str(word) for word in argv)],
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environment(env),
        start_new_session=True,
        **arguments,
    )


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    stdin: str | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as the server's user; ``stdout`` has stderr in it.

    Raises:
        ProgramFailed: it returned non-zero and ``check`` is set.
    """
    words = [str(word) for word in argv]
    front, arguments = _identity()
    done = subprocess.run(
        [*front, *words],
        input=stdin if stdin is not None else "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environment(env),
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
        **arguments,
    )
    if check and done.returncode != 0:
        raise ProgramFailed(words, done.returncode, done.stdout)
    return done


def own(path: Path) -> Path:
    """Give a file or directory (not what is in it) to the server's user."""
    user = server_user()
    if user is not None:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    return path


def own_tree(root: Path) -> None:
    """Give a directory and everything in it to the server's user."""
    if server_user() is None:
        return
    own(root)
    for path in root.rglob("*"):
        own(path)


def make_dir(path: Path) -> Path:
    """A new directory that the server's user owns, mode 0700."""
    path.mkdir(mode=0o700)
    return own(path)


def children(pid: int) -> list[int]:
    """Process ids of the direct children of ``pid``."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


def working_in(place: Path) -> list[int]:
    """Process ids of those whose working directory a directory is."""
    found: list[int] = []
    with _seeing_as_servers_do():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it is gone, or another user's
                    if (entry / "cwd").samefile(place):
                        found.append(int(entry.name))
    return found


@contextlib.contextmanager
def _seeing_as_servers_do() -> Iterator[None]:
    """Let this thread look at files and processes as the user that servers run as.

    Under a root without CAP_SYS_PTRACE, as in most containers, nobody else may see where they work.
    """
    user = server_user()
    if user is None:
        yield
        return
    try:
        _LIBC.setfsgid(user.gid)
        _LIBC.setfsuid(user.uid)
        yield
    finally:
        _LIBC.setfsuid(os.geteuid())
        _LIBC.setfsgid(os.getegid())


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return _state(pid) not in _DEAD


def kill(*pids: int) -> None:
    """kill -9 processes, when all of them have stopped, and so each between two system calls.

    A write that is killed may have written half a page. PostgreSQL mends that from a page image
    in WAL, and does not start where full_page_writes has been off.

    Raises:
        NotStopped: one of them had not; all are killed.
    """
    try:
        stop(*pids)
    finally:
        for pid in pids:
            send(pid, signal.SIGKILL)


def stop(*pids: int) -> None:
    """SIGSTOP processes, and wait until all have stopped or are gone.

    Raises:
        NotStopped: one of them does neither; the others have stopped.
    """
    for pid in pids:
        send(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _STOPPED_SECONDS
    while left := {pid: state for pid in pids if (state := _state(pid)) not in _STOPPED}:
        if time.monotonic() >= deadline:
            what = f"after {_STOPPED_SECONDS:g} s these had not stopped, by state: {left}"
            raise NotStopped(what)
        time.sleep(0.001)


def awaits(pid: int, sig: signal.Signals) -> bool:
    """Whether a signal was sent to a process that has stopped: it takes it when it goes on."""
    fields = _status(pid)
    return bool(fields) and bool(int(fields["ShdPnd"], 16) >> (sig - 1) & 1)


def _state(pid: int) -> str:
    """The state of a process as /proc has it, a letter; X if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0]


def title(pid: int) -> bytes:
    """What a process of the server says it is; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def sleeps(pid: int) -> bool:
    """Whether a process waits for another one, longer than for what is only slow."""
    before = switches(pid)
    for _ in range(_NAPS):
        time.sleep(_NAP_SECONDS)
        if switches(pid) != before or before[0] != "S":
            return False
    return True


def switches(pid: int) -> tuple[str, ...]:
    """State of a process, and how often it has gone to sleep."""
    fields = _status(pid)
    if not fields:
        return ("gone",)
    return fields["State"][:1], fields["voluntary_ctxt_switches"]


def _status(pid: int) -> dict[str, str]:
    """What /proc says of a process, by name; nothing if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def send(pid: int, sig: signal.Signals) -> None:
    """Signal one process; one that is already gone is fine."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return


def remove_shared_memory(shmid: int) -> None:
    """Remove a SysV segment that a killed postmaster left behind, and wait until nobody has it.

    Before 13 its key is made of the port, and every server that starts looks for a moment into
    those of all others on that port. Whoever does holds it; a child that lives on does for longer.
    A root that may not remove it has it left there, with nobody.
    """
    _LIBC.shmctl(ctypes.c_int(shmid), _IPC_RMID, None)
    deadline = time.monotonic() + _HELD_SECONDS
    while shared_memory().get(shmid) and time.monotonic() < deadline:
        time.sleep(0.001)


def shared_memory() -> dict[int, int]:
    """How many processes have each SysV segment; none are listed where the kernel shows none."""
    return {shmid: int(row["nattch"]) for shmid, row in _segments().items()}


def _segments() -> dict[int, dict[str, str]]:
    """What the kernel shows of each SysV segment, by the names that it gives its columns."""
    try:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    except OSError:
        return {}
    names = lines[0].split()
    rows = (dict(zip(names, line.split(), strict=False)) for line in lines[1:])
    return {int(row["shmid"]): row for row in rows}


def forget_shared_memory(root: Path) -> None:
    """Remove the SysV segments that killed servers below a directory have left behind.

    An identifier is used again some day: a segment is theirs where its key, too, is the one that
    postmaster.pid names, and nobody has it.
    """
    for place, _, names in os.walk(root):
        if "postmaster.pid" not in names:
            continue
        try:
            lines = (Path(place) / "postmaster.pid").read_text().splitlines()
            key, shmid = (int(word) for word in lines[6].split())
        except (OSError, IndexError, ValueError):
            continue  # another one cleans up here, too; or the server ended before it had one
        deadline = time.monotonic() + _LOOKED_INTO_SECONDS
        while (row := _segments().get(shmid)) and int(row["key"]) % 2**32 == key % 2**32:
            if int(row["nattch"]) == 0:
                remove_shared_memory(shmid)
                break
            if time.monotonic() >= deadline:  # a server has it, rather than looks into it
                break
            time.sleep(0.001)


class SmallDisk:
    """A directory on a file system of its own that can be filled."""

    def __init__(self, path: Path) -> None:
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave not a block."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink()


def _copy_sparse(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", target], check=True)


@contextlib.contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk | None]:
    """Put a directory on a small tmpfs for a while, None where we may not mount.

    No server may run on it when it ends.
    """
    aside = path.parents[1] / f"{path.name}.aside"
    _copy_sparse(path, aside)
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", path],
            check=False,
            capture_output=True,
        ).returncode
        == 0
    )
    try:
        if not mounted:
            yield None
            return
        _copy_sparse(aside, path)
        own_tree(path)
        yield SmallDisk(path)
    finally:
        if mounted:
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(aside)
