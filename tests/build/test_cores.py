"""The core patch of all majors: what is green without a source, and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ptrack_build import cores, patch, source
from ptrack_build.errors import BadSource, PatchError, PtrackError, SourceError
from ptrack_build.source.git import GitProvider
from ptrack_build.source.tarball import TarballProvider
from tests.build._source_fixtures import NOWHERE, cache_root, server
from tests.build._sources import MD, Server, major, repository, tarball, tree

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.matrix import Major

__all__ = ["cache_root", "server"]


def check(majors: list[Major]) -> None:
    cores.check(majors)


def write(majors: list[Major]) -> None:
    cores.write(majors, anew=False)


@pytest.fixture(autouse=True)
def only_sources_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diffs agree."""

    def agrees(major: Major, *_args: object, **_options: object) -> patch.Checked:
        return patch.Checked(major=major.name, name="x", proven=(), against="y", added=1)

    monkeypatch.setattr(patch, "check", agrees)
    monkeypatch.setattr(source, "providers", lambda: (GitProvider(),))


@pytest.mark.parametrize("session", [check, write])
def test_a_dirty_tree_is_not_green(
    session: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository(tmp_path / "pg", {"REL_17_STABLE": "17.2"})
    (path / MD).write_text("/* changed */")
    monkeypatch.setenv("PTRACK_SOURCE", str(path))
    with pytest.raises(BadSource, match="source of 17 is not what it has to be") as caught:
        session([major("17")])
    assert "commit or stash them" in (caught.value.hint or "")


@pytest.mark.parametrize("session", [check, write])
def test_a_tarball_of_another_digest_is_not_green(
    session: type,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.release("17.2", tarball(tree("17.2")), sha256="0" * 64)
    monkeypatch.setattr(source, "providers", lambda: (TarballProvider(),))
    with pytest.raises(BadSource):
        session([major("17")])
    assert "17     its source is not right: " in capsys.readouterr().out


@pytest.mark.parametrize("session", [check, write])
def test_a_path_that_is_not_there_is_not_green(
    session: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_SOURCE", str(tmp_path / "nothing"))
    with pytest.raises(PtrackError, match="neither a provider nor a path"):
        session([major("17")])


def test_what_is_nowhere_to_be_had_is_a_note_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    majors = [major("16"), major("17")]
    monkeypatch.setenv("PTRACK_PG_GIT", f"{NOWHERE}/x")
    check(majors)
    note = (
        "16, 17 its diff was compared with the templates only: git: 127.0.0.1: connection refused\n"
    )
    assert note in capsys.readouterr().out
    with pytest.raises(SourceError, match="no source of any major") as caught:
        write(majors)
    assert not isinstance(caught.value, BadSource)


@pytest.fixture
def differing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of 17 is there, and its diff does not agree; the directory of the diffs."""
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "REL_17_STABLE-ptrack-core.diff").write_text("")

    def differs(major: Major, *_args: object, **_options: object) -> patch.Checked:
        problem = f"the template of {major.name} matches nowhere\n  the closest places:"
        return patch.Checked(
            major=major.name, name="x", proven=(), against="y", added=1, problems=(problem,)
        )

    monkeypatch.setattr(patch, "check", differs)
    monkeypatch.setattr(patch, "PATCHES", folder)
    path = repository(tmp_path / "pg", {"REL_17_STABLE": "17.2"})
    monkeypatch.setenv("PTRACK_SOURCE", str(path))
    return folder


@pytest.mark.parametrize("fits", [True, False])
def test_what_rendering_cannot_mend_has_the_next_step_of_the_edit(
    differing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fits: bool
) -> None:
    del differing

    def render(*_args: object, **_options: object) -> None:
        if not fits:
            what = "matches nowhere"
            raise PatchError(what, hint="look at md.c there and change the edit")

    monkeypatch.setattr(patch, "render", render)
    with pytest.raises(PatchError) as caught:
        check([major("17")])
    rendering = "./nox -s patches, then look at git diff patches"
    assert caught.value.hint == (rendering if fits else "look at md.c there and change the edit")
    assert caught.value.what == "the committed diff of 17 does not agree, see above"
    assert capsys.readouterr().out.count("matches nowhere") == 1


def test_a_diff_that_is_gone_can_be_had_back_without_a_source(
    differing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (differing / "REL_17_STABLE-ptrack-core.diff").unlink()
    monkeypatch.delenv("PTRACK_SOURCE")
    with pytest.raises(PatchError) as caught:
        check([major("17")])
    hint = "git checkout -- patches; for a new major ./nox -s patches -- 17"
    assert caught.value.hint == hint


def test_an_edit_that_does_not_fit_is_shown_once(
    differing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del differing

    def fails(*_args: object, **_options: object) -> None:
        what = "matches nowhere\n  the closest places:"
        raise PatchError(what, hint="change the edit")

    monkeypatch.setattr(patch, "write", fails)
    with pytest.raises(PatchError) as caught:
        write([major("17")])
    assert caught.value.what == "the templates do not fit 17, see above"
    assert caught.value.hint == "change the edit"
    shown = "17     matches nowhere\n  the closest places:\nnext: change the edit\n"
    assert capsys.readouterr().out.endswith(f"/pg\n{shown}")


def test_a_reason_of_several_lines_keeps_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_args: object, **_options: object) -> None:
        what = "PostgreSQL 17: no source could be had\n  git: one\n  tarball: two"
        raise SourceError(what)

    monkeypatch.setattr(source, "fetch", none)
    check([major("17")])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "17     its diff was compared with the templates only: no source could be had",
        "         git: one",
        "         tarball: two",
    ]
