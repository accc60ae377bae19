"""The place that packages are built in: a container without network and without privileges.

It sees the directory that the build is made in and the compiler cache, both writable, the packages
made before read-only, and nothing else of this machine. Packages are installed into an image of
their own, which the next build finds again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Unpack

from ptrack_build import cache, host
from ptrack_build.container import box
from ptrack_build.container import image as images
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.package import making, parse_os_release
from ptrack_build.package.place import Unobtainable, unobtainable
from ptrack_build.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from docker import DockerClient

    from ptrack_build.container.base import Reference
    from ptrack_build.run import Completed, How


class Workshop:
    """A Place in a container; see there. A new container takes over when packages are installed."""

    def __init__(
        self, client: DockerClient, image: images.Image, mounts: Sequence[box.Mount]
    ) -> None:
        self._client = client
        self._image = image
        self._mounts = tuple(mounts)
        self._stack = contextlib.ExitStack()
        self._box: box.Box | None = None
        self._faster = False  # whether ccache was looked for
        user = host.server_user()
        self._user = f"{user.uid}:{user.gid}" if user else f"{os.geteuid()}:{os.getegid()}"

    @property
    def name(self) -> str:
        """See Place."""
        return str(self._image.reference)

    def close(self) -> None:
        """Remove the container."""
        self._box = None
        self._stack.close()

    def _running(self) -> box.Box:
        if self._box is None:
            self._box = self._stack.enter_context(
                box.opened(
                    self._client,
                    self._image.id,
                    user=self._user,
                    mounts=self._mounts,
                    sealed=True,
                    called=self.name,
                )
            )
        return self._box

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """See Place: all commands are run by the unprivileged user."""
        if not how.pop("quiet", False):
            say(f"+ {shlex.join(argv)}  (in {self.name})")
        return self._running().call(argv, **how)

    def which(self, program: str) -> str | None:
        """See Place."""
        argv = ["sh", "-c", 'command -v "$1"', "sh", program]
        return self.call(argv, capture=True, check=False, quiet=True).stdout.strip() or None

    def path(self) -> str:
        """See Place."""
        return box.PATH

    def os_release(self) -> dict[str, str]:
        """See Place; a suite that rolls keeps its name: it is not yet the next release."""
        argv = ["cat", "/etc/os-release"]
        about = parse_os_release(self.call(argv, capture=True, check=False, quiet=True).stdout)
        if self._image.rolling and "VERSION_ID" not in about:
            about["VERSION_CODENAME"] = self._image.rolling
        return about

    def manager(self) -> str | None:
        """See Place."""
        if self.which("apt-get"):
            return "apt"
        return "dnf" if self.which("dnf") else None

    def may_install(self) -> bool:
        """See Place."""
        return True

    def install(self, names: Iterable[str]) -> None:
        """See Place: into an image that is kept, whose container takes over."""
        kind = self.manager() or "apt"
        image = images.with_packages(self._client, self._image, kind, names)
        self.close()
        self._image = image

    def ensure(self, needs: Iterable[str]) -> None:
        """See Place; then ccache, if the image's archive has it, since containers come and go."""
        names = self._packages(needs)
        try:
            self.install(names)
        except CommandFailed as error:
            what = f"could not install {', '.join(names)} in {self.name}: {error.what}"
            hint = "see whether this machine reaches the image's package mirror"
            kind = Unobtainable if unobtainable(error) else HostError
            raise kind(what, hint=hint, log=error.log) from error
        if self._faster:
            return
        self._faster = True
        try:
            self.install(self._packages(["ccache"]))
        except CommandFailed as error:
            say(f"without ccache, which {self.name} could not be given: see {error.log}")

    def remedy(self, names: Iterable[str]) -> str:
        """See Place: nobody installs anything there by hand, and this machine's lack is none."""
        hint = f"name an image with {' '.join(names)}, or one whose repositories have that"
        if self.manager() == "dnf":
            hint += " (on EL much is in crb and EPEL, which images have off, or not at all)"
        return hint

    def _packages(self, needs: Iterable[str]) -> list[str]:
        kind = self.manager()
        listed = [host.NEEDS[name] for name in needs]
        names = [name for each in listed for name in (each.dnf if kind == "dnf" else each.apt)]
        return [*dict.fromkeys(names)]


@contextlib.contextmanager
def opened(
    client: DockerClient, reference: Reference, slot: str, *, kept: str
) -> Iterator[Workshop]:
    """A container of an image to build in. slot, kept: see container.place."""
    image = images.get(client, reference)
    say(f"building in {reference} ({image.how})")
    user = host.server_user()
    host.check_reachable(cache.root(), user)
    mounts = [
        box.Mount(path=cache.directory("build", slot), writable=True),
        box.Mount(path=making.compiler_store(user), writable=True),
        box.Mount(path=making.compiler_masks()),
        box.Mount(path=cache.directory(kept)),
    ]
    made = Workshop(client, image, mounts)
    try:
        yield made
    finally:
        made.close()
