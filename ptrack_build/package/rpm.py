"""RPM packages of a patched tree and of the extension, made by rpmbuild from our own specs.

    PatchedTree ── build ──▶ Release

Two source packages, each with a key over all that goes into it: the server's (postgresqlNNpt) and
the extension's (ptrack_NN), which is compiled with the first one's unpacked development packages.
So an edit in extension/ makes the second one anew and nothing else.

On a distribution of rpms the specs are built as they are. Where apt is the manager, they are built
"natively": with the system's libraries, which no rpm provides, hence without their names, and with
a package (-native) that stands for the system and that all others need. Such packages are for
trying; the source packages are the same and can be rebuilt anywhere.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import REPO, __version__, cache, host, source
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.package import (
    Package,
    PackageError,
    Release,
    System,
    making,
    notices,
    record,
    sha256,
    terms,
)
from ptrack_build.package.place import HERE, Unobtainable, unobtainable
from ptrack_build.patch import edits
from ptrack_build.progress import say
from ptrack_build.source.mirror import environment as git_environment
from ptrack_build.source.mirror import git_program

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from ptrack_build.matrix import Major
    from ptrack_build.package.place import Place
    from ptrack_build.patch import PatchedTree

TEMPLATES: Final = REPO / "packaging" / "rpm"
EXTENSION: Final = REPO / "extension"
DEVELOPMENT: Final = (
    "",
    "-devel",
)  # of the server's packages: the extension is compiled with these
DOCS: Final = ("docs/operating.md", "docs/contract.md", "LICENSE")
FORMAT: Final = "rpm 3"  # of what is kept below the cache; part of the keys

#: What belongs to the client's package; a major has those that it has.
CLIENT_PROGRAMS: Final = (
    "clusterdb", "createdb", "createuser", "dropdb", "dropuser", "pg_amcheck", "pg_basebackup",
    "pg_combinebackup", "pg_config", "pg_createsubscriber", "pg_dump", "pg_dumpall", "pg_isready",
    "pg_receivewal", "pg_recvlogical", "pg_restore", "pg_verifybackup", "pg_waldump",
    "pg_walsummary", "pgbench", "psql", "reindexdb", "vacuumdb",
)  # fmt: skip

#: Those that PGDG's packages of all majors take turns in having in /usr/bin; a major has those that
#: it has.
ALTERNATIVES: Final = (
    "clusterdb", "createdb", "createuser", "dropdb", "dropuser", "pg_basebackup",
    "pg_combinebackup", "pg_createsubscriber", "pg_dump", "pg_dumpall", "pg_restore",
    "pg_walsummary", "psql", "reindexdb", "vacuumdb",
)  # fmt: skip

NATIVE: Final = "built natively on {}: for trying, not for an rpm distribution"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Something that the server can have: a switch of the spec.

    flag: configure's; rpm, apt: the packages it is built with; since: the first major.
    """

    name: str
    flag: str = ""
    rpm: tuple[str, ...]
    apt: tuple[str, ...]
    since: int = 0


FEATURES: Final = (
    Feature(name="dtrace", flag="--enable-dtrace", apt=("systemtap-sdt-dev",),
            rpm=("/usr/bin/dtrace", "systemtap-sdt-devel")),
    Feature(name="gssapi", flag="--with-gssapi", rpm=("krb5-devel",), apt=("libkrb5-dev",)),
    Feature(name="icu", flag="--with-icu", rpm=("libicu-devel",), apt=("libicu-dev",)),
    Feature(name="ldap", flag="--with-ldap", rpm=("openldap-devel",), apt=("libldap-dev",)),
    Feature(name="libxml", flag="--with-libxml", rpm=("libxml2-devel",), apt=("libxml2-dev",)),
    Feature(name="libxslt", flag="--with-libxslt", rpm=("libxslt-devel",), apt=("libxslt1-dev",)),
    Feature(name="lz4", flag="--with-lz4", rpm=("lz4-devel",), apt=("liblz4-dev",), since=14),
    Feature(name="zstd", flag="--with-zstd", rpm=("libzstd-devel",), apt=("libzstd-dev",),
            since=15),
    Feature(name="libcurl", flag="--with-libcurl", rpm=("libcurl-devel",),
            apt=("libcurl4-openssl-dev",), since=18),
    Feature(name="libnuma", flag="--with-libnuma", rpm=("numactl-devel",), apt=("libnuma-dev",),
            since=18),
    Feature(name="liburing", flag="--with-liburing", rpm=("liburing-devel",), apt=("liburing-dev",),
            since=18),
    Feature(name="nls", flag="--enable-nls", rpm=("gettext",), apt=("gettext",)),
    Feature(name="openssl", flag="--with-openssl", rpm=("openssl-devel",), apt=("libssl-dev",)),
    Feature(name="pam", flag="--with-pam", rpm=("pam-devel",), apt=("libpam0g-dev",)),
    Feature(name="selinux", flag="--with-selinux", rpm=("libselinux-devel",),
            apt=("libselinux1-dev",)),
    Feature(name="taptests", flag="--enable-tap-tests", apt=("libipc-run-perl",),
            rpm=("perl(IPC::Run)", "perl(Test::More)", "perl(Time::HiRes)")),
    Feature(name="uuid", flag="--with-uuid=e2fs", rpm=("libuuid-devel",), apt=("uuid-dev",)),
    Feature(name="plperl", flag="--with-perl", rpm=("perl-devel", "perl(ExtUtils::Embed)"),
            apt=("libperl-dev",)),
    Feature(name="plpython3", flag="--with-python", rpm=("python3-devel",), apt=("python3-dev",)),
    Feature(name="pltcl", flag="--with-tcl", rpm=("tcl-devel",), apt=("tcl-dev",)),
    Feature(name=making.JIT, flag="--with-llvm", rpm=("clang", "gcc-c++", "llvm-devel"),
            apt=("clang", "g++", "llvm-dev")),
)  # fmt: skip

#: What can be left out, by name.
OPTIONAL: Final = tuple(each.name for each in FEATURES)

#: What every major is built with, whatever its switches.
REQUIRED_RPM: Final = (
    "bison", "docbook-dtds", "docbook-style-xsl", "flex", "gcc", "libxml2", "libxslt", "make",
    "perl(File::Compare)", "perl(FindBin)", "perl-generators", "perl-interpreter", "pkgconfig",
    "readline-devel", "systemd-devel", "systemd-rpm-macros", "tzdata", "zlib-devel",
)  # fmt: skip
REQUIRED_APT: Final = (
    "bison", "docbook-xml", "docbook-xsl", "flex", "gcc", "libc6-dev", "libreadline-dev",
    "libsystemd-dev", "libxml2-utils", "make", "perl", "pkg-config", "tzdata", "xsltproc",
    "zlib1g-dev",
)  # fmt: skip

#: What makes the packages: of no feature, but their bytes depend on it.
TOOLS_RPM: Final = ("binutils", "debugedit", "rpm-build")
TOOLS_APT: Final = ("binutils", "debugedit", "rpm")

LANGUAGES: Final = {
    "plperl": ("plperl", "PL/Perl"),
    "plpython3": ("plpython", "PL/Python 3"),
    "pltcl": ("pltcl", "PL/Tcl"),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the templates are rendered with: all that a spec depends on.

    major: a number; version: PostgreSQL's own; rpm_version: the same as rpm sorts it, with the day
    and time of a snapshot: that of the oldest server that the extension may run on; builder: the
    system, as it calls itself; epoch: seconds since 1970, of the source.
    """

    major: int
    version: str
    rpm_version: str
    release: str
    extension_release: str
    project: str
    abi: int
    cflags: tuple[str, ...]
    builder: str
    maintainer: str
    epoch: int

    @property
    def server(self) -> str:
        """postgresql17pt"""
        return f"postgresql{self.major}pt"

    @property
    def extension(self) -> str:
        """ptrack_17"""
        return f"ptrack_{self.major}"

    @property
    def features(self) -> tuple[Feature, ...]:
        """Those that this major knows."""
        return tuple(each for each in FEATURES if each.since <= self.major)

    def context(self) -> dict[str, Any]:
        """Names for the templates."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **fields,
            "features": self.features,
            "enabled": [feature.name for feature in self.features],
            "languages": [
                {"name": name, "word": word, "title": title}
                for name, (word, title) in LANGUAGES.items()
            ],
            "required": REQUIRED_RPM,
            "client_programs": CLIENT_PROGRAMS,
            "alternatives": ALTERNATIVES,
            "base": f"/usr/pgsql-{self.major}",
            "date": time.strftime("%a %b %d %Y", time.gmtime(self.epoch)),
            "third_party": notices.text(),
            "licenses": terms.licenses(notices.text()),
        }


# ---- what the templates are given


def facts(tree: PatchedTree, builder: str) -> Facts:
    """The facts of a patched tree. Raises PackageError where the tree lacks one."""
    origin = tree.source
    epoch = making.epoch(tree)
    plain = making.sortable(origin.version)
    snapshot = making.snapshot(origin, epoch)
    # The revision last: packaged again is less than a later ptrack or minor. A snapshot's day is a
    # number above any revision of the release that it comes after, and above any system's tag.
    again = f".{revision}" if (revision := making.revision()) > 1 else ""
    return Facts(
        major=origin.major.number,
        version=origin.version,
        rpm_version=plain + (f"^git{snapshot}" if snapshot else ""),
        release=f"1ptrack{__version__}{again}",
        extension_release=f"1.pg{plain}" + (f".{snapshot}" if snapshot else "") + again,
        project=__version__,
        abi=making.abi(tree),
        cflags=origin.major.cflags,
        builder=builder,
        maintainer=making.maintainer(),
        epoch=epoch,
    )


def render(folder: str, known: Facts, templates: Path | None = None) -> dict[str, str]:
    """The spec and its sources by name. folder is `server` or `extension`.

    NN in a template's name becomes the major. Raises PackageError with the template's name and
    line.
    """
    templates = templates or TEMPLATES
    made = {}
    for template in sorted((templates / folder).glob("*.j2")):
        name = template.name.removesuffix(".j2").replace("NN", str(known.major))
        made[name] = making.rendered(template, known.context(), "rpm.Facts")
    if not any(name.endswith(".spec") for name in made):
        what = f"there is no template of a spec in {templates / folder}"
        raise PackageError(what, hint="git checkout -- packaging")
    return made


# ---- the machine


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """Where packages are built.

    without: features that are left out; builders: versions of what is built with, by the names of
    packages.
    """

    system: System
    native: bool
    builder: str
    without: tuple[str, ...]
    builders: dict[str, str]
    macros: str


def this_system(where: Place = HERE) -> System:
    """The system that packages are made for. Raises HostError where rpmbuild cannot be had."""
    kind = where.manager()
    if kind is None:
        what = f"rpms are made where there is dnf, or apt (for trying); {where.name} has neither"
        raise HostError(what, hint="run the session there, or give it an image: -- --image")
    where.ensure(["rpm-build"])
    about = where.os_release()
    architecture, dist = _evaluated("%{_target_cpu}\n%{?dist}", where)
    if kind == "apt":
        dist = making.tag(about, where)
    release, codename = making.names(about)
    return System(
        distribution=about.get("ID", "linux"),
        release=release,
        codename=codename,
        architecture=architecture,
        tag=re.sub(r"[^a-z0-9_.~]", "", dist.lower().lstrip(".")),
    )


def _evaluated(text: str, where: Place) -> list[str]:
    said = where.call(["rpm", "--eval", text], capture=True, quiet=True).stdout
    return said.removesuffix("\n").split("\n")


def _machine(major: Major, *, without: Collection[str], where: Place = HERE) -> _Machine:
    """Look at, and where that may be done, complete what the packages are built with.

    without: features that are left out. Nothing else is: HostError names all that is missing, and
    how the features that want it are left out.
    """
    system = this_system(where)
    native = where.manager() == "apt"
    where.ensure(["cc", "make"])
    known = [each for each in FEATURES if each.since <= major.number]
    wanted = [each for each in known if each.name not in without]
    required = REQUIRED_APT if native else REQUIRED_RPM
    needs = {each.name: each.apt if native else each.rpm for each in wanted}
    failed: list[CommandFailed] = []
    have = _completed(required, needs, failed, native=native, where=where)
    absent = {
        feature: lacks
        for feature, packages in needs.items()
        if (lacks := [name for name in packages if name not in have])
    }
    lacking = [name for name in required if name not in have]
    lacking = [*dict.fromkeys(lacking + [name for lacks in absent.values() for name in lacks])]
    if lacking:
        what = f"{where.name} lacks {', '.join(lacking)}, which the packages are built with"
        if absent:
            words = " ".join(f"--without {feature}" for feature in absent)
            what += f"\n(what cannot be had can be left out: -- {words})"
        kind = Unobtainable if failed and all(map(unobtainable, failed)) else HostError
        raise kind(what, hint=where.remedy(lacking))
    left_out = [each.name for each in known if each.name in without]
    tools = _installed(TOOLS_APT if native else TOOLS_RPM, native=native, where=where)
    builders = dict(sorted({*have.values(), *tools.values()}))
    if native:
        builders = making.builder_debs(builders, where)
    about = where.os_release()
    builder = about.get("PRETTY_NAME") or system.name
    return _Machine(
        system=system,
        native=native,
        builder=builder,
        without=tuple(sorted(left_out)),
        builders=builders,
        macros="\n".join(_evaluated("%{optflags}\n%{?build_ldflags}\n%{?dist}", where)),
    )


def _completed(
    required: Iterable[str],
    needs: Mapping[str, Iterable[str]],
    failed: list[CommandFailed],
    *,
    native: bool,
    where: Place,
) -> dict[str, tuple[str, str]]:
    """What of these is installed, after what lacked was, where that may be done: see _installed.

    required comes first, and what cannot be had of one feature's needs keeps no other's away: what
    is missing in the end is what cannot be had. failed: where it is put what failed.
    """
    optional = [name for each in needs.values() for name in each]
    asked = [*required, *optional]
    have = _installed(asked, native=native, where=where)

    def install(names: Iterable[str]) -> bool:
        lacking = [name for name in names if name not in have]
        if not lacking:
            return True
        try:
            where.install(lacking)
        except CommandFailed as error:
            failed.append(error)
            say(f"could not install {' '.join(lacking)}: see {error.log}")
            return False
        return True

    if where.may_install() and any(name not in have for name in asked):
        if install(required) and not install(optional):
            for each in needs.values():
                install(each)
        have = _installed(asked, native=native, where=where)
    return have


def _installed(names: Iterable[str], *, native: bool, where: Place) -> dict[str, tuple[str, str]]:
    """Name and version of what is installed, by what was asked for.

    That may be a capability or a file, where rpm is asked: perl(FindBin) is of perl-FindBin.
    """
    if native:
        versions = making.installed_debs(names, where)
        return {name: (name, version) for name, version in versions.items()}
    found = {}
    for name in names:
        argv = ["rpm", "-q", "--whatprovides", "--qf", "%{NAME} %{EVR}\n", name]
        done = where.call(argv, capture=True, quiet=True, check=False)
        if done.returncode == 0:
            real, _, version = done.stdout.splitlines()[0].partition(" ")
            found[name] = (real, version)
    return found


# ---- building


@dataclass(frozen=True, kw_only=True)
class _Job(making.Job):
    """A spec with its sources.

    options: of rpmbuild; neutral: those of them that hold on any system.
    """

    files: dict[str, str]
    options: tuple[str, ...]
    neutral: tuple[str, ...]

    @property
    def spec(self) -> str:
        (name,) = (name for name in self.files if name.endswith(".spec"))
        return name


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
    major = tree.source.major
    making.abi(tree)
    machine = _machine(major, without=without, where=where)
    known = facts(tree, machine.builder)
    slot = making.slot("rpm", major)
    server = _server_job(tree, known, slot, machine, where)
    module = _extension_job(known, slot, server, machine, extension)
    make = functools.partial(_make, known)
    made_of = _made_of(tree, machine)
    return making.finished(machine.system, tree, (server, module), make, made_of)


def _made_of(tree: PatchedTree, machine: _Machine) -> dict[str, Any]:
    native = NATIVE.format(machine.builder) if machine.native else ""
    return making.made_of(tree, machine.builders, native=native, without=list(machine.without))


def _neutral(machine: _Machine) -> tuple[str, ...]:
    """The macros for all that rpm would take from clock and machine."""
    macros = [
        "use_source_date_epoch_as_buildtime 1",
        "clamp_mtime_to_source_date_epoch 1",
        "build_mtime_policy clamp_to_source_date_epoch",
        "source_date_epoch_from_changelog 0",
        "_buildhost localhost",
        "_srcdefattr (-,root,root)",  # in source packages, not who built
    ]
    if machine.native:
        macros += [
            f"dist .{machine.system.tag}",
            # what distributions of rpms have switched on
            "__arch_install_post %{_rpmconfigdir}/check-rpaths && %{_rpmconfigdir}/check-buildroot",
            "_binary_payload w7.zstdio",
            "_source_payload w7.zstdio",
        ]
    return tuple(word for macro in macros for word in ("--define", macro))


def _options(machine: _Machine) -> tuple[str, ...]:
    """Rpmbuild's switches and macros that do not depend on the place."""
    options = [f"--without={name}" for name in machine.without]
    if machine.native:
        # No rpm of the system's could meet a BuildRequires; what was asked of apt is the same.
        options += ["--nodeps", "--with=native", "--without=selftest"]
    return (*options, *_neutral(machine))


def _server_job(
    tree: PatchedTree, known: Facts, slot: str, machine: _Machine, where: Place
) -> _Job:
    files = render("server", known)
    plans = edits.load(TEMPLATES / "core", tree.source.major)
    options = _options(machine)
    key = cache.digest(
        FORMAT, "server", tree.source.digest, tree.patch_digest, edits.digest(plans),
        json.dumps(files, sort_keys=True), json.dumps(machine.builders, sort_keys=True),
        repr(options), machine.macros, machine.system.architecture, str(known.epoch),
    )  # fmt: skip
    return _Job(
        kind="rpm",
        name=known.server,
        version=f"{known.rpm_version}-{known.release}.{machine.system.tag}",
        key=key,
        architecture=machine.system.architecture,
        place=cache.directory("build", slot) / "server",
        log=cache.directory("log") / f"{slot}.log",
        where=where,
        provide=functools.partial(_server_sources, tree, known),
        files=files,
        options=options,
        neutral=_neutral(machine),
    )


def _extension_job(
    known: Facts, slot: str, server: _Job, machine: _Machine, extension: Path
) -> _Job:
    files = render("extension", known)
    parts = making.extension_parts(extension, [REPO / name for name in DOCS])
    key = cache.digest(FORMAT, "extension", server.key, json.dumps(files, sort_keys=True), *parts)
    place = cache.directory("build", slot) / "extension"
    root = place / "root"
    return _Job(
        kind="rpm",
        name=known.extension,
        version=f"{known.project}-{known.extension_release}.{machine.system.tag}",
        key=key,
        architecture=machine.system.architecture,
        place=place,
        log=cache.directory("log") / f"{slot}-extension.log",
        where=server.where,
        provide=functools.partial(_extension_sources, known, server, extension),
        files=files,
        options=(*_options(machine), "--define", f"unpacked {root}"),
        neutral=_neutral(machine),
    )


def _server_sources(tree: PatchedTree, known: Facts, place: Path) -> None:
    """The pristine source as a tarball, and two patches: the core's, and the packages' own."""
    notices.warn(tree.path)
    trees = place / "trees"
    trees.mkdir()
    pristine, patched, packaged = (trees / name for name in ("a", "b", "c"))
    source.export(tree.source, pristine)
    # Only what differs has to be there twice.
    for name in _differing(pristine, tree.path):
        _copy(tree.path / name, patched / name)
    for plan in edits.load(TEMPLATES / "core", tree.source.major):
        base = patched if (patched / plan.path).exists() else tree.path
        text = (base / plan.path).read_text(encoding="utf-8")
        where = f"PostgreSQL {tree.source.version}"
        (packaged / plan.path).parent.mkdir(parents=True, exist_ok=True)
        (packaged / plan.path).write_text(edits.perform(plan, text, where=where), encoding="utf-8")
    sources = place / "SOURCES"
    making.tarball(
        pristine, sources / f"postgresql-{known.version}.tar.gz", f"postgresql-{known.version}",
        known.epoch,
    )  # fmt: skip
    for target, old, new in (
        ("ptrack-core.patch", pristine, patched),
        ("ptrack-packaging.patch", tree.path, packaged),
    ):
        (sources / target).write_bytes(_diff(trees / "diff", old, new))
    cache.remove(trees)


def _differing(old: Path, new: Path) -> list[str]:
    """Files of new that old has not, or has otherwise."""
    found = []
    for file in sorted(new.rglob("*")):
        if file.is_dir() or file.is_symlink():
            continue
        name = file.relative_to(new).as_posix()
        if not (old / name).is_file() or (old / name).read_bytes() != file.read_bytes():
            found.append(name)
    return found


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _diff(work: Path, old: Path, new: Path) -> bytes:
    """From the files of old to all those that new has, for patch -p1."""
    for file in sorted(path for path in new.rglob("*") if path.is_file()):
        name = file.relative_to(new)
        _copy(file, work / "b" / name)
        if (old / name).is_file():
            _copy(old / name, work / "a" / name)
    (work / "a").mkdir(parents=True, exist_ok=True)
    argv = [git_program(), "diff", "--no-index", "--no-color", "--no-ext-diff", "--no-renames",
            "--full-index", "--no-prefix", "a", "b"]  # fmt: skip
    done = subprocess.run(argv, cwd=work, env=git_environment(), capture_output=True, check=False)
    if done.returncode not in {0, 1}:
        raise CommandFailed(argv, done.returncode, tail=done.stderr.decode(errors="replace"))
    cache.remove(work)
    return done.stdout


def _extension_sources(known: Facts, server: _Job, extension: Path, place: Path) -> None:
    """The extension as a tarball; the server's development packages, unpacked."""
    work = place / "tree"
    for file in making.extension_files(extension):
        _copy(file, work / file.relative_to(extension))
    for name in DOCS:
        _copy(REPO / name, work / name)
    target = place / "SOURCES" / f"ptrack-{known.project}.tar.gz"
    making.tarball(work, target, f"ptrack-{known.project}", known.epoch)
    cache.remove(work)
    root = place / "root"
    root.mkdir()
    if (user := host.server_user()) is not None:
        os.chown(root, user.uid, user.gid)
    for suffix in DEVELOPMENT:
        wanted = f"{known.server}{suffix}"
        (file,) = (
            server.final / each.file
            for each in server.packages()
            if each.name == wanted and each.architecture != "src"
        )
        unpack(file, root, server.where, user)


def unpack(
    package: Path, root: Path, where: Place = HERE, user: host.ServerUser | None = None
) -> None:
    """Put the files of a package below root. Raises CommandFailed where that cannot be."""
    script = 'rpm2cpio "$1" > .cpio && cpio -idmu --quiet --no-absolute-filenames < .cpio'
    argv = ["sh", "-c", f"{script} && rm .cpio", "sh", str(package)]
    # with a listener, what it says is in the message where it fails
    where.call(argv, cwd=root, quiet=True, user=user, on_line=lambda _line: None)


def _make(known: Facts, job: _Job) -> None:
    """Build one source package as the unprivileged user, and keep its packages under its key."""
    jit = f"--without={making.JIT}" not in job.options
    with making.building(job, llvm="the system's LLVM" if jit else "") as bench:
        for name in ("SOURCES", "SPECS", "BUILD", "BUILDROOT", "RPMS", "SRPMS"):
            (job.place / name).mkdir()
        job.provide(job.place)
        for name, text in job.files.items():
            file = job.place / ("SPECS" if name == job.spec else "SOURCES") / name
            file.write_text(text, encoding="utf-8")
            os.utime(file, (known.epoch, known.epoch))
        for file in (job.place / "SOURCES").iterdir():
            os.utime(file, (known.epoch, known.epoch))
        bench.give()
        env = _environment(job, known, bench.user)
        temporary = ["--define", f"_tmppath {job.place / making.TEMPORARY}"]
        topdir = ["--define", f"_topdir {job.place}", *temporary]
        job.where.call(
            ["rpmbuild", "-bb", *topdir, *job.options, f"SPECS/{job.spec}"],
            cwd=job.place, env=env, log=job.log, quiet=True, user=bench.user, on_line=bench.count,
        )  # fmt: skip
        # The source package holds the expanded spec: no path, and nothing of this system.
        topdir = ["--define", "_topdir .", *temporary]
        job.where.call(
            ["rpmbuild", "-bs", "--nodeps", *topdir, *job.neutral, f"SPECS/{job.spec}"],
            cwd=job.place, env=env, log=job.log, quiet=True, user=bench.user,
        )  # fmt: skip
        made = [*job.place.glob("RPMS/*/*.rpm"), *job.place.glob("SRPMS/*.rpm")]
        noted = record.written(
            job.place, name=job.name, version=job.version, architecture=job.architecture,
            where=job.where, made=made, env=env, options=job.options,
        )  # fmt: skip
        bench.keep(made, lambda file: described(file, job.where), [noted])


_QUERY: Final = (
    "%{NAME}\n%{EVR}\n%{ARCH}\n%{SIZE}\n%|SOURCEPACKAGE?{src}|\n"
    "[%{REQUIRENEVRS}, ]\n[%{PROVIDENEVRS}, ]\n[%{CONFLICTNEVRS}, ]\n"
)


def described(file: Path, where: Place = HERE) -> Package:
    """A package as its header has it; what rpm needs of itself is left out."""
    argv = ["rpm", "-qp", "--nosignature", "--qf", _QUERY, str(file)]
    rows = where.call(argv, capture=True, quiet=True).stdout.split("\n")
    name, version, architecture, size, kind, requires, provides, conflicts = rows[:8]

    def listed(text: str) -> str:
        each = [word for word in text.split(", ") if word and not word.startswith("rpmlib(")]
        return ", ".join(dict.fromkeys(each))

    return Package(
        file=file.name,
        name=name,
        version=version,
        architecture=kind or architecture,
        size=file.stat().st_size,
        installed_kb=-(-int(size) // 1024),
        sha256=sha256(file),
        depends=listed(requires),
        provides=listed(provides),
        conflicts=listed(conflicts),
    )


def _environment(job: _Job, known: Facts, user: host.ServerUser | None) -> dict[str, str]:
    """For rpmbuild: how many compilers, the source's time, and ccache."""
    compilers = ["gcc", "g++", *(["clang"] if job.where.which("clang") else [])]
    return making.environment(
        job, user, compilers,
        RPM_BUILD_NCPUS=str(host.jobs()), SOURCE_DATE_EPOCH=str(known.epoch),
    )  # fmt: skip
