"""RPM packages: what the templates give for each major, the scripts, and what a machine lacks.

What needs a real build (installing, initdb, upgrades, erasing) is verified on the packages
themselves.
"""

from __future__ import annotations

import dataclasses
import grp
import itertools
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pytest

from ptrack_build import REPO, host, matrix, run
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.package import PackageError, Release, making, notices, publish, rpm
from ptrack_build.package.place import HERE, Native, Unobtainable
from ptrack_build.patch import edits
from tests.build import _packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ptrack_build.run import How

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runuser"), reason="needs root and runuser"
)

MAJORS = matrix.load().majors
BOOKWORM = _packages.system("x86_64")


def facts_of(major: matrix.Major) -> rpm.Facts:
    """Made-up facts of a major."""
    number = major.number
    return rpm.Facts(
        major=number,
        version=f"{number}.3",
        rpm_version=f"{number}.3",
        release="1ptrack3.0.0",
        extension_release=f"1.pg{number}.3",
        project="3.0.0",
        abi=7,
        cflags=major.cflags,
        builder="Debian GNU/Linux 12 (bookworm)",
        maintainer="A B <a@b.example>",
        epoch=1_700_000_000,
    )


def written(folder: str, major: matrix.Major, place: Path) -> Path:
    """The spec of a major, in a directory with its sources."""
    place.mkdir(parents=True, exist_ok=True)
    for name, text in rpm.render(folder, facts_of(major)).items():
        (place / name).write_text(text)
    (spec,) = place.glob("*.spec")
    return spec


def query(spec: Path, form: str, *options: str) -> list[str]:
    """What rpmspec says of each package of a spec."""
    argv = ["rpmspec", "-q", *options, "--qf", form, str(spec)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.splitlines()


# ---- versions


@_packages.with_rpmbuild
def test_versions_sort_as_they_come_out() -> None:
    shown = [making.sortable(version) for version in _packages.RISING]
    shown += [
        f"{shown[-1]}^git{moment}"
        for moment in (
            "20240131.235958.fedcba9",
            "20240131.235959.abcdef0",
            "20240201.000000.0123456",
        )
    ]
    in_order(shown)
    in_order(f"1ptrack3.0.0.{tag}" for tag in ("deb13", "deb14~sid", "deb14"))  # releases


@_packages.with_rpmbuild
@pytest.mark.parametrize("tag", ["fc42", "el9", "deb12", "ubuntu24.04"])
def test_what_is_packaged_again_comes_before_a_later_ptrack_minor_or_snapshot(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = _packages.patched(tmp_path)

    def releases(version: str, ptrack: str, revision: int, provider: str = "distro") -> list[str]:
        """Those of server and extension."""
        monkeypatch.setattr(rpm, "__version__", ptrack)
        monkeypatch.setenv("PTRACK_REVISION", str(revision))
        origin = dataclasses.replace(tree.source, version=version, provider=provider)
        known = rpm.facts(dataclasses.replace(tree, source=origin), "Debian")
        return [f"{known.release}.{tag}", f"{known.extension_release}.{tag}"]

    rising = [("3.0.0", 1), ("3.0.0", 2), ("3.0.0", 10), ("3.0.1", 1), ("3.1.0", 1), ("3.1.0", 2)]
    in_order(releases("17.11", *each)[0] for each in rising)
    early = [
        ("17beta1", 1),
        ("17beta1", 2),
        ("17rc1", 1),
        ("17.0", 1),
        ("17.11", 1),
        ("17.11", 9999),
    ]
    in_order(
        [
            *(releases(version, "3.0.0", again)[1] for version, again in early),
            *(releases("17.11", "3.0.0", again, "git")[1] for again in (1, 2)),
            *(releases("17.12", "3.0.0", again)[1] for again in (1, 2)),
        ]
    )


def in_order(versions: Iterable[str]) -> None:
    """Each older than the next, as rpm sees it."""
    for older, newer in itertools.pairwise(versions):
        asked = f"%{{lua: print(rpm.vercmp('{older}', '{newer}'))}}"
        said = subprocess.run(
            ["rpm", "--eval", asked], check=True, capture_output=True, text=True
        ).stdout
        assert said.strip() == "-1", f"{older} is not older than {newer}"


# ---- templates


@_packages.with_rpmbuild
@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
@pytest.mark.parametrize("native", [False, True], ids=["distribution", "native"])
def test_packages_stand_in_for_pgdg_s(major: matrix.Major, native: bool, tmp_path: Path) -> None:
    number = major.number
    options = ["--with", "native"] if native else []
    spec = written("server", major, tmp_path)
    form = "%{NAME}|[%{PROVIDENEVRS},]|[%{CONFLICTNEVRS},]|[%{REQUIRENEVRS},]|%{EPOCH}"
    form += "|[%{OBSOLETENEVRS},]\n"
    ours = f"postgresql{number}pt"
    found = {}
    for row in query(spec, form, *options):
        name, *relations, epoch, obsoletes = row.split("|")
        assert epoch == "(none)"
        assert obsoletes == ""
        found[name] = [relation.split(",") for relation in relations]
    native_only = {f"{ours}-native", f"{ours}-debuginfo"}
    assert (native_only <= set(found)) == native
    evr = f"= {number}.3-1ptrack"
    for name in set(found) - native_only:
        plain = name.replace("pt", "", 1)
        provides, conflicts, requires = found[name]
        assert any(each.startswith(f"{plain} {evr}") for each in provides), name
        # what any of PGDG's packages provides besides, for whichever major
        unnumbered = name.replace(f"{number}pt", "", 1)
        if "-libs" in name:
            assert f"{unnumbered} = {number}" in provides
        else:
            assert any(each.startswith(f"{unnumbered} {evr}") for each in provides), name
        also = {"-libs": "-ecpg-libs", "-devel": "-ecpg-devel"}.get(name.removeprefix(ours))
        if also and number >= 18:  # packages of their own there
            assert any(each.startswith(f"postgresql{number}{also} {evr}") for each in provides)
            conflicts.remove(f"postgresql{number}{also}")
        assert conflicts[:-1] == [plain], name
        if native:  # of the system nothing is known to rpm but the shell
            others = {each.split(" ")[0].split("(")[0] for each in requires if each}
            assert {each for each in others if not each.startswith(ours)} <= {"rpmlib", "/bin/sh"}
    server = found[f"{ours}-server"][0]
    assert {f"postgresql{number}-ptrack-abi = 7", "user(postgres)", "group(postgres)"} <= {*server}
    assert f"libpq5 = {number}.3" in found[f"{ours}-libs"][0]
    suffixes = {"-libs", "-server", "-contrib", "-devel", "-plperl", "-plpython3", "-pltcl",
                "-llvmjit", ""}  # fmt: skip
    assert {f"{ours}{suffix}" for suffix in suffixes} <= set(found)
    assert (f"{ours}-libs-oauth" in found) == (number >= 18)


@_packages.with_rpmbuild
@pytest.mark.parametrize(
    ("options", "needed"),
    [((), True), (("--without", "icu"), False), (("--with", "native"), False)],
)
def test_headers_that_the_server_s_include_come_with_them(
    options: tuple[str, ...], needed: bool, tmp_path: Path
) -> None:
    """As with PGDG's: an extension that includes utils/pg_locale.h needs unicode/ucol.h."""
    spec = written("server", MAJORS[5], tmp_path)
    rows = query(spec, "%{NAME}|[%{REQUIRENEVRS},]\n", *options)
    requires = dict(row.split("|") for row in rows)[f"postgresql{MAJORS[5].number}pt-devel"]
    assert ("libicu-devel" in requires.split(",")) is needed


@_packages.with_rpmbuild
@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_the_extension_needs_the_hooks_it_was_compiled_with(
    major: matrix.Major, tmp_path: Path
) -> None:
    number = major.number
    spec = written("extension", major, tmp_path)
    rows = query(spec, "%{NAME}|[%{REQUIRENEVRS},]\n")
    requires = dict(row.split("|") for row in rows)[f"ptrack_{number}"].split(",")
    assert f"postgresql{number}-ptrack-abi = 7" in requires
    assert f"postgresql{number}-server >= {number}.3" in requires
    needed = subprocess.run(
        ["rpmspec", "-q", "--buildrequires", str(spec)], check=True, capture_output=True, text=True
    ).stdout
    assert f"postgresql{number}-ptrack-abi = 7" in needed
    unpacked = ["--define", "unpacked /somewhere"]
    assert "abi" not in "".join(query(spec, "[%{REQUIRENEVRS},]", "--srpm", *unpacked))


@_packages.with_rpmbuild
def test_the_documented_line_installs_what_a_server_needs_and_no_more(tmp_path: Path) -> None:
    place = tmp_path / "dist"
    place.mkdir()
    for folder in ("server", "extension"):
        spec = written(folder, MAJORS[5], tmp_path / folder)
        version = "%{VERSION}-%{RELEASE}"
        names = query(spec, f"%{{NAME}}|{version}.{os.uname().machine}.rpm\n")
        names += [name.replace("|", "-debuginfo|") for name in names]
        names += query(spec, f"%{{NAME}}|{version}.src.rpm\n", "--srpm")
        names += query(spec, f"%{{NAME}}-debugsource|{version}.{os.uname().machine}.rpm\n")
        for name in names:
            (place / name.replace("|", "-")).touch()
    page = (REPO / "docs" / "packages.md").read_text()
    (words,) = re.findall(r"^    dnf install (\./.*)$", page, re.MULTILINE)
    named = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"], cwd=place, check=True, capture_output=True,
        text=True,
    ).stdout  # fmt: skip
    found = [re.sub(r"^\./(.*?)-\d.*", r"\1", line) for line in named.splitlines()]
    ours = "postgresql17pt"
    assert found == [ours, f"{ours}-libs", f"{ours}-server", f"{ours}-contrib", "ptrack_17"]
    assert ".src." not in named


@_packages.with_rpmbuild
def test_what_is_left_out_is_in_neither_configure_nor_packages(tmp_path: Path) -> None:
    spec = written("server", MAJORS[5], tmp_path)
    options = [f"--without={name}" for name in ("pltcl", "llvmjit", "ldap")]
    argv = ["rpmspec", "-P", *options, str(spec)]
    text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert not re.search(r"--with-(tcl|llvm|ldap)\b|llvmjit|tcl-devel|openldap", text)
    assert re.search(r"--with-perl\b", text)


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_features_of_later_majors_are_not_asked_for(major: matrix.Major) -> None:
    spec = next(
        text for name, text in rpm.render("server", facts_of(major)).items() if "spec" in name
    )
    for flag, since in (("lz4", 14), ("zstd", 15), ("liburing", 18)):
        assert (f"--with-{flag}" in spec) == (major.number >= since)
    assert ("--enable-thread-safety" in spec) == (major.number < 17)


def test_all_that_takes_turns_in_usr_bin_is_the_client_s() -> None:
    assert {*rpm.ALTERNATIVES} <= {*rpm.CLIENT_PROGRAMS}
    of_17 = {"pg_combinebackup", "pg_createsubscriber", "pg_walsummary"}
    assert of_17 <= {*rpm.ALTERNATIVES}


@_packages.with_rpmbuild
def test_the_library_for_oauth_is_in_a_package_of_its_own(tmp_path: Path) -> None:
    (major,) = (each for each in MAJORS if each.number == 18)
    spec = written("server", major, tmp_path)
    text = spec.read_text()
    # before what takes all lib*.so for developers
    assert text.index("claim libs-oauth") < text.index("\nlanguages\n")
    assert "postgresql18pt-libs-oauth" not in query(spec, "%{NAME}\n", "--without=libcurl")


@pytest.mark.skipif(not shutil.which("rpmlint"), reason="needs rpmlint")
def test_rpmlint_finds_nothing(tmp_path: Path) -> None:
    specs = [written(folder, MAJORS[5], tmp_path / folder) for folder in ("server", "extension")]
    config = rpm.TEMPLATES / "rpmlint.toml"
    argv = ["rpmlint", "-c", str(config), *map(str, specs)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert not re.findall(r"^.*: [EW]: .*$", done.stdout, re.MULTILINE)
    assert "0 errors, 0 warnings" in done.stdout


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_scripts_are_shell_and_name_no_other_major(major: matrix.Major, tmp_path: Path) -> None:
    made = rpm.render("server", facts_of(major))
    number = major.number
    for name in (f"postgresql-{number}-setup", f"postgresql-{number}-check-db-dir", "claim"):
        (tmp_path / name).write_text(made[name])
        subprocess.run(["sh", "-n", str(tmp_path / name)], check=True)
    for name, text in made.items():
        named = set(re.findall(r"(?:postgresql-?|pgsql[-/])(\d+)", text + name))
        assert named <= {str(number)}, name


@pytest.mark.parametrize("terms", ["", "\nThe license.\n"])
def test_third_parties_terms_come_with_the_license(terms: str, tmp_path: Path) -> None:
    """The long ones from the source, which not each minor has."""
    made = rpm.render("server", facts_of(MAJORS[5]))
    spec, text = made["postgresql17pt.spec"], made["THIRD-PARTY"]
    assert notices.text() in text
    assert re.search(r"^Source10: +THIRD-PARTY$", spec, re.MULTILINE)
    assert {*re.findall(r"^%license .*$", spec, re.MULTILINE)} == {"%license COPYRIGHT THIRD-PARTY"}
    (tmp_path / "SOURCE10").write_text(text)
    name = "src/backend/jit/llvm/A.LICENSE"
    if terms:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(terms)
    (prep,) = re.findall(r"^cp %\{SOURCE10\}.*?^done$", spec, re.MULTILINE | re.DOTALL)
    argv = ["sh", "-ec", prep.replace("%{SOURCE10}", "SOURCE10")]
    subprocess.run(argv, cwd=tmp_path, check=True)
    more = f"\n{name}:\n\n{terms}" if terms else ""
    assert (tmp_path / "THIRD-PARTY").read_text() == text + more


PRISTINE = {
    "src/include/pg_config_manual.h": '#ifndef A\n#define DEFAULT_PGSOCKET_DIR  "/tmp"\n#endif\n',
    "src/backend/utils/misc/postgresql.conf.sample": (
        "# - Where to Log -\n\n#log_destination = 'stderr'\n"
    ),
    "src/common/Makefile": (
        "STD_CPPFLAGS := $(filter-out -I$(top_srcdir)/src/include,$(CPPFLAGS))\n"
        "STD_LDFLAGS := $(filter-out -L$(top_builddir)/src/common,$(LDFLAGS))\n"
    ),
}


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_the_packages_own_edits_fit(major: matrix.Major) -> None:
    plans = edits.load(rpm.TEMPLATES / "core", major)
    made = {plan.path: edits.perform(plan, PRISTINE[plan.path], where="a test") for plan in plans}
    assert made.keys() == PRISTINE.keys()
    assert '"/run/postgresql"' in made["src/include/pg_config_manual.h"].splitlines()[-2]


# ---- the scripts


def script(name: str, tmp_path: Path) -> Path:
    """A rendered script of 17, to be run."""
    path = tmp_path / name
    path.write_text(rpm.render("server", facts_of(MAJORS[5]))[name])
    path.chmod(0o755)
    return path


def said(*argv: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Status and stderr of a command."""
    done = subprocess.run([str(a) for a in argv], check=False, capture_output=True, text=True,
                          cwd=cwd)  # fmt: skip
    return done.returncode, done.stderr


def test_the_service_does_not_start_on_what_is_no_cluster_of_its_major(tmp_path: Path) -> None:
    check = script("postgresql-17-check-db-dir", tmp_path)
    assert said(check)[0] == 64
    status, text = said(check, tmp_path / "none")
    assert status == 1
    assert "postgresql-17-setup initdb" in text
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    status, text = said(check, data)
    assert status == 1
    assert "PostgreSQL 16" in text
    assert "postgresql-17-setup upgrade" in text
    (data / "PG_VERSION").write_text("17\n")
    assert said(check, f"{data}/") == (0, "")


def test_claim_lists_what_matches_once_and_the_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = script("claim", tmp_path)
    root = tmp_path / "root"
    for name in ("bin/a", "bin/b", "share/locale/de/LC_MESSAGES/a-17.mo", "lib/a b.so"):
        file = root / "usr/pgsql-17" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (root / "usr/pgsql-17/lib/liba.so").symlink_to("gone")
    monkeypatch.setenv("RPM_BUILD_ROOT", str(root))
    base = "usr/pgsql-17"
    for words in (["one", f"{base}/bin/a", f"{base}/none"], ["one", f"{base}/share/locale/*/*/a-*"],
                  ["two", base]):  # fmt: skip
        subprocess.run(["sh", str(claim), *words], cwd=tmp_path, check=True)
    one = (tmp_path / "one.list").read_text().splitlines()
    two = (tmp_path / "two.list").read_text().splitlines()
    assert [line for line in one if not line.startswith("%dir ")] == [
        "%lang(de) /usr/pgsql-17/share/locale/de/LC_MESSAGES/a-17.mo",
        "/usr/pgsql-17/bin/a",
    ]
    assert {"%dir /usr/pgsql-17", "%dir /usr/pgsql-17/bin"} <= set(one)
    assert "%dir /usr" not in one
    assert [line for line in two if not line.startswith("%dir ")] == [
        "/usr/pgsql-17/bin/b", "/usr/pgsql-17/lib/a b.so", "/usr/pgsql-17/lib/liba.so",
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup:
    """postgresql-17-setup below a folder, for an account that there is everywhere: nobody.

    initdb writes its arguments to the log, and PG_VERSION.
    """

    root: Path

    @property
    def home(self) -> Path:
        """Nobody's."""
        return self.root / "home"

    def run(self, *words: str) -> tuple[int, str]:
        """Status and stderr."""
        return said(self.root / "setup", *words, cwd=self.root)

    def serve(self, data: Path) -> None:
        """Tell the service that its cluster is there."""
        unit = self.root / "units" / "postgresql-17.service"
        unit.write_text(f"[Service]\nEnvironment=PGDATA={data}/\n")


@pytest.fixture
def setup() -> Iterator[Setup]:
    """One whose cluster is in its home, where every account gets to."""
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    # below nothing that others than root can write, as a system's own directories are
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        made = Setup(root=Path(folder))
        made.root.chmod(0o755)
        for name in ("units", "bin", "home"):
            (made.root / name).mkdir()
        text = rpm.render("server", facts_of(MAJORS[5]))["postgresql-17-setup"]
        for old, new in (
            ("bin=/usr/pgsql-$major/bin", f"bin={made.root}/bin"),
            ("home=/var/lib/pgsql", f"home={made.home}"),
            ("/usr/lib/systemd/system/", f"{made.root}/units/"),
            ("/run/systemd/system", f"{made.root}/none"),
            ("runuser -u postgres", "runuser -u nobody"),
            ("-o postgres -g postgres", f"-o nobody -g {group}"),
        ):
            assert old in text
            text = text.replace(old, new)
        (made.root / "setup").write_text(text)
        initdb = '#!/bin/sh\necho "$@" as $(id -un)\necho 17 >"${1#--pgdata=}/PG_VERSION"\n'
        (made.root / "bin" / "initdb").write_text(initdb)
        for path in (made.root / "setup", made.root / "bin" / "initdb"):
            path.chmod(0o755)
        (made.home / "17").mkdir()
        for path in (made.home, made.home / "17"):
            shutil.chown(path, "nobody", group)
        made.serve(made.home / "17" / "data")
        yield made


@as_root
def test_setup_makes_the_cluster_as_postgres(setup: Setup) -> None:
    log, data = setup.home / "17" / "initdb.log", setup.home / "17" / "data"
    log.write_text("of an earlier try, by root\n")
    assert setup.run("initdb") == (0, "")
    assert f"--pgdata={data} " in log.read_text()
    assert log.read_text().endswith(" as nobody\n")
    assert {path.owner() for path in (log, data, data / "PG_VERSION")} == {"nobody"}
    assert data.stat().st_mode & 0o777 == 0o700
    status, text = setup.run("initdb")
    assert (status, "has a cluster already" in text) == (1, True)


@as_root
def test_setup_takes_no_locale_from_the_caller(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    initdb = setup.root / "bin" / "initdb"
    initdb.write_text(f"{initdb.read_text()}env\n")
    conf = setup.root / "locale.conf"
    script = setup.root / "setup"
    script.write_text(script.read_text().replace("/etc/locale.conf", str(conf)))
    for name in ("LANG", "LC_ALL", "LC_TIME", "LANGUAGE", "TZ", "PGDATA", "PGOPTIONS"):
        monkeypatch.setenv(name, "callers")
    for text, lines in (
        (None, {"LANG=C.UTF-8"}),
        ('LANG="de_DE.UTF-8"\nLC_TIME=C\n', {"LANG=de_DE.UTF-8", "LC_TIME=C"}),
    ):
        if text is not None:
            conf.write_text(text)
        shutil.rmtree(setup.home / "17" / "data", ignore_errors=True)
        assert setup.run("initdb") == (0, "")
        told = (setup.home / "17" / "initdb.log").read_text().splitlines()
        assert "callers" not in "".join(told)
        assert {line for line in told if line.startswith(("LANG", "LC_"))} == lines


@as_root
@pytest.mark.parametrize(
    ("version", "size", "options"),
    [
        (0, 16, {17: "--wal-segsize=16", 18: "--no-data-checksums --wal-segsize=16"}),
        (1, 64, dict.fromkeys((17, 18), "--data-checksums --wal-segsize=64")),
    ],
)
def test_setup_upgrades_to_a_cluster_that_is_like_the_old_one(
    setup: Setup, version: int, size: int, options: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_upgrade refuses another one, and the defaults of initdb are not those of every major."""
    old = setup.root / "pgsql-16" / "bin"
    old.mkdir(parents=True)
    data = setup.home / "16" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    (setup.root / "units" / "postgresql-16.service").write_text(f"Environment=PGDATA={data}\n")
    script = setup.root / "setup"
    text = script.read_text().replace("/usr/pgsql-", f"{setup.root}/pgsql-")
    told = f"Data page checksum version:           {version}\n"
    told += f"Bytes per WAL segment:                {size << 20}\n"
    for place, name, does in (
        (old, "postgres", "echo ptrack"),
        (old, "pg_controldata", f"cat <<'END'\n{told}END"),
        (setup.root / "bin", "pg_upgrade", 'echo upgraded "$@"'),
    ):
        (place / name).write_text(f"#!/bin/sh\n{does}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PGSETUP_INITDB_OPTIONS", "--own")
    for major, wanted in options.items():
        script.write_text(text.replace("major=17", f"major={major}"))
        shutil.rmtree(setup.home / "17" / "data", ignore_errors=True)
        (setup.home / str(major)).mkdir(exist_ok=True)
        shutil.chown(setup.home / str(major), "nobody")
        (setup.root / "units" / f"postgresql-{major}.service").write_text(
            f"Environment=PGDATA={setup.home}/{major}/data\n"
        )
        assert setup.run("upgrade", "postgresql-16") == (0, "")
        log = (setup.home / str(major) / "pgupgrade.log").read_text()
        assert f" --auth-host=scram-sha-256 {wanted} --own as nobody\n" in log
        assert f"upgraded --old-bindir={old} " in log
        assert "shared_preload_libraries=ptrack" in log


@as_root
def test_setup_makes_directories_that_only_root_can(setup: Setup) -> None:
    data = setup.root / "disk" / "data"
    setup.serve(data)
    assert setup.run("initdb") == (0, "")
    assert data.owner() == "nobody"
    shutil.rmtree(data)
    data.mkdir()
    data.parent.chmod(0o777)  # where others can put a link
    status, text = setup.run("initdb")
    assert (status, "root follows no links" in text) == (1, True)
    assert data.owner() == "root"


@as_root
def test_setup_writes_through_no_link(setup: Setup) -> None:
    secret = setup.root / "secret"
    secret.write_text("root's")
    log = setup.home / "17" / "initdb.log"
    log.symlink_to(secret)
    assert setup.run("initdb")[0] == 0
    assert secret.read_text() == "root's"
    assert not log.is_symlink()


@as_root
@pytest.mark.parametrize("link", ["17/data", "17"])
def test_setup_gives_away_nothing_behind_a_link(setup: Setup, link: str) -> None:
    roots = setup.root / "roots"
    roots.mkdir(mode=0o755)
    if link == "17":
        (setup.home / link).rmdir()
    (setup.home / link).symlink_to(roots)
    status, text = setup.run("initdb")
    assert (status, "root follows no links" in text) == (1, True)
    assert (roots.owner(), roots.stat().st_mode & 0o777) == ("root", 0o755)
    assert not list(roots.iterdir())


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Processes and configurations of clusters, below a directory that stands for the system's."""

    root: Path

    def process(self, number: int, data: str, library: str, unit: str = "") -> None:
        """One that works in a data directory and has that library among its maps."""
        place = self.root / "proc" / str(number)
        place.mkdir(parents=True)
        (place / "maps").write_text(
            f"7f0000-7f1000 r-xp 00000000 fe:01 11 /usr/pgsql-17/bin/postgres\n"
            f"7f2000-7f3000 r-xp 00000000 fe:01 12 {library}\n"
        )
        (place / "cgroup").write_text(f"0::/system.slice/{unit}\n")
        (place / "cwd").symlink_to(data)

    def configured(self, name: str, text: str, file: str = "postgresql.conf") -> Path:
        """A data directory of the service's, with that in a file of settings."""
        place = self.root / "var" / "lib" / "pgsql" / "17" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
        return place

    def said(self, script: str, *words: str) -> str:
        """What a script of ptrack_17's says, which must not fail."""
        spec = rpm.render("extension", facts_of(MAJORS[5]))["ptrack_17.spec"]
        (text,) = re.findall(rf"^%{script}\n(.*?)(?=^%\w)", spec, re.MULTILINE | re.DOTALL)
        for macro, value in (
            ("%{pgbase}", "/usr/pgsql-17"),
            ("%{pgmajor}", "17"),
            ("%{service}", "postgresql-17"),
            ("%{name}", "ptrack_17"),
            ("%{_localstatedir}", f"{self.root}/var"),
            (" /proc/", f" {self.root}/proc/"),
        ):
            text = text.replace(macro, value)
        assert "%" not in text
        done = subprocess.run(
            ["sh", "-c", text, "sh", *words], check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr


LIBRARY = "/usr/pgsql-17/lib/ptrack.so"


def test_servers_that_keep_the_library_of_before_are_named(tmp_path: Path) -> None:
    clusters = Clusters(root=tmp_path)
    assert clusters.said("posttrans", "1") == ""
    # a cluster is many processes; one has the new library, and one is of another major
    for number in (11, 12):
        clusters.process(number, "/a/data", f"{LIBRARY} (deleted)", "postgresql-17.service")
    clusters.process(13, "/b c", f"{LIBRARY} (deleted)")
    clusters.process(16, "/gone", f"{LIBRARY} (deleted)", "gone.service")
    (clusters.root / "proc/16/cwd").unlink()  # it ends after its maps were read
    clusters.process(14, "/new", LIBRARY, "new.service")
    clusters.process(15, "/other", "/usr/pgsql-16/lib/ptrack.so (deleted)", "other.service")
    said = clusters.said("posttrans", "1")
    lines = re.findall(r"note: the server of (.*) runs .*\n  (.*)\n", said)
    assert sorted(lines) == [
        ("/a/data", "systemctl restart postgresql-17.service"),
        ("/b c", "/usr/pgsql-17/bin/pg_ctl restart -D '/b c', as its owner"),
    ]
    assert len(said.splitlines()) == 4


def test_clusters_that_do_not_start_without_the_extension_are_named(tmp_path: Path) -> None:
    clusters = Clusters(root=tmp_path)
    assert clusters.said("preun", "0") == ""
    clusters.process(11, "/elsewhere", LIBRARY)
    clusters.process(12, "/elsewhere", LIBRARY)
    clusters.process(13, "/before", f"{LIBRARY} (deleted)")
    clusters.process(14, "/other", "/usr/pgsql-16/lib/ptrack.so")
    clusters.process(15, "/gone", LIBRARY)
    (clusters.root / "proc/15/cwd").unlink()
    named = {"/elsewhere", "/before"}
    for name, text, needs in (
        ("data", "shared_preload_libraries = 'a, ptrack'\t# tracked\n", True),
        ("more", "\tshared_preload_libraries='ptrack'\n", True),
        ("none", "shared_preload_libraries = ''   # not ptrack\n", False),
        ("off", "#shared_preload_libraries = 'ptrack'\nptrack.map_size = 1\n", False),
        ("later", "shared_preload_libraries = 'ptrack'\nShared_Preload_Libraries = ''\n", False),
        ("again", "shared_preload_libraries = ''\nshared_preload_libraries 'ptrack'\n", True),
    ):
        place = clusters.configured(name, text)
        named |= {str(place)} if needs else set()
    # one that runs with it, and will not from its next start on; one by two names
    clusters.process(17, str(clusters.configured("out", "shared_preload_libraries=''\n")), LIBRARY)
    clusters.process(18, str(clusters.configured("data/../linked", "#\n").resolve()), LIBRARY)
    (clusters.root / "var/lib/pgsql/17/link").symlink_to("more")
    named.add(str(clusters.root / "var/lib/pgsql/17/linked"))
    overruled = clusters.configured("overruled", "shared_preload_libraries = 'ptrack'\n")
    clusters.configured("overruled", "shared_preload_libraries = ''\n", "postgresql.auto.conf")
    clusters.process(19, str(overruled), LIBRARY)
    # what else may be in force, for one that runs
    for number, (name, file, text) in enumerate(
        (
            ("includes", "postgresql.conf", "Include_Dir = 'conf.d'\n"),
            ("command", "postmaster.opts", 'postgres "-c" "shared_preload_libraries=ptrack"\n'),
            ("config", "postmaster.opts", 'postgres "--config-file=/etc/a.conf"\n'),
        ),
        start=20,
    ):
        place = clusters.configured(name, f"{text}shared_preload_libraries = ''\n", file)
        clusters.configured(name, "shared_preload_libraries = ''\n", "postgresql.auto.conf")
        clusters.process(number, str(place), LIBRARY)
        named.add(str(place))
    # and what is found of another file, for one that does not
    clusters.configured("base", "include 'postgresql.base.conf'\n")
    place = clusters.configured(
        "base", "shared_preload_libraries='ptrack'\n", "postgresql.base.conf"
    )
    named.add(str(place))
    place = clusters.configured("directory", "include_dir = 'conf.d'\n")
    (place / "conf.d").mkdir()
    clusters.configured("directory", "shared_preload_libraries='ptrack'\n", "conf.d/x.conf")
    named.add(str(place))
    by_command = clusters.configured(
        "auto", "shared_preload_libraries = 'ptrack'\n", "postgresql.auto.conf"
    )
    said = clusters.said("preun", "0")
    found = re.findall(r"^warning: the cluster in (.*) has ptrack in", said, re.MULTILINE)
    assert sorted(found) == sorted({*named, str(by_command)})
    assert said.count("start without ptrack_17: take it out of there") == len(found)
    # a later version comes in its place
    assert clusters.said("preun", "1") == ""


# ---- a build, of packages that take no time


@pytest.fixture
def line(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> _packages.Line:
    """The build line, with a tree and specs of a few lines."""
    del own_cache
    return _packages.line("rpm", tmp_path, monkeypatch)


def test_facts_are_read_off_the_tree(line: _packages.Line) -> None:
    tree = line.tree
    known = rpm.facts(tree, "Debian")
    assert (known.abi, known.rpm_version, known.extension_release) == (3, "17.4", "1.pg17.4")
    tip = dataclasses.replace(tree.source, provider="git")
    known = rpm.facts(dataclasses.replace(tree, source=tip), "Debian")
    assert known.rpm_version == "17.4^git20231114.221320.ccccccc"
    assert known.extension_release == "1.pg17.4.20231114.221320.ccccccc"
    (tree.path / "src/include/storage/changetrack.h").write_text("")
    with pytest.raises(PackageError, match="does not define CHANGETRACK_ABI"):
        rpm.build(tree)


@_packages.with_rpmbuild
def test_a_package_does_not_conflict_with_itself_but_with_the_plain_one(
    line: _packages.Line, tmp_path: Path
) -> None:
    made = line.built()
    files = {package.name: package.file for package in made.packages if package.name == "server"}
    (ours,) = (
        file for file in made.files if file.name == files["server"].replace(".src.", ".noarch.")
    )
    spec = tmp_path / "plain.spec"
    spec.write_text(
        "Name: plain\nVersion: 17.4\nRelease: 1\nSummary: a\nLicense: a\nBuildArch: noarch\n"
        "%description\na\n%files\n"
    )
    build = ["rpmbuild", "-bb", "--define", f"_topdir {tmp_path / 'top'}", str(spec)]
    subprocess.run(
        build, check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    (plain,) = (tmp_path / "top" / "RPMS").rglob("*.rpm")
    check = ["rpm", "-i", "--test", "--dbpath", str(tmp_path / "db")]
    subprocess.run([*check, str(ours)], check=True, capture_output=True)
    both = subprocess.run([*check, str(ours), str(plain)], check=False, capture_output=True)
    assert both.returncode != 0
    assert b"conflicts with" in both.stderr


def test_without_rpmbuild_the_line_to_paste_is_named(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    with pytest.raises(HostError, match="rpm-build") as caught:
        rpm.this_system()
    assert re.search(r"apt-get install -y rpm\b", caught.value.hint or "")
    (tmp_path / "apt-get").unlink()
    with pytest.raises(HostError, match="this machine has neither"):
        rpm.this_system()


def looked_through(names: Iterable[str], _where: object) -> dict[str, str]:
    """Stands for making.builder_debs."""
    return {**dict.fromkeys(names, "1"), "gcc-12": "1"}


@pytest.fixture
def debian(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of apt's, about which nothing is asked but what of packages is installed."""
    del own_cache
    monkeypatch.setattr(rpm, "this_system", lambda _where: BOOKWORM)
    monkeypatch.setattr(rpm, "_evaluated", lambda *_: [""])
    monkeypatch.setattr(making, "builder_debs", looked_through)
    monkeypatch.setattr(host, "manager", lambda: "apt")
    monkeypatch.setattr(host, "ensure", lambda _names: None)


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("absent", "left_out"),
    [
        ({"tcl-dev", "libldap-dev"}, "ldap pltcl"),
        ({"libssl-dev", "libicu-dev"}, "icu openssl"),
        ({"bison"}, ""),
        ({"bison", "libssl-dev"}, "openssl"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left_out_unasked(
    absent: set[str], left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    monkeypatch.setattr(
        rpm, "_installed", lambda names, **_: {n: (n, "1") for n in names if n not in absent}
    )
    major = matrix.load().major("17")
    with pytest.raises(HostError, match="which the packages are built with") as caught:
        rpm._machine(major, without=["llvmjit"])
    named = (caught.value.hint or "").partition("apt-get install -y ")[2].split()
    assert {*named} == absent
    words = re.findall(r"--without (\w+)", caught.value.what)
    assert words == left_out.split()
    if "bison" not in absent:  # what is left out when it is asked for
        found = rpm._machine(major, without=["llvmjit", *words])
        assert found.without == tuple(sorted(["llvmjit", *words]))
        assert {f"--without={word}" for word in words} <= {*rpm._options(found)}


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("E: Unable to locate package bison", Unobtainable),
        ("E: Write error - write (28: No space left on device)", HostError),
    ],
)
def test_what_the_archive_has_not_is_told_from_a_failure(
    said: str, expected: type[HostError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_place: object, names: Iterable[str]) -> None:
        raise CommandFailed(["apt-get", *names], 100, tail=said)

    monkeypatch.setattr(Native, "may_install", lambda _place: True)
    monkeypatch.setattr(Native, "install", fails)
    monkeypatch.setattr(
        rpm, "_installed", lambda names, **_: {n: (n, "1") for n in names if n != "bison"}
    )
    with pytest.raises(HostError, match="lacks bison") as caught:
        rpm._machine(matrix.load().major("17"), without=["llvmjit"])
    assert type(caught.value) is expected


@pytest.mark.usefixtures("debian")
def test_a_feature_that_the_major_does_not_know_is_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpm, "_installed", lambda names, **_: {n: (n, "1") for n in names})
    assert rpm._machine(matrix.load().major("12"), without=["liburing"]).without == ()


@pytest.mark.usefixtures("debian")
def test_what_cannot_be_had_keeps_nothing_else_away(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    asked: list[set[str]] = []

    def install(_self: object, names: Iterable[str]) -> None:
        asked.append({*names})
        if "tcl-dev" in asked[-1]:
            raise CommandFailed(["apt-get", "install", *asked[-1]], 100)
        there.update(asked[-1])

    def installed(names: Iterable[str], **_: object) -> dict[str, tuple[str, str]]:
        return {name: (name, "1") for name in names if name in there}

    monkeypatch.setattr(rpm, "_installed", installed)
    monkeypatch.setattr(Native, "may_install", lambda _self: True)
    monkeypatch.setattr(Native, "install", install)
    said = r"lacks tcl-dev, which .*\n.*can be left out: -- --without pltcl\)"
    with pytest.raises(HostError, match=said) as caught:
        rpm._machine(matrix.load().major("17"), without=[])
    assert (caught.value.hint or "").endswith("apt-get install -y tcl-dev")
    assert asked[0] == {*rpm.REQUIRED_APT}  # which no feature can keep away
    assert {"tcl-dev", "libldap-dev"} <= asked[1]
    assert {"libldap-dev"} in asked[2:]


def test_what_was_built_with_has_the_names_and_versions_of_packages() -> None:
    class Rpms(Native):
        """Where rpm knows three packages."""

        def call(self, argv: Sequence[str], **how: Unpack[How]) -> run.Completed:
            """What `rpm -q --whatprovides` says."""
            del how
            said = {
                "pkgconfig": "pkgconf-pkg-config 2.1.0-1.el9\n",
                "openssl-devel": "openssl-devel 1:3.2.2-6.el9\n" * 2,  # of two architectures
                "/usr/bin/dtrace": "systemtap-sdt-devel 5.2-2.el9\n",
            }.get(argv[-1])
            return run.Completed(argv=tuple(argv), returncode=int(said is None), stdout=said or "")

    asked = ["pkgconfig", "openssl-devel", "/usr/bin/dtrace", "no package provides"]
    assert rpm._installed(asked, native=False, where=Rpms()) == {
        "pkgconfig": ("pkgconf-pkg-config", "2.1.0-1.el9"),
        "openssl-devel": ("openssl-devel", "1:3.2.2-6.el9"),
        "/usr/bin/dtrace": ("systemtap-sdt-devel", "5.2-2.el9"),
    }


@pytest.mark.parametrize(("manager", "tool"), [("apt", "rpm"), ("dnf", "rpm-build")])
def test_the_tools_are_among_what_was_built_with(
    manager: str, tool: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    monkeypatch.setattr(rpm, "this_system", lambda _where: BOOKWORM)
    monkeypatch.setattr(rpm, "_evaluated", lambda *_: [""])
    monkeypatch.setattr(rpm, "_installed", lambda names, **_: {n: (f"{n}-x", "1") for n in names})
    monkeypatch.setattr(making, "builder_debs", looked_through)
    monkeypatch.setattr(host, "manager", lambda: manager)
    monkeypatch.setattr(host, "ensure", lambda _names: None)
    builders = rpm._machine(matrix.load().major("17"), without=[]).builders
    assert {f"{tool}-x", "debugedit-x", "binutils-x", "gcc-x"} <= builders.keys()
    assert set(builders.values()) == {"1"}
    # natively also what Debian's names only choose, as deb-NN's manifest has it
    assert ("gcc-12" in builders) is (manager == "apt")


def test_keys_are_of_one_architecture(tmp_path: Path, own_cache: Path) -> None:
    del own_cache
    tree = _packages.patched(tmp_path)
    known = facts_of(tree.source.major)

    def keys(architecture: str) -> set[str]:
        system = _packages.system(architecture)
        machine = dataclasses.replace(_packages.NATIVE, system=system)
        server = rpm._server_job(tree, known, "rpm-17", machine, HERE)
        return {
            server.key,
            rpm._extension_job(known, "rpm-17", server, machine, rpm.EXTENSION).key,
        }

    assert keys("x86_64") == keys("x86_64")
    assert not keys("x86_64") & keys("aarch64")


def test_publishing_tells_what_it_was_made_of(tmp_path: Path) -> None:
    release = Release(
        kind="rpm", system=BOOKWORM, major="17", packages=(), files=(),
        made_of=rpm._made_of(_packages.patched(tmp_path), _packages.NATIVE),
    )  # fmt: skip
    place = publish(release, tmp_path / "dist")
    manifest = json.loads((place / "manifest.json").read_text())
    assert place.relative_to(tmp_path / "dist").as_posix() == "debian-bookworm-x86_64/postgresql-17"
    assert manifest["patch"]["abi"] == 3
    assert "for trying, not for an rpm distribution" in manifest["native"]
