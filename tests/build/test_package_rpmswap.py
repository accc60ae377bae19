"""Taking turns with PGDG's packages: rpm runs our scripts, and such as theirs, in its own order.

The packages have our spec's scripts and a few files of a word, below a directory of the test, where
update-alternatives is the system's and systemctl a script that remembers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pytest

from ptrack_build import matrix
from ptrack_build.package import rpm
from tests.build.test_package_rpm import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN = Path("/etc/debian_version").exists()

needed = pytest.mark.skipif(
    not (shutil.which("rpmbuild") and shutil.which("update-alternatives", path=PATH)),
    reason="needs rpmbuild and update-alternatives",
)

PROGRAMS = ("psql", "pg_dump")
#: One that only other majors have.
ABSENT = "pg_walsummary"
#: Of all that a package can have below the prefix, what the scripts look at.
FILES = {
    "": tuple(f"pgsql-17/{name}" for program in PROGRAMS
              for name in (f"bin/{program}", f"share/man/man1/{program}.1")),
    "libs": ("pgsql-17/share/postgresql-17-libs.conf",),
    "server": ("lib/systemd/system/postgresql-17.service",),
}  # fmt: skip

#: What PGDG's scripts do, and packages that make `rpm -U` erase what they stand in the place of, as
#: dnf does in one transaction when it is asked to swap.
PLAIN = """Name: postgresql17
Version: 17.3
Release: 1PGDG
Summary: A
License: A
BuildArch: noarch

%description
A.
{% for name in ("libs", "server") %}
%package {{ name }}
Summary: A
%description {{ name }}
A.
{% endfor %}
{% for name in ("postgresql17", "postgresql17pt") %}
%package -n instead-of-{{ name }}
Summary: A
Obsoletes: {{ name }}
Obsoletes: {{ name }}-libs
Obsoletes: {{ name }}-server
%description -n instead-of-{{ name }}
A.
{% endfor %}

%post
for program in {{ programs | join(" ") }}; do
    update-alternatives --install %{_bindir}/$program pgsql-$program \\
        %{_prefix}/pgsql-17/bin/$program 1700
    update-alternatives --install %{_mandir}/man1/$program.1 pgsql-${program}man \\
        %{_prefix}/pgsql-17/share/man/man1/$program.1 1700
done

%postun
if [ "$1" -eq 0 ]; then
    for program in {{ programs | join(" ") }}; do
        update-alternatives --remove pgsql-$program %{_prefix}/pgsql-17/bin/$program
        update-alternatives --remove pgsql-${program}man \\
            %{_prefix}/pgsql-17/share/man/man1/$program.1
    done
fi

%post libs
update-alternatives --install %{_sysconfdir}/ld.so.conf.d/postgresql-pgdg-libs.conf pgsql-ld-conf \\
    %{_prefix}/pgsql-17/share/postgresql-17-libs.conf 1700
ldconfig

%postun libs
if [ "$1" -eq 0 ]; then
    update-alternatives --remove pgsql-ld-conf %{_prefix}/pgsql-17/share/postgresql-17-libs.conf
    ldconfig
fi

%post server
if [ $1 -eq 1 ]; then
    systemctl daemon-reload
    systemctl --no-reload preset postgresql-17.service
fi
echo "PGDATA=theirs" >%{_localstatedir}/lib/pgsql/.bash_profile

%preun server
if [ $1 -eq 0 ]; then
    systemctl --no-reload disable postgresql-17.service
    systemctl stop postgresql-17.service
fi

%postun server
systemctl daemon-reload
if [ $1 -ge 1 ]; then
    systemctl try-restart postgresql-17.service
fi
"""

#: enabled: a file; loaded: the unit as it is known; active: the unit as it was started; recovering,
#: slow, broken: files that keep it from being ready, for a while or for good.
SYSTEMCTL = r"""#!/bin/sh
echo "$*" >>{place}/calls
unit={place}/usr/lib/systemd/system/postgresql-17.service
now=no
for word; do
    shift
    case $word in
        --now) now=yes ;;
        -*) ;;
        *) set -- "$@" "$word" ;;
    esac
done
cd {place}/state || exit 1
case $1 in
    daemon-reload) cp "$unit" loaded 2>/dev/null || rm -f loaded; exit 0 ;;
esac
[ "$2" = postgresql-17.service ] || exit 1
case $1 in
    is-enabled) [ -e enabled ] ;;
    is-active)
        [ -e active ] || { echo inactive; exit 3; }
        [ ! -e recovering ] || { echo activating; exit 3; }
        echo active
        ;;
    enable) [ -e "$unit" ] && touch enabled ;;
    # as most distributions of rpms have it
    preset) rm -f enabled ;;
    disable) rm -f enabled; [ $now = no ] || rm -f active ;;
    stop) rm -f active ;;
    start | restart)
        rm -f active
        [ ! -e broken ] && cp loaded active || exit 1
        [ ! -e slow ] || sleep 60
        ;;
    try-restart)
        [ ! -e active ] || cp loaded active
        [ ! -e slow ] || sleep 60
        ;;
    *) exit 1 ;;
esac
"""


@dataclass(frozen=True, kw_only=True)
class System:
    """A directory for packages to be installed in. packages: by the names of files."""

    place: Path
    packages: dict[str, Path]

    @property
    def tools(self) -> Path:
        """What scripts find first."""
        return self.place / "tools"

    @property
    def state(self) -> Path:
        """Of the service."""
        return self.place / "state"

    def rpm(self, *words: str) -> None:
        """Run rpm; scripts may say nothing that is no good news."""
        assert self.told(*words) == ""

    def told(self, *words: str) -> str:
        """What rpm and the scripts say; no transaction fails for them."""
        argv = ["rpm", "--dbpath", str(self.place / "db"), "--nodeps", "--noplugins"]
        if DEBIAN:
            argv.append("--force-debian")
        argv += ["--define", f"_install_script_path {self.tools}:{PATH}"]
        done = subprocess.run([*argv, *words], check=False, capture_output=True, text=True)
        assert done.returncode == 0
        return done.stderr

    def files(self, *patterns: str) -> list[str]:
        """The packages whose names match."""
        names = [name for name in self.packages if any(re.match(each, name) for each in patterns)]
        return [str(self.packages[name]) for name in names]

    def install(self, *patterns: str) -> None:
        """Install or upgrade the packages whose names match."""
        self.rpm("-U", *self.files(*patterns))

    def systemctl(self, *words: str) -> None:
        """As an administrator does."""
        subprocess.run([str(self.tools / "systemctl"), *words], check=True)

    def serve(self, pattern: str) -> None:
        """Install these, and have their service enabled and running."""
        self.install(pattern)
        for command in ("enable", "start"):
            self.systemctl(command, "postgresql-17.service")

    def links(self) -> dict[str, str]:
        """Alternatives' links, and what is behind them."""
        below = ("usr/bin", "usr/share/man/man1", "etc/ld.so.conf.d")
        found = [path for each in below for path in (self.place / each).glob("*")]
        assert all(path.is_symlink() for path in found)
        return {path.name: str(path.resolve().relative_to(self.place)) for path in found}

    @property
    def profile(self) -> Path:
        """Of postgres' shells."""
        return self.place / "var" / "lib" / "pgsql" / ".bash_profile"

    @property
    def enabled(self) -> bool:
        """Whether the service is."""
        return (self.state / "enabled").exists()

    def calls(self) -> str:
        """Of systemctl, each a line."""
        return (self.place / "calls").read_text()

    def runs(self) -> str:
        """Whose server runs."""
        active = self.state / "active"
        return active.read_text() if active.exists() else "nobody's"

    def check_complete(self, whose: str) -> None:
        """All links are there, and the service as it was, on that server."""
        assert self.links() == {
            "psql": "usr/pgsql-17/bin/psql",
            "pg_dump": "usr/pgsql-17/bin/pg_dump",
            "psql.1": "usr/pgsql-17/share/man/man1/psql.1",
            "pg_dump.1": "usr/pgsql-17/share/man/man1/pg_dump.1",
            "postgresql-pgdg-libs.conf": "usr/pgsql-17/share/postgresql-17-libs.conf",
        }
        assert self.enabled
        assert self.runs() == whose
        assert (self.place / "ldconfig").exists()
        self.check_nothing_noted()

    def check_nothing_noted(self) -> None:
        """No file of the transaction is left."""
        assert {path.name for path in (self.place / "run").iterdir()} == {"postgresql", "systemd"}


#: For a server that recovers, in seconds.
PATIENCE = 5

#: What is in the units, and in all other files.
OURS, THEIRS = "with ptrack\n", "plain\n"


def lists(unit: str) -> str:
    """The end of a spec: files that hold the same as the unit does."""
    made, listed = ["%install"], []
    for name, files in FILES.items():
        listed.append(f"%files {name}")
        for file in files:
            target = "%{buildroot}%{_prefix}/" + file
            made += [f"mkdir -p {target.rpartition('/')[0]}", f"echo '{unit.strip()}' >{target}"]
            listed.append("%{_prefix}/" + file)
    return "\n".join([*made, "", *listed, ""])


def specs() -> dict[str, str]:
    """Ours in two versions, and the plain one's."""
    (major,) = (each for each in matrix.load().majors if each.number == 17)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rpm, "ALTERNATIVES", (*PROGRAMS, ABSENT))
        made = rpm.render("server", facts_of(major))
    text = made["postgresql17pt.spec"]
    assert "ptrack" in made["postgresql-17.service"]  # by which %preun knows its own
    head = re.sub(r"^(Source|Patch)\d+:.*\n", "", text.partition("%prep\n")[0], flags=re.MULTILINE)
    scripts = text[text.index("# ---- scripts") : text.index("# ---- files")]
    ours = head + scripts + lists(OURS)
    plain = jinja2.Template(f"{PLAIN}\n").render(programs=PROGRAMS) + lists(THEIRS)
    standins = "".join(
        f"%files -n instead-of-{name}\n" for name in ("postgresql17", "postgresql17pt")
    )
    return {
        "ours": ours,
        "newer": re.sub(r"^Release:.*$", "Release: 2", ours, flags=re.MULTILINE),
        "plain": plain + standins,
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> System:
    """The packages, for a directory that has nothing yet."""
    folder = tmp_path_factory.mktemp("swap")
    place = folder / "place"
    packages = {}
    for name, text in specs().items():
        spec = folder / f"{name}.spec"
        spec.write_text(text)
        macros = {
            "_topdir": folder / "top", "_prefix": place / "usr", "_exec_prefix": place / "usr",
            "_bindir": place / "usr/bin", "_mandir": place / "usr/share/man",
            "_sysconfdir": place / "etc", "_localstatedir": place / "var", "_rundir": place / "run",
            "_unitdir": place / "usr/lib/systemd/system",
            "debug_package": "%{nil}", "__os_install_post": "%{nil}", "patience": PATIENCE,
        }  # fmt: skip
        defined = [word for key, value in macros.items() for word in ("--define", f"{key} {value}")]
        subprocess.run(
            ["rpmbuild", "-bb", "--nodeps", *defined, str(spec)],
            check=True, capture_output=True, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
    for file in (folder / "top" / "RPMS").rglob("*.rpm"):
        packages[file.name] = file
    return System(place=place, packages=packages)


@pytest.fixture
def system(built: System) -> Iterator[System]:
    """With nothing installed."""
    place = built.place
    for name in ("tools", "state", "db", "usr/bin", "usr/share/man/man1", "etc/alternatives",
                 "etc/ld.so.conf.d", "var/alternatives", "var/lib/pgsql", "run/systemd/system",
                 "run/postgresql"):  # fmt: skip
        (place / name).mkdir(parents=True)
    real = shutil.which("update-alternatives", path=PATH)
    log = "--log /dev/null" if DEBIAN else ""
    tools = {
        "systemctl": SYSTEMCTL.replace("{place}", str(place)),
        "update-alternatives": (
            f"#!/bin/sh\nexec {real} --altdir {place}/etc/alternatives"
            f' --admindir {place}/var/alternatives {log} "$@"\n'
        ),
        "ldconfig": f"#!/bin/sh\ncp {place}/etc/ld.so.conf.d/*.conf {place}/ldconfig 2>/dev/null"
        f" || rm -f {place}/ldconfig\n",
        **dict.fromkeys(("getent", "systemd-sysusers", "systemd-tmpfiles"), "#!/bin/sh\n"),
        "runuser": '#!/bin/sh\n[ "$1 $2 $3" = "-u postgres --" ] && shift 3 && exec "$@"\n',
    }
    for name, text in tools.items():
        (built.tools / name).write_text(text)
        (built.tools / name).chmod(0o755)
    yield built
    shutil.rmtree(place)


OURS_ALL, PLAIN_ALL = r"postgresql17pt-.*-1ptrack", r"postgresql17-"


@needed
@pytest.mark.parametrize("recovers", [False, True])
def test_from_the_plain_server_and_back(system: System, *, recovers: bool) -> None:
    """Also one in recovery: it is being activated that long, and would be left stopped for good."""
    system.serve(PLAIN_ALL)
    if recovers:
        (system.state / "recovering").touch()
    else:
        system.check_complete(THEIRS)
    system.install(OURS_ALL, "instead-of-postgresql17-")
    system.check_complete(OURS)
    system.rpm("-e", "instead-of-postgresql17")
    system.install(PLAIN_ALL, "instead-of-postgresql17pt-")
    system.check_complete(THEIRS)


@needed
def test_what_to_install_is_said_where_the_other_server_does_not_start(system: System) -> None:
    system.serve(PLAIN_ALL)
    (system.state / "broken").touch()
    said = system.told("-U", *system.files(OURS_ALL, "instead-of-postgresql17-"))
    (line,) = said.splitlines()
    assert "postgresql-17 does not start" in line
    assert "dnf install postgresql17pt-contrib" in line
    assert "systemctl start postgresql-17" in line
    assert (system.runs(), system.enabled) == ("nobody's", True)
    (system.state / "broken").unlink()
    system.systemctl("start", "postgresql-17.service")
    (system.state / "broken").touch()
    system.rpm("-e", "instead-of-postgresql17")
    said = system.told("-U", *system.files(PLAIN_ALL, "instead-of-postgresql17pt-"))
    (line,) = said.splitlines()
    assert "take ptrack out of shared_preload_libraries" in line
    assert "dnf install postgresql17-contrib" in line
    system.check_nothing_noted()


@needed
def test_nobody_waits_for_a_long_recovery(system: System) -> None:
    """With rpm's lock held; the server goes on starting, and that is said."""
    system.serve(PLAIN_ALL)
    (system.state / "slow").touch()
    said = "postgresql-17 is not up yet, as in a long recovery: systemctl status postgresql-17\n"
    assert system.told("-U", *system.files(OURS_ALL, "instead-of-postgresql17-")) == said
    system.check_complete(OURS)
    # an upgrade restarts it
    assert system.told("-U", *system.files(r"postgresql17pt-.*-2\.")) == said
    system.check_complete(OURS)
    system.rpm("-e", "instead-of-postgresql17")
    assert system.told("-U", *system.files(PLAIN_ALL, "instead-of-postgresql17pt-")) == said
    system.check_complete(THEIRS)


@needed
def test_shells_of_postgres_find_the_cluster(system: System) -> None:
    """As they do with PGDG's server, whose scripts write a file of that name, too."""
    system.install(OURS_ALL)
    own = system.profile.parent / ".pgsql_profile"
    own.write_text("MORE=more\n")
    argv = ["bash", "-c", f'. {system.profile}; echo "$PGDATA $MORE"']
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert told == f"{system.profile.parent}/17/data more\n"
    # what the administrator has made of it is kept
    system.profile.write_text(f"{system.profile.read_text()}alias l=ls\n")
    system.install(r"postgresql17pt-.*-2\.")
    system.rpm("-e", "postgresql17pt", "postgresql17pt-libs", "postgresql17pt-server")
    assert "alias" in system.profile.read_text()
    # and so is what the other one's scripts have
    system.install(PLAIN_ALL)
    assert system.profile.read_text() == "PGDATA=theirs\n"
    system.install(OURS_ALL, "instead-of-postgresql17-")
    assert system.profile.read_text() == "PGDATA=theirs\n"
    system.profile.unlink()
    system.rpm("-e", "postgresql17pt", "postgresql17pt-libs", "postgresql17pt-server")
    system.rpm("-e", "instead-of-postgresql17")
    system.install(OURS_ALL)
    here = system.profile.read_text()
    assert "17/data" in here
    # another major's is not kept, unless it is edited, and not removed
    other = here.replace("17/data", "16/data")
    system.profile.write_text(other)
    system.rpm("-e", "postgresql17pt", "postgresql17pt-libs", "postgresql17pt-server")
    assert system.profile.read_text() == other
    system.install(OURS_ALL)
    assert system.profile.read_text() == here
    system.install(PLAIN_ALL, "instead-of-postgresql17pt-")
    assert system.profile.read_text() == "PGDATA=theirs\n"


@needed
def test_a_swap_starts_no_server_that_did_not_run(system: System) -> None:
    system.install(PLAIN_ALL)
    system.install(OURS_ALL, "instead-of-postgresql17-")
    assert "psql" in system.links()
    assert (system.runs(), system.enabled) == ("nobody's", False)
    system.systemctl("enable", "postgresql-17.service")
    system.rpm("-e", "instead-of-postgresql17")
    system.install(PLAIN_ALL, "instead-of-postgresql17pt-")
    assert (system.runs(), system.enabled) == ("nobody's", True)
    system.check_nothing_noted()


@needed
def test_an_upgrade_goes_on_as_it_was(system: System) -> None:
    system.install(OURS_ALL)
    system.check_nothing_noted()
    for command in ("enable", "daemon-reload", "start"):
        system.systemctl(command, "postgresql-17.service")
    before = system.calls()
    system.install(r"postgresql17pt-.*-2\.")
    system.check_complete(OURS)
    assert "try-restart postgresql-17.service" in system.calls().removeprefix(before)
    assert "disable" not in system.calls()


@needed
def test_what_an_unfinished_transaction_noted_is_not_done_by_a_later_one(system: System) -> None:
    """The administrator may have stopped the service since."""
    system.install(OURS_ALL)
    (system.place / "run" / "postgresql-17.noted").write_text("enabled\nactive\n")
    system.install(r"postgresql17pt-.*-2\.")
    assert (system.runs(), system.enabled) == ("nobody's", False)
    system.check_nothing_noted()


@needed
def test_erased_nothing_is_left(system: System) -> None:
    system.install(OURS_ALL)
    for command in ("enable", "daemon-reload", "start"):
        system.systemctl(command, "postgresql-17.service")
    assert system.runs() == OURS
    system.rpm("-e", "postgresql17pt", "postgresql17pt-libs", "postgresql17pt-server")
    assert system.links() == {}
    for name in ("etc/alternatives", "var/alternatives"):
        assert not list((system.place / name).iterdir())
    assert (system.runs(), system.enabled) == ("nobody's", False)
    assert not (system.place / "ldconfig").exists()
    assert not (system.state / "loaded").exists()
    assert not list(system.profile.parent.iterdir())
    system.check_nothing_noted()
