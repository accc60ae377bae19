"""Building twice: what differs is found and named; what is equal passes; the other side differs.

The builds are stand-ins that write files; the real one is the session's.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, host, run
from ptrack_build.errors import CommandFailed
from ptrack_build.package import MANIFEST, PackageError, deb, reproduce
from tests.build.test_package import release

if TYPE_CHECKING:
    from ptrack_build.package import Release
    from ptrack_build.patch import PatchedTree
    from tests.build.conftest import Fake


@pytest.fixture(autouse=True)
def _nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")


def other_side(place: Path, made: Release, **changed: str) -> Path:
    """Put a second build into place/out, in which some files have other contents."""
    out = place / "out"
    out.mkdir(parents=True, exist_ok=True)
    for file in made.files:
        (out / file.name).write_text(changed.pop(file.stem, file.read_text()))
    for stem, text in changed.items():
        (out / f"{stem}.deb").write_text(text)
    (out / MANIFEST).write_text(made.manifest(buildinfo=False))
    return place


def test_equal_files_are_named(tmp_path: Path) -> None:
    made = release(tmp_path / "made", a="1", b="2")
    assert reproduce.compare(made, other_side(tmp_path / "there", made)) == ["a.deb", "b.deb"]
    assert not (tmp_path / "there" / "here").exists()


def test_a_file_that_differs_fails_and_both_sides_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: None)
    monkeypatch.setattr(host, "ensure", lambda needs, **how: asked.extend([*needs, *how]))
    monkeypatch.setattr(host, "manager", lambda: "apt")
    made = release(tmp_path / "made", a="1", b="2")
    place = other_side(tmp_path / "there", made, b="3")
    with pytest.raises(PackageError, match=r"1 of 2 files differ:\n    b\.deb: ") as caught:
        reproduce.compare(made, place)
    assert asked == ["diffoscope", "optional"]  # installed where that can be done
    assert "apt-get install -y diffoscope-minimal, then: diffoscope" in (caught.value.hint or "")
    assert (place / "here" / "b.deb").read_text() == "2"
    assert (place / "out" / "b.deb").read_text() == "3"


def test_what_is_noted_of_the_day_is_not_compared(tmp_path: Path) -> None:
    sides = []
    for name in ("one", "two"):
        note = tmp_path / f"{name}.buildinfo"
        note.write_text(f"Build-Date: {name}\n")
        made = release(tmp_path / name, a="1")
        sides.append(dataclasses.replace(made, buildinfo=(note,)))
    here, there = sides
    assert here.manifest() != there.manifest()
    assert reproduce.compare(here, other_side(tmp_path / "there", there)) == ["a.deb"]


def test_a_file_of_one_side_only_differs(tmp_path: Path) -> None:
    made = release(tmp_path / "made", a="1")
    with pytest.raises(PackageError, match=r"more\.deb: only in the second build"):
        reproduce.compare(made, other_side(tmp_path / "there", made, more="1"))
    place = other_side(tmp_path / "two", made)
    (place / "out" / "a.deb").unlink()
    with pytest.raises(PackageError, match=r"a\.deb: only in the first build"):
        reproduce.compare(made, place)


def test_a_manifest_that_differs_fails(tmp_path: Path) -> None:
    made = release(tmp_path / "made", a="1")
    place = other_side(tmp_path / "there", made)
    (place / "out" / MANIFEST).write_text("{}\n")
    with pytest.raises(PackageError, match=MANIFEST):
        reproduce.compare(made, place)


def test_diffoscope_is_asked_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "diffoscope"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "they differ in: $(cat "$3") $(cat "$4")"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    made = release(tmp_path / "made", a="1")
    with pytest.raises(PackageError, match="they differ in: 1 2"):
        reproduce.compare(made, other_side(tmp_path / "there", made, a="2"))


def test_the_other_side_shares_no_place_and_no_setting(own_cache: Path) -> None:
    way = reproduce.other(own_cache / "build" / "reproduce-17")
    assert way.env["PTRACK_CACHE"] != str(own_cache)
    assert len(way.env["PTRACK_CACHE"]) != len(str(own_cache))
    assert " " not in way.env["PTRACK_CACHE"].removeprefix(str(own_cache))  # make knows no quotes
    for name in ("HOME", "TZ", "LC_ALL", "TMPDIR"):
        assert way.env[name] != os.environ.get(name)
    assert way.env["PTRACK_JOBS"] != str(host.jobs())
    assert {"path", "environment"} <= {*way.varied}
    assert way.env["SOURCE_DATE_EPOCH"] == "1"
    if os.geteuid() == 0:
        builder = host.server_user()
        assert builder is not None
        assert way.user is None or way.user.uid not in {0, builder.uid}
        assert ("user" in way.varied) == (way.user is not None)
    else:
        assert "user" in way.same


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_the_whole_with_a_stand_in(
    kind: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path / "made", a="1")
    for name, module in reproduce.KINDS.items():
        other = pytest.fail if name != kind else lambda *_a, **_k: made
        monkeypatch.setattr(module, "build", other)
    seen_to: list[str] = []
    monkeypatch.setattr(host, "ensure", lambda needs, **_k: seen_to.extend(needs))
    told: dict[str, object] = {}
    text = "1"

    def child(argv: list[str], **options: object) -> run.Completed:
        told.update(options)
        place = options["cwd"]
        other_side(place, made, a=text)  # type: ignore[arg-type]
        return run.Completed(argv=tuple(argv), returncode=0, stdout="")

    monkeypatch.setattr(reproduce, "call", child)
    place = cache.directory("build") / f"reproduce-{kind}-17"
    assert reproduce.check(fake.tree, kind=kind) == ["a.deb"]
    assert seen_to == ["faketime", "ccache"]
    assert isinstance(told["env"], dict)
    assert told["env"]["PTRACK_CACHE"].startswith(str(place))
    assert not place.exists()
    text = "2"
    monkeypatch.setattr(shutil, "which", lambda *_a, **_k: None)
    with pytest.raises(PackageError, match="1 of 1 files differ"):
        reproduce.check(fake.tree, kind=kind)
    assert (place / "here" / "a.deb").read_text() == "1"


def test_a_second_build_that_fails_is_told_with_its_log(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path / "made", a="1")
    monkeypatch.setattr(deb, "build", lambda *_a, **_k: made)
    monkeypatch.setattr(host, "ensure", lambda *_a, **_k: None)

    def child(argv: list[str], **_options: object) -> run.Completed:
        raise CommandFailed(argv, 1, tail="it was told to fail")

    monkeypatch.setattr(reproduce, "call", child)
    with pytest.raises(PackageError, match="told to fail") as caught:
        reproduce.check(fake.tree)
    assert caught.value.log == cache.directory("log") / "reproduce-deb-17.log"


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_the_other_side_makes_what_it_was_ordered(
    kind: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = release(tmp_path / "made", a="1")
    asked: list[str] = []

    def build(tree: PatchedTree, *, without: tuple[str, ...]) -> Release:
        asked.append(f"{kind}-{tree.source.major.name} without {' '.join(without)}")
        return made

    def child(argv: list[str], **_options: object) -> run.Completed:
        before = os.umask(0o022)
        try:
            reproduce.main(*map(Path, argv[-2:]))
        finally:
            os.umask(before)
        return run.Completed(argv=tuple(argv), returncode=0, stdout="")

    monkeypatch.setattr(reproduce.KINDS[kind], "build", build)
    monkeypatch.setattr(host, "ensure", lambda *_a, **_k: None)
    monkeypatch.setattr(reproduce, "call", child)
    assert reproduce.check(fake.tree, kind=kind, without=("pam",)) == ["a.deb"]
    assert asked == [f"{kind}-17 without pam"] * 2
