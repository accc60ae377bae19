"""Many at once: writers, checkpoints, queries, and relations that come and go."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.harness import client, fault, lsn, oracle, verify
from tests.harness.fault import Action, Fault, Kind, beside
from tests.harness.grown import pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot

needs_compiler = pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")

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


class _Scan:
    """A query that is held up within its scan: what it has found, when it has ended."""

    def __init__(self, cluster: Cluster, snapshot: Snapshot) -> None:
        self._cluster, self._since = cluster, snapshot.lsn
        self.rows: list[oracle.PageMap] = []
        self.error = ""

    def __call__(self) -> None:
        try:
            self.rows += self._cluster.pagemapset(self._since)
        except psycopg.Error as error:
            self.error = str(error)

    def ended_well(
        self, snapshot: Snapshot, content: Mapping[str, bytes], *, changed: int = 20
    ) -> None:
        """No error, and nothing is missed of files that were there all the time."""
        assert not self.error
        found = oracle.compare(snapshot, content, self.rows)
        assert not found.lost, [str(one) for one in found.lost]
        assert found.changed >= changed, "nothing to see"


def _scanning(cluster: Cluster, pid: int) -> None:
    """It is the query that is stopped."""
    query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
    assert "ptrack_get_pagemapset" in cluster.value(query, pid)


@needs_compiler
@pytest.mark.parametrize("crash", [False, True], ids=["on", "after a crash"])
def test_relations_that_come_and_go(faulty: tuple[Cluster, Fault], *, crash: bool) -> None:
    """They are dropped, truncated and made when a query has found their files: no error.

    It is stopped where it comes to look at one; after a crash it opens files, too, and is stopped
    before that. Nothing of the others is missed.
    """
    cluster, orders = faulty
    pages(cluster, "keep")
    names = ("dropped", "truncated", "opened")
    for name in names:
        pages(cluster, name, pages=4)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM keep WHERE i % 2 = 0")
    cluster.checkpoint()
    if crash:
        cluster.restart("immediate")
    paths = {name: cluster.path_of(name) for name in names}
    kept = {name: page for name, page in cluster.files().items() if name.startswith("base/")}
    kept = {name: page for name, page in kept.items() if _base(name) not in paths.values()}
    came = 0

    def go(name: str, kind: Kind, *statements: str) -> None:
        nonlocal came
        scan = _Scan(cluster, snapshot)
        orders.order(f"{paths[name]}$", kind, Action.STOP_BEFORE)
        with beside(scan):
            _scanning(cluster, orders.wait())
            assert (cluster.data / paths[name]).exists()
            came += 1
            cluster.script([*statements, f"CREATE TABLE came{came} AS SELECT 1", "CHECKPOINT"])
            cluster.sql(f"CREATE DATABASE came{came}")
            assert not (cluster.data / paths[name]).exists(), "it is not gone"
            orders.clear()
        scan.ended_well(snapshot, kept)

    go("dropped", Kind.STAT, "DROP TABLE dropped")
    go("truncated", Kind.STAT, "TRUNCATE truncated")
    if crash:
        go("opened", Kind.OPEN, "DROP TABLE opened")
    oracle.check(snapshot, cluster, changed=20)


def _base(path: str) -> str:
    """Path of the first segment of a file's main fork."""
    return path.partition(".")[0].partition("_")[0]


@needs_compiler
@pytest.mark.parametrize("crash", [False, True], ids=["on", "after a crash"])
def test_database_is_dropped_while_it_is_scanned(
    faulty: tuple[Cluster, Fault], *, crash: bool
) -> None:
    """Its directory goes with all that is in it, between one file of it and the next."""
    cluster, orders = faulty
    pages(cluster, "keep")
    cluster.sql("CREATE DATABASE gone")
    oid = cluster.value("SELECT oid FROM pg_database WHERE datname = 'gone'")
    place = cluster.data / f"base/{oid}"
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM keep WHERE i % 2 = 0")
    cluster.checkpoint()
    if crash:
        cluster.restart("immediate")
    kept = {
        name: page for name, page in cluster.files().items() if not name.startswith(f"base/{oid}/")
    }
    scan = _Scan(cluster, snapshot)
    orders.order(f"base/{oid}/", Kind.STAT, Action.STOP_BEFORE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside(scan))
        pid = orders.wait()
        _scanning(cluster, pid)
        drop = stack.enter_context(beside(lambda: cluster.sql("DROP DATABASE gone")))
        if cluster.major >= 15:  # it waits until all others have closed their files
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ProcSignalBarrier'"
            cluster.wait_for(lambda: cluster.value(waits) == 1, "the DROP to wait")
            orders.order(f"base/{oid}/", Kind.STAT, Action.STOP_BEFORE)
            assert orders.wait() == pid
        drop.join(60)
        assert not place.exists(), "it is not gone"
        orders.clear()
    scan.ended_well(snapshot, kept)
    oracle.check(snapshot, cluster, changed=20)


def _grow(cluster: Cluster, count: int) -> str:
    """A row a page, for so many."""
    rows = f"generate_series(1, {count}) i"
    return f"INSERT INTO t SELECT i, repeat('y', {cluster.wide}) FROM {rows}"


@needs_compiler
@pytest.mark.parametrize("crash", [False, True], ids=["on", "after a crash"])
def test_query_while_a_table_grows_and_shrinks(
    faulty: tuple[Cluster, Fault], *, crash: bool
) -> None:
    """At each step of that: after each write and each truncation of its file."""
    cluster, orders = faulty
    pages(cluster, pages=20)
    snapshot = oracle.take(cluster)
    path = cluster.path_of("t")
    cluster.sql("DELETE FROM t")
    if crash:
        cluster.restart("immediate")
    nothing = oracle.Snapshot(lsn=0, content={}, block_size=cluster.block_size)
    for statement in ("VACUUM t", _grow(cluster, 24)):
        sizes = set()
        connection = cluster.connect()
        # not what the queries evict: they are not to be stopped
        orders.order(
            path, Kind.WRITE | Kind.TRUNCATE, Action.STOP_AFTER,
            onwards=True, process=connection.info.backend_pid,
        )  # fmt: skip
        with connection, beside(functools.partial(connection.execute, statement)) as thread:
            while thread.is_alive():
                if not orders.stopped:
                    thread.join(0.001)
                    continue
                current = cluster.files()
                size = sum(len(page) for name, page in current.items() if _base(name) == path)
                oracle.look(snapshot, cluster, current=current)
                if size not in sizes:
                    whole = oracle.look(nothing, cluster, current=current)
                    assert whole.reported == whole.blocks
                sizes.add(size)
                orders.go_on()
        orders.clear()
        assert len(sizes) > 1, f"it was not stopped on its way: {statement}"
    oracle.check(snapshot, cluster, changed=20)


@needs_compiler
@pytest.mark.parametrize("where", ["directory", "file", "tail"])
@pytest.mark.parametrize("grown", [False, True], ids=["shrinks", "and grows"])
def test_table_shrinks_within_a_query(
    faulty: tuple[Cluster, Fault], where: str, *, grown: bool
) -> None:
    """What had changed when it began is in the answer, where it is there at the end; no error.

    It is stopped before it reads the directory, looks at the file, or opens it for its tail.
    """
    cluster, orders = faulty
    pages(cluster, pages=20)
    cluster.sql(_grow(cluster, 40))
    cluster.sql("DELETE FROM t WHERE x LIKE 'y%'")
    cluster.sql("VACUUM (TRUNCATE false, FREEZE) t")  # while the query lasts rows would stay
    snapshot = oracle.take(cluster)
    path = cluster.path_of("t")
    cluster.sql("DELETE FROM t WHERE i BETWEEN 4 AND 12")
    cluster.checkpoint()
    if where == "tail":
        cluster.restart("immediate")
    began = cluster.file_bytes(path)
    content = {name: page for name, page in cluster.files().items() if _base(name) == path}
    last = (len(began) // cluster.block_size - 1) // cluster.segment_blocks
    text, kind = {
        "directory": (path.rpartition("/")[0], Kind.OPENDIR),
        "file": (path, Kind.STAT),
        "tail": (f"{path}.{last}" if last else path, Kind.OPEN),
    }[where]
    scan = _Scan(cluster, snapshot)
    orders.order(f"{text}$", kind, Action.STOP_BEFORE)
    with beside(scan):
        _scanning(cluster, orders.wait())
        cluster.sql("VACUUM t")
        kept = len(cluster.file_bytes(path))
        assert kept < len(began), "it has not shrunk"
        if grown:
            cluster.sql(_grow(cluster, 80))
            cluster.checkpoint()
            kept = len(began)
            assert len(cluster.file_bytes(path)) >= kept, "it has not grown"
        orders.clear()
    scan.ended_well(snapshot, _cut(cluster, content, kept), changed=9)
    oracle.check(snapshot, cluster, changed=9)


def _cut(cluster: Cluster, content: Mapping[str, bytes], size: int) -> dict[str, bytes]:
    """What the main fork's segments have up to a size."""
    segment = cluster.segment_blocks * cluster.block_size
    found = {}
    for name, page in content.items():
        if "_" not in name:
            number = int(name.partition(".")[2] or 0)
            found[name] = page[: max(0, size - number * segment)]
    return found


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
            load = factory.pgbench(cluster, seconds=60, at_most=True)
            with load, repeated(cluster.checkpoint):
                target = copy()
                flushed = cluster.redo()
            # START WAL LOCATION: 0/2000028 (file ...)
            begun = lsn.parse((target.data / "backup_label").read_text().split()[3])
            if flushed > begun:  # else no checkpoint has ended while it was copied
                target.start()
                if _accepted(target, before.lsn):
                    break
                verify.whole(target)
            factory.destroy_one(target)
        else:
            pytest.fail("it was torn each time, or written at no time")
        oracle.look(before, target)
        verify.whole(target)
        target.sql("UPDATE pgbench_branches SET bbalance = 0")
        target.restart()
        oracle.check(before, target, changed=20)
        increment = client.incremental(target, parent)
        _is_incremental(increment, target)
        client.same(increment, target)
        factory.destroy_one(target)
