"""Copies of a cluster whose checkpointer is held up in the middle of the map's flush, restored."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, fault, mapfile, oracle, system
from tests.harness.fault import Action, Fault, Kind, beside
from tests.harness.parent import TABLE, before, refused, safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Backup
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot

    Recovery = Callable[[Cluster, Cluster], None]

pytestmark = pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")

MAP = "global/ptrack.map"
FIRST = "UPDATE first SET i = -i WHERE i % 150 = 0"
MORE = "UPDATE t SET i = -i WHERE i % 80 = 6"
EARLY = "UPDATE t SET i = -i WHERE i % 70 = 1"
HELD = "UPDATE t SET i = -i WHERE i % 90 = 2"
AFTER = "UPDATE t SET x = 'after' WHERE i % 110 = 3"
LATE = "UPDATE t SET x = 'too late' WHERE i % 130 = 4"

#: Where a flush in place is held up: kind and number of the call; is the header written by then.
PLACES = {
    "first pages to be written": (Kind.WRITE, Action.STOP_BEFORE, 1, False),
    "more pages to be written": (Kind.WRITE, Action.STOP_BEFORE, 3, False),
    "pages to be synced": (Kind.SYNC, Action.STOP_BEFORE, 1, False),
    "header to be written": (Kind.SYNC, Action.STOP_AFTER, 1, False),
    "pg_control to be written": (Kind.SYNC, Action.STOP_AFTER, 2, True),
}


def _parent(cluster: Cluster) -> tuple[Snapshot, Backup]:
    """What an increment is to be taken over; then a change that the copy starts behind.

    Nothing reads that table later: hint bits would be logged, and their pages marked by replay.
    """
    cluster.sql(TABLE.replace("TABLE t", "TABLE first"))
    cluster.sql("VACUUM (FREEZE) first")
    snapshot = before(cluster)
    parent = client.full(cluster)
    cluster.sql(FIRST)
    return snapshot, parent


def _early(cluster: Cluster) -> None:
    """Between the start of a backup and the flush that it meets; some of it reaches the disk."""
    cluster.sql(EARLY)
    cluster.sql("VACUUM t")  # no WAL has all of what the free space map becomes
    cluster.sql("CREATE TABLE early AS SELECT generate_series(1, 2000) AS i")
    cluster.evict()


def _held(cluster: Cluster) -> None:
    """While the flush is held up: behind its redo point."""
    cluster.sql(HELD)
    cluster.sql("INSERT INTO early SELECT generate_series(1, 2000)")
    cluster.evict()


def _later(cluster: Cluster) -> None:
    """After the copy: what is restored, a point to restore to, and more."""
    cluster.sql(AFTER)
    cluster.sql("SELECT pg_create_restore_point('here')")
    cluster.sql(LATE)
    cluster.sql("DROP TABLE early")
    cluster.flush_wal()


def _copy(
    cluster: Cluster,
    orders: Fault,
    kind: Kind,
    action: Action,
    number: int = 1,
    *,
    early: Callable[[], object] = lambda: None,
) -> tuple[Backup, bytes]:
    """Copy all files while a flush is held up at a call; with the map as it was before that flush.

    early: what happens first when the backup has started.
    """
    begun: list[bytes] = []
    with contextlib.ExitStack() as flush:

        def hold_up() -> None:
            early()
            _early(cluster)
            begun.append(cluster.map.read_bytes())
            orders.order(MAP, kind, action, number=number)
            flush.enter_context(beside(cluster.checkpoint))
            orders.wait()
            _held(cluster)

        def let_go() -> None:
            assert orders.stopped, "the flush was not held up to the end of the copy"
            orders.clear()
            flush.close()

        copy = client.full(cluster, early=hold_up, late=let_go)
    return copy, begun[0]


def _recovered(cluster: Cluster, source: Cluster, **settings: str) -> None:
    """Start a copy that has been laid out, recover it with the source's WAL, and promote it."""
    cluster.configure(restore_command=f"cp {source.data}/pg_wal/%f %p")
    cluster.configure(settings)
    cluster.write("recovery.signal", "")
    cluster.start()
    cluster.wait_for(lambda: not cluster.in_recovery, "the end of recovery")


def _to_the_end(cluster: Cluster, source: Cluster) -> None:
    _recovered(cluster, source)
    assert cluster.value("SELECT count(*) FROM t WHERE x = 'too late'") > 0
    assert cluster.value("SELECT to_regclass('early')") is None


def _to_a_point(cluster: Cluster, source: Cluster) -> None:
    _recovered(cluster, source, recovery_target_name="here", recovery_target_action="promote")
    assert cluster.value("SELECT count(*) FROM t WHERE x = 'after'") > 0
    assert cluster.value("SELECT count(*) FROM t WHERE x = 'too late'") == 0
    assert cluster.value("SELECT count(*) FROM early") == 4000


RECOVERIES = pytest.mark.parametrize(
    "recover", [_to_the_end, _to_a_point], ids=["to the end", "to a point"]
)


def _serves(cluster: Cluster, snapshot: Snapshot, *parents: Backup) -> None:
    """The map is kept: for a parent of the source, and for increments over its full backups."""
    assert 0 < cluster.init_lsn() <= snapshot.lsn, "the map that came with the copy is refused"
    oracle.check(snapshot, cluster, changed=60)
    for parent in parents:
        client.same(client.incremental(cluster, parent), cluster)
    cluster.sql("UPDATE t SET x = 'new life' WHERE abs(i) % 150 = 5")
    cluster.evict()
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=60)
    for parent in parents:
        client.same(client.incremental(cluster, parent), cluster)


@RECOVERIES
@pytest.mark.parametrize("place", PLACES)
def test_copied_while_a_flush_is_held_up(
    factory: Factory, faulty: tuple[Cluster, Fault], place: str, recover: Recovery
) -> None:
    """It has pages of this flush and not its header, or both: kept, and nothing is missing."""
    cluster, orders = faulty
    kind, action, number, stamped = PLACES[place]
    snapshot, parent = _parent(cluster)
    copy, begun = _copy(cluster, orders, kind, action, number)
    copied = copy.other[MAP]
    assert (copied[: mapfile.PAGE] != begun[: mapfile.PAGE]) == stamped, "held up somewhere else"
    assert (copied[mapfile.PAGE :] != begun[mapfile.PAGE :]) == (
        place != "first pages to be written"
    )
    _later(cluster)
    restored = factory.empty("restored")
    client.restore(copy, restored)
    recover(restored, cluster)
    _serves(restored, snapshot, parent, copy)
    client.restored(factory, client.incremental(restored, copy), restored)


@RECOVERIES
def test_copied_with_half_of_a_page(
    factory: Factory, faulty: tuple[Cluster, Fault], recover: Recovery
) -> None:
    """Kept where the half that is missing has not changed, else refused."""
    cluster, orders = faulty
    snapshot, _ = _parent(cluster)
    copy, begun = _copy(cluster, orders, Kind.WRITE, Action.STOP_HALFWAY)
    assert copy.other[MAP] != begun
    _later(cluster)
    restored = factory.empty("restored")
    client.restore(copy, restored)
    recover(restored, cluster)
    safe(snapshot, restored, changed=60)


@RECOVERIES
@pytest.mark.parametrize("action", [Action.STOP_BEFORE, Action.STOP_AFTER])
def test_copied_while_the_map_is_replaced(
    factory: Factory, faulty: tuple[Cluster, Fault], action: Action, recover: Recovery
) -> None:
    """A flush has failed since the backup started; the next one writes a new file.

    The copy has the old file, with some pages of the flush that failed, or the new one.
    """
    cluster, orders = faulty
    snapshot, parent = _parent(cluster)

    def failed() -> None:
        cluster.sql(MORE)
        orders.order(MAP, Kind.SYNC, Action.FAIL)
        cluster.checkpoint()

    copy, begun = _copy(cluster, orders, Kind.RENAME, action, early=failed)
    assert (copy.other[MAP][: mapfile.PAGE] != begun[: mapfile.PAGE]) == (
        action == Action.STOP_AFTER
    )
    _later(cluster)
    restored = factory.empty("restored")
    client.restore(copy, restored)
    recover(restored, cluster)
    _serves(restored, snapshot, parent, copy)


@RECOVERIES
@pytest.mark.parametrize("action", [Action.STOP_BEFORE, Action.STOP_AFTER])
def test_copied_after_its_own_flush_failed(
    factory: Factory, faulty: tuple[Cluster, Fault], action: Action, recover: Recovery
) -> None:
    """Behind where the copy starts it is refused; the next flush makes it good."""
    cluster, orders = faulty
    snapshot, parent = _parent(cluster)
    orders.order(MAP, Kind.SYNC, Action.FAIL)  # of the checkpoint that the backup starts with
    copy, _ = _copy(cluster, orders, Kind.RENAME, action)
    _later(cluster)
    restored = factory.empty("restored")
    client.restore(copy, restored)
    recover(restored, cluster)
    if action == Action.STOP_AFTER:
        _serves(restored, snapshot, parent, copy)
    else:
        assert restored.init_lsn() > copy.start > snapshot.lsn, "the map is behind, and kept"
        refused(snapshot, restored)


@RECOVERIES
@pytest.mark.parametrize("place", ["more pages to be written", "pg_control to be written"])
def test_base_backup_while_a_flush_is_held_up(
    factory: Factory, faulty: tuple[Cluster, Fault], place: str, recover: Recovery
) -> None:
    """The same, of pg_basebackup, which is stopped before it comes to the map."""
    cluster, orders = faulty
    kind, action, number, stamped = PLACES[place]
    snapshot, parent = _parent(cluster)
    restored = factory.empty("restored")
    orders.order("./global$", Kind.OPENDIR, Action.STOP_BEFORE)
    argv = ("-D", restored.data, "-c", "fast", "--no-sync", "-X", "none")
    with beside(lambda: cluster.run("pg_basebackup", *argv)) as copying:
        sender = orders.wait()
        system.stop(sender)
        _early(cluster)
        begun = cluster.map.read_bytes()
        orders.order(MAP, kind, action, number=number)
        with beside(cluster.checkpoint):
            orders.wait()
            _held(cluster)
            system.send(sender, signal.SIGCONT)
            copying.join(60)
            assert orders.stopped, "the flush was not held up to the end of the copy"
            orders.clear()
    copied = restored.map.read_bytes()
    assert (copied[: mapfile.PAGE] != begun[: mapfile.PAGE]) == stamped, "held up somewhere else"
    assert copied[mapfile.PAGE :] != begun[mapfile.PAGE :]
    restored.adopt()
    _later(cluster)
    recover(restored, cluster)
    _serves(restored, snapshot, parent)
