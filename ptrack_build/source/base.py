"""What every provider takes and gives."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from ptrack_build import cache, host
from ptrack_build.errors import BadSource, HostError, SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.matrix import Major
    from ptrack_build.source.mirror import Mirror

#: Where matrix.toml's suites, branches and numbers are explained to whoever has none of them.
WAYS_OUT = (
    "set PTRACK_PG_GIT to a PostgreSQL repository that has the branch, "
    "or PTRACK_SOURCE to a source directory or tarball"
)


class Unreachable(SourceError):
    """No server answered: a tree found earlier may do instead."""


class OtherMajor(SourceError):
    """A source is of another major than the one that is wanted; for that one it may be right."""


#: Indexes, tarball and tree of one major.
NEEDED_BYTES = 300_000_000
#: A disk with less is full: small files have filled what a large one left of it.
FULL_BYTES = 1_000_000
MORE_SPACE = "free a few GB, or set PTRACK_CACHE to a larger place"


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """A pristine PostgreSQL tree: a commit of the bare mirror.

    version: as configure says it ("17.2", "19beta1", "20devel"); commit: its id in the mirror;
    digest: the id of the commit's tree, equal for equal contents whoever provided them;
    provider: git, distro, tarball or path; origin: one line on where it is from;
    sha256: of the tarball it was unpacked from, or ""; untagged: whether it is what a git work tree
    has checked out, and that is not what the tag of its version names.
    """

    major: Major
    version: str
    commit: str
    mirror: Path
    digest: str
    provider: str
    origin: str
    sha256: str = ""
    untagged: bool = False


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a provider is asked for.

    pin: one version ("17.2"), or for git any tag, branch or commit; "" is the newest.
    sha256: the tarball must have this digest, or "" when any will do.
    """

    major: Major
    mirror: Mirror
    pin: str = ""
    sha256: str = ""
    refresh: bool = False


class Provider(Protocol):
    """One way to a source tree.

    fetch() brings it into the mirror or raises SourceError with the reason in one line, soon.
    key() names the settings that decide the answer, so that a remembered one is not taken for
    another's; lasting() says whether an answer may be remembered for a while at all.
    """

    name: ClassVar[str]

    def fetch(self, want: Want) -> SourceTree: ...

    def key(self) -> str: ...

    def lasting(self) -> bool: ...


def offline() -> bool:
    """Whether PTRACK_OFFLINE forbids the network."""
    return host.switched_on("PTRACK_OFFLINE")


def check_space(complaint: str, place: Path | None = None) -> None:
    """Raise HostError if a command complains of no space at a place (by default the cache)."""
    words = ("No space left", "Out of diskspace", "enough free space")
    if any(word in complaint for word in words):
        what = f"no space left on the device of {place or cache.root()}"
        raise HostError(what, hint=MORE_SPACE)


def check_full(place: Path) -> None:
    """Raise HostError if that is why a scratch directory could not be written."""
    if shutil.disk_usage(place).free < FULL_BYTES:
        what = f"no space left on the device of {place.parent}"
        raise HostError(what, hint=MORE_SPACE)


#: What git says of objects that it should have and has not, or cannot read.
_DAMAGE = re.compile(
    r"missing (blob|tree|commit) object|unable to read|cannot read '[0-9a-f]{40}|invalid object|"
    r"bad (tree )?object|not a tree object|failed to unpack tree|Could not read [0-9a-f]{40}|"
    r"is corrupt|object file \S+ is empty"
)


def check_damage(complaint: str, mirror: Path) -> None:
    """Raise HostError if git complains of objects that the mirror should have."""
    found = next((line for line in complaint.splitlines() if _DAMAGE.search(line)), "")
    if found:
        what = f"the mirror {mirror} is damaged: {re.sub('^(fatal|error): ', '', found)}"
        raise HostError(what, hint=f"rm -rf {shlex.quote(str(mirror))}: it is fetched anew")


def check_free() -> None:
    """Raise HostError now rather than by half when the cache has no room for a source tree."""
    free = shutil.disk_usage(cache.root()).free
    if free < NEEDED_BYTES:
        what = f"only {free / 1e6:.0f} MB are free on the device of {cache.root()}"
        raise HostError(what, hint=MORE_SPACE)


def version_key(version: str) -> tuple[int, int, int, int]:
    """Order PostgreSQL's versions: 19devel < 19beta1 < 19rc1 < 19.0 < 19.1; Debian's ~ is fine.

    What is no version sorts below everything.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d+)|~?(devel|alpha|beta|rc)(\d*))?", version)
    if not found:
        return (0, 0, 0, 0)
    stage = {"devel": 0, "alpha": 1, "beta": 2, "rc": 3}.get(found[3], 4)
    return (int(found[1]), stage, int(found[4] or 0), int(found[2] or 0))


def check_version(
    major: Major, version: str, where: str, *, error: type[SourceError] = BadSource
) -> None:
    """Raise an error unless `version` is one of the major's."""
    found = version_key(version)
    if found[0] == major.number and (major.state == "devel" or found[1] > 0):
        return
    what = f"{where} is PostgreSQL {version or '(no version found)'}, not {major.name}"
    hint = f"give a tree of PostgreSQL {major.number}"
    if major.state == "devel" and found[0] > major.number:
        hint = (
            "a new major was branched off: give it a row in matrix.toml, and devel the next number"
        )
    raise error(what, hint=hint)


def first_line(text: str, *, limit: int = 200) -> str:
    """The first line that is not empty, cut to a length that fits a terminal."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[: limit - 3] + "..."
