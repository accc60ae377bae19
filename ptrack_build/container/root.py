"""A fresh system in a directory, entered without an engine: what root has instead of a container.

    reference ── base ──▶ Tree ── opened ──▶ Entered ── call ──▶ Completed
                           └──── with_packages ──▶ Tree

A Tree is a directory below <cache>/root that nobody changes: made by mmdebstrap of this machine's
mirror, or a copy of one with more packages. What is opened is a copy of it, in which a process of
its own namespaces (mounts, processes, IPC, host's name, and the network, where there is to be none)
waits for commands; with it whatever was started there ends, and nothing is mounted any more. It is
less than a container: the same kernel's limits, and all of root's capabilities. So it is for
packages of ours, not for what nobody knows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Unpack

from ptrack_build import cache, host
from ptrack_build.container import box, left
from ptrack_build.container import image as images
from ptrack_build.container.base import ContainerError, Reference
from ptrack_build.errors import HostError
from ptrack_build.host import check_room
from ptrack_build.progress import step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ptrack_build.run import Completed, How

PROGRAMS: Final = ("chroot", "mount", "nsenter", "unshare")
NAMESPACES: Final = ("--mount", "--pid", "--ipc", "--uts")
FORMAT: Final = "root 1"
KIND: Final = "root"  # of scratch: the copies that are opened
FREE_MB: Final = 4000
END_SECONDS: Final = 30.0

#: From the new namespaces to the new root; what is in "$@" are pairs of ro or rw and a directory.
#: /proc is still the machine's where the process reads its number, with which it is found. Its
#: input is for the first process alone.
ENTER: Final = r"""set -e
exec 3<&0 < /dev/null
umask 022
root=$1 init=$2
shift 2
read -r pid rest < /proc/self/stat
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for each in null zero full random urandom tty; do
    : > "$root/dev/$each"
    mount --bind "/dev/$each" "$root/dev/$each"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for each in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${each%:*}" "$root/dev/${each#*:}"
done
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$2" "$root$2"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 2
done
echo "$pid"
exec chroot "$root" /usr/bin/perl -e "$init" <&3 3<&-
"""
#: The first process, which every Debian has the perl for: what loses its parent is taken leave of,
#: and a network of its own has a loopback that is up (SIOCSIFFLAGS, of `lo`: up and running). Its
#: input ends with whoever opened the system, also by SIGKILL, which lets nobody clean up.
INIT: Final = r"""$SIG{CHLD} = "IGNORE";
my $any;
my $up = pack("a16 s x22", "lo", 0x41);
socket($any, 2, 2, 0) and ioctl($any, 0x8914, $up);
$| = 1;
print "ready\n";
sysread(STDIN, my $end, 1);
"""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A system's files that are kept. id: its key; how: where it came from, in a few words."""

    reference: Reference
    id: str
    how: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return _kept() / self.id


@dataclass(frozen=True, kw_only=True)
class Entered:
    """A system that runs. pid: of its first process, as this machine has it."""

    pid: int
    spaces: tuple[str, ...]

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Run a command in it, as Box.call does in a container: by its root, with a plain PATH.

        Its umask is that of a container, too, and not the caller's.
        """
        script = 'umask 022; cd "$0" && exec "$@"'
        words = ["sh", "-c", script, str(how.get("cwd") or "/"), *argv]
        how["cwd"], how["user"], how["quiet"] = None, None, True
        how["env"] = {"PATH": box.PATH, **(how.get("env") or {})}
        enter = ["nsenter", "--target", str(self.pid), *self.spaces, "--root", "--wd", "--"]
        return call([*enter, *words], inherit=False, **how)


def check() -> None:
    """Raise HostError where this machine can make and enter no root, with the next step."""
    if os.geteuid() != 0:
        what = "only root can make a fresh system to enter"
        raise HostError(what, hint="run it as root, or where a container engine can be used")
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=box.PATH) is None]:
        what = f"there is no {', '.join(lacking)}, with which a fresh system is entered"
        raise HostError(what, hint=host.paste_packages(["coreutils", "util-linux", "mount"]))
    argv = ["unshare", *NAMESPACES, "--net", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    said: list[str] = []
    if call(argv, check=False, quiet=True, on_line=said.append).returncode != 0:
        what = f"this machine lets nobody have namespaces of their own: {' '.join(said)}"
        raise HostError(what, hint="run it on the machine itself, or in a privileged container")
    host.ensure(["mmdebstrap"])
    check_room(cache.root(), FREE_MB, "fresh systems to try packages on")


# ---- what is kept


def _kept() -> Path:
    """Where trees are: for root alone, since programs that run as root for anybody are in them."""
    folder = cache.directory("root")
    folder.chmod(0o700)
    return folder


def base(reference: Reference) -> Tree:
    """The system that an image of that name has, from this machine's mirror.

    Raises HostError where that has no such suite, or does not answer, and for whatever else fails.
    """
    key = cache.digest(FORMAT, str(reference))[:32]
    with cache.lock(f"root {key}", f"makes a {reference}"):
        made = Tree(reference=reference, id=key, how="made before from this host's mirror")
        if _young(made.path):
            return made
        with _replacing(made.path) as place:
            try:
                images.bootstrap(reference, place)
            except ContainerError as error:
                raise HostError(error.what, hint=error.hint, log=error.log) from error
            # An installer's work; without it no server finds its listen_addresses.
            (place / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
            # whatever the umask: it is the root of everybody in it
            (place / "etc/hosts").chmod(0o644)
            place.chmod(0o755)
    return Tree(reference=reference, id=key, how="made from this host's mirror")


def with_packages(
    tree: Tree, names: Iterable[str], *, kept: Iterable[str] = (), folder: str = ""
) -> Tree:
    """A tree with more packages, made once for each list; see images.with_packages."""
    listed, files = sorted(set(names)), sorted(set(kept))
    key = cache.digest(FORMAT, tree.id, *listed, "", *files, folder)[:32]
    made = Tree(reference=tree.reference, id=key, how=tree.how)
    log = cache.directory("log") / "images.log"
    with cache.lock(f"root {key}"):
        # what was made of another tree of that name is not this one's
        if _young(made.path) and _born(made.path) >= _born(tree.path):
            return made
        with (
            step(f"a {tree.reference} with {len(listed)} packages"),
            _replacing(made.path) as place,
        ):
            _copy(tree.path, place)
            with _running(place, network=True, mounts=()) as entered:
                for argv in images.commands("apt", listed, files, folder):
                    entered.call(argv, env=images.unattended(), log=log)
    _prune(keep={tree.path, made.path})
    return made


@contextlib.contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """Yield a directory that takes final's place when the block ends well, with the time of now."""
    cache.sweep(final.parent)
    place = final.with_name(f".{final.name}.{os.getpid()}.part")
    cache.remove(place)
    place.mkdir()
    try:
        yield place
        os.utime(place)
        if final.exists():
            cache.discard(final)
        place.rename(final)
    finally:
        cache.remove(place)


def _born(path: Path) -> float:
    return path.stat().st_mtime if path.is_dir() else 0.0


def _young(path: Path) -> bool:
    """Whether a tree is there and needs not be made anew."""
    return time.time() - _born(path) < images.RENEW_SECONDS


def _prune(keep: set[Path]) -> None:
    for path in _kept().iterdir():
        if path not in keep and not path.name.startswith(".") and not _young(path):
            cache.discard(path)


def _copy(tree: Path, place: Path) -> None:
    call(["cp", "-a", "--reflink=auto", f"{tree}/.", str(place)], quiet=True)


# ---- what runs


@contextlib.contextmanager
def opened(
    tree: Tree, *, network: bool = False, mounts: Sequence[box.Mount] = ()
) -> Iterator[Entered]:
    """A copy of a tree that waits for commands; it is gone at the end, ctrl-C or not.

    network: whether it has this machine's, or none.
    """
    built = cache.directory("build")
    left.sweep(built, KIND)
    cache.sweep(_kept())
    outside = built / left.name(KIND)
    outside.mkdir(mode=0o700)  # as of _kept()
    try:
        place = outside / "system"
        place.mkdir()
        _copy(tree.path, place)
        with _running(place, network=network, mounts=mounts) as entered:
            yield entered
    finally:
        cache.remove(outside)


@contextlib.contextmanager
def _running(place: Path, *, network: bool, mounts: Sequence[box.Mount]) -> Iterator[Entered]:
    """The first process of a system, and with it all others; they end with the block."""
    if network:
        with contextlib.suppress(OSError):  # names are looked up as here
            (place / "etc/resolv.conf").unlink(missing_ok=True)
            shutil.copyfile("/etc/resolv.conf", place / "etc/resolv.conf")
            (place / "etc/resolv.conf").chmod(0o644)  # apt looks names up as a user of its own
    pairs = [word for each in mounts for word in ("rw" if each.writable else "ro", str(each.path))]
    spaces = (*NAMESPACES, *(() if network else ("--net",)))
    argv = ["unshare", *spaces, "--fork", "--kill-child", "sh", "-c", ENTER, "sh", str(place), INIT]
    known: Mapping[str, str] = {"PATH": box.PATH, "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        [*argv, *pairs], env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pid = 0
    try:
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        pid = int(first) if first.isdigit() else 0
        if not pid or process.stdout.readline() != "ready\n":
            process.kill()
            said = process.communicate()[1].strip()
            what = f"the system in {place} cannot be entered: {said or 'it ended at once'}"
            raise ContainerError(what, hint="run it on the machine itself, or use an engine")
        yield Entered(pid=pid, spaces=spaces)
    finally:
        # The kernel ends all processes of the namespace with its first, which is gone when they
        # are. unshare waits for that; killed before, it would leave them in files that are removed.
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_SECONDS)
        process.kill()
        process.communicate()
