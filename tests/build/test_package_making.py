"""What packages of any kind have in common: versions, keys, and that a build is whole or not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptrack_build import container, host, patch, source
from ptrack_build.errors import HostError, PtrackError
from ptrack_build.package import (
    SUMS,
    PackageError,
    Release,
    deb,
    making,
    place,
    publish,
    read,
    record,
    rpm,
    sbom,
    sha256,
)
from ptrack_build.package.place import HERE, Native
from ptrack_build.run import Completed
from ptrack_build.source.mirror import WHEN
from tests.build import _packages
from tests.build._packages import write

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Unpack

    from ptrack_build.package import Package
    from ptrack_build.package.place import Place
    from ptrack_build.patch import PatchedTree
    from ptrack_build.run import How
    from tests.build._packages import Line


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("12.3", "12.3"), ("17.11", "17.11"), ("19beta1", "19~beta1"), ("18rc1", "18~rc1"),
        ("20devel", "20~~devel"),
    ],
)  # fmt: skip
def test_versions_of_postgresql_as_packages_have_them(version: str, expected: str) -> None:
    assert making.sortable(version) == expected


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(PackageError, match="'17'"):
        making.sortable("17")


def test_a_template_that_names_the_unknown_says_which(tmp_path: Path) -> None:
    template = tmp_path / "server" / "control.j2"
    _packages.write(tmp_path, {"server/control.j2": "Source: {{ sauce }}\n"})
    with pytest.raises(PackageError, match=r"deb/server/control\.j2: 'sauce' is undefined"):
        making.rendered(template, {}, "deb.Facts")
    template.write_text("{% if %}")
    with pytest.raises(PackageError, match=r"rpm/server/control\.j2:1: Expected an expression"):
        making.rendered(template, {}, "rpm.Facts")


def test_a_message_that_speaks_of_llvm_is_its_only_where_it_is_used() -> None:
    assert "--no-jit" in making.hint("no such thing: LLVMFoo", "LLVM 19")
    assert "--no-jit" not in making.hint("no such thing: LLVMFoo")
    assert "free some space" in making.hint("llvm.o: No space left on device", "LLVM 19")


def test_a_tree_without_hooks_is_refused(tmp_path: Path) -> None:
    tree = _packages.patched(tmp_path)
    assert making.abi(tree) == 3
    (tree.path / "src/include/storage/changetrack.h").write_text("")
    with pytest.raises(PackageError, match="does not define CHANGETRACK_ABI"):
        making.abi(tree)


# ---- what compiles

#: Debian's packages: name, version, state, source, what it depends on.
INSTALLED = """\
gcc 4:12.2.0-3 installed gcc-defaults cpp (= 4:12.2.0-3), gcc-12 (>= 12.2.0-1~)
cpp 4:12.2.0-3 installed gcc-defaults cpp-12 (>= 12.2.0-1~)
cpp-12 12.2.0-14 installed gcc-12 gcc-12-base (= 12.2.0-14), libmpc3 (>= 1.1.0)
gcc-12 12.2.0-14 installed gcc-12 cpp-12 (= 12.2.0-14), libgcc-12-dev | libgcc-dev
gcc-12-base 12.2.0-14 installed gcc-12
libgcc-12-dev 12.2.0-14 installed gcc-12 gcc-12-base (= 12.2.0-14), libgomp1
libgomp1 12.2.0-14 installed gcc-12 libc6 (>= 2.34)
libmpc3 1.3.1 config-files mpclib3 libc6
python3-dev 3.11.2-1 installed python3-defaults libpython3-dev (= 3.11.2-1), python3:any
libpython3-dev 3.11.2-1 installed python3-defaults libpython3.11-dev (>= 3.11.2-1~)
libpython3.11-dev 3.11.2-6 installed python3.11 libpython3.11 (= 3.11.2-6)
libpython3.11 3.11.2-6 installed python3.11 libc6 (>= 2.36)
python3 3.11.2-1 installed python3-defaults
libssl-dev 3.0.19 installed openssl libssl3 (= 3.0.19)
libssl3 3.0.19 installed openssl libc6 (>= 2.34)
libc6 2.36-9 installed glibc
"""


class Debian(Native):
    """A system with those packages."""

    def call(self, argv: Sequence[str], **how: Unpack[How]) -> Completed:
        """Answers dpkg-query."""
        del how
        names = argv[4:]
        assert argv[0] == "dpkg-query"
        assert names
        rows = [row for row in INSTALLED.splitlines(True) if row.partition(" ")[0] in names]
        return Completed(argv=tuple(argv), returncode=1, stdout="".join(rows))


def test_what_compiles_is_told_by_the_packages_that_do_it() -> None:
    """Through those that choose a version; of the others, what they directly depend on."""
    found = making.builder_debs(["gcc", "python3-dev", "libssl-dev", "nothing"], Debian())
    assert [*found] == [
        "cpp", "cpp-12", "gcc", "gcc-12", "gcc-12-base", "libgcc-12-dev", "libpython3-dev",
        "libpython3.11", "libpython3.11-dev", "libssl-dev", "libssl3", "python3", "python3-dev",
    ]  # fmt: skip
    assert found["gcc-12"] == "12.2.0-14"


# ---- when


def test_a_commit_s_time_is_the_source_s(tmp_path: Path) -> None:
    assert making.epoch(_packages.patched(tmp_path)) == 1_700_000_000


def test_the_time_of_an_import_is_that_of_its_release(tmp_path: Path) -> None:
    tree = _packages.patched(tmp_path)
    os.utime(tree.path / "configure", (WHEN, WHEN))
    assert making.epoch(tree) == WHEN
    notes = "<sect1 id='release-17-4'><formalpara><para>{}</para>\n<para>2024-09-26</para>"
    for said, day in (
        ("2026-08-13", "2026-08-13"),
        ("2026-??-??, AS OF 2026-05-04", "2026-05-04"),
        ("2026-??-??", "2024-09-26"),
    ):
        write(tree.path, {"doc/src/sgml/release-17.sgml": notes.format(said)})
        assert time.strftime("%Y-%m-%d %T", time.gmtime(making.epoch(tree))) == f"{day} 00:00:00"


# ---- the compiler cache

APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *install*ccache*) [ -n "$REFUSES" ] || cp /bin/true {bin}/ccache ;; esac
"""


@pytest.fixture
def bare(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of root's with git and nothing else; what its apt-get was asked."""
    del own_cache
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("sh", "cp", "git"):
        (bin_ / name).symlink_to(shutil.which(name) or name)
    log = tmp_path / "apt.log"
    log.touch()
    (bin_ / "apt-get").write_text(APT.format(log=log, bin=bin_))
    (bin_ / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.setenv("REFUSES", "")
    monkeypatch.delenv("PTRACK_NO_INSTALL", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_lists_stale", lambda: True)
    host._advise.cache_clear()
    return log


class Elsewhere(Native):
    """A place that is not this machine."""


def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Native) -> list[str | None]:
    """Have a major packaged somewhere, by nothing; the compiler cache that the build has met."""
    tree = _packages.patched(tmp_path)
    met: list[str | None] = []

    def build(tree: PatchedTree, *, without: Collection[str], where: Place) -> Release:
        del without, where
        met.append(shutil.which("ccache"))
        return Release(
            kind="deb", system=_packages.system("amd64"), major=tree.source.major.name,
            made_of={}, packages=(), files=(),
        )  # fmt: skip

    @contextlib.contextmanager
    def place(*_: object, **_more: object) -> Iterator[Native]:
        yield where

    monkeypatch.setattr(source, "fetch", lambda *_a, **_k: tree.source)
    monkeypatch.setattr(patch, "apply", lambda _source: tree)
    monkeypatch.setattr(container, "place", place)
    monkeypatch.setattr(making, "publish", lambda _made: tmp_path)
    making.one("deb", build, tree.source.major, making.Wanted())
    return met


@pytest.mark.usefixtures("own_cache")
def test_too_little_room_in_dist_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist = tmp_path / "not" / "there"
    usage = shutil.disk_usage(tmp_path)
    asked: list[Path] = []

    def full(path: Path) -> object:
        asked.append(path)
        return usage._replace(free=299_999_999)

    monkeypatch.setattr(shutil, "disk_usage", full)
    monkeypatch.setattr(making, "DIST", dist)
    monkeypatch.setattr(source, "fetch", lambda *_a, **_k: pytest.fail("fetched"))
    major = _packages.patched(tmp_path).source.major
    with pytest.raises(HostError, match=f"{dist} has 299 MB free; .* takes 300 MB") as caught:
        making.one("deb", deb.build, major, making.Wanted())
    assert caught.value.hint == f"free some space at {dist}, and run it again"
    assert asked == [tmp_path]
    assert not dist.exists()


def test_packaging_sees_to_a_compiler_cache(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (met,) = packaged(tmp_path, monkeypatch, HERE)
    assert met is not None
    assert "ccache" in bare.read_text()


def test_without_a_compiler_cache_packaging_goes_on_and_says_so(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    assert packaged(tmp_path, monkeypatch, HERE) == [None]
    assert "install -y ccache" in capsys.readouterr().out
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    asked = bare.read_text()
    assert packaged(tmp_path, monkeypatch, HERE) == [None]
    assert bare.read_text() == asked


def test_a_compiler_cache_of_this_machine_is_not_for_a_container(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packaged(tmp_path, monkeypatch, Elsewhere()) == [None]
    assert not bare.read_text()


# ---- an image that may be skipped


def asked(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    error: PtrackError,
    *,
    built: bool,
    may_skip: bool,
) -> Path | None:
    """What making.one says where that comes of an image, or (built) of a build in it."""
    tree = _packages.patched(folder)

    def refuses(*_: object, **_more: object) -> Release:
        raise error

    where = contextlib.nullcontext(Elsewhere())
    monkeypatch.setattr(host, "ensure", lambda *_a, **_k: None)
    monkeypatch.setattr(source, "fetch", lambda *_a, **_k: tree.source)
    monkeypatch.setattr(patch, "apply", lambda _source: tree)
    monkeypatch.setattr(container, "place", lambda *_a, **_k: where if built else refuses())
    monkeypatch.setattr(making, "dist_room", lambda *_: None)
    wanted = making.Wanted(image="debian:sid", may_skip=may_skip)
    return making.one("deb", refuses, tree.source.major, wanted)


@pytest.mark.parametrize(
    ("error", "built"), [(container.NoImage, False), (place.Unobtainable, True)]
)
@pytest.mark.usefixtures("own_cache")
def test_what_cannot_be_had_on_a_day_is_skipped_only_where_that_is_allowed(
    error: type[PtrackError],
    built: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    why = error("debian:sid is nowhere\nat 100%")
    assert asked(monkeypatch, tmp_path / "a", why, built=built, may_skip=True) is None
    said = "SKIPPED deb-17, as it may be: debian:sid is nowhere"
    assert f"{said}\nat 100%\n" in (told := capsys.readouterr().out)
    assert "::" not in told
    with pytest.raises(error, match="is nowhere"):
        asked(monkeypatch, tmp_path / "b", why, built=built, may_skip=False)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert asked(monkeypatch, tmp_path / "c", why, built=built, may_skip=True) is None
    assert f"\n::warning::{said}%0Aat 100%25\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "built"),
    [(container.NoEngine, False), (container.ContainerError, False), (HostError, True),
     (PackageError, True)],
)  # fmt: skip
@pytest.mark.usefixtures("own_cache")
def test_what_fails_is_never_skipped(
    error: type[PtrackError], built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = error("the engine does not answer, or the disk is full")
    with pytest.raises(error, match="is full"):
        asked(monkeypatch, tmp_path, why, built=built, may_skip=True)


# ---- a build, of packages that take no time


@pytest.fixture(
    params=[
        pytest.param("deb", marks=_packages.with_dpkg),
        pytest.param("rpm", marks=_packages.with_rpmbuild),
    ]
)
def line(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Line:
    """The build line of either kind."""
    del own_cache
    return _packages.line(request.param, tmp_path, monkeypatch)


def unpacked(line: Line, package: Path, root: Path) -> Path:
    """The files of a package."""
    root.mkdir()
    if line.kind == "deb":
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    else:
        rpm.unpack(package, root)
    return root


def test_a_build_is_kept_and_edits_make_only_what_they_touch(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = line.built()
    assert {package.name for package in first.packages} == {"server", "extension"}
    assert [file.name for file in first.files] == [package.file for package in first.packages]
    server = next(
        file for file in first.files if file.name.startswith("server") and ".src." not in file.name
    )
    (edited,) = unpacked(line, server, tmp_path / "root").rglob("hello.h")
    assert edited.read_text() == "hello\nthere\n"
    assert (line.tree.path / "hello.h").read_text() == "hello\n"
    monkeypatch.setenv("FAKE_BUILD", "false")  # whatever is built from here on fails
    assert line.built() == first
    (line.extension / "Makefile").write_text("y\n")
    with pytest.raises(PackageError, match=r"packages of \S*ptrack") as caught:
        line.built()
    assert caught.value.log is not None
    assert caught.value.log.is_file()
    monkeypatch.delenv("FAKE_BUILD")
    second = line.built()
    same = {package.file: package.sha256 for package in first.packages}
    changed = {each.name for each in second.packages if each.sha256 != same.get(each.file)}
    assert changed == {"extension"}


@_packages.with_dpkg
def test_what_dpkg_notes_of_a_build_is_kept_beside_the_packages(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both source packages, in dist/ and its sums; in no bill, for they are no packages."""
    del own_cache
    made = _packages.line("deb", tmp_path, monkeypatch).built()
    assert [file.name.partition("_")[0] for file in made.buildinfo] == ["server", "extension"]
    assert not {*made.buildinfo} & {*made.files}
    text = "".join(file.read_text() for file in made.buildinfo)
    debs = [each for each in made.packages if each.architecture != "source"]
    assert all(f" {each.sha256} {each.size} {each.file}\n" in text for each in debs)
    place = publish(made, tmp_path / "dist")
    said = read(place, dict)
    for file in made.buildinfo:
        kept = place / file.name
        assert kept.read_bytes() == file.read_bytes()
        assert {"file": kept.name, "sha256": sha256(kept)} in said["buildinfo"]
        assert f"{sha256(kept)}  {kept.name}\n" in (place / SUMS).read_text()
    assert "buildinfo" not in (place / sbom.FILE).read_text()
    assert "buildinfo" not in json.loads(made.manifest(buildinfo=False))


@_packages.with_rpmbuild
def test_the_same_is_noted_of_rpms(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes out the same again, wherever it is made."""
    del own_cache
    line = _packages.line("rpm", tmp_path, monkeypatch)
    made = line.built()
    names = [file.name for file in made.buildinfo]
    assert len(names) == 2
    assert names[0].startswith("postgresql17pt_17.4-")
    assert names[1].startswith("ptrack_17_3.")
    texts = [file.read_text() for file in made.buildinfo]
    for each in made.packages:
        assert sum(f"\n {each.sha256} {each.size} {each.file}\n" in text for text in texts) == 1
    place = publish(made, tmp_path / "dist")
    assert [each["file"] for each in read(place, dict)["buildinfo"]] == names
    assert all(f"  {name}\n" in (place / SUMS).read_text() for name in names)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "another"))
    again = line.built()
    assert again.buildinfo != made.buildinfo
    assert [file.read_text() for file in again.buildinfo] == texts
    assert not [text for text in texts if str(tmp_path) in text]


class Installed(Native):
    """A place with packages of some manager."""

    def __init__(self, manager: str, listed: str) -> None:
        self._manager = manager
        self._listed = listed

    def manager(self) -> str:
        return self._manager

    def os_release(self) -> dict[str, str]:
        return {"PRETTY_NAME": "Fedora Linux 43"}

    def call(self, argv: Sequence[str], **_how: Unpack[How]) -> Completed:
        assert argv[0] == {"apt": "dpkg-query", "dnf": "rpm"}[self._manager]
        return Completed(argv=tuple(argv), returncode=0, stdout=self._listed)


def test_a_record_has_what_was_installed_and_what_the_build_was_told(tmp_path: Path) -> None:
    listed = "installed gcc 15.2.1-3.fc43 x86_64\ninstalled gpg-pubkey (none)\n"
    listed += "installed bash 5.3.0-2.fc43 x86_64\n"
    (tmp_path / "ptrack_17-3.0.0-1.x86_64.rpm").write_text("x")
    (tmp_path / "ptrack_17-3.0.0-1.src.rpm").write_text("")
    noted = record.written(
        tmp_path, name="ptrack_17", version="3.0.0-1.fc43", architecture="x86_64",
        where=Installed("dnf", listed), made=tmp_path.glob("*.rpm"),
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin", "https_proxy": "http://user:word@proxy"},
        options=["--without=ldap", "--define", f"unpacked {tmp_path}/root"],
    )  # fmt: skip
    assert noted.name == "ptrack_17_3.0.0-1.fc43_x86_64.buildinfo"
    empty, one = (hashlib.sha256(text).hexdigest() for text in (b"", b"x"))
    assert (
        noted.read_text()
        == f"""Format: 1.0
Source: ptrack_17
Binary: ptrack_17
Architecture: x86_64
Version: 3.0.0-1.fc43
Checksums-Sha256:
 {empty} 0 ptrack_17-3.0.0-1.src.rpm
 {one} 1 ptrack_17-3.0.0-1.x86_64.rpm
Build-Origin: Fedora Linux 43
Build-Architecture: x86_64
Installed-Build-Depends:
 bash:x86_64 (= 5.3.0-2.fc43),
 gcc:x86_64 (= 15.2.1-3.fc43)
Environment:
 LC_ALL="C.UTF-8"
Rpmbuild-Options:
 --without=ldap
 --define
 unpacked ...
"""
    )


def test_of_debian_s_packages_those_that_are_installed_count() -> None:
    listed = "installed gcc 4:12.2.0-3 amd64\nconfig-files old 1 amd64\n"
    assert record.installed(Installed("apt", listed)) == ["gcc:amd64 (= 4:12.2.0-3)"]


@_packages.with_dpkg
def test_the_extension_comes_with_its_source_and_the_tests_in_it(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    line = _packages.line("deb", tmp_path, monkeypatch)
    write(tmp_path / "templates/extension", {
        "tests/control.j2": "Tests: one\nDepends: @\n",
        "tests/one.j2": "#!/bin/sh\n",
    })  # fmt: skip
    made = line.built()
    sources = {each.file: each for each in made.packages if each.architecture == "source"}
    assert {each.name for each in sources.values()} == {"extension"}
    (dsc,) = (file for file in made.files if file.suffix == ".dsc")
    assert "Testsuite: autopkgtest\n" in dsc.read_text()
    assert sum(name in dsc.read_text() for name in sources) == 2
    place = tmp_path / "there"
    place.mkdir()
    for file in made.files:
        if file.name in sources:
            shutil.copy(file, place)
    argv = ["dpkg-source", "--extract", dsc.name, "tree"]
    subprocess.run(argv, cwd=place, check=True, capture_output=True)
    assert (place / "tree/debian/tests/one").is_file()
    assert (place / "tree/Makefile").read_text() == "x\n"


@_packages.with_dpkg
def test_the_source_package_has_what_its_key_is_made_of(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that an editor or a compiler left beside it."""
    del own_cache
    line = _packages.line("deb", tmp_path, monkeypatch)
    write(line.extension, {"src/a.c": "a", "src/a.h": "a", "sql/a--1.sql": "a"})
    left = (
        "typedefs.list",
        "src/a.c~",
        "src/.a.c.swp",
        "src/.#a.c",
        "src/a.o",
        "a.so",
        "notes.txt",
    )
    write(line.extension, dict.fromkeys(left, "x"))
    first = line.built()
    (archive,) = (file for file in first.files if ".orig.tar." in file.name)
    with tarfile.open(archive) as opened:
        names = {each.name.partition("/")[2] for each in opened if each.isfile()}
    assert names == {"Makefile", "ptrack.control", "src/a.c", "src/a.h", "sql/a--1.sql", *deb.DOCS}
    write(line.extension, dict.fromkeys(left, "y"))
    monkeypatch.setenv("FAKE_BUILD", "false")
    assert line.built() == first


def test_two_builds_are_the_same_bytes(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = line.built()
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "another"))
    second = line.built()
    assert second.files != first.files
    assert second.manifest(buildinfo=False) == first.manifest(buildinfo=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root builds as somebody else")
def test_two_users_make_the_same_bytes(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    first = line.built()
    nobody = pwd.getpwnam("nobody")
    user = host.ServerUser(uid=nobody.pw_uid, gid=nobody.pw_gid, name="nobody")
    with tempfile.TemporaryDirectory(prefix="ptrack-making-") as place:
        Path(place).chmod(0o755)  # other users do not get into pytest's
        monkeypatch.setattr(host, "server_user", lambda: user)
        monkeypatch.setenv("PTRACK_CACHE", place)
        second = line.built()
        assert second.files != first.files
        assert second.manifest(buildinfo=False) == first.manifest(buildinfo=False)


def test_a_failure_leaves_nothing_and_tells_why(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fail"
    script.write_text("echo 'x.c:1: error: No space left on device'\nexit 1\n")
    monkeypatch.setenv("FAKE_BUILD", f"sh {script}")
    with pytest.raises(PackageError) as caught:
        line.built()
    assert "No space left" in caught.value.what
    assert "free some space" in (caught.value.hint or "")
    assert line.left() == []


def test_packages_for_another_architecture_are_not_kept(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made them so; those for any are."""
    module = {"deb": deb, "rpm": rpm}[line.kind]
    described = module.described

    def foreign(file: Path, *more: Any) -> Package:  # noqa: ANN401
        made: Package = described(file, *more)
        return dataclasses.replace(made, architecture="s390x")

    monkeypatch.setattr(module, "described", foreign)
    with pytest.raises(PackageError, match="is of architecture s390x, and not "):
        line.built()
    assert line.left() == []


@_packages.with_dpkg
def test_what_another_architecture_was_given_is_not_taken(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    line = _packages.line("deb", tmp_path, monkeypatch)
    keys = []
    for architecture in ("amd64", "arm64"):
        known = deb.facts(line.tree, _packages.system(architecture), llvm=0)
        server = deb._server_job(line.tree, known, "deb-17", architecture, {}, HERE)
        keys += [server.key, deb._extension_job(known, "deb-17", server, line.extension).key]
    assert len(set(keys)) == 4


def test_an_interruption_leaves_nothing(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "interrupt"
    script.write_text(f"kill -INT {os.getpid()}\nsleep 60\ntouch {tmp_path}/went-on\n")
    monkeypatch.setenv("FAKE_BUILD", f"sh {script}")
    with pytest.raises(KeyboardInterrupt):
        line.built()
    assert not (tmp_path / "went-on").exists()
    assert line.left() == []
