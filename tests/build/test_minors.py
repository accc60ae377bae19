"""The committed diff on every release that a repository has a tag of."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cores, patch, source
from ptrack_build.errors import PatchError, SourceError
from ptrack_build.source.git import GitProvider
from tests.build._source_fixtures import NOWHERE, cache_root
from tests.build._sources import MD, commit, git, git_over_http, major, repository, tree
from tests.build.test_patch_apply import BODY, BODY_TEMPLATE, HEADER, HEADER_TEMPLATE, World

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.source import SourceTree

__all__ = ["cache_root"]


@pytest.fixture(autouse=True)
def only_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "providers", lambda: (GitProvider(),))


# ---- which releases there are


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A branch with a beta, a candidate and three releases, and another with one."""
    path = repository(tmp_path / "pg", {"REL_16_STABLE": "16.1", "REL_17_STABLE": "17beta1"})
    git("tag", "REL_17_BETA1", cwd=path)
    git("tag", "REL_16_1", "REL_16_STABLE", cwd=path)
    for version in ("17rc1", "17.0", "17.2", "17.10"):
        commit(path, {**tree(version), MD: f"/* md.c of {version} */\n".encode()})
        tag = f"REL_{version}".replace("rc", "_RC").replace(".", "_")
        git("tag", "-a", "-m", "annotated", tag, cwd=path)
    git("tag", "REL_17_2_of_somebody", cwd=path)
    return path


def versions(paths: tuple[str, ...] = (MD,)) -> list[str]:
    return [each.version for each in source.releases(major("17"), paths)]


@pytest.mark.parametrize("kind", ["path", "file", "bare", "worktree"])
def test_a_repository_on_this_machine_is_read_where_it_lies(
    repo: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = repo
    if kind == "bare":
        place = repo.with_name("bare.git")
        git("clone", "-q", "--mirror", str(repo), str(place), cwd=repo)
    if kind == "worktree":
        place = repo.with_name("beside")
        git("worktree", "add", "-q", "--detach", str(place), "REL_16_1", cwd=repo)
    monkeypatch.setenv("PTRACK_PG_GIT", f"file://{place}" if kind == "file" else str(place))
    monkeypatch.setenv("PTRACK_OFFLINE", "1")
    assert versions() == ["17beta1", "17rc1", "17.0", "17.2", "17.10"]
    newest = source.releases(major("17"), (MD,))[-1]
    assert source.read_file(newest, MD) == b"/* md.c of 17.10 */\n"
    assert newest.commit == git("rev-parse", "REL_17_10^{commit}", cwd=repo)
    assert newest.digest == git("rev-parse", "REL_17_10^{tree}", cwd=repo)
    assert not (cache_root / "source" / "releases.git").exists()


def test_of_a_server_only_the_files_that_matter_are_fetched(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=repo)
    with git_over_http(repo.parent) as (url, asked):
        monkeypatch.setenv("PTRACK_PG_GIT", f"{url}/{repo.name}/.git")
        found = source.releases(major("17"), (MD, "not/there.c"))
        assert [each.version for each in found] == ["17beta1", "17rc1", "17.0", "17.2", "17.10"]
        assert versions() == [each.version for each in found], "again, with all of it there"
        before = len(asked)
        newest = found[-1]
        assert source.read_file(newest, MD) == b"/* md.c of 17.10 */\n"
        place = ["--git-dir", str(newest.mirror)]
        missing = git(
            *place, "rev-list", "--objects", "--missing=print", "--no-walk", newest.commit, cwd=repo
        )  # fmt: skip
        lacking = {line[1:] for line in missing.splitlines() if line.startswith("?")}
        assert git("rev-parse", "REL_17_10:configure.ac", cwd=repo) in lacking
        assert git("rev-parse", f"REL_17_10:{MD}", cwd=repo) not in lacking
        assert len(asked) == before, "what is not there is asked of nobody later"


def test_the_next_repository_when_one_has_no_tags(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = repository(tmp_path / "bare", {"REL_17_STABLE": "17.2"})
    monkeypatch.setenv("PTRACK_PG_GIT", f"{NOWHERE}/x {bare} {repo}")
    assert versions()[-1] == "17.10"
    monkeypatch.setenv("PTRACK_PG_GIT", f"{NOWHERE}/x {bare} {tmp_path}")
    with pytest.raises(SourceError) as caught:
        versions()
    assert "127.0.0.1: connection refused; " in caught.value.what
    assert f"{bare} has no tags of 17; {tmp_path}: " in caught.value.what


def test_who_asks_for_one_version_has_no_tags_looked_at(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", str(repo))
    monkeypatch.setenv("PTRACK_SOURCE", "git:17.2")
    with pytest.raises(SourceError, match="asks for one version"):
        versions()


# ---- what applies


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A repository with tags, whose diff is rendered against 17.1, and agrees."""
    made = World(tmp_path)
    made.template(BODY, BODY_TEMPLATE)
    made.template(HEADER, HEADER_TEMPLATE)
    made.render(tag(made, "REL_17_1", "17.1"))
    monkeypatch.setenv("PTRACK_PG_GIT", str(made.mirror))
    monkeypatch.setattr(patch, "PATCHES", made.patches)
    for name in ("check", "drift"):
        there = functools.partial(
            getattr(patch, name), templates=made.templates, patches=made.patches
        )
        monkeypatch.setattr(patch, name, there)
    touched = functools.partial(patch.touched, templates=made.templates)
    monkeypatch.setattr(patch, "touched", touched)
    at_hand(monkeypatch, made.source("17.1"))
    return made


def at_hand(monkeypatch: pytest.MonkeyPatch, found: SourceTree) -> None:
    """The source that a build would take."""
    monkeypatch.setattr(source, "fetch", lambda *_args, **_options: found)


def tag(world: World, name: str, version: str, **how: str | int) -> SourceTree:
    found = world.source(version, **how)  # type: ignore[arg-type]
    world.git("tag", name, found.commit)
    return found


def check(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on what it applies to, and the error's text last where there is one."""
    capsys.readouterr()
    wrong = []
    try:
        cores.check([major("17")], minors=True)
    except PatchError as error:
        wrong = [str(error)]
    lines = capsys.readouterr().out.splitlines()
    (first,) = (n for n, line in enumerate(lines) if line.startswith("17     applies to "))
    return lines[first:] + wrong


def test_all_releases_are_tried(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    tag(world, "REL_17_2", "17.2", above=40)
    tag(world, "REL_17_3", "17.3", near="other(x);")  # a merge takes it
    assert check(capsys) == [f"17     applies to 3 of 3 releases (tags of {world.mirror})"]


def test_a_release_that_it_does_not_apply_to_is_named_and_fails(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    tag(world, "REL_17_0", "17.0", step="another(x);")
    tag(world, "REL_17_2", "17.2")
    said, why, wrong = check(capsys)
    assert said.startswith("17     applies to 2 of 3 releases, not to 17.0 (tags of ")
    assert why.startswith("       17.0: patches/REL_17_STABLE-ptrack-core.diff (PostgreSQL 17.1) ")
    assert "does not apply to 17.0, see above\nnext: " in wrong


def test_a_release_that_would_be_rendered_anew_fails_too(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The build knows what to do, and who applies the diff by hand does not."""
    elsewhere = world.root / "elsewhere.git"  # without the blobs of 17.1
    found = world.source("17.2", mirror=elsewhere, near="other(x);")
    world.git("tag", "REL_17_2", found.commit, mirror=elsewhere)
    monkeypatch.setenv("PTRACK_PG_GIT", str(elsewhere))
    said, why, wrong = check(capsys)
    assert "applies to 1 of 2 releases, not to 17.2 (the source at hand; tags of " in said
    assert "rendered anew" in why
    assert "does not apply to 17.2" in wrong


def test_a_beta_that_it_does_not_apply_to_is_named_only(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    tag(world, "REL_17_BETA1", "17beta1", step="another(x);")
    tag(world, "REL_17_RC1", "17rc1")
    (said,) = check(capsys)
    counts = "1 of 1 releases; 1 of 2 betas and the like, not to 17beta1"
    assert said == f"17     applies to {counts} (tags of {world.mirror})"


def test_without_tags_the_source_at_hand_is_tried(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", f"{NOWHERE}/x")
    (said,) = check(capsys)
    where = "the source at hand; 127.0.0.1: connection refused"
    assert said == f"17     applies to 1 of 1 releases ({where})"
    at_hand(monkeypatch, world.source("17.4", step="another(x);"))
    said, *_, wrong = check(capsys)
    assert said.startswith("17     applies to 0 of 1 releases, not to 17.4 (")
    assert "does not agree" in wrong, "which is what the source itself is asked for first"


def test_a_diff_that_is_gone_is_told_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.diff.unlink()
    with pytest.raises(PatchError, match="does not agree"):
        cores.check([major("17")], minors=True)
    assert "applies to" not in capsys.readouterr().out


def test_nothing_is_written_where_the_tags_are(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    tag(world, "REL_17_2", "17.2", above=3)
    before = set(world.mirror.rglob("*"))
    check(capsys)
    assert set(world.mirror.rglob("*")) == before
