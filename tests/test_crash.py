"""Everything at once, and then an end of some kind before any checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, fault, lsn, oracle, system, walpage, workload
from tests.harness.cluster import StartFailed
from tests.harness.fault import Action, Fault, Kind
from tests.harness.grown import pages
from tests.harness.oracle import LostBlocks
from tests.harness.parent import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot


IO_METHODS = pytest.mark.major(since=18)  # has the setting


def _clean(cluster: Cluster) -> None:
    cluster.restart()


def _immediate(cluster: Cluster) -> None:
    cluster.restart("immediate")


def _kill_all(cluster: Cluster) -> None:
    cluster.kill_all()
    cluster.start()


def _kill_backend(cluster: Cluster) -> None:
    cluster.kill_child("client backend")


def _kill_checkpointer(cluster: Cluster) -> None:
    cluster.kill_child("checkpointer")


def _kill_postmaster(cluster: Cluster) -> None:
    cluster.kill_postmaster()
    cluster.start()


def _start(cluster: Cluster) -> None:
    """Start, or skip where the server or the kernel is without the io_method that it is to have."""
    absent = r'invalid value for parameter "io_method".*|could not setup io_uring queue.*'
    try:
        cluster.start()
    except StartFailed as failed:
        said = re.search(absent, failed.log)
        if said is None:
            raise
        pytest.skip(said[0])


@pytest.mark.parametrize(
    ("end", "checksums", "settings"),
    [
        pytest.param(_clean, False, {}, id="clean"),
        pytest.param(_clean, True, {"fsync": True}, id="clean, checksums, fsync"),
        pytest.param(_immediate, False, {}, id="immediate"),
        pytest.param(_immediate, False, {"wal_log_hints": True}, id="immediate, wal_log_hints"),
        pytest.param(_immediate, True, {}, id="immediate, checksums"),
        pytest.param(
            _immediate, True, {"full_page_writes": False}, id="immediate, checksums, no fpw"
        ),
        pytest.param(_kill_all, False, {"full_page_writes": False}, id="kill all, no fpw"),
        pytest.param(_kill_all, True, {"wal_compression": True}, id="kill all, checksums"),
        pytest.param(_kill_backend, True, {"full_page_writes": False}, id="kill backend"),
        pytest.param(_kill_checkpointer, False, {}, id="kill checkpointer"),
        pytest.param(_kill_checkpointer, True, {}, id="kill checkpointer, checksums"),
        pytest.param(_kill_postmaster, True, {}, id="kill postmaster"),
        pytest.param(_immediate, True, {"wal_level": "logical"}, id="immediate, logical"),
        # 18's default is worker
        pytest.param(_immediate, True, {"io_method": "sync"}, id="sync", marks=IO_METHODS),
        pytest.param(_immediate, True, {"io_method": "io_uring"}, id="io_uring", marks=IO_METHODS),
    ],
)
def test_everything(
    factory: Factory,
    end: Callable[[Cluster], None],
    *,
    checksums: bool,
    settings: dict[str, str | bool],
) -> None:
    cluster = factory.create(checksums=checksums, start=False)
    cluster.configure(settings)
    _start(cluster)
    workload.prepare(cluster)
    scenarios = workload.available(cluster)
    workload.set_up(cluster, scenarios)
    snapshot = oracle.take(cluster)
    workload.change(cluster, scenarios)
    oracle.evict(snapshot, cluster, changed=501)
    end(cluster)
    mask = not checksums and end is not _clean and "wal_log_hints" not in settings
    oracle.check(snapshot, cluster, mask_hints=mask, changed=500)

    # and on with it
    again = oracle.take(cluster)
    cluster.sql("UPDATE heap.t SET id = id + 1 WHERE id % 50 = 0")
    oracle.check(again, cluster)
    oracle.look(snapshot, cluster, mask_hints=mask)


def test_full_page_writes_by_reload(factory: Factory) -> None:
    """Off and on again without a restart; the pages written meanwhile have no image."""
    cluster = factory.create(checksums=True)
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.reload(full_page_writes=False)
    cluster.checkpoint()  # the checkpointer, which switches, has read the settings before that
    begun = cluster.position()
    cluster.sql("UPDATE t SET i = -i")
    ended = cluster.flush_wal()
    oracle.evict(snapshot, cluster, changed=40)
    before = cluster.flush_wal()
    cluster.reload(full_page_writes=True)
    cluster.wait_for(
        lambda: "FPW_CHANGE" in cluster.records(before, cluster.flush_wal()), "the record of it"
    )
    cluster.stop("immediate")
    told = cluster.records(begun, ended).splitlines()
    records = [line for line in told if line.startswith("rmgr: Heap")]
    assert len(records) >= 40
    assert not [line for line in records if "FPW" in line], "there were images"
    cluster.start()
    oracle.check(snapshot, cluster, changed=40)


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_crash_in_crash(factory: Factory) -> None:
    """Killed again and again while it recovers, then let through."""
    cluster = factory.create(checksums=True, full_page_writes=False, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        workload.prepare(cluster)
        scenarios = [one for one in workload.available(cluster) if not one.checkpoints]
        workload.set_up(cluster, scenarios)
        snapshot = oracle.take(cluster)
        workload.change(cluster, scenarios)
        oracle.evict(snapshot, cluster, changed=200)
        cluster.kill_all()
        for number in (1, 4, 20, 100):
            assert fault.start_killed(cluster, orders, number), "recovery was over"
        cluster.start()
        oracle.check(snapshot, cluster, changed=200)


def test_two_crashes(factory: Factory) -> None:
    """Marks survive from before the first crash, with no map written but by recovery."""
    cluster = factory.create(checksums=True, full_page_writes=False)
    pages(cluster, pages=60)
    snapshot = oracle.take(cluster)
    for third in range(3):
        cluster.sql(f"UPDATE t SET x = x || 'y' WHERE i % 3 = {third}")
        oracle.evict(snapshot, cluster, changed=20 * (third + 1))
        cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=60)


def test_hint_bits_without_images(factory: Factory) -> None:
    """With checksums they are logged, and without full page writes by the block's name alone."""
    cluster = factory.create(checksums=True, full_page_writes=False)
    rows = "generate_series(1, 1000) i"
    cluster.sql(f"CREATE TABLE t AS SELECT i, repeat('x', 300) AS x FROM {rows}")
    snapshot = oracle.take(cluster)
    cluster.sql("SELECT count(*) FROM t")
    found = oracle.evict(snapshot, cluster, changed=21)  # hint bits alone
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=found)


@IO_METHODS
@pytest.mark.parametrize("method", ["sync", "worker", "io_uring"])
def test_hint_bits_set_by_readers(factory: Factory, method: str, *, checksums: bool) -> None:
    """Whoever reads the pages for them; a reader writes some of what it has changed itself."""
    cluster = factory.create(
        checksums=checksums, start=False, full_page_writes=False, io_method=method
    )
    _start(cluster)
    rows = "generate_series(1, 3000) i"
    cluster.sql(f"CREATE TABLE t AS SELECT i, repeat('x', 900) AS x FROM {rows}")
    snapshot = oracle.take(cluster)
    cluster.evict()  # so that they are read from the disk
    cluster.sql("SELECT count(*) FROM t")
    found = oracle.evict(snapshot, cluster, changed=301)  # hint bits alone
    oracle.look(snapshot, cluster)
    if method == "worker":
        cluster.kill_child("io worker")
    else:
        cluster.restart("immediate")
    oracle.check(snapshot, cluster, mask_hints=not checksums, changed=found)

    again = oracle.take(cluster)
    cluster.evict()
    cluster.sql("UPDATE t SET i = -i WHERE i % 9 = 0")
    cluster.evict()
    cluster.sql("VACUUM t")
    oracle.evict(again, cluster, changed=301)
    oracle.look(again, cluster)
    cluster.restart("immediate")
    oracle.check(again, cluster, mask_hints=not checksums, changed=301)


def test_visibility_map_cleared(factory: Factory) -> None:
    """Clearing a vm bit has no image in WAL and is a no-op when it is clear already."""
    cluster = factory.create(checksums=True)
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    oracle.evict(snapshot, cluster, changed=21)  # with a page of the map
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)


def test_open_transaction(factory: Factory) -> None:
    cluster = factory.create(checksums=True, full_page_writes=False)
    pages(cluster)
    snapshot = oracle.take(cluster)
    with cluster.connect(autocommit=False) as connection:
        connection.execute("UPDATE t SET x = x || 'y'")
        oracle.evict(snapshot, cluster, changed=40)
        oracle.look(snapshot, cluster)
        cluster.kill_all()
        connection.close()
    cluster.start()
    oracle.check(snapshot, cluster, changed=40)


@pytest.mark.major(since=17)
@pytest.mark.parametrize("checksums", [False, True], ids=["", "checksums"])
def test_all_visible_without_the_record(factory: Factory, *, checksums: bool) -> None:
    """VACUUM sets the flag of a page that it finds well; its record, which may be lost, has the LSN
    written into the page with checksums only."""
    cluster = factory.create(
        checksums=checksums, shared_buffers="16MB", wal_buffers="16MB", max_wal_size="1GB"
    )
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i")
    cluster.sql("SELECT count(*) FROM t")  # hint bits
    cluster.checkpoint()
    snapshot = oracle.take(cluster)
    evict = (
        "SELECT count(*) FROM (SELECT pg_buffercache_evict(bufferid) FROM pg_buffercache "
        "WHERE relfilenode = pg_relation_filenode('t') AND relforknumber = 0) s"
    )
    with cluster.connect() as connection:
        connection.execute(evict.encode())
        connection.execute(b"SELECT count(*) FROM t")
        with cluster.paused("walwriter", "background writer", "checkpointer"):
            connection.execute(b"VACUUM (TRUNCATE false) t")
            connection.execute(evict.encode())
            cluster.kill_all()
    cluster.start()
    oracle.check(snapshot, cluster, mask_hints=not checksums)
    if not checksums:
        with pytest.raises(LostBlocks):
            oracle.look(snapshot, cluster)


def test_redo_point_at_a_page_boundary(factory: Factory) -> None:
    """WAL ends with a page; the redo point is past the header of the next, not written yet."""
    cluster = factory.create(checksums=True, full_page_writes=False)
    pages(cluster, pages=30)
    cluster.checkpoint()
    cluster.checkpoint()
    with cluster.paused("background writer"):  # it tells of running transactions in WAL
        with cluster.connect() as connection:
            walpage.fill(connection)
        cluster.checkpoint()
    snapshot = oracle.take(cluster, checkpoint=False)
    assert snapshot.lsn % walpage.PAGE in walpage.HEADERS, "the redo point is somewhere else"
    cluster.sql("UPDATE t SET i = -i WHERE i = 7")
    oracle.evict(snapshot, cluster, changed=1)
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)


def test_unlogged_is_reset(factory: Factory) -> None:
    """reinit copies the init fork over the main fork past every hook."""
    cluster = factory.create(checksums=True)
    cluster.script(
        [
            "CREATE UNLOGGED TABLE u (i int PRIMARY KEY, x text)",
            "CREATE INDEX ON u USING gist (point(i, i))",
            "CREATE INDEX ON u USING hash (i)",
            "INSERT INTO u SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i",
        ]
    )
    snapshot = oracle.take(cluster)
    cluster.restart("immediate")
    assert cluster.value("SELECT count(*) FROM u") == 0
    oracle.check(snapshot, cluster)
    cluster.sql("INSERT INTO u SELECT i, repeat('x', 300) FROM generate_series(1, 1000) i")
    oracle.check(snapshot, cluster)


def test_unlogged_is_reset_by_a_standby(factory: Factory) -> None:
    """A clean stop, and archive recovery from there: what it resets it copies past every hook."""
    cluster = factory.create(checksums=True)
    cluster.script(
        [
            "CREATE UNLOGGED TABLE u (i int, x text)",
            "INSERT INTO u SELECT i, repeat('x', 300) FROM generate_series(1, 3000) i",
            "CREATE INDEX u_i ON u (i)",
        ]
    )
    snapshot = oracle.take(cluster)
    cluster.stop()
    cluster.write("standby.signal", "")
    cluster.start()
    cluster.promote()
    assert cluster.value("SELECT count(*) FROM u") == 0
    oracle.check(snapshot, cluster, changed=1)
    assert 0 in cluster.reported("u_i", snapshot.lsn), "the index's metapage is another one"


def test_unlogged_is_reported_whole(factory: Factory) -> None:
    """Also a heap, whose init fork is empty, and whatever its pages look like."""
    cluster = factory.create()
    cluster.sql("CREATE UNLOGGED TABLE u (i int, x text)")
    cluster.restart("immediate")
    cluster.sql("INSERT INTO u SELECT i, repeat('x', 300) FROM generate_series(1, 3000) i")
    cluster.evict()  # and marks it, before the parent
    since = cluster.flush_wal()
    path = cluster.path_of("u")
    blocks = len(cluster.relation_bytes("u")) // cluster.block_size
    with (cluster.data / path).open("r+b") as file:  # an LSN ends the walk from the end
        file.seek((min(blocks, cluster.segment_blocks) - 1) * cluster.block_size)
        file.write(struct.pack("=II", since >> 32, (since & 0xFFFFFFFF) - 64))
    assert (cluster.data / f"{path}_init").stat().st_size == 0
    assert cluster.reported("u", since) == set(range(blocks))
    assert f"{path}_init" not in {row.path for row in cluster.pagemapset(since)}


def test_index_build_and_checkpoint_then_crash(factory: Factory) -> None:
    """Pages written past the buffer pool, under a checkpoint, then a crash."""
    cluster = factory.create(checksums=True)
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 20000) i")
    snapshot = oracle.take(cluster)
    with cluster.connect() as one:
        one.execute("CREATE INDEX t_s ON t (s)")
        cluster.checkpoint()
        one.execute("ALTER TABLE t SET UNLOGGED")
        cluster.checkpoint()
        one.execute("ALTER TABLE t SET LOGGED")
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=100)


def _killed_in_redo(cluster: Cluster, orders: Fault, path: str) -> None:
    """Start, and kill it when it has replayed enough to write some pages of a file."""
    orders.order(path, Kind.WRITE, Action.STOP_BEFORE, number=20)
    cluster.start(wait=False)
    orders.wait()
    cluster.kill_all()
    orders.clear()


def _restored_beside_another(factory: Factory) -> tuple[Cluster, Snapshot, str, int]:
    """A cluster to be recovered from a backup that another one began in, after the map was read.

    That one; a file that replay writes to; where the backup began.
    """
    cluster = factory.create(checksums=True)
    pages(cluster, pages=60)
    pages(cluster, "other", pages=400)
    first: list[bytes] = []
    second: list[Snapshot] = []

    def early() -> None:
        first.append(cluster.map.read_bytes())
        cluster.sql("DELETE FROM t WHERE i % 8 = 3")
        cluster.sql("SELECT count(*) FROM t")
        cluster.sql("UPDATE other SET i = -i")
        second.append(oracle.take(cluster))

    backup = client.full(cluster, early=early)
    (snapshot,) = second
    assert backup.start < snapshot.lsn
    path = cluster.path_of("other")
    other = {**backup.other, "global/ptrack.map": first[0]}  # read before the other one begins
    backup = dataclasses.replace(backup, other=other)
    restored = factory.empty("restored")
    client.restore(backup, restored)
    restored.configure(restore_command="false")
    restored.write("recovery.signal", "")
    return restored, snapshot, path, backup.start


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_killed_in_the_replay_of_a_backup(factory: Factory) -> None:
    """Another backup begins while it is taken; restored, it knows that, and does not forget it.

    It is in pg_control alone, which has the backup_label's redo point as soon as replay begins.
    """
    restored, snapshot, path, start = _restored_beside_another(factory)
    with Fault(restored, factory.shared) as orders:
        for _ in range(2):
            _killed_in_redo(restored, orders, path)
        redo = restored.control()["Latest checkpoint's REDO location"]
        assert lsn.parse(redo) == start
        restored.start()
        assert 0 < restored.init_lsn() <= snapshot.lsn
        assert oracle.look(snapshot, restored).changed > 5


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
@pytest.mark.parametrize("renamed", [False, True], ids=["with its label", "label renamed"])
def test_killed_in_the_replay_of_a_backup_without_the_library(
    factory: Factory, *, renamed: bool
) -> None:
    """Nobody has noted that the other one began: it is no parent."""
    restored, snapshot, path, start = _restored_beside_another(factory)
    restored.configure(shared_preload_libraries="")
    with Fault(restored, factory.shared) as orders:
        _killed_in_redo(restored, orders, path)
        if not renamed:  # as if it came before the renaming
            (restored.data / "backup_label.old").rename(restored.data / "backup_label")
        restored.configure(shared_preload_libraries="ptrack")
        redo = restored.control()["Latest checkpoint's REDO location"]
        assert lsn.parse(redo) == start
        restored.start()
        oracle.look(snapshot, restored)
        refused(snapshot, restored)


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_killed_in_a_replay_without_a_signal(factory: Factory) -> None:
    """To PostgreSQL a backup_label alone begins an archive recovery.

    What is a standby after that began with the library, and is not behind its disk.
    """
    cluster = factory.create(checksums=True)
    pages(cluster, "keep", pages=1000)
    pages(cluster, "other", pages=200)
    snapshot = oracle.take(cluster)
    backup = client.full(cluster, early=lambda: cluster.script(["UPDATE other SET i = -i"]))
    path = cluster.path_of("other")
    restored = factory.empty("restored")
    client.restore(backup, restored)
    with Fault(restored, factory.shared) as orders:
        _killed_in_redo(restored, orders, path)
        assert restored.control()["Database cluster state"] == "in archive recovery"
    restored.write("standby.signal", "")
    restored.configure(primary_conninfo=cluster.conninfo())
    restored.start()
    restored.catch_up(cluster)
    assert 0 < restored.init_lsn() <= snapshot.lsn
    found = oracle.look(snapshot, restored)
    assert found.changed > 100
    assert found.reported < found.blocks / 2


@pytest.mark.parametrize(
    "kind",
    [
        "with its map",
        "without one",
        "without one, killed",
        "without one, killed with its label",
        "without one, killed at its end",
    ],
)
def test_stopped_in_the_replay_of_a_backup(factory: Factory, kind: str) -> None:
    """Its restartpoint is before another backup that had begun, and stamps the map's file.

    Only what the header keeps beside that tells the next start of the other one. Replay is held up
    by WAL that is not there yet: pages come again as of before their hint bits were set. A map
    begun here does not know of all that was before: the other backup is no parent. Nor is it where
    the start that has seen it begin was killed and has left nothing.
    """
    cluster = factory.create(checksums=True)
    pages(cluster, pages=60)
    pages(cluster, "other", pages=400)
    second: list[oracle.Snapshot] = []
    redo = 0
    missing = ""

    def early() -> None:
        nonlocal redo, missing
        cluster.checkpoint()
        redo = cluster.redo()
        cluster.sql("SELECT pg_switch_wal()")
        cluster.flush_wal()
        missing = cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        cluster.sql("DELETE FROM t WHERE i % 8 = 3")
        cluster.sql("SELECT count(*) FROM t")
        cluster.sql("UPDATE other SET i = -i")
        second.append(oracle.take(cluster))

    backup = client.full(cluster, early=early)
    (snapshot,) = second
    assert backup.start < redo < snapshot.lsn
    restored = factory.empty("restored")
    client.restore(backup, restored)
    if kind != "with its map":
        restored.map.unlink()
    restored.configure(log_min_messages="debug2")
    if restored.major >= 15:
        restored.configure(recovery_prefetch=False)  # what is read is replayed
    restored.write("standby.signal", "")
    if kind == "without one, killed at its end":
        restored.start()
        restored.kill_all()
    wal = restored.data / "pg_wal"
    aside = system.make_dir(restored.root / "aside")
    for path in [path for path in wal.iterdir() if path.is_file() and path.name >= missing]:
        path.rename(aside / path.name)

    def held_up() -> None:
        since = restored.log.stat().st_size if restored.log.exists() else 0
        restored.start(wait=False)
        said = f'could not open file "pg_wal/{missing}"'
        restored.wait_for(lambda: said in restored.log_text(since), "the end of WAL")

    held_up()
    if kind in {"without one, killed", "without one, killed with its label"}:
        restored.kill_all()
        if kind == "without one, killed with its label":  # as if it came before the renaming
            (restored.data / "backup_label.old").rename(restored.data / "backup_label")
        held_up()
    restored.stop("fast")
    assert lsn.parse(restored.control()["Latest checkpoint's REDO location"]) == redo
    for path in aside.iterdir():
        path.rename(wal / path.name)
    restored.start()
    restored.evict()
    if kind != "with its map":
        assert restored.init_lsn() > snapshot.lsn
        restored.promote()
        again = oracle.take(restored)
        restored.sql("UPDATE t SET i = -i")
        oracle.check(again, restored, changed=20)
        return
    assert 0 < restored.init_lsn() <= snapshot.lsn
    assert oracle.look(snapshot, restored).changed > 5


@pytest.mark.major(until=14)
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_stopped_in_an_exclusive_backup(factory: Factory, mode: str) -> None:
    """PostgreSQL renames backup_label as if a replay had begun with it: none has."""
    cluster = factory.create(checksums=True)
    pages(cluster, pages=60)
    snapshot = oracle.take(cluster)
    old = cluster.data / "backup_label.old"
    for each in ("one", "two"):  # the second one beside a file that has been noted
        cluster.sql("SELECT pg_start_backup(%s, true, true)", each)
        cluster.sql("DELETE FROM t WHERE i % 8 = 3")
        cluster.restart(mode)
        assert f"LABEL: {each}" in old.read_text()
        assert 0 < cluster.init_lsn() <= snapshot.lsn
    found = oracle.check(snapshot, cluster, changed=7)
    assert found.reported < found.blocks / 2


@pytest.mark.major(until=14)
@pytest.mark.parametrize("killed", [False, True], ids=["once", "in replay, too"])
@pytest.mark.parametrize("images", [False, True], ids=["full_page_writes off", "on"])
def test_in_an_exclusive_backup(factory: Factory, *, images: bool, killed: bool) -> None:
    """What is replayed begins before a backup that was taken meanwhile.

    Pages come again as WAL has them, without hint bits that the backup saw.
    """
    cluster = factory.create(checksums=True, full_page_writes=images)
    pages(cluster, pages=60)
    pages(cluster, "other", pages=400)
    cluster.sql("SELECT pg_start_backup('x', true, true)")
    cluster.sql("DELETE FROM t WHERE i % 8 = 3")
    cluster.sql("SELECT count(*) FROM t")
    cluster.sql("UPDATE other SET i = -i")
    snapshot = oracle.take(cluster)
    path = cluster.path_of("other")
    cluster.kill_all()
    if killed and fault.compiler() is None:
        pytest.skip("needs a C compiler")
    with Fault(cluster, factory.shared) if killed else contextlib.nullcontext() as orders:
        if orders is not None:
            _killed_in_redo(cluster, orders, path)
        cluster.start()
        assert cluster.init_lsn() <= snapshot.lsn
        oracle.look(snapshot, cluster)
