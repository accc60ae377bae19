"""What making packages of any kind takes: a source's facts, places, compilers, what went wrong.

Used by deb and rpm, which differ in what they hand to which tool. Of both the frame is:

    facts of a tree ── Jobs ── finished ── Release
                         └── building ── Bench.keep

A Job is one source package with a key over all that goes into it; building() is where it is made,
and what Bench.keep() took is found under the key from then on.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import re
import shlex
import shutil
import tarfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from ptrack_build import __version__, cache, host, report
from ptrack_build.errors import CommandFailed, UsageError
from ptrack_build.host import check_room
from ptrack_build.package import (
    DIST,
    Package,
    PackageError,
    Release,
    System,
    dist_room,
    publish,
    table,
)
from ptrack_build.package.place import HERE, Unobtainable
from ptrack_build.progress import Step, say, skipped, step
from ptrack_build.run import call
from ptrack_build.source.mirror import WHEN
from ptrack_build.suite import results

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ptrack_build.host import ServerUser
    from ptrack_build.matrix import Major
    from ptrack_build.package.place import Place
    from ptrack_build.patch import PatchedTree
    from ptrack_build.source import SourceTree

FREE_MB: Final = 3000
#: Of dist/, for a release with its symbols and sources: that of 17 has 45 as Debian packages.
DIST_FREE_MB: Final = 300
_KEPT: Final = "packages.json"
TEMPORARY: Final = "tmp"  # below a job's place
NEUTRAL: Final = ("all", "noarch", "source", "src")  # architectures of packages that fit any
MAINTAINER: Final = "The ptrack developers <maintainers@ptrack.example>"

# ---- facts of a source


def epoch(tree: PatchedTree) -> int:
    """When the source was made, in seconds since 1970.

    That of the commit; for what was imported from a tarball, the day of the release that its notes
    are headed with. So of two releases the later one has the later date, wherever they came from.
    """
    committed = int((tree.path / "configure").stat().st_mtime)
    if committed != WHEN:
        return committed
    notes = tree.path / f"doc/src/sgml/release-{tree.source.major.number}.sgml"
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"<para>[^<]*(\d{4}-\d\d-\d\d)", notes.read_text(encoding="utf-8"))
        if found:
            return int(datetime.fromisoformat(f"{found[1]}T00:00:00+00:00").timestamp())
    return committed


def defined(tree: PatchedTree, header: str, name: str) -> str:
    """A number that a header of the tree defines. Raises PackageError where it does not."""
    path = tree.path / header
    with contextlib.suppress(OSError):
        found = re.search(rf"^#define\s+{name}\s+(\d+)", path.read_text(), re.MULTILINE)
        if found:
            return found[1]
    what = f"{path} does not define {name}"
    raise PackageError(what, hint="see where this major has it, and adapt ptrack_build/package")


def abi(tree: PatchedTree) -> int:
    """The number of the core's hooks. Raises PackageError where the tree has none."""
    return int(defined(tree, "src/include/storage/changetrack.h", "CHANGETRACK_ABI"))


def maintainer() -> str:
    """Whom a package names: PTRACK_MAINTAINER where set."""
    return os.environ.get("PTRACK_MAINTAINER") or MAINTAINER


def sortable(version: str) -> str:
    """PostgreSQL's version so that dpkg and rpm sort it: 17.2; 19~beta1; 20~~devel.

    Raises PackageError for what is no version.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d+)|(devel)|((?:alpha|beta|rc)\d+))", version)
    if found is None:
        what = f"PostgreSQL says that its version is {version!r}, which no package can be called"
        raise PackageError(what, hint="see configure's PACKAGE_VERSION in the source")
    major, minor, devel, early = found.groups()
    return f"{major}.{minor}" if minor else f"{major}~~{devel}" if devel else f"{major}~{early}"


def snapshot(source: SourceTree, when: int) -> str:
    """20240131.235959.abcdef0: what sets a branch's tip apart from the release it comes after.

    Whether it was fetched or lies in a work tree.
    """
    if source.provider != "git" and "devel" not in source.version and not source.untagged:
        return ""
    return f"{time.strftime('%Y%m%d.%H%M%S', time.gmtime(when))}.{source.commit[:7]}"


def revision() -> int:
    """How often the same sources have been packaged: PTRACK_REVISION, from 1 on.

    Raises UsageError.
    """
    said = os.environ.get("PTRACK_REVISION", "")
    if not re.fullmatch(r"([1-9]\d{0,3})?", said):
        what = f"PTRACK_REVISION is {said!r}, which is no number from 1 on"
        raise UsageError(what, hint="leave it out for 1")
    return int(said or 1)


def extension_files(extension: Path) -> list[Path]:
    """The extension's sources, without what compiling it in place leaves, or an editor."""
    found = [extension / "Makefile", extension / "ptrack.control"]
    found += [path for kind in ("sql", "src") for path in (extension / kind).glob("[!.]*.*")]
    return sorted(path for path in found if path.suffix in {"", ".c", ".h", ".sql", ".control"})


def extension_parts(extension: Path, docs: Iterable[Path]) -> list[str | Path]:
    """What the key of the extension's packages has of it: names and contents."""
    parts: list[str | Path] = []
    for path in extension_files(extension):
        parts += [path.relative_to(extension).as_posix(), path]
    return [*parts, *docs]


def made_of(
    tree: PatchedTree, built_with: Mapping[str, str], **particular: object
) -> dict[str, Any]:
    """What a release's manifest says of where it comes from."""
    source = tree.source
    return {
        "postgresql": {
            "version": source.version,
            "provider": source.provider,
            "commit": source.commit,
            "tree": source.digest,
            "sha256": source.sha256,
        },
        "patch": {"digest": tree.patch_digest, "how": tree.how, "abi": abi(tree)},
        "ptrack": __version__,
        "source_date_epoch": epoch(tree),
        "built_with": dict(built_with),
        **particular,
    }


def tarball(folder: Path, target: Path, name: str, epoch: int) -> None:
    """The files of a folder as <name>/...: equal for equal files."""
    with target.open("wb") as raw:
        packer = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
        with packer, tarfile.open(fileobj=packer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in (folder, *sorted(folder.rglob("*"))):
                below = path.relative_to(folder).as_posix()
                entry = archive.gettarinfo(path, name if below == "." else f"{name}/{below}")
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = "root"
                entry.mtime = epoch
                entry.mode = 0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644
                if entry.isreg():
                    archive.addfile(entry, io.BytesIO(path.read_bytes()))
                else:
                    archive.addfile(entry)


def rendered(template: Path, context: Mapping[str, Any], names: str) -> str:
    """A template's text. names: whose names it may use, for the message.

    Raises PackageError with the template's name and line.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = f"packaging/{names.partition('.')[0]}/{template.parent.name}"
    try:
        return environment.get_template(template.name).render(context)
    except jinja2.TemplateSyntaxError as error:
        what = f"{shown}/{error.name or template.name}:{error.lineno}: {error}"
        raise PackageError(what, hint="correct the template") from error
    except jinja2.TemplateError as error:
        what = f"{shown}/{template.name}: {error}"
        raise PackageError(what, hint=f"the names are those of {names}") from error


# ---- the machine


def installed_debs(names: Iterable[str], where: Place = HERE) -> dict[str, str]:
    """Versions of those of Debian's packages that are installed under their own names."""
    listed = where.call(
        ["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n", *names],
        capture=True, quiet=True, check=False,
    ).stdout  # fmt: skip
    rows = [line.split() for line in listed.splitlines()]
    return {row[0]: row[1] for row in sorted(rows) if len(row) == 3 and row[2] == "installed"}


@dataclass(frozen=True, kw_only=True)
class _Deb:
    """An installed package. chooses: whether it does nothing but depend on those of a version."""

    version: str
    chooses: bool
    depends: frozenset[str]


def builder_debs(names: Collection[str], where: Place = HERE) -> dict[str, str]:
    """Versions of Debian's packages of these names, and of what does their work.

    gcc, llvm-dev or python3-dev only choose a version: they come of sources named *-defaults, with
    versions of their own. They are looked through, until nothing new is found. Of all packages
    found, those that they depend on are listed with them: what compiles is in some of these
    (gcc-14-x86-64-linux-gnu), and so is what is linked (libssl3, libllvm14).
    """
    found = _debs(names, where)
    asked = {*found}
    while (
        more := {name for each in found.values() if each.chooses for name in each.depends} - asked
    ):
        asked |= more
        found |= _debs(more, where)
    found |= _debs({name for each in found.values() for name in each.depends} - asked, where)
    return {name: each.version for name, each in sorted(found.items())}


def _debs(names: Collection[str], where: Place) -> dict[str, _Deb]:
    """Those that are installed."""
    if not names:
        return {}  # dpkg-query would list all
    fields = "${Package} ${Version} ${db:Status-Status} ${source:Package} ${Depends}\n"
    listed = where.call(
        ["dpkg-query", "-W", "-f", fields, *sorted(names)], capture=True, quiet=True, check=False
    ).stdout
    found = {}
    for line in listed.splitlines():
        name, version, status, source, depends = [*line.split(" ", 4), "", "", "", ""][:5]
        if status == "installed":
            each = re.split(r"[,|]", re.sub(r"\([^)]*\)", "", depends))
            plain = {word.strip().partition(":")[0] for word in each} - {""}
            found[name] = _Deb(
                version=version, chooses=source.endswith("-defaults"), depends=frozenset(plain)
            )
    return found


def names(about: Mapping[str, str]) -> tuple[str, str]:
    """Number and codename of a release. Not both are empty: directories and suites are called so.

    Suites that roll have no number, and some systems of other makers neither.
    """
    release, codename = about.get("VERSION_ID", ""), about.get("VERSION_CODENAME", "")
    if not release and not codename:
        codename = re.sub(r"[^a-z0-9.]", "", about.get("BUILD_ID", "").lower()) or "rolling"
    return release, codename


def tag(about: Mapping[str, str], where: Place = HERE) -> str:
    """What ends a package's version on a system of apt's: deb12, ubuntu24.04, deb14~sid.

    It has to grow with an upgrade of the system. A suite without a number (testing, sid) is on its
    way to the next release, whose number its base-files has from the day after the last one, and
    `~` sorts below the end: deb13 < deb14~sid < deb14. Without a suffix, as Debian's own uploads to
    sid are, a build of sid would be older than those of all releases; with the bare codename it
    would be newer than those of all to come, and stay when the system has become one of them.
    """
    identity = about.get("ID", "debian")
    short = "deb" if identity == "debian" else identity
    release, codename = names(about)
    if not release:
        coming = installed_debs(["base-files"], where).get("base-files", "")
        release = f"{re.split(r'[^0-9]', coming)[0]}~{codename}"
    return re.sub(r"[^a-z0-9.~]", "", f"{short}{release}".lower())


def environment(
    job: Job, user: ServerUser | None, compilers: Iterable[str], **more: str
) -> dict[str, str]:
    """For the tool that builds a job, besides what its place tells it: ccache, and where it is.

    A home and a place for temporary files that nobody else has.
    """
    return {
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "HOME": str(job.place),
        "TMPDIR": str(job.place / TEMPORARY),
        **more,
        **compiler_cache(user, compilers, job.where),
    }


# ---- places


@dataclass(frozen=True, kw_only=True)
class Job:
    """One source package about to be built, or found done.

    key: over all that goes into it; architecture: of its packages, as System has it; place: the
    directory it is built in, the same each time, for the compiler cache's sake; where: this machine
    or a container; provide: puts the sources into a directory below place.
    """

    kind: Literal["deb", "rpm"]
    name: str
    version: str
    key: str
    architecture: str
    place: Path
    log: Path
    where: Place
    provide: Callable[[Path], None]

    @property
    def final(self) -> Path:
        """Where its packages are kept."""
        return cache.directory(self.kind) / self.key[:32]

    @property
    def finished(self) -> bool:
        """Whether they are there."""
        return (self.final / _KEPT).is_file()

    def packages(self) -> list[Package]:
        """Those of a finished one, which counts as a use."""
        with contextlib.suppress(OSError):
            os.utime(self.final)
        return [Package(**each) for each in json.loads((self.final / _KEPT).read_text())]

    def buildinfo(self) -> list[Path]:
        """What was noted of how they were made: by dpkg, or by record."""
        return sorted(self.final.glob("*.buildinfo"))


J = TypeVar("J", bound=Job)


class Bench:
    """Where a job is under way. user: who builds."""

    def __init__(
        self, job: Job, user: ServerUser | None, *, scratch: Path, shown: Step, before: int
    ) -> None:
        self.job = job
        self.user = user
        self.compiled = 0
        self._scratch = scratch
        self._shown = shown
        self._before = before

    def give(self) -> None:
        """Make all that is there the builder's."""
        if self.user is not None:
            owner = f"{self.user.uid}:{self.user.gid}"
            call(["chown", "-R", owner, str(self.job.place)], quiet=True)

    def count(self, line: str) -> None:
        """Look at a line of the tool's output for how far it is."""
        if " -c -o " in line:
            self.compiled += 1
            if self.compiled % 16 == 0:
                done = 0.9 * min(1.0, self.compiled / max(self._before, self.compiled))
                self._shown.update(done, f"{self.compiled} files compiled")

    def keep(
        self,
        files: Iterable[Path],
        describe: Callable[[Path], Package],
        buildinfo: Iterable[Path] = (),
    ) -> None:
        """Put the packages to where the key says, each described, and the records beside them.

        Raises PackageError where there are none, or one is for another architecture.
        """
        found = []
        for file in sorted(files):
            shutil.copyfile(file, self._scratch / file.name)
            found.append(describe(file))
            if found[-1].architecture not in {self.job.architecture, *NEUTRAL}:
                what = f"{file.name} is of architecture {found[-1].architecture}"
                what += f", and not {self.job.architecture} as {self.job.where.name} is"
                raise PackageError(what, log=self.job.log, hint="read the log")
        if not found:
            what = f"{self.job.name}: no package was made"
            raise PackageError(what, log=self.job.log, hint="read the log")
        for file in buildinfo:
            shutil.copyfile(file, self._scratch / file.name)
        (self._scratch / _KEPT).write_text(json.dumps([asdict(each) for each in found], indent=1))


@contextlib.contextmanager
def building(job: Job, *, llvm: str = "") -> Iterator[Bench]:
    """Build one source package in job.place, which ends empty; what was kept is then under its key.

    llvm: which one is compiled with, for the message. Raises HostError where there is no room, and
    PackageError, with the log and its telling lines, where a command in the block fails.
    """
    check_room(cache.root(), FREE_MB, "building packages")
    user = host.server_user()
    host.check_reachable(cache.root(), user)
    job.log.unlink(missing_ok=True)
    memo = Memo(job.place)
    began = time.monotonic()
    clear(job.place)
    (job.place / TEMPORARY).mkdir(parents=True)
    if user is not None:
        os.chown(job.place, user.uid, user.gid)
    title = f"packages of {job.name} {job.version}"
    try:
        with (
            step(title, estimate=memo.seconds) as shown,
            cache.building(job.final, _KEPT) as scratch,
        ):
            bench = Bench(job, user, scratch=scratch, shown=shown, before=memo.compiled)
            yield bench
            shown.update(1.0, f"{bench.compiled} files compiled")
    except CommandFailed as error:
        raise explained(title, error, job.log, llvm) from error
    except OSError as error:
        what = f"{title} could not be built: {error}"
        raise PackageError(what, log=job.log, hint=hint(str(error), llvm)) from error
    finally:
        cache.remove(job.place)
    memo.save(time.monotonic() - began, bench.compiled)


def finished(
    system: System,
    tree: PatchedTree,
    jobs: Sequence[J],
    make: Callable[[J], None],
    made_of: dict[str, Any],
) -> Release:
    """Make those of the jobs, in their order, that have not been; a release of what all have made.

    make: does so with one of them, and ends with Bench.keep.
    """
    kind = jobs[0].kind
    with cache.lock(f"packages {slot(kind, tree.source.major)}"):
        for job in jobs:
            if not job.finished:
                make(job)
        _prune(kind, {job.final for job in jobs})
    found = sorted(
        ((each, job.final / each.file) for job in jobs for each in job.packages()),
        key=lambda pair: pair[0].file,
    )
    return Release(
        kind=kind,
        system=system,
        major=tree.source.major.name,
        made_of=made_of,
        packages=tuple(package for package, _ in found),
        files=tuple(file for _, file in found),
        buildinfo=tuple(file for job in jobs for file in job.buildinfo()),
    )


def clear(place: Path) -> None:
    """Make way for a build at place.

    A run that was killed may have left a make behind: it keeps the old directory.
    """
    if place.exists():
        old = place.with_name(f".{place.name}.{os.getpid()}.part")
        place.rename(old)
        cache.remove(old)


def compiler_masks() -> Path:
    """The directory of links that put ccache in front of compilers."""
    return cache.directory("ccache-bin")


def compiler_store(user: ServerUser | None) -> Path:
    """Where ccache keeps what that user compiles: beside build-NN's, where it is another user."""
    store = cache.directory("ccache" if user is None else f"ccache-{user.name}")
    if user is not None:
        os.chown(store, user.uid, user.gid)
    return store


def compiler_cache(
    user: ServerUser | None, names: Iterable[str], where: Place = HERE
) -> dict[str, str]:
    """The environment that puts ccache in front of the compilers of those names, if it is there."""
    ccache = where.which("ccache")
    if not ccache or os.environ.get("CCACHE_DISABLE"):
        return {}
    masks = compiler_masks()
    for name in names:
        # a link's target is looked up where the link is used: in the container, if it is one
        if not (masks / name).is_symlink() or str((masks / name).readlink()) != ccache:
            (masks / name).unlink(missing_ok=True)
            (masks / name).symlink_to(ccache)
    return {
        "PATH": f"{masks}:{where.path()}",
        "CCACHE_DIR": str(compiler_store(user)),
        "CCACHE_BASEDIR": str(cache.root()),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_SLOPPINESS": "include_file_ctime,include_file_mtime",
        "CCACHE_MAXSIZE": "5G",
    }


def _prune(kind: str, keep: set[Path]) -> None:
    """Drop what of <cache>/<kind> nobody used for two weeks."""
    limit = time.time() - cache.KEEP_SECONDS
    for path in cache.directory(kind).iterdir():
        if path not in keep and not path.name.startswith("."):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < limit:
                    cache.discard(path)


class Memo:
    """What the last build of a place took, for the next one's estimate."""

    def __init__(self, place: Path) -> None:
        self.path = cache.directory("memo") / f"{place.parent.name}-{place.name}.json"
        self.seconds: float | None = None
        self.compiled = 1
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self.path.read_text())
            self.seconds, self.compiled = float(data["seconds"]), int(data["compiled"])

    def save(self, seconds: float, compiled: int) -> None:
        """For the next time."""
        cache.write(self.path, json.dumps({"seconds": round(seconds, 1), "compiled": compiled}))


# ---- failures

_TELLING: Final = re.compile(
    r"\berror: |: error |undefined reference|No space left|Disk quota|\bcannot find\b|: not found|"
    r"Killed|out of memory|internal compiler error|\*\*\* (?!.*Waiting)|^dh_\w+: "
)


def explained(title: str, error: CommandFailed, log: Path, llvm: str) -> PackageError:
    """The lines of the log that tell why, then its end."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines[-4000:] if _TELLING.search(line)][:8]
    last = [line for line in lines[-8:] if line not in telling]
    shown = "\n".join(f"    {line}" for line in (*telling, *(["..."] if telling else []), *last))
    what = f"{title} could not be built: `{shlex.join(error.argv)}` failed:\n{shown}"
    return PackageError(what, log=log, hint=hint("\n".join([*telling, *last, error.tail]), llvm))


def hint(text: str, llvm: str = "") -> str:
    """What to do next after that message. llvm: which one was compiled with, if any."""
    if "No space left" in text or "Disk quota" in text:
        return f"free some space below {cache.root()}, or set PTRACK_CACHE to where there is more"
    if llvm and "llvm" in text.lower():
        return f"this minor may not know {llvm}: try it with -- --no-jit"
    if "Killed" in text or "out of memory" in text:
        return "there was not enough memory: try PTRACK_JOBS=1"
    return "read the log; what was compiled so far is kept by ccache, so trying again is quick"


# ---- sessions

#: The feature that is LLVM's just-in-time compilation.
JIT: Final = "llvmjit"
#: What of host.NEEDS keeps the next build from compiling again what this one has.
FASTER: Final = ("ccache",)


def slot(kind: str, major: Major) -> str:
    """The directory below <cache>/build where a major's packages are made."""
    return f"{kind}-{major.name}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a session that makes packages.

    locked: what matrix.lock records; without: features of the server that are left out, by the
    names of deb.OPTIONAL or rpm.OPTIONAL; image: of the container that they are made in and for, on
    and for this machine where it is ""; may_skip: whether it is no error that this cannot be had,
    or in it what they are built with.
    """

    locked: bool = False
    without: tuple[str, ...] = ()
    image: str = ""
    may_skip: bool = False


class Builder(Protocol):
    """deb.build, rpm.build."""

    def __call__(self, tree: PatchedTree, *, without: Collection[str], where: Place) -> Release:
        """The packages of a tree, made there."""


def one(kind: str, build: Builder, major: Major, wanted: Wanted) -> Path | None:
    """Fetch, patch, package and publish a major; prints the packages and where they are.

    None where the image is nowhere to be had, or in it what they are built with, and that may be
    skipped, which is said.
    """
    from ptrack_build import container, patch, source

    # before anything is fetched and compiled, which takes long
    host.jobs()
    dist_room(DIST, DIST_FREE_MB, "putting packages there")
    host.ensure(["git"], besides=FASTER)
    tree = patch.apply(source.fetch(major, locked=wanted.locked))
    try:
        with container.place(wanted.image, slot(kind, major), kept=kind) as where:
            if where is HERE:  # a container has its own
                host.ensure(FASTER, optional=True)
            made = build(tree, without=wanted.without, where=where)
    except (container.NoImage, Unobtainable) as error:
        if not wanted.may_skip:
            raise
        skipped(f"{kind}-{major.name}", error.what)
        return None
    place = publish(made)
    say(table(made.packages))
    if native := made.made_of.get("native"):
        say(native)
    say(str(place))
    return place


def every(kind: str, build: Builder, majors: Sequence[Major], wanted: Wanted) -> None:
    """Package all majors whose source can be had; ends with a table that says which could not.

    Raises PackageError if any failed, and SourceError when no source could be had at all.
    """
    outcomes: list[report.Outcome] = []

    def package(major: Major) -> report.Outcome:
        name = f"{kind}-{major.name}"
        place = one(kind, build, major, wanted)
        if place is None:
            return report.Outcome(session=name, status="not run", note="skipped, as it may be")
        return report.Outcome(session=name, status="passed", note=str(place))

    from ptrack_build import source

    source.check_settings()
    sessions = [(f"{kind}-{each.name}", functools.partial(package, each)) for each in majors]
    report.through(sessions, outcomes)
    made = any(each.status in {"passed", "not run"} for each in outcomes)
    nothing = None if made else report.without_source("packaged")
    report.close(outcomes, results() / f"{kind}.json", PackageError, nothing)
