"""Changes that no buffer stands for, and what their marks have to survive.

Pages written past the buffer pool, truncation, files and directories that go and come again:
their WAL can be older than the redo point recovery begins at, or not on disk at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import files, oracle
from tests.harness.grown import emptied, grow_and_lose, killed, lost, pages

if TYPE_CHECKING:
    from tests.harness.factory import Factory


def test_truncated_before_the_crash(factory: Factory) -> None:
    """Replayed once more, a truncation finds nothing to cut, and nobody would mark it."""
    cluster = factory.create(
        checksums=True, shared_buffers="16MB", wal_buffers="16MB", wal_writer_delay="10s"
    )
    pages(cluster)
    emptied(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("VACUUM t")
    assert cluster.value("SELECT pg_relation_size('t')") == 0
    cluster.flush_wal()
    cluster.kill_all()
    cluster.start()
    grow_and_lose(cluster, "t", 12)
    oracle.check(snapshot, cluster, changed=12)


def test_truncated_on_a_standby(factory: Factory) -> None:
    """The same where recovery truncates.

    Blocks that the primary made without WAL come to be here as zeros before one that is logged;
    when it is replayed once more, they are there already.
    """
    primary = factory.create(
        checksums=True, shared_buffers="16MB", wal_buffers="16MB", wal_writer_delay="10s"
    )
    pages(primary)
    standby = factory.standby(primary)
    emptied(primary)
    snapshot = oracle.take(standby, primary=primary)

    primary.sql("VACUUM t")
    standby.catch_up(primary)
    assert not standby.relation_bytes("t")
    killed(standby, primary)
    standby.restartpoint(primary)

    # all on one page of WAL: early minors of 14 wait for ever for half of a record that is lost
    primary.sql("ALTER TABLE t SET (fillfactor = 10)")
    primary.sql("SELECT pg_switch_wal()")
    grow_and_lose(primary, "t", 6, width=primary.block_size // 10)
    primary.sql("INSERT INTO t VALUES (1, 'x')")
    standby.catch_up(primary)
    assert len(standby.relation_bytes("t")) >= 6 * standby.block_size, "no zeros came to be"
    killed(standby, primary)
    oracle.check(snapshot, standby, changed=6)


def test_appended_past_the_pool(factory: Factory) -> None:
    """Pages written directly, while their WAL is still in memory, and all of it is lost."""
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    pages(cluster, pages=200)
    snapshot = oracle.take(cluster)
    with lost(cluster, "SELECT count(*) FROM t") as connection:
        connection.execute("ALTER TABLE t SET TABLESPACE ts")
    found = oracle.compare(snapshot, files.read_all(cluster.data), []).lost
    copied = [one for one in found if one.path.startswith("pg_tblspc/")]
    assert len(copied) > 100, "nothing was written past the pool"
    oracle.check(snapshot, cluster, changed=100)


def _kept_when_lost(
    factory: Factory, setup: str, first: str, statement: str, *, checkpoint: bool = False
) -> None:
    """What a statement has changed is reported although all its WAL is lost."""
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.script(setup.split("; "))
    snapshot = oracle.take(cluster)
    with lost(cluster, first, checkpoint=checkpoint) as connection:
        connection.execute(statement.encode())
    oracle.check(snapshot, cluster)


def test_index_build_over_a_checkpoint_lost(factory: Factory) -> None:
    """A build that is under way when a checkpoint ends, killed with its WAL in memory."""
    _kept_when_lost(
        factory,
        "CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 30000) i",
        "CREATE INDEX ON t (i)",
        "CREATE INDEX ON t (s)",
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
    )


def test_database_moved_and_back(factory: Factory) -> None:
    """What a database left behind comes again shorter, and grows by zeros."""
    cluster = factory.create(
        checksums=True, shared_buffers="16MB", wal_buffers="16MB", wal_writer_delay="10s"
    )
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE DATABASE d")
    pages(cluster, database="d")
    snapshot = oracle.take(cluster)
    path = cluster.path_of("t", database="d")
    cluster.sql("ALTER DATABASE d SET TABLESPACE ts")
    cluster.sql("DELETE FROM t", database="d")
    cluster.sql("VACUUM t", database="d")
    cluster.sql("ALTER DATABASE d SET TABLESPACE pg_default")
    assert cluster.path_of("t", database="d") == path
    assert not cluster.relation_bytes("t", database="d")
    cluster.checkpoint()
    grow_and_lose(cluster, "t", 12, database="d")
    oracle.check(snapshot, cluster, changed=12)


@pytest.mark.major(since=15)
@pytest.mark.parametrize("strategy", ["wal_log", "file_copy"])
def test_database_dropped_and_made_again(factory: Factory, strategy: str) -> None:
    """The same OID, the same names of files, other content."""
    cluster = factory.create(checksums=True)
    cluster.sql("CREATE DATABASE d OID = 20001")
    cluster.sql(
        "CREATE TABLE wide AS SELECT i, repeat('x', 50) FROM generate_series(1, 3000) i",
        database="d",
    )
    cluster.script(
        [f"CREATE TABLE many_{i} (a int, b int, c int)" for i in range(40)], database="d"
    )
    snapshot = oracle.take(cluster)
    cluster.sql("DROP DATABASE d")
    cluster.sql(f"CREATE DATABASE d OID = 20001 STRATEGY {strategy}")
    cluster.restart("immediate")
    cluster.script([f"CREATE TABLE few_{i} (a int)" for i in range(3)], database="d")
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=10)


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
    cluster.checkpoint()
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
    for _ in range(5):
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
        # A start that takes its time and is killed right then is taken for another server's.
        if "Another server process has been started" not in cluster.log_text():
            oracle.check(snapshot, cluster, changed=20)
            return
        cluster.stop()
    pytest.fail("the machine is too busy for a start of 10 ms")


def test_sp_gist_metapage(factory: Factory) -> None:
    """It changes without WAL, whatever the settings."""
    cluster = factory.create(checksums=True)
    cluster.script(["CREATE TABLE t (p point)", "CREATE INDEX ON t USING spgist (p)"])
    cluster.sql("INSERT INTO t SELECT point(i, i) FROM generate_series(1, 1000) i")
    snapshot = oracle.take(cluster)
    cluster.sql("INSERT INTO t SELECT point(i, -i) FROM generate_series(1, 4000) i")
    cluster.evict()
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
    cluster.evict()
    found = oracle.compare(snapshot, files.read_all(cluster.data), []).lost
    path = cluster.path_of("t") + "_fsm"
    assert {1, 2} <= {one.block for one in found if one.path == path}, "the map did not change"
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, mask_hints=True)
