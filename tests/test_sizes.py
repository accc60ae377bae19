"""Segments and blocks of other sizes: what only a server compiled for them can show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster

FOUR_GIB = 1 << 32


def test_beyond_four_gib_of_a_segment(cluster: Cluster) -> None:
    """Sizes and block numbers of one file that 32 bits of bytes do not hold."""
    block = cluster.block_size
    if cluster.segment_blocks * block <= FOUR_GIB:
        pytest.skip(f"segments of {cluster.segment_blocks * block >> 20} MB")
    cluster.sql("CREATE TABLE t (i int)")
    cluster.sql("INSERT INTO t VALUES (0)")
    path = cluster.path_of("t")
    cluster.checkpoint()
    cluster.stop()
    blocks = FOUR_GIB // block + 100
    os.truncate(cluster.data / path, blocks * block)  # a hole
    cluster.start()
    cluster.checkpoint()
    cluster.checkpoint()
    since = cluster.redo()
    before = _tail(cluster, path, blocks - 2)
    cluster.sql("INSERT INTO t SELECT generate_series(1, 30000)")
    cluster.checkpoint()
    size = cluster.value("SELECT pg_relation_size('t')")
    assert size > FOUR_GIB
    written = set(range(blocks - 1, size // block))
    assert cluster.reported("t", since) == written
    (row,) = [row for row in cluster.pagemapset(0) if row.path == path]
    assert row.pagecount == size // block
    assert row.blocks() == list(range(size // block))
    cluster.restart("immediate")
    reported = cluster.reported("t", since)
    assert written <= reported
    after = _tail(cluster, path, blocks - 2)
    changed = {number for number, page in after.items() if page != before.get(number)}
    assert written <= changed <= reported


def _tail(cluster: Cluster, path: str, first: int) -> dict[int, bytes]:
    """Pages of a file by block number, from one on: what comes before is the hole."""
    with (cluster.data / path).open("rb") as file:
        file.seek(first * cluster.block_size)
        pages = iter(lambda: file.read(cluster.block_size), b"")
        return dict(enumerate(pages, first))
