"""Where packages are made: this machine, or a container.

What differs between the two is whose commands are run and whose packages are installed. Files are
at the same paths in both: a container has those directories of the cache mounted that it needs.
In neither do commands know the caller's environment, but for what KEPT names: whoever makes the
packages, they come out the same.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Final, Protocol, Unpack

from ptrack_build import cache, host, run
from ptrack_build.container.base import ROLLING
from ptrack_build.errors import HostError
from ptrack_build.package import os_release

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ptrack_build.errors import CommandFailed
    from ptrack_build.run import Completed, How

#: Where a distribution has its programs. What a caller or an administrator puts before them may be
#: another compiler, python or perl.
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
#: What of the caller's environment reaches commands: how the network is reached, and where and
#: whether ccache keeps what it compiles, but not what it compiles with.
KEPT: Final = (
    *(f"{kind}_proxy" for kind in ("all", "ftp", "http", "https", "no")),
    *(f"{kind}_PROXY" for kind in ("ALL", "FTP", "HTTP", "HTTPS", "NO")),
    *(f"CCACHE_{name}" for name in (
        "COMPRESSLEVEL", "DEBUG", "DEBUGDIR", "DISABLE", "LOGFILE", "MAXSIZE", "NOCOMPRESS",
        "READONLY", "READONLY_DIRECT", "RECACHE", "REMOTE_ONLY", "REMOTE_STORAGE", "RESHARE",
        "SECONDARY_STORAGE", "STATS", "STATSLOG", "TEMPDIR",
    )),
)  # fmt: skip
#: The clock that faketime sets: of no influence on packages, which is shown by setting it.
CLOCK: Final = ("FAKETIME", "FAKETIME_SHARED", "NO_FAKE_STAT", "DONT_FAKE_MONOTONIC")


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """What commands know on this machine before they are told anything."""
    known = {name: caller[name] for name in KEPT if name in caller}
    if "FAKETIME" in caller:
        known |= {name: caller[name] for name in CLOCK if name in caller}
        preloaded = re.split(r"[ :]", caller.get("LD_PRELOAD", ""))
        known["LD_PRELOAD"] = ":".join(each for each in preloaded if "libfaketime" in each)
    # No home: files there have macros for rpm and flags for dpkg.
    return known | {"HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "PATH": PATH}


#: What apt and dnf say of packages that an archive has not, or not so that they go together.
_UNOBTAINABLE: Final = re.compile(
    r"Unable to locate package|has no installation candidate|unmet dependencies|held broken|"
    r"Unable to (?:correct problems|satisfy dependencies|find a match)|"
    r"No match for argument|nothing provides|conflicting requests|does not have a Release file",
    re.IGNORECASE,
)
#: What has other causes, whatever else is said then.
_OF_THE_MACHINE: Final = re.compile(
    r"No space left|Disk quota|Read-only file system|Cannot allocate memory|Failed to fetch|"
    r"Temporary failure|Could not (?:resolve|connect)|Failed to download|Permission denied",
    re.IGNORECASE,
)


class Unobtainable(HostError):
    """A system's archive has not what packages are built with, or not so that it goes together."""


def unobtainable(error: CommandFailed) -> bool:
    """Whether a package manager failed for what the archive has, and not for what ails the machine.

    In a suite in motion that is so on some days, and nobody's fault here.
    """
    machine = error.returncode == 127 or _OF_THE_MACHINE.search(error.tail)
    return not machine and _UNOBTAINABLE.search(error.tail) is not None


class Place(Protocol):
    """A system that packages are made on, and for."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Run a command there, as run.call does here, but with no environment of the caller's.

        A container runs all as its one user.
        """

    def which(self, program: str) -> str | None:
        """The path of a program there."""

    def path(self) -> str:
        """The PATH of commands there."""

    def os_release(self) -> dict[str, str]:
        """Its os-release(5)."""

    def manager(self) -> str | None:
        """apt or dnf, whichever it has."""

    def may_install(self) -> bool:
        """Whether packages can be installed there without asking."""

    def install(self, names: Iterable[str]) -> None:
        """Install packages. Raises CommandFailed with the log's tail."""

    def ensure(self, needs: Iterable[str]) -> None:
        """See to it that these of host.NEEDS are met. Raises HostError."""

    def remedy(self, names: Iterable[str]) -> str:
        """What to do next where these packages are missing and were not installed."""


class Native:
    """This machine."""

    name: Final = "this machine"

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """See Place."""
        how["env"] = {**environment(os.environ), **(how.get("env") or {})}
        return run.call(argv, inherit=False, **how)

    def which(self, program: str) -> str | None:
        """See Place."""
        return shutil.which(program, path=PATH)

    def path(self) -> str:
        """See Place."""
        return PATH

    def os_release(self) -> dict[str, str]:
        """See Place. A suite that rolls calls itself by the name of the next release, as testing
        does, whose libraries are others: it is known by where apt has its packages from.
        """
        about = os_release()
        if not about.get("VERSION_ID") and self.manager() == "apt":
            argv = ["apt-cache", "policy", "base-files"]
            said = self.call(argv, capture=True, quiet=True, check=False).stdout
            suites = set(re.findall(r"^ +-?\d+ \S+ ([\w-]+)/\S+ .*Packages$", said, re.MULTILINE))
            if suites and suites <= ROLLING:
                about["VERSION_CODENAME"] = min(suites)
        return about

    def manager(self) -> str | None:
        """See Place."""
        return host.manager()

    def may_install(self) -> bool:
        """See Place."""
        return os.geteuid() == 0 and not host.switched_on("PTRACK_NO_INSTALL")

    def install(self, names: Iterable[str]) -> None:
        """See Place."""
        with cache.lock("system packages", "installs packages"):
            host.install(list(names))

    def ensure(self, needs: Iterable[str]) -> None:
        """See Place."""
        host.ensure(needs)

    def remedy(self, names: Iterable[str]) -> str:
        """See Place: a line to paste."""
        return host.paste_packages(names)


HERE: Final = Native()
