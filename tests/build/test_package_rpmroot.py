"""Trying rpms on a fresh system: what is asked of the machine, and how ptrack is judged."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from ptrack_build.errors import HostError
from ptrack_build.package import PackageError, booted, rpmroot
from tests.build import _packages

BLOCK = rpmroot.BLOCK
A, B = b"a" * BLOCK, b"b" * BLOCK


def files(folder: Path, contents: dict[str, bytes]) -> Path:
    """Files with these contents."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_changed_block_that_is_not_reported_is_lost(tmp_path: Path) -> None:
    before = files(tmp_path / "before", {"base/5/10": A * 12, "global/7_vm": A})
    after = files(tmp_path / "after", {"base/5/10": A * 3 + B + A * 6 + B + A, "global/7_vm": B})
    assert rpmroot.compare(before, after, "base/5/10 0804\nglobal/7_vm 01\n") == ([], 3, 3)
    lost = rpmroot.compare(before, after, "base/5/10 0800\nglobal/7_vm 02\n")
    assert lost == (["base/5/10:10", "global/7_vm:0"], 3, 1)
    assert rpmroot.compare(before, after, "base/5/10 ffff\nglobal/7_vm 01\n") == ([], 3, 13)


def test_what_is_new_is_reported_unless_it_is_zeros(tmp_path: Path) -> None:
    zeros = bytes(BLOCK)
    before = files(tmp_path / "before", {"base/5/10": A})
    after = files(tmp_path / "after", {"base/5/10": A + zeros + B, "base/5/11": A})
    lost, changed, _ = rpmroot.compare(before, after, "")
    assert (lost, changed) == (["base/5/10:2", "base/5/11:0"], 2)


def test_what_is_cut_off_and_what_are_no_blocks_need_no_report(tmp_path: Path) -> None:
    before = files(tmp_path / "before", {"base/5/10": A * 3, "base/5/12": A})
    after = files(tmp_path / "after", {"base/5/10": A, "base/5/pg_filenode.map": B})
    files(after, {"base/5/t3_16384": B})
    assert rpmroot.compare(before, after, "") == ([], 0, 0)


@_packages.with_dpkg
def test_libraries_are_read_off_the_files_and_their_own_are_nobody_s(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache

    def unpack(package: Path, root: Path) -> None:
        assert "debuginfo" not in package.name
        (root / "bin").mkdir()
        (root / "lib").mkdir()
        (root / "a.c").write_text("int a(void) { return 0; }\n")
        (root / "b.c").write_text("int a(void); int main(void) { return a(); }\n")
        for words in (
            ["-shared", "-fPIC", "-Wl,-soname,libz.so.1", "-o", "lib/libz.so.1", "a.c"],
            ["-o", "bin/b", "b.c", "lib/libz.so.1"],
        ):
            subprocess.run(["gcc", *words], cwd=root, check=True)

    monkeypatch.setattr(rpmroot, "unpack", unpack)
    packages = [tmp_path / "a.x86_64.rpm", tmp_path / "a-debuginfo-1.x86_64.rpm"]
    assert rpmroot.libraries(packages, tmp_path / "work") == ["libc6"]
    assert not (tmp_path / "work").exists()


RPMLINT = """#!/bin/sh
echo "$@" > {folder}/asked
echo "a.x86_64: I: no matter"
cat {folder}/found 2> /dev/null
echo " 2 packages and 0 specfiles checked; {errors} errors, 0 warnings"
exit {errors}
"""


def rpmlint(folder: Path, monkeypatch: pytest.MonkeyPatch, *, errors: int = 0) -> Path:
    """A directory of dist/ with two packages, and an rpmlint for it; where its words are noted."""
    program = folder / "bin" / "rpmlint"
    program.parent.mkdir()
    program.write_text(RPMLINT.format(folder=folder, errors=errors))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in ("b.src.rpm", "a.x86_64.rpm", "manifest.json"):
        files(folder / "debian-bookworm-x86_64" / "postgresql-17", {name: b""})
    return folder / "debian-bookworm-x86_64" / "postgresql-17"


def test_rpmlint_sees_all_packages_and_has_our_filters(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rpmlint(tmp_path, monkeypatch)
    assert rpmroot.lint(place)
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["-c", str(rpmroot.LINT), f"{place}/a.x86_64.rpm", f"{place}/b.src.rpm"]
    assert rpmroot.LINT.is_file()
    (log,) = (own_cache / "log").glob("verify-*.log")
    assert "no matter" in log.read_text()


@pytest.mark.parametrize("found", ["a.x86_64: W: no-manual x\n", "b.src: E: bad-thing y\n"])
def test_what_rpmlint_finds_fails_even_if_it_ends_well(
    found: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rpmlint(tmp_path, monkeypatch)
    (tmp_path / "found").write_text(found)
    with pytest.raises(PackageError, match=found.strip()) as caught:
        rpmroot.lint(place)
    assert caught.value.log is not None
    assert caught.value.log.parent == own_cache / "log"


@pytest.mark.usefixtures("own_cache")
def test_an_rpmlint_that_fails_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PackageError, match="2 packages and 0 specfiles checked"):
        rpmroot.lint(rpmlint(tmp_path, monkeypatch, errors=1))


@pytest.mark.usefixtures("own_cache")
def test_without_rpmlint_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    assert not rpmroot.lint(tmp_path)


def published(folder: Path, system_of: str) -> Path:
    """A directory of dist/ with nothing but its manifest."""
    system = asdict(_packages.system("x86_64")) | {"distribution": system_of}
    said = {
        "system": system, "major": "devel", "postgresql": {"version": "20devel"}, "packages": []
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(said))
    return folder


def test_where_there_are_no_packages_it_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there are no packages in") as caught:
        rpmroot.verify(tmp_path)
    assert "./nox -s rpm-" in (caught.value.hint or "")


def test_only_root_can_boot_a_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root"):
        rpmroot.verify(published(tmp_path, "debian"))


def test_packages_of_another_system_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(booted, "check_root", lambda: None)
    monkeypatch.setattr(rpmroot, "this_system", lambda: _packages.system("x86_64"))
    with pytest.raises(HostError, match="slackware-bookworm-x86_64 cannot be tried here"):
        rpmroot.verify(published(tmp_path, "slackware"))


def test_the_packages_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = published(tmp_path, "debian") / "manifest.json"
    said = json.loads(manifest.read_text())
    said["packages"] = [
        {"file": "a.x86_64.rpm", "architecture": "x86_64"},
        {"file": "a.src.rpm", "architecture": "src"},
    ]
    manifest.write_text(json.dumps(said))
    monkeypatch.chdir(tmp_path.parent)
    *_, listed = rpmroot._published(Path(tmp_path.name))
    assert listed == [tmp_path / "a.x86_64.rpm"]


def test_the_number_of_a_major_is_that_of_its_packages(tmp_path: Path) -> None:
    _, major, number, listed = rpmroot._published(published(tmp_path, "debian"))
    assert (major, number, listed) == ("devel", "20", [])


def test_the_script_is_shell() -> None:
    subprocess.run(["sh", "-n", str(rpmroot.SCRIPT)], check=True)


@pytest.mark.parametrize("lost", [False, True])
def test_what_changes_after_an_upgrade_is_compared_too(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is something to upgrade from, which lies beside the packages."""
    for name in ("now.rpm", "then.rpm"):
        (tmp_path / name).write_text(name)

    def boots(root: Path, _argv: list[str], **_how: object) -> booted.Ended:
        work = root / booted.WORK.relative_to("/")
        assert (work / "packages/now.rpm").read_text() == "now.rpm"
        assert (work / "earlier/then.rpm").read_text() == "then.rpm"
        places = ("before", "after", "crashed", "upgraded")
        for place, letter in zip(places, "abcd", strict=True):
            (work / place / "base").mkdir(parents=True)
            (work / place / "base/1").write_text(letter * BLOCK)
        for answer in ("map", "crashed.map", "upgraded.map"):
            bits = "00" if lost and answer == "upgraded.map" else "01"
            (work / answer).write_text(f"base/1 {bits}\n")
        return booted.Ended(well=True, said="ok: upgraded\n")

    monkeypatch.setattr(booted, "run", boots)

    def tried() -> rpmroot.Tried:
        now, then = [tmp_path / "now.rpm"], [tmp_path / "then.rpm"]
        return rpmroot._try(tmp_path / "root", "17", now, then, tmp_path / "log")

    if lost:
        with pytest.raises(PackageError, match=r"lost 1 changed blocks \(upgraded\): base/1:0"):
            tried()
    else:
        assert tried() == rpmroot.Tried(steps=("upgraded",), changed=3, reported=3)


def test_a_fresh_system_is_its_users_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has to look names up in /etc/hosts, as a user of its own."""
    dist = published(tmp_path, "debian")
    modes = []

    def made(place: Path, *_: object) -> None:
        (place / "hosts").touch()
        modes.append(f"{(place / 'hosts').stat().st_mode:o}"[-3:])

    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "cache"))
    for name in ("_check_machine", "_sources"):
        monkeypatch.setattr(rpmroot, name, lambda _system: "")
    monkeypatch.setattr(rpmroot, "libraries", lambda *_: [])
    monkeypatch.setattr(rpmroot, "_make_root", made)
    tried = rpmroot.Tried(steps=(), changed=1, reported=1)
    monkeypatch.setattr(rpmroot, "_try", lambda *_: tried)
    before = os.umask(0o077)
    try:
        assert rpmroot.verify(dist) == tried
        assert os.umask(0o077) == 0o077, "it is the caller's again"
    finally:
        os.umask(before)
    assert modes == ["644"]
