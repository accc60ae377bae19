"""What operators see: the map's state, what changed of which relation, what size the map needs."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.harness import lsn, mapfile
from tests.harness.fault import Action, Fault, Kind, compiler
from tests.harness.parent import CHANGE, TABLE, copied

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

MB = 1 << 20
TB = 10**12


def status(cluster: Cluster) -> dict[str, Any]:
    """The one row, by its columns' names."""
    with cluster.connect() as connection:
        cursor = connection.execute("SELECT * FROM ptrack_status()")
        assert cursor.description is not None
        (row,) = cursor.fetchall()
        return dict(zip([column.name for column in cursor.description], row, strict=True))


def test_disabled(factory: Factory) -> None:
    cluster = factory.create(ptrack__map_size=0)
    seen = status(cluster)
    assert seen.pop("enabled") is False
    assert set(seen.values()) == {None}


def test_new_map(cluster: Cluster) -> None:
    seen = status(cluster)
    assert seen["enabled"] is True
    assert seen["map_size"] == MB
    assert MB < seen["shared_memory"] < 1.1 * MB + 1024 * 1024
    assert seen["reset_reason"] == "there was no map file"
    age = dt.datetime.now(dt.UTC) - seen["reset_time"]
    assert dt.timedelta(0) < age < dt.timedelta(minutes=5)
    assert seen["flush_lsn"] is None
    assert seen["flush_time"] is None
    assert (seen["loaded"], seen["replayed"], seen["flush_failures"]) == (True, False, 0)


def test_after_changes(cluster: Cluster) -> None:
    cluster.checkpoint()
    empty = status(cluster)
    cluster.sql(TABLE)
    cluster.checkpoint()
    seen = status(cluster)
    assert lsn.parse(seen["flush_lsn"]) == cluster.redo()
    assert lsn.parse(seen["init_lsn"]) == cluster.init_lsn()
    assert seen["flush_pages"] > 0
    assert seen["flush_ms"] > 0
    assert seen["flush_time"] > empty["flush_time"]
    assert empty["fill"] < seen["fill"] < 0.5
    for _ in range(2):  # hint bits of the catalogs
        cluster.checkpoint()
    assert status(cluster)["flush_pages"] == 0, "nothing changed"
    before = seen["write_throughs"]
    copied(cluster, "d")
    assert status(cluster)["write_throughs"] > before


def test_kept_over_restarts(cluster: Cluster) -> None:
    """When and why the map began is in its file."""
    cluster.checkpoint()
    before = status(cluster)
    cluster.restart()
    cluster.restart("immediate")
    after = status(cluster)
    for name in ("reset_time", "reset_reason", "init_lsn"):
        assert after[name] == before[name]
    assert after["whole_lsn"] is None or after["whole_lsn"] != before["whole_lsn"]


@pytest.mark.parametrize(
    ("reason", "how"),
    [
        ("there was no map file", "removed"),
        ("the map file was damaged", "damaged"),
        ("the server had run without ptrack", "unloaded"),
        ("the server had run with wal_level=minimal", "minimal"),
        ("another format", "old"),
    ],
)
def test_reasons(cluster: Cluster, reason: str, how: str) -> None:
    cluster.sql(TABLE)
    cluster.stop()
    before = cluster.log_size()
    if how == "removed":
        cluster.map.unlink()
    elif how == "damaged":
        content = bytearray(cluster.map.read_bytes())
        content[20] ^= 0xFF
        cluster.map.write_bytes(content)
    elif how == "old":
        mapfile.edit(cluster.map, lambda content: mapfile.put(content, "format", 220))
    else:
        cluster.configure(shared_preload_libraries="")
        if how == "minimal":
            cluster.configure(wal_level="minimal", max_wal_senders=0)
        cluster.start()
        cluster.sql(CHANGE)
        cluster.stop("fast")
        if how == "minimal":
            # what pg_control says of the last life is what counts
            cluster.configure(shared_preload_libraries="ptrack", wal_level="replica")
    cluster.configure(shared_preload_libraries="ptrack")
    cluster.start()
    assert reason in status(cluster)["reset_reason"]
    assert "a new map begins" in cluster.log_text(before)
    cluster.checkpoint()
    cluster.restart()
    assert reason in status(cluster)["reset_reason"]


@pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
def test_failures_are_counted(factory: Factory) -> None:
    cluster = factory.create(start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.checkpoint()
        orders.order("global/ptrack.map", Kind.WRITE, Action.FAIL, onwards=True)
        for failures in (1, 2):
            cluster.checkpoint()
            assert status(cluster)["flush_failures"] == failures
        orders.clear()
        cluster.checkpoint()
        assert status(cluster)["flush_failures"] == 0


@pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
def test_no_file(factory: Factory) -> None:
    """After a durable mark that could not be written there is nothing that a start would take."""
    cluster = factory.create(start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(TABLE)
        cluster.checkpoint()
        orders.order("global/ptrack.map", Kind.WRITE | Kind.SYNC, Action.FAIL, onwards=True)
        copied(cluster, "d")
        orders.clear()
        assert not cluster.map.exists()
        seen = status(cluster)
        assert (seen["flush_lsn"], seen["flush_failures"]) == (None, 3)  # two are checkpoints'
        cluster.checkpoint()
        seen = status(cluster)
        assert seen["flush_failures"] == 0
        assert seen["flush_lsn"] is not None


def test_fill(cluster: Cluster) -> None:
    """The share of slots: each block's mark is in two."""
    cluster.checkpoint()
    cluster.checkpoint()
    since = lsn.show(cluster.redo())
    slots = MB // 8
    first = cluster.value("SELECT ptrack_map_fill(%s)", since)
    cluster.sql(TABLE)
    cluster.checkpoint()
    blocks = cluster.value("SELECT pg_relation_size('t') / %s", cluster.block_size)
    assert 1.5 * blocks / slots < cluster.value("SELECT ptrack_map_fill(%s)", since) - first
    assert cluster.value("SELECT ptrack_map_fill('FFFFFFFF/FFFFFFF8')") == 0
    assert cluster.value("SELECT ptrack_map_fill(NULL)") is None


def test_relations(cluster: Cluster) -> None:
    """By name in this database and for shared relations, by number in others."""
    cluster.sql("CREATE DATABASE d")
    cluster.checkpoint()
    since = lsn.show(cluster.redo())
    cluster.sql(TABLE)
    cluster.sql(TABLE, database="d")
    cluster.sql("CREATE ROLE somebody")
    cluster.sql("VACUUM t")
    cluster.checkpoint()
    query = (
        "SELECT database, relation::text, fork, relfilenode::int, files, pages, "
        '"size, MB" FROM ptrack_get_change_relation_stat(%s)'
    )
    rows = cluster.sql(query, since)
    found = {(row[0], row[1], row[2]): row[3:] for row in rows if row[1] is not None}
    size = cluster.value("SELECT pg_relation_size('t')")
    blocks = size // cluster.block_size
    node, files, pages, megabytes = found["postgres", "t", "main"]
    assert node == cluster.value("SELECT pg_relation_filenode('t')")
    assert pages == blocks
    assert files == math.ceil(blocks / cluster.segment_blocks)
    assert float(megabytes) == pytest.approx(size / MB)
    assert ("postgres", "t", "vm") in found
    assert (None, "pg_authid", "main") in found
    other = cluster.value("SELECT pg_relation_filenode('t')", database="d")
    assert ("d", None, "main", other) in [row[:4] for row in rows]
    total = cluster.sql("SELECT files, pages FROM ptrack_get_change_stat(%s)", since)
    assert [(sum(row[4] for row in rows), sum(row[5] for row in rows))] == total
    assert cluster.sql(query, "FFFFFFFF/FFFFFFF8") == []
    cluster.restart(ptrack__map_size=0)
    with pytest.raises(psycopg.Error, match="ptrack is disabled"):
        cluster.sql(query, since)


@pytest.mark.parametrize(
    ("megabytes", "changed", "percent"),
    [(1024, 0.01, 3), (1024, 0.1, 25), (1024, 0.2, 37), (256, 0.05, 177), (4096, 0.2, 3)],
)
def test_estimate(cluster: Cluster, megabytes: int, changed: float, percent: float) -> None:
    """The table of docs/operating.md."""
    query = "SELECT ptrack_estimate_extra(%s, %s, %s)"
    extra = cluster.value(query, TB * cluster.block_size // 8192, changed, megabytes * MB)
    assert extra * 100 == pytest.approx(percent, abs=0.6)


@pytest.mark.parametrize("changed", [0.001, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("extra", [0.01, 0.25, 1.0])
def test_suggested_size(cluster: Cluster, changed: float, extra: float) -> None:
    """The smallest whole MB that is enough."""
    query = "SELECT ptrack_suggest_map_size(%s, %s, %s)"
    size = cluster.value(query, TB, changed, extra)
    assert size % MB == 0
    estimate = "SELECT ptrack_estimate_extra(%s, %s, %s)"
    assert cluster.value(estimate, TB, changed, size) <= extra * (1 + 1e-9)
    if size > MB:
        assert cluster.value(estimate, TB, changed, size - MB) > extra
    assert cluster.value("SELECT ptrack_suggest_map_size(%s)", TB) == cluster.value(
        query, TB, 0.1, 0.25
    )
    assert cluster.value(query, cluster.block_size, changed, extra) == MB


def test_estimate_holds(factory: Factory) -> None:
    """Scattered single blocks, as many as the small map's slots: the formula's share is extra."""
    cluster = factory.create(shared_buffers="64MB")
    if cluster.block_size > 8192:
        pytest.skip("pages enough for this would take gigabytes")
    cluster.sql("CREATE TABLE t (i int, x text) WITH (fillfactor = 50)")
    cluster.sql("ALTER TABLE t ALTER x SET STORAGE PLAIN")
    cluster.sql(
        f"INSERT INTO t SELECT i, repeat('x', {cluster.block_size * 2 // 5}) "
        "FROM generate_series(1, 60000) i"
    )
    cluster.sql("VACUUM FREEZE t")
    cluster.checkpoint()
    cluster.checkpoint()
    since = cluster.redo()
    cluster.sql("UPDATE t SET i = -i WHERE abs(hashint4(i)::bigint) % 4 = 0")
    changed = cluster.value("SELECT count(*) FROM t WHERE i < 0")
    cluster.checkpoint()
    blocks = cluster.value("SELECT pg_relation_size('t') / %s", cluster.block_size)
    size = blocks * cluster.block_size
    estimate = "SELECT ptrack_estimate_extra(%s, %s, %s)"
    expected = cluster.value(estimate, size, changed / blocks, MB)
    reported = len(cluster.reported("t", since))
    extra = reported / changed - 1
    assert extra == pytest.approx(expected, rel=0.35)  # which lines meet is left to chance
