"""Debian packages: what the templates give for each major, and what a machine lacks.

What needs a real build (installing, clusters, purging) is verified on the packages themselves.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, matrix
from ptrack_build.errors import HostError, PatchError, UsageError
from ptrack_build.package import PackageError, Release, deb, making, notices, place, publish, rpm
from ptrack_build.package.place import HERE, Native
from ptrack_build.patch import edits
from ptrack_build.run import Completed
from tests.build import _packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Unpack

    from ptrack_build.patch import PatchedTree
    from ptrack_build.run import How

MAJORS = matrix.load().majors
BOOKWORM = _packages.system("amd64")


def facts_of(major: matrix.Major, *, llvm: int = 14, without: tuple[str, ...] = ()) -> deb.Facts:
    """Made-up facts of a major."""
    return deb.Facts(
        major=major.number,
        upstream=f"{major.number}.3",
        version=f"{major.number}.3-1+ptrack3.0.0+deb12",
        extension_version=f"3.0.0+pg{major.number}.3-1+deb12",
        project="3.0.0",
        abi=7,
        catalog="202406281",
        control="1700",
        llvm=llvm,
        without=without,
        libc_is_checked=True,
        cflags=major.cflags,
        vendor="Debian",
        maintainer="A B <a@b.example>",
        epoch=1_700_000_000,
        postgresql_license=" Copyright (c) 1996-2026 PGDG, may be used",
        ptrack_license=" Copyright (c) 2026, may be used",
    )


def stanzas(control: str) -> dict[str, dict[str, str]]:
    """A control file's paragraphs by source or package name."""
    found = {}
    for paragraph in re.split(r"\n\s*\n", control.strip()):
        joined = re.sub(r"\n[ \t]+", " ", paragraph)
        rows = [line.partition(":") for line in joined.splitlines()]
        assert all(colon for _, colon, _ in rows), paragraph
        fields = {name: value.strip().rstrip(",") for name, _, value in rows}
        assert len(fields) == len(rows), f"a field twice in {paragraph}"
        found[fields.get("Package") or "source"] = fields
    return found


def words(field: str) -> set[str]:
    """The packages that a relation field names."""
    return {re.split(r"[ (|]", each.strip())[0] for each in field.split(",") if each.strip()}


# ---- versions


def in_order(versions: Iterable[str]) -> None:
    """Each older than the next, as dpkg sees it."""
    for older, newer in itertools.pairwise(versions):
        compared = subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False)
        assert compared.returncode == 0, f"{older} is not older than {newer}"


@_packages.with_dpkg
def test_versions_sort_as_they_come_out(tree: PatchedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PostgreSQL's, then by ptrack's, then by the revision, then by the distribution's."""
    in_order(map(making.sortable, _packages.RISING))
    for tags in (["deb12", "deb14~sid"], ["ubuntu22.04", "ubuntu24.04"]):
        made, extensions = [], []
        for upstream, project, again, tag in itertools.product(
            ["17.9", "17.11"], ["3.0.0", "3.0.1", "3.1.0", "3.10.0"], ["1", "2", "10"], tags
        ):
            monkeypatch.setattr(deb, "__version__", project)
            monkeypatch.setenv("PTRACK_REVISION", again)
            source = dataclasses.replace(tree.source, version=upstream)
            known = deb.facts(
                dataclasses.replace(tree, source=source),
                dataclasses.replace(BOOKWORM, tag=tag), llvm=0,
            )  # fmt: skip
            made.append(known.version)
            if upstream == "17.9":
                extensions.append(known.extension_version)
        in_order(made)
        in_order(extensions)


def test_the_first_revision_is_not_told(tree: PatchedTree) -> None:
    known = deb.facts(tree, BOOKWORM, llvm=0)
    assert re.fullmatch(r"17\.4-1\+ptrack[\d.]+\+deb12", known.version)


class Somewhere(Native):
    """A system of Debian's whose base-files has that version."""

    def __init__(self, base_files: str) -> None:
        self.base_files = base_files

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Answers dpkg-query."""
        del how
        assert argv[0] == "dpkg-query"
        text = f"base-files {self.base_files} installed\n"
        return Completed(argv=tuple(argv), returncode=0, stdout=text)


#: Releases as they follow each other: number, codename, version of base-files, what is expected.
SYSTEMS = (
    ("11", "bullseye", "11.1+deb11u11", "deb11"),
    ("12", "bookworm", "12.4+deb12u12", "deb12"),
    ("", "trixie", "13.6", "deb13~trixie"),
    ("13", "trixie", "13.8+deb13u1", "deb13"),
    ("", "forky", "14", "deb14~forky"),
    ("", "sid", "14", "deb14~sid"),
    ("14", "forky", "14.1", "deb14"),
)


@pytest.mark.parametrize(("number", "codename", "base_files", "expected"), SYSTEMS)
def test_a_system_s_tag_has_its_number(
    number: str, codename: str, base_files: str, expected: str
) -> None:
    about = {"ID": "debian", "VERSION_CODENAME": codename}
    about |= {"VERSION_ID": number} if number else {}
    assert making.tag(about, Somewhere(base_files)) == expected


class Rolling(Native):
    """A system of Debian's without a number, whose apt has base-files from there."""

    def __init__(self, *suites: str) -> None:
        self.suites = suites

    def which(self, program: str) -> str:
        return program

    def manager(self) -> str:
        return "apt"

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Answers what is asked of the system."""
        del how
        rows = ["base-files:", "  Installed: 14", "  Version table:", " *** 14 500"]
        address = "http://deb.example/debian"
        rows += [f"        500 {address} {suite}/main amd64 Packages" for suite in self.suites]
        said = {
            ("apt-cache", "policy", "base-files"): "\n".join(
                [*rows, "        100 /var/lib/dpkg/status\n"]
            ),
            ("dpkg", "--print-architecture"): "amd64\n",
        }
        text = said.get(tuple(argv), "base-files 14 installed\n")
        return Completed(argv=tuple(argv), returncode=0, stdout=text)


SID = {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux forky/sid"}


@pytest.mark.parametrize(
    ("suites", "said", "codename"),
    [
        (("sid",), {"VERSION_CODENAME": "forky"}, "sid"),
        (("unstable", "sid"), {"VERSION_CODENAME": "forky"}, "sid"),
        (("forky", "sid"), {"VERSION_CODENAME": "forky"}, "forky"),  # testing, with some of sid
        ((), {"VERSION_CODENAME": "forky"}, "forky"),
        ((), {}, "rolling"),
        ((), {"BUILD_ID": "Rolling/2026"}, "rolling2026"),
    ],
)
def test_a_system_without_a_number_has_a_name_all_the_same(
    suites: tuple[str, ...], said: dict[str, str], codename: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sid's os-release has no VERSION_ID, and the codename of testing."""
    monkeypatch.setattr(place, "os_release", lambda: SID | said)
    system = deb.this_system(Rolling(*suites))
    assert (system.release, system.codename) == ("", codename)
    assert system.name == f"debian-{codename}-amd64"
    assert system.tag == f"deb14~{codename}"


def test_an_rpm_distribution_without_a_number_has_a_name_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Arch(Rolling):
        def manager(self) -> str:
            return "dnf"

        def ensure(self, needs: Iterable[str]) -> None:
            del needs

        def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
            del how
            return Completed(argv=tuple(argv), returncode=0, stdout="x86_64\n.rolling\n")

    monkeypatch.setattr(place, "os_release", lambda: {"ID": "mageia"})
    assert rpm.this_system(Arch()).name == "mageia-rolling-x86_64"


def test_ubuntu_has_a_number_before_its_release() -> None:
    about = {"ID": "ubuntu", "VERSION_ID": "26.04", "VERSION_CODENAME": "resolute"}
    assert making.tag(about, Somewhere("14ubuntu3")) == "ubuntu26.04"


@_packages.with_dpkg
def test_an_upgrade_of_the_system_upgrades_the_packages(tree: PatchedTree) -> None:
    """Also from sid to the release that comes of it, and with no suffix in between."""
    systems = [dataclasses.replace(BOOKWORM, tag=tag) for *_, tag in SYSTEMS]
    known = [deb.facts(tree, each, llvm=0) for each in systems]
    in_order([each.version for each in known])
    in_order([each.extension_version for each in known])
    # what verify-packages upgrades from sorts below, also where the tag has a tilde
    in_order([f"{known[5].version}~before", known[5].version])


# ---- templates


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("deb12", True),
        ("deb13", True),
        ("deb14~sid", False),
        ("ubuntu24.04", True),
        ("ubuntu25.10", True),
        ("ubuntu26.04", False),
        ("ubuntu28.10", False),
        ("mint22", True),
    ],
)
def test_overrides_name_only_what_the_lintian_of_the_release_has(
    tmp_path: Path, release: str, known: bool
) -> None:
    tree = _packages.patched(tmp_path)
    made = deb.render("server", deb.facts(tree, dataclasses.replace(BOOKWORM, tag=release), llvm=0))
    files = [text for name, (text, _) in made.items() if name.endswith(".lintian-overrides")]
    assert len(files) >= 3
    assert any("library-not-linked-against-libc" in text for text in files) is known


@pytest.mark.parametrize(
    "said",
    [
        "{file} /usr/lib/postgresql/17/lib",  # before 2.105, as in Debian 11
        "RUNPATH /usr/lib/postgresql/17/lib [{file}]",
    ],
)
def test_overrides_of_the_runpath_are_for_each_lintian(said: str) -> None:
    known = facts_of(matrix.load().major("17"))
    made = deb.render("server", known)
    for package in (known.server, known.client, known.dev):
        text = made[f"{package}.lintian-overrides"][0]
        (pattern,) = re.findall(r": custom-library-search-path (.*)$", text, re.MULTILINE)
        file = "usr/lib/postgresql/17/bin/some"
        assert fnmatch.fnmatchcase(said.format(file=file), pattern)
        assert not fnmatch.fnmatchcase(f"RUNPATH /usr/local/lib [{file}]", pattern)


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_what_is_left_out_is_neither_asked_for_nor_configured(major: matrix.Major) -> None:
    libraries = {
        "gssapi": "libkrb5-dev", "ldap": "libldap-dev", "libcurl": "libcurl4-openssl-dev",
        "libnuma": "libnuma-dev", "liburing": "liburing-dev", "pam": "libpam0g-dev",
        "selinux": "libselinux1-dev",
    }  # fmt: skip
    assert {*libraries, making.JIT} == {*deb.OPTIONAL}
    for name, library in libraries.items():
        made = [deb.render("server", facts_of(major, without=without)) for without in ((), (name,))]
        there = major.number >= deb.OPTIONAL[name]
        assert [f"--with-{name} " in each["rules"][0] for each in made] == [there, False]
        assert [library in each["control"][0] for each in made] == [there, False]


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_the_flavour_stands_in_for_the_plain_packages(major: matrix.Major) -> None:
    known = facts_of(major)
    number = major.number
    control = stanzas(deb.render("server", known)["control"][0])
    server = control[f"postgresql-{number}pt"]
    assert {f"postgresql-{number}", f"postgresql-{number}-ptrack-abi-7"} <= words(
        server["Provides"]
    )
    assert f"postgresql-{number}-jit-llvm (= 14)" in server["Provides"]
    for name, fields in control.items():
        if name == "source":
            continue
        plain = name.replace(f"{number}pt", str(number))
        assert plain != name
        assert plain in words(fields["Provides"])
        assert plain in words(fields["Conflicts"])
        assert plain in words(fields["Replaces"])
        assert "${shlibs:Depends}" in fields["Depends"]
    assert {"libzstd-dev" in control["source"]["Build-Depends"]} == {number >= 15}
    # a field that the plain server has
    assert server["XB-Postgresql-Catversion"] == known.catversion
    assert (
        f"postgresql-{number}pt: unknown-field *atversion*"
        in deb.render("server", known)[f"postgresql-{number}pt.lintian-overrides"][0].splitlines()
    )
    # what the installed headers include; configure is always given the same
    dev = control[f"postgresql-server-dev-{number}pt"]
    assert {"libicu-dev"} <= words(dev["Depends"]) & words(control["source"]["Build-Depends"])
    assert "\t--with-icu " in deb.render("server", known)["rules"][0]
    # it has a library that others load
    assert "Multi-Arch" not in control[f"postgresql-client-{number}pt"]
    assert control["source"]["Rules-Requires-Root"] == "no"
    module = stanzas(deb.render("extension", known)["control"][0])[f"postgresql-{number}-ptrack"]
    assert {"${ptrack:Abi}", f"postgresql-{number}"} <= words(module["Depends"])


@pytest.mark.parametrize("contrib", [True, False])
def test_documents_of_extensions_lie_where_the_plain_server_has_them(
    contrib: bool, tmp_path: Path
) -> None:
    """And those of contrib modules where no package of the plain server's has any."""
    rules = deb.render("server", facts_of(MAJORS[5]))["rules"][0]
    assert "--docdir=/$(DOC) " in rules
    assert "\nDOC = usr/share/doc/postgresql-doc-$(MAJOR)\n" in rules
    recipe = rules[rules.index("\tif [ -d $(TMP)/$(DOC) ]") :].partition("\n\n")[0]
    shown = recipe.replace("\\\n", "\n").replace("$(TMP)", str(tmp_path))
    shown = shown.replace("$(DOC)", "usr/share/doc/postgresql-doc-17")
    doc = tmp_path / "usr/share/doc"
    if contrib:
        (doc / "postgresql-doc-17/extension").mkdir(parents=True)
        (doc / "postgresql-doc-17/extension/autoinc.example").touch()
    subprocess.run(["sh", "-euc", shown.replace("$(SERVER)", "postgresql-17pt")], check=True)
    found = [path.relative_to(doc).as_posix() for path in doc.rglob("*") if path.is_file()]
    assert found == (["postgresql-17pt/examples/autoinc.example"] if contrib else [])
    assert not (doc / "postgresql-doc-17").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
@pytest.mark.parametrize(
    ("header", "number"),
    [
        ("#define CHANGETRACK_ABI 8\n", "8"),  # another one than this session's
        ("/* CHANGETRACK_ABI 1 */\n#define CHANGETRACK_ABI\t12 /* 13 */\n#define X 1\n", "12"),
        ("#define CHANGETRACK 1\n", ""),
        (None, ""),
    ],
)
def test_the_extension_wants_the_hooks_of_the_headers_that_are_installed(
    major: matrix.Major, header: str | None, number: str, tmp_path: Path
) -> None:
    made = deb.render("extension", facts_of(major))
    (tmp_path / "rules").write_text(made["rules"][0])
    if header is not None:
        _packages.write(tmp_path, {"include/storage/changetrack.h": header})
    programs = {"pg_config": f"echo {tmp_path}/include", "dh_gencontrol": 'printf "%s\\n" "$@"'}
    for name, text in programs.items():
        _packages.write(tmp_path / "bin", {name: f"#!/bin/sh\n{text}\n"})
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PG_CONFIG": f"{tmp_path}/bin/pg_config"}
    argv = ["make", "-s", "-f", "rules", "override_dh_gencontrol"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, text=True, capture_output=True, check=False)
    assert (done.returncode == 0) is bool(number), done.stderr
    wanted = f"--\n-Vptrack:Abi=postgresql-{major.number}-ptrack-abi-{number}\n"
    assert done.stdout == (wanted if number else "")
    assert ("no CHANGETRACK_ABI" in done.stderr) is not bool(number)


def test_the_documented_lines_install_what_a_server_needs_and_no_more() -> None:
    known = facts_of(matrix.load().major("17"))
    made = {
        name: fields["Depends"]
        for folder in ("server", "extension")
        for name, fields in stanzas(deb.render(folder, known)["control"][0]).items()
        if name != "source"
    }
    pages = {name: (REPO / name).read_text() for name in ("README.md", "docs/packages.md")}
    for page, text in pages.items():
        (line,) = re.findall(r"^    apt install (\./.*)$", text, re.MULTILINE)
        named = re.findall(r"\./([\w-]+)_\*\.deb", line)
        assert named == [known.server, known.client, known.extension], page
        assert {*named} <= made.keys()
    # from a repository one name brings the rest: only our server has the hooks
    (line,) = re.findall(r"apt update && apt install (\S+)", pages["README.md"])
    assert line == known.extension
    assert "${ptrack:Abi}" in made[line]
    assert known.client in made[known.server]
    rpms = {
        page: re.findall(r"^    dnf install (\./.*)$", text, re.MULTILINE)
        for page, text in pages.items()
    }
    assert len(rpms["README.md"]) == 1
    assert rpms["README.md"] == rpms["docs/packages.md"]


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_what_is_linked_to_the_private_libpq_depends_on_its_package(major: matrix.Major) -> None:
    """For dpkg-shlibdeps, in a package that all versions of the client satisfy from this one on."""
    known = facts_of(major)
    made = deb.render("server", known)
    library, soname, package, relation = made[f"{known.client}.shlibs"][0].split(maxsplit=3)
    assert (library, soname, package) == ("libpq", "5", known.client)
    assert relation == f"(>= {known.upstream})\n"
    # our own packages, made together, keep together
    assert made["shlibs.local"][0] == f"libpq 5 {known.client} (= {known.version})\n"


def test_without_llvm_nothing_speaks_of_it() -> None:
    known = facts_of(MAJORS[5], llvm=0)
    for folder in ("server", "extension"):
        for name, (text, _) in deb.render(folder, known).items():
            if name != "copyright":  # which is of the source
                assert not re.search(r"llvm|clang", text), name


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_scripts_are_shell_and_name_no_other_major(major: matrix.Major, tmp_path: Path) -> None:
    made = deb.render("server", facts_of(major)) | deb.render("extension", facts_of(major))
    scripts = [name for name in made if re.search(r"\.(pre|post)(inst|rm)$", name)]
    assert len(scripts) == 8
    for name in (*scripts, "take"):
        text = made[name][0]
        (tmp_path / name).write_text(text)
        subprocess.run(["sh", "-n", str(tmp_path / name)], check=True)
        named = set(re.findall(r"postgresql(?:-client)?[-/](\d+)", text))
        assert named <= {str(major.number)}, name
    assert made["rules"][1]
    assert made["take"][1]


def test_what_is_needed_is_read_off_the_control_file() -> None:
    control = "Source: a\nBuild-Depends:\n b,\n c (>= 2),\n d-compat (= 13),\n f | g (> 1),\n"
    control += "\nPackage: e\n"
    assert deb.needed(control) == ["b", "c", "d-compat", "f", "g"]


PRISTINE = {
    "src/include/pg_config_manual.h": '#ifndef A\n#define DEFAULT_PGSOCKET_DIR  "/tmp"\n#endif\n',
    "src/include/fe_utils/print.h": '#define DEFAULT_PAGER "more"\n#else\n',
    "src/bin/psql/settings.h": '#else\n#define DEFAULT_EDITOR\t"vi"\n',
    "src/common/Makefile": (
        "STD_CPPFLAGS := $(filter-out -I$(top_srcdir)/src/include,$(CPPFLAGS))\n"
        "STD_LDFLAGS := $(filter-out -L$(top_builddir)/src/common,$(LDFLAGS))\n"
    ),
}


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_debian_s_places_are_edited_in(major: matrix.Major) -> None:
    plans = edits.load(deb.TEMPLATES / "core", major)
    made = {plan.path: edits.perform(plan, PRISTINE[plan.path], where="a test") for plan in plans}
    assert made.keys() == PRISTINE.keys()
    manual = made["src/include/pg_config_manual.h"].splitlines()
    assert manual[-2].endswith('"/var/run/postgresql"')
    assert manual[-3] == "#undef DEFAULT_PGSOCKET_DIR"


def test_an_edit_whose_place_is_gone_is_an_error() -> None:
    plan = edits.load(deb.TEMPLATES / "core", MAJORS[0])[0]
    with pytest.raises(PatchError, match="matches nowhere"):
        edits.perform(plan, "nothing of the kind\n", where="a test")


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_pages_that_the_plain_documentation_has_are_in_no_package(major: matrix.Major) -> None:
    """postgresql-doc-NN, which may be installed beside any server, has man3: nobody else may."""
    rules = deb.render("server", facts_of(major))["rules"][0].replace("\\\n", " ")
    taken = [line.split()[1:] for line in rules.splitlines() if line.startswith("\t$(TAKE) ")]
    assert len(taken) > 5
    (at,) = [at for at, (_, *what) in enumerate(taken) if any("/man/man3" in name for name in what)]
    assert taken[at] == ["/", "'$(SHARE)/man/man3'"]
    # nor what is taken as a whole, which comes later
    assert all(package == "/" for package, *_ in taken[:at])


def test_take_moves_what_matches_once(tmp_path: Path) -> None:
    take = tmp_path / "debian" / "take"
    for name in ("usr/bin/a", "usr/bin/b", "usr/lib/x/1", "usr/lib/y"):
        file = tmp_path / "debian" / "tmp" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    take.write_text(deb.render("server", facts_of(MAJORS[0]))["take"][0])
    for arguments in (["/", "usr/bin/b"], ["one", "usr/bin/*", "usr/none"], ["one", "usr/lib/x"],
                      ["two", "usr"]):  # fmt: skip
        subprocess.run(["sh", str(take), *arguments], cwd=tmp_path, check=True)
    files = {
        str(path.relative_to(tmp_path / "debian"))
        for path in (tmp_path / "debian").rglob("*")
        if path.is_file()
    }
    assert files == {"take", "one/usr/bin/a", "one/usr/lib/x/1", "two/usr/lib/y"}
    assert not (tmp_path / "debian" / "tmp").exists() or not any(
        (tmp_path / "debian" / "tmp").iterdir()
    )


# ---- maintainer scripts, run below a directory with programs that stand in for the system's


TOOLS = (
    "awk", "basename", "cat", "cp", "cut", "dirname", "grep", "id", "ls", "mkdir", "mktemp", "mv",
    "rm", "rmdir", "sed", "sh", "sort", "stat", "tail", "touch",
)  # fmt: skip


class Scripts:
    """The scripts of a server's package, with all their paths below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        known = facts_of(matrix.load().major("17"))
        self.made = deb.render("server", known) | deb.render("extension", known)
        self.server = "/usr/lib/postgresql/17/bin"
        for name in TOOLS:  # and no other program of this machine, whose clusters are not for tests
            link = root / "tools" / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(shutil.which(name) or name)
        for name in ("dpkg-query", "dpkg", "invoke-rc.d", "systemctl", "update-alternatives"):
            self.program(f"/bin/{name}", "exit 1" if name == "dpkg-query" else ":")
        self.put("/usr/share/postgresql-common/maintscripts-functions", "exit 3\n")

    def put(self, path: str, text: str = "") -> Path:
        """A file below the root."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def program(self, path: str, text: str) -> None:
        """A script below the root; those in /bin are found by name."""
        self.put(path, f"#!/bin/sh\n{text}\n").chmod(0o755)

    def cluster(self, name: str, catalog: str, control: str = "1700") -> Path:
        """A cluster's data directory, with catalogs of that version."""
        self.put(f"/etc/postgresql/17/{name}/postgresql.conf")
        said = f"pg_control version number:            {control}\n"
        said += f"Catalog version number:               {catalog}\n"
        return self.put(f"/var/lib/postgresql/17/{name}/said", said).parent

    def installed(self, catversion: str) -> None:
        """A server that noted that version, with clusters' tools."""
        self.program(f"{self.server}/pg_controldata", 'cat "$1/said"')
        self.put("/usr/lib/postgresql/17/lib/plpgsql.so", catversion)
        self.put("/usr/share/postgresql/17/catalog_version", f"{catversion}\n")
        folder = self.root / "etc/postgresql/17"
        listed = f"cd {folder} && for name in *; do echo 17 $name 5432 down postgres "
        self.program(
            "/bin/pg_lsclusters",
            f"{listed}{self.root}/var/lib/postgresql/17/$name log; done\necho 16 main 1 down a b c",
        )

    def run(
        self, script: str, *words: str, package: str = "postgresql-17pt", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script as dpkg does."""
        text = self.made[f"{package}.{script}"][0]
        text = re.sub(r"(?<![\w$}/.])/(?=(?:usr|etc|var|run)\b)", f"{self.root}/", text)
        file = self.put(f"/scripts/{script}", text)
        env |= {"PATH": f"{self.bin}:{self.root}/tools", "TMPDIR": str(self.root / "bin")}
        return subprocess.run(
            ["/bin/sh", str(file), *words], env=env, text=True, check=False, capture_output=True
        )

    def left(self, path: str) -> list[str]:
        """The files below a directory of the root."""
        folder = self.root / path.lstrip("/")
        files = (file for file in folder.rglob("*") if file.is_file())
        return sorted(file.relative_to(folder).as_posix() for file in files)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """The scripts of 17, which is of 202406281-1700."""
    return Scripts(tmp_path)


KEPT = "/var/lib/postgresql-17pt"
OLD = "202404021"


@pytest.mark.parametrize("noted", [OLD, f"{OLD}-1700"])  # postgresql-common notes the one or other
def test_programs_that_clusters_need_are_kept_and_told_of(scripts: Scripts, noted: str) -> None:
    scripts.installed(noted)
    scripts.cluster("beta", OLD)
    scripts.cluster("main", "202406281")
    done = scripts.run("preinst", "upgrade", "17~beta1-1")
    assert done.returncode == 0, done.stderr
    kept = f"{KEPT}/{OLD}-1700"
    assert scripts.left(KEPT) == [
        f"{OLD}-1700/{file}"
        for file in (
            "lib/postgresql/17/bin/pg_controldata", "lib/postgresql/17/lib/plpgsql.so",
            "share/postgresql/17/catalog_version",
        )
    ]  # fmt: skip
    scripts.installed("202406281-1700")
    done = scripts.run("postinst", "configure", "17~beta1-1")
    assert done.returncode == 0, done.stderr
    assert f"cluster 17/beta has catalogs of version {OLD}-1700" in done.stderr
    assert f"--old-bindir={scripts.root}{kept}/lib/postgresql/17/bin 17 beta.old" in done.stderr
    assert "17/main" not in done.stderr
    # what is kept is of the first server that was replaced, and is not written again
    scripts.installed("202406281-1700")
    assert scripts.run("preinst", "upgrade", "17.1-1").returncode == 0
    held = scripts.root / kept.lstrip("/") / "share/postgresql/17/catalog_version"
    assert held.read_text() == f"{noted}\n"


def test_programs_of_other_catalogs_than_a_cluster_s_are_not_kept_for_it(scripts: Scripts) -> None:
    scripts.installed("202406281-1700")
    scripts.cluster("beta", OLD)
    assert scripts.run("preinst", "upgrade", "17.1-1").returncode == 0
    assert scripts.left(KEPT) == []
    done = scripts.run("postinst", "configure", "17.1-1")
    assert f"cluster 17/beta has catalogs of version {OLD}-1700" in done.stderr
    assert "old-bindir" not in done.stderr


def test_a_changed_control_file_counts_though_the_catalogs_are_the_same(scripts: Scripts) -> None:
    scripts.installed("202406281-1600")
    scripts.cluster("main", "202406281", "1600")
    assert scripts.run("preinst", "upgrade", "17~beta1-1").returncode == 0
    assert len(scripts.left(KEPT)) == 3


def test_nothing_is_installed_over_programs_that_cannot_be_kept(scripts: Scripts) -> None:
    scripts.installed(f"{OLD}-1700")
    scripts.cluster("beta", OLD)
    scripts.program("/bin/cp", "exit 1")
    done = scripts.run("preinst", "upgrade", "17~beta1-1")
    assert done.returncode == 1
    assert "error: they could not be kept" in done.stderr
    assert scripts.left(KEPT) == []


@pytest.mark.parametrize("foreign", [False, True])
def test_only_a_directory_of_root_s_own_is_recommended(scripts: Scripts, foreign: bool) -> None:
    scripts.installed("202406281-1700")
    scripts.cluster("beta", OLD)
    scripts.put(f"{KEPT}/{OLD}-1700/lib/postgresql/17/bin/postgres")
    if foreign:
        scripts.program("/bin/stat", f"echo {os.getuid() + 1}")
    done = scripts.run("postinst", "configure", "17.1-1")
    assert ("old-bindir" in done.stderr) is not foreign


@pytest.mark.parametrize("word", ["configure", "abort-upgrade", "abort-remove"])
def test_servers_start_again_also_where_an_upgrade_was_called_off(
    scripts: Scripts, word: str
) -> None:
    scripts.installed("202406281-1700")
    scripts.program("/bin/invoke-rc.d", 'echo "$@"')
    done = scripts.run("postinst", word, "17.1-1")
    assert (done.returncode, done.stdout) == (0, "postgresql start 17\n"), done.stderr


#: postgresql-common's functions before 269, and from then on.
EARLY, LATE = "configure_version() {\n}\n", "create_main_cluster() {\n}\n"
HINT = "pg_createcluster 17 main --start"


@pytest.mark.parametrize(
    ("functions", "others", "servers", "makes", "says"),
    [
        (EARLY, [], ["17"], True, ""),
        (LATE, [], ["17"], True, ""),
        (EARLY, ["16/main", "9.6/a"], ["16", "17"], True, ""),
        (LATE, ["16/main", "9.6/a"], ["17"], False, "another cluster (16/main 9.6/a)"),
        (EARLY, ["17/more"], ["17"], False, ""),
        (LATE, ["17/more", "16/main"], ["17"], False, ""),
        (EARLY, [], ["9.6", "17", "18"], True, ""),
        (LATE, [], ["9.6", "17", "18"], False, "a server of 18"),
        (LATE, [], ["9.6", "17"], True, ""),
    ],
)
def test_a_first_cluster_is_made_where_the_plain_server_would_have_one(
    scripts: Scripts,
    functions: str,
    others: list[str],
    servers: list[str],
    makes: bool,
    says: str,
) -> None:
    scripts.installed("202406281-1700")
    scripts.put("/usr/share/postgresql-common/maintscripts-functions", functions)
    for server in servers:
        scripts.program(f"/usr/lib/postgresql/{server}/bin/postgres", ":")
    for other in others:
        scripts.put(f"/etc/postgresql/{other}/postgresql.conf")
    scripts.program("/bin/pg_conftool", ":")
    scripts.program("/bin/pg_lsclusters", ":")
    made = scripts.root / "made"
    scripts.program("/bin/pg_createcluster", f'echo "$@" > {made}')
    done = scripts.run("postinst", "configure")
    assert done.returncode == 0, done.stderr
    assert made.exists() is makes
    assert not makes or made.read_text() == "-u postgres 17 main\n"
    assert (says in done.stderr, HINT in done.stderr) == (True, bool(says)), done.stderr
    # later versions, and an administrator who wants none
    made.unlink(missing_ok=True)
    assert HINT not in scripts.run("postinst", "configure", "17.1-1").stderr
    scripts.program("/bin/pg_conftool", "echo off")
    assert HINT not in scripts.run("postinst", "configure").stderr
    assert not made.exists()


def test_a_first_cluster_has_the_system_s_locale(scripts: Scripts) -> None:
    """As that of the plain server, and not that of whoever installs, which ssh may have brought."""
    scripts.installed("202406281-1700")
    scripts.program(f"{scripts.server}/postgres", ":")
    for name in ("pg_conftool", "pg_lsclusters"):
        scripts.program(f"/bin/{name}", ":")
    made = scripts.root / "made"
    scripts.program(
        "/bin/pg_createcluster", f'echo "$LANG ${{LC_COLLATE:-}} ${{LC_TIME:-}}" >{made}'
    )

    def locale() -> str:
        mine = {"LANG": "pl_PL.UTF-8", "LC_TIME": "pl_PL.UTF-8"}
        done = scripts.run("postinst", "configure", **mine)
        assert done.returncode == 0, done.stderr
        return made.read_text()

    assert locale() == "C.UTF-8  \n"
    scripts.program("/bin/pam_getenv", '[ "$*" = "-l LC_COLLATE" ] && echo de_DE.UTF-8')
    assert locale() == "C.UTF-8 de_DE.UTF-8 \n"
    scripts.put("/etc/default/locale", "LANG=fr_FR.UTF-8\n")
    assert locale() == "fr_FR.UTF-8 de_DE.UTF-8 \n"


@pytest.mark.parametrize(
    ("words", "status", "preloaded", "started", "said"),
    [
        ("configure 3.0-1", "online", "ptrack", -60, True),
        ("configure 3.0-1", "online,recovery", "'a, ptrack'", -60, True),
        ("configure 3.0-1", "online", "ptrack", 60, False),  # with the server's package, since
        ("configure 3.0-1", "down", "ptrack", -60, False),
        ("configure 3.0-1", "online", "", -60, False),
        ("configure", "online", "ptrack", -60, False),
        ("abort-remove 3.0-1", "online", "ptrack", -60, False),
    ],
)
def test_servers_that_keep_the_library_of_before_are_named(
    scripts: Scripts, words: str, status: str, preloaded: str, started: int, said: bool
) -> None:
    library = scripts.put("/usr/lib/postgresql/17/lib/ptrack.so")
    when = int(library.stat().st_ctime) + started
    data = scripts.root / "var/lib/postgresql"
    rows = []
    for version, name in (("16", "main"), ("17", "main"), ("17", "more")):
        folder = f"/var/lib/postgresql/{version}/{name}"
        scripts.put(f"{folder}/postmaster.pid", f"123\n{folder}\n{when}\n5432\n")
        rows.append(f"{version} {name} 5432 {status} postgres {data}/{version}/{name} /x.log")
    (data / "17/more/postmaster.pid").unlink()
    scripts.put("/rows", "\n".join(rows) + "\n")
    scripts.program("/bin/pg_lsclusters", f"cat {scripts.root}/rows")
    scripts.program("/bin/pg_conftool", f'echo "{preloaded}"')
    done = scripts.run("postinst", *words.split(), package="postgresql-17-ptrack")
    assert done.returncode == 0, done.stderr
    named = re.findall(r"note: cluster (\S+) runs with the ptrack of before", done.stderr)
    assert named == (["17/main"] if said else [])
    assert ("pg_ctlcluster 17 main restart" in done.stderr) is said


@pytest.mark.parametrize(
    ("words", "status", "preloaded", "start", "said"),
    [
        ("configure 3.0-1", "down", "ptrack", "auto\n", True),
        ("configure", "down", "ptrack", "# said\n\nauto # so\n", True),  # the server came first
        ("configure", "down,recovery", "'a, ptrack'", None, True),
        ("configure", "down", "ptrack", "# auto\nmanual\n", False),
        ("configure", "down", "ptrack", "disabled\n", False),
        ("configure", "down", "", "auto\n", False),
        ("configure", "down,binaries_missing", "ptrack", "auto\n", False),
        ("configure", "online", "ptrack", "auto\n", False),
        ("abort-remove 3.0-1", "down", "ptrack", "auto\n", False),
    ],
)
def test_clusters_that_are_down_and_preload_the_library_are_named(
    scripts: Scripts, words: str, status: str, preloaded: str, start: str | None, said: bool
) -> None:
    """They may have been started in vain, before it came. Nothing starts them unasked."""
    scripts.put("/usr/lib/postgresql/17/lib/ptrack.so")
    rows = [f"{version} main 5432 {status} postgres /none /x.log" for version in ("16", "17")]
    scripts.put("/rows", "\n".join(rows) + "\n")
    scripts.program("/bin/pg_lsclusters", f"cat {scripts.root}/rows")
    scripts.program("/bin/pg_conftool", f'echo "{preloaded}"')
    scripts.program("/bin/pg_ctlcluster", f"touch {scripts.root}/started")
    if start is not None:
        scripts.put("/etc/postgresql/17/main/start.conf", start)
    done = scripts.run("postinst", *words.split(), package="postgresql-17-ptrack")
    assert (done.returncode, done.stdout) == (0, "")
    assert ("  pg_ctlcluster 17 main start\n" in done.stderr) is said
    assert ("cluster 17/main preloads ptrack" in done.stderr) is said
    assert said or done.stderr == ""
    assert not (scripts.root / "started").exists()


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("/etc/postgresql/17/main/postgresql.conf", "extension_destdir = '/x'", True),
        ("/etc/postgresql/17/main/conf.d/a.conf", "  Extension_Destdir '/x'", True),
        ("/var/lib/postgresql/17/main/postgresql.auto.conf", "extension_destdir='/x'", True),
        ("/etc/postgresql/17/main/postgresql.conf", "#extension_destdir = ''", False),
        ("/etc/postgresql/17/main/postgresql.conf", "extension_destdirs = ''", False),
        ("/etc/postgresql/16/main/postgresql.conf", "extension_destdir = '/x'", False),
    ],
)
def test_a_setting_of_the_plain_server_alone_is_named(
    scripts: Scripts, file: str, line: str, named: bool
) -> None:
    """With it a cluster of the plain server does not start on ours."""
    scripts.installed("202406281-1700")
    scripts.cluster("main", "202406281")
    path = scripts.put(file, f"port = 5432\n{line}\n")
    done = scripts.run("postinst", "configure", "17.1-1")
    assert done.returncode == 0, done.stderr
    assert (f"take out\n  {path}:2:{line}\n" in done.stderr) is named
    assert ("warning: cluster 17/main does not start" in done.stderr) is named


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_that_setting_is_looked_for_where_the_plain_server_has_it(major: matrix.Major) -> None:
    script = deb.render("server", facts_of(major))[f"postgresql-{major.number}pt.postinst"][0]
    assert ("extension_destdir" in script) is (major.number < 18)


@pytest.mark.parametrize("words", [("install",), ("upgrade", "17.1-1")])
def test_where_there_is_nothing_to_keep_preinst_does_nothing(
    scripts: Scripts, words: tuple[str, ...]
) -> None:
    done = scripts.run("preinst", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


#: apt's log: a run that has ended, and one under way.
ENDED = """
Start-Date: 2026-01-01  10:00:00
Commandline: apt-get purge postgresql-17
Purge: postgresql-17:amd64 (17.2-1)
End-Date: 2026-01-01  10:00:01
"""
RUNNING = """
Start-Date: 2026-01-01  11:00:00
Commandline: apt-get install --purge postgresql-17pt
Install: postgresql-17pt:amd64 (17.3-1), postgresql-client-17pt:amd64 (17.3-1)
"""
PURGING = f"{RUNNING}Purge: postgresql-client-17:amd64 (17.2-1), postgresql-17:amd64 (17.2-1)\n"


@pytest.mark.parametrize(
    ("status", "log", "refused"),
    [
        # dpkg alone: what it was told, and to be purged, by dselect or by --set-selections
        ("purge half-installed", None, True),
        ("purge config-files", None, True),
        ("deinstall config-files", None, False),
        ("purge not-installed", None, False),
        # apt, which dpkg's selection does not tell of
        ("deinstall config-files", PURGING, True),
        ("deinstall config-files", ENDED + PURGING, True),
        ("deinstall config-files", ENDED, False),
        ("deinstall config-files", ENDED + RUNNING, False),
        ("deinstall config-files", PURGING + RUNNING, False),  # the first one was killed
        (
            "",
            RUNNING + "Purge: postgresql-17-cron:amd64 (1-1), postgresql-client-17:all (1)\n",
            False,
        ),
    ],
)
def test_purging_the_plain_server_in_the_same_run_is_refused(
    scripts: Scripts, status: str, log: str | None, refused: bool
) -> None:
    """For its script would drop the clusters, once ours has taken them over."""
    scripts.program("/bin/dpkg-query", f'case $* in *Want*) echo "{status}" ;; *) exit 1 ;; esac')
    if log is not None:
        file = scripts.put("/history.log", log)
        argv = "shell history Dir::Log::History/f"
        scripts.program("/bin/apt-config", f"[ \"$*\" = '{argv}' ] && echo \"history='{file}'\"")
    # without clusters there is nothing to lose; later versions come where ours has been
    assert scripts.run("preinst", "install").returncode == 0
    scripts.cluster("main", "202406281")
    assert scripts.run("preinst", "upgrade", "17.1-1").returncode == 0
    done = scripts.run("preinst", "install")
    assert done.returncode == int(refused), done.stderr
    # apt goes on to unpack what came with it, and takes no files until that is mended
    assert ("apt --fix-broken install" in done.stderr) is refused
    # a selection stays, whatever apt is told
    told = status.startswith("purge ") and refused
    assert ("echo postgresql-17 deinstall | dpkg --set-selections" in done.stderr) is told
    assert ("the same again without --purge" in done.stderr) is (refused and not told)


#: debconf as a script sees it: what is asked is noted, and ANSWER is what it gets.
CONFMODULE = """
db_x_loadtemplatefile() { grep -q 'Template: postgresql-17pt/postrm_purge_data' "$1"; }
db_input() { touch {{ROOT}}/asked; }
db_go() { :; }
db_get() { RET=$ANSWER; }
db_purge() { :; }
"""


@pytest.fixture
def removed(scripts: Scripts) -> Scripts:
    """After removal: two clusters, a cluster of another major, kept programs; debconf is there."""
    scripts.cluster("main", "202406281")
    scripts.cluster("more", "202406281")
    for path in ("/etc/postgresql/16/main/postgresql.conf", "/var/lib/postgresql/16/main/x",
                 "/var/log/postgresql/postgresql-17-main.log",
                 f"{KEPT}/{OLD}-1700/lib/postgresql/17/bin/postgres"):  # fmt: skip
        scripts.put(path)
    confmodule = CONFMODULE.replace("{{ROOT}}", str(scripts.root))
    scripts.put("/usr/share/debconf/confmodule", confmodule)
    folders = " ".join(f"{scripts.root}/{each}/postgresql/17/$3" for each in ("etc", "var/lib"))
    scripts.program(
        "/bin/pg_dropcluster",
        f'[ "$1 $2" = "--stop-server 17" ] || exit 1\nrm -r {folders}\n'
        f"rm -f {scripts.root}/var/log/postgresql/postgresql-17-$3.log",
    )
    return scripts


def clusters(scripts: Scripts) -> list[str]:
    """What there is of clusters, and of programs kept for them."""
    left = [*scripts.left("/etc"), *scripts.left("/var")]
    return [name for name in left if "16/main" not in name]


def asked(scripts: Scripts) -> bool:
    return (scripts.root / "asked").exists()


def test_purging_drops_clusters_with_all_that_was_kept_for_them(removed: Scripts) -> None:
    done = removed.run("postrm", "purge", ANSWER="true")
    assert done.returncode == 0, done.stderr
    assert asked(removed)
    assert clusters(removed) == []
    assert not (removed.root / "etc/postgresql/17").exists()
    assert not (removed.root / "var/lib/postgresql/17").exists()
    assert not (removed.root / KEPT.lstrip("/")).exists()
    assert removed.left("/etc/postgresql/16") == ["main/postgresql.conf"]
    assert removed.left("/var/lib/postgresql/16") == ["main/x"]
    assert not list(removed.bin.glob("tmp.*"))


def test_purging_keeps_clusters_where_that_was_answered(removed: Scripts) -> None:
    before = clusters(removed)
    done = removed.run("postrm", "purge", ANSWER="false")
    assert done.returncode == 0, done.stderr
    assert asked(removed)
    assert clusters(removed) == before
    assert "the clusters of PostgreSQL 17 are kept" in done.stderr
    assert not list(removed.bin.glob("tmp.*"))


def test_purging_keeps_clusters_where_the_question_cannot_be_put(removed: Scripts) -> None:
    before = clusters(removed)
    removed.put("/usr/share/debconf/confmodule", "db_x_loadtemplatefile() { return 1; }\n")
    done = removed.run("postrm", "purge", ANSWER="true")
    assert done.returncode == 0, done.stderr
    assert clusters(removed) == before


@pytest.mark.parametrize(
    ("there", "status", "kept"),
    [
        (True, "installed", True),
        (False, "config-files", True),  # the plain server, which had them first
        (False, "not-installed", False),
        (False, "", False),
    ],
)
def test_purging_keeps_clusters_that_another_server_has(
    removed: Scripts, there: bool, status: str, kept: bool
) -> None:
    removed.program("/bin/dpkg-query", f'[ "$4" = postgresql-17 ] && echo "{status}"')
    if there:
        removed.program(f"{removed.server}/postgres", ":")
    before = clusters(removed)
    done = removed.run("postrm", "purge", ANSWER="true")
    assert done.returncode == 0, done.stderr
    assert asked(removed) is not kept
    assert clusters(removed) == (before if kept else [])
    said = "postgresql-17 has been removed but not purged"
    assert (said in done.stderr) is (status == "config-files")


def test_purging_drops_clusters_where_nothing_can_ask(removed: Scripts) -> None:
    (removed.root / "usr/share/debconf/confmodule").unlink()
    done = removed.run("postrm", "purge")
    assert done.returncode == 0, done.stderr
    assert clusters(removed) == []


def test_purging_drops_clusters_without_postgresql_common(removed: Scripts) -> None:
    """Also one that lies elsewhere; what another cluster's logs are called is no matter."""
    (removed.bin / "pg_dropcluster").unlink()
    elsewhere = removed.put("/srv/data/PG_VERSION").parent
    conf = f"#data_directory = 'no'\ndata_directory = '{elsewhere}'\t# where\n"
    removed.put("/etc/postgresql/17/more/postgresql.conf", conf)
    removed.put("/var/log/postgresql/postgresql-16-main.log")
    done = removed.run("postrm", "purge", ANSWER="true")
    assert done.returncode == 0, done.stderr
    assert not elsewhere.exists()
    assert clusters(removed) == [
        "lib/postgresql/17/more/said", "log/postgresql/postgresql-16-main.log",
    ]  # fmt: skip


def test_what_is_said_of_purging_names_a_file_that_is_there(scripts: Scripts) -> None:
    """debhelper compresses documents from 4 kB on, and leaves the name of smaller ones."""
    scripts.installed("202406281-1700")
    scripts.program("/bin/dpkg-query", "echo config-files")
    done = scripts.run("postinst", "configure", "17.1-1")
    assert "note: do not purge postgresql-17 now" in done.stderr
    (named,) = re.findall(r"README\.Debian\S*", done.stderr)
    text, _ = scripts.made[f"postgresql-17pt.{named}"]
    assert len(text.encode()) < 4096


@pytest.mark.parametrize("word", ["remove", "upgrade", "disappear", "abort-install"])
def test_nothing_but_purging_touches_clusters(removed: Scripts, word: str) -> None:
    before = clusters(removed)
    done = removed.run("postrm", word, ANSWER="true")
    assert done.returncode == 0, done.stderr
    assert not asked(removed)
    assert clusters(removed) == before


# ---- facts


@pytest.fixture
def tree(tmp_path: Path) -> PatchedTree:
    """A patched tree of a few files."""
    return _packages.patched(tmp_path)


def test_facts_are_read_off_the_tree(tree: PatchedTree) -> None:
    known = deb.facts(tree, BOOKWORM, llvm=14)
    assert (known.abi, known.catversion, known.upstream) == (3, "202406281-1700", "17.4")
    assert known.version.endswith("+deb12")
    assert known.postgresql_license == " Portions Copyright (c) 1996-2026, PGDG\n .\n May be used."
    assert known.context()["postgresql_years"] == "1996-2026"
    assert known.context()["ptrack_years"] == "2026"
    for provider, untagged, tip in (
        ("git", False, True),
        ("path", True, True),
        ("path", False, False),
    ):
        source = dataclasses.replace(tree.source, provider=provider, untagged=untagged)
        known = deb.facts(dataclasses.replace(tree, source=source), BOOKWORM, llvm=0)
        assert ("+git20231114.221320.ccccccc" in known.version) is tip


def test_third_parties_are_named_after_all_files_and_before_the_license(tree: PatchedTree) -> None:
    """The last paragraph of files that matches one holds for it."""
    text = deb.render("server", deb.facts(tree, BOOKWORM, llvm=0))["copyright"][0]
    before, _, after = text.partition(notices.text())
    assert before.count("\nFiles: ") == 2
    assert "\nFiles: *\nCopyright: 1996-2026 PostgreSQL" in before
    assert (
        after
        == "\nLicense: PostgreSQL\n Portions Copyright (c) 1996-2026, PGDG\n .\n May be used.\n"
    )
    # lintian's errors: a common license that is not pointed to, and one in full
    for name in ("GPL-1", "GPL-3", "Artistic", "Apache-2.0"):
        assert f"/usr/share/common-licenses/{name}" in text
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" not in text


def test_a_license_without_a_year_is_refused(tree: PatchedTree) -> None:
    (tree.path / "COPYRIGHT").write_text("May be used.\n")
    with pytest.raises(PackageError, match="says nothing like `Copyright"):
        deb.render("server", deb.facts(tree, BOOKWORM, llvm=0))


@pytest.mark.parametrize("said", ["0", "-1", "1.1", "two", "01"])
def test_a_revision_that_is_none_is_refused(
    tree: PatchedTree, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("PTRACK_REVISION", said)
    with pytest.raises(UsageError, match="PTRACK_REVISION is"):
        deb.facts(tree, BOOKWORM, llvm=0)


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_the_postgresql_common_is_one_whose_clusters_start(major: matrix.Major) -> None:
    """Before 241 they name stats_temp_directory, which 15 does not know any more."""
    text = deb.render("server", facts_of(major))["control"][0]
    wanted = "241~" if major.number >= 15 else "225~"
    assert (
        text.count(f" postgresql-common (>= {wanted})") == text.count(" postgresql-common (") == 2
    )


# ---- the machine


@_packages.with_dpkg
def test_missing_build_dependencies_are_named_in_a_line(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    control = "Source: a\nMaintainer: A <a@b.c>\n"
    control += "Build-Depends: no-such-thing, dpkg-dev, nor-this (>= 3) | or-this | nor-that,\n"
    control += " dpkg-dev | no-more\n\nPackage: a\n"
    control += "Architecture: any\nDescription: a\n a\n"
    with pytest.raises(HostError) as caught:
        deb._ensure(control, "deb-17", HERE)
    assert (caught.value.hint or "").endswith("apt-get install -y no-such-thing nor-this")


@_packages.with_dpkg
def test_a_control_file_that_cannot_be_read_is_not_taken_for_satisfied(own_cache: Path) -> None:
    del own_cache
    with pytest.raises(PackageError, match="cannot read the rendered control file"):
        deb._unmet("Source: a\nSource: b\n", "deb-17", HERE)


class Old(Native):
    """A release whose apt says that of postgresql-common."""

    def __init__(self, said: str) -> None:
        self.said = said

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Answers apt-cache."""
        if argv[0] != "apt-cache":
            return super().call(argv, **how)
        assert [*argv[1:]] == ["policy", "postgresql-common"]
        return Completed(argv=tuple(argv), returncode=0, stdout=self.said)


@_packages.with_dpkg
@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
@pytest.mark.parametrize("candidate", ["225+deb11u1", "238", "241", "248+deb12u1", "299.pgdg11+1"])
def test_packages_that_the_release_cannot_install_are_not_made(
    candidate: str, major: matrix.Major
) -> None:
    """225 and 238 are those of Debian 11 and of Ubuntu 22.04, without PGDG's."""
    control = deb.render("server", facts_of(major))["control"][0]
    release = Old(
        f"postgresql-common:\n  Installed: (none)\n  Candidate: {candidate}\n  Version table:\n"
    )
    if major.number < 15 or candidate not in {"225+deb11u1", "238"}:
        deb._check_installable(control, release)
        return
    with pytest.raises(
        HostError, match=r"postgresql-common 241~ or later, .* can have 2"
    ) as caught:
        deb._check_installable(control, release)
    assert "PGDG's apt repository" in (caught.value.hint or "")


@pytest.mark.parametrize("said", ["", "postgresql-common:\n  Candidate: (none)\n"])
def test_what_apt_cannot_tell_is_said(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    control = deb.render("server", facts_of(MAJORS[5]))["control"][0]
    deb._check_installable(control, Old(said))
    assert "knows no postgresql-common; the packages need 241~ or later" in capsys.readouterr().out


def test_that_is_told_before_anything_is_compiled(
    tree: PatchedTree, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    monkeypatch.setattr(deb, "this_system", lambda _where: BOOKWORM)
    monkeypatch.setattr(deb, "_ensure", lambda *_: None)
    monkeypatch.setattr(making, "finished", lambda *_: pytest.fail("something is made"))
    release = Old("postgresql-common:\n  Candidate: 225\n")
    with pytest.raises(HostError, match="could not be installed"):
        deb.build(tree, without=[making.JIT], where=release)


def test_publishing_tells_what_it_was_made_of(tree: PatchedTree, tmp_path: Path) -> None:
    """The manifest of a release is JSON that names the source."""
    known = deb.facts(tree, BOOKWORM, llvm=0)
    release = Release(
        kind="deb", system=BOOKWORM, major="17", packages=(), files=(),
        made_of=deb._made_of(tree, known, {"gcc": "12"}),
    )  # fmt: skip
    place = publish(release, tmp_path / "dist")
    said = json.loads((place / "manifest.json").read_text())
    assert place.relative_to(tmp_path / "dist").as_posix() == "debian-bookworm-amd64/postgresql-17"
    assert said["postgresql"]["tree"] == "d" * 40
    assert said["patch"]["abi"] == 3
