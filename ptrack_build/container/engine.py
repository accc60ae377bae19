"""The container engine: the one that runs, else one of our own for as long as it takes.

An engine of our own is the distribution's dockerd. It listens on a socket in a private directory
and nowhere else, keeps its images below the cache, makes no bridge and touches neither the packet
filter nor forwarding: containers have no network, or (to install packages) the host's. Installing
it for that leaves no other one running or enabled (dormant).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import cache, host
from ptrack_build.container import dormant
from ptrack_build.container.base import ContainerError, NoEngine
from ptrack_build.errors import HostError
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient

SOCKETS: Final = (Path("/run/docker.sock"), Path("/var/run/docker.sock"))
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
NEED: Final = "container engine"


@contextlib.contextmanager
def running() -> Iterator[DockerClient]:
    """Yield a docker client: of DOCKER_HOST, of the engine that runs here, or of one of our own.

    Raises NoEngine, with the line that brings one, and ContainerError where DOCKER_HOST leads
    nowhere or to another machine, whose engine could not see the cache.
    """
    named = os.environ.get("DOCKER_HOST", "")
    if named:
        if not named.startswith("unix://"):
            what = f"the engine at DOCKER_HOST={named} is not of this machine"
            raise ContainerError(what, hint="builds mount the cache: unset it, or name a socket")
        client = connected(named)
        if client is None:
            what = f"nothing answers at DOCKER_HOST={named}"
            raise ContainerError(what, hint="start it, or unset DOCKER_HOST")
    else:
        client = _local()
    if client is not None:
        with contextlib.closing(client):
            yield client
        return
    _ensure()
    with _own() as client:
        yield client


def connected(address: str) -> DockerClient | None:
    """A client of an engine that answers at a socket, or None."""
    import docker
    import docker.errors
    import requests

    with socket.socket(socket.AF_UNIX) as tried:  # the client leaks those that it cannot connect
        try:
            tried.connect(address.removeprefix("unix://"))
        except OSError:
            return None
    try:
        client = docker.DockerClient(base_url=address, version="auto", timeout=600)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException, OSError):
        return None
    return client


def _local() -> DockerClient | None:
    """A client of the engine that runs here for all."""
    for path in dict.fromkeys(path.resolve() for path in SOCKETS):
        if (client := connected(f"unix://{path}")) is not None:
            return client
    return None


def _ensure() -> None:
    """See to it that dockerd can be started, by us: nothing else is to. Raises NoEngine."""
    if os.geteuid() != 0:
        what = "no container engine runs here that this user may use"
        sudo = host.paste([NEED]) if host.missing([NEED]) else "sudo systemctl start docker"
        raise NoEngine(what, hint=f"{sudo}; then run it as root, or be in the group docker")
    if not host.missing([NEED]):
        return
    try:
        with cache.lock(NEED, "installs a container engine"), dormant.kept():
            host.ensure([NEED])
    except HostError as error:
        what = f"there is no container engine ({error.what.splitlines()[0]})"
        raise NoEngine(what, hint=error.hint) from error


@contextlib.contextmanager
def _own() -> Iterator[DockerClient]:
    """Start dockerd, and stop it at the end."""
    log = cache.directory("log") / "engine.log"
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            cache.lock("in containers of an engine of its own", "uses such an engine")
        )
        # A socket's path is short, and nobody else may pass to this one.
        home = Path(tempfile.mkdtemp(prefix="ptrack-engine-", dir=_short()))
        stack.callback(_clear, home)
        (home / "daemon.json").write_text("{}")  # not the host's
        address = f"unix://{home}/docker.sock"
        argv = [
            "dockerd", "--host", address, "--config-file", str(home / "daemon.json"),
            "--data-root", str(cache.directory("engine")), "--exec-root", str(home / "exec"),
            "--pidfile", str(home / "pid"), "--bridge=none", "--iptables=false",
            "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        ]  # fmt: skip
        if setpriv := shutil.which("setpriv"):
            # where we are killed without being asked, it ends, too
            argv = [setpriv, "--pdeathsig", "TERM", *argv]
        with step("starting a container engine", estimate=3.0):
            process = stack.enter_context(_daemon(argv, log))
            client = _awaited(process, address, log)
        stack.callback(client.close)
        yield client


def _clear(home: Path) -> None:
    """Remove a daemon's directory: it leaves the name of a network mounted there when it ends."""
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:  # noqa: PTH123
        below = mounted(home, stream.read())
    for place in reversed(below):
        call(["umount", str(place)], quiet=True, capture=True, check=False)
    cache.remove(home)


def mounted(home: Path, mountinfo: str) -> list[Path]:
    """What is mounted below a directory, in the order of mounting; see proc(5)."""
    rows = (line.split(" ") for line in mountinfo.splitlines())
    places = (re.sub(r"\\(\d{3})", lambda o: chr(int(o[1], 8)), row[4]) for row in rows)
    return [path for path in map(Path, places) if home in path.parents]


def _short() -> Path | None:
    """Where sockets can be: /run, where that can be written."""
    return Path("/run") if os.access("/run", os.W_OK) else None


@contextlib.contextmanager
def _daemon(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in a session of its own, so that ctrl-C does not reach it before its containers."""
    with log.open("ab") as stream:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        except OSError as error:
            what = f"no container engine: {argv[0]}: {error.strerror}"
            raise NoEngine(what, hint=host.paste([NEED])) from error
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            say("the container engine does not stop when asked: killing it")
            process.kill()
            process.wait()


def _awaited(process: subprocess.Popen[bytes], address: str, log: Path) -> DockerClient:
    """A client, as soon as the daemon answers. Raises NoEngine with the end of its log."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        if (client := connected(address)) is not None:
            return client
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:]
    what = "\n".join(["no container engine: dockerd does not start here", *lines])
    raise NoEngine(what, log=log, hint="name one that runs in DOCKER_HOST, or leave out --image")
