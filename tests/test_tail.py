"""What a file has grown by without WAL, where a parent has something else, over a crash.

A file is cut off, or goes and comes again shorter under the same name, and grows by pages that are
in no WAL. A crash takes their marks, and redo does not come to them: they are found from the file's
end. Also where redo of the truncation finds nothing to cut, and where the cluster lived without
ptrack in between (:mod:`tests.test_lives`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.harness import oracle
from tests.harness.grown import (
    emptied,
    grow_and_lose,
    grow_hash,
    killed,
    lazy_cluster,
    lost,
    pages,
    zeros_before_a_row,
)

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory


@pytest.fixture
def lazy(factory: Factory) -> Cluster:
    """A primary that writes nothing by itself, pages or WAL."""
    return lazy_cluster(factory)


def cut(cluster: Cluster, database: str = "postgres") -> None:
    """Cut the table off, all of it."""
    cluster.sql("DELETE FROM t", database=database)
    cluster.sql("VACUUM t", database=database)
    assert not cluster.relation_bytes("t", database=database)


def test_truncated_before_a_checkpoint(lazy: Cluster) -> None:
    """Cut off, checkpoint, grown again by a transaction whose WAL is lost in the crash."""
    pages(lazy, first=0)
    snapshot = oracle.take(lazy)
    cut(lazy)
    lazy.checkpoint()
    grow_and_lose(lazy, "t", 12)
    assert set(range(12)) <= lazy.reported("t", snapshot.lsn)
    oracle.check(snapshot, lazy, changed=12)


def test_truncated_before_the_crash(lazy: Cluster) -> None:
    """Replayed once more, a truncation finds nothing to cut, and nobody marks it."""
    pages(lazy)
    emptied(lazy)
    snapshot = oracle.take(lazy)
    lazy.sql("VACUUM t")
    assert lazy.value("SELECT pg_relation_size('t')") == 0
    lazy.flush_wal()
    lazy.kill_all()
    lazy.start()
    grow_and_lose(lazy, "t", 12)
    oracle.check(snapshot, lazy, changed=12)


def test_truncated_on_a_standby(factory: Factory) -> None:
    """The same where recovery truncates.

    Blocks that the primary made without WAL come to be here as zeros before one that is logged;
    when it is replayed once more, they are there already.
    """
    primary = lazy_cluster(factory)
    pages(primary)
    standby = factory.standby(primary)
    emptied(primary)
    snapshot = oracle.take(standby, primary=primary)

    primary.sql("VACUUM t")
    standby.catch_up(primary)
    assert not standby.relation_bytes("t")
    killed(standby, primary)
    standby.restartpoint(primary)

    zeros_before_a_row(primary)
    standby.catch_up(primary)
    assert len(standby.relation_bytes("t")) >= 6 * standby.block_size, "no zeros came to be"
    killed(standby, primary)
    oracle.check(snapshot, standby, changed=6)


@pytest.mark.parametrize("crash", [False, True], ids=["on", "killed"])
def test_rows_behind_the_zeros(lazy: Cluster, *, crash: bool) -> None:
    """The way from the end leads over blocks that have a mark."""
    pages(lazy)
    snapshot = oracle.take(lazy)
    lazy.sql("DELETE FROM t WHERE i > 20")
    lazy.sql("VACUUM t")
    lazy.checkpoint()
    grow_and_lose_behind(lazy, keeps=20, rows=12)
    lazy.sql(f"INSERT INTO t SELECT i, repeat('y', {lazy.wide}) FROM generate_series(1, 5) i")
    if crash:
        lazy.flush_wal()
        lazy.kill_all()
        lazy.start()
    size = len(lazy.relation_bytes("t")) // lazy.block_size
    reported = lazy.reported("t", snapshot.lsn)
    assert set(range(20, size)) <= reported
    assert len(reported & set(range(1, 19))) < 18, "the whole file"
    oracle.check(snapshot, lazy, changed=12)


def grow_and_lose_behind(cluster: Cluster, *, keeps: int, rows: int) -> None:
    """Grow by zeros behind blocks that stay."""
    with lost(cluster, "SELECT count(*) FROM t") as connection:
        connection.execute(
            f"INSERT INTO t SELECT i, repeat('x', {cluster.wide}) "
            f"FROM generate_series(1, {rows}) i".encode()
        )
    on_disk = cluster.relation_bytes("t")
    assert len(on_disk) >= (keeps + rows) * cluster.block_size, "the file did not grow"
    assert not any(on_disk[keeps * cluster.block_size :]), "the rows' WAL was not lost"


def test_database_moved_and_back(lazy: Cluster) -> None:
    """What a database left behind comes again shorter, and grows by zeros."""
    lazy.sql(f"CREATE TABLESPACE ts LOCATION '{lazy.tablespace('ts')}'")
    lazy.sql("CREATE DATABASE d")
    pages(lazy, database="d")
    snapshot = oracle.take(lazy)
    path = lazy.path_of("t", database="d")
    lazy.sql("ALTER DATABASE d SET TABLESPACE ts")
    cut(lazy, "d")
    lazy.sql("ALTER DATABASE d SET TABLESPACE pg_default")
    assert lazy.path_of("t", database="d") == path
    assert not lazy.relation_bytes("t", database="d")
    lazy.checkpoint()
    grow_and_lose(lazy, "t", 12, database="d")
    oracle.check(snapshot, lazy, changed=12)


def test_database_moved_and_back_on_a_standby(factory: Factory) -> None:
    """Restarted between the records of the moves, so that it knows of none that is under way."""
    primary = lazy_cluster(factory)
    primary.sql(f"CREATE TABLESPACE ts LOCATION '{primary.tablespace('ts')}'")
    primary.sql("CREATE DATABASE d")
    pages(primary, database="d")
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    primary.sql("ALTER DATABASE d SET TABLESPACE ts")
    standby.catch_up(primary)
    standby.restart()
    standby.catch_up(primary)
    cut(primary, "d")
    primary.sql("ALTER DATABASE d SET TABLESPACE pg_default")
    standby.restartpoint(primary)
    standby.restart("immediate")
    zeros_before_a_row(primary, "d")
    standby.catch_up(primary)
    assert len(standby.relation_bytes("t", database="d")) >= 6 * standby.block_size
    killed(standby, primary)
    oracle.check(snapshot, standby, changed=6)


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


@pytest.mark.major(since=15)
@pytest.mark.parametrize("strategy", ["wal_log", "file_copy"])
def test_database_dropped_and_made_again_on_a_standby(factory: Factory, strategy: str) -> None:
    """Where nobody but a record says that it is dropped, and the table comes again empty."""
    primary = lazy_cluster(factory)
    primary.sql("CREATE DATABASE model")
    pages(primary, database="model")
    again = f"CREATE DATABASE d OID = 20001 TEMPLATE model STRATEGY {strategy}"
    primary.sql(again)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    path = primary.path_of("t", database="d")
    primary.sql("DROP DATABASE d")
    cut(primary, "model")
    primary.sql(again)
    assert primary.path_of("t", database="d") == path
    standby.restartpoint(primary)
    zeros_before_a_row(primary, "d")
    standby.catch_up(primary)
    assert len(standby.relation_bytes("t", database="d")) >= 6 * standby.block_size
    killed(standby, primary)
    oracle.check(snapshot, standby, changed=6)


def test_pages_of_lost_wal(factory: Factory) -> None:
    """They have an LSN, of WAL that is gone; without ptrack nothing has marked them.

    A hash index grows by a bucket page past the buffer pool, and zeros before it.
    """
    cluster = factory.create(checksums=True, shared_buffers="16MB", wal_buffers="16MB")
    cluster.script(["CREATE TABLE t (i int)", "CREATE INDEX t_hash ON t USING hash (i)"])
    cluster.sql("INSERT INTO t SELECT generate_series(1, 2000)")
    snapshot = oracle.take(cluster)
    cluster.restart("fast", shared_preload_libraries="")
    before = len(cluster.relation_bytes("t_hash")) // cluster.block_size
    with lost(cluster, "SELECT count(*) FROM t") as connection:
        grow_hash(connection)
        cluster.configure(shared_preload_libraries="ptrack")
    on_disk = cluster.relation_bytes("t_hash")
    assert len(on_disk) // cluster.block_size > before
    assert any(on_disk[before * cluster.block_size :]), "nothing but zeros"
    assert cluster.init_lsn() <= snapshot.lsn
    oracle.check(snapshot, cluster)


def test_nothing_for_later_parents(lazy: Cluster) -> None:
    """The zeros that a crash has left are in a backup that starts after it."""
    pages(lazy)
    cut(lazy)
    lazy.checkpoint()
    grow_and_lose(lazy, "t", 12)
    snapshot = oracle.take(lazy)
    assert not lazy.reported("t", snapshot.lsn)
    oracle.check(snapshot, lazy, changed=0)


def test_file_that_cannot_be_opened(lazy: Cluster) -> None:
    """An error, and never a short answer."""
    pages(lazy)
    snapshot = oracle.take(lazy)
    lazy.restart("immediate")
    path = lazy.data / lazy.path_of("t")
    path.chmod(0)
    with pytest.raises(psycopg.Error, match="could not open file"):
        lazy.pagemapset(snapshot.lsn)
    path.chmod(0o600)
    oracle.check(snapshot, lazy, changed=0)
