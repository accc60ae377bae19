"""Rpms of a native build on a system made for them alone, where the server starts as a service.

    dist/<system>/postgresql-NN ── verify ──▶ Tried

The system is a directory of the same distribution's release, with rpm, systemd and the libraries
that the packages' files are linked to (natively built ones name none), booted by systemd-nspawn
with no network. In it packaging/rpm/verify/try.sh installs everything, makes a cluster, starts it
by its unit, uses it, kills it, and erases everything while it runs. What ptrack said of the changed
blocks is compared here with the files of before and after. Before that rpmlint looks at them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import REPO, cache, host
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.host import check_room
from ptrack_build.package import MANIFEST, PackageError, System, booted, earlier
from ptrack_build.package.rpm import this_system, unpack
from ptrack_build.progress import say, step
from ptrack_build.run import call
from ptrack_build.source.distro import entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LINT: Final = REPO / "packaging" / "rpm" / "rpmlint.toml"
SCRIPT: Final = REPO / "packaging" / "rpm" / "verify" / "try.sh"
BLOCK: Final = 8192
#: What the system has besides the libraries: what of an rpm distribution the packages count on.
#: (ExecReload's kill is of util-linux there, and of procps here.)
SYSTEM: Final = ("dbus", "procps", "rpm", "systemd", "tzdata", "util-linux")


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What went well: a line each; blocks that changed, and blocks that ptrack named."""

    steps: tuple[str, ...]
    changed: int
    reported: int


def lint(dist: Path) -> bool:
    """Let rpmlint look at all packages of a directory of dist/; False where there is no rpmlint.

    It is installed where that may be. Raises PackageError, with the log, for what it finds.
    """
    host.ensure(["rpmlint"], optional=True)
    if not shutil.which("rpmlint"):
        return False
    log = cache.directory("log") / f"verify-{dist.parent.name}-{dist.name}-rpmlint.log"
    log.unlink(missing_ok=True)
    argv = ["rpmlint", "-c", str(LINT), *map(str, sorted(dist.glob("*.rpm")))]
    with step(f"rpmlint of {dist.parent.name} {dist.name}"):
        done = call(argv, log=log, capture=True, check=False, quiet=True, env={"LC_ALL": "C.UTF-8"})
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    found = [line for line in lines if re.search(r": [EW]: ", line)]
    if done.returncode != 0 or found:
        shown = "\n".join(f"    {line}" for line in found[:8] or lines[-8:])
        what = f"rpmlint is not content with the packages:\n{shown}"
        raise PackageError(what, log=log, hint=f"mend it, or say in {LINT.name} why it is right")
    return True


def verify(dist: Path, earlier: Path | None = None) -> Tried:
    """Install, use and erase the packages of a directory of dist/ on a fresh system.

    earlier: a directory with packages of an earlier release, which those are upgraded from. For
    root. Raises HostError where the machine cannot do that, and PackageError, with the log,
    for whatever the packages do not do as they should.
    """
    system, major, number, files = _published(dist)
    old = upgraded_from(earlier, files) if earlier else ()
    _check_machine(system)
    sources = _sources(system)
    check_room(cache.root(), booted.FREE_MB, "a system to try packages on")
    log = cache.directory("log") / f"verify-rpm-{major}.log"
    log.unlink(missing_ok=True)
    title = f"rpms of {major} on a fresh {system.codename}"
    with cache.lock(f"verify rpm {major}", f"tries rpms of {major}"), _for_everybody():
        place = cache.directory("build") / f"verify-rpm-{major}"
        cache.remove(place)
        place.mkdir()
        try:
            with step(f"making a {system.codename} for the packages", estimate=60.0):
                needed = libraries([*files, *old], place / "unpacked")
                _make_root(place, system, sources, needed, log)
            with step(title, estimate=60.0) as shown:
                tried = _try(place / "root", number, files, old, log)
                shown.note(f"{len(tried.steps)} steps")
        except CommandFailed as error:
            what = f"{title}: {error.what}"
            raise PackageError(what, log=log, hint="read the log") from error
        finally:
            cache.remove(place)
    for line in tried.steps:
        say(f"    {line}")
    say(f"    {tried.changed} blocks changed, all among the {tried.reported} reported")
    return tried


@contextlib.contextmanager
def _for_everybody() -> Iterator[None]:
    """A system that is made is its users', whatever the umask of who makes it."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _published(dist: Path) -> tuple[System, str, str, list[Path]]:
    """The system, the major, its number and the binary packages of a directory of dist/."""
    try:
        said = json.loads((dist / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        what = f"there are no packages in {dist}: {error.strerror}"
        raise HostError(what, hint="make them first: ./nox -s rpm-17") from error
    place = dist.absolute()
    listed = [place / each["file"] for each in said["packages"] if each["architecture"] != "src"]
    number = re.split(r"\D", said["postgresql"]["version"])[0]
    return System(**said["system"]), said["major"], number, listed


def upgraded_from(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Packages of an earlier release in a folder, without debugging symbols. See earlier.chosen."""
    return earlier.chosen(folder, [file for file in files if "-debug" not in file.name])


def _check_machine(system: System) -> None:
    booted.check_root()
    here = this_system()
    if host.manager() != "apt" or here.name != system.name:
        what = f"rpms for {system.name} cannot be tried here, which is {here.name}"
        raise HostError(what, hint="run the session where they were made")
    host.ensure(["dpkg-dev", "rpm-build", "mmdebstrap", "nspawn"])


# ---- the system


def libraries(packages: Iterable[Path], work: Path) -> list[str]:
    """The Debian packages of the libraries that the files of rpms are linked to, sorted."""
    root, control = work / "root", work / "debian" / "control"
    root.mkdir(parents=True)
    control.parent.mkdir()
    control.write_text("Source: a\n\nPackage: a\nArchitecture: any\n")
    for package in packages:
        if "-debuginfo-" not in package.name:
            unpack(package, root)
    # Their own are nobody's, also where the system has some of the same name.
    sonames = [re.fullmatch(r"(lib.+)\.so\.(\d+)", path.name) for path in root.rglob("lib*.so.*")]
    local = "".join(sorted({f"{name[1]} {name[2]}\n" for name in sonames if name}))
    control.with_name("shlibs.local").write_text(local)
    linked = [path for path in sorted(root.rglob("*")) if _is_linked(path)]
    own = [f"-l{folder}" for folder in sorted({path.parent for path in linked})]
    argv = ["dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0", *own]
    said = call([*argv, *map(str, linked)], cwd=work, capture=True, quiet=True).stdout
    cache.remove(work)
    found = re.search(r"^shlibs:Depends=(.*)$", said, re.MULTILINE)
    listed = found[1].split(",") if found else []
    return sorted({re.split(r"[ (|]", each.strip())[0] for each in listed})


def _is_linked(path: Path) -> bool:
    """Whether a file is a program or a shared library."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(18)
    return head[:4] == b"\x7fELF" and head[16:18] in {b"\x02\x00", b"\x03\x00"}


def _sources(system: System) -> str:
    """What apt is told here of the system's archive. Raises HostError where that is nothing."""
    suite = system.codename
    stanzas = [
        entry.stanza(here, types="deb")
        for entry in entries(Path("/etc/apt"))
        if (here := tuple(s for s in entry.suites if s == suite or s.startswith(f"{suite}-")))
    ]
    if not stanzas:
        what = f"this machine's apt knows no archive of {suite}"
        raise HostError(what, hint="see /etc/apt/sources.list.d")
    return "\n".join(stanzas)


def _make_root(place: Path, system: System, sources: str, needed: Sequence[str], log: Path) -> None:
    suite = system.codename
    include = ",".join(sorted({*SYSTEM, *needed}))
    argv = ["mmdebstrap", "--variant=minbase", f"--include={include}", suite, str(place / "root")]
    call([*argv, "-"], stdin=sources, log=log, quiet=True)
    # Of no package on distributions of rpms but `filesystem`, and empty when the last rpm goes.
    for folder in ("usr/share/licenses", "usr/src/debug"):
        (place / "root" / folder).mkdir(parents=True, exist_ok=True)


def _try(root: Path, number: str, files: Iterable[Path], old: Sequence[Path], log: Path) -> Tried:
    """Boot the system with the script for its only task. old: packages to upgrade from, if any."""
    work = root / booted.WORK.relative_to("/")
    (work / "packages").mkdir(parents=True)
    for file in files:
        shutil.copy(file, work / "packages")
    if old:
        (work / "earlier").mkdir()
    for file in old:
        shutil.copy(file, work / "earlier")
    shutil.copy(SCRIPT, work)
    ended = booted.run(root, ["sh", f"{booted.WORK}/{SCRIPT.name}", number], log=log)
    if not ended.well:
        last = "\n".join(f"    {line}" for line in ended.said.splitlines()[-8:])
        what = f"the packages failed on trial:\n{last}"
        raise PackageError(what, log=log, hint="read the log")
    answers = [("after", "map"), ("crashed", "crashed.map")]
    answers += [("upgraded", "upgraded.map")] if old else []
    changed, reported = judged(work, number, answers, log, SCRIPT)
    steps = [
        line.removeprefix("ok: ") for line in ended.said.splitlines() if line.startswith("ok: ")
    ]
    return Tried(steps=tuple(steps), changed=changed, reported=reported)


# ---- the truth


def judged(
    work: Path, number: str, answers: Iterable[tuple[str, str]], log: Path, script: Path
) -> tuple[int, int]:
    """How many blocks changed and were reported. answers: copies and what was said of them.

    Raises PackageError where one was lost, or nothing changed, as the script has it.
    """
    changed = reported = 0
    for after, answer in answers:
        lost, differ, named = compare(work / "before", work / after, (work / answer).read_text())
        if lost:
            what = f"ptrack lost {len(lost)} changed blocks ({after}): {', '.join(lost[:8])}"
            raise PackageError(what, log=log, hint=f"./nox -s test-{number} shows where from")
        changed, reported = changed + differ, reported + named
    if not changed:
        what = "nothing changed in the files of the cluster on trial, so nothing was shown"
        raise PackageError(what, log=log, hint=f"correct {script.relative_to(REPO)}")
    return changed, reported


def compare(before: Path, after: Path, answer: str) -> tuple[list[str], int, int]:
    """Blocks that differ and were not reported, and how many differ and how many were reported.

    before, after: copies of base/ and global/; answer: a line "path bits" for each file, the bits
    as hex with the least significant one first in each byte. A file that was not there was empty,
    and what was cut off needs no report.
    """
    rows = [row.partition(" ") for row in answer.splitlines()]
    bits = {path: bytes.fromhex(text) for path, _, text in rows}
    lost: list[str] = []
    changed = reported = 0
    for file in sorted(after.rglob("*")):
        if not file.is_file() or not re.fullmatch(r"\d+(_(fsm|vm|init))?(\.\d+)?", file.name):
            continue
        name = file.relative_to(after).as_posix()
        old = (before / name).read_bytes() if (before / name).exists() else b""
        new = file.read_bytes()
        told = bits.get(name, b"")
        for block in range(-(-len(new) // BLOCK)):
            page = slice(block * BLOCK, (block + 1) * BLOCK)
            named = block // 8 < len(told) and bool(told[block // 8] >> block % 8 & 1)
            reported += named
            if new[page] != (old[page] or bytes(len(new[page]))):
                changed += 1
                if not named:
                    lost.append(f"{name}:{block}")
    return lost, changed, reported
