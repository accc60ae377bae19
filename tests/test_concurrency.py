"""Many at once: writers, checkpoints, queries, and relations that come and go."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, oracle, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory


#: At once on a map of a megabyte.
WRITERS = 16


@contextlib.contextmanager
def repeated(*bodies: Callable[[], None]) -> Iterator[None]:
    """Run functions over and over in threads beside the body; the first failure is raised."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop(body: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                body()
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=loop, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def test_checkpoint_storm(factory: Factory) -> None:
    """Nothing is lost at any of many snapshots taken under load."""
    cluster = factory.create(checksums=True, max_connections=30)
    cluster.run("pgbench", "-i", "-s", "1", "--quiet")
    snapshots = [oracle.take(cluster)]
    load = factory.pgbench(cluster, seconds=60, clients=6, at_most=True)
    with load, repeated(cluster.checkpoint):
        for _ in range(4):
            time.sleep(0.6)
            # not at rest: newer than its LSN in places, which asks less of the map, not more
            snapshots.append(oracle.take(cluster))
    for snapshot in snapshots:
        oracle.check(snapshot, cluster)
    cluster.restart("immediate")
    for snapshot in snapshots:
        oracle.check(snapshot, cluster)


def test_crash_under_load(factory: Factory) -> None:
    cluster = factory.create(checksums=True, full_page_writes=False)
    cluster.run("pgbench", "-i", "-s", "1", "--quiet")
    for _ in range(3):
        snapshot = oracle.take(cluster)
        with factory.pgbench(cluster, seconds=20, clients=4, killed=True):
            time.sleep(0.7)
            cluster.kill_all()
        cluster.start()
        oracle.check(snapshot, cluster, changed=20)


@pytest.mark.parametrize("crash", [False, True], ids=["on", "after a crash"])
def test_relations_that_come_and_go(factory: Factory, *, crash: bool) -> None:
    """Queries beside DROP TABLE, TRUNCATE and DROP DATABASE: no error, and nothing missed.

    After a crash they open the files, too.
    """
    cluster = factory.create(checksums=True, max_connections=30)
    cluster.sql("CREATE TABLE keep AS SELECT i, repeat('x', 200) FROM generate_series(1, 2000) i")
    snapshot = oracle.take(cluster)
    cluster.sql("UPDATE keep SET i = -i WHERE i % 100 = 0")
    cluster.checkpoint()
    path = cluster.path_of("keep")
    current = cluster.files()
    need = {lost.block for lost in oracle.compare(snapshot, current, []).lost if lost.path == path}
    assert need
    if crash:
        cluster.restart("immediate")

    def tables() -> None:
        cluster.sql(
            "CREATE TABLE gone AS SELECT i, repeat('x', 500) FROM generate_series(1, 500) i; "
            "TRUNCATE gone; DROP TABLE gone"
        )

    def databases() -> None:
        cluster.sql("CREATE DATABASE gone")
        cluster.sql("DROP DATABASE gone")

    def queries() -> None:
        for since in (snapshot.lsn, 0):
            rows = {row.path: set(row.blocks()) for row in cluster.pagemapset(since)}
            assert need <= rows[path]

    with repeated(tables, databases, queries, queries):
        time.sleep(3)
    oracle.check(snapshot, cluster)


def test_query_while_a_table_grows_and_shrinks(cluster: Cluster) -> None:
    cluster.sql("CREATE TABLE t (i int, x text)")

    def grow() -> None:
        cluster.sql("INSERT INTO t SELECT i, repeat('x', 700) FROM generate_series(1, 800) i")
        cluster.sql("DELETE FROM t")
        cluster.sql("VACUUM t")

    with repeated(grow):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for row in cluster.pagemapset(0):
                assert row.pagecount == len(row.blocks())


def test_small_map_many_relations(factory: Factory) -> None:
    """Many share lines of the map, and writers slots: collisions add blocks and take none away."""
    cluster = factory.create(checksums=True, ptrack__map_size=1, max_connections=30)
    cluster.sql(
        "DO $$ BEGIN FOR i IN 1..250 LOOP "
        "EXECUTE format('CREATE TABLE t%s (i int PRIMARY KEY, x text)', i); "
        "EXECUTE format('INSERT INTO t%s SELECT g, repeat(''x'', 400) "
        "FROM generate_series(1, 60) g', i); END LOOP; END $$"
    )
    snapshot = oracle.take(cluster)

    def update(connection: psycopg.Connection[tuple[object, ...]], first: int) -> None:
        for number in range(first, 251, WRITERS):
            connection.execute(f"UPDATE t{number} SET x = x || 'y' WHERE i % 9 = 0".encode())

    with contextlib.ExitStack() as stack:
        threads = []
        for first in range(1, WRITERS + 1):
            connection = stack.enter_context(cluster.connect())
            threads.append(threading.Thread(target=update, args=(connection, first)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    oracle.check(snapshot, cluster, changed=250)
    oracle.evict(snapshot, cluster, changed=250)
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=250)


def _accepted(cluster: Cluster, parent: int) -> bool:
    """Whether a start has taken the map over; if not it was torn, which is said."""
    if 0 < cluster.init_lsn() <= parent:
        return True
    said = "incorrect checksum of file" in cluster.log_text()
    assert said, "the map was refused for something else than a page that was being written"
    return False


def _read_of(backup: client.Backup, path: str) -> tuple[int, int]:
    """Blocks of a relation that a backup has read, and those that there are."""
    parts = [part for name, part in backup.relations.items() if name.partition(".")[0] == path]
    blocks = sum(-(-part.size // backup.block_size) for part in parts)
    return sum(len(part.blocks) for part in parts), blocks


def _is_incremental(backup: client.Backup, cluster: Cluster) -> None:
    """It has what changed of t and little else of it, and nothing of a table that did not change.

    filler: what nobody writes to.
    """
    read, blocks = _read_of(backup, cluster.path_of("t"))
    assert 20 <= read < blocks / 2, f"{read} of {blocks} blocks that few changes are in"
    read, blocks = _read_of(backup, cluster.path_of("filler"))
    assert blocks > 100
    assert read <= 1, f"{read} of {blocks} blocks that have not changed"


@pytest.mark.parametrize("fsync", [False, True], ids=["fsync off", "fsync on"])
def test_backup_during_flushes(factory: Factory, *, fsync: bool) -> None:
    """The map is copied while checkpoints write it; restored, it is kept, and serves the parent.

    One that was copied while a page of it was being written is refused: then another is taken.
    """
    cluster = factory.create(checksums=True, fsync=fsync)
    cluster.run("pgbench", "-i", "-s", "1", "--quiet")
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 300) FROM generate_series(1, 3000) i")
    cluster.sql("VACUUM (FREEZE) t")
    before = oracle.take(cluster)
    parent = client.full(cluster)
    # nothing reads it before it is restored: its marks are those that came with the map
    cluster.sql("UPDATE t SET i = -i WHERE i % 150 = 0")

    def restored() -> Cluster:
        target = factory.empty("restored")
        client.restore(client.incremental(cluster, parent), target)
        return target

    def base() -> Cluster:
        return factory.base_backup(cluster, "base", "-X", "stream")

    for copy in (restored, base):
        for _ in range(5):
            flushed = cluster.redo()
            load = factory.pgbench(cluster, seconds=60, at_most=True)
            with load, repeated(cluster.checkpoint):
                target = copy()
            assert cluster.redo() > flushed, "no flush meanwhile"
            target.start()
            if _accepted(target, before.lsn):
                break
            verify.whole(target)
            factory.destroy_one(target)
        else:
            pytest.fail("it was torn each time")
        oracle.look(before, target)
        verify.whole(target)
        target.sql("UPDATE pgbench_branches SET bbalance = 0")
        target.restart()
        oracle.check(before, target, changed=20)
        increment = client.incremental(target, parent)
        _is_incremental(increment, target)
        client.same(increment, target)
        factory.destroy_one(target)
