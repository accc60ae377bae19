"""Where packages are verified: in containers, or, without an engine, in fresh systems of ours.

    found ── Ground ── image, with_packages ── opened ──▶ what commands are run in

Both give the same: the system of a release with nothing else in it, commands in it as its root, and
nothing of it left in the end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, Unpack

from ptrack_build.container import NoEngine, box, engine, root
from ptrack_build.container import image as images
from ptrack_build.errors import HostError
from ptrack_build.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from docker import DockerClient

    from ptrack_build.container.base import Reference
    from ptrack_build.run import Completed, How

#: A clean system that is kept: an engine's image, or a tree.
Clean: TypeAlias = Any


class Commanded(Protocol):
    """A system that runs: a container, or a root that was entered."""

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Run a command in it, as run.call does here; the environment is env and a plain PATH."""


class Ground(Protocol):
    """Where clean systems are."""

    @property
    def how(self) -> str:
        """In words, before the name of a system."""

    def image(self, reference: Reference) -> Clean:
        """The system of that name. Raises HostError where this machine cannot have it."""

    def with_packages(
        self,
        image: Clean,
        manager: str,
        names: Iterable[str],
        *,
        kept: Iterable[str] = (),
        folder: str = "",
    ) -> Clean:
        """One with more packages; see images.with_packages."""

    def opened(
        self,
        image: Clean,
        *,
        network: bool = False,
        mounts: Sequence[box.Mount] = (),
    ) -> contextlib.AbstractContextManager[Commanded]:
        """A copy of it that waits for commands of its root; it is gone at the end."""


@dataclass(frozen=True, kw_only=True)
class Containers:
    """Those of an engine."""

    client: DockerClient
    how: str = "in containers"

    def image(self, reference: Reference) -> images.Image:
        """See Ground."""
        return images.get(self.client, reference)

    def with_packages(
        self, image: images.Image, manager: str, names: Iterable[str], *,
        kept: Iterable[str] = (), folder: str = "",
    ) -> images.Image:  # fmt: skip
        """See Ground."""
        return images.with_packages(
            self.client, image, manager, names, kept=kept, folder=folder
        )  # fmt: skip

    def opened(
        self, image: images.Image, *, network: bool = False, mounts: Sequence[box.Mount] = ()
    ) -> contextlib.AbstractContextManager[box.Box]:
        """See Ground."""
        return box.opened(
            self.client, image.id, user="0:0", network="host" if network else "none",
            mounts=mounts, called=str(image.reference),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Directories of this machine that are entered."""

    how: str = "in fresh roots"

    def image(self, reference: Reference) -> root.Tree:
        """See Ground."""
        return root.base(reference)

    def with_packages(
        self, image: root.Tree, manager: str, names: Iterable[str], *,
        kept: Iterable[str] = (), folder: str = "",
    ) -> root.Tree:  # fmt: skip
        """See Ground."""
        assert manager == "apt"  # what base() makes is Debian's
        return root.with_packages(image, names, kept=kept, folder=folder)

    def opened(
        self, image: root.Tree, *, network: bool = False, mounts: Sequence[box.Mount] = ()
    ) -> contextlib.AbstractContextManager[root.Entered]:
        """See Ground."""
        return root.opened(image, network=network, mounts=mounts)


NEITHER: Final = "neither containers nor fresh roots can be had here"


@contextlib.contextmanager
def found() -> Iterator[Ground]:
    """Containers where there is an engine, else fresh roots, which is said.

    Raises HostError with what either lacks, and the next step for both.
    """
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(engine.running())
        except NoEngine as error:
            try:
                root.check()
            except HostError as other:
                what = f"{NEITHER}: {_line(error.what)}; {_line(other.what)}"
                hint = "; or ".join(each for each in (error.hint, other.hint) if each)
                raise HostError(what, hint=hint) from other
            say(f"{_line(error.what)}: packages are verified {Roots.how}, entered by chroot")
            yield Roots()
            return
        yield Containers(client=client)


def _line(text: str) -> str:
    return text.splitlines()[0]
