"""RPM packages: what the templates give for each major, keys, and that a build is whole or not.

What needs a real build (installing, initdb, upgrades, erasing) is verified on the packages
themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, host, matrix
from ptrack_build.errors import HostError
from ptrack_build.package import PackageError, Release, System, publish, rpm
from ptrack_build.patch import PatchedTree, edits
from ptrack_build.source import SourceTree

if TYPE_CHECKING:
    from pathlib import Path

MAJORS = matrix.load().majors
BOOKWORM = System(
    distribution="debian", release="12", codename="bookworm", architecture="x86_64", tag="deb12"
)
NATIVE = rpm._Machine(
    system=BOOKWORM, native=True, builder="Debian GNU/Linux 12 (bookworm)", without=(),
    builders={"gcc": "12"}, macros="",
)  # fmt: skip
with_rpmbuild = pytest.mark.skipif(
    not all(map(shutil.which, ("rpmbuild", "cpio"))), reason="needs rpmbuild and cpio"
)


def facts_of(major: matrix.Major) -> rpm.Facts:
    """Made-up facts of a major."""
    number = major.number
    return rpm.Facts(
        major=number,
        version=f"{number}.3",
        rpm_version=f"{number}.3",
        minor=f"{number}.3",
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


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("12.3", "12.3"), ("17.11", "17.11"), ("19beta1", "19~beta1"), ("18rc1", "18~rc1"),
        ("20devel", "20~~devel"),
    ],
)  # fmt: skip
def test_versions_of_postgresql_as_rpm_writes_them(version: str, expected: str) -> None:
    assert rpm.rpm_version(version) == expected


@with_rpmbuild
def test_versions_sort_as_they_come_out() -> None:
    rising = ["20devel", "20alpha1", "20beta1", "20beta2", "20rc1", "20.0", "20.1", "20.10"]
    shown = [rpm.rpm_version(version) for version in rising]
    shown += [f"{shown[-1]}^git20240131.abcdef0", f"{shown[-1]}^git20240201.0123456"]
    for older, newer in itertools.pairwise(shown):
        asked = f"%{{lua: print(rpm.vercmp('{older}', '{newer}'))}}"
        said = subprocess.run(
            ["rpm", "--eval", asked], check=True, capture_output=True, text=True
        ).stdout
        assert said.strip() == "-1", f"{older} is not older than {newer}"


# ---- templates


@with_rpmbuild
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
    for name in set(found) - native_only:
        plain = name.replace("pt", "", 1)
        provides, conflicts, requires = found[name]
        assert any(each.startswith(f"{plain} = {number}.3-1ptrack") for each in provides), name
        assert conflicts[:-1] == [plain], name
        if native:  # of the system nothing is known to rpm but the shell
            others = {each.split(" ")[0].split("(")[0] for each in requires if each}
            assert {each for each in others if not each.startswith(ours)} <= {"rpmlib", "/bin/sh"}
    assert f"postgresql{number}-ptrack-abi = 7" in found[f"{ours}-server"][0]
    wanted = {"-libs", "-server", "-contrib", "-devel", "-plperl", "-plpython3", "-pltcl"}
    assert {f"{ours}{suffix}" for suffix in (*wanted, "-llvmjit", "")} <= set(found)


@with_rpmbuild
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


@with_rpmbuild
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


def test_a_template_that_names_the_unknown_says_which(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "a.spec.j2").write_text("Name: {{ nome }}\n")
    with pytest.raises(PackageError, match=r"rpm/server/a\.spec\.j2: 'nome' is undefined"):
        rpm.render("server", facts_of(MAJORS[0]), tmp_path)


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


# ---- a build, of packages that take no time

SPEC = """
%bcond_with native
%bcond_without selftest
{% set plain = "plain" if role == "server" else "extra" %}
Name:     {{ role }}
Version:  {{ rpm_version if role == "server" else project }}
Release:  1%{?dist}
Summary:  Test
License:  PostgreSQL
Source0:  {{ "postgresql-" + version if role == "server" else "ptrack-" + project }}.tar.gz
{% if role == "server" %}
Patch0:   ptrack-core.patch
Patch1:   ptrack-packaging.patch
{% endif %}
BuildArch: noarch
Provides: {{ plain }} = %{version}-%{release}
Conflicts: {{ plain }}

%description
A test.

%prep
%autosetup -n {{ "postgresql-" + version + " -p1" if role == "server" else "ptrack-" + project }}

%build
$FAKE_BUILD

%install
mkdir -p %{buildroot}/usr/share/{{ role }}
date > %{buildroot}/usr/share/{{ role }}/date.gz
cp {{ "hello.h core.h" if role == "server" else "Makefile" }} %{buildroot}/usr/share/{{ role }}/
truncate -s 0 %{buildroot}/usr/share/{{ role }}/date.gz

%files
/usr/share/{{ role }}
"""


@pytest.fixture
def tree(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> PatchedTree:
    """A patched tree of a few files, with specs for it that the build takes for ours."""
    del own_cache
    templates = tmp_path / "templates"
    for role in ("server", "extension"):
        (templates / role).mkdir(parents=True)
        text = f'{{% set role = "{role}" %}}' + SPEC
        (templates / role / f"{role}.spec.j2").write_text(text)
    (templates / "core").mkdir()
    (templates / "core" / "hello.h.j2").write_text("after hello\ninsert\nthere\nend\n")
    pristine = {"configure": "#!/bin/sh\n", "hello.h": "hello\n", "core.h": "core\n"}
    changed = {
        "core.h": "core\nhooks\n", "src/include/storage/changetrack.h": "#define CHANGETRACK_ABI 3"
    }  # fmt: skip

    def export(_tree: SourceTree, dest: Path) -> None:
        for name, text in pristine.items():
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            (dest / name).write_text(text)

    path = tmp_path / "tree"
    for name, text in (pristine | changed).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text + ("" if text.endswith("\n") else "\n"))
    os.utime(path / "configure", (1_700_000_000, 1_700_000_000))
    monkeypatch.setattr(rpm, "TEMPLATES", templates)
    monkeypatch.setattr(rpm, "DEVELOPMENT", ())
    monkeypatch.setattr(rpm, "_machine", lambda _major, **_: NATIVE)
    monkeypatch.setattr("ptrack_build.source.export", export)
    monkeypatch.setattr(host, "server_user", lambda: None)
    source = SourceTree(
        major=matrix.load().major("17"), version="17.4", commit="c" * 40, digest="d" * 40,
        mirror=tmp_path, provider="distro", origin="a test",
    )  # fmt: skip
    return PatchedTree(source=source, path=path, key="k", patch_digest="p", how="applied")


def built(tree: PatchedTree, folder: Path) -> Release:
    """Both packages, with an extension of one file."""
    extension = folder / "ext"
    extension.mkdir(exist_ok=True)
    for name in ("Makefile", "ptrack.control"):
        if not (extension / name).exists():
            (extension / name).write_text("x\n")
    return rpm.build(tree, extension=extension)


def test_facts_are_read_off_the_tree(tree: PatchedTree) -> None:
    known = rpm.facts(tree, "Debian")
    assert (known.abi, known.rpm_version, known.minor) == (3, "17.4", "17.4")
    tip = dataclasses.replace(tree.source, provider="git")
    known = rpm.facts(dataclasses.replace(tree, source=tip), "Debian")
    assert known.rpm_version == "17.4^git20231114.ccccccc"
    assert known.minor == "17.4"
    (tree.path / "src/include/storage/changetrack.h").write_text("")
    with pytest.raises(PackageError, match="does not define CHANGETRACK_ABI"):
        rpm.build(tree)


@with_rpmbuild
def test_a_build_is_kept_and_edits_make_only_what_they_touch(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(tree, tmp_path)
    names = {(package.name, package.architecture) for package in first.packages}
    both = ("server", "extension")
    assert names == {(name, kind) for name in both for kind in ("noarch", "src")}
    (server,) = (file for file in first.files if file.name.startswith("server-17.4-1.deb12.noarch"))
    root = tmp_path / "unpacked"
    root.mkdir()
    rpm._unpack(server, root)
    assert (root / "usr/share/server/hello.h").read_text() == "hello\nthere\n"
    assert (root / "usr/share/server/core.h").read_text() == "core\nhooks\n"
    monkeypatch.setenv("FAKE_BUILD", "false")  # whatever is built from here on fails
    assert built(tree, tmp_path) == first
    (tmp_path / "ext" / "Makefile").write_text("y\n")
    with pytest.raises(PackageError, match="packages of ptrack_17") as caught:
        built(tree, tmp_path)
    assert caught.value.log is not None
    assert caught.value.log.is_file()
    monkeypatch.delenv("FAKE_BUILD")
    second = built(tree, tmp_path)
    same = {p.file: p.sha256 for p in first.packages}
    assert {p.name for p in second.packages if p.sha256 != same[p.file]} == {"extension"}


@with_rpmbuild
def test_two_builds_are_the_same_bytes(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(tree, tmp_path)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "another"))
    second = built(tree, tmp_path)
    assert second.files != first.files
    assert second.manifest() == first.manifest()


@with_rpmbuild
def test_a_package_does_not_conflict_with_itself_but_with_the_plain_one(
    tree: PatchedTree, tmp_path: Path
) -> None:
    made = built(tree, tmp_path)
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


@with_rpmbuild
def test_a_failure_leaves_nothing_and_tells_why(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD", "cat /proc/self/mounts/x.c:1: error: No space left")
    with pytest.raises(PackageError) as caught:
        built(tree, tmp_path)
    assert "No space left" in caught.value.what
    assert "free some space" in (caught.value.hint or "")
    assert list(cache.directory("rpm").iterdir()) == []
    assert list(cache.directory("build", "rpm-17").iterdir()) == []


@with_rpmbuild
def test_an_interruption_leaves_nothing(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "interrupt"
    script.write_text(f"kill -INT {os.getpid()}\nsleep 60\ntouch {tmp_path}/went-on\n")
    monkeypatch.setenv("FAKE_BUILD", f"sh {script}")
    with pytest.raises(KeyboardInterrupt):
        built(tree, tmp_path)
    assert not (tmp_path / "went-on").exists()
    assert list(cache.directory("rpm").iterdir()) == []
    assert list(cache.directory("build", "rpm-17").iterdir()) == []


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
    with pytest.raises(HostError, match="here is neither"):
        rpm.this_system()


def test_what_is_missing_costs_its_feature_or_is_named(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del own_cache
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    monkeypatch.setattr(rpm, "this_system", lambda: BOOKWORM)
    monkeypatch.setattr(rpm, "_evaluated", lambda _text: [""])
    monkeypatch.setattr(host, "manager", lambda: "apt")
    monkeypatch.setattr(host, "ensure", lambda _names: None)
    absent = {"tcl-dev", "libldap-dev"}
    monkeypatch.setattr(
        rpm, "_installed", lambda names, **_: {n: "1" for n in names if n not in absent}
    )
    found = rpm._machine(matrix.load().major("17"), jit=False)
    assert found.without == ("ldap", "llvmjit", "pltcl")
    assert "apt-get install -y libldap-dev tcl-dev" in capsys.readouterr().out
    assert "--without=pltcl" in rpm._options(found)
    absent.add("bison")
    with pytest.raises(HostError, match="lacks bison,") as caught:
        rpm._machine(matrix.load().major("17"), jit=True)
    assert (caught.value.hint or "").endswith("apt-get install -y bison")


def test_publishing_tells_what_it_was_made_of(tree: PatchedTree, tmp_path: Path) -> None:
    release = Release(
        kind="rpm", system=BOOKWORM, major="17", packages=(), files=(),
        made_of=rpm._made_of(tree, rpm.facts(tree, NATIVE.builder), NATIVE),
    )  # fmt: skip
    place = publish(release, tmp_path / "dist")
    manifest = json.loads((place / "manifest.json").read_text())
    assert place.relative_to(tmp_path / "dist").as_posix() == "debian-bookworm-x86_64/postgresql-17"
    assert manifest["patch"]["abi"] == 3
    assert "for trying, not for an rpm distribution" in manifest["native"]
