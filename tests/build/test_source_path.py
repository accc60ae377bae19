"""The provider `path`: directories and tarballs that are named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ptrack_build import report, source
from ptrack_build.errors import BadSource, SourceError, UsageError
from tests.build._source_fixtures import cache_root
from tests.build._sources import MD, commit, git, major, repository, tarball, tree, write_tree

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache_root"]


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    """A git work tree of 17.2."""
    return repository(tmp_path / "worktree", {"REL_17_STABLE": "17.2"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An unpacked release."""
    return write_tree(tmp_path / "unpacked", tree("17.2"))


def fetch(path: Path) -> source.SourceTree:
    return source.fetch(major("17"), spec=str(path))


def test_a_clean_worktree(worktree: Path) -> None:
    found = fetch(worktree)
    assert found.commit == git("rev-parse", "HEAD", cwd=worktree)
    assert (found.version, found.provider, found.origin) == ("17.2", "path", str(worktree))


@pytest.mark.parametrize(
    ("version", "tag", "untagged"),
    [
        ("17.2", "", True),
        ("17.2", "REL_17_2", False),
        ("17.2", "REL_17_1", True),
        ("17.2", "mine", True),
        ("17beta1", "REL_17_BETA1", False),
        ("17rc2", "REL_17_RC1", True),
    ],
)
def test_a_worktree_is_a_release_where_its_tag_says_so(
    version: str, tag: str, untagged: bool, tmp_path: Path
) -> None:
    worktree = repository(tmp_path / "worktree", {"REL_17_STABLE": version})
    if tag:
        git("tag", "-a", "-m", tag, tag, cwd=worktree)
    assert fetch(worktree).untagged is untagged
    # what comes after it says the same version, until the next one is stamped
    commit(worktree, tree(version) | {MD: b"/* mended */\n"})
    assert fetch(worktree).untagged


def test_directories_and_tarballs_are_of_releases(directory: Path, tmp_path: Path) -> None:
    assert not fetch(directory).untagged
    file = tmp_path / "pg.tar.gz"
    file.write_bytes(tarball(tree("17.2")))
    assert not fetch(file).untagged


def test_a_worktree_is_followed(worktree: Path) -> None:
    fetch(worktree)
    moved = commit(worktree, tree("17.3"))
    assert fetch(worktree).commit == moved


def test_a_linked_worktree(worktree: Path, tmp_path: Path) -> None:
    other = tmp_path / "linked"
    git("worktree", "add", "-q", "--detach", str(other), cwd=worktree)
    assert fetch(other).commit == git("rev-parse", "HEAD", cwd=worktree)


@pytest.mark.parametrize("how", ["edited", "staged", "deleted"])
def test_a_dirty_worktree(worktree: Path, how: str) -> None:
    path = worktree / MD
    if how == "deleted":
        path.unlink()
    else:
        path.write_text("changed\n")
    if how == "staged":
        git("add", "-f", MD, cwd=worktree)
    with pytest.raises(SourceError, match=f"uncommitted changes in {MD}") as caught:
        fetch(worktree)
    assert "commit or stash" in (caught.value.hint or "")


def test_a_conflicting_worktree(worktree: Path) -> None:
    git("checkout", "-q", "-b", "side", cwd=worktree)
    commit(worktree, tree("17.2") | {MD: b"/* theirs */\n"})
    git("checkout", "-q", "REL_17_STABLE", cwd=worktree)
    commit(worktree, tree("17.2") | {MD: b"/* ours */\n"})
    git("merge", "-q", "side", cwd=worktree, check=False)
    with pytest.raises(SourceError, match=f"has conflicts in {MD}"):
        fetch(worktree)


def test_a_conflicting_directory(directory: Path) -> None:
    conflict = b"<<<<<<< HEAD\n/* ours */\n=======\n/* theirs */\n>>>>>>> side\n"
    write_tree(directory, {MD: tree("17.2")[MD] + conflict})
    with pytest.raises(BadSource, match=f"has conflicts in {MD}") as caught:
        fetch(directory)
    assert "resolve them" in (caught.value.hint or "")


def test_a_worktree_that_lacks_objects(worktree: Path) -> None:
    blob = git("rev-parse", f"HEAD:{MD}", cwd=worktree)
    (worktree / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(BadSource, match=f"could not be taken from {worktree}") as caught:
        fetch(worktree)
    assert "fsck" in (caught.value.hint or "")


def test_a_worktree_that_git_cannot_read(worktree: Path) -> None:
    (worktree / ".git/index").write_bytes(b"no index")
    with pytest.raises(BadSource, match=r"git cannot read .*: fatal: ") as caught:
        fetch(worktree)
    assert "clone it anew" in (caught.value.hint or "")


def test_untracked_files_are_left_out(worktree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(worktree, {"notes.txt": b"", "src/backend/x.c": b"ignored by .gitignore\n"})
    found = fetch(worktree)
    assert source.read_file(found, "notes.txt") is None
    assert source.read_file(found, "src/backend/x.c") is None
    assert "left out, not tracked by git: notes.txt" in capsys.readouterr().out


def test_a_worktree_without_commits(tmp_path: Path) -> None:
    git("init", "-q", str(tmp_path / "new"), cwd=tmp_path)
    with pytest.raises(SourceError, match="has no commit yet"):
        fetch(tmp_path / "new")


def test_a_bare_repository(worktree: Path, tmp_path: Path) -> None:
    git("clone", "-q", "--bare", str(worktree), str(tmp_path / "bare"), cwd=tmp_path)
    with pytest.raises(SourceError, match="bare git repository") as caught:
        fetch(tmp_path / "bare")
    assert "PTRACK_PG_GIT=" in (caught.value.hint or "")


def test_a_directory(directory: Path, tmp_path: Path) -> None:
    found = fetch(directory)
    source.export(found, tmp_path / "out")
    for name, data in tree("17.2").items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_a_directory_within_another_repository(worktree: Path) -> None:
    inner = write_tree(worktree / "ignored.d", tree("17.9"))
    assert fetch(inner).version == "17.9"


def test_a_directory_is_read_again_when_it_changed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fetch(directory)
    capsys.readouterr()
    assert fetch(directory) == first
    assert "reading" not in capsys.readouterr().out
    (directory / MD).write_text("/* edited */\n")
    assert fetch(directory).digest != first.digest


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.status", "has been configured"),
        ("src/backend/main.o", "build products in it, such as src/backend/main.o"),
        (f"{MD}.rej", "leftovers of a patch"),
        (f"{MD}.orig", "leftovers of a patch"),
        ("src/include/storage/changetrack.h", "core patch of ptrack already"),
    ],
)
def test_a_directory_that_is_not_pristine(directory: Path, file: str, message: str) -> None:
    write_tree(directory, {file: b""})
    with pytest.raises(SourceError, match=message):
        fetch(directory)


def test_a_directory_of_another_major(directory: Path) -> None:
    """Nothing is wrong with it: a session over all majors goes on with the one it is of."""
    with pytest.raises(SourceError, match=r"is PostgreSQL 17\.2, not 16") as caught:
        source.fetch(major("16"), spec=str(directory))
    assert not isinstance(caught.value, BadSource)
    assert report.stopped("test-16", caught.value).status == "unreachable"


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    write_tree(tmp_path / "x", {"README": b""})
    with pytest.raises(SourceError, match="no PostgreSQL source tree"):
        fetch(tmp_path / "x")


def test_a_directory_with_what_is_no_file(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    with pytest.raises(SourceError, match="pipe is no file, directory or link"):
        fetch(directory)


def test_a_link_out_of_the_directory(directory: Path) -> None:
    (directory / "link").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="leads out of it"):
        fetch(directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read(directory: Path) -> None:
    for name in (MD, "configure"):
        (directory / name).chmod(0)
        with pytest.raises(SourceError, match=rf"{name} cannot be read") as caught:
            fetch(directory)
        (directory / name).chmod(0o644)
        assert (caught.value.hint or "").startswith("chmod -R u+rX ")
    path = directory.parent / "postgresql-17.2.tar.gz"
    path.write_bytes(tarball(tree("17.2")))
    path.chmod(0)
    with pytest.raises(SourceError, match=r"postgresql-17.2.tar.gz cannot be read"):
        fetch(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_above_it_that_cannot_be_searched(directory: Path) -> None:
    directory.parent.chmod(0o600)
    try:
        with pytest.raises(UsageError, match=rf"{directory.name} cannot be read") as caught:
            fetch(directory)
    finally:
        directory.parent.chmod(0o755)
    assert "above it" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_link_to_what_cannot_be_read_leads_out(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "secret.c").write_text("")
    (tmp_path / "secret.c").chmod(0)
    (directory / "link.c").symlink_to(tmp_path / "secret.c")
    with pytest.raises(SourceError, match="leads out of it"):
        fetch(directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0, 0o444])
@pytest.mark.parametrize("name", ["", "contrib", "src/include"])
def test_a_directory_in_it_that_cannot_be_read(directory: Path, name: str, mode: int) -> None:
    within = directory / name
    name = name or directory.name
    within.mkdir(exist_ok=True)
    (within / "some.o").write_text("")
    within.chmod(mode)
    try:
        with pytest.raises(SourceError, match=rf"/{name} cannot be read") as caught:
            fetch(directory)
    finally:
        within.chmod(0o755)
    assert (caught.value.hint or "").startswith("chmod -R u+rX ")


def test_a_tarball(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "postgresql-17.2.tar.gz"
    path.write_bytes(tarball(tree("17.2")))
    found = fetch(path)
    assert found.digest == fetch(directory).digest
    assert found.sha256


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is neither a provider nor a path"):
        fetch(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a directory nor a file"):
        fetch(tmp_path / "pipe")
    with pytest.raises(UsageError, match="PTRACK_SOURCE=tarbal is neither a provider nor a path"):
        source.fetch(major(), spec="tarbal")
