"""Files that shrink, and grow again by blocks that no WAL describes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import lsn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory


def lazy_cluster(factory: Factory, *, start: bool = True, fsync: bool = False) -> Cluster:
    """A cluster that writes nothing by itself for a while: pages, or WAL."""
    return factory.create(
        checksums=True,
        start=start,
        fsync=fsync,
        shared_buffers="16MB",
        wal_buffers="16MB",
        wal_writer_delay="10s",
    )


def pages(
    cluster: Cluster,
    name: str = "t",
    pages: int = 40,
    database: str = "postgres",
    *,
    first: int = 1,
) -> None:
    """A table with a row a page, numbered from first on, all hint bits set."""
    rows = f"generate_series({first}, {first + pages - 1})"
    cluster.script(
        [
            f"CREATE TABLE {name} (i int, x text)",
            f"ALTER TABLE {name} ALTER x SET STORAGE PLAIN",
            f"INSERT INTO {name} SELECT i, repeat('x', {cluster.wide}) FROM {rows} i",
            f"VACUUM FREEZE {name}",
        ],
        database=database,
    )


@contextlib.contextmanager
def lost(
    cluster: Cluster, first: str, *, database: str = "postgres", checkpoint: bool = False
) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A transaction whose WAL is lost: kill -9 before any of it is written, and a start.

    first: a statement before that, which brings the catalogs into the cache; then a checkpoint, if
    asked for, during the transaction. What the body does must not have WAL that was written: it
    would be redone.
    """
    with cluster.connect(database=database, autocommit=False) as connection:
        connection.execute(first)
        if checkpoint:
            cluster.checkpoint()
        with cluster.paused("walwriter", "background writer", "checkpointer"):
            before = _position(connection, "pg_current_wal_insert_lsn()")
            yield connection
            written = _position(connection, "pg_current_wal_lsn()")
            cluster.kill_all()
        connection.close()
    assert written <= before, "some of its WAL was written"
    cluster.start()


def _position(connection: psycopg.Connection[tuple[Any, ...]], function: str) -> int:
    row = connection.execute(f"SELECT {function}::text".encode()).fetchone()
    assert row is not None
    return lsn.parse(row[0])


def grow_and_lose(
    cluster: Cluster,
    table: str,
    rows: int,
    *,
    database: str = "postgres",
    width: int | None = None,
) -> None:
    """Let a file grow by blocks of zeros, one a row of so many bytes, whose WAL is lost."""
    with lost(cluster, f"SELECT count(*) FROM {table}", database=database) as connection:
        connection.execute(
            f"INSERT INTO {table} SELECT i, repeat('x', {width or cluster.wide}) "
            f"FROM generate_series(1, {rows}) i".encode()
        )
    on_disk = cluster.relation_bytes(table, database=database)
    assert len(on_disk) >= rows * cluster.block_size, "the file did not grow"
    assert not any(on_disk), "the rows' WAL was not lost"


def zeros_before_a_row(primary: Cluster, database: str = "postgres") -> None:
    """Let the empty table t have zeros, and a row behind them that is logged."""
    # all on one page of WAL: early minors of 14 wait for ever for half of a record that is lost
    primary.sql("ALTER TABLE t SET (fillfactor = 10)", database=database)
    primary.sql("SELECT pg_switch_wal()")
    grow_and_lose(primary, "t", 6, database=database, width=primary.block_size // 10)
    primary.sql("INSERT INTO t VALUES (1, 'x')", database=database)


def emptied(cluster: Cluster) -> None:
    """Leave nothing to do for the next VACUUM but to truncate: no record of it names a block."""
    cluster.sql("DELETE FROM t")
    cluster.sql("VACUUM (TRUNCATE false) t")
    cluster.sql("VACUUM (TRUNCATE false, FREEZE) t")
    cluster.checkpoint()


def killed(standby: Cluster, primary: Cluster) -> None:
    """Killed, and back to where it was."""
    standby.kill_all()
    standby.start()
    standby.catch_up(primary)


def grow_hash(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Insert into t until its index t_hash has new buckets: pages written past the buffer pool."""

    def size() -> int:
        row = connection.execute("SELECT pg_relation_size('t_hash')").fetchone()
        assert row is not None
        return int(row[0])

    before = size()
    for _ in range(1000):
        connection.execute("INSERT INTO t SELECT generate_series(1, 20)")
        if size() > before:
            return
    pytest.fail("the index does not grow")
