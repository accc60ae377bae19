"""Crashes and errors at each step of what is done with the map's file, and writers held up.

A library preloaded into the server stops a process at a system call, or has the call fail.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import signal
import struct
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.harness import client, fault, lsn, mapfile, oracle, system, verify, walpage
from tests.harness.fault import Action, Fault, Kind, beside
from tests.harness.grown import grow_and_lose, lazy_cluster, lost, pages
from tests.harness.parent import CHANGE, TABLE, before, copied, refused, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot

pytestmark = pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")

MAP = "global/ptrack.map"
MORE = "UPDATE t SET i = -i WHERE i % 80 = 0"
STEPS = 40  # more than any of these flushes takes


@pytest.fixture
def faulty_standby(factory: Factory) -> Iterator[tuple[Cluster, Cluster, Fault]]:
    """A primary with a table, its standby with fsync, whose system calls can be stopped."""
    primary = factory.create(checksums=True)
    primary.sql(TABLE)
    standby = factory.standby(primary, start=False, fsync=True)
    with Fault(standby, factory.shared) as orders:
        standby.start()
        yield primary, standby, orders


def _kept(snapshot: Snapshot, cluster: Cluster) -> None:
    """The map serves the parent, and nothing is missing."""
    oracle.check(snapshot, cluster)


def _killed_at_each_step(
    snapshot: Snapshot,
    cluster: Cluster,
    orders: Fault,
    change: Callable[[int], None],
    flush: Callable[[], object],
    *,
    start: Callable[[], object] | None = None,
    halves: bool = True,
    numbers: Sequence[int] = range(1, STEPS),
) -> int:
    """Kill the server before each call that a flush makes, or these; how many there were.

    Each time the map is kept, and serves the parent from before all that. With halves, once more
    with half of each write done, when it may be refused; the parent is then taken anew. start: what
    is more than to start the server.
    """
    steps = dict.fromkeys(Action, 0)
    for action in (Action.STOP_BEFORE, *((Action.STOP_HALFWAY,) if halves else ())):
        kinds = Kind.changes() if action == Action.STOP_BEFORE else Kind.WRITE
        for number in numbers:
            change(number)
            orders.order(MAP, kinds, action, number=number)
            with beside(flush, killed=cluster) as thread:
                while thread.is_alive() and not orders.stopped:
                    thread.join(0.002)
                reached = orders.stopped
                if reached:
                    cluster.kill_all()
            orders.clear()
            if not reached:
                break
            steps[action] += 1
            (start or cluster.start)()
            if action == Action.STOP_BEFORE:
                _kept(snapshot, cluster)
            else:
                safe(snapshot, cluster, changed=1)
                if cluster.init_lsn() > snapshot.lsn:
                    snapshot = oracle.take(cluster)
        else:
            pytest.fail("the flush takes more steps than are looked at")
    return steps[Action.STOP_BEFORE]


def test_killed_in_a_flush(faulty: tuple[Cluster, Fault]) -> None:
    """Pages written in place, fsync, header, fsync."""
    cluster, orders = faulty
    snapshot = before(cluster)

    def change(number: int) -> None:
        cluster.sql(CHANGE if number % 2 else MORE)

    steps = _killed_at_each_step(snapshot, cluster, orders, change, cluster.checkpoint)
    assert steps >= 4


def test_killed_in_the_flush_of_a_resized_map(faulty: tuple[Cluster, Fault]) -> None:
    """A new file is written beside the old one and renamed."""
    cluster, orders = faulty
    snapshot = before(cluster)

    def change(number: int) -> None:
        cluster.sql(CHANGE if number % 2 else MORE)
        cluster.restart("immediate", ptrack__map_size=2 + number % 3)
        cluster.sql(MORE if number % 2 else CHANGE)

    steps = _killed_at_each_step(
        snapshot, cluster, orders, change, cluster.checkpoint, halves=False
    )
    assert steps >= 4


def test_killed_in_the_flush_at_the_end_of_recovery(faulty: tuple[Cluster, Fault]) -> None:
    cluster, orders = faulty
    snapshot = before(cluster)
    reached = 0
    for number in range(1, STEPS):
        cluster.sql(CHANGE if number % 2 else MORE)
        cluster.evict()
        cluster.kill_all()
        orders.order(MAP, Kind.changes(), Action.STOP_BEFORE, number=number)
        cluster.start(wait=False)
        cluster.wait_for(lambda: orders.stopped > 0 or cluster.ready(), "the flush or the end")
        stopped = orders.stopped
        if stopped:
            cluster.kill_all()
        orders.clear()
        if not stopped:
            break
        reached += 1
        cluster.start()
        _kept(snapshot, cluster)
    assert reached >= 3
    _kept(snapshot, cluster)


def test_killed_in_the_flush_after_a_promotion(
    faulty_standby: tuple[Cluster, Cluster, Fault],
) -> None:
    """The map is on the new timeline, and pg_control is on the one before."""
    primary, standby, orders = faulty_standby
    snapshot = oracle.take(standby, primary=primary)
    primary.sql(CHANGE)
    standby.catch_up(primary)
    orders.order(f"{MAP}$", Kind.SYNC, Action.STOP_AFTER)
    with beside(standby.promote, killed=standby):
        orders.wait()
        while mapfile.field(standby.map.read_bytes(), "tli") == 1:  # not this header yet
            orders.order(f"{MAP}$", Kind.SYNC, Action.STOP_AFTER)
            orders.wait()
        standby.kill_all()
    orders.clear()
    assert standby.control()["Latest checkpoint's TimeLineID"] == "1"
    standby.start()
    assert not standby.in_recovery
    _kept(snapshot, standby)


def test_killed_in_the_flush_of_a_standby(faulty_standby: tuple[Cluster, Cluster, Fault]) -> None:
    primary, standby, orders = faulty_standby
    snapshot = oracle.take(standby, primary=primary)

    def change(number: int) -> None:
        primary.sql(CHANGE if number % 2 else MORE)
        primary.checkpoint()
        standby.catch_up(primary)

    def start() -> None:
        standby.start()
        standby.catch_up(primary)

    steps = _killed_at_each_step(
        snapshot, standby, orders, change, standby.checkpoint, start=start, halves=False
    )
    assert steps >= 4


def test_killed_in_a_copy(faulty: tuple[Cluster, Fault]) -> None:
    """No record tells of a copy that was not finished: its marks are in the file before it."""
    cluster, orders = faulty
    snapshot = before(cluster)
    orders.order("base/", Kind.WRITE, Action.STOP_BEFORE, number=100)
    with beside(lambda: copied(cluster, "e"), killed=cluster):
        orders.wait()
        cluster.kill_all()
    orders.clear()
    cluster.start()
    oracle.check(snapshot, cluster, changed=50)


def test_killed_in_a_durable_mark(faulty: tuple[Cluster, Fault]) -> None:
    """A copy of a directory writes its marks through before it begins; checkpoints around it."""
    cluster, orders = faulty
    snapshot = before(cluster)
    names = (f"d{i}" for i in range(1000))

    def change(number: int) -> None:
        cluster.sql(CHANGE if number % 2 else MORE)

    def copy() -> None:
        copied(cluster, next(names))

    numbers = (1, 2, 3, 4, *range(5, 1000, 19))  # most of them write pages
    steps = _killed_at_each_step(
        snapshot, cluster, orders, change, copy, halves=False, numbers=numbers
    )
    assert steps >= 10


@pytest.mark.parametrize("onwards", [True, False], ids=["full disk", "one error"])
@pytest.mark.parametrize("again", [True, False], ids=["flushed again", "killed at once"])
def test_flush_that_fails_at_each_step(
    faulty: tuple[Cluster, Fault], *, again: bool, onwards: bool
) -> None:
    """The checkpoint goes on, and the old map is not trusted beyond what it holds."""
    cluster, orders = faulty
    snapshot = before(cluster)
    error = errno.ENOSPC if onwards else errno.EIO
    for number in range(1, STEPS):
        cluster.sql(CHANGE if number % 2 else MORE)
        redo, mark = cluster.redo(), cluster.log_size()
        orders.order(MAP, Kind.changes(), Action.FAIL, number=number, error=error, onwards=onwards)
        cluster.checkpoint()
        failed = orders.count >= number
        orders.clear()
        assert cluster.redo() > redo, "checkpoints go on"
        if not failed:
            break
        assert "WARNING:  ptrack checkpoint: could not write map file" in cluster.log_text(mark)
        oracle.look(snapshot, cluster)
        if again:
            cluster.checkpoint()
        cluster.kill_all()
        cluster.start()
        if again:
            _kept(snapshot, cluster)
        else:
            safe(snapshot, cluster, changed=1)
            if cluster.init_lsn() > snapshot.lsn:
                snapshot = oracle.take(cluster)
    assert number > 4


@pytest.mark.parametrize("again", [True, False], ids=["flushed again", "killed at once"])
def test_fsync_that_fails_and_drops_pages(faulty: tuple[Cluster, Fault], *, again: bool) -> None:
    """What could not be written to the disk is gone from the file, and reported once."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    old = cluster.map.read_bytes()
    orders.order(MAP, Kind.SYNC, Action.STOP_AND_FAIL)
    with beside(cluster.checkpoint):
        orders.wait()
        # the disk has the header, if it was written, and pages new to it
        mapfile.lay(cluster.map, mapfile.in_use(old), old)
        orders.clear()
    if again:
        cluster.checkpoint()
    cluster.kill_all()
    cluster.start()
    if again:
        _kept(snapshot, cluster)
    else:
        safe(snapshot, cluster)


def test_killed_with_wal_in_memory(factory: Factory) -> None:
    """The header names no WAL that a crash takes: the next life would use its positions again."""
    cluster = lazy_cluster(factory, start=False, fsync=True)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        message = "SELECT pg_logical_emit_message(false, '', repeat('x', 4000000))"
        with cluster.connect() as connection, cluster.paused("walwriter", "background writer"):
            for statement in (message, "CHECKPOINT", CHANGE, message):  # again: no hint bits
                connection.execute(statement)
            orders.order(MAP, Kind.SYNC, Action.STOP_AFTER, number=2)  # pages, header
            with beside(lambda: connection.execute("CHECKPOINT"), killed=cluster):
                orders.wait()
                cluster.kill_all()
            connection.close()
            orders.clear()
    cluster.configure(shared_preload_libraries="")
    cluster.start()
    cluster.sql(MORE)
    cluster.restart(shared_preload_libraries="ptrack")
    refused(snapshot, cluster)


def test_map_copied_at_each_step_of_a_flush(
    faulty: tuple[Cluster, Fault], factory: Factory
) -> None:
    """By a backup that began before: the header in it is as old as its pages, or older.

    It is kept where it is restored, and the next increment there is over the same parent.
    """
    cluster, orders = faulty
    snapshot = before(cluster)
    parent = client.full(cluster)

    def flush(number: int, stack: contextlib.ExitStack) -> None:
        cluster.sql(CHANGE)  # since the checkpoint that the backup began with
        orders.order(MAP, Kind.changes(), Action.STOP_BEFORE, number=number)
        thread = stack.enter_context(beside(cluster.checkpoint))
        while thread.is_alive() and not orders.stopped:
            thread.join(0.002)

    for number in range(1, STEPS):
        with contextlib.ExitStack() as stack:
            early = functools.partial(flush, number, stack)
            backup = client.incremental(cluster, parent, early=early)
            reached = orders.stopped
            orders.clear()
        if not reached:
            break
        restored = factory.empty("restored")
        client.restore(backup, restored)
        restored.start()
        assert 0 < restored.init_lsn() <= snapshot.lsn, f"the map was refused at step {number}"
        found = oracle.check(snapshot, restored, changed=20)
        assert found.reported < found.blocks / 2
        increment = client.incremental(restored, parent)
        assert 20 <= increment.blocks < parent.blocks / 2
        client.same(increment, restored)
        factory.destroy_one(restored)
    assert number > 4


def test_resetwal_behind_the_map(faulty: tuple[Cluster, Fault]) -> None:
    """A flush is ahead of pg_control, and all WAL is lost: what begins now is behind the map."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 4000000))")
    orders.order(f"{MAP}$", Kind.SYNC, Action.STOP_AFTER, number=2)  # pages, header
    with beside(cluster.checkpoint, killed=cluster):
        orders.wait()
        cluster.sql(CHANGE)
        cluster.evict()
        cluster.kill_all()
    orders.clear()
    (cluster.data / "postmaster.pid").unlink()
    for path in (cluster.data / "pg_wal").iterdir():
        if path.is_file():
            path.unlink()
    ended = mapfile.field(cluster.map.read_bytes(), "redo")
    cluster.run("pg_resetwal", "-f", cluster.data)
    assert lsn.parse(cluster.control()["Latest checkpoint's REDO location"]) < ended
    cluster.start()
    safe(snapshot, cluster)


def test_resetwal_removes_the_map_durably(faulty: tuple[Cluster, Fault]) -> None:
    """It must not come back after a loss of power: what begins now can be behind it."""
    cluster, orders = faulty
    cluster.checkpoint()
    cluster.stop()
    control = cluster.data / "global/pg_control"
    old = control.read_bytes()
    orders.order("/global$", Kind.SYNC, Action.FAIL)
    done = cluster.run("pg_resetwal", cluster.data, check=False, env=cluster.env)
    assert done.returncode != 0, "the directory was not synced"
    assert not cluster.map.exists(), "it was synced before the map was removed"
    assert control.read_bytes() == old, "it was synced after pg_control was written"
    orders.order("/global$", Kind.SYNC)
    cluster.run("pg_resetwal", cluster.data, env=cluster.env)
    assert orders.count == 1, "whoever removed it need not have synced"
    assert control.read_bytes() != old


def _removes_the_map_durably(cluster: Cluster, orders: Fault, *argv: str | Path) -> None:
    """A program syncs the directory when the map is gone, and before it writes a block.

    Also where it is gone already: whoever removed it need not have synced.
    """
    before_it = cluster.files()
    for _ in range(2):
        orders.order("/global$", Kind.SYNC, Action.FAIL)
        done = cluster.run(*map(str, argv), check=False, env=cluster.env)
        assert done.returncode != 0, "the directory was not synced"
        assert not cluster.map.exists(), "it was synced before the map was removed"
        assert cluster.files() == before_it, "it was synced after a block was written"
    orders.clear()
    cluster.run(*map(str, argv), env=cluster.env)
    assert cluster.files() != before_it


def test_checksums_removes_the_map_durably(factory: Factory) -> None:
    """It must not come back after a loss of power: an interrupted run leaves no other trace."""
    cluster = factory.create(start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.checkpoint()
        cluster.stop()
        assert cluster.map.exists()
        argv = ("pg_checksums", "--enable", "--no-sync", "-D", cluster.data)
        _removes_the_map_durably(cluster, orders, *argv)


def test_rewind_removes_the_map_durably(factory: Factory) -> None:
    """The same where blocks are taken from another server, and pg_control comes last."""
    primary = factory.create(checksums=True, start=False)
    with Fault(primary, factory.shared) as orders:
        primary.start()
        primary.sql(TABLE)
        standby = factory.standby(primary)
        standby.catch_up(primary)
        standby.promote()
        standby.checkpoint()
        primary.sql(CHANGE)
        primary.stop()
        standby.stop()
        assert primary.map.exists()
        source = f"--source-pgdata={standby.data}"
        argv = ("pg_rewind", "--no-sync", source, "-D", primary.data)
        _removes_the_map_durably(primary, orders, *argv)


def test_durable_mark_that_fails(faulty: tuple[Cluster, Fault]) -> None:
    """No file that a start would accept may stay behind when what it marks is changed."""
    cluster, orders = faulty
    snapshot = before(cluster)
    base = cluster.data / "base"
    before_it = set(base.iterdir())
    checkpointer = cluster.process("checkpointer")

    def copying() -> bool:
        return any(len(list(path.iterdir())) > 5 for path in set(base.iterdir()) - before_it)

    orders.order(MAP, Kind.WRITE, Action.STOP_BEFORE)
    with beside(lambda: copied(cluster, "d"), killed=cluster):
        while orders.wait() == checkpointer:  # a checkpoint comes first, and one after it
            orders.order(MAP, Kind.WRITE, Action.STOP_BEFORE)
        with cluster.paused("checkpointer"):
            orders.order(MAP, Kind.WRITE | Kind.SYNC, Action.FAIL, onwards=True)
            cluster.wait_for(copying, "the copy")
            cluster.kill_all()
    orders.clear()
    cluster.start()
    refused(snapshot, cluster)


@pytest.mark.parametrize("action", [Action.COUNT, Action.FAIL])
def test_removal_that_is_not_durable(faulty: tuple[Cluster, Fault], action: Action) -> None:
    """A map that is gone may come back with a loss of power, until its directory is synced."""
    cluster, orders = faulty
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 20000) i")
    cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts")
    errors: list[str] = []

    def build() -> None:
        try:
            cluster.sql("REINDEX INDEX t_s")
        except psycopg.Error as error:
            errors.append(str(error))

    orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=20)
    with beside(build):
        orders.wait()
        snapshot = oracle.take(cluster)
        cluster.map.unlink()
        orders.order("/global$", Kind.SYNC, action, onwards=True)
    assert orders.count > 0, "taken for removed, and not synced"
    orders.clear()
    if action == Action.FAIL:
        assert "could not remove file" in "".join(errors), "the change was made all the same"
    else:
        assert not errors
    cluster.checkpoint()
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)


def test_map_that_began_anew_and_stays(faulty_standby: tuple[Cluster, Cluster, Fault]) -> None:
    """Damage is found, the file cannot be removed; a durable mark, and a crash: it began there."""
    primary, standby, orders = faulty_standby
    before = oracle.take(standby, primary=primary)
    standby.stop()
    damaged = bytearray(standby.map.read_bytes())
    damaged[mapfile.first_mark(damaged)] ^= 1
    standby.map.write_bytes(damaged)
    orders.order(MAP, Kind.UNLINK, Action.FAIL, onwards=True)
    standby.start()
    standby.wait_for(
        lambda: "damaged" in standby.value("SELECT reset_reason FROM ptrack_status()"),
        "the loader",
    )
    copied(primary, "d")
    standby.catch_up(primary)
    standby.kill_all()
    orders.clear()
    standby.start()
    standby.restartpoint(primary)  # a second one would decide what the first has to
    first = oracle.take(standby, checkpoint=False, usable=False)
    assert before.lsn < standby.init_lsn(), "it did not begin anew"
    assert standby.init_lsn() <= first.lsn, "the first backup is no parent"
    snapshot = oracle.take(standby, primary=primary)
    primary.sql(CHANGE)
    standby.catch_up(primary)
    oracle.look(first, standby)
    oracle.check(snapshot, standby)


def test_map_that_is_refused_and_stays(faulty_standby: tuple[Cluster, Cluster, Fault]) -> None:
    """It cannot be read, nor removed; a durable mark, and a crash: no start accepts it then."""
    primary, standby, orders = faulty_standby
    snapshot = oracle.take(standby, primary=primary)
    standby.stop()
    orders.order(f"{MAP}$", Kind.READ | Kind.UNLINK, Action.FAIL, onwards=True)
    standby.start()
    orders.clear()
    begun = standby.redo()
    copied(primary, "d")
    standby.catch_up(primary)
    assert standby.redo() == begun, "a flush has come between"
    standby.kill_all()
    standby.start()
    again = oracle.take(standby, primary=primary)
    assert snapshot.lsn < standby.init_lsn() <= again.lsn
    primary.sql(CHANGE)
    standby.catch_up(primary)
    oracle.check(again, standby)


def test_build_that_a_checkpoint_meets(factory: Factory) -> None:
    """What an index has grown by since needs no durable marks when it is filled in."""
    cluster = factory.create(checksums=True, start=False)
    count = "SELECT write_throughs FROM ptrack_status()"
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        cluster.sql('CREATE TABLE t (s text COLLATE "C"); ALTER TABLE t ALTER s SET STORAGE PLAIN')
        cluster.sql("INSERT INTO t SELECT rpad(md5(i::text), 800) FROM generate_series(1, 9000) i")
        snapshot = oracle.take(cluster)
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=20)
        with beside(lambda: cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts")):
            orders.wait()
            cluster.checkpoint()
            begun = cluster.value(count)
            orders.clear()
        marks = cluster.value(count) - begun
        size = len(cluster.relation_bytes("t_s")) // cluster.block_size
        assert size > 800
        assert marks < 40, f"{marks} durable marks for {size} pages"
        cluster.restart("immediate")
        oracle.check(snapshot, cluster)


def test_map_that_cannot_be_read(faulty: tuple[Cluster, Fault]) -> None:
    """An error of the disk while the file is read: it begins anew."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    for number in (1, 2):  # the header, and the pages
        orders.order(MAP, Kind.READ, Action.FAIL, number=number, onwards=True)
        mark = cluster.log_size()
        cluster.start()
        cluster.init_lsn()
        orders.clear()
        log = cluster.log_text(mark)
        assert "could not read map file" in log
        assert "broken map file" in log
        refused(snapshot, cluster)
        snapshot = oracle.take(cluster)
        cluster.sql(CHANGE)
        cluster.stop()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (MAP, errno.EMFILE, "map file"),
        (MAP, errno.ENFILE, "map file"),
        ("backup_label$", errno.ENFILE, 'file "backup_label"'),
        ("backup_label$", errno.EIO, 'file "backup_label"'),
        ("backup_label.old$", errno.ENFILE, 'file "backup_label.old"'),
    ],
)
def test_start_that_cannot_open_a_file(
    faulty: tuple[Cluster, Fault], name: str, error: int, said: str
) -> None:
    """It fails, does not take the file for none, and the map is kept for the next one."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    orders.order(name, Kind.OPEN, Action.FAIL, error=error, onwards=True)
    log = cluster.start_fails()
    assert f"FATAL:  ptrack init: could not open {said}" in log
    orders.clear()
    cluster.start()
    oracle.check(snapshot, cluster, changed=20)


def test_a_new_map_that_cannot_be_renamed_is_told_to_the_log_alone(factory: Factory) -> None:
    """Not to the client whose copy has it written: it need not read, and the map's lock is held."""
    cluster = factory.create(checksums=True, start=False, max_worker_processes=0)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        cluster.sql(CHANGE)
        cluster.restart(ptrack__map_size=3)
        orders.order(f"{MAP}.tmp", Kind.RENAME, Action.FAIL, onwards=True)
        mark = cluster.log_size()
        notices: list[str | None] = []
        with cluster.connect() as connection:
            connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
            strategy = "STRATEGY file_copy" if cluster.major >= 15 else ""
            connection.execute(f"CREATE DATABASE d {strategy}")
            orders.clear()
        assert not notices
        log = cluster.log_text(mark)
        assert "could not rename file" in log
        assert "WARNING:  ptrack: could not write map file" in log
        oracle.check(snapshot, cluster, changed=20)


@pytest.mark.parametrize("name", ["backup_label", "backup_label.old"])
def test_start_that_cannot_read_a_label(cluster: Cluster, name: str) -> None:
    """A directory can be opened, and not be read."""
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    system.make_dir(cluster.data / name)
    log = cluster.start_fails()
    assert f'FATAL:  ptrack init: could not read file "{name}"' in log
    (cluster.data / name).rmdir()
    cluster.start()
    oracle.check(snapshot, cluster, changed=20)


def test_flush_that_cannot_read_the_old_map(factory: Factory) -> None:
    """Of another size, it is replaced when all of it has been read, and not before."""
    cluster = factory.create(checksums=True, start=False, max_worker_processes=0)  # no loader
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        cluster.sql(CHANGE)
        cluster.restart(ptrack__map_size=3)
        cluster.sql(MORE)
        orders.order(f"{MAP}$", Kind.OPEN, Action.FAIL, error=errno.EACCES)
        cluster.checkpoint()
        assert orders.count > 0, "nobody has tried"
        orders.clear()
        cluster.checkpoint()
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=20)


def test_start_that_cannot_write_the_header(factory: Factory) -> None:
    """What pg_control will not say again is noted before anything is replayed, or the map goes."""
    cluster = factory.create(checksums=True, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        cluster.kill_all()
        cluster.write("standby.signal", "")
        orders.order(f"{MAP}$", Kind.WRITE, Action.FAIL)
        cluster.start()
        assert orders.count == 1
        orders.clear()
        assert "ptrack init: could not write map file" in cluster.log_text()
        assert cluster.init_lsn() > snapshot.lsn, "the parent is taken"
        cluster.promote()
        refused(snapshot, cluster)


# ---- writers held up


def test_written_and_not_marked_yet(faulty: tuple[Cluster, Fault]) -> None:
    """A query sees what is on disk although its writer has not come to the mark."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    orders.order(cluster.path_of("t"), Kind.WRITE, Action.STOP_AFTER)
    with beside(cluster.evict) as thread:
        orders.wait()
        comparison = oracle.look(snapshot, cluster)
        assert comparison.changed > 0, "nothing was written"
        orders.clear()
        while thread.is_alive():
            oracle.look(snapshot, cluster)
    oracle.check(snapshot, cluster, changed=20)


def test_written_and_killed_before_the_mark(faulty: tuple[Cluster, Fault]) -> None:
    cluster, orders = faulty
    cluster.reload(full_page_writes=False)
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    orders.order(cluster.path_of("t"), Kind.WRITE, Action.STOP_AFTER)
    with beside(cluster.evict, killed=cluster):
        orders.wait()
        cluster.kill_all()
    orders.clear()
    cluster.start()
    oracle.check(snapshot, cluster)


def test_mark_that_comes_late(faulty: tuple[Cluster, Fault]) -> None:
    """A block is marked for an old backup when its neighbours are marked for a new one."""
    cluster, orders = faulty
    pages(cluster)
    oracle.take(cluster)
    grow = f"INSERT INTO t SELECT 0, repeat('x', {cluster.wide})"
    orders.order(cluster.path_of("t"), Kind.WRITE, Action.STOP_AFTER)
    with beside(lambda: cluster.sql(grow)) as thread:
        orders.wait()
        orders.clear()
        thread.join(5)
        snapshot = oracle.take(cluster)
        cluster.sql("DELETE FROM t WHERE ctid = '(7, 1)'")  # not by way of the new block
        cluster.checkpoint()
    oracle.check(snapshot, cluster)


def test_marked_while_a_flush_writes(factory: Factory) -> None:
    """Whatever the flush has come to: a mark is in this one or in the next."""
    cluster = factory.create(checksums=True, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        pages(cluster)
        for number in range(1, STEPS // 2):
            snapshot = oracle.take(cluster)
            cluster.sql(f"DELETE FROM t WHERE ctid = '({number}, 1)'")  # and no hint bits
            orders.order(MAP, Kind.WRITE, Action.STOP_AFTER, number=number)
            with beside(cluster.checkpoint) as flush:
                while flush.is_alive() and not orders.stopped:
                    flush.join(0.002)
                reached = orders.stopped
                if reached:  # not the last page, which a look at the file's end finds
                    cluster.sql(f"DELETE FROM t WHERE ctid = '({STEPS - 1 - number}, 1)'")
                    with beside(cluster.evict) as writer:
                        writer.join(1)
                        orders.clear()
                orders.clear()
            if not reached:
                break
            cluster.checkpoint()
            cluster.kill_all()
            cluster.start()
            oracle.check(snapshot, cluster, changed=2)
        assert number > 2


@pytest.mark.parametrize("crash", [False, True], ids=["on", "killed"])
def test_backup_starts_while_a_build_is_held_up(
    faulty: tuple[Cluster, Fault], *, crash: bool
) -> None:
    """Pages past the buffer pool, about to be written when a backup begins, written after it.

    Their WAL, where it came before, is behind the redo point of that backup.
    """
    cluster, orders = faulty
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 20000) i")
    cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts")
    oracle.take(cluster)
    written = 0
    for number in (1, 2, 5, 20):
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AROUND, number=number)
        with beside(lambda: cluster.sql("REINDEX INDEX t_s"), killed=cluster if crash else None):
            pid = orders.wait()
            snapshot = oracle.take(cluster)
            orders.go_on()
            assert orders.wait() == pid
            written += oracle.look(snapshot, cluster).changed  # not if it is zeros
            if crash:
                cluster.kill_all()
            orders.clear()
        if crash:
            cluster.start()
        oracle.check(snapshot, cluster, changed=0)
    assert written >= 2


@pytest.mark.parametrize("crash", [False, True], ids=["on", "killed"])
def test_backup_starts_with_a_page_on_its_way(
    faulty: tuple[Cluster, Fault], *, crash: bool
) -> None:
    """A build goes on to its next page while a backup begins.

    It has no WAL, or its WAL is behind the redo point of that backup.
    """
    cluster, orders = faulty
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    kind = "" if crash else "UNLOGGED"
    rows = "generate_series(1, 500) i"
    cluster.sql(f"CREATE {kind} TABLE t AS SELECT i, md5(i::text) AS s FROM {rows}")
    oracle.take(cluster)
    orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AFTER, number=2)
    with beside(
        lambda: cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts"),
        killed=cluster if crash else None,
    ):
        pid = orders.wait()
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AFTER)
        snapshot = oracle.take(cluster)
        assert orders.wait() == pid
        if crash:
            cluster.kill_all()
        orders.clear()
    if crash:
        cluster.start()
    oracle.check(snapshot, cluster, changed=0)


def test_flush_with_a_page_on_its_way(faulty: tuple[Cluster, Fault]) -> None:
    """A build goes on within a batch, whose WAL is behind a flush, while that flush is made.

    Either the flush marks its next page or the build does, before it is written.
    """
    cluster, orders = faulty
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 500) i")
    oracle.take(cluster)
    orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AFTER, number=2)
    with beside(lambda: cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts"), killed=cluster):
        pid = orders.wait()
        cluster.flush_wal()  # the batch's own does not end at the redo point
        with beside(cluster.checkpoint) as flush:
            flush.join(10)
            orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AROUND)
            assert orders.wait() == pid
        snapshot = oracle.take(cluster, checkpoint=False)
        orders.go_on()
        assert orders.wait() == pid
        assert oracle.look(snapshot, cluster).changed > 0, "nothing was written"
        cluster.kill_all()
        orders.clear()
    cluster.start()
    oracle.check(snapshot, cluster)


def test_backup_starts_amid_a_batch(faulty: tuple[Cluster, Fault]) -> None:
    """Pages of one batch are logged together and then written one by one.

    A backup starts after the first ones; the others, whose WAL is behind its redo point, are
    written and not redone after a crash.
    """
    cluster, orders = faulty
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 20000) i")
    cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts")
    oracle.take(cluster)
    orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=20)
    with beside(lambda: cluster.sql("REINDEX INDEX t_s"), killed=cluster):
        orders.wait()
        snapshot = oracle.take(cluster)
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_AFTER, number=6)
        orders.wait()
        assert oracle.look(snapshot, cluster).changed >= 4
        cluster.kill_all()
        orders.clear()
    cluster.start()
    oracle.check(snapshot, cluster, changed=4)


@pytest.mark.parametrize(
    ("relation", "statement", "kind", "number"),
    [
        ("t_s", "CREATE INDEX t_s ON t (s) TABLESPACE ts", Kind.OPEN, 9),
        ("t_s", "CREATE INDEX t_s ON t (s) TABLESPACE ts", Kind.WRITE, 1),
        ("t", "ALTER TABLE t SET TABLESPACE ts", Kind.OPEN, 9),
    ],
    ids=["build", "gap", "move"],
)
def test_backup_asks_for_what_is_logged(
    factory: Factory,
    faulty: tuple[Cluster, Fault],
    relation: str,
    statement: str,
    kind: Kind,
    number: int,
) -> None:
    """Pages are logged, a backup begins behind that and asks, they are written, and it copies.

    Nothing redoes them where it is restored, and the file has not been as long when it asked. The
    first write of a btree is of zeros before the page that is logged: the metapage comes last.
    """
    cluster, orders = faulty
    if kind == Kind.OPEN and cluster.segment_blocks > 100:
        pytest.skip("needs a build with small segments")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT md5(i::text) AS s FROM generate_series(1, 20000) i")
    cluster.sql("VACUUM (FREEZE) t")
    parent = client.full(cluster)
    with contextlib.ExitStack() as build:

        def finish() -> None:
            orders.clear()
            build.close()

        # of a new segment: between the log and the write
        where = "pg_tblspc/" if kind == Kind.OPEN else "/ts/PG_"
        orders.order(where, kind, Action.STOP_BEFORE, number=number)
        build.enter_context(beside(lambda: cluster.sql(statement)))
        orders.wait()
        written = sum(
            path.stat().st_size for path in (cluster.root / "ts").rglob("*") if path.is_file()
        )
        backup = client.incremental(cluster, parent, early=finish)
    query = "SELECT (page_header(get_raw_page(%s, %s))).lsn::text"
    page = 1 if kind == Kind.WRITE else written // cluster.block_size
    logged = lsn.parse(cluster.value(query, relation, page))
    assert logged <= backup.start, "it is redone"
    restored = factory.empty("restored")
    client.restore(backup, restored)
    restored.start()
    for each in (cluster, restored):
        each.checkpoint()
    assert _content(restored, relation) == _content(cluster, relation)
    verify.whole(restored)


def _content(cluster: Cluster, relation: str) -> list[bytes]:
    """Pages without their checksum, and the hole in them, which an image in WAL leaves out."""
    content, size = cluster.relation_bytes(relation), cluster.block_size
    pages = [bytearray(content[at : at + size]) for at in range(0, len(content), size)]
    for page in pages:
        lower, upper = struct.unpack_from("<HH", page, 12)
        page[8:10] = bytes(2)
        page[lower:upper] = bytes(upper - lower)
    return [bytes(page) for page in pages]


@pytest.mark.parametrize("inner", [False, True], ids=["transaction", "subtransaction"])
@pytest.mark.parametrize(
    ("where", "kind", "number"),
    [
        pytest.param("pg_tblspc/", Kind.OPEN, 9, id="segment"),
        pytest.param("/ts/PG_", Kind.WRITE, 20, id="page"),
    ],
)
def test_what_is_logged_and_fails(
    faulty: tuple[Cluster, Fault],
    where: str,
    kind: Kind,
    number: int,
    *,
    inner: bool,
) -> None:
    """A build that fails between the log and the write leaves nothing published.

    Of a new segment, or of a page within one.
    """
    cluster, orders = faulty
    if kind == Kind.OPEN and cluster.segment_blocks > 100:
        pytest.skip("needs a build with small segments")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT md5(i::text) AS s FROM generate_series(1, 20000) i")
    snapshot = oracle.take(cluster)

    def reported(since: int) -> list[str]:
        return [row.path for row in cluster.pagemapset(since) if row.path.startswith("pg_tblspc")]

    with cluster.connect() as connection:
        if inner:
            connection.execute("BEGIN; SAVEPOINT s")
        orders.order(where, kind, Action.STOP_AND_FAIL, number=number, error=errno.ENOSPC)
        with beside(
            lambda: connection.execute("CREATE INDEX t_s ON t (s) TABLESPACE ts"),
            fails=(psycopg.errors.DiskFull,),
        ):
            orders.wait()
            assert reported(cluster.position()), "nothing is published"
            oracle.look(snapshot, cluster)
            orders.clear()
        if inner:
            connection.execute("ROLLBACK TO s")
        cluster.checkpoint()
        cluster.checkpoint()
        assert not reported(cluster.redo())
        oracle.look(snapshot, cluster)
    oracle.check(snapshot, cluster)
    cluster.restart("immediate")
    oracle.check(snapshot, cluster)


@contextlib.contextmanager
def _hash_index(factory: Factory) -> Iterator[tuple[Cluster, Fault, str]]:
    """A table with a hash index whose pages stay in the buffer pool, and the index's path."""
    cluster = factory.create(checksums=True, start=False, shared_buffers="16MB")
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.script(["CREATE TABLE t (i int)", "CREATE INDEX t_hash ON t USING hash (i)"])
        cluster.sql("INSERT INTO t SELECT generate_series(1, 2000)")
        yield cluster, orders, cluster.path_of("t_hash")


def _blocks(cluster: Cluster, path: str, since: int) -> set[int]:
    """What is reported of a relation's main fork, by the path of its first segment."""
    found: set[int] = set()
    for row in cluster.pagemapset(since):
        base, _, segment = row.path.partition(".")
        if base == path:
            found |= {int(segment or 0) * cluster.segment_blocks + n for n in row.blocks()}
    return found


def _size(cluster: Cluster, path: str) -> int:
    return len(cluster.file_bytes(path)) // cluster.block_size


GROW_HASH = "INSERT INTO t SELECT generate_series(1, 12000)"


def _gap(factory: Factory) -> tuple[int, int, int]:
    """When it grows by a page with zeros before it: its first write, blocks then, and that page.

    As the files say, on a cluster of its own: what is reported is left to the test.
    """
    with _hash_index(factory) as (cluster, orders, path):
        begun: tuple[int, int] | None = None
        size = now = _size(cluster, path)
        orders.order(path, Kind.WRITE, Action.STOP_AFTER, onwards=True)
        with beside(lambda: cluster.sql(GROW_HASH)):
            for _ in range(200):
                orders.wait()
                now = _size(cluster, path)
                grown = now > size + 1
                if grown and begun is None:
                    begun = (orders.count, size)
                written = any(cluster.file_bytes(path)[-cluster.block_size :])
                if begun is not None and written:
                    break
                if not grown or now % cluster.segment_blocks != 0:
                    begun = None  # a gap goes on over segments only
                size = now
                orders.go_on()
            orders.clear()
        factory.destroy_one(cluster)
    if begun is None:
        pytest.fail("no page has a gap before it")
    return *begun, now - 1


def test_query_amid_a_gap_of_zeros(factory: Factory) -> None:
    """A hash index has its last new page logged and written; those before it become zeros.

    That page is in the answer at each step of that, for a backup that begins after its record, and
    afterwards in that of no later one.
    """
    number, size, last = _gap(factory)
    with _hash_index(factory) as (cluster, orders, path):
        snapshot = oracle.take(cluster)
        orders.order(path, Kind.WRITE, Action.STOP_AROUND, number=number, onwards=True)
        with beside(lambda: cluster.sql(GROW_HASH)):
            orders.wait()
            assert _size(cluster, path) == size
            logged = cluster.position()
            while _size(cluster, path) <= last:
                assert last in _blocks(cluster, path, logged), f"page {last} is not expected"
                oracle.look(snapshot, cluster)
                orders.go_on()
                orders.wait()
            content = cluster.file_bytes(path)
            page = slice(last * cluster.block_size, (last + 1) * cluster.block_size)
            assert any(content[page]), "it is not written"
            gap = content[size * cluster.block_size : page.start]
            assert gap, "there is no gap"
            assert not any(gap), "it has been written to"
            assert {*range(size, last), last} <= _blocks(cluster, path, logged)
            oracle.look(snapshot, cluster)
            orders.clear()
        oracle.check(snapshot, cluster)
        cluster.checkpoint()
        assert last not in _blocks(cluster, path, cluster.redo()), "it is still published"
        cluster.restart("immediate")
        oracle.check(snapshot, cluster)


@pytest.mark.parametrize(
    "action", [Action.FAIL, Action.FAIL_HALFWAY], ids=["nothing", "half a page"]
)
def test_full_disk_amid_a_gap_of_zeros(factory: Factory, action: Action) -> None:
    """The disk is full when the gap or the page is written, in a segment that is there.

    The index stays. Of what has failed there may be a half: it is reported, until its process
    changes something else. What is logged and will not be written is not expected any more.
    """
    number, size, last = _gap(factory)
    with _hash_index(factory) as (cluster, orders, path):
        assert size % cluster.segment_blocks, "the segment is not there"
        end = size - size % cluster.segment_blocks + cluster.segment_blocks
        failed = min(last, end - 1)
        snapshot = oracle.take(cluster)
        orders.order(path, Kind.WRITE, action, number=number, error=errno.ENOSPC)
        with cluster.connect() as connection:
            with pytest.raises(psycopg.errors.DiskFull):
                connection.execute(GROW_HASH)
            orders.clear()
            half = action == Action.FAIL_HALFWAY
            on_disk = failed * cluster.block_size + cluster.block_size // 2
            assert (len(cluster.file_bytes(path)) == on_disk) == half, "it was another write"
            oracle.look(snapshot, cluster)
            found = _blocks(cluster, path, cluster.position())
            assert (failed in found) == half
            assert last not in found - {failed}, "it is still expected"
            connection.execute("CREATE TABLE other AS SELECT 1")
            oracle.check(snapshot, cluster)
            cluster.checkpoint()
            assert not _blocks(cluster, path, cluster.redo()), "what has failed is still in flight"
        cluster.restart("immediate")
        oracle.check(snapshot, cluster)
        cluster.sql(GROW_HASH)
        oracle.check(snapshot, cluster)
        assert cluster.value("SELECT count(*) FROM t WHERE i = 77") == 2


def test_what_is_logged_is_reported_once(factory: Factory) -> None:
    """A build is over when all of it is written, not when its transaction ends."""
    cluster = factory.create(checksums=True)
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE TABLE t AS SELECT md5(i::text) AS s FROM generate_series(1, 20000) i")
    before_it = cluster.redo()

    def reported(since: int) -> list[str]:
        return [row.path for row in cluster.pagemapset(since) if row.path.startswith("pg_tblspc")]

    with cluster.connect(autocommit=False) as connection:
        connection.execute("CREATE INDEX t_s ON t (s) TABLESPACE ts")
        assert reported(before_it)
        cluster.checkpoint()
        cluster.checkpoint()
        assert not reported(cluster.redo())


def test_overwritten_past_the_pool(factory: Factory) -> None:
    """A page that a build made room for before a backup began, and fills in at its end.

    It is not at the end of the file, and its WAL is lost.
    """
    cluster = lazy_cluster(factory, start=False, fsync=True)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        rows = "generate_series(1, 20000) i"
        cluster.sql(f"CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM {rows}")
        cluster.sql("CREATE INDEX t_s ON t (s) TABLESPACE ts")
        orders.order("/ts/PG_", Kind.WRITE)
        cluster.sql("REINDEX INDEX t_s")
        writes = orders.count
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=writes // 2)
        with beside(lambda: cluster.sql("REINDEX INDEX t_s"), killed=cluster):
            orders.wait()
            snapshot = oracle.take(cluster)
            with cluster.paused("walwriter", "background writer", "checkpointer"):
                orders.order("/ts/PG_", Kind.SYNC, Action.STOP_BEFORE)
                orders.wait()
                cluster.kill_all()
            orders.clear()
        found = oracle.compare(snapshot, cluster.files(), []).lost
        first = min(
            (one.path.split("."), one.block) for one in found if one.path.startswith("pg_tblspc")
        )
        assert len(first[0]) == 1, "no page of the file's beginning is overwritten"
        cluster.start()
        oracle.check(snapshot, cluster, changed=20)


@pytest.mark.parametrize(
    "method", ["copy", pytest.param("clone", marks=pytest.mark.major(since=18))]
)
def test_backup_starts_while_a_directory_is_copied(
    faulty: tuple[Cluster, Fault], method: str
) -> None:
    """Half of the files of a new database are there when a backup begins."""
    cluster, orders = faulty
    if method == "clone":
        cluster.configure(file_copy_method=method)
        cluster.restart()
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE DATABASE d")
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i", database="d")
    for number in (3, 100):
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=number)
        with beside(lambda: cluster.sql("ALTER DATABASE d SET TABLESPACE ts")) as thread:
            while thread.is_alive() and not orders.stopped:
                thread.join(0.002)
            assert orders.stopped, f"{orders.count} writes only"
            snapshot = oracle.take(cluster)
            orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=20)
            orders.wait()
            oracle.look(snapshot, cluster)
            orders.clear()
        oracle.check(snapshot, cluster)
        cluster.sql("ALTER DATABASE d SET TABLESPACE pg_default")


def test_backup_starts_while_a_directory_is_copied_without_fsync(factory: Factory) -> None:
    """Its end is told as well: the process has other blocks in flight soon, and no copy."""
    cluster = factory.create(checksums=True, start=False, fsync=False)
    with Fault(cluster, factory.shared) as orders, contextlib.ExitStack() as stack:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        cluster.sql("CREATE DATABASE d")
        connection = stack.enter_context(cluster.connect())
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=3)
        with beside(lambda: connection.execute("ALTER DATABASE d SET TABLESPACE ts")):
            orders.wait()
            snapshot = oracle.take(cluster)
            orders.clear()
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 20000)")
        oracle.check(snapshot, cluster, changed=100)


@pytest.mark.major(since=15)
@pytest.mark.parametrize("strategy", ["wal_log", "file_copy"])
def test_backup_starts_while_a_database_is_dropped(factory: Factory, strategy: str) -> None:
    """It holds files that are gone later, whose paths another database takes."""
    cluster = lazy_cluster(factory, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql("CREATE DATABASE d OID = 20001")
        cluster.script([f"CREATE TABLE m{i} (a int, b int)" for i in range(200)], database="d")
        cluster.checkpoint()
        orders.order("base/20001", Kind.UNLINK, Action.STOP_BEFORE)
        with beside(lambda: cluster.sql("DROP DATABASE d")):
            orders.wait()
            snapshot = oracle.take(cluster)
            orders.clear()
        cluster.sql(f"CREATE DATABASE d OID = 20001 STRATEGY {strategy}")
        cluster.checkpoint()
        with lost(cluster, "SELECT 1", database="d") as connection:
            for i in range(60):
                connection.execute(f"CREATE TABLE f{i} (a int, b int)")
        oracle.check(snapshot, cluster)


def test_backup_starts_while_a_database_moves(factory: Factory) -> None:
    """It holds the files that are left behind; they come again, shorter, and grow by zeros."""
    cluster = lazy_cluster(factory, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        cluster.sql("CREATE DATABASE d")
        pages(cluster, database="d")
        cluster.checkpoint()
        path = cluster.path_of("t", database="d")
        orders.order("/ts/PG_", Kind.WRITE, Action.STOP_BEFORE, number=3)
        with beside(lambda: cluster.sql("ALTER DATABASE d SET TABLESPACE ts")):
            orders.wait()
            snapshot = oracle.take(cluster)
            orders.clear()
        assert path in snapshot.content
        cluster.sql("DELETE FROM t", database="d")
        cluster.sql("VACUUM t", database="d")
        cluster.sql("ALTER DATABASE d SET TABLESPACE pg_default")
        assert cluster.path_of("t", database="d") == path
        cluster.checkpoint()
        grow_and_lose(cluster, "t", 12, database="d")
        oracle.check(snapshot, cluster, changed=12)


def test_backup_starts_while_a_move_fails(factory: Factory) -> None:
    """It holds files of the new place, which goes; they come again, shorter, and grow by zeros."""
    cluster = factory.create(
        checksums=True, start=False, shared_buffers="16MB", wal_writer_delay="10s"
    )
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        cluster.sql("CREATE DATABASE d")
        pages(cluster, database="d")
        cluster.checkpoint()  # the move's own writes nothing then
        move = "ALTER DATABASE d SET TABLESPACE ts"
        copy = "/ts/PG_"
        orders.order(copy, Kind.WRITE)
        cluster.sql(move)
        writes = orders.count
        path = cluster.path_of("t", database="d")
        cluster.sql("ALTER DATABASE d SET TABLESPACE pg_default")
        cluster.checkpoint()
        # nearly all of it is there then; the table is neither copied last nor left out
        orders.order(copy, Kind.WRITE, Action.STOP_BEFORE, number=writes - 5)
        with beside(lambda: cluster.sql(move), fails=(psycopg.errors.DiskFull,)):
            orders.wait()
            snapshot = oracle.take(cluster)
            sizes = {name: len(content) for name, content in snapshot.content.items()}
            orders.order(copy, Kind.WRITE, Action.FAIL, error=errno.ENOSPC, onwards=True)
            orders.go_on()
        orders.clear()
        copied = [size for name, size in sizes.items() if name.partition(".")[0] == path]
        assert sum(copied) >= 12 * cluster.block_size
        assert not (cluster.data / path).exists(), "the move has not failed"
        cluster.sql("DELETE FROM t", database="d")
        cluster.sql("VACUUM t", database="d")
        cluster.sql(move)
        assert cluster.path_of("t", database="d") == path
        cluster.checkpoint()
        grow_and_lose(cluster, "t", 12, database="d")
        oracle.check(snapshot, cluster, changed=12)


def test_database_is_dropped_when_it_has_been_found(faulty: tuple[Cluster, Fault]) -> None:
    """Its directory is gone when it is to be read: no error, and nothing else is missed."""
    cluster, orders = faulty
    cluster.sql("CREATE DATABASE d")
    oid = cluster.value("SELECT oid FROM pg_database WHERE datname = 'd'")
    snapshot = oracle.take(cluster)
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS i")
    cluster.checkpoint()
    found: list[oracle.PageMap] = []
    errors: list[str] = []

    def ask() -> None:
        try:
            found.extend(cluster.pagemapset(snapshot.lsn))
        except psycopg.Error as error:
            errors.append(str(error))

    orders.order(f"base/{oid}$", Kind.OPENDIR, Action.STOP_BEFORE)
    with beside(ask):
        pid = orders.wait()
        query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
        assert "pagemapset" in cluster.value(query, pid)
        (cluster.data / f"base/{oid}").rename(cluster.root / "gone")
        orders.clear()
    (cluster.root / "gone").rename(cluster.data / f"base/{oid}")
    assert not errors
    assert not any(row.path.startswith(f"base/{oid}/") for row in found)
    _nothing_missed(snapshot, cluster, found, changed=12)


def test_what_left_is_not_marked_for_ever(cluster: Cluster) -> None:
    """After a move and a drop nothing of them is reported to later parents."""
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE DATABASE d")
    with cluster.connect() as connection:
        connection.execute("ALTER DATABASE d SET TABLESPACE ts")
        with pytest.raises(psycopg.Error):
            connection.execute("BEGIN; DROP DATABASE d")
        connection.rollback()
        connection.execute("ALTER DATABASE d SET TABLESPACE pg_default")
        snapshot = oracle.take(cluster)
        cluster.checkpoint()
        assert oracle.look(snapshot, cluster).reported < 20


def test_page_zeroed_that_a_flush_left_before_its_header(factory: Factory) -> None:
    """Whoever reads the map has the header count it."""
    cluster = factory.create(checksums=True, fsync=True, start=False, ptrack__map_size=8)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        for i in range(20):
            cluster.sql(f"CREATE TABLE more{i} AS SELECT 1 AS a")
        orders.order(MAP, Kind.SYNC, Action.STOP_BEFORE)
        with beside(cluster.checkpoint, killed=cluster):
            orders.wait()
            cluster.kill_all()
        orders.clear()
        counted, found = _pages_in_use(cluster)
        assert len(found) > counted, "the flush has left none"
        cluster.start()
        assert cluster.init_lsn() <= snapshot.lsn  # and all pages are read
        counted, found = _pages_in_use(cluster)
        assert len(found) == counted
        _zero_and_start(cluster, found[:1])
        refused(snapshot, cluster)


def test_pages_zeroed_that_were_written_since_the_header(factory: Factory) -> None:
    """Durable marks add pages between flushes; the header counts them."""
    cluster = factory.create(checksums=True, start=False, ptrack__map_size=8)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        cluster.sql(CHANGE)
        cluster.checkpoint()
        flushed = _pages_in_use(cluster)[1]
        orders.order("base/", Kind.WRITE, Action.STOP_BEFORE, number=5)
        with beside(lambda: copied(cluster, "d"), killed=cluster):
            orders.wait()
            cluster.kill_all()
        orders.clear()
        added = len(_pages_in_use(cluster)[1]) - len(flushed)
        assert added > 10
        _zero_and_start(cluster, flushed[:added])
        refused(snapshot, cluster)


def _pages_in_use(cluster: Cluster) -> tuple[int, list[int]]:
    """How many the header counts, and those that there are."""
    content = cluster.map.read_bytes()
    return mapfile.field(content, "used"), mapfile.in_use(content)


def _zero_and_start(cluster: Cluster, pages: list[int]) -> None:
    """Kill the server, lose pages of the map, and start."""
    if cluster.running:
        cluster.kill_all()
    mapfile.lay(cluster.map, pages)
    cluster.start()


def test_durable_mark_that_fails_twice(faulty: tuple[Cluster, Fault]) -> None:
    """When not even the file can be removed it is an error, before anything is copied."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    databases = len(list((cluster.data / "base").iterdir()))
    orders.order(MAP, Kind.WRITE | Kind.SYNC | Kind.UNLINK, Action.FAIL, onwards=True)
    with pytest.raises(psycopg.Error, match="could not remove file"):
        copied(cluster, "d")
    orders.clear()
    assert len(list((cluster.data / "base").iterdir())) == databases
    copied(cluster, "d")
    cluster.kill_all()
    cluster.start()
    safe(snapshot, cluster)


@pytest.mark.major(until=18)  # from 19 on a promotion does not end while the checkpointer is held
def test_promoted_within_a_restartpoint(factory: Factory) -> None:
    """Its redo point lies before the end of the replay, which a parent from then does not know.

    The parent is the old primary's, as of that checkpoint. The standby has changed its free space
    map since, was killed, and finds all that done when it replays once more.
    """
    primary = factory.create(checksums=False)  # with them, a standby does not write such hints
    pages(primary)
    standby = factory.standby(primary, start=False)
    with Fault(standby, factory.shared) as orders:
        standby.start()
        standby.restartpoint(primary)
        parent = oracle.take(primary)
        path = primary.path_of("t")
        primary.sql("DELETE FROM t WHERE i % 2 = 0")
        primary.sql("VACUUM (TRUNCATE false) t")
        standby.catch_up(primary)
        standby.evict()
        standby.kill_all()
        standby.configure(shared_buffers="16MB")  # so that nobody else writes
        standby.start()
        standby.catch_up(primary)
        orders.order("/base/", Kind.WRITE, Action.STOP_BEFORE)
        with beside(standby.checkpoint):
            assert orders.wait() == standby.process("checkpointer")
            standby.promote()
            orders.clear()
    standby.checkpoint()
    # of other tables the primary has hint bits and unused space of its own
    mine = {name: page for name, page in parent.content.items() if name.startswith(path)}
    content = {**standby.files(), **mine}
    snapshot = oracle.Snapshot(lsn=parent.lsn, content=content, block_size=parent.block_size)
    oracle.check(snapshot, standby, changed=20, mask_hints=True)


# ---- a standby whose redo is held up


@pytest.mark.major(until=16)  # later ones have a record of no page at each redo point
@pytest.mark.parametrize("end", ["page", "segment"])
def test_parent_of_the_primary_behind_a_header(factory: Factory, end: str) -> None:
    """The first record from the redo point on changes two pages; one is written between them.

    What was replayed until then ends before the header of a page of WAL, or of a segment, behind
    which the redo point is.
    """
    primary = factory.create(checksums=False, full_page_writes=False, start=False)
    with contextlib.ExitStack() as stack:
        orders = stack.enter_context(Fault(primary, factory.shared))
        primary.start()
        pages(primary)
        standby = factory.standby(primary, start=False)
        redo = stack.enter_context(Fault(standby, factory.shared))
        standby.start()
        path = primary.path_of("t")
        connection = stack.enter_context(primary.connect())
        connection.execute("VACUUM")  # nothing is left to prune in catalogs
        with primary.connect(autocommit=False) as other:  # the page is not all visible any more
            other.execute("DELETE FROM t WHERE i = 21")
            other.rollback()
        standby.restartpoint(primary)
        standby.evict()
        stack.enter_context(primary.paused("background writer"))  # it logs now and then
        if end == "page":
            boundary = walpage.fill(connection)
        else:
            connection.execute("SELECT pg_switch_wal()")
            boundary = primary.position()
        header = boundary % walpage.PAGE
        assert header in walpage.HEADERS
        orders.order(MAP, Kind.WRITE, Action.STOP_BEFORE)
        with beside(primary.checkpoint):
            orders.wait()  # the redo point is behind, its buffers are written
            redo.order(f"{path}_vm$", Kind.READ, Action.STOP_BEFORE)
            connection.execute("VACUUM t")
            orders.clear()
        snapshot = oracle.take(primary, checkpoint=False)
        assert snapshot.lsn == boundary
        first = primary.records(boundary, primary.flush_wal()).partition("\n")[0]
        assert "VISIBLE" in first, first

        assert redo.wait() == standby.process("startup")
        assert standby.position() == boundary - header
        before = standby.relation_bytes("t")
        standby.evict()
        page = slice(20 * standby.block_size, 21 * standby.block_size)
        assert standby.relation_bytes("t")[page] != before[page], "the first page is not written"
        assert 0 < standby.init_lsn() <= boundary
        _table_is_known(snapshot, standby, path)
        redo.clear()
        standby.catch_up(primary)
        _table_is_known(snapshot, standby, path)
        standby.restartpoint(primary)
        standby.restart()
        _table_is_known(snapshot, standby, path)


def _table_is_known(snapshot: Snapshot, standby: Cluster, path: str) -> None:
    """A look at one table: the other files of a parent of the primary have other hint bits."""
    current = {
        name: content
        for name, content in standby.files().items()
        if name.partition("_")[0].partition(".")[0] == path
    }
    assert oracle.look(snapshot, standby, current=current).changed > 0


# ---- the scan of directories


@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE, errno.ENOTDIR, errno.EIO])
def test_directory_that_cannot_be_opened(faulty: tuple[Cluster, Fault], error: int) -> None:
    """An error, and never a short answer, whichever directory it is."""
    cluster, orders = faulty
    cluster.sql("CREATE DATABASE d")
    query = "SELECT count(*), sum(pagecount) FROM ptrack_get_pagemapset('0/0')"
    whole = cluster.sql(query)
    with cluster.connect() as connection:
        connection.execute(query)
        orders.order("", Kind.OPENDIR)
        connection.execute(query)
        directories = orders.count
        assert directories >= 6
        for number in range(1, directories + 1):
            orders.order(
                "", Kind.OPENDIR, Action.FAIL, number=number, error=error,
                onwards=error == errno.EMFILE,
            )  # fmt: skip
            with pytest.raises(psycopg.Error):
                connection.execute(query)
        orders.clear()
        assert connection.execute(query).fetchall() == whole


def test_directory_of_databases_that_is_gone(faulty: tuple[Cluster, Fault]) -> None:
    """What may be missing is a database's directory, and not the one that has them all."""
    cluster, orders = faulty
    query = "SELECT count(*) FROM ptrack_get_pagemapset('0/0')"
    with cluster.connect() as connection:
        connection.execute(query)
        orders.order("base$", Kind.OPENDIR, Action.FAIL, error=errno.ENOENT)
        with pytest.raises(psycopg.Error, match='directory "base" does not exist'):
            connection.execute(query)
        orders.clear()


def test_file_that_cannot_be_looked_at(cluster: Cluster) -> None:
    """An error, and never an answer without the file."""
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.checkpoint()
    path = cluster.data / cluster.path_of("t")
    kept = path.with_name("kept")
    path.rename(kept)
    path.symlink_to(path.name)  # leads to itself
    with pytest.raises(psycopg.Error, match="could not stat file"):
        cluster.pagemapset(snapshot.lsn)
    path.unlink()
    kept.rename(path)
    oracle.check(snapshot, cluster, changed=20)


@contextlib.contextmanager
def well(what: str) -> Iterator[None]:
    """A query is not to fail of that."""
    error = ""
    try:
        yield
    except psycopg.errors.UndefinedFile as failure:
        error = str(failure)
    assert not error, f"an error for {what}"


def _nothing_missed(
    snapshot: Snapshot, cluster: Cluster, rows: list[oracle.PageMap], *, changed: int = 20
) -> None:
    """By this very answer."""
    found = oracle.compare(snapshot, cluster.files(), rows)
    assert not found.lost, [str(one) for one in found.lost]
    assert found.changed >= changed


def test_file_that_is_gone_when_it_is_looked_at(cluster: Cluster) -> None:
    """No error: it was dropped when its directory had been read."""
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.checkpoint()
    gone = (cluster.data / cluster.path_of("t")).with_name("999999")
    gone.symlink_to("nowhere")  # in the directory, and not there
    with well("a file that is gone"):
        rows = cluster.pagemapset(snapshot.lsn)
    gone.unlink()
    _nothing_missed(snapshot, cluster, rows)
    oracle.check(snapshot, cluster, changed=20)


def test_file_that_is_gone_when_its_tail_is_read(faulty: tuple[Cluster, Fault]) -> None:
    """No error: it was dropped when its size had been asked. The other files are in the answer."""
    cluster, orders = faulty
    pages(cluster, "gone")
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.restart("immediate")
    path = cluster.path_of("gone")
    with cluster.connect() as connection:
        query = f"SELECT * FROM ptrack_get_pagemapset('{lsn.show(snapshot.lsn)}')"
        connection.execute(query)
        orders.order(f"{path}$", Kind.OPEN, Action.FAIL, error=errno.ENOENT, onwards=True)
        with well("a file that is gone"):
            answer = connection.execute(query).fetchall()
        assert orders.count == 1, "its tail was not looked for"
        orders.clear()
    rows = [oracle.PageMap(path=path, pagecount=n, pagemap=bits) for path, n, bits in answer]
    _nothing_missed(snapshot, cluster, rows)
    oracle.check(snapshot, cluster, changed=20)


def test_tablespace_that_leads_nowhere(cluster: Cluster) -> None:
    """An error, and never an answer without what is in it."""
    place = cluster.tablespace("ts")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{place}'")
    pages(cluster)
    cluster.sql("ALTER TABLE t SET TABLESPACE ts")
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.checkpoint()
    kept = place.with_name("kept")
    place.rename(kept)
    with pytest.raises(psycopg.Error, match=r"tablespace directory .* does not exist"):
        cluster.pagemapset(snapshot.lsn)
    kept.rename(place)
    oracle.check(snapshot, cluster, changed=20)


def test_tablespace_that_is_being_dropped(faulty: tuple[Cluster, Fault]) -> None:
    """Its directory goes first and its link soon after: a query waits for that."""
    cluster, orders = faulty
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.checkpoint()
    looks: list[Exception | None] = []

    def look() -> None:
        try:
            oracle.look(snapshot, cluster)
            looks.append(None)
        except psycopg.Error as error:
            looks.append(error)

    orders.order("pg_tblspc/", Kind.UNLINK, Action.STOP_BEFORE)
    with beside(lambda: cluster.sql("DROP TABLESPACE ts")):
        dropper = orders.wait()
        (link,) = (cluster.data / "pg_tblspc").iterdir()
        assert not list(link.iterdir()), "its directory is still there"
        system.stop(dropper)
        orders.order(f"pg_tblspc/{link.name}/", Kind.OPENDIR)
        try:
            with beside(look):
                # it has a second for all its tries
                cluster.wait_for(lambda: bool(looks) or orders.count >= 2, "a second try")
                assert orders.count >= 2, f"it ended before: {looks}"
                system.send(dropper, signal.SIGCONT)
        finally:
            system.send(dropper, signal.SIGCONT)
            orders.clear()
    assert looks == [None]
    oracle.check(snapshot, cluster, changed=20)


def test_write_that_fails_half_way(factory: Factory) -> None:
    """A part of the block is on disk, and nobody has come to mark it.

    The pool takes all there is: nobody else comes to write the block, and mark it when that fails.
    """
    cluster = factory.create(checksums=True, start=False, shared_buffers="16MB")
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
        pages(cluster, pages=8)
        snapshot = oracle.take(cluster)
        path = cluster.path_of("t")
        with cluster.connect() as connection:
            orders.order(f"{path}$", Kind.WRITE, Action.FAIL_HALFWAY, onwards=True)
            connection.execute("UPDATE t SET i = -i WHERE i = 4")
            with pytest.raises(psycopg.errors.IoError, match="could not write"):
                connection.execute("ALTER TABLE t SET TABLESPACE ts")  # writes its buffers first
            half = (cluster.data / path).read_bytes()
            assert half != snapshot.content[path], "nothing of it was written"
            oracle.look(snapshot, cluster)
            failed = orders.count
            connection.execute("CREATE TABLE other AS SELECT 1 AS i")  # the next change
            assert (cluster.data / path).read_bytes() == half
            oracle.look(snapshot, cluster)
            assert orders.count == failed, "the block was written by others"
        orders.clear()
