"""A table, the parent backup that knows it, and whether the map may serve that parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness import lsn, oracle

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.oracle import Snapshot

TABLE = "CREATE TABLE t AS SELECT i, repeat('x', 300) AS x FROM generate_series(1, 3000) i"
CHANGE = "UPDATE t SET i = -i WHERE i % 150 = 0"


def before(cluster: Cluster) -> Snapshot:
    """A table, and the parent that later changes are held against.

    Its hint bits are set, so that nothing but a change gives a page a new LSN.
    """
    with cluster.connected():
        cluster.sql(TABLE)
        cluster.sql("VACUUM (FREEZE) t")
        return oracle.take(cluster)


def copied(cluster: Cluster, name: str) -> None:
    """Make a database by copying a directory, whose marks are durable before it."""
    strategy = " STRATEGY file_copy" if cluster.major >= 15 else ""
    cluster.sql(f"CREATE DATABASE {name}{strategy}")


def refused(snapshot: Snapshot, cluster: Cluster) -> None:
    """The map must not claim to serve the parent; from now on it works again."""
    init = cluster.init_lsn()
    if init == 0:
        assert cluster.in_recovery, "a primary has no map"
        return  # a standby's, before its first restartpoint
    assert init > snapshot.lsn, f"init LSN {lsn.show(init)}, parent {lsn.show(snapshot.lsn)}"
    again = oracle.take(cluster)
    cluster.sql("UPDATE t SET i = -i WHERE i % 77 = 0")
    oracle.check(again, cluster)


def safe(
    snapshot: Snapshot, cluster: Cluster, *, mask_hints: bool = False, changed: int = 20
) -> None:
    """Kept and complete, or refused: where either is right."""
    if cluster.init_lsn() <= snapshot.lsn:
        oracle.check(snapshot, cluster, changed=changed, mask_hints=mask_hints)
    else:
        refused(snapshot, cluster)
