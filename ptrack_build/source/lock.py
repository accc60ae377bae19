"""matrix.lock: the source of each major that was last proven, for builds that must not move."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING

import msgspec

from ptrack_build import REPO, cache
from ptrack_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ptrack_build.source.base import SourceTree

HEAD = """\
# The source of each major that was last proven; `--locked` builds exactly these. Written by the
# build, not by hand.
#
# commit   in the repository that it is from (git), which PostgreSQL's need not be; else of the
#          tree that the tarball unpacks to
# tree     the git tree: equal for equal contents, whoever provided them
# sha256   of the tarball
"""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The locked source of a major."""

    name: str
    version: str
    provider: str
    commit: str
    tree: str
    origin: str
    proven: dt.date
    sha256: str = ""


class _Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    major: tuple[Row, ...] = ()


def default() -> Path:
    """The project's own."""
    return REPO / "matrix.lock"


def read_lock(path: Path | None = None) -> dict[str, Row]:
    """The rows by major; none where there is no file. Raises UsageError for what is no lock."""
    path = path or default()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        lock = msgspec.toml.decode(text, type=_Lock)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        what = f"{path.name} cannot be read: {error}"
        raise UsageError(what, hint=f"git checkout -- {path.name}") from error
    return {row.name: row for row in lock.major}


def write_lock(
    trees: Iterable[SourceTree],
    path: Path | None = None,
    *,
    proven: dt.date | None = None,
) -> None:
    """Record these trees as proven (today); the rows of other majors stay.

    Of two at once each keeps what the other wrote.
    """
    path = path or default()
    name = f"rows-{cache.digest(str(path.absolute()))[:16]}"
    with cache.lock(name, f"writes {path.name}"):
        rows = read_lock(path)
        day = proven or dt.datetime.now(dt.UTC).date()
        for tree in trees:
            rows[tree.major.name] = Row(
                name=tree.major.name,
                version=tree.version,
                provider=tree.provider,
                commit=tree.commit,
                tree=tree.digest,
                origin=_public(tree),
                proven=day,
                sha256=tree.sha256,
            )
        order = sorted(rows, key=lambda n: int(n) if n.isdigit() else 10_000)
        text = HEAD
        for name in order:
            row = rows[name]
            text += "\n[[major]]\n"
            for key in Row.__struct_fields__:
                value = getattr(row, key)
                if value != "":
                    shown = value.isoformat() if key == "proven" else json.dumps(value)
                    text += f"{key} = {shown}\n"
        cache.write(path, text)


def _public(tree: SourceTree) -> str:
    """Where a tree is from, without the paths of one machine."""
    if tree.provider == "path":
        return f"a {'tarball' if tree.sha256 else 'directory'} that was named"
    return re.sub(r" of (/|file:)\S+", " of a local repository", tree.origin)
