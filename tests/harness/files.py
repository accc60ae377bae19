"""The relation files of a data directory."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

# 16384, 16384_fsm, 16384.1, 16384_vm.2; a temporary relation (t3_16384) does not match.
_FILE = re.compile(r"(?P<rel>[0-9]+)(?:_(?P<fork>fsm|vm|init))?(?:\.(?P<segment>[0-9]+))?")

# device, inode, size, and in ns mtime and ctime
State = tuple[int, int, int, int, int]

_PIECE = 1 << 20
# A file changes twice within the grain of its times and looks as if it had changed once: what is
# younger than that is read again. Some file systems count whole seconds, or two.
_GRAIN_NS = 100_000_000
_COARSE_GRAIN_NS = 2_100_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class FileName:
    """What the name of a relation's file says.

    Attributes:
        rel: the relfilenode.
        fork: ``main``, ``fsm``, ``vm`` or ``init``.
        segment: 0 and up.
    """

    rel: int
    fork: str
    segment: int

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """Read a file's name (not a path); None for what is no relation's file."""
        match = _FILE.fullmatch(name)
        if match is None:
            return None
        return cls(
            rel=int(match["rel"]), fork=match["fork"] or "main", segment=int(match["segment"] or 0)
        )


def _database_dirs(data: Path) -> Iterator[Path]:
    yield data / "global"
    for parent in (data / "base", *_tablespaces(data)):
        try:
            found = sorted(entry for entry in parent.iterdir() if entry.name.isdigit())
        except FileNotFoundError:
            continue
        yield from found


def _tablespaces(data: Path) -> Iterator[Path]:
    for tablespace in sorted((data / "pg_tblspc").iterdir()):
        if tablespace.is_dir():  # through the link, or in place
            yield from sorted(tablespace.glob("PG_*"))


class Reader:
    """Reads the files of one data directory again and again, and each only when it has changed.

    Unchanged is what has the same device, inode, size and times, if these were old enough when it
    was read that every later change is sure to have given it others.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[State, bytes]] = {}

    def read_all(self, data: Path, *, but: Collection[str] = ()) -> dict[str, bytes]:
        """The content of every relation file, by its path relative to ``data``; but: not of these.

        All forks and segments, none of temporary relations; what is dropped meanwhile is left out.
        Paths go through ``pg_tblspc``, as the map names them. What is unchanged is the same object
        as before.
        """
        content: dict[str, bytes] = {}
        known = self._known
        self._known = {}
        for directory in _database_dirs(data):
            below = str(directory.relative_to(data))
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(directory):  # noqa: PTH208 - thousands of files, many times
                    if _FILE.fullmatch(name) is not None:
                        path = f"{below}/{name}"
                        if path in but:
                            continue
                        with contextlib.suppress(FileNotFoundError):
                            content[path] = self._read(f"{directory}/{name}", path, known)
        return content

    def _read(self, name: str, path: str, known: Mapping[str, tuple[State, bytes]]) -> bytes:
        now = time.time_ns()  # before the times and the content are read
        state = state_of(name)
        *_, mtime, ctime = state
        old = known.get(path)
        content = old[1] if old is not None and old[0] == state else _content(name)
        whole = mtime % _SECOND_NS == 0 and ctime % _SECOND_NS == 0
        if max(mtime, ctime) < now - (_COARSE_GRAIN_NS if whole else _GRAIN_NS):
            self._known[path] = (state, content)
        return content


def state_of(name: str) -> State:
    """What tells a file's content from its next one, but for the grain of the times."""
    found = os.stat(name)  # noqa: PTH116
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(name: str) -> bytes:
    file = os.open(name, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        content = os.read(file, size + 1)
        while len(content) != size and (more := os.read(file, _PIECE)):
            content += more  # it has grown
        return content
    finally:
        os.close(file)
