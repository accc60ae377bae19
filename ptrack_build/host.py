"""The machine: what is installed, what can be installed, and whom servers run as."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shlex
import shutil
import stat
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import cache
from ptrack_build.errors import CommandFailed, HostError, UsageError
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

APT_LISTS = Path("/var/lib/apt/lists")
LISTS_STALE_SECONDS = 24 * 3600
DPKG = Path("/var/lib/dpkg")
#: What the clusters of the suite take at most, in megabytes.
SUITE_MB = 3_000
LOCK_SECONDS = 600  # for so long another program that installs packages is waited for
LISTS_POLL_SECONDS = 2.0
#: In this time a package manager that is interrupted comes to an end, but for huge packages.
END_SECONDS = 60.0
_APT = ("apt-get", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}")
_CONFIGURE = ("dpkg", "--configure", "-a")
_HALF = re.compile(rb"\nStatus: \w+ \w+ (unpacked|half-installed|half-configured)\n")


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a step needs (programs on the PATH, headers, modules of perl), and packages with it."""

    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    apt: tuple[str, ...]
    dnf: tuple[str, ...]

    def met(self) -> bool:
        """Whether all of it is there."""
        there = all(map(shutil.which, self.programs)) and all(map(_header, self.headers))
        return there and _modules(self.modules)


NEEDS: dict[str, Need] = {
    "cc": Need(headers=("stdio.h",), apt=("gcc", "libc6-dev"), dnf=("gcc", "glibc-devel")),
    "make": Need(programs=("make",), apt=("make",), dnf=("make",)),
    "bison": Need(programs=("bison",), apt=("bison",), dnf=("bison",)),
    "flex": Need(programs=("flex",), apt=("flex",), dnf=("flex",)),
    "perl": Need(
        programs=("perl",),
        modules=("FindBin", "File::Compare", "Opcode"),
        apt=("perl",),
        dnf=("perl-interpreter", "perl-FindBin", "perl-File-Compare", "perl-Opcode"),
    ),
    "git": Need(programs=("git",), apt=("git", "ca-certificates"), dnf=("git-core",)),
    "tar": Need(programs=("tar", "xz", "bzip2"), apt=("tar", "xz-utils", "bzip2"),
                dnf=("tar", "xz", "bzip2")),
    "dpkg-dev": Need(programs=("dpkg-source",), apt=("dpkg-dev",), dnf=("dpkg-dev",)),
    "rpm-build": Need(
        # debugedit comes with rpmbuild: as a package that it needs, on EL 8 as a part of it
        programs=("rpmbuild", "rpm2cpio", "cpio", "eu-strip"),
        apt=("rpm", "cpio", "elfutils"),
        dnf=("rpm-build", "cpio", "elfutils"),
    ),
    "apt-ftparchive": Need(
        programs=("apt-ftparchive",), apt=("apt-utils",), dnf=("apt-utils",)
    ),
    "createrepo": Need(
        programs=("createrepo_c",), apt=("createrepo-c",), dnf=("createrepo_c",)
    ),
    "dnf": Need(programs=("dnf",), apt=("dnf",), dnf=("dnf",)),
    "gpg": Need(programs=("gpg", "gpgconf"), apt=("gpg", "gpg-agent", "gpgconf"), dnf=("gnupg2",)),
    "rpmlint": Need(programs=("rpmlint",), apt=("rpmlint",), dnf=("rpmlint",)),
    "rpmsign": Need(programs=("rpmsign",), apt=("rpm",), dnf=("rpm-sign",)),
    "faketime": Need(programs=("faketime",), apt=("faketime",), dnf=("libfaketime",)),
    "diffoscope": Need(
        programs=("diffoscope",), apt=("diffoscope-minimal",), dnf=("diffoscope",)
    ),
    "ccache": Need(programs=("ccache",), apt=("ccache",), dnf=("ccache",)),
    "pkg-config": Need(programs=("pkg-config",), apt=("pkg-config",), dnf=("pkgconf-pkg-config",)),
    "zlib": Need(headers=("zlib.h",), apt=("zlib1g-dev",), dnf=("zlib-devel",)),
    "readline": Need(
        headers=("readline/readline.h",), apt=("libreadline-dev",), dnf=("readline-devel",)
    ),
    "icu": Need(
        programs=("pkg-config",), headers=("unicode/ucol.h",),
        apt=("libicu-dev", "pkg-config"), dnf=("libicu-devel", "pkgconf-pkg-config"),
    ),
    "openssl": Need(headers=("openssl/ssl.h",), apt=("libssl-dev",), dnf=("openssl-devel",)),
    "lz4": Need(
        programs=("pkg-config",), headers=("lz4.h",),
        apt=("liblz4-dev", "pkg-config"), dnf=("lz4-devel", "pkgconf-pkg-config"),
    ),
    "zstd": Need(
        programs=("pkg-config",), headers=("zstd.h",),
        apt=("libzstd-dev", "pkg-config"), dnf=("libzstd-devel", "pkgconf-pkg-config"),
    ),
    "container engine": Need(programs=("dockerd",), apt=("docker.io",), dnf=("moby-engine",)),
    "mmdebstrap": Need(programs=("mmdebstrap",), apt=("mmdebstrap",), dnf=("mmdebstrap",)),
    "spin": Need(programs=("spin",), apt=("spin",), dnf=("spin",)),
    "nspawn": Need(
        programs=("systemd-nspawn",), apt=("systemd-container",), dnf=("systemd-container",)
    ),
    "useradd": Need(programs=("useradd",), apt=("passwd",), dnf=("shadow-utils",)),
}  # fmt: skip

#: Without these nothing compiles.
TOOLS = ("cc", "make", "bison", "flex", "perl", "git", "tar")
#: These make the build faster or the server fuller.
EXTRAS = ("ccache", "pkg-config")


@functools.cache
def _include_directories() -> tuple[Path, ...]:
    found = [Path(p) for p in os.environ.get("CPATH", "").split(":") if p]
    flags = shlex.split(os.environ.get("CPPFLAGS", ""))
    found += [Path(word[2:]) for word in flags if word.startswith("-I")]
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    found += [Path("/usr/local/include"), Path("/usr/include"), Path("/usr/include") / triplet]
    return tuple(found)


def _header(name: str) -> bool:
    return any((folder / name).is_file() for folder in _include_directories())


def _modules(names: Sequence[str]) -> bool:
    """Whether perl has them: some systems have a perl without its library."""
    words = ["perl", *(f"-M{name}" for name in names), "-e", "1"]
    return not names or call(words, check=False, capture=True, quiet=True).returncode == 0


def compiler() -> list[str]:
    """The C compiler as words: $CC where set, else gcc, else cc, else clang.

    Raises HostError when there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        if shutil.which(named[0]):
            return named
        what = f"CC is {named[0]!r}, which is not on the PATH"
        raise HostError(what, hint="unset CC, or name a compiler that is installed")
    for name in ("gcc", "cc", "clang"):
        if shutil.which(name):
            return [name]
    what = "there is no C compiler"
    raise HostError(what, hint=paste(["cc"]))


def missing(names: Iterable[str]) -> list[str]:
    """Those of NEEDS that are not there."""
    lacking = []
    for name in names:
        met = NEEDS[name].met()
        if name == "cc":
            try:
                compiler()
            except HostError:
                if os.environ.get("CC"):
                    raise
                met = False
        if not met:
            lacking.append(name)
    return lacking


def stamp(name: str) -> str:
    """What changes when the package behind a need's headers does: their sizes and times."""
    found = []
    for header in NEEDS[name].headers:
        for folder in _include_directories():
            with contextlib.suppress(OSError):
                status = (folder / header).stat()
                found.append(f"{header}:{status.st_size}:{int(status.st_mtime)}")
                break
    return " ".join(found)


def libraries(wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of the libraries whose headers are there, in the order given."""
    return tuple(name for name in wanted if NEEDS[name].met())


def manager() -> str | None:
    """apt or dnf, whichever this machine has."""
    if shutil.which("apt-get"):
        return "apt"
    return "dnf" if shutil.which("dnf") else None


def packages(names: Iterable[str]) -> list[str]:
    """The packages of this machine's manager that meet those needs."""
    kind = manager()
    found: dict[str, None] = {}
    for name in names:
        need = NEEDS[name]
        found.update(dict.fromkeys(need.dnf if kind == "dnf" else need.apt))
    return list(found)


def paste(names: Iterable[str]) -> str:
    """One line that installs what meets these needs, to be pasted into a shell."""
    return paste_packages(packages(names))


def paste_packages(names: Iterable[str]) -> str:
    """One line that installs packages of this machine's manager, to be pasted into a shell."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    listed = shlex.join(names)
    match manager():
        case "apt":
            return f"{sudo}apt-get update && {sudo}apt-get install -y {listed}"
        case "dnf":
            return f"{sudo}dnf install -y {listed}"
        case _:
            return f"install these (Debian's names): {listed}"


def ensure(names: Iterable[str], *, optional: bool = False, besides: Iterable[str] = ()) -> None:
    """See to it that the needs are met.

    Root on apt or dnf gets the missing packages installed. Otherwise, or when that fails, HostError
    has the line to paste; with optional that line is only shown, once. besides: what that line is
    to bring, too, so that nobody has to paste twice.

    What an interrupted installation of them left half-done is finished first, or HostError has the
    line for that: its programs and headers are there, and may not work.
    """
    names = tuple(names)
    if not optional:
        _finish_interrupted(packages(names))
    lacking = missing(names)
    if not lacking:
        return
    if _may_install():
        try:
            with cache.lock("system packages", "installs packages"):
                install(packages(missing(lacking)))
        except CommandFailed as error:
            if not optional:
                what = f"could not install {', '.join(lacking)}: {error.what}"
                raise HostError(what, hint=paste([*lacking, *missing(besides)])) from error
            say(f"could not install {', '.join(lacking)}; going on without")
            return
        lacking = missing(lacking)
        if not lacking:
            return
    if optional:
        _advise(tuple(lacking))
        return
    what = f"this machine lacks {', '.join(lacking)}"
    raise HostError(what, hint=paste([*lacking, *missing(besides)]))


@functools.cache
def _advise(lacking: tuple[str, ...]) -> None:
    say(f"going on without {', '.join(lacking)}; to have them: {paste(lacking)}")


def _may_install() -> bool:
    return os.geteuid() == 0 and manager() is not None and not switched_on("PTRACK_NO_INSTALL")


def install(names: list[str]) -> None:
    """Install packages as root. Raises CommandFailed with the log's tail.

    HostError where what an interrupted installation left keeps apt from it, and cannot be finished.
    """
    if not names:
        return
    with step(f"installing {' '.join(names)}"):
        if manager() == "dnf":
            _manage(["dnf", "install", "-y", *names])
            return
        if left := _left(names):
            _finish(left, names)
        fresh = not _lists_stale()
        if not fresh:
            _update()
        command = [*_APT, "install", "-y", "--no-install-recommends", *names]
        try:
            _manage(command)
        except CommandFailed as error:
            if shlex.join(_CONFIGURE) in error.tail:
                _finish("apt says so", names)
            elif fresh:
                _update()
            else:
                raise
            _manage(command)


def _update() -> None:
    """Have apt fetch its lists; where it cannot fetch them all, the others will do.

    Who else fetches them, as a machine does at its first start, is waited for: apt waits for the
    lock of dpkg by itself, but not for that one.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            _manage([*_APT, "update"])
        except CommandFailed as error:
            if "Could not get lock" in error.tail and time.monotonic() < deadline:
                time.sleep(LISTS_POLL_SECONDS)
                continue
        return


def _manage(argv: Iterable[str]) -> None:
    """Run a package manager, which is not to be stopped half-way."""
    call(
        [*argv], log=cache.directory("log") / "packages.log", patience=END_SECONDS,
        quiet=True, env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip


def _finish_interrupted(names: Collection[str]) -> None:
    """Finish what an interrupted installation left of these packages, or HostError: it is not ours.

    Others may be as they are: that one of them cannot be configured keeps nobody from compiling.
    """
    if manager() != "apt" or not (left := _left(names)):
        return
    if not _may_install():
        what = f"a package installation was interrupted: {left}"
        raise HostError(what, hint=_paste_finish())
    with cache.lock("system packages", "installs packages"):
        if left := _left(names):
            with step("finishing an interrupted installation of packages"):
                _finish(left, names)


def _finish(left: str, names: Collection[str]) -> None:
    """Have dpkg configure what it can, and apt bring what is missing for the rest."""
    failed = ""
    for command in (_CONFIGURE, (*_APT, "install", "-y", "--fix-broken")):
        try:
            _manage(command)
        except CommandFailed as error:
            failed = f": {error.what}"
        if not _unfinished(names):
            return
    what = f"a package installation was interrupted ({left}) and could not be finished{failed}"
    raise HostError(what, hint=_paste_finish())


def _paste_finish() -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}{shlex.join(_CONFIGURE)}; {sudo}apt-get install --fix-broken"


def _left(names: Collection[str]) -> str:
    """What an interrupted installation left, in words, or ""; one under way is waited for."""
    told = False
    until = time.monotonic() + LOCK_SECONDS
    while (left := _unfinished(names)) and _under_way() and time.monotonic() < until:
        if not told:
            print("waiting for another program that installs packages", flush=True)
            told = True
        time.sleep(0.5)
    return left


def _unfinished(names: Collection[str]) -> str:
    """What dpkg has begun and not finished, of these packages or in its records, or "".

    `dpkg --audit` takes longer, and tells of things as well that no interruption brings about.
    """
    with contextlib.suppress(OSError):
        if any(file.name.isdigit() for file in (DPKG / "updates").iterdir()):
            return f"{DPKG / 'updates'} is not empty"
        text = (DPKG / "status").read_bytes()
        for found in _HALF.finditer(text):
            name = text[: found.start() + 1].rpartition(b"Package: ")[2].split()[0].decode()
            if name in names:
                return f"{name} is {found[1].decode()}"
    return ""


def _under_way() -> bool:
    """Whether a program holds dpkg's locks; they cannot be tried by an ordinary user."""
    with contextlib.suppress(OSError):
        files = [DPKG / name for name in ("lock", "lock-frontend")]
        ours = {str(file.stat().st_ino) for file in files if file.exists()}
        locks = Path("/proc/locks").read_text()
        return not ours.isdisjoint(re.findall(r":(\d+) \d+ \w+$", locks, re.MULTILINE))
    return False


def _lists_stale() -> bool:
    """Whether apt's lists are missing or older than a day."""
    lists = list(APT_LISTS.glob("*_Packages*"))
    stamps = [APT_LISTS / "partial", APT_LISTS]
    newest = max((p.stat().st_mtime for p in stamps if p.exists()), default=0.0)
    return not lists or time.time() - newest > LISTS_STALE_SECONDS


@dataclass(frozen=True, kw_only=True)
class ServerUser:
    """Whom servers run as when we are root, which PostgreSQL refuses."""

    uid: int
    gid: int
    name: str


@functools.cache
def server_user() -> ServerUser | None:
    """None when we are an ordinary user, who runs the servers then.

    As root: `postgres` where it exists, else a system user `ptrack`, made if need be. Raises
    HostError when it cannot be made.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "ptrack"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return ServerUser(uid=entry.pw_uid, gid=entry.pw_gid, name=name)
    ensure(["useradd"])
    with cache.lock("system user", "makes the user of the servers"):
        try:
            entry = pwd.getpwnam("ptrack")
        except KeyError:
            try:
                call(
                    ["useradd", "--system", "--user-group", "--home-dir", "/nonexistent",
                     "--no-create-home", "--shell", "/usr/sbin/nologin", "ptrack"]
                )  # fmt: skip
            except CommandFailed as error:
                what = f"servers refuse to run as root, and no user could be made: {error.what}"
                raise HostError(what, hint="useradd --system ptrack") from error
            entry = pwd.getpwnam("ptrack")
    return ServerUser(uid=entry.pw_uid, gid=entry.pw_gid, name="ptrack")


def switched_on(name: str) -> bool:
    """Whether a setting of the environment is there and not 0."""
    return os.environ.get(name, "") not in {"", "0"}


def check_reachable(path: Path, user: ServerUser | None, setting: str = "PTRACK_CACHE") -> None:
    """Raise HostError when the servers' user could not reach a directory; the setting names it."""
    if user is None:
        return
    for parent in (path, *path.absolute().parents):
        mode = parent.stat()
        if mode.st_mode & stat.S_IXOTH or mode.st_uid == user.uid:
            continue
        what = f"{parent} keeps out the user {user.name}, whom servers run as"
        hint = (
            f"chmod o+x {shlex.quote(str(parent))}, or set {setting} to a directory that "
            "everybody can read"
        )
        raise HostError(what, hint=hint)


def elsewhere(setting: str) -> str:
    """The next step where there is no room in a place that a setting names."""
    return f"free some space, or set {setting} to where there is more"


def check_room(
    place: Path, megabytes: int, what_for: str, hint: str = elsewhere("PTRACK_CACHE")
) -> None:
    """Raise HostError where a file system has not that much left.

    place: a directory, which need not be there yet; hint: what to do, by default about the cache.
    """
    there = next(each for each in (place, *place.parents) if each.exists())
    free = shutil.disk_usage(there).free // 1_000_000
    if free < megabytes:
        what = f"{place} has {free} MB free; {what_for} takes {megabytes} MB"
        raise HostError(what, hint=hint)


def suite_place() -> Path:
    """Where the suite's clusters go: PTRACK_TEST_DIR, else memory where it has room, else /tmp."""
    given = os.environ.get("PTRACK_TEST_DIR")
    if given:
        return Path(given).absolute()
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free >= SUITE_MB * 1_000_000:
        return memory
    return Path(tempfile.gettempdir())


def scratch_place(user: ServerUser | None, megabytes: int = 0) -> Path:
    """Where scratch() makes its directories; raises HostError where no place has that room."""
    small = []
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        place = Path(base)
        if not place.is_dir() or not os.access(place, os.W_OK) or len(base) > 40:
            continue
        with contextlib.suppress(HostError):
            check_reachable(place, user)
            free = shutil.disk_usage(place).free // 1_000_000
            if free >= megabytes:
                return place
            small.append(f"{place} has {free} MB free")
    what = "there is no directory for temporary files that a server could use"
    if small:
        what = f"a server needs {megabytes} MB for its files: {', '.join(small)}"
    raise HostError(what, hint="set TMPDIR to one with a short path that everybody can pass")


@contextlib.contextmanager
def scratch(prefix: str = "ptrack-", *, keep: bool = False, megabytes: int = 0) -> Iterator[Path]:
    """A temporary directory owned by the servers' user, removed at the end.

    With keep it stays where all went well.

    It is made where everybody can pass ($TMPDIR, else /tmp, else /var/tmp), where there is so much
    room, and its path is short enough for a socket.
    """
    user = server_user()
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch_place(user, megabytes)))
    try:
        path.chmod(0o700 if user is None else 0o755)
        if user is not None:
            os.chown(path, user.uid, user.gid)
        yield path
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            cache.remove(path)


def cpus() -> int:
    """Cores this process may use; PTRACK_JOBS overrides. Raises UsageError where that is none."""
    return _told_jobs() or len(os.sched_getaffinity(0))


def jobs() -> int:
    """How many compilers to run at once: one more than there are cores, for when one waits."""
    return _told_jobs() or cpus() + 1


def _told_jobs() -> int:
    named = os.environ.get("PTRACK_JOBS", "")
    if not named:
        return 0
    if not re.fullmatch("[1-9][0-9]{0,3}", named):
        what = f"PTRACK_JOBS={named} is no number of compilers to run at once"
        raise UsageError(
            what, hint="a number from 1, or unset it for one more than there are cores"
        )
    return int(named)
