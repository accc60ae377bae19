"""One test for each hook of the core patch, which fails when just that hook is missing.

What makes each its own: nothing that the other hooks see happens to the blocks it looks at.

=============  =========================================================================
write          rows changed in place on pages that exist; no crash, so nothing is redone
extend         a copy made page by page past the buffer pool, which only ever extends, and
               is not logged
zero-extend    a page that the file grew by, and that is not written yet
copydir        a database copied file by file, not opened since
log            a page that is logged as those past the buffer pool are, and is not written
redo           pages that were on disk before the crash, without full page images
flush          marks over a clean restart
=============  =========================================================================

Truncation needs none: what makes up for it has tests in :mod:`tests.test_tail`, and a mutant, "tail
not looked at".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import oracle
from tests.harness.grown import pages

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory


def _changed(snapshot: oracle.Snapshot, cluster: Cluster, relation: str) -> set[int]:
    """Blocks of a relation's main fork that differ on disk."""
    base = cluster.path_of(relation)
    found = oracle.compare(snapshot, cluster.files(), []).lost
    blocks = set()
    for one in found:
        path, _, segment = one.path.partition(".")
        if path == base:
            blocks.add(int(segment or 0) * cluster.segment_blocks + one.block)
    return blocks


def test_write_hook(cluster: Cluster) -> None:
    pages(cluster, first=0)
    snapshot = oracle.take(cluster)
    size = cluster.value("SELECT pg_relation_size('t')")
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.checkpoint()
    assert cluster.value("SELECT pg_relation_size('t')") == size
    changed = _changed(snapshot, cluster, "t")
    assert changed == set(range(0, 40, 2))
    assert changed <= cluster.reported("t", snapshot.lsn)
    oracle.check(snapshot, cluster, changed=20)


def test_extend_hook(cluster: Cluster) -> None:
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    pages(cluster, first=0)
    cluster.sql("ALTER TABLE t SET UNLOGGED")
    snapshot = oracle.take(cluster)
    cluster.sql("ALTER TABLE t SET TABLESPACE ts")
    changed = _changed(snapshot, cluster, "t")
    assert changed == set(range(40)), "written, and in no buffer"
    assert changed <= cluster.reported("t", snapshot.lsn)
    oracle.check(snapshot, cluster, changed=40)


@pytest.mark.major(since=16)
def test_zero_extend_hook(factory: Factory) -> None:
    """The page is zeros on disk, its content still in the buffer pool."""
    cluster = factory.create(shared_buffers="16MB")
    pages(cluster, first=0)
    snapshot = oracle.take(cluster)
    cluster.sql(f"INSERT INTO t SELECT 1, repeat('x', {cluster.wide})")
    on_disk = cluster.relation_bytes("t")
    assert len(on_disk) // cluster.block_size > 40
    assert not any(on_disk[40 * cluster.block_size :]), "it was written already"
    assert set(range(40, len(on_disk) // cluster.block_size)) <= cluster.reported("t", snapshot.lsn)
    oracle.check(snapshot, cluster)


def test_copydir_hook(cluster: Cluster) -> None:
    cluster.sql("CREATE DATABASE source")
    pages(cluster, database="source")
    cluster.checkpoint()
    snapshot = oracle.take(cluster)
    strategy = "STRATEGY file_copy" if cluster.major >= 15 else ""
    cluster.sql(f"CREATE DATABASE copy TEMPLATE source {strategy}")
    oid = cluster.value("SELECT oid FROM pg_database WHERE datname = 'copy'")
    reported = {row.path: set(row.blocks()) for row in cluster.pagemapset(snapshot.lsn)}
    content = {
        path: data
        for path, data in cluster.files().items()
        if path.startswith(f"base/{oid}/") and data
    }
    assert len(content) > 100
    lost = {
        path
        for path, data in content.items()
        if set(range(len(data) // cluster.block_size)) - reported.get(path, set())
    }
    assert not lost
    oracle.check(snapshot, cluster, changed=500)


@pytest.mark.parametrize(
    "method", ["hash", pytest.param("gist", marks=pytest.mark.major(since=14, until=16))]
)
def test_log_hook(cluster: Cluster, method: str) -> None:
    """What is logged is reported as long as the transaction lasts, and no longer.

    A page of hash is in a buffer, those of GiST have been written before: nobody writes them next.
    What is written next has a test in test_faults.
    """
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT i, point(i, i) AS p FROM generate_series(1, 5000) i")

    def reported() -> list[int]:
        cluster.checkpoint()
        cluster.checkpoint()
        rows = cluster.pagemapset(cluster.redo())
        return [n for row in rows if row.path.startswith("pg_tblspc/") for n in row.blocks()]

    column = {"hash": "i", "gist": "p"}[method]
    with cluster.connect(autocommit=False) as connection:
        connection.execute(f"CREATE INDEX ON t USING {method} ({column}) TABLESPACE ts".encode())
        assert reported()
    assert not reported()


def test_redo_hook(factory: Factory) -> None:
    cluster = factory.create(checksums=True, full_page_writes=False)
    pages(cluster, first=0)
    snapshot = oracle.take(cluster)
    cluster.sql(f"UPDATE t SET x = repeat('y', {cluster.block_size * 3 // 8}) WHERE i % 3 = 0")
    oracle.evict(snapshot, cluster, changed=14)
    changed = _changed(snapshot, cluster, "t")
    assert {block for block in range(40) if block % 3 == 0} <= changed, "not on disk"
    path = cluster.path_of("t")
    cluster.stop("immediate")
    before = cluster.file_bytes(path)
    cluster.start()
    assert cluster.file_bytes(path) == before, "recovery wrote it"
    assert changed <= cluster.reported("t", snapshot.lsn)
    oracle.check(snapshot, cluster, changed=14)


def test_flush_hook(cluster: Cluster) -> None:
    pages(cluster, first=0)
    snapshot = oracle.take(cluster)
    init = cluster.init_lsn()
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.restart()
    assert cluster.init_lsn() == init, "the map was not in the file"
    assert set(range(0, 40, 2)) <= cluster.reported("t", snapshot.lsn)
    oracle.check(snapshot, cluster, changed=20)
