"""Is a cluster whole, and does it hold the same as another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster

_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1"
_TABLES = (
    "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
    "WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relispopulated "
    "AND (nspname !~ '^pg_' AND nspname <> 'information_schema') ORDER BY 1"
)
_BTREES = (
    "SELECT count(bt_index_check(c.oid, true)) FROM pg_class c "
    "JOIN pg_am a ON a.oid = c.relam AND amname = 'btree' JOIN pg_index i ON indexrelid = c.oid "
    "WHERE c.relkind = 'i' AND relpersistence = 'p' AND indisvalid"
)


def content(cluster: Cluster) -> dict[str, tuple[int, str]]:
    """Row count and digest of every logged table of every database."""
    found: dict[str, tuple[int, str]] = {}
    for (database,) in cluster.sql(_DATABASES):
        with cluster.connect(database) as connection:
            for (table,) in connection.execute(_TABLES).fetchall():
                query = (
                    "SELECT count(*), coalesce(md5(string_agg(md5(t::text), '' "
                    f"ORDER BY md5(t::text))), '') FROM {table} t"
                )
                row = connection.execute(query.encode()).fetchone()
                assert row is not None
                found[f"{database}: {table}"] = (row[0], row[1])
    return found


def whole(cluster: Cluster) -> None:
    """Check structure: heaps, toast and btree indexes, and that rows are in their indexes.

    Raises:
        AssertionError: something is broken.
    """
    if cluster.major >= 14:
        cluster.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "-j", "1")
    else:
        for (database,) in cluster.sql(_DATABASES):
            with cluster.connect(database) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
                connection.execute(_BTREES)
