"""Repositories that machines install from: dist/repo/apt and dist/repo/yum, of what is in dist/.

    dist/<system>/postgresql-NN/ ──▶ dist/repo/apt/{pool,dists/<codename>}, dist/repo/yum/<system>

Only releases whose SHA256SUMS hold get in. The same packages give the same bytes but for the
signatures: dates are that of the newest source among the packages. The whole appears in one step.

Whatever a signed listing names is there under the name of its digest, too (apt's by-hash, yum's
unique names): a cache on the way never hands out a listing of before for one of now.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import shutil
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime, time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import host
from ptrack_build.errors import CommandFailed, UsageError
from ptrack_build.package import (
    DIST,
    PackageError,
    alone,
    dist_room,
    folders,
    leaflet,
    read,
    replacing,
    sha256,
    signing,
)
from ptrack_build.package.place import HERE
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

NAME: Final = "ptrack"
KEY_FILE: Final = "ptrack.asc"
#: Those that a Release has. apt asks by the strongest that it has, others by SHA256.
DIGESTS: Final = ("SHA256", "SHA512")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A release in dist/ whose sums hold. suite: what apt calls the system; epoch: seconds."""

    place: Path
    kind: str
    system: str
    suite: str
    architecture: str
    epoch: int
    files: tuple[Path, ...]


def releases(dist: Path) -> list[Made]:
    """All that is in dist/. Raises PackageError where it is damaged, or there is nothing."""
    found = [_release(folder) for folder in folders(dist)]
    if not found:
        what = f"there are no packages in {dist}"
        raise PackageError(what, hint="./nox -s deb-17 makes some, and rpm-17")
    return found


def _release(place: Path) -> Made:
    """Raises PackageError where it is damaged."""

    def made(said: Mapping[str, Any]) -> Made:
        system = said["system"]
        return Made(
            place=place,
            kind=said["kind"],
            system=place.parent.name,
            suite=system["codename"] or system["release"],
            architecture=system["architecture"],
            epoch=int(said["source_date_epoch"]),
            files=tuple(sorted(place / each["file"] for each in said["packages"])),
        )

    return read(place, made)


def make(dist: Path = DIST, *, unsigned: bool = False, until: date | None = None) -> Path:
    """Make dist/repo anew of all that is in dist/.

    Signed with the key that PTRACK_SIGNING_KEY names, or with unsigned not at all. until: the day
    from which on apt is to refuse its listings. Installs or names the tools. Raises UsageError for
    want of a key, and for a day that has come, SigningError where the key cannot sign, PackageError
    where dist/ is damaged or the disk is full, HostError for want of a tool.
    """
    final = dist / "repo"
    if until is not None and _seconds(until) <= datetime.now(UTC).timestamp():
        what = f"the listings are to be valid until {until}, and no machine would take them"
        raise UsageError(what, hint="name a day to come, by which they are made anew")
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(os.umask, os.umask(0o022))  # whoever serves it may be anybody
            # what is copied are the files whose sums were found to hold
            stack.enter_context(alone(dist, "writes the repository"))
            found = releases(dist)
            debs = [each for each in found if each.kind == "deb"]
            rpms = [each for each in found if each.kind == "rpm"]
            needs = [*(["apt-ftparchive"] if debs else []), *(["createrepo"] if rpms else [])]
            if not unsigned:
                needs += ["gpg", *(["rpmsign"] if rpms else [])]
            host.ensure(needs)
            size = sum(file.stat().st_size for each in found for file in each.files)
            dist_room(dist, size // 1_000_000 + 50, "a repository of what is there")
            key = None if unsigned else stack.enter_context(signing.key())
            with step("repository"), replacing(final) as scratch:
                if debs:
                    _apt(debs, scratch / "apt", key, until)
                if rpms:
                    _yum(rpms, scratch / "yum", key)
                if key is not None:
                    key.export(scratch / KEY_FILE)
                paper = leaflet.text(
                    usage(scratch, unsigned=unsigned), key=KEY_FILE,
                    fingerprint=key.fingerprint if key else "",
                    files=[file.name for each in found for file in each.files],
                )  # fmt: skip
                (scratch / leaflet.FILE).write_text(paper, encoding="utf-8")
    except OSError as error:
        what = f"the repository could not be put into {final}: {error.strerror or error}"
        raise PackageError(what, hint=f"free some space at {dist}, and run it again") from error
    except CommandFailed as error:
        what = f"the repository could not be made: {error.what}"
        hint = "correct what that program complains of, and run it again"
        raise PackageError(what, hint=hint) from error
    return final


def trial(place: Path, folder: Path, key: signing.Key) -> str:
    """Put a repository of one directory of dist/ into a folder; how apt or dnf is told of it.

    Raises PackageError where the directory is damaged, and CommandFailed.
    """
    made = _release(place)
    if made.kind == "rpm":
        _yum([made], folder / "yum", key)
        told = listing(made.system, unsigned=False)
    else:
        _apt([made], folder / "apt", key)
        told = source(made.suite, unsigned=False)
    key.export(folder / KEY_FILE)
    return told


# ---- apt


def _apt(
    made: Sequence[Made], root: Path, key: signing.Key | None, until: date | None = None
) -> None:
    for suite in sorted({each.suite for each in made}):
        mine = [each for each in made if each.suite == suite]
        pool = root / "pool" / suite
        pool.mkdir(parents=True)
        for each in mine:
            for file in each.files:
                _pooled(file, pool / file.name, mine)
        _suite(root, suite, mine, key, until)


def _pooled(file: Path, copy: Path, made: Sequence[Made]) -> None:
    """Copy a file into a suite's pool.

    The suite's architectures share the source packages there. Raises PackageError where one's file
    is not the other's, whose place it would take.
    """
    if copy.exists() and sha256(copy) != sha256(file):
        others = (other for each in made for other in each.files if other.name == file.name)
        what = f"{next(others)} and {file} differ, and a repository has one file of that name"
        if ".orig.tar." in file.name:  # its name has no number of ours
            hint = "make both of the same sources: that file has them, and is the same then"
        else:
            hint = "make both of the same ptrack with the same switches, or one of them under a"
            hint += " number of its own: PTRACK_REVISION=2 ./nox -s deb-17"
        raise PackageError(what, hint=hint)
    shutil.copyfile(file, copy)


def _suite(
    root: Path, suite: str, made: Sequence[Made], key: signing.Key | None, until: date | None
) -> None:
    """Write dists/<suite>. apt-ftparchive's order is the file system's, hence ours."""
    place = root / "dists" / suite
    architectures = sorted({each.architecture for each in made})
    for architecture in architectures:
        index = place / "main" / f"binary-{architecture}" / "Packages"
        _index(root, index, "--arch", architecture, "packages", f"pool/{suite}")
    if any(file.suffix == ".dsc" for each in made for file in each.files):
        _index(root, place / "main" / "source" / "Sources", "sources", f"pool/{suite}")
    fields = {
        "Origin": NAME,
        "Label": NAME,
        "Suite": suite,
        "Codename": suite,
        "Architectures": " ".join(architectures),
        "Components": "main",
        "Acquire-By-Hash": "yes",
        "Description": "PostgreSQL with ptrack",
    }
    options = [
        word
        for name, value in fields.items()
        for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")
    ]
    for name in ("MD5", "SHA1"):
        options += ["-o", f"APT::FTPArchive::{name}=false"]
    argv = ["apt-ftparchive", *options, "release", f"dists/{suite}"]
    text = HERE.call(argv, cwd=root, capture=True, quiet=True).stdout
    dates = f"Date: {_date(max(each.epoch for each in made))}"
    if until is not None:
        dates += f"\nValid-Until: {_date(_seconds(until))}"
    release = place / "Release"
    release.write_text(re.sub(r"^Date: .*$", dates, text, flags=re.MULTILINE))
    if key is not None:
        key.clearsign(release, place / "InRelease")
        key.detach(release, place / "Release.gpg")


def _seconds(day: date) -> int:
    """The day's beginning, in UTC."""
    return int(datetime.combine(day, time(), UTC).timestamp())


def _date(seconds: int) -> str:
    """As a Release has it: of UTC, and apt wants it said."""
    return formatdate(seconds).replace("-0000", "UTC")


def _index(root: Path, index: Path, *words: str) -> None:
    """Write what apt-ftparchive lists, plain and compressed, in an order of its own."""
    argv = ["apt-ftparchive", "-o", "APT::FTPArchive::MD5=false",
            "-o", "APT::FTPArchive::SHA1=false", *words]  # fmt: skip
    text = HERE.call(argv, cwd=root, capture=True, quiet=True).stdout
    paragraphs = sorted(part for part in text.strip().split("\n\n") if part)
    listed = "".join(f"{part}\n\n" for part in paragraphs).encode()
    index.parent.mkdir(parents=True)
    index.write_bytes(listed)
    packed = index.with_name(f"{index.name}.xz")
    packed.write_bytes(lzma.compress(listed, preset=9))
    for file in (index, packed):
        for kind in DIGESTS:
            digest = hashlib.new(kind, file.read_bytes()).hexdigest()
            named = index.parent / "by-hash" / kind / digest
            named.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, named)


# ---- yum


def _yum(made: Sequence[Made], root: Path, key: signing.Key | None) -> None:
    for system in sorted({each.system for each in made}):
        mine = [each for each in made if each.system == system]
        place = root / system
        place.mkdir(parents=True)
        epoch = max(each.epoch for each in mine)
        copies = []
        for each in mine:
            for file in each.files:
                copies.append(place / file.name)
                shutil.copyfile(file, copies[-1])
        if key is not None and copies:
            argv = ["rpmsign", "--define", f"_gpg_name {key.fingerprint}",
                    "--define", f"__gpg {shutil.which('gpg')}",
                    "--define", "_gpg_sign_cmd_extra_args --batch --pinentry-mode error",
                    "--addsign", *map(str, sorted(copies))]  # fmt: skip
            call(argv, env=key.env, capture=True, quiet=True)
        for file in copies:  # the listing has these times
            os.utime(file, (epoch, epoch))
        # gz: by default it is what each version of createrepo_c takes for the best, which old dnf
        # does not know
        argv = ["createrepo_c", "--quiet", "--no-database", "--workers=1", "--checksum=sha256",
                "--unique-md-filenames", "--general-compress-type=gz", f"--revision={epoch}",
                "--set-timestamp-to-revision", str(place)]  # fmt: skip
        HERE.call(argv, capture=True, quiet=True, env={"SOURCE_DATE_EPOCH": str(epoch)})
        if key is not None:
            listing = place / "repodata" / "repomd.xml"
            key.detach(listing, listing.with_name("repomd.xml.asc"))


# ---- what a machine is told


def source(suite: str, *, unsigned: bool) -> str:
    """What apt is told of a suite, URL standing for where the repository is served."""
    trust = "Trusted: yes" if unsigned else "Signed-By: /etc/apt/keyrings/ptrack.asc"
    return f"Types: deb\nURIs: URL/apt\nSuites: {suite}\nComponents: main\n{trust}\n"


def listing(system: str, *, unsigned: bool) -> str:
    """What dnf is told of a system's packages, URL standing for where the repository is served."""
    checks = (
        "gpgcheck=0\nrepo_gpgcheck=0"
        if unsigned
        else f"gpgcheck=1\nrepo_gpgcheck=1\ngpgkey=URL/{KEY_FILE}"
    )
    # EL 8 and 9 have a module `postgresql`, and dnf hides whatever provides a name of its packages,
    # as ours provide postgresql-server: not from a repository that says this.
    head = f"[ptrack]\nname=PostgreSQL with ptrack\nbaseurl=URL/yum/{system}\nmodule_hotfixes=1\n"
    return f"{head}{checks}\n"


def usage(place: Path, *, unsigned: bool) -> str:
    """How a machine uses the repository, URL standing for where place is served."""
    parts = []
    for suite in sorted(path.name for path in place.glob("apt/dists/*")):
        fetch = (
            "install -d -m 755 /etc/apt/keyrings; "
            f"curl -fsS URL/{KEY_FILE} -o /etc/apt/keyrings/ptrack.asc; and "
        )
        parts.append(
            f"{suite}: {'' if unsigned else fetch}/etc/apt/sources.list.d/ptrack.sources:\n"
            + textwrap.indent(source(suite, unsigned=unsigned).rstrip(), "    ")
        )
    for system in sorted(path.name for path in place.glob("yum/*")):
        text = listing(system, unsigned=unsigned).rstrip()
        parts.append(f"{system}: /etc/yum.repos.d/ptrack.repo:\n" + textwrap.indent(text, "    "))
    return "\n".join(parts)


def one(*, unsigned: bool = False, until: date | None = None) -> Path:
    """Make dist/repo and say how it is used, from where it is served as URL."""
    place = make(unsigned=unsigned, until=until)
    say((place / leaflet.FILE).read_text(encoding="utf-8"))
    say(str(place))
    return place
