"""Changes that no buffer stands for, and what their marks have to survive.

Pages written past the buffer pool: their WAL can be older than the redo point recovery begins at,
or not on disk at all.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.harness import oracle
from tests.harness.grown import grow_hash, lost, pages

if TYPE_CHECKING:
    from tests.harness.factory import Factory


def test_appended_past_the_pool(factory: Factory) -> None:
    """Pages written directly, while their WAL is still in memory, and all of it is lost."""
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    pages(cluster, pages=200)
    snapshot = oracle.take(cluster)
    with lost(cluster, "SELECT count(*) FROM t") as connection:
        connection.execute("ALTER TABLE t SET TABLESPACE ts")
    found = oracle.compare(snapshot, cluster.files(), []).lost
    copied = [one for one in found if one.path.startswith("pg_tblspc/")]
    assert len(copied) > 100, "nothing was written past the pool"
    oracle.check(snapshot, cluster, changed=100)


def _kept_when_lost(
    factory: Factory,
    setup: str,
    first: str,
    statement: str,
    *,
    index: str,
    changed: int,
    checkpoint: bool = False,
) -> None:
    """What a statement has changed is reported although all its WAL is lost.

    changed: at least so many blocks of the index it has written past the buffer pool.
    """
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.script(setup.split("; "))
    snapshot = oracle.take(cluster)
    with lost(cluster, first, checkpoint=checkpoint) as connection:
        connection.execute(statement.encode())
        row = connection.execute("SELECT pg_relation_filepath(%s)", [index]).fetchone()
    assert row is not None
    found = oracle.compare(snapshot, cluster.files(), []).lost
    written = [one for one in found if one.path.partition(".")[0] == row[0]]
    assert len(written) >= changed, f"{len(written)} blocks were written past the pool"
    oracle.check(snapshot, cluster, changed=changed)


def test_index_build_over_a_checkpoint_lost(factory: Factory) -> None:
    """A build that is under way when a checkpoint ends, killed with its WAL in memory."""
    _kept_when_lost(
        factory,
        "CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 30000) i",
        "CREATE INDEX ON t (i)",
        "CREATE INDEX ON t (s)",
        index="t_s_idx",
        changed=40,
        checkpoint=True,
    )


def test_hash_index_splits_lost(factory: Factory) -> None:
    """New buckets are appended to an index that is there already, with a hole before them."""
    _kept_when_lost(
        factory,
        "CREATE TABLE t (i int); CREATE INDEX t_hash ON t USING hash (i); "
        "INSERT INTO t SELECT generate_series(1, 2000)",
        "SELECT count(*) FROM t",
        "INSERT INTO t SELECT generate_series(1, 12000)",
        index="t_hash",
        changed=3,
    )


def test_appended_where_there_is_something(factory: Factory) -> None:
    """A hash index that has grown, and lost all WAL of that, is extended by the same page again."""
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.script(["CREATE TABLE t (i int)", "CREATE INDEX t_hash ON t USING hash (i)"])
    cluster.sql("INSERT INTO t SELECT generate_series(1, 2000)")
    cluster.checkpoint()
    before = len(cluster.relation_bytes("t_hash"))
    with lost(cluster, "SELECT count(*) FROM t") as connection:
        grow_hash(connection)
    snapshot = oracle.take(cluster)
    grown = cluster.relation_bytes("t_hash")
    last = grown[-cluster.block_size :]
    assert len(grown) > before
    assert any(last), "nothing was written past the pool"

    def again() -> bytes:
        cluster.sql("INSERT INTO t SELECT generate_series(1, 20)")
        return cluster.relation_bytes("t_hash")

    others = (now for now in (again() for _ in range(1000)) if now[-cluster.block_size :] != last)
    assert len(next(others, b"")) == len(grown), "that page was not written again"
    oracle.check(snapshot, cluster)


@pytest.mark.parametrize("archive", [False, True], ids=["", "archive_mode"])
def test_stop_after_a_switch_of_wal(factory: Factory, *, archive: bool) -> None:
    """WAL ends at a segment's end; the redo point lies behind the next one's header."""
    cluster = factory.create(checksums=True)
    if archive:
        cluster.restart(archive_mode=True, archive_command="true")
    pages(cluster)
    snapshot = oracle.take(cluster)
    init = cluster.init_lsn()
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.sql("SELECT pg_switch_wal()")
    try:
        cluster.checkpoint()
    except psycopg.errors.InternalError_ as error:  # up to 16 no record stands at its redo point
        what = f"the checkpoint after a switch: {error}"
        raise AssertionError(what) from error
    cluster.sql("SELECT pg_switch_wal()")
    cluster.stop("fast")
    assert cluster.control()["Database cluster state"] == "shut down"
    cluster.start()
    assert cluster.init_lsn() == init
    oracle.check(snapshot, cluster, changed=20)


def test_backup_start_on_an_idle_server(factory: Factory) -> None:
    """pg_backup_start switches WAL right before its checkpoint."""
    cluster = factory.create(checksums=True)
    old = cluster.major < 15
    start = "pg_start_backup('a', true, false)" if old else "pg_backup_start('a', true)"
    for _ in range(3):
        with cluster.connect() as connection:
            connection.execute(f"SELECT {start}")
    oracle.check(oracle.take(cluster), cluster, changed=0)


@pytest.mark.parametrize(("old", "new"), [(40, 40), (40, 33)], ids=["same", "resized"])
def test_loader_killed(factory: Factory, old: int, new: int) -> None:
    """Whoever needs the map reads what the loader has not come to."""
    cluster = factory.create(checksums=True, ptrack__map_size=old)
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.stop()
    cluster.configure(ptrack__map_size=new)
    for mode in ("fast", "immediate", "fast"):
        cluster.start()
        cluster.stop(mode)
    cluster.start()
    oracle.check(snapshot, cluster, changed=20)


def test_flush_before_anybody_reads(factory: Factory) -> None:
    """Old marks and new ones are in one page of the map when a flush overwrites it."""
    cluster = factory.create(checksums=True, max_worker_processes=0)  # no loader
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.restart()
    cluster.sql("DELETE FROM t WHERE ctid = '(4, 1)'")  # and no hint bits
    cluster.checkpoint()
    oracle.check(snapshot, cluster, changed=21)


def test_marked_before_anybody_reads(factory: Factory) -> None:
    """A block has an old mark in the map's file and a new one in memory when the file is read."""
    cluster = factory.create(checksums=True, max_worker_processes=0)  # no loader
    pages(cluster, pages=400)
    cluster.restart()
    snapshot = oracle.take(cluster, usable=False)  # to ask for that would read the file
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    oracle.evict(snapshot, cluster, changed=200)
    oracle.check(snapshot, cluster, changed=200)


def test_sp_gist_metapage(factory: Factory) -> None:
    """It changes without WAL, whatever the settings."""
    cluster = factory.create(checksums=True)
    cluster.script(["CREATE TABLE t (p point)", "CREATE INDEX ON t USING spgist (p)"])
    cluster.sql("INSERT INTO t SELECT point(i, i) FROM generate_series(1, 1000) i")
    snapshot = oracle.take(cluster)
    cluster.sql("INSERT INTO t SELECT point(i, -i) FROM generate_series(1, 4000) i")
    oracle.evict(snapshot, cluster, changed=10)
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)


def test_free_space_map(factory: Factory) -> None:
    """What VACUUM writes into its upper pages is in no WAL."""
    cluster = factory.create(checksums=False)  # with them, its hints are logged
    pages(cluster)
    cluster.sql("VACUUM t")
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.sql("VACUUM (TRUNCATE false) t")
    oracle.evict(snapshot, cluster, changed=20)
    found = oracle.compare(snapshot, cluster.files(), []).lost
    path = cluster.path_of("t") + "_fsm"
    assert {1, 2} <= {one.block for one in found if one.path == path}, "the map did not change"
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, mask_hints=True)


def test_free_space_map_once_logged(factory: Factory) -> None:
    """Its pages have LSNs of a time when its hints were logged, so no LSN tells them apart."""
    cluster = factory.create(checksums=False, wal_log_hints=True)
    pages(cluster)
    cluster.sql("VACUUM t")
    cluster.restart(wal_log_hints=False)
    snapshot = oracle.take(cluster)
    path = cluster.path_of("t") + "_fsm"
    for block in range(3):
        at = block * cluster.block_size
        high, low = struct.unpack_from("=II", snapshot.content[path], at)
        assert 1 << 20 <= high << 32 | low < snapshot.lsn, "it was not logged"
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.sql("VACUUM (TRUNCATE false) t")
    oracle.evict(snapshot, cluster, changed=20)
    found = oracle.compare(snapshot, cluster.files(), []).lost
    assert {1, 2} <= {one.block for one in found if one.path == path}, "the map did not change"
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, mask_hints=True)


def test_second_page_of_the_visibility_map(factory: Factory) -> None:
    """A bit is cleared by the record of the row's page, which names no page of the map."""
    cluster = factory.create(checksums=True)
    page = (cluster.block_size - 24) * 4  # heap blocks that a page of the map has bits for
    width, rows = cluster.block_size // 10, page + 20
    cluster.script(
        [
            "CREATE TABLE t (i int, x text) WITH (fillfactor = 10)",
            f"INSERT INTO t SELECT i, repeat('x', {width}) FROM generate_series(1, {rows}) i",
            "VACUUM (FREEZE) t",
        ]
    )
    snapshot = oracle.take(cluster)
    cluster.sql(f"DELETE FROM t WHERE ctid = '({page + 10}, 1)'")
    oracle.evict(snapshot, cluster, changed=2)
    found = oracle.compare(snapshot, cluster.files(), []).lost
    path = cluster.path_of("t") + "_vm"
    assert [one.block for one in found if one.path == path] == [1], "the map did not change"
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)
