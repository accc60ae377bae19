"""Publishing: a directory of dist/ is whole, or not there."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from ptrack_build import cache, host
from ptrack_build import package as packaging
from ptrack_build.errors import HostError
from ptrack_build.package import (
    MANIFEST,
    SUMS,
    Package,
    PackageError,
    Release,
    System,
    making,
    publish,
    replacing,
    sbom,
)
from tests.build.conftest import Script

SYSTEM = System(
    distribution="debian", release="12", codename="bookworm", architecture="amd64", tag="deb12"
)
#: As deb and rpm say it.
MADE_OF: dict[str, Any] = {
    "postgresql": {
        "version": "17.2", "provider": "git", "commit": "c" * 40, "tree": "d" * 40, "sha256": "",
    },
    "patch": {"digest": "e" * 64, "how": "applied", "abi": 1},
    "ptrack": "3.0.0",
    "source_date_epoch": 1_700_000_000,
    "built_with": {"gcc": "4:12.2.0-3", "libssl-dev": "3.0.22-1"},
}  # fmt: skip


def release(folder: Path, **contents: str) -> Release:
    """A release of files with these contents."""
    folder.mkdir(exist_ok=True)
    files, packages = [], []
    for name, text in sorted(contents.items()):
        file = folder / f"{name}.deb"
        file.write_text(text)
        files.append(file)
        packages.append(
            Package(
                file=file.name, name=name, version="1", architecture="amd64", size=len(text),
                installed_kb=1, sha256=hashlib.sha256(text.encode()).hexdigest(),
            )
        )  # fmt: skip
    return Release(
        kind="deb", system=SYSTEM, major="17", made_of=MADE_OF,
        packages=tuple(packages), files=tuple(files),
    )  # fmt: skip


def names(place: Path) -> set[str]:
    """What is in a directory, hidden files included."""
    return {path.name for path in place.iterdir()}


def test_sums_cover_all_and_can_be_checked(tmp_path: Path) -> None:
    place = publish(release(tmp_path / "made", a="1", b="2"), tmp_path / "dist")
    assert names(place) == {"a.deb", "b.deb", MANIFEST, SUMS, sbom.FILE}
    assert names(place.parent) == {"postgresql-17"}
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=place, check=True)
    said = json.loads((place / MANIFEST).read_text())
    assert [each["file"] for each in said["packages"]] == ["a.deb", "b.deb"]
    assert said["patch"] == MADE_OF["patch"]
    assert place.stat().st_mode & 0o777 == 0o755


def test_what_is_the_same_is_left_alone_and_what_is_not_is_replaced(tmp_path: Path) -> None:
    place = publish(release(tmp_path / "made", a="1", b="2"), tmp_path / "dist")
    before = place.stat().st_ino
    assert publish(release(tmp_path / "made", a="1", b="2"), tmp_path / "dist") == place
    assert place.stat().st_ino == before
    (place / "a.deb").write_text("damaged")
    publish(release(tmp_path / "made", a="1", b="2"), tmp_path / "dist")
    assert (place / "a.deb").read_text() == "1"
    publish(release(tmp_path / "made", a="3"), tmp_path / "dist")
    assert names(place) == {"a.deb", MANIFEST, SUMS, sbom.FILE}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = publish(release(tmp_path / "made", a="1"), tmp_path / "dist")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PackageError, match="No space left on device") as caught:
        publish(release(tmp_path / "made", a="2"), tmp_path / "dist")
    assert "free some space" in (caught.value.hint or "")
    assert (place / "a.deb").read_text() == "1"
    assert names(place.parent) == {"postgresql-17"}


def test_an_interruption_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(release(tmp_path / "made", a="1"), tmp_path / "dist")
    assert names(tmp_path / "dist" / SYSTEM.name) == set()


@pytest.mark.parametrize("words", [("amd64", "x86_64"), ("s390x", "s390x"), ("riscv64", "riscv64")])
def test_packages_of_one_kind_do_not_take_the_place_of_the_other(
    words: tuple[str, str], tmp_path: Path
) -> None:
    """Also where dpkg and rpm call the architecture the same."""
    made = []
    for kind, architecture in zip(("deb", "rpm"), words, strict=True):
        one = release(tmp_path / kind, **{kind: kind})
        system = dataclasses.replace(SYSTEM, architecture=architecture)
        one = dataclasses.replace(one, kind=kind, system=system)  # type: ignore[arg-type]
        made.append((publish(one, tmp_path / "dist"), kind))
    for place, kind in made:
        assert (place / f"{kind}.deb").read_text() == kind


def test_what_is_replaced_is_never_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    if not cache.exchange(one, two):
        pytest.skip("this file system cannot exchange names")
    publish(release(tmp_path / "made", a="1"), tmp_path / "dist")

    def renamed(path: Path, target: Path) -> None:
        pytest.fail(f"{path} was renamed to {target}")

    monkeypatch.setattr(Path, "rename", renamed)
    place = publish(release(tmp_path / "made", a="2"), tmp_path / "dist")
    assert (place / "a.deb").read_text() == "2"
    assert names(place.parent) == {"postgresql-17"}


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), OSError(errno.EIO, "x")])
@pytest.mark.parametrize("at", [1, 2])
def test_where_names_cannot_be_exchanged_an_end_between_leaves_what_was_there(
    at: int, end: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = publish(release(tmp_path / "made", a="1"), tmp_path / "dist")
    real, count = Path.rename, 0

    def rename(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == at:
            raise end
        return real(path, target)

    monkeypatch.setattr(cache, "exchange", lambda _one, _two: False, raising=False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((type(end), PackageError)):
        publish(release(tmp_path / "made", a="2"), tmp_path / "dist")
    assert (place / "a.deb").read_text() == "1"
    assert names(place.parent) == {"postgresql-17"}
    publish(release(tmp_path / "made", a="2"), tmp_path / "dist")
    assert (place / "a.deb").read_text() == "2"
    assert names(place.parent) == {"postgresql-17"}


def test_what_a_run_killed_between_renames_moved_away_is_put_back(tmp_path: Path) -> None:
    final = tmp_path / "repo"
    final.mkdir()
    (final / "file").write_text("before")
    code = f"""
import os
from pathlib import Path
from ptrack_build import cache
from ptrack_build.package import replacing

real = Path.rename
def rename(path, target):
    if not Path({str(final)!r}).exists():
        os._exit(9)
    return real(path, target)

cache.exchange = lambda one, two: False
Path.rename = rename
with replacing(Path({str(final)!r})) as scratch:
    (scratch / "file").write_text("after")
"""
    process = Script(code, {}).start()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 9, said
    assert not final.exists()

    def failing() -> None:
        with replacing(final):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert (final / "file").read_text() == "before"
    assert names(tmp_path) == {"repo"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "dist" / SYSTEM.name / ".postgresql-17.abc.part"
    left.mkdir(parents=True)
    (left / "a.deb").write_text("half")
    place = publish(release(tmp_path / "made", a="1"), tmp_path / "dist")
    assert names(place.parent) == {"postgresql-17"}


def test_runs_with_other_caches_do_not_take_each_other_s_scratch_for_left(
    tmp_path: Path, own_cache: Path
) -> None:
    """The lock is of dist/, which runs with different caches share."""
    dist, go = tmp_path / "dist", tmp_path / "go"
    code = f"""
import time
from pathlib import Path
from ptrack_build.package import alone, replacing

dist = Path({str(dist)!r})
with alone(dist, "tries that"), replacing(dist / {SYSTEM.name!r} / "postgresql-17") as scratch:
    print("mine", flush=True)
    while not Path({str(go)!r}).exists():
        time.sleep(0.05)
    (scratch / "file").write_text("theirs")
print("done")
"""
    process = Script(code, {"PTRACK_CACHE": f"{own_cache}-other"}).start()
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    made = release(tmp_path / "made", a="1")
    thread = threading.Thread(target=publish, args=(made, dist))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    go.touch()
    said, _ = process.communicate(timeout=60)
    assert said == "done\n"
    thread.join(60)
    assert names(dist / SYSTEM.name) == {"postgresql-17"}
    assert (dist / SYSTEM.name / "postgresql-17" / "a.deb").read_text() == "1"


def test_a_package_that_is_not_what_was_described_is_refused(tmp_path: Path) -> None:
    made = release(tmp_path / "made", a="1")
    made.files[0].write_text("2")
    with pytest.raises(PackageError, match="has changed since it was made"):
        publish(made, tmp_path / "dist")
    assert not (tmp_path / "dist" / SYSTEM.name / "postgresql-17").exists()


def test_os_release_is_read_unquoted(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_text("ID=ubuntu\nVERSION_ID=\"24.04\"\n# x\nNAME='Ubuntu'\n")
    assert packaging.os_release(file) == {"ID": "ubuntu", "VERSION_ID": "24.04", "NAME": "Ubuntu"}
    assert packaging.os_release(tmp_path / "none") == {}


def test_too_little_room_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="building packages takes"):
        host.check_room(tmp_path, 10**9, "building packages")


def test_compiler_caches_are_by_user(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCACHE_DISABLE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: "/usr/bin/ccache")
    mine = host.ServerUser(uid=os.getuid(), gid=os.getgid(), name="builder")
    assert making.compiler_cache(None, ["gcc"])["CCACHE_DIR"] == str(own_cache / "ccache")
    assert making.compiler_cache(mine, ["gcc"])["CCACHE_DIR"] == str(own_cache / "ccache-builder")
