"""Packages: from a patched tree to a directory of dist/ that is whole or not there.

    PatchedTree ── deb.build ──▶ Release ── publish ──▶ dist/<system>/postgresql-NN/

What is shared by the kinds of packages: what a package and a release of packages are, and how one
is published: *.deb (or *.rpm), manifest.json, which says what they were made of, bom.cdx.json,
which says it to programs (CycloneDX), and SHA256SUMS over all of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ptrack_build import REPO, cache
from ptrack_build.errors import PtrackError
from ptrack_build.host import check_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DIST = REPO / "dist"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
LOCK = ".lock"
FORMAT = 1
#: Architectures that have one word for dpkg and rpm: what is made there is told apart by its kind.
SHARED_WORDS = frozenset(
    {"alpha", "ia64", "m68k", "mips64el", "mipsel", "ppc64", "riscv64", "s390x", "sh4", "sparc64"}
)


class PackageError(PtrackError):
    """The packages could not be made."""


@dataclass(frozen=True, kw_only=True)
class System:
    """What packages are made for: a release of a distribution on an architecture.

    tag: ends the packages' versions, and grows from release to release: deb12, deb14~sid, deb14.
    """

    distribution: str
    release: str
    codename: str
    architecture: str
    tag: str

    @property
    def name(self) -> str:
        """debian-bookworm-amd64"""
        return f"{self.distribution}-{self.codename or self.release}-{self.architecture}"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package file. size: bytes; installed_kb: what it takes when installed."""

    file: str
    name: str
    version: str
    architecture: str
    size: int
    installed_kb: int
    sha256: str
    depends: str = ""
    provides: str = ""
    conflicts: str = ""


@dataclass(frozen=True, kw_only=True)
class Release:
    """The packages of one major for one system, in files below the cache.

    made_of: what a reader needs to make them again, as JSON; files: sorted by name; buildinfo:
    records of how they were made, which have the machine in them, and dpkg's own the day.
    """

    kind: Literal["deb", "rpm"]
    system: System
    major: str
    made_of: dict[str, Any]
    packages: tuple[Package, ...]
    files: tuple[Path, ...]
    buildinfo: tuple[Path, ...] = ()

    @property
    def place(self) -> str:
        """debian-bookworm-amd64/postgresql-17: its directory in dist/."""
        shared = self.kind == "rpm" and self.system.architecture in SHARED_WORDS
        return f"{self.system.name}{'-rpm' if shared else ''}/postgresql-{self.major}"

    def manifest(self, *, buildinfo: bool = True) -> str:
        """manifest.json: equal for equal packages, but for what it says of buildinfo."""
        said: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "system": asdict(self.system),
            "major": self.major,
            **self.made_of,
            "packages": [asdict(package) for package in self.packages],
        }
        if buildinfo and self.buildinfo:
            said["buildinfo"] = [
                {"file": file.name, "sha256": sha256(file)} for file in self.buildinfo
            ]
        return json.dumps(said, indent=1, sort_keys=True) + "\n"


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of os-release(5), unquoted; empty where there is none."""
    with contextlib.suppress(OSError):
        return parse_os_release(path.read_text(encoding="utf-8"))
    return {}


def parse_os_release(text: str) -> dict[str, str]:
    """The fields of the text of an os-release(5), unquoted."""
    found = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    return {key: value.strip().strip("\"'") for key, value in found}


def publish(release: Release, dist: Path = DIST) -> Path:
    """Put a release into dist/<system>/postgresql-NN, in place of what was there.

    It appears in one step; interrupted, there is nothing of it. What is the same already stays
    untouched. Raises PackageError where the disk is full.
    """
    from ptrack_build.package import sbom  # nothing else needs its libraries

    final = dist / release.place
    try:
        manifest = release.manifest()
        named = {package.file: package.sha256 for package in release.packages}
        named |= {file.name: sha256(file) for file in release.buildinfo}
        said = {MANIFEST: manifest, sbom.FILE: sbom.document(release)}
        for name, text in said.items():
            named[name] = hashlib.sha256(text.encode()).hexdigest()
        sums = "".join(f"{digest}  {file}\n" for file, digest in sorted(named.items()))
        with alone(dist, f"publishes {release.major}"):
            if _holds(final, named, sums):
                return final
            with replacing(final) as scratch:
                for file in (*release.files, *release.buildinfo):
                    shutil.copyfile(file, scratch / file.name)
                    if sha256(scratch / file.name) != named[file.name]:
                        what = f"{file} has changed since it was made"
                        raise PackageError(what, hint="run the session again")
                for name, text in said.items():
                    (scratch / name).write_text(text, encoding="utf-8")
                (scratch / SUMS).write_text(sums)
    except OSError as error:
        what = f"the packages could not be put into {final}: {error.strerror or error}"
        hint = f"free some space at {dist}, and run it again"
        if isinstance(error, FileNotFoundError):  # another run has removed what was kept
            what, hint = f"{error.filename} is gone", "run the session again"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            hint = f"see whose {dist} is"
        raise PackageError(what, hint=hint) from error
    return final


@contextlib.contextmanager
def alone(dist: Path, doing: str) -> Iterator[None]:
    """Wait for, then keep dist/ as it is for other runs, whichever caches they have.

    doing: what this one does, for those that wait.
    """
    dist.mkdir(parents=True, exist_ok=True)
    with cache.locked(dist / LOCK, doing):
        yield


def folders(dist: Path) -> list[Path]:
    """The directories of dist/ with packages. Raises PackageError for one without a manifest."""
    found = sorted(dist.glob("*/postgresql-*"))
    unfinished = [place.name for place in found if not (place / MANIFEST).is_file()]
    if unfinished:
        what = f"{dist} is damaged: {', '.join(unfinished)} has no {MANIFEST}"
        raise PackageError(what, hint="remove it, or package that major again")
    return found


T = TypeVar("T")


def read(folder: Path, how: Callable[[Mapping[str, Any]], T]) -> T:
    """What a function makes of the manifest in a directory of dist/.

    Raises PackageError unless just the files of SHA256SUMS are there, unharmed, and the manifest
    has what the function looks for.
    """
    try:
        rows = [line.partition("  ") for line in (folder / SUMS).read_text().splitlines()]
        named = {name: digest for digest, _, name in rows}
        there = {path.name for path in folder.iterdir()} - {SUMS}
        wrong = sorted(there ^ named.keys())
        wrong += sorted(
            name for name in there & named.keys() if sha256(folder / name) != named[name]
        )
        if wrong or MANIFEST not in named:
            what = f"{folder} is damaged: {', '.join(wrong) or SUMS} is not what {SUMS} says"
            raise PackageError(what, hint="remove that directory, and package the major again")
        return how(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{folder} is damaged: {error!r}"
        raise PackageError(what, hint="remove it, and package the major again") from error


def _holds(final: Path, named: dict[str, str], sums: str) -> bool:
    """Whether just these files are there, unharmed."""
    with contextlib.suppress(OSError):
        if (final / SUMS).read_text() != sums:
            return False
        if {path.name for path in final.iterdir()} != {*named, SUMS}:
            return False
        return all(sha256(final / file) == digest for file, digest in named.items())
    return False


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of final when the block ends well.

    The caller has alone(): what is unfinished there is taken for what a killed run left. In one
    step, where the file system can exchange two names. Elsewhere in two: who is interrupted between
    them puts the one before back, and for who is killed there the next run does.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.old.part")
    if old.exists() and not final.exists():
        old.rename(final)
    for leftover in final.parent.glob(f".{final.name}.*.part"):
        cache.remove(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        if not final.exists():
            scratch.rename(final)
        elif not cache.exchange(scratch, final):
            final.rename(old)
            scratch.rename(final)
    finally:
        if old.exists():  # what has that name is whole
            old.rename(scratch if final.exists() else final)
        cache.remove(scratch)


def sha256(path: Path) -> str:
    """Of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def described(file: Path, fields: dict[str, str]) -> Package:
    """A Debian package as its control fields have it."""
    return Package(
        file=file.name,
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        size=file.stat().st_size,
        installed_kb=int(fields.get("Installed-Size", "0")),
        sha256=sha256(file),
        depends=fields.get("Depends", ""),
        provides=fields.get("Provides", ""),
        conflicts=fields.get("Conflicts", ""),
    )


def table(packages: Sequence[Package]) -> str:
    """The packages as lines: name, version, sizes. Without the files of a source package."""
    lines = [f"{'package':<34} {'version':<34} {'size':>9} {'installed':>10}"]
    for each in packages:
        if each.architecture == "source":
            continue
        sizes = f"{each.size / 1e6:>6.1f} MB {each.installed_kb / 1024:>7.1f} MB"
        lines.append(f"{each.name:<34} {each.version:<34} {sizes}")
    return "\n".join(lines)


def dist_room(dist: Path, megabytes: int, what_for: str) -> None:
    """As host.check_room, for dist/, whose place no setting changes."""
    check_room(dist, megabytes, what_for, f"free some space at {dist}, and run it again")
