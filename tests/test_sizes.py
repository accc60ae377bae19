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
    assert written <= cluster.reported("t", since)
