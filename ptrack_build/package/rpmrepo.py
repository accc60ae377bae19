"""Rpms from a signed yum repository, chosen by dnf, into an empty root.

    dist/<system>/postgresql-NN ── verify ──▶ what went well

dnf knows two repositories: a signed one of the packages, as `repo` makes it, served on the
loopback, and one of stand-ins: a package that provides all that ours require of a distribution, a
module of a server, as EL 8 has it, and PGDG's server with contrib, of a later minor. So what names,
Requires, Provides and Conflicts come to is dnf's answer, wherever the packages were made. No script
runs, since an empty root has no shell: what they do is tried where the system is a real one (see
rpmroot). Where there is dnf5, too, another program with another way to say things, it is asked the
same.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import cache, host
from ptrack_build.errors import CommandFailed
from ptrack_build.host import check_room
from ptrack_build.package import MANIFEST, PackageError, booted, repo, signing
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

NEEDS: Final = ("createrepo", "dnf", "gpg", "rpm-build", "rpmsign")
#: From Fedora 41 on the first is a name of the second.
PROGRAMS: Final = ("dnf", "dnf5")
SYSTEM: Final = "ptrack-standin-system"

STANDINS: Final = """Name: {system}
Version: 1
Release: 1
Summary: Provides what a distribution has
License: PostgreSQL
{provides}

%description
A stand-in.

%package -n postgresql-server
Version: 10
Summary: Stands in for the one of a module

%description -n postgresql-server
A stand-in.

%files -n postgresql-server

{plain}
%files
"""
#: EL 8's dnf takes its module unasked, and hides what else provides a name of its packages.
MODULE: Final = """---
document: modulemd
version: 2
data:
  name: postgresql
  stream: "10"
  version: 1
  context: standin
  arch: {arch}
  summary: A stand-in
  description: A stand-in
  license: {{module: [MIT]}}
  dependencies: [{{requires: {{platform: [el8]}}}}]
  artifacts: {{rpms: ["postgresql-server-0:10-1.noarch"]}}
---
document: modulemd-defaults
version: 1
data: {{module: postgresql, stream: "10"}}
"""

#: PGDG's packages as far as they have to do with each other.
PLAIN: Final = """%package -n postgresql{number}{suffix}
Version: {number}.9999
Release: 1PGDG
Summary: Stands in for PGDG's
{relations}

%description -n postgresql{number}{suffix}
A stand-in.

%files -n postgresql{number}{suffix}
"""
RELATIONS: Final = {
    "-libs": (),
    "": ("-libs",),
    "-server": ("-libs", ""),
    "-contrib": ("-libs", "", "-server"),
}


def verify(dist: Path) -> tuple[str, ...]:
    """Install the packages of a directory of dist/ by dnf; a line for each thing that went well.

    For root. Raises HostError where the machine cannot do that, and PackageError, with the log, for
    what dnf does not do as it should.
    """
    said = json.loads((dist / MANIFEST).read_text(encoding="utf-8"))
    booted.check_root()
    host.ensure(NEEDS)
    size = sum(each["size"] + 2048 * each["installed_kb"] for each in said["packages"])
    check_room(
        cache.root(), size // 1_000_000 + 100, "a repository to install from, and roots for that"
    )
    major = said["major"]
    number = re.split(r"\D", said["postgresql"]["version"])[0]
    log = cache.directory("log") / f"verify-rpm-{dist.parent.name}-{major}-repo.log"
    log.unlink(missing_ok=True)
    with (
        cache.lock(f"verify rpm repo {major}", f"installs rpms of {major}"),
        step(f"{dist.parent.name} {major}: from a signed yum repository, by dnf") as shown,
    ):
        place = cache.directory("build") / f"verify-rpm-{major}-repo"
        cache.remove(place)
        place.mkdir()
        try:
            with signing.throwaway() as key:
                told = repo.trial(dist, place / "repository", key)
            arch = said["system"]["architecture"]
            _standins(place / "standins", number, arch, said["packages"], log)
            with served(place / "repository") as address:
                repos = _told(place, told.replace("URL", address))

                def root(program: str, name: str) -> _Root:
                    path = place / f"{program}-{name}"
                    return _Root(program=program, path=path, repos=repos, arch=arch, log=log)

                first, *others = programs()
                steps = _steps(number, said["packages"], functools.partial(root, first))
                for other in others:
                    _steps(number, said["packages"], functools.partial(root, other))
                    steps += (f"the same by {other}",)
        except CommandFailed as error:
            what = f"a repository of {dist} cannot be tried: {error.what}"
            raise PackageError(what, log=log, hint="read the log") from error
        finally:
            cache.remove(place)
        shown.note(f"{len(steps)} steps")
    for line in steps:
        say(f"    {line}")
    return steps


def programs() -> tuple[str, ...]:
    """Those of PROGRAMS that are here; one by two names counts once."""
    paths = {name: shutil.which(name) for name in PROGRAMS}
    found = {Path(path).resolve(): name for name, path in reversed(paths.items()) if path}
    return tuple(name for name in PROGRAMS if name in found.values())


def _standins(
    place: Path, number: str, arch: str, packages: Iterable[Mapping[str, str]], log: Path
) -> None:
    """Make the repository of what is not ours."""
    wanted = capabilities(packages)
    plain = [
        PLAIN.format(
            number=number,
            suffix=suffix,
            relations="\n".join(
                f"Requires: postgresql{number}{each} = %{{version}}-%{{release}}" for each in needs
            ),
        )
        for suffix, needs in RELATIONS.items()
    ]
    text = STANDINS.format(
        system=SYSTEM,
        provides="\n".join(f"Provides: {each}" for each in wanted),
        plain="\n".join(plain),
    )
    place.mkdir()
    spec = place / "standins.spec"
    spec.write_text(text, encoding="utf-8")
    # of every architecture: they have no files
    macros = [f"_topdir {place}/top", f"_rpmdir {place}", "debug_package %{nil}"]
    defined = [word for macro in macros for word in ("--define", macro)]
    argv = ["rpmbuild", "-bb", "--target=noarch", *defined, str(spec)]
    call(argv, log=log, quiet=True)
    call(["createrepo_c", "--quiet", str(place)], log=log, quiet=True)
    module = place / "modules.yaml"
    module.write_text(MODULE.format(arch=arch), encoding="utf-8")
    argv = ["modifyrepo_c", "--mdtype=modules", str(module), str(place / "repodata")]
    call(argv, log=log, quiet=True)


def capabilities(packages: Iterable[Mapping[str, str]]) -> list[str]:
    """What packages require that none of them provides, as a package provides it."""
    there = [each for each in packages if each["architecture"] != "src"]
    ours = {word.split(" ")[0] for each in there for word in each["provides"].split(", ")}
    needed = [word for each in there for word in each["depends"].split(", ") if word]
    # `a >= 1` is met by `a = 1`; in brackets rpm has conditions, not names
    return sorted(
        {
            re.sub(r" (>=|<=|=) ", " = ", word)
            for word in needed
            if not word.startswith("(") and word.split(" ")[0] not in ours
        }
    )


@contextlib.contextmanager
def served(place: Path) -> Iterator[str]:
    """The address on the loopback where a directory is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _told(place: Path, ours: str) -> Path:
    """The directory that dnf reads, with both repositories."""
    folder = place / "repos"
    folder.mkdir()
    (folder / "ptrack.repo").write_text(ours, encoding="utf-8")
    standins = f"[standins]\nname=stand-ins\nbaseurl=file://{place}/standins\ngpgcheck=0\n"
    (folder / "standins.repo").write_text(standins, encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True)
class _Root:
    """An empty directory for dnf to install in.

    program: of PROGRAMS; repos: what it is told of; arch: rpm's word.
    """

    program: str
    path: Path
    repos: Path
    arch: str
    log: Path

    def dnf(self, *words: str, refused: bool = False) -> str:
        """What dnf says. Raises PackageError unless it does it, or refuses it, as expected."""
        state = self.path.with_name(f"{self.path.name}-dnf")
        (state / "log").mkdir(parents=True, exist_ok=True)
        settings = {
            "plugins": "0",  # --noplugins is only dnf's word
            "reposdir": self.repos,
            "cachedir": state / "cache",
            "persistdir": state / "persist",
            "logdir": state / "log",
            "tsflags": "noscripts,notriggers",
            "module_platform_id": "platform:el8",
        }
        argv = [self.program, "-y", f"--installroot={self.path}", f"--forcearch={self.arch}",
                "--releasever=1"]  # fmt: skip
        argv += [f"--setopt={name}={value}" for name, value in settings.items()]
        done = call(
            [*argv, *words], log=self.log, capture=True, quiet=True, check=False,
            env={"LC_ALL": "C.UTF-8", "no_proxy": "127.0.0.1"},
        )  # fmt: skip
        if refused is (done.returncode == 0):
            last = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-8:])
            does = "does not refuse" if refused else "refuses"
            what = f"{self.program} {does}: {' '.join(words)}\n{last}"
            raise PackageError(what, log=self.log, hint="see what the packages say of each other")
        return done.stdout

    def has(self, *names: str) -> None:
        """Raise PackageError unless just these are there."""
        argv = ["rpm", "--root", str(self.path), "-qa", "--qf", "%{NAME}\n"]
        there = {*call(argv, capture=True, quiet=True).stdout.split()} - {SYSTEM, "gpg-pubkey"}
        if there != {*names}:
            found, wanted = (" ".join(sorted(each)) for each in (there, {*names}))
            what = f"{self.program} installed {found}, and not {wanted}"
            raise PackageError(what, log=self.log, hint="see what they require and provide")


def _steps(
    number: str, packages: Iterable[Mapping[str, str]], root: Callable[[str], _Root]
) -> tuple[str, ...]:
    ours, plain, module = f"postgresql{number}pt", f"postgresql{number}", f"ptrack_{number}"
    every = {
        each["name"]
        for each in packages
        if each["architecture"] != "src" and not re.search("-debug(info|source)$", each["name"])
    }
    with_server = [ours, f"{ours}-libs", f"{ours}-server", module]
    with_server += {f"{ours}-native"} & every

    fresh = root("fresh")
    fresh.dnf("install", module)
    fresh.has(*with_server)
    fresh.dnf("install", *sorted(every))
    fresh.has(*every)
    fresh.dnf("upgrade")
    fresh.has(*every)
    if "conflicts with" not in (said := fresh.dnf("install", f"{plain}-server", refused=True)):
        what = f"{fresh.program} does not say that {plain}-server conflicts: {said.strip()[-300:]}"
        raise PackageError(what, log=fresh.log, hint="see Conflicts of the server's package")

    other = root("other")
    other.dnf("install", f"{plain}-server", f"{plain}-contrib")
    theirs = [plain, *(f"{plain}-{name}" for name in ("libs", "server", "contrib"))]
    other.has(*theirs)
    wanted = [f"{ours}-server", f"{ours}-contrib", module]
    other.dnf("install", "--allowerasing", *wanted)
    other.has(*with_server, f"{ours}-contrib")
    return (
        f"{module} brings our server, by name, out of a signed repository",
        f"all {len(every)} packages go together, beside a distribution's module",
        "a newer server of PGDG's takes the place of ours in no upgrade, and is refused beside it",
        "ours take the place of PGDG's, one for each, where that is asked for",
    )
