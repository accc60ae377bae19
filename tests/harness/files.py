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
_Known = tuple[State, bytes]

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
        self._known: dict[str, _Known] = {}

    def read_all(self, data: Path, *, but: Collection[str] = ()) -> dict[str, bytes]:
        """The content of every relation file, by its path relative to ``data``; but: not of these.

        All forks and segments, none of temporary relations; what is dropped meanwhile is left out.
        Paths go through ``pg_tblspc``, as the map names them. What is unchanged is the same object
        as before.
        """
        content: dict[str, bytes] = {}
        before, self._known = self._known, {}
        for directory in _database_dirs(data):
            below = str(directory.relative_to(data))
            with contextlib.suppress(FileNotFoundError), _opened(directory) as place:
                for name in os.listdir(place):  # noqa: PTH208 - of a descriptor
                    if _FILE.fullmatch(name) is None or (path := f"{below}/{name}") in but:
                        continue
                    try:
                        content[path] = self._read(place, name, path, before)
                    except FileNotFoundError:
                        continue
        return content

    def _read(self, place: int, name: str, path: str, before: Mapping[str, _Known]) -> bytes:
        now = time.time_ns()  # before the times and the content are read
        state = state_of(name, place)
        known = before.get(path)
        if known is not None and known[0] == state:
            content = known[1]
        else:
            content = _content(place, name, state[2])
            known = state, content
        mtime, ctime = state[3], state[4]
        whole = mtime % _SECOND_NS == 0 and ctime % _SECOND_NS == 0
        if max(mtime, ctime) < now - (_COARSE_GRAIN_NS if whole else _GRAIN_NS):
            self._known[path] = known
        return content


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor of a directory: thousands of files are looked at by their names alone."""
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield place
    finally:
        os.close(place)


def state_of(name: str, place: int) -> State:
    """What tells a file's content from its next one, but for the grain of the times.

    place: a descriptor of its directory.
    """
    found = os.stat(name, dir_fd=place)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(place: int, name: str, size: int) -> bytes:
    """All of a file, which was so long a moment ago."""
    file = os.open(name, os.O_RDONLY, dir_fd=place)
    try:
        content = os.read(file, size + 1)
        while len(content) != size and (more := os.read(file, _PIECE)):
            content += more  # it has grown
        return content
    finally:
        os.close(file)
