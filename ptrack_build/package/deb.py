"""Debian packages of a patched tree and of the extension, made by debhelper from our own debian/.

    PatchedTree ── build ──▶ Release

Two source packages, each with a key over all that goes into it: the server's (postgresql-NNpt) and
the extension's (postgresql-NN-ptrack), which is compiled with the first one's unpacked development
packages. So an edit in extension/ makes the second one anew and nothing else.

Everything is compiled by an unprivileged user, at the same place each time: <cache>/build/deb-NN,
for the compiler cache's sake. No path of it gets into a package.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import textwrap
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import REPO, __version__, cache, host
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.package import (
    Package,
    PackageError,
    Release,
    System,
    described,
    making,
    notices,
    sha256,
)
from ptrack_build.package.place import HERE, Unobtainable, unobtainable
from ptrack_build.patch import edits
from ptrack_build.progress import say
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from ptrack_build.package.place import Place
    from ptrack_build.patch import PatchedTree

TEMPLATES: Final = REPO / "packaging" / "deb"
EXTENSION: Final = REPO / "extension"
DEVELOPMENT: Final = ("client", "dev")  # whose packages the extension is compiled with
DOCS: Final = ("docs/operating.md", "docs/contract.md")
#: The first releases whose lintian (2.128) asks no more for links to the C library, by tag.
LIBC_UNCHECKED: Final[dict[str, tuple[int, ...]]] = {"deb": (14,), "ubuntu": (26, 4)}
COMMON: Final = "postgresql-common"  # of what it does with clusters, much is of its version
FLAVOUR: Final = "pt"  # two characters: what postgresql-common expects of a flavour
FORMAT: Final = "deb 3"  # of what is kept below the cache; part of the keys

#: What belongs to the client's package; a major has those that it has.
CLIENT_PROGRAMS: Final = (
    "clusterdb", "createdb", "createuser", "dropdb", "dropuser", "pg_amcheck", "pg_basebackup",
    "pg_combinebackup", "pg_config", "pg_dump", "pg_dumpall", "pg_isready", "pg_receivewal",
    "pg_recvlogical", "pg_restore", "pg_verifybackup", "psql", "reindexdb", "vacuumdb",
)  # fmt: skip

#: What can be left out, with the major that has it first: features whose lack keeps no cluster of
#: the plain server from starting, and that have no package of their own.
OPTIONAL: Final = {
    "gssapi": 0, "ldap": 0, "libcurl": 18, "libnuma": 18, "liburing": 18, making.JIT: 0, "pam": 0,
    "selinux": 0,
}  # fmt: skip

#: Control file versions of majors up to 16: postgresql-common does not append these where it notes
#: the catalogs' version; 248 appends none at all.
BARE_CATVERSIONS: Final = {"960", "1002", "1100", "1201", "1300"}


@dataclass(frozen=True, kw_only=True)
class Language:
    """A procedural language's package. word: what its files have in their names."""

    word: str
    title: str
    package: str
    plain: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the templates are rendered with: all that a debian/ depends on.

    major: a number; upstream: PostgreSQL's version as Debian writes it, that of the oldest server
    that the extension may run on; catalog, control: versions of catalogs and control file; llvm:
    the major of LLVM for just-in-time compilation, 0 for none; without: others of OPTIONAL that are
    left out; libc_is_checked: whether the release's lintian has a tag for modules that call nothing
    of the C library; epoch: seconds since 1970, of the source.
    """

    major: int
    upstream: str
    version: str
    extension_version: str
    project: str
    abi: int
    catalog: str
    control: str
    llvm: int
    without: tuple[str, ...]
    libc_is_checked: bool
    cflags: tuple[str, ...]
    vendor: str
    maintainer: str
    epoch: int
    postgresql_license: str
    ptrack_license: str

    @property
    def flavoured(self) -> str:
        """17pt"""
        return f"{self.major}{FLAVOUR}"

    @property
    def server(self) -> str:
        """postgresql-17pt"""
        return f"postgresql-{self.flavoured}"

    @property
    def client(self) -> str:
        """postgresql-client-17pt"""
        return f"postgresql-client-{self.flavoured}"

    @property
    def dev(self) -> str:
        """postgresql-server-dev-17pt"""
        return f"postgresql-server-dev-{self.flavoured}"

    @property
    def extension(self) -> str:
        """postgresql-17-ptrack"""
        return f"postgresql-{self.major}-ptrack"

    @property
    def catversion(self) -> str:
        """The catalogs' version as postgresql-common notes it: 202406281-1700, 202307071."""
        bare = self.control in BARE_CATVERSIONS
        return self.catalog if bare else f"{self.catalog}-{self.control}"

    @property
    def languages(self) -> tuple[Language, ...]:
        """PL/Perl, PL/Python and PL/Tcl."""
        titles = {"plperl": "PL/Perl", "plpython": "PL/Python 3", "pltcl": "PL/Tcl"}
        found = []
        for word, title in titles.items():
            name = "plpython3" if word == "plpython" else word
            found.append(
                Language(
                    word=word,
                    title=title,
                    package=f"postgresql-{name}-{self.flavoured}",
                    plain=f"postgresql-{name}-{self.major}",
                )
            )
        return tuple(found)

    @property
    def features(self) -> tuple[str, ...]:
        """Those of OPTIONAL that the server gets, LLVM apart: configure knows them by this name."""
        known = [name for name, since in OPTIONAL.items() if since <= self.major]
        return tuple(name for name in known if name not in {making.JIT, *self.without})

    def context(self) -> dict[str, Any]:
        """Names for the templates."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **fields,
            "source": self.server,
            "server": self.server,
            "client": self.client,
            "dev": self.dev,
            "extension": self.extension,
            "catversion": self.catversion,
            "languages": self.languages,
            "features": self.features,
            "client_programs": CLIENT_PROGRAMS,
            "date": formatdate(self.epoch),
            "postgresql_years": license_years(self.postgresql_license),
            "ptrack_years": license_years(self.ptrack_license),
            "third_party": notices.text(),
        }

    def roles(self) -> dict[str, str]:
        """What the first word of a template's name stands for."""
        return {
            "server": self.server,
            "client": self.client,
            "dev": self.dev,
            "extension": self.extension,
            **{language.word: language.package for language in self.languages},
        }


# ---- what the templates are given


def facts(tree: PatchedTree, system: System, *, llvm: int, without: tuple[str, ...] = ()) -> Facts:
    """The facts of a patched tree on a system. Raises PackageError where the tree lacks one."""
    source = tree.source
    snapshot = making.snapshot(source, making.epoch(tree))
    upstream = making.sortable(source.version) + (f"+git{snapshot}" if snapshot else "")
    again = making.revision()
    # behind ptrack's version, and `.` since for dpkg it is more than the tag's `+`
    packaged = f"{__version__}{f'.r{again}' if again > 1 else ''}"
    return Facts(
        major=source.major.number,
        upstream=upstream,
        version=f"{upstream}-1+ptrack{packaged}+{system.tag}",
        extension_version=f"{__version__}+pg{upstream}-{again}+{system.tag}",
        project=__version__,
        abi=making.abi(tree),
        catalog=making.defined(tree, "src/include/catalog/catversion.h", "CATALOG_VERSION_NO"),
        control=making.defined(tree, "src/include/catalog/pg_control.h", "PG_CONTROL_VERSION"),
        llvm=llvm,
        without=without,
        libc_is_checked=_libc_is_checked(system),
        cflags=source.major.cflags,
        vendor=system.distribution.capitalize(),
        maintainer=making.maintainer(),
        epoch=making.epoch(tree),
        postgresql_license=license_text((tree.path / "COPYRIGHT").read_text(encoding="utf-8")),
        ptrack_license=license_text((REPO / "LICENSE").read_text(encoding="utf-8")),
    )


def _libc_is_checked(system: System) -> bool:
    """Whether modules are: to override a tag that is gone is an error."""
    found = re.match(r"([a-z]+)([\d.]+)", system.tag)
    if found is None or found[1] not in LIBC_UNCHECKED:
        return True
    return tuple(map(int, found[2].strip(".").split("."))) < LIBC_UNCHECKED[found[1]]


def license_text(text: str) -> str:
    """A license as the body of a field: indented, with dots for blank lines."""
    lines = [line.rstrip() for line in textwrap.dedent(text).strip().splitlines()]
    return "\n".join(f" {line}" if line else " ." for line in lines)


def license_years(text: str) -> str:
    """The years of a license's first copyright. Raises PackageError where it names none."""
    found = re.search(r"Copyright \(c\) (\d{4}(?:-\d{4})?)", text)
    if found is None:
        what = "a license says nothing like `Copyright (c) 2026`"
        raise PackageError(what, hint="see LICENSE, and COPYRIGHT of the source")
    return found[1]


def render(folder: str, known: Facts, templates: Path | None = None) -> dict[str, tuple[str, bool]]:
    """The files of a debian/ by name, each with whether it can be executed.

    folder is `server` or `extension`. A template's first word (server., client., ...) becomes the
    package's name. Raises PackageError with the template's name and line.
    """
    templates = templates or TEMPLATES
    made = {}
    roles = known.roles()
    for template in sorted((templates / folder).rglob("*.j2")):
        name = template.relative_to(templates / folder).as_posix().removesuffix(".j2")
        role, dot, rest = name.partition(".")
        if dot and role in roles:
            name = f"{roles[role]}.{rest}"
        text = making.rendered(template, known.context(), "deb.Facts")
        made[name] = (text, name == "rules" or bool(template.stat().st_mode & 0o100))
    if not made:
        what = f"there are no templates in {templates / folder}"
        raise PackageError(what, hint="git checkout -- packaging")
    return made


# ---- the machine


def this_system(where: Place = HERE) -> System:
    """The system that packages are made for there. Raises HostError where it has no dpkg."""
    if not where.which("dpkg") or where.manager() != "apt":
        what = f"Debian packages are made on Debian or Ubuntu, which {where.name} is not"
        raise HostError(what, hint="give it an image of those: -- --image debian:bookworm")
    about = where.os_release()
    argv = ["dpkg", "--print-architecture"]
    architecture = where.call(argv, capture=True, quiet=True).stdout.strip()
    release, codename = making.names(about)
    return System(
        distribution=about.get("ID", "debian"),
        release=release,
        codename=codename,
        architecture=architecture,
        tag=making.tag(about, where),
    )


def needed(control: str) -> list[str]:
    """The packages that a rendered control file names in Build-Depends, without their versions."""
    found = re.search(r"^Build-Depends:(.*?)(?=^\S)", control + "\n.", re.MULTILINE | re.DOTALL)
    listed = re.split(r"[,|]", found[1]) if found else []
    return [name for each in listed if (name := re.sub(r"\s*\(.*", "", each).strip())]


def _ensure(control: str, slot: str, where: Place) -> None:
    """See to it that what a control file builds with is there.

    Where it may be installed it is. Otherwise HostError has the line to paste.
    """
    where.ensure(["dpkg-dev", "cc", "make"])
    lacking = _unmet(control, slot, where)
    if not lacking:
        return
    # `name | older` is what an older release has by another name: all by the one, else the other.
    names, older = ([each.split("|")[at] for each in lacking] for at in (0, -1))
    if where.may_install():
        try:
            try:
                where.install(names)
            except CommandFailed:
                if older == names:
                    raise
                where.install(older)
        except CommandFailed as error:
            what = (
                f"could not install what the packages are built with: {error.what}\n"
                "(what cannot be had can be left out, as selinux by -- --without selinux)"
            )
            kind = Unobtainable if unobtainable(error) else HostError
            raise kind(what, hint=where.remedy(names), log=error.log) from error
        lacking = _unmet(control, slot, where)
    if lacking:
        what = f"{where.name} lacks {', '.join(lacking)}, which the packages are built with"
        kind = Unobtainable if where.may_install() else HostError  # they were, in other versions
        raise kind(what, hint=where.remedy([each.split("|")[0] for each in lacking]))


def _unmet(control: str, slot: str, where: Place) -> list[str]:
    """Names from dpkg-checkbuilddeps, `a|b` where either does; debhelper-compat is debhelper."""
    said: list[str] = []
    file = cache.directory("build", slot) / f".control.{os.getpid()}"
    file.write_text(control)
    try:
        argv = ["dpkg-checkbuilddeps", str(file)]
        done = where.call(argv, check=False, quiet=True, on_line=said.append, env={"LC_ALL": "C"})
    finally:
        file.unlink()
    if done.returncode == 0:
        return []
    found = re.search(r"[Uu]nmet build dependencies: (.*)", "\n".join(said))
    if found is None:
        what = f"dpkg-checkbuilddeps cannot read the rendered control file: {' '.join(said)}"
        raise PackageError(what, hint="correct packaging/deb")
    names = re.sub(r"\s*\|\s*", "|", re.sub(r"\s*\([^)]*\)", "", found[1])).split()
    return sorted({"debhelper" if name == "debhelper-compat" else name for name in names})


def _check_installable(control: str, where: Place) -> None:
    """Raise HostError where the release's postgresql-common is older than the packages ask for.

    They could be made, and nowhere be installed. Where apt knows no postgresql-common nothing can
    be told, which is said.
    """
    found = re.search(rf"^ {COMMON} \(>= (\S+)\),$", control, re.MULTILINE)
    if found is None:
        return
    argv = ["apt-cache", "policy", COMMON]
    said = where.call(argv, capture=True, quiet=True, check=False, env={"LC_ALL": "C"}).stdout
    candidate = re.search(r"^ *Candidate: (\d\S*)$", said, re.MULTILINE)
    if candidate is None:
        say(f"apt of {where.name} knows no {COMMON}; the packages need {found[1]} or later of it")
        return
    argv = ["dpkg", "--compare-versions", candidate[1], "ge", found[1]]
    if where.call(argv, quiet=True, check=False).returncode != 0:
        what = f"the packages need {COMMON} {found[1]} or later, and {where.name} can have"
        what += f" {candidate[1]}: they could not be installed"
        hint = "PGDG's apt repository has a newer one: add it to apt's sources there, as wherever"
        hint += " the packages are to be installed"
        raise HostError(what, hint=hint)


def _llvm(where: Place) -> int:
    """The major of the distribution's LLVM."""
    said = where.call(["llvm-config", "--version"], capture=True, quiet=True).stdout
    major = int(said.split(".")[0])
    for program in (f"clang-{major}", f"llvm-config-{major}"):
        if not where.which(program):
            what = f"llvm-config is of LLVM {major}, but there is no {program}"
            raise HostError(what, hint=where.remedy([f"clang-{major}", f"llvm-{major}-dev"]))
    return major


# ---- building


@dataclass(frozen=True, kw_only=True)
class _Job(making.Job):
    """A debian/, and how dpkg-buildpackage is called on it.

    llvm: its major, 0 for none; epoch: of the sources; with_source: whether the source package is
    kept, too: who has it can run its tests against the installed packages, as autopkgtest does.
    """

    llvm: int
    epoch: int
    with_source: bool = False
    debian: dict[str, tuple[str, bool]]
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> tuple[str, str]:
        """Name and version of the source package: what the changelog says, as for dpkg."""
        found = re.match(r"(\S+) \((\S+)\)", self.debian["changelog"][0])
        assert found is not None
        return found[1], found[2]


def build(
    tree: PatchedTree,
    *,
    without: Collection[str] = (),
    extension: Path = EXTENSION,
    where: Place = HERE,
) -> Release:
    """The packages of a patched tree and of the extension, for the system of a place.

    Made if that has not been done before. Installs or names missing build dependencies. without:
    which of OPTIONAL the server does not get. Raises HostError for what the place lacks and
    PackageError, with the log and its telling lines, for what does not build.
    """
    os.umask(0o022)
    system = this_system(where)
    jit = making.JIT not in without
    left_out = tuple(sorted({*without} - {making.JIT}))
    draft = facts(tree, system, llvm=1 if jit else 0, without=left_out)
    controls = render("server", draft)["control"][0]
    slot = making.slot("deb", tree.source.major)
    _ensure(controls, slot, where)
    _check_installable(controls, where)
    known = facts(tree, system, llvm=_llvm(where) if jit else 0, without=left_out)
    builders = making.builder_debs(
        [*needed(controls), "gcc", "g++", "binutils", "libc6-dev", "dpkg-dev", "make", "debhelper"],
        where,
    )
    server = _server_job(tree, known, slot, system.architecture, builders, where)
    module = _extension_job(known, slot, server, extension)
    return making.finished(system, tree, (server, module), _make, _made_of(tree, known, builders))


def _made_of(tree: PatchedTree, known: Facts, builders: Mapping[str, str]) -> dict[str, Any]:
    return making.made_of(
        tree, builders, llvm=known.llvm, catalog_version=known.catversion,
        without=sorted([*known.without, *([] if known.llvm else [making.JIT])]),
    )  # fmt: skip


def _server_job(
    tree: PatchedTree,
    known: Facts,
    slot: str,
    architecture: str,
    builders: Mapping[str, str],
    where: Place,
) -> _Job:
    debian = render("server", known)
    plans = edits.load(TEMPLATES / "core", tree.source.major)
    key = cache.digest(
        FORMAT, "server", architecture, tree.source.digest, tree.patch_digest, edits.digest(plans),
        json.dumps(debian, sort_keys=True), json.dumps(dict(builders), sort_keys=True),
        _build_flags(where),
    )  # fmt: skip
    return _Job(
        kind="deb",
        name=known.server,
        version=known.version,
        key=key,
        architecture=architecture,
        place=cache.directory("build", slot) / "server",
        log=cache.directory("log") / f"{slot}.log",
        where=where,
        provide=functools.partial(_server_sources, tree),
        llvm=known.llvm,
        epoch=known.epoch,
        debian=debian,
    )


def _extension_job(known: Facts, slot: str, server: _Job, extension: Path) -> _Job:
    debian = render("extension", known)
    parts = making.extension_parts(extension, [REPO / name for name in DOCS])
    key = cache.digest(FORMAT, "extension", server.key, json.dumps(debian, sort_keys=True), *parts)
    place = cache.directory("build", slot) / "extension"
    pg_config = place / "root" / "usr/lib/postgresql" / str(known.major) / "bin" / "pg_config"
    return _Job(
        kind="deb",
        name=known.extension,
        version=known.extension_version,
        key=key,
        architecture=server.architecture,
        place=place,
        log=cache.directory("log") / f"{slot}-extension.log",
        where=server.where,
        provide=functools.partial(_extension_sources, known, server, extension, place / "root"),
        llvm=known.llvm,
        epoch=known.epoch,
        with_source=True,
        debian=debian,
        options=("-d",),  # what it builds with is unpacked beside it, not installed
        env=(("PG_CONFIG", str(pg_config)),),
    )


def _build_flags(where: Place) -> str:
    """What the distribution and its configuration hand to compilers, without paths."""
    options = "hardening=+all reproducible=-fixfilepath,-fixdebugpath"
    env = {"DEB_BUILD_MAINT_OPTIONS": options}
    return where.call(["dpkg-buildflags"], capture=True, quiet=True, env=env).stdout


def _server_sources(tree: PatchedTree, work: Path) -> None:
    """The patched tree, with the packages' own edits."""
    notices.warn(tree.path)
    call(["cp", "-a", "--no-preserve=ownership", f"{tree.path}/.", str(work)], quiet=True)
    for plan in edits.load(TEMPLATES / "core", tree.source.major):
        file = work / plan.path
        text = file.read_text(encoding="utf-8")
        where = f"PostgreSQL {tree.source.version}"
        file.write_text(edits.perform(plan, text, where=where), encoding="utf-8")
        before = (tree.path / plan.path).stat()
        os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))  # as all files of the source


def _extension_sources(known: Facts, server: _Job, extension: Path, root: Path, work: Path) -> None:
    """The extension; below root the server's development packages, unpacked."""
    files = {
        path.relative_to(extension).as_posix(): path for path in making.extension_files(extension)
    }
    for name, path in (files | {name: REPO / name for name in DOCS}).items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, work / name)
    for role in DEVELOPMENT:
        (package,) = server.final.glob(f"{known.roles()[role]}_*.deb")
        argv = ["dpkg-deb", "-x", str(package), str(root)]
        server.where.call(argv, quiet=True, user=host.server_user())


def _make(job: _Job) -> None:
    """Build one source package as the unprivileged user, and keep its packages under its key."""
    with making.building(job, llvm=f"LLVM {job.llvm}" if job.llvm else "") as bench:
        work = job.place / job.name
        work.mkdir()
        job.provide(work)
        if job.with_source:
            name, version = job.source
            upstream = version.rpartition("-")[0]
            archive = job.place / f"{name}_{upstream}.orig.tar.gz"
            making.tarball(work, archive, f"{name}-{upstream}", job.epoch)
        _write_debian(work / "debian", job)
        bench.give()
        if job.with_source:
            # gzip: what xz makes depends on how many threads it has
            job.where.call(
                ["dpkg-source", "-Zgzip", "--build", job.name], cwd=job.place, log=job.log,
                env=_environment(job, bench.user) | {"SOURCE_DATE_EPOCH": str(job.epoch)},
                quiet=True, user=bench.user,
            )  # fmt: skip
        job.where.call(
            ["dpkg-buildpackage", "-b", "-us", "-uc", *job.options],
            cwd=work, env=_environment(job, bench.user), log=job.log, quiet=True, user=bench.user,
            on_line=bench.count,
        )  # fmt: skip
        made = [*job.place.glob("*.*deb"), *job.place.glob("*.dsc"), *job.place.glob("*.tar.gz")]
        records = job.place.glob("*.buildinfo")
        bench.keep(made, lambda file: _described(file, job), records)


def _described(file: Path, job: _Job) -> Package:
    """A package, or a file of a source package."""
    if file.suffix.endswith("deb"):
        return described(file, fields(file, job.where))
    name, version = job.source
    return Package(
        file=file.name,
        name=name,
        version=version,
        architecture="source",
        size=file.stat().st_size,
        installed_kb=0,
        sha256=sha256(file),
    )


def _write_debian(folder: Path, job: _Job) -> None:
    folder.mkdir()
    for name, (text, executable) in job.debian.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755 if executable else 0o644)


def fields(package: Path, where: Place = HERE) -> dict[str, str]:
    """A package file's control fields, continued lines joined."""
    text = where.call(["dpkg-deb", "-f", str(package)], capture=True, quiet=True).stdout
    rows = re.sub(r"\n[ \t]+", " ", text).splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


def _environment(job: _Job, user: host.ServerUser | None) -> dict[str, str]:
    """For dpkg-buildpackage: how many compilers, and ccache.

    Objects are the unprivileged user's, hence a compiler cache of their own. (None of build-NN's
    would do: a distribution hardens, and its configure knows more libraries.)
    """
    compilers = ["gcc", "g++", *([f"clang-{job.llvm}"] if job.llvm else [])]
    return {
        **dict(job.env),
        **making.environment(job, user, compilers, DEB_BUILD_OPTIONS=f"parallel={host.jobs()}"),
    }
