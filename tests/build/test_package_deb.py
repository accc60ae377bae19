"""Debian packages: what the templates give for each major, keys, and that a build is whole or not.

What needs a real build (installing, clusters, purging) is verified on the packages themselves.
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

from ptrack_build import cache, host, matrix, run
from ptrack_build.errors import HostError, PatchError
from ptrack_build.package import PackageError, Release, System, deb, publish
from ptrack_build.package.place import NATIVE
from ptrack_build.patch import PatchedTree, edits
from ptrack_build.source import SourceTree

if TYPE_CHECKING:
    from pathlib import Path

MAJORS = matrix.load().majors
BOOKWORM = System(
    distribution="debian", release="12", codename="bookworm", architecture="amd64", tag="deb12"
)
debian_only = pytest.mark.skipif(
    not (shutil.which("dpkg-buildpackage") and shutil.which("gcc")), reason="needs dpkg-dev"
)


def facts_of(major: matrix.Major, *, llvm: int = 14) -> deb.Facts:
    """Made-up facts of a major."""
    return deb.Facts(
        major=major.number,
        upstream=f"{major.number}.3",
        minor=f"{major.number}.3",
        version=f"{major.number}.3-1+ptrack3.0.0+deb12",
        extension_version=f"3.0.0+pg{major.number}.3-1+deb12",
        project="3.0.0",
        abi=7,
        catversion="202406281-1700",
        llvm=llvm,
        cflags=major.cflags,
        vendor="Debian",
        maintainer="A B <a@b.example>",
        epoch=1_700_000_000,
        postgresql_license=" may be used",
        ptrack_license=" may be used",
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


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("12.3", "12.3"), ("17.11", "17.11"), ("19beta1", "19~beta1"), ("18rc1", "18~rc1"),
        ("20devel", "20~~devel"),
    ],
)  # fmt: skip
def test_versions_of_postgresql_as_debian_writes_them(version: str, expected: str) -> None:
    assert deb.debian_version(version) == expected


@debian_only
def test_versions_sort_as_they_come_out() -> None:
    rising = ["20devel", "20alpha1", "20beta1", "20beta2", "20rc1", "20.0", "20.1", "20.10"]
    for older, newer in itertools.pairwise(map(deb.debian_version, rising)):
        compared = subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False)
        assert compared.returncode == 0, f"{older} is not older than {newer}"


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(PackageError, match="'17'"):
        deb.debian_version("17")


# ---- templates


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
    assert control["source"]["Rules-Requires-Root"] == "no"
    module = stanzas(deb.render("extension", known)["control"][0])[f"postgresql-{number}-ptrack"]
    assert {f"postgresql-{number}-ptrack-abi-7", f"postgresql-{number}"} <= words(module["Depends"])


def test_without_llvm_nothing_speaks_of_it() -> None:
    known = facts_of(MAJORS[5], llvm=0)
    for folder in ("server", "extension"):
        for name, (text, _) in deb.render(folder, known).items():
            assert not re.search(r"llvm|clang", text), name


@pytest.mark.parametrize("major", MAJORS, ids=lambda major: major.name)
def test_scripts_are_shell_and_name_no_other_major(major: matrix.Major, tmp_path: Path) -> None:
    made = deb.render("server", facts_of(major)) | deb.render("extension", facts_of(major))
    scripts = [name for name in made if re.search(r"\.(pre|post)(inst|rm)$", name)]
    assert len(scripts) == 7
    for name in (*scripts, "take"):
        text = made[name][0]
        (tmp_path / name).write_text(text)
        subprocess.run(["sh", "-n", str(tmp_path / name)], check=True)
        named = set(re.findall(r"postgresql(?:-client)?[-/](\d+)", text))
        assert named <= {str(major.number)}, name
    assert made["rules"][1]
    assert made["take"][1]


def test_a_template_that_names_the_unknown_says_which(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "control.j2").write_text("Source: {{ sauce }}\n")
    with pytest.raises(PackageError, match=r"server/control\.j2: 'sauce' is undefined"):
        deb.render("server", facts_of(MAJORS[0]), tmp_path)


def test_what_is_needed_is_read_off_the_control_file() -> None:
    control = "Source: a\nBuild-Depends:\n b,\n c (>= 2),\n d-compat (= 13),\n\nPackage: e\n"
    assert deb.needed(control) == ["b", "c", "d-compat"]


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


# ---- a build, of a package that takes no time


RULES = r"""#!/usr/bin/make -f
%:
	@true
build:
	$(FAKE_BUILD)
	pwd > place
binary: build
	mkdir -p debian/p/DEBIAN debian/p/usr/share/p
	cp {{ "hello.h" if role == "server" else "Makefile" }} debian/p/usr/share/p/
	dpkg-gencontrol -p{{ role }} -Pdebian/p
	dpkg-deb --root-owner-group -b debian/p ..
"""

CONTROL = """Source: {{ role }}
Maintainer: {{ maintainer }}
Section: misc
Priority: optional
Rules-Requires-Root: no
Build-Depends: dpkg-dev

Package: {{ role }}
Architecture: any
Description: test
 test
"""

CHANGELOG = """{{ role }} ({{ version }}) unstable; urgency=medium

  * Test.

 -- {{ maintainer }}  {{ date }}
"""


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A debian/ of two packages, which the build takes for ours."""
    root = tmp_path / "templates"
    for role in ("server", "extension"):
        (root / role).mkdir(parents=True)
        for name, text in (("rules", RULES), ("control", CONTROL), ("changelog", CHANGELOG)):
            head = f'{{% set role = "{role}" %}}\n'
            (root / role / f"{name}.j2").write_text(head + text)
    (root / "core").mkdir()
    (root / "core" / "hello.h.j2").write_text("after hello\ninsert\nthere\nend\n")
    monkeypatch.setattr(deb, "TEMPLATES", root)
    return root


@pytest.fixture
def tree(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> PatchedTree:
    """A patched tree that has just what the facts are read from."""
    del own_cache
    monkeypatch.setattr(host, "server_user", lambda: None)
    path = tmp_path / "tree"
    for name, text in (
        ("configure", "#!/bin/sh\n"),
        ("hello.h", "hello\n"),
        ("COPYRIGHT", "May be used.\n\nNo warranty.\n"),
        ("src/include/catalog/catversion.h", "#define CATALOG_VERSION_NO\t202406281\n"),
        ("src/include/catalog/pg_control.h", "#define PG_CONTROL_VERSION\t1700\n"),
        ("src/include/storage/changetrack.h", "#define CHANGETRACK_ABI 3\n"),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    os.utime(path / "configure", (1_700_000_000, 1_700_000_000))
    source = SourceTree(
        major=matrix.load().major("17"), version="17.4", commit="c" * 40, digest="d" * 40,
        mirror=tmp_path, provider="distro", origin="a test",
    )  # fmt: skip
    return PatchedTree(source=source, path=path, key="k", patch_digest="p", how="applied")


def test_facts_are_read_off_the_tree(tree: PatchedTree) -> None:
    known = deb.facts(tree, BOOKWORM, llvm=14)
    assert (known.abi, known.catversion, known.upstream) == (3, "202406281-1700", "17.4")
    assert known.version.endswith("+deb12")
    assert known.postgresql_license == " May be used.\n .\n No warranty."
    tip = dataclasses.replace(tree.source, provider="git")
    assert (
        "+git20231114.ccccccc"
        in deb.facts(dataclasses.replace(tree, source=tip), BOOKWORM, llvm=0).version
    )


def test_a_tree_without_hooks_is_refused(tree: PatchedTree) -> None:
    (tree.path / "src/include/storage/changetrack.h").write_text("")
    with pytest.raises(PackageError, match="does not define CHANGETRACK_ABI"):
        deb.facts(tree, BOOKWORM, llvm=0)


def built(tree: PatchedTree, folder: Path) -> Release:
    """Both packages, with an extension of one file."""
    extension = folder / "ext"
    extension.mkdir(exist_ok=True)
    for name in ("Makefile", "ptrack.control"):
        if not (extension / name).exists():
            (extension / name).write_text("x\n")
    return deb.build(tree, jit=False, extension=extension)


@pytest.fixture
def _no_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension of the test is compiled with nothing of the server's."""
    monkeypatch.setattr(deb, "DEVELOPMENT", ())


@debian_only
@pytest.mark.usefixtures("templates", "_no_unpacking")
def test_a_build_is_kept_and_edits_make_only_what_they_touch(
    tree: PatchedTree, tmp_path: Path
) -> None:
    first = built(tree, tmp_path)
    assert {package.name for package in first.packages} == {"server", "extension"}
    server = next(file for file in first.files if file.name.startswith("server"))
    shown = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(server)], check=True, capture_output=True
    ).stdout
    assert b"hello\nthere\n" in shown
    assert (tree.path / "hello.h").read_text() == "hello\n"
    os.environ["FAKE_BUILD"] = "false"  # whatever is built from here on fails
    try:
        assert built(tree, tmp_path) == first
        (tmp_path / "ext" / "Makefile").write_text("y\n")
        with pytest.raises(PackageError, match="packages of postgresql-17-ptrack") as caught:
            built(tree, tmp_path)
        assert caught.value.log is not None
        assert caught.value.log.is_file()
    finally:
        del os.environ["FAKE_BUILD"]
    second = built(tree, tmp_path)
    same = {p.name: p.sha256 for p in first.packages}
    assert {p.name for p in second.packages if p.sha256 != same[p.name]} == {"extension"}


@debian_only
@pytest.mark.usefixtures("templates", "_no_unpacking")
def test_two_builds_are_the_same_bytes(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(tree, tmp_path)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "another"))
    second = built(tree, tmp_path)
    assert second.manifest() == first.manifest()
    assert second.files != first.files


@debian_only
@pytest.mark.usefixtures("templates", "_no_unpacking")
def test_a_failure_leaves_nothing_and_tells_why(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD", "echo 'x.c:1: error: No space left on device'; false")
    with pytest.raises(PackageError) as caught:
        built(tree, tmp_path)
    assert "No space left" in caught.value.what
    assert "free some space" in (caught.value.hint or "")
    assert list(cache.directory("deb").iterdir()) == []
    assert list(cache.directory("build", "deb-17").iterdir()) == []


@debian_only
@pytest.mark.usefixtures("templates", "_no_unpacking")
def test_an_interruption_leaves_nothing(
    tree: PatchedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run.call

    def interrupted(argv: list[str], **options: object) -> object:
        if argv[0] != "dpkg-buildpackage":
            return command(argv, **options)  # type: ignore[arg-type]
        place = cache.root() / "build" / "deb-17" / "server"
        (place / "server_1_all.deb").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(tree, tmp_path)
    assert list(cache.directory("deb").iterdir()) == []
    assert list(cache.directory("build", "deb-17").iterdir()) == []


@debian_only
def test_missing_build_dependencies_are_named_in_a_line(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    control = "Source: a\nMaintainer: A <a@b.c>\n"
    control += "Build-Depends: no-such-thing, dpkg-dev, nor-this (>= 3)\n\nPackage: a\n"
    control += "Architecture: any\nDescription: a\n a\n"
    with pytest.raises(HostError) as caught:
        deb._ensure(control, "deb-17", NATIVE)
    assert (caught.value.hint or "").endswith("apt-get install -y no-such-thing nor-this")


@debian_only
def test_a_control_file_that_cannot_be_read_is_not_taken_for_satisfied(own_cache: Path) -> None:
    del own_cache
    with pytest.raises(PackageError, match="cannot read the rendered control file"):
        deb._unmet("Source: a\nSource: b\n", "deb-17", NATIVE)


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
