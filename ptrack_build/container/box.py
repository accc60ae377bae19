"""One container: started, commanded like this machine, and removed however things end."""

from __future__ import annotations

import codecs
import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from ptrack_build.container.base import ContainerError, explained
from ptrack_build.errors import CommandFailed
from ptrack_build.run import Completed, Held, Listener

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docker import DockerClient

    from ptrack_build.run import How

OWNER: Final = "ptrack.owner"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A directory of this machine that a container sees at the same path."""

    path: Path
    writable: bool = False


@dataclass(frozen=True, kw_only=True)
class Box:
    """A running container. id: the engine's, since names can be anybody's."""

    client: DockerClient
    id: str
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
                    self.id,
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
    wanted: dict[str, Any] = {
        "name": f"ptrack-{os.getpid()}-{secrets.token_hex(8)}",
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
    ident = ""
    try:
        with explained(f"no container of {called} could be started"):
            held = Held()  # what is created has an id only when that is done
            try:
                container = client.containers.create(image, **wanted)
                ident = container.id
            finally:
                held.release()
            container.start()
        yield Box(client=client, id=ident, image=called)
    finally:
        if ident:
            _remove(client, ident)


def _remove(client: DockerClient, ident: str) -> None:
    """Remove a container, running or not; a further ctrl-C waits for that."""
    import docker.errors
    import requests

    held = Held()
    try:
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            client.api.remove_container(ident, force=True, v=True)
    finally:
        held.release()


def owner() -> str:
    """Who we are, as containers' labels have it: boot, PID namespace, process, its start.

    A machine's boot has an id of its own, which hosts that share a name or an engine do not.
    """
    return _owner(os.getpid())


def _owner(pid: int) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return f"{boot} {namespace} {pid} {stat.rpartition(')')[2].split()[19]}"


def sweep(client: DockerClient) -> None:
    """Remove the containers of runs that were killed.

    Who lives can be told in our own PID namespace alone. What is of another boot goes once it has
    ended, which it does with the machine.
    """
    import docker.errors
    import requests

    here = owner().split()
    with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
        for container in client.containers.list(all=True, filters={"label": OWNER}):
            whose = container.labels.get(OWNER, "").split()
            if len(whose) != len(here):
                continue
            if whose[0] != here[0]:
                left = container.status == "exited"
            else:
                left = whose[1] == here[1] and not lives(whose)
            if left:
                _remove(client, container.id)


def lives(whose: list[str]) -> bool:
    """Whether the process of our namespace that owner() named so still runs."""
    pid = int(whose[2])
    try:
        return _owner(pid).split() == whose
    except OSError:  # gone, or (hidepid) not for us to see
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
