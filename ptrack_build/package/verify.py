"""What is in dist/, installed and used as users do, in clean containers (or roots: see ground).

    dist/<system>/postgresql-NN ── verify ──▶ Outcome

For each system there is a container without network for each major. Everything but our own packages
is installed before, into an image that is kept; what the packages leave behind when they are purged
is what a list of all files has more, less, or otherwise than before. The steps are shell, in
packaging/deb/verify, and the test that packages bring along for autopkgtest is one of them. Before
them the system's own lintian looks at the packages; after them, where the system has a plain server
of that major, a cluster goes from that one to ours, back and forth.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import cache, host, report
from ptrack_build.container import Reference, box
from ptrack_build.container import image as images
from ptrack_build.errors import CommandFailed, HostError, PtrackError, UsageError
from ptrack_build.package import (
    DIST,
    booted,
    deb,
    earlier,
    folders,
    making,
    read,
    repo,
    signing,
)
from ptrack_build.progress import say, skipped, step
from ptrack_build.source.base import version_key
from ptrack_build.suite import results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ptrack_build.package.ground import Clean, Commanded, Ground

STEPS: Final = deb.TEMPLATES / "verify" / "steps.sh"
SERVE: Final = deb.TEMPLATES / "verify" / "serve.pl"
TRACKING: Final = deb.TEMPLATES / "extension" / "tests" / "tracking.j2"

#: The steps in order; but for the first, what a step does is in steps.sh.
ORDER: Final = {
    "lint": "lintian has neither errors nor warnings",
    "install": "an earlier version, with a first cluster",
    "track": "a cluster with the extension; each changed block is reported",
    "upgrade": "to the version in dist/; clusters run on, and their map stays valid",
    "stay": "a newer plain server takes the place of ours in no upgrade",
    "upgradecluster": "from the previous major, by dump and by pg_upgrade",
    "remove": "clusters are stopped and kept",
    "purge": "nothing is left",
    "repo": "from a signed repository, by name",
    "develop": "symbols fit, the extension is compiled with what is installed",
    "boot": "install to purge once more where systemd runs the servers",
    "swap": "a cluster of the plain server runs on ours, back, and forth; purges spare it",
}
#: Not in the one container that all others are in, in turn.
APART: Final = ("lint", "repo", "develop", "boot", "swap")
#: What compiles an extension, and packages it, besides what the packages depend on.
COMPILERS: Final = ("dpkg-dev", "gcc", "libc6-dev", "make")
#: The newest major whose clusters a release's postgresql-common can upgrade: before 249 it asks
#: the old one for its lc_ctype, a setting that went with 16. Elsewhere it upgrades all.
UPGRADES_FROM: Final = {"bullseye": 15, "bookworm": 15, "jammy": 15}
PLAIN: Final = "/var/cache/ptrack-plain"
BESIDE: Final = "/var/cache/ptrack-beside"
DOCUMENTATION: Final = "/var/cache/ptrack-documentation"
#: All files of a container's image into the directory $0; what is mounted is not among them.
COPY: Final = 'tar -C / --one-file-system -c . | tar -C "$0" --numeric-owner -x'


class VerifyFailed(PtrackError):
    """Packages did not do what they should; the table has said which and what."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A directory of dist/: packages of a major for a system.

    image: what to verify Debian packages in; native: whether rpms were made on a system without.
    """

    folder: Path
    kind: str
    system: str
    image: str
    major: str
    number: int
    version: str
    files: tuple[str, ...] = field(repr=False)
    native: bool = True

    @property
    def name(self) -> str:
        """debian-bookworm-amd64 17"""
        return f"{self.system} {self.major}"

    @property
    def upgrades_from(self) -> int:
        """The newest major whose clusters the system's own pg_upgradecluster can take."""
        return UPGRADES_FROM.get(self.image.partition(":")[2], self.number - 1)

    def debs(self) -> list[Path]:
        """All packages that can be installed."""
        return [self.folder / file for file in self.files if file.endswith("deb")]

    def packages(self) -> list[Path]:
        """Those that users install: neither debugging symbols nor what others compile with."""
        return [file for file in self.debs() if not _for_developers(file)]

    def development(self) -> list[Path]:
        """The others."""
        return [file for file in self.debs() if _for_developers(file)]

    def tarball(self) -> Path | None:
        """The extension's source."""
        found = (self.folder / file for file in self.files if file.endswith(".orig.tar.gz"))
        return next(found, None)


def _for_developers(file: Path) -> bool:
    return "-dbgsym_" in file.name or file.name.startswith("postgresql-server-dev-")


def published(
    dist: Path,
    systems: Sequence[str] = (),
    majors: Sequence[str] = (),
    *,
    may_skip: bool = False,
) -> list[Published]:
    """What is in dist/, filtered by words of systems' names and by majors.

    Raises PackageError where a file is damaged, and UsageError where nothing is left to verify,
    unless it may be skipped, which is said.
    """
    found = []
    there = folders(dist)
    for folder in there:
        system = folder.parent.name
        if systems and not set(systems) & {system, *system.split("-")}:
            continue
        if majors and folder.name.removeprefix("postgresql-") not in majors:
            continue

        def of(said: Mapping[str, Any], folder: Path = folder) -> Published:
            about, version = said["system"], said["postgresql"]["version"]
            return Published(
                folder=folder,
                kind=said["kind"],
                system=folder.parent.name,
                image=f"{about['distribution']}:{about['codename'] or about['release']}",
                major=said["major"],
                number=int(re.split(r"\D", version)[0]),  # `devel` is the number of none
                version=version,
                files=tuple(each["file"] for each in said["packages"]),
                native=said.get("native") != "",
            )

        found.append(read(folder, of))
    if not found:
        asked = " ".join([*systems, *majors])
        what = f"{dist} has no packages" + (f" of {asked}" if asked else "")
        if may_skip:
            skipped("verify-packages", what)
            return []
        hint = "./nox -s deb-17 makes some, and rpm-17"
        if there:
            hint += "; there are " + ", ".join(
                f"{folder.parent.name} {folder.name.removeprefix('postgresql-')}"
                for folder in there
            )
        raise UsageError(what, hint=hint)
    return sorted(found, key=lambda each: (each.system, each.number))


def verify(
    systems: Sequence[str] = (),
    majors: Sequence[str] = (),
    dist: Path = DIST,
    *,
    strict: bool = False,
    may_skip: bool = False,
    before: Path | None = None,
) -> list[report.Outcome]:
    """Verify what is in dist/; prints one table at the end, kept in results() as JSON.

    before: a directory with packages of an earlier release of ours, to upgrade from; may_skip:
    whether it is no error that there is nothing of what was asked for. Raises VerifyFailed if
    anything failed, or if nothing could be verified; with strict also if anything was skipped or
    not run. UsageError where there is nothing to verify, or to upgrade from.
    """
    from ptrack_build.package import ground, verifyrpm

    wanted = published(dist, systems, majors, may_skip=may_skip)
    if not wanted:
        return []
    old = {each.name: upgraded_from(before, each) for each in wanted} if before else {}
    if before and not any(old.values()):
        what = f"{before} has no earlier packages of {', '.join(each.name for each in wanted)}"
        raise UsageError(what, hint="name the directory of a release of ours, or of its files")
    everything = published(dist)
    outcomes = []
    lacks: HostError | None = None
    with contextlib.ExitStack() as stack:
        here: Ground | None = None
        for each in wanted:
            if each.kind == "rpm":
                has_old = before if old.get(each.name) else None
                outcomes.append(verifyrpm.one(each, has_old, asked=before is not None))
                continue
            try:
                if lacks is not None:
                    raise lacks
                if here is None:
                    here = stack.enter_context(ground.found())
                outcomes.append(
                    one(
                        here, each, previous(each, everything), old.get(each.name, ()),
                        asked=before is not None,
                    )
                )  # fmt: skip
            except HostError as error:
                if here is None:
                    lacks = error  # and so it will for all others
                outcomes.append(
                    report.Outcome(session=each.name, status="not run", note=str(error))
                )
            except PtrackError as error:
                say(str(error))
                outcomes.append(
                    report.Outcome(session=each.name, status="failed", note=str(error), failures=1)
                )
    report.keep(outcomes, results() / "verify-packages.json")
    say("\n" + report.table(outcomes))
    failed = [each.session for each in outcomes if each.status == "failed"]
    if failed:
        what = f"failed: {', '.join(failed)}"
        raise VerifyFailed(what, hint=f"read {cache.directory('log')}/verify-*.log")
    if all(each.status in report.NOT_RUN for each in outcomes):
        what = "nothing could be verified"
        hint = "the table says what is lacking"
        raise VerifyFailed(what, hint=(lacks.hint if lacks else None) or hint)
    partly = [each.session for each in outcomes if each.status != "passed"]
    if partly and strict:
        what = f"not verified as a whole: {', '.join(partly)}"
        raise VerifyFailed(what, hint="the table says what was skipped, and why")
    if partly:
        say(f"not verified as a whole: {', '.join(partly)} (-- --strict takes that for a failure)")
    return outcomes


def upgraded_from(folder: Path, each: Published) -> tuple[Path, ...]:
    """The packages of an earlier release in a folder that users upgrade to those of now."""
    if each.kind == "deb":
        return earlier.chosen(folder, each.packages())
    from ptrack_build.package import rpmroot

    return rpmroot.upgraded_from(folder, [each.folder / file for file in each.files])


def previous(each: Published, everything: Sequence[Published]) -> Published | None:
    """The nearest major before this one whose packages for the same system are there.

    None that this system could not upgrade from, with any packages.
    """
    newest = min(each.number - 1, each.upgrades_from)
    below = [
        other
        for other in everything
        if (other.kind, other.system) == (each.kind, each.system) and other.number <= newest
    ]
    return max(below, key=lambda other: other.number, default=None)


class _Course:
    """The steps with one directory of dist/, and what became of them."""

    def __init__(self, each: Published, log: Path) -> None:
        self.each = each
        self.log = log
        self.began = time.monotonic()
        self.passed = 0
        self.failures = 0
        self.skipped = 0
        self.notes: list[str] = []

    def take(self, name: str, action: Callable[[], object]) -> bool:
        """Take a step; whether it went well.

        Raises HostError where this machine cannot take it, which is no failure of the packages.
        """
        try:
            with step(f"{self.each.name}: {name} ({ORDER[name]})") as shown:
                try:
                    action()
                except HostError:
                    shown.skip()
                    raise
        except CommandFailed as error:
            self.failures += 1
            self.notes.append(f"{name} failed: {_why(error)} (log: {self.log})")
            return False
        self.passed += 1
        return True

    def lacks(self, name: str, what: str) -> None:
        """Note what a step was taken without, since it is not to be had: no reason to fail."""
        self.notes.append(f"{name}: {what}")

    def skip(self, name: str, why: str) -> None:
        """Leave a step out."""
        self.skipped += 1
        self.notes.append(f"skipped {name}: {why}")

    def outcome(self) -> report.Outcome:
        """The row of the table."""
        return report.Outcome(
            session=self.each.name,
            status="failed" if self.failures else "incomplete" if self.skipped else "passed",
            version=self.each.version,
            tests=self.passed + self.failures + self.skipped,
            failures=self.failures,
            skipped=self.skipped,
            test_seconds=time.monotonic() - self.began,
            note="\n".join(self.notes),
        )


def one(
    ground: Ground,
    each: Published,
    before: Published | None,
    old: Sequence[Path] = (),
    *,
    asked: bool = False,
) -> report.Outcome:
    """Verify the packages of a major for a system; the outcome's note has what was skipped.

    before: an earlier major; old: packages of an earlier release of this one, or an earlier version
    is made of these; asked: whether such were asked for. Raises HostError where this machine cannot
    have such a system.
    """
    log = cache.directory("log") / f"verify-{each.system}-{each.major}.log"
    log.unlink(missing_ok=True)
    course = _Course(each, log)
    reference = Reference.parse(each.image)
    base = ground.image(reference)
    say(f"verifying {each.name} {ground.how} of {reference} ({base.how})")
    if asked and not old:
        course.lacks("upgrade", f"from an earlier version made of these, as {earlier.NONE}")
    with _prepared(each, before, old) as (mounts, env):

        def opened(image: Clean) -> contextlib.AbstractContextManager[Commanded]:
            return ground.opened(image, mounts=mounts)

        image, tools, plain, documents = _with_dependencies(
            ground, base, each, before, old, mounts, log
        )  # fmt: skip
        course.take("lint", lambda: _lint(ground, base, each, opened, log))
        with opened(image) as container:
            _in_turn(course, container, before, env)
        _from_repository(course, each, lambda: opened(image), env)

        def developed() -> None:
            whole = ground.with_packages(
                image, "apt", tools, kept=documents, folder=DOCUMENTATION
            )  # fmt: skip
            with opened(whole) as container:
                container.call(["sh", env["STEPS"], "develop"], env=env, log=log)

        if course.take("develop", developed) and not documents:
            absent = f"{each.image} has no {_documents(each)}"
            course.lacks("develop", f"{absent}, which ours were not laid beside")
        _booted(course, ground, image, mounts, env)
        if not plain.packages:
            course.skip("swap", plain.why)
        else:
            at_hand = ground.with_packages(
                image, "apt", plain.depends, kept=plain.packages, folder=PLAIN
            )
            at_hand = ground.with_packages(at_hand, "apt", (), kept=plain.beside, folder=BESIDE)
            with opened(at_hand) as container:
                argv = ["sh", env["STEPS"], "swap"]
                course.take("swap", lambda: container.call(argv, env=env, log=log))
    return course.outcome()


def _in_turn(
    course: _Course, container: Commanded, before: Published | None, env: Mapping[str, str]
) -> None:
    """The steps that need what those before them left: the first that fails ends them."""
    names = [name for name in ORDER if name not in APART]
    for at, name in enumerate(names):
        if name == "upgradecluster" and before is None:
            each, newest = course.each, course.each.upgrades_from
            why = f"no earlier major's packages for {each.system}"
            if newest < each.number - 1:
                why += f", whose pg_upgradecluster takes clusters of {newest} at most"
            course.skip(name, why)
            continue
        argv = ["sh", env["STEPS"], name]
        if not course.take(name, lambda: container.call(argv, env=env, log=course.log)):  # noqa: B023
            for later in names[at + 1 :]:
                course.skip(later, f"{name} failed")
            return


def _from_repository(
    course: _Course,
    each: Published,
    opened: Callable[[], contextlib.AbstractContextManager[Commanded]],
    env: Mapping[str, str],
) -> None:
    """Install from a repository of the packages, signed with a key that is made for that."""
    try:
        host.ensure(["gpg", "apt-ftparchive"])
    except HostError as error:
        course.skip("repo", error.what)
        return

    def used() -> None:
        with signing.throwaway() as key:
            said = repo.trial(each.folder, Path(env["REPOSITORY"]), key)
        Path(env["SOURCES"]).write_text(said, encoding="utf-8")
        with opened() as container:
            container.call(["sh", env["STEPS"], "repo"], env=env, log=course.log)

    course.take("repo", used)


def _booted(
    course: _Course,
    ground: Ground,
    image: Clean,
    mounts: Sequence[box.Mount],
    env: Mapping[str, str],
) -> None:
    """The steps on a system that has booted, where this machine can do that."""
    each, log = course.each, course.log
    place = cache.directory("build") / f"verify-{each.system}-{each.major}-boot"
    cache.remove(place)  # a run that was killed may have left it
    root = place / "root"
    root.mkdir(parents=True)

    def used() -> None:
        whole = ground.with_packages(image, "apt", booted.NEEDS)
        into = [box.Mount(path=root, writable=True)]
        with ground.opened(whole, mounts=into) as container:
            argv = ["dpkg-query", "-W", "-f", "${Version}", "systemd"]
            booted.check(container.call(argv, log=log, capture=True).stdout)
            container.call(["bash", "-o", "pipefail", "-c", COPY, str(root)], log=log)
        argv = ["sh", env["STEPS"], "boot"]
        seen = [mount.path for mount in mounts]
        ended = booted.run(root, argv, env=env, seen=seen, log=log)
        if not ended.well:
            raise CommandFailed(argv, 1, log=log, tail=ended.said)

    try:
        course.take("boot", used)
    except HostError as error:
        course.skip("boot", error.what)
    finally:
        cache.remove(place)


def _lint(
    ground: Ground,
    base: Clean,
    each: Published,
    opened: Callable[[Clean], contextlib.AbstractContextManager[Commanded]],
    log: Path,
) -> None:
    """Let the system's lintian look at all packages. Raises CommandFailed for what it finds."""
    image = ground.with_packages(base, "apt", ["lintian"])
    # of the source package it opens what the .dsc names
    files = [str(each.folder / file) for file in each.files if ".tar." not in file]
    with opened(image) as container:
        argv = ["lintian", "--allow-root", "--fail-on", "error,warning", *files]
        container.call(argv, env={"LC_ALL": "C.UTF-8"}, log=log)


def _why(error: CommandFailed) -> str:
    """What a step says of its failure, or lintian's first finding, else the last line."""
    lines = [line for line in error.tail.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("FAILED: ")]
    said = said or [line for line in lines if re.match("[EW]: ", line)][:1]
    return (said or lines or ["it said nothing"])[-1].removeprefix("FAILED: ")


@contextlib.contextmanager
def _prepared(
    each: Published, before: Published | None, old: Sequence[Path]
) -> Iterator[tuple[list[box.Mount], dict[str, str]]]:
    """The directories a container needs, and the environment of its steps."""
    work = cache.directory("build", f"verify-{each.system}-{each.major}")
    try:
        tracking = work / "tracking"
        text = making.rendered(TRACKING, {"major": each.number}, "deb.Facts")
        tracking.write_text(text, encoding="utf-8")
        tracking.chmod(0o755)
        for file in (STEPS, SERVE):
            (work / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        folders = [work, each.folder, *([before.folder] if before else [])]
        folders += sorted({file.parent for file in old} - {*folders})
        env = {
            "BEFORE": " ".join(map(str, old)),
            "BESIDE": BESIDE,
            "DEVELOPMENT": " ".join(map(str, each.development())),
            "DOCUMENTATION": DOCUMENTATION,
            "MAJOR": str(each.number),
            "PACKAGES": " ".join(map(str, each.packages())),
            "PREVIOUS": str(before.number) if before else "",
            "PREVIOUS_PACKAGES": " ".join(map(str, before.packages())) if before else "",
            "PLAIN": PLAIN,
            "REPOSITORY": str(work / "repository"),
            "SERVE": str(work / SERVE.name),
            "SOURCES": str(work / "ptrack.sources"),
            "STEPS": str(work / STEPS.name),
            "TARBALL": str(each.tarball() or ""),
            "TRACKING": str(tracking),
        }
        yield [box.Mount(path=folder) for folder in folders], env
    finally:
        cache.remove(work)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The distribution's own packages of a major, with versions; or why there are none.

    beside: those that may stay when ours take the place of the server. depends: what else is
    installed with the others.
    """

    packages: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    why: str = ""


def _with_dependencies(
    ground: Ground,
    base: Clean,
    each: Published,
    before: Published | None,
    old: Sequence[Path],
    mounts: Sequence[box.Mount],
    log: Path,
) -> tuple[Clean, tuple[str, ...], Plain, tuple[str, ...]]:
    """The clean image with all that the packages depend on, and none of them.

    Then what those for developers want in addition, the plain ones, and that of the plain server's
    documents, which is of any minor, where the release has one. Raises CommandFailed where
    apt cannot satisfy one of ours.
    """
    ours = each.debs()
    used = [*each.packages(), *(before.packages() if before else [])]
    env: Mapping[str, str] = images.unattended()
    with (
        step(f"{each.name}: what the packages depend on"),
        ground.opened(base, network=True, mounts=mounts) as container,
    ):
        simulate = ["apt-get", "install", "-s", "--no-install-recommends"]
        container.call(["apt-get", "update"], env=env, log=log)
        # beside any server, and of no version of it
        name = _documents(each)
        argv = ["apt-cache", "madison", name]
        listed = container.call(argv, env=env, log=log, capture=True, check=False).stdout
        documents = (name,) if " Packages" in listed else ()
        argv = [*simulate, *COMPILERS, *documents, *map(str, ours)]
        compiling = container.call(argv, env=env, log=log, capture=True).stdout
        said = container.call([*simulate, *map(str, used)], env=env, log=log, capture=True).stdout
        if old:  # of the same names: not to be asked for together
            argv = [*simulate, *map(str, old)]
            said += container.call(argv, env=env, log=log, capture=True).stdout
        server = f"postgresql-{each.number}"
        argv = ["apt-cache", "madison", server]
        listed = container.call(argv, env=env, log=log, capture=True, check=False).stdout
        plain = _plain(each, listed)
        if plain.packages:
            argv = [*simulate, *plain.packages]
            depends = container.call(argv, env=env, log=log, capture=True).stdout
            plain = replace(plain, depends=_others(depends, plain.packages))
    own = {file.name.partition("_")[0] for file in [*ours, *used]}
    image = ground.with_packages(base, "apt", _others(said, own))
    return image, _others(compiling, {*own, *documents}), plain, documents


def _documents(each: Published) -> str:
    """The plain server's package of documents."""
    return f"postgresql-doc-{each.number}"


def _others(said: str, own: Iterable[str]) -> tuple[str, ...]:
    """What apt-get would install besides our own (or the plain ones, with their versions)."""
    names = {name.partition("=")[0] for name in own}
    installed: list[str] = re.findall(r"^Inst (\S+)", said, re.MULTILINE)
    return tuple(name for name in installed if name not in names)


def _plain(each: Published, listed: str) -> Plain:
    """The newest plain server that may come before ours, of those apt knows, with what ours has.

    listed: what `apt-cache madison` says of the server. PostgreSQL does not promise that an earlier
    minor reads what a later one wrote.
    """
    server = f"postgresql-{each.number}"
    ours = [file.name.partition("_")[0] for file in each.packages()]
    names = [name.removesuffix("pt") for name in ours if name.endswith(f"{each.number}pt")]
    versions: list[str] = re.findall(r"^ *\S+ \| *(\S+) \|.* Packages$", listed, re.MULTILINE)
    for version in versions:  # the newest comes first
        if version_key(version.partition("-")[0]) <= version_key(each.version):
            return Plain(
                packages=tuple(f"{name}={version}" for name in names),
                beside=(f"postgresql-server-dev-{each.number}={version}",),
            )
    if versions:
        return Plain(why=f"{server} of {each.image} is {versions[-1]}, this is {each.version}")
    return Plain(why=f"{each.image} has no {server}")
