"""Where packages are made: this machine, or a container.

What differs between the two is whose commands are run and whose packages are installed. Files are
at the same paths in both: a container has those directories of the cache mounted that it needs.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final, Protocol, Unpack

from ptrack_build import cache, host, run
from ptrack_build.package import os_release

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ptrack_build.run import Completed, How


class Place(Protocol):
    """A system that packages are made on, and for."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Run a command there, as run.call does here. A container runs all as its one user."""

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
        return run.call(argv, **how)

    def which(self, program: str) -> str | None:
        """See Place."""
        return shutil.which(program)

    def path(self) -> str:
        """See Place."""
        return os.environ.get("PATH", os.defpath)

    def os_release(self) -> dict[str, str]:
        """See Place."""
        return os_release()

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
