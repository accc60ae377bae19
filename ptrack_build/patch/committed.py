"""The committed diffs: patches/<branch>-ptrack-core.diff.

A head that git apply skips says what the diff was rendered against and from:

    Against: PostgreSQL 17.2
    Tree: <git's id of that tree>            (equal contents have equal ids, whoever provided them)
    Edits: <SHA-256 of the edits that the templates hold for this major>
    Body: <SHA-256 of what follows the head>
    Lines: 79 added, 0 removed, 10 files

The `index` lines of the body hold the full ids of the blobs it was rendered against.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from ptrack_build.errors import PatchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unidiff.patch import Hunk as ParsedHunk

    from ptrack_build.matrix import Major

#: The session that writes them; ./ belongs in front of it.
HINT: Final = "nox -s patches"
_TITLE: Final = """\
The core patch of ptrack for {branch}.
Rendered from templates/core by `./nox -s patches`: edit those, not this.
"""


@dataclass(frozen=True, kw_only=True)
class Hunk:
    """A hunk. old, new: its first line before and after; before: the old lines it needs to see.

    lines: all of it, each with its mark: " ", "-" or "+".
    """

    heading: str
    old: int
    new: int
    before: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileDiff:
    """What is done to one file. old: the id of its blob before, "" for a new file."""

    path: str
    old: str
    hunks: tuple[Hunk, ...]

    @property
    def added(self) -> list[str]:
        """All lines added, in order."""
        return [line for hunk in self.hunks for line in hunk.added]


@dataclass(frozen=True, kw_only=True)
class Diff:
    """A diff with its head."""

    branch: str
    against: str
    tree: str
    edits: str
    body: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(self.branch)

    @property
    def digest(self) -> str:
        """SHA-256 of the body."""
        return hashlib.sha256(self.body.encode(errors="surrogateescape")).hexdigest()

    @property
    def files(self) -> tuple[FileDiff, ...]:
        """The files it touches."""
        return parse(self.body)

    @property
    def added(self) -> int:
        """How many lines it adds, blank lines, comments and new files included."""
        return sum(len(hunk.added) for file in self.files for hunk in file.hunks)

    @property
    def removed(self) -> int:
        """How many lines it removes."""
        return sum(len(hunk.removed) for file in self.files for hunk in file.hunks)

    def text(self) -> str:
        """The file as it is committed."""
        head = {
            "Against": self.against,
            "Tree": self.tree,
            "Edits": self.edits,
            "Body": self.digest,
            "Lines": f"{self.added} added, {self.removed} removed, {len(self.files)} files",
        }
        lines = "".join(f"{key}: {value}\n" for key, value in head.items())
        return f"{_TITLE.format(branch=self.branch)}\n{lines}\n{self.body}"


def file_name(branch: str) -> str:
    """What the diff of a branch is called."""
    return f"{branch}-ptrack-core.diff"


def write(diff: Diff, patches: Path) -> Path:
    """Write a diff to its place."""
    patches.mkdir(exist_ok=True)
    path = patches / diff.name
    path.write_bytes(diff.text().encode(errors="surrogateescape"))
    return path


def read(major: Major, patches: Path) -> Diff:
    """The committed diff of a major, whatever was done to it since.

    Its edits are "" where head and body do not belong together any more. Raises PatchError where
    there is none or it has no head.
    """
    path = patches / file_name(major.branch)
    shown = f"{patches.name}/{path.name}"
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        what = f"{shown} cannot be read: {error.strerror}"
        raise PatchError(what, hint=f"./{HINT}") from error
    head, found, body = text.partition("\ndiff --git ")
    fields = dict(re.findall(r"^(\w+): (.*)$", head, re.MULTILINE))
    missing = [key for key in ("Against", "Tree", "Edits", "Body") if key not in fields]
    if not found or missing:
        what = f"{shown}: no {'diff' if not found else missing[0] + ':'} in it"
        raise PatchError(what, hint=f"./{HINT}")
    diff = Diff(
        branch=major.branch,
        against=fields["Against"],
        tree=fields["Tree"],
        edits=fields["Edits"],
        body=f"diff --git {body}",
    )
    parse(diff.body, shown)
    if text != diff.text():
        # The body is another than when the head was written; it is judged against the templates.
        return Diff(
            branch=diff.branch, against=diff.against, tree=diff.tree, edits="", body=diff.body
        )
    return diff


def require(major: Major, patches: Path) -> None:
    """Raise PatchError where a major has no committed diff, or its branch is not called so."""
    path = patches / file_name(major.branch)
    if not path.is_file():
        what = f"PostgreSQL {major.name} has no committed diff: {patches.name}/{path.name}"
        hint = f"git checkout -- {patches.name}; for a new major ./{HINT} -- {major.name}"
        raise PatchError(what, hint=hint)


def parse(body: str, name: str = "the diff") -> tuple[FileDiff, ...]:
    """The files and hunks of a diff made by git. Raises PatchError if it is none."""
    try:
        patched = PatchSet.from_string(body)
    except UnidiffParseError as error:
        what = f"{name} is not a diff any more: {error}"
        raise PatchError(what, hint=f"./{HINT}") from error
    blobs = r"^diff --git a/.* b/(.*)\n(?:new file.*\n)?index ([0-9a-f]+)"
    old = dict(re.findall(blobs, body, re.MULTILINE))
    return tuple(
        FileDiff(
            path=file.path,
            old=old.get(file.path, "").strip("0") and old[file.path],
            hunks=tuple(_hunk(hunk) for hunk in file),
        )
        for file in patched
    )


def _hunk(hunk: ParsedHunk) -> Hunk:
    def lines(wanted: Sequence[str]) -> tuple[str, ...]:
        return tuple(line.value.rstrip("\n") for line in hunk if line.line_type in wanted)

    return Hunk(
        heading=(
            f"@@ -{hunk.source_start},{hunk.source_length} "
            f"+{hunk.target_start},{hunk.target_length} @@ {hunk.section_header}".rstrip()
        ),
        old=hunk.source_start,
        new=hunk.target_start,
        before=lines((" ", "-")),
        added=lines(("+",)),
        removed=lines(("-",)),
        lines=tuple(f"{line.line_type}{line.value}".rstrip("\n") for line in hunk),
    )
