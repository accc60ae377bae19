"""A reference client: what a backup tool does with the map, in plain file copies.

A full backup copies every file between ``pg_backup_start`` and ``pg_backup_stop`` and, after
that, the WAL. An incremental one asks for the blocks changed since its parent's start, copies
those blocks of relation files and nothing else of them, the present size of each, and all
other files. A restore writes the full backup, lays each increment over it, cuts or extends
the files to their sizes (an extension is zeros), and adds ``backup_label`` and the WAL.

Refused, as by the real client, is a parent that started before the map's init LSN.

Backups are kept in memory: clusters of the suite have a few dozen megabytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.harness import files, lsn, system, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from psycopg import Connection

    from tests.harness.cluster import Cluster, Row
    from tests.harness.factory import Factory

# Directories of which a backup keeps no content.
_EMPTIED = (
    "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp",
    "pg_subtrans",
)  # fmt: skip
_WAL = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history")
_LEFT_OUT = ("postmaster.pid", "postmaster.opts", "pg_internal.init", "ptrack.map.tmp",
             "backup_label", "tablespace_map")  # fmt: skip


class Refused(AssertionError):
    """The map cannot serve this parent."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a backup has of one relation file.

    Attributes:
        size: of the file, bytes.
        blocks: content by block number; all of them in a full backup.
    """

    size: int
    blocks: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Backup:
    """One backup.

    Attributes:
        start: the redo point it started at.
        block_size: in bytes.
        label: the content of ``backup_label``.
        directories: to make, relative; tablespaces in place among them.
        tablespaces: names in pg_tblspc that are links.
        relations: relation files.
        other: other files, WAL too.
        parent: what an increment builds on.
    """

    start: int
    block_size: int
    label: str
    directories: Sequence[str] = field(repr=False)
    tablespaces: Sequence[str] = field(repr=False)
    relations: Mapping[str, Part] = field(repr=False)
    other: Mapping[str, bytes] = field(repr=False)
    parent: Backup | None = field(repr=False)

    @property
    def blocks(self) -> int:
        """Relation blocks that were read for it."""
        return sum(len(part.blocks) for part in self.relations.values())

    def chain(self) -> list[Backup]:
        """The full backup first, this one last."""
        return [*(self.parent.chain() if self.parent else []), self]


def full(
    cluster: Cluster,
    *,
    early: Callable[[], object] = lambda: None,
    late: Callable[[], object] = lambda: None,
) -> Backup:
    """Take a full backup of a running primary or standby.

    early: what happens when it has started and nothing has been read.
    late: what happens when all has been read but pg_control.
    """
    return _take(cluster, parent=None, early=early, late=late)


def incremental(
    cluster: Cluster, parent: Backup, *, early: Callable[[], object] = lambda: None
) -> Backup:
    """Take a backup of what changed since ``parent`` started.

    early: what happens when the map has been asked and nothing has been read.

    Raises:
        Refused: the map knows changes only from a later point on.
    """
    return _take(cluster, parent=parent, early=early)


def _take(
    cluster: Cluster,
    *,
    parent: Backup | None,
    early: Callable[[], object] = lambda: None,
    late: Callable[[], object] = lambda: None,
) -> Backup:
    block_size = cluster.block_size
    with cluster.connect() as connection:
        start = _start(connection, cluster.major)
        maps: dict[str, list[int]] | None = None
        if parent is not None:
            with cluster.connected():
                init = cluster.init_lsn()
                if init == 0 or init > parent.start:
                    at = lsn.show(parent.start)
                    what = f"init LSN {lsn.show(init)} is past the parent's {at}"
                    raise Refused(what)
                maps = {row.path: row.blocks() for row in cluster.pagemapset(parent.start)}
        early()
        directories: list[str] = []
        tablespaces: list[str] = []
        relations: dict[str, Part] = {}
        other: dict[str, bytes] = {}
        for name in _walk(cluster.data, "", directories, tablespaces):
            try:
                if _is_relation(name):
                    wanted = None if maps is None else maps.get(name, ())
                    relations[name] = _read_relation(f"{cluster.data}/{name}", block_size, wanted)
                else:
                    other[name] = (cluster.data / name).read_bytes()
            except FileNotFoundError:
                continue
        late()
        # pg_control last, as a backup from a standby needs it
        other["global/pg_control"] = (cluster.data / "global/pg_control").read_bytes()
        label = _stop(connection, cluster.major)
    wal = cluster.data / "pg_wal"
    for path in wal.iterdir():
        if _WAL.fullmatch(path.name):  # one that is being made has another name, and loses it
            other[f"pg_wal/{path.name}"] = path.read_bytes()
    return Backup(
        start=start,
        block_size=block_size,
        label=label,
        directories=directories,
        tablespaces=tablespaces,
        relations=relations,
        other=other,
        parent=parent,
    )


def _start(connection: Connection[Row], major: int) -> int:
    call = (
        "pg_backup_start('reference', fast => true)"
        if major >= 15
        else "pg_start_backup('reference', fast => true, exclusive => false)"
    )
    row = connection.execute(f"SELECT ({call})::text".encode()).fetchone()
    assert row is not None
    return lsn.parse(row[0])


def _stop(connection: Connection[Row], major: int) -> str:
    call = (
        "pg_backup_stop(wait_for_archive => false)"
        if major >= 15
        else "pg_stop_backup(exclusive => false, wait_for_archive => false)"
    )
    row = connection.execute(f"SELECT labelfile FROM {call}".encode()).fetchone()
    assert row is not None
    label: str = row[0]
    return label


def _walk(data: Path, below: str, directories: list[str], tablespaces: list[str]) -> Iterator[str]:
    """The files to copy, relative to ``data``; below: a directory in it with a slash, or empty."""
    try:
        entries = sorted(os.scandir(data / below), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        path = below + entry.name
        if entry.is_dir():
            if entry.is_symlink() and below == "pg_tblspc/":
                tablespaces.append(entry.name)
            else:
                directories.append(path)
            if entry.name not in _EMPTIED and path != "pg_wal":
                yield from _walk(data, f"{path}/", directories, tablespaces)
        elif entry.name not in _LEFT_OUT and entry.is_file():
            yield path


def _is_relation(path: str) -> bool:
    top, _, below = path.partition("/")
    return top in ("base", "global", "pg_tblspc") and (
        files.FileName.parse(below.rpartition("/")[2]) is not None
    )


def _read_relation(path: str, size: int, wanted: Sequence[int] | None) -> Part:
    """Read one file, block by block: all of them, or only some, of ``size`` bytes."""
    file = os.open(path, os.O_RDONLY)
    try:
        total = os.fstat(file).st_size
        blocks: dict[int, bytes] = {}
        for block in range(-(-total // size)) if wanted is None else wanted:
            if content := os.pread(file, size, block * size):
                blocks[block] = content
        return Part(size=total, blocks=blocks)
    finally:
        os.close(file)


def restore(backup: Backup, cluster: Cluster) -> None:
    """Lay out a backup and its parents as the data directory of ``cluster``, not started.

    Links of tablespaces lead to new directories beside the data directory.
    """
    data = system.make_dir(cluster.data)
    for name in backup.tablespaces:
        location = system.make_dir(cluster.root / f"ts{name}")
        if not (data / "pg_tblspc").exists():
            system.make_dir(data / "pg_tblspc")
        (data / "pg_tblspc" / name).symlink_to(location)
    for name in backup.directories:
        (data / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in backup.other.items():
        (data / name).write_bytes(content)
    for name in backup.relations:
        (data / name).write_bytes(image(backup, name))
    (data / "backup_label").write_text(backup.label)
    for link in (data / "pg_tblspc").iterdir():
        system.own_tree(link)
    system.own_tree(data)
    cluster.adopt()


def restored(factory: Factory, backup: Backup, source: Cluster, *, exact: bool = True) -> Cluster:
    """Restore a backup, start it as a primary, and hold it against its source.

    Args:
        source: at rest since the backup.
        exact: the chain is of this source, or of what it was restored from. A standby has hint bits
            of its own.

    Raises:
        AssertionError: it has other bytes or rows, or is broken.
    """
    if exact:  # before rows are read, which sets hint bits
        same(backup, source)
    target = factory.empty("restored")
    restore(backup, target)
    (target.data / "standby.signal").unlink(missing_ok=True)
    target.start()
    verify.whole(target)
    assert verify.content(target) == verify.content(source)
    return target


def image(backup: Backup, name: str) -> bytes:
    """A relation file as a restore of this backup has it."""
    content = bytearray()
    for one in backup.chain():
        part = one.relations.get(name)
        if part is None:
            content = bytearray()  # dropped in between: a file of that name started anew
            continue
        del content[part.size :]
        content.extend(bytes(part.size - len(content)))
        for number, block in part.blocks.items():
            start = number * backup.block_size
            content[start : start + len(block)] = block[: max(0, part.size - start)]
        del content[part.size :]
    return bytes(content)


def same(backup: Backup, cluster: Cluster) -> None:
    """A restore of this backup has the bytes that a cluster at rest has.

    Raises:
        AssertionError: a relation file is another.
    """
    present = cluster.files()
    other = [
        path
        for path in sorted({*present, *backup.relations})
        if path not in backup.relations or image(backup, path) != present.get(path)
    ]
    assert not other, f"{other} are restored otherwise"
