"""Provider `path`: a directory or tarball that the caller names.

A git work tree is taken at its HEAD, and must have no uncommitted changes; files that git does not
track (build products among them) are left out. Any other directory is taken whole, and so must be
free of build products.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from ptrack_build import cache
from ptrack_build.errors import BadSource, CommandFailed
from ptrack_build.progress import say, step
from ptrack_build.source.archive import (
    MESSAGE,
    directory_entries,
    directory_stamp,
    import_tarball,
    sha256_of,
)
from ptrack_build.source.base import OtherMajor, SourceTree, Want, check_space, check_version
from ptrack_build.source.git import reason_of
from ptrack_build.source.mirror import (
    PATCHED_FILES,
    VERSION_FILES,
    find_version,
    git,
    refuse_patched,
)

SHOWN = 5


@dataclass(frozen=True)
class PathProvider:
    """Takes what is at `path`."""

    path: Path
    name: ClassVar[str] = "path"

    def key(self) -> str:
        """See Provider."""
        return cache.digest(str(self.path))

    def lasting(self) -> bool:
        """It may change at any time."""
        return False

    def fetch(self, want: Want) -> SourceTree:
        """The tree as it is now.

        Raises BadSource saying what is wrong with it, and OtherMajor.
        """
        path = self.path
        try:
            commit, sha256, worktree = _read(want, path)
        except PermissionError as error:
            found = Path(str(error.filename))
            if not found.is_relative_to(path):
                raise
            what = f"{_shut(found, path)} cannot be read"
            raise BadSource(what, hint=f"chmod -R u+rX {shlex.quote(str(path))}") from error
        version = want.mirror.version(commit, str(path))
        check_version(want.major, version, str(path), error=OtherMajor)
        return SourceTree(
            major=want.major,
            version=version,
            commit=commit,
            mirror=want.mirror.path,
            digest=want.mirror.tree(commit),
            provider=self.name,
            origin=str(path),
            sha256=sha256,
            untagged=worktree and not _tagged(path, commit, version),
        )


def _read(want: Want, path: Path) -> tuple[str, str, bool]:
    """The commit of what is there, a tarball's digest, and whether it is a work tree of git's."""
    if path.is_dir():
        here = git("-C", str(path), "rev-parse", "--show-toplevel", check=False)
        top = here.stdout.decode().rstrip("\n")
        if here.returncode == 0 and Path(top).resolve() == path.resolve():
            return _from_worktree(want, path), "", True
        if (path / "HEAD").is_file() and (path / "objects").is_dir():
            what = f"{path} is a bare git repository, not a source tree"
            hint = f"PTRACK_SOURCE=git PTRACK_PG_GIT={shlex.quote(str(path))}"
            raise BadSource(what, hint=hint)
        return _from_directory(want, path), "", False
    if path.is_file():
        sha256 = sha256_of(path)
        with step(f"reading {path.name}"):
            commit, _ = import_tarball(want, path, sha256, str(path))
        return commit, sha256, False
    what = f"{path} is neither a directory nor a file"
    hint = "PTRACK_SOURCE is auto, git, distro, tarball, or a directory or tarball"
    raise BadSource(what, hint=hint)


def _shut(found: Path, top: Path) -> Path:
    """What keeps a file from this user: the highest directory not to be searched, or itself."""
    ways = [up for up in found.parents if up.is_relative_to(top) and not os.access(up, os.X_OK)]
    return ways[-1] if ways else found


def _tagged(path: Path, commit: str, version: str) -> bool:
    """Whether the tag of a release (REL_17_2, REL_19_BETA1) in a work tree names that commit."""
    tag = "REL_" + re.sub(r"\.|(?=[a-z])", "_", version, count=1).upper()
    asked = ("-C", str(path), "rev-parse", "--quiet", "--verify", f"refs/tags/{tag}^{{commit}}")
    return git(*asked, check=False).stdout.decode().strip() == commit


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _from_worktree(want: Want, path: Path) -> str:
    asked = git(
        "-C",
        str(path),
        "status",
        "--porcelain=v1",
        "-z",
        "--untracked-files=normal",
        "--no-renames",
        check=False,
    )
    if asked.returncode:
        said = asked.stderr.decode(errors="replace").strip().splitlines()
        what = f"git cannot read {path}: {said[-1] if said else f'status {asked.returncode}'}"
        hint = f"see `git -C {shlex.quote(str(path))} status`; clone it anew, or give a tarball"
        raise BadSource(what, hint=hint)
    out = asked.stdout.decode(errors="replace")
    states = [(line[:2], line[3:]) for line in out.split("\0") if line]
    unmerged = [n for s, n in states if "U" in s or s in {"AA", "DD"}]
    if unmerged:
        what = f"{path} has conflicts in {_listed(unmerged)}"
        raise BadSource(what, hint="resolve and commit them, or abort the merge")
    changed = [n for s, n in states if s != "??"]
    if changed:
        what = f"{path} has uncommitted changes in {_listed(changed)}"
        hint = (
            "commit or stash them; or give what is committed as a tarball: "
            f"git -C {shlex.quote(str(path))} archive --prefix=pg/ -o /tmp/pg.tar HEAD, "
            "then PTRACK_SOURCE=/tmp/pg.tar"
        )
        raise BadSource(what, hint=hint)
    head = git("-C", str(path), "rev-parse", "--verify", "HEAD^{commit}", check=False)
    commit = head.stdout.decode().strip()
    if not commit:
        what = f"{path} has no commit yet"
        raise BadSource(what, hint="commit the tree, or give a tarball")
    untracked = [n for s, n in states if s == "??"]
    if untracked:
        say(f"{path}: left out, not tracked by git: {_listed(untracked)}")
    mirror = want.mirror
    ref = f"refs/ptrack/path/{want.major.name}/{commit[:12]}"
    if not mirror.whole(commit):
        try:
            with step(f"taking {commit[:12]} from {path}"), mirror.writing():
                mirror.take(str(path), f"+HEAD:{ref}", "--update-shallow")
        except CommandFailed as error:
            check_space(error.tail)
            what = f"{commit[:12]} could not be taken from {path}: {reason_of(error)}"
            raise BadSource(
                what, hint=f"git -C {shlex.quote(str(path))} fsck says what is missing there"
            ) from error
        commit = mirror.whole(ref)
        if not commit:
            what = f"HEAD of {path} did not come whole"
            hint = f"git -C {shlex.quote(str(path))} fsck says what is missing there"
            raise BadSource(what, hint=hint)
    mirror.set_ref(ref, commit)
    return commit


def _from_directory(want: Want, path: Path) -> str:
    """The commit of a directory's files, which is made where they have changed since."""
    texts = [_text(path / name) for name in VERSION_FILES]
    version = find_version(texts, str(path))
    check_version(want.major, version, str(path), error=OtherMajor)
    header, md = PATCHED_FILES
    refuse_patched(str(path), header=(path / header).exists(), md=_text(path / md) or b"")
    if (path / "config.status").exists() or (path / "GNUmakefile").exists():
        what = f"{path} has been configured"
        hint = f"make -C {shlex.quote(str(path))} distclean, or give the tarball it came from"
        raise BadSource(what, hint=hint)
    for found in path.rglob("*"):
        if found.suffix in {".o", ".rej", ".orig"} and found.is_file():
            kind = "build products" if found.suffix == ".o" else "leftovers of a patch"
            what = f"{path} has {kind} in it, such as {found.relative_to(path)}"
            raise BadSource(what, hint="unpack the tarball anew and give that directory")
        text = found.suffix in {".c", ".h", ".y", ".l"} and not found.is_symlink()
        if text and b"\n<<<<<<< " in (_text(found) or b""):
            what = f"{path} has conflicts in {found.relative_to(path)}"
            raise BadSource(what, hint="resolve them, or unpack the tarball anew")
    stamp = directory_stamp(path)
    note = cache.directory("source") / f"directory-{cache.digest(str(path))[:16]}.json"
    known = _known(note)
    if known.get("stamp") == stamp and (commit := want.mirror.whole(known.get("commit", ""))):
        return commit
    ref = f"refs/ptrack/path/{want.major.name}/{stamp[:12]}"
    with step(f"reading {path}", estimate=3.0):
        commit = want.mirror.store(ref, directory_entries(path), MESSAGE)
    if directory_stamp(path) != stamp:
        want.mirror.git("update-ref", "-d", ref)
        what = f"{path} changed while it was read"
        raise BadSource(what, hint="run it again when nothing writes there")
    cache.write(note, msgspec.json.encode({"stamp": stamp, "commit": commit}).decode())
    return commit


def _text(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except PermissionError:
        raise
    except OSError:
        return None


def _known(note: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(note.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}
