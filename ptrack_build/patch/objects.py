"""What is asked of git: files of a commit, diffs between sets of files, patches on top of them.

All works on a bare repository, which may be shallow, and changes nothing in it: what is made on the
way (blobs, trees) goes to a scratch object store that borrows from the repository's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ptrack_build.errors import CommandFailed, HostError, PatchError
from ptrack_build.source.base import check_damage, check_full

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

REGULAR: Final = "100644"
_CONFIG: Final = (
    "safe.directory=*",
    "core.autocrlf=false",
    "core.quotePath=true",
    "core.sharedRepository=0644",
    "merge.conflictStyle=merge",
    "apply.whitespace=nowarn",
    "apply.ignoreWhitespace=no",
)
_DIFF: Final = (
    "--patch",
    "--full-index",
    "--no-color",
    "--no-renames",
    "--no-ext-diff",
    "--no-textconv",
    "--unified=3",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a tree: its mode as git writes it, and the id of its blob."""

    mode: str
    blob: str


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What came of applying a diff. files: None when it failed; said: git's words, all of them."""

    files: dict[str, File] | None
    said: str


class Objects:
    """A repository to read from and a place for what is made; a context manager."""

    def __init__(self, repository: Path) -> None:
        program = shutil.which("git")
        if program is None:
            what = "git is not installed"
            raise HostError(what, hint="install git")
        self._program = program
        self._repository = repository.absolute()
        self._scratch = Path(tempfile.mkdtemp(prefix="ptrack-patch-"))
        (self._scratch / "objects").mkdir()
        (self._scratch / "none").mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _git(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        index: Path | None = None,
        umask: int = -1,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env |= {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_DIR": str(self._repository),
            "GIT_OBJECT_DIRECTORY": str(self._scratch / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._repository / "objects"),
            "GIT_INDEX_FILE": str(index or self._scratch / "index"),
            "GIT_NO_LAZY_FETCH": "1",
            "LC_ALL": "C.UTF-8",
        }
        config = [word for each in _CONFIG for word in ("-c", each)]
        done = subprocess.run(
            [self._program, *config, *arguments],
            input=stdin,
            capture_output=True,
            cwd=self._scratch / "none",
            env=env,
            umask=umask,
            check=False,
        )
        if check and done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            if "No space left" in said:
                what = f"no space left on the device of {self._scratch}"
                raise HostError(what, hint="free some space")
            check_damage(said, self._repository)
            raise CommandFailed(["git", *arguments], done.returncode, tail=said)
        return done

    # ---- reading

    def files(self, commit: str, paths: Iterable[str]) -> dict[str, File]:
        """Those of the paths that the commit (or tree) has."""
        out = self._git("ls-tree", "-z", "--full-tree", commit, "--", *paths).stdout
        found = {}
        for entry in out.decode(errors="surrogateescape").split("\0"):
            if entry:
                about, _, path = entry.partition("\t")
                mode, kind, blob = about.split()
                if kind == "blob":
                    found[path] = File(mode=mode, blob=blob)
        return found

    def texts(self, blobs: Iterable[str]) -> dict[str, str]:
        """Those of the blobs that are at hand, as text that encodes back to the same bytes."""
        asked = sorted(set(blobs))
        out = self._git("cat-file", "--batch", stdin="\n".join([*asked, ""]).encode()).stdout
        found = {}
        for blob in asked:
            header, _, out = out.partition(b"\n")
            if header.endswith(b" missing"):
                continue
            size = int(header.rsplit(b" ", 1)[1])
            found[blob] = out[:size].decode(errors="surrogateescape")
            out = out[size + 1 :]
        return found

    def committed_at(self, commit: str) -> int:
        """When a commit was made, in seconds since 1970."""
        return int(self._git("show", "-s", "--no-show-signature", "--format=%ct", commit).stdout)

    # ---- making

    def add(self, text: str) -> str:
        """The id of a new blob."""
        data = text.encode(errors="surrogateescape")
        return self._git("hash-object", "-w", "--stdin", stdin=data).stdout.decode().strip()

    def tree(self, files: Mapping[str, File]) -> str:
        """The id of a tree of just these files."""
        index = self._index(files)
        return self._git("write-tree", "--missing-ok", index=index).stdout.decode().strip()

    def _index(self, files: Mapping[str, File]) -> Path:
        index = self._scratch / f"index-{len(list(self._scratch.iterdir()))}"
        self._stage(index, files)
        return index

    def _stage(self, index: Path, files: Mapping[str, File]) -> None:
        lines = "".join(f"{file.mode} {file.blob}\t{path}\0" for path, file in files.items())
        data = lines.encode(errors="surrogateescape")
        self._git("update-index", "-z", "--index-info", stdin=data, index=index)

    def diff(self, old: Mapping[str, File], new: Mapping[str, File]) -> str:
        """The diff between two sets of files, the same on every machine and with every setting."""
        trees = (self.tree(old), self.tree(new))
        out = self._git("diff-tree", "-r", *_DIFF, *trees).stdout
        return out.decode(errors="surrogateescape")

    def apply(self, files: Mapping[str, File], diff: str, *, merge: bool) -> Applied:
        """Apply a diff to a set of files; with merge by a 3-way merge, where its blobs are at hand.

        Where they are not, or the merge conflicts, the hunks must fit, at whatever lines.
        """
        data = diff.encode(errors="surrogateescape")
        said = []
        for way in (["--3way"], []) if merge else ([],):
            index = self._index(files)
            done = self._git(
                "apply", "--cached", "--verbose", *way, "-", stdin=data, index=index, check=False
            )
            said.append(done.stderr.decode(errors="replace"))
            if done.returncode == 0:
                return Applied(files=self._staged(index), said=said[-1])
        return Applied(files=None, said=said[-1])

    def _staged(self, index: Path) -> dict[str, File]:
        out = self._git("ls-files", "-z", "--stage", index=index).stdout
        found = {}
        for entry in out.decode(errors="surrogateescape").split("\0"):
            if entry:
                about, _, path = entry.partition("\t")
                mode, blob, stage = about.split()
                if stage != "0":
                    what = f"{path} was left in conflict by git apply --3way"
                    raise PatchError(what)
                found[path] = File(mode=mode, blob=blob)
        return found

    def export(self, commit: str, files: Mapping[str, File], into: Path) -> None:
        """Write the commit's files, with these instead of or added to its own, into a directory.

        All files get the commit's time: nothing looks newer than what is generated from it, and
        the same tree looks the same whenever it is written.
        """
        index = self._scratch / "index-export"
        self._git("read-tree", commit, index=index)
        self._stage(index, files)
        write = (f"--work-tree={into}", "checkout-index", "--all", "--quiet")
        try:
            self._git(*write, index=index, umask=0o022)
        except CommandFailed:  # git says which files it could not write, and not why
            check_full(into)
            raise
        when = self.committed_at(commit)
        for folder, names, leaves in os.walk(into, topdown=False):
            for name in (*names, *leaves):
                os.utime(Path(folder, name), (when, when), follow_symlinks=False)
        os.utime(into, (when, when))
