"""Segments and blocks of other sizes: what only a server compiled for them can show."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness import oracle

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster

FOUR_GIB = 1 << 32


@dataclass(frozen=True, kw_only=True)
class _Holed:
    """A cluster with a file that is too large to read: its first block, a hole, and the rest.

    The oracle gets it without the hole.

    Attributes:
        path: of the file.
        first: the block that comes after the hole.
    """

    cluster: Cluster
    path: str
    first: int

    def files(self) -> dict[str, bytes]:
        """All files, the hole left out of this one. Raises AssertionError if there is none."""
        size = self.cluster.block_size
        content = self.cluster.files(but=[self.path])
        with (self.cluster.data / self.path).open("rb") as file:
            with contextlib.suppress(OSError):  # where nothing but the hole is left
                end = os.lseek(file.fileno(), size, os.SEEK_DATA)
                assert end >= self.first * size, f"something is written at {end}, in the hole"
            file.seek(0)
            kept = file.read(size)
            file.seek(self.first * size)
            content[self.path] = kept + file.read()
        return content

    def pagemapset(self, since: int) -> list[oracle.PageMap]:
        """What is reported, with numbers that fit; of the hole nothing has to be."""
        rows = []
        for row in self.cluster.pagemapset(since):
            if row.path != self.path:
                rows.append(row)
                continue
            assert row.pagecount == len(row.blocks())
            numbers = (
                block - self.first + 1 if block else 0
                for block in row.blocks()
                if block == 0 or block >= self.first
            )
            rows.append(oracle.PageMap.of(self.path, numbers))
        return rows

    def snapshot(self) -> oracle.Snapshot:
        """At a redo point at which nothing is left to write."""
        self.cluster.checkpoint()
        self.cluster.checkpoint()
        at = self.cluster.redo()
        assert 0 < self.cluster.init_lsn() <= at
        size = self.cluster.block_size
        return oracle.Snapshot(lsn=at, content=self.files(), block_size=size)

    def look(self, snapshot: oracle.Snapshot, *, mask_hints: bool = False) -> oracle.Comparison:
        """All of the cluster against the snapshot."""
        return oracle.look(
            snapshot, self.cluster, current=self.files(), provider=self.pagemapset,
            mask_hints=mask_hints,
        )  # fmt: skip


def test_beyond_four_gib_of_a_segment(cluster: Cluster) -> None:
    """Sizes and block numbers of one file that 32 bits of bytes do not hold."""
    block = cluster.block_size
    if cluster.segment_blocks * block <= FOUR_GIB:
        pytest.skip(f"segments of {cluster.segment_blocks * block >> 20} MB")
    cluster.sql("CREATE TABLE t (i int)")
    cluster.sql("CREATE TABLE other AS SELECT i, repeat('x', 99) FROM generate_series(1, 999) i")
    cluster.sql("INSERT INTO t VALUES (0)")
    path = cluster.path_of("t")
    cluster.checkpoint()
    cluster.stop()
    blocks = FOUR_GIB // block + 100
    os.truncate(cluster.data / path, blocks * block)  # a hole
    cluster.start()
    # some that stay as they are: after a crash zeros are reported from the end of the file on
    cluster.sql(f"INSERT INTO t SELECT generate_series(1, {block // 8})")
    old = cluster.value("SELECT pg_relation_size('t')") // block
    assert old > blocks + 2
    holed = _Holed(cluster=cluster, path=path, first=blocks - 2)
    snapshot = holed.snapshot()
    cluster.sql("INSERT INTO t SELECT generate_series(1, 30000)")
    cluster.sql("UPDATE other SET i = -i WHERE i % 99 = 0")
    cluster.checkpoint()
    size = cluster.value("SELECT pg_relation_size('t')")
    assert size > FOUR_GIB
    written = set(range(old - 1, size // block))
    assert cluster.reported("t", snapshot.lsn) == written
    (row,) = [row for row in cluster.pagemapset(0) if row.path == path]
    assert row.pagecount == size // block
    assert row.blocks() == list(range(size // block))
    found = holed.look(snapshot)
    assert found.changed > len(written)
    assert found.reported < found.blocks / 2
    cluster.sql("INSERT INTO t SELECT generate_series(1, 30000)")
    cluster.evict()
    cluster.restart("immediate")
    reported = cluster.reported("t", snapshot.lsn)
    assert written <= reported
    assert not reported & set(range(1, blocks - 2)), "the hole"
    again = holed.look(snapshot, mask_hints=True)
    assert again.changed > found.changed
    cluster.checkpoint()
    holed.look(snapshot, mask_hints=True)
