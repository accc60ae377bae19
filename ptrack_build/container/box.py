"""One container: started, commanded like this machine, and removed however things end."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Unpack

from ptrack_build.container.base import ContainerError, explained
from ptrack_build.errors import CommandFailed
from ptrack_build.run import Completed, Held, Listener

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from docker import DockerClient

    from ptrack_build.run import How

OWNER: Final = "ptrack.owner"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A directory of this machine that a container sees at the same path."""

    path: Path
    writable: bool = False


@dataclass(frozen=True, kw_only=True)
class Box:
    """A running container."""

    client: DockerClient
    name: str
    image: str

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Run a command in it, as run.call does here; the environment is env and a plain PATH.

        All run as the container's user and none is shown, whatever how says of that. Raises
        CommandFailed, and ContainerError where the engine itself fails.
        """
        cwd, log, capture = how.get("cwd"), how.get("log"), how.get("capture", False)
        words = tuple(argv)
        api = self.client.api
        with Listener(log, how.get("on_line")) as listener:
            listener.command(words)
            with explained(f"{self.image}: {words[0]} could not be run"):
                ident = api.exec_create(
                    self.name,
                    list(words),
                    workdir=str(cwd) if cwd else None,
                    environment={"PATH": PATH, **(how.get("env") or {})},
                )["Id"]
                out = _Lines(listener, keep=capture)
                err = _Lines(listener, keep=capture and log is not None)
                for pair in api.exec_start(ident, stream=True, demux=True):
                    for sink, data in zip((out, err), pair, strict=True):
                        if data:
                            sink.feed(data)
                out.close()
                err.close()
                returncode = api.exec_inspect(ident)["ExitCode"]
        if returncode is None:
            what = f"{self.image}: the container ended while {words[0]} ran"
            raise ContainerError(what, log=log, hint="was it removed, or out of memory?")
        if returncode != 0 and how.get("check", True):
            tail = "\n".join(listener.tail)
            raise CommandFailed(words, returncode, log=log, tail=tail)
        return Completed(argv=words, returncode=returncode, stdout="".join(listener.out))


class _Lines:
    """Bytes in pieces, as lines."""

    def __init__(self, listener: Listener, *, keep: bool) -> None:
        self._listener = listener
        self._keep = keep
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._listener.line(line + "\n", keep=self._keep)

    def close(self) -> None:
        """A last line may lack its end."""
        if self._rest:
            self._listener.line(self._rest, keep=self._keep)


@contextlib.contextmanager
def opened(
    client: DockerClient,
    image: str,
    *,
    user: str,
    network: str = "none",
    mounts: Sequence[Mount] = (),
    sealed: bool = False,
    called: str = "",
) -> Iterator[Box]:
    """A container that waits for commands; it is removed at the end, ctrl-C or not.

    user: "uid:gid" whom commands run as; network: "none" or "host"; sealed: without privileges,
    and with nothing writable but mounts and /tmp; called: the image's name in messages.
    """
    import docker.types

    called = called or image
    name = f"ptrack-{os.getpid()}-{next(_numbers)}"
    wanted: dict[str, Any] = {
        "name": name,
        "entrypoint": ["sleep", "infinity"],
        "command": [],
        "user": user,
        "network_mode": network,
        "labels": {OWNER: owner()},
        "init": True,
        "mounts": [
            docker.types.Mount(
                str(mount.path), str(mount.path), type="bind", read_only=not mount.writable
            )
            for mount in mounts
        ],
    }
    if sealed:
        wanted |= {
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "tmpfs": {"/tmp": "exec,mode=1777"},
        }
    sweep(client)
    with explained(f"no container of {called} could be started"):
        try:
            container = client.containers.create(image, **wanted)
            container.start()
        except BaseException:
            _remove(client, name)
            raise
    try:
        yield Box(client=client, name=name, image=called)
    finally:
        _remove(client, name)


def _remove(client: DockerClient, name: str) -> None:
    """Remove a container, running or not; a further ctrl-C waits for that."""
    import docker.errors
    import requests

    held = Held()
    try:
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            client.api.remove_container(name, force=True, v=True)
    finally:
        held.release()


def owner() -> str:
    """Who we are, as containers' labels have it: machine, PID namespace, process, its start."""
    return _owner(os.getpid())


def _owner(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:  # noqa: PTH123
        started = stream.read().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')} {pid} {started}"  # noqa: PTH115


def sweep(client: DockerClient) -> None:
    """Remove the containers of runs of this machine that were killed."""
    import docker.errors
    import requests

    here = owner().rsplit(" ", 2)[0]
    with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
        for container in client.containers.list(all=True, filters={"label": OWNER}):
            whose = container.labels.get(OWNER, "")
            if whose.rsplit(" ", 2)[0] != here:
                continue
            alive = ""
            with contextlib.suppress(OSError, ValueError):
                alive = _owner(int(whose.split()[-2]))
            if alive != whose:
                _remove(client, container.name)
