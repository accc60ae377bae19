"""What the harness does to processes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from ptrack_build import REPO
from tests.harness import system
from tests.harness.cluster import NotInTime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.harness.factory import Factory

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
texts = [bytes([c]) * (16 << 20) for c in b"ab"]
while True:
    for text in texts:
        os.pwrite(fd, text, 0)
        os.write(1, b".")
"""


def test_a_kill_leaves_no_half_written_page(session_factory: Factory) -> None:
    path = session_factory.root / "written"
    for _ in range(5):
        argv = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            assert writer.stdout.read(3) == b"..."
            system.kill(writer.pid)
        assert len(set(path.read_bytes())) == 1
    path.unlink()


SPAWNER = """
import os, sys
opens = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[opens])
"""


def test_what_does_not_stop_is_killed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in the system call that made its child, and the child for a writer of the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(system, "_STOPPED_SECONDS", 0.2)
    born: list[int] = []
    with subprocess.Popen([sys.executable, "-c", SPAWNER, str(pipe)]) as spawner:
        try:
            deadline = time.monotonic() + 60
            while not (born := system.children(spawner.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(system.NotStopped, match=rf"{{{spawner.pid}: 'D'}}"):
                system.kill(spawner.pid)
            assert spawner.wait(60) == -signal.SIGKILL
        finally:
            born = born or system.children(spawner.pid)
            spawner.kill()
            for pid in born:
                system.send(pid, signal.SIGKILL)


TAKER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    time.sleep(0.001)
"""


def test_a_signal_waits_for_who_has_stopped() -> None:
    argv = [sys.executable, "-c", TAKER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as taker:
        try:
            assert taker.stdout
            assert taker.stdout.readline() == b"ready\n"
            system.stop(taker.pid)
            assert not system.awaits(taker.pid, signal.SIGTERM)
            system.send(taker.pid, signal.SIGTERM)
            assert system.awaits(taker.pid, signal.SIGTERM)
            assert not system.awaits(taker.pid, signal.SIGINT)
            assert taker.poll() is None
            system.send(taker.pid, signal.SIGCONT)
            assert taker.wait(60) == 7
        finally:
            taker.kill()
    assert not system.awaits(taker.pid, signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="servers run as another user under root alone")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv, which takes capabilities away")
def test_a_root_without_ptrace_sees_where_servers_work(factory: Factory) -> None:
    """As most containers have it."""
    server = factory.create()
    script = (
        "import os, sys; from pathlib import Path; from tests.harness import system;"
        "place = Path(sys.argv[1]); pid = sys.argv[2];"
        "assert not os.access(f'/proc/{pid}/cwd', os.F_OK), 'the capability is there still';"
        "print(*system.working_in(place))"
    )
    argv = [
        "setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--",
        sys.executable, "-c", script, str(server.data), str(server.pid),
    ]  # fmt: skip
    before = system.children(server.pid)
    ran = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=REPO)
    stayed = set(before) & set(system.children(server.pid))
    assert stayed
    assert {server.pid, *stayed} <= {int(word) for word in ran.stdout.split()}


def test_a_server_that_does_not_stop_is_killed_whole(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its postmaster sees that a child was killed, and starts others before it is killed."""
    server = factory.create()
    first = system.children(server.pid)
    late: list[int] = []
    send = system.send

    def runs_on(*_pids: int) -> None:
        raise system.NotStopped

    def starts_others() -> bool:
        late[:] = [pid for pid in system.children(server.pid) if pid not in first]
        return bool(late)

    def sends(pid: int, sig: signal.Signals) -> None:
        if pid == server.pid and not late:
            server.wait_for(starts_others, "other children")
            for other in late:  # it does not see that its postmaster is gone
                send(other, signal.SIGSTOP)
        send(pid, sig)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(system, "stop", runs_on)
            patch.setattr(system, "send", sends)
            with pytest.raises(system.NotStopped):
                server.kill_all()
        assert first
        assert late
        assert not server.running
        assert not [pid for pid in (*first, *late) if system.alive(pid)]
        assert not system.working_in(server.data)
    finally:
        for pid in late:
            send(pid, signal.SIGKILL)
    server.start()
    assert server.value("SELECT 1") == 1


def test_a_start_that_hangs_is_none_that_fails(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = factory.create()
    server.stop()
    popen = system.popen

    def hangs(
        argv: Sequence[str | Path], *, output: IO[bytes], cwd: Path, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        stopped = ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *argv]
        return popen(stopped, output=output, cwd=cwd, env=env)

    with monkeypatch.context() as patch:
        patch.setattr("tests.harness.cluster._START_SECONDS", 1.0)
        patch.setattr(system, "popen", hangs)
        with pytest.raises(NotInTime, match="not ready in time"):
            server.start_fails()
    assert not server.running
    server.start()


def _attached(segment: int) -> int:
    """How many processes are attached to a segment; skips where the kernel shows none at all."""
    if not Path("/proc/sysvipc/shm").exists():
        pytest.skip("the kernel shows no segments")
    return system.shared_memory()[segment]


def test_starts_when_another_has_looked_into_what_it_left(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server of 12 does at its start with the segments of every other on its port."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    cluster = factory.create()
    segment = cluster.shared_memory_id()
    assert _attached(segment) > 0
    with monkeypatch.context() as patch:
        patch.setattr(system, "remove_shared_memory", lambda _shmid: None)
        cluster.kill_all()
    address = libc.shmat(segment, None, 0)
    if address == ctypes.c_void_p(-1).value:
        assert ctypes.get_errno() == errno.EACCES, os.strerror(ctypes.get_errno())
        pytest.skip("may not look into the server's shared memory")
    held = [ctypes.c_void_p(address)]
    shown = system.shared_memory
    looks = 0

    def look() -> dict[int, int]:
        """The other one goes after it was seen some times that somebody has the segment."""
        nonlocal looks
        found = shown()
        looks += bool(found.get(segment))
        if held and looks > 2:
            libc.shmdt(held.pop())
        return found

    monkeypatch.setattr(system, "shared_memory", look)
    try:
        cluster.start()
        assert not held
    finally:
        for attached in held:
            libc.shmdt(attached)
    assert cluster.value("SELECT 1") == 1


def test_what_a_killed_run_left_of_shared_memory_goes(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server has stays, and so does what has another key than postmaster.pid says."""
    cluster = factory.create()
    segment = cluster.shared_memory_id()
    assert _attached(segment) > 0
    with monkeypatch.context() as patch:
        removed: list[int] = []
        patch.setattr(system, "remove_shared_memory", removed.append)
        system.forget_shared_memory(cluster.root)
        assert removed == []
        cluster.kill_all()
        assert removed == [segment]
    path = cluster.data / "postmaster.pid"
    told = path.read_text()
    lines = told.splitlines()
    key, shmid = lines[6].split()
    assert int(shmid) == segment
    lines[6] = f"{int(key) + 1} {shmid}"
    path.write_text("\n".join(lines))
    system.forget_shared_memory(cluster.root)
    assert segment in system.shared_memory()
    path.write_text(told)
    system.forget_shared_memory(cluster.root)
    if segment in system.shared_memory():
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.shmctl(segment, 0, None) == -1, "it could have been removed"
        assert ctypes.get_errno() == errno.EPERM, os.strerror(ctypes.get_errno())
        pytest.skip("may not remove the server's shared memory")


def test_a_killed_server_leaves_no_shared_memory(factory: Factory) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    cluster = factory.create()
    segment = cluster.shared_memory_id()
    assert _attached(segment) > 0
    cluster.kill_all()
    if segment in system.shared_memory():
        if cluster.major >= 13:
            assert not system.shared_memory().get(segment)
        else:  # servers that start look into it
            cluster.wait_for(lambda: not system.shared_memory().get(segment), "nobody in it", 10)
        assert libc.shmctl(segment, 0, None) == -1, "it could have been removed"
        assert ctypes.get_errno() == errno.EPERM, os.strerror(ctypes.get_errno())
        pytest.skip("may not remove the server's shared memory")
