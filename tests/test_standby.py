"""A standby tracks what it replays; its own files are held against its own map."""

from __future__ import annotations

import dataclasses
import errno
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, fault, lsn, oracle, system, workload
from tests.harness.fault import Action, Fault, Kind, beside
from tests.harness.grown import killed, pages
from tests.harness.parent import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A primary and its standby."""

    primary: Cluster
    standby: Cluster

    def snapshot(self) -> Snapshot:
        """The standby's files at a restartpoint that had nothing to write."""
        return oracle.take(self.standby, primary=self.primary)


def make_pair(factory: Factory, *, checksums: bool = True, **settings: str | bool) -> Pair:
    """A primary with tablespace ``ts`` and a streaming standby."""
    primary = factory.create(checksums=checksums, start=False)
    primary.configure(settings)
    primary.start()
    workload.prepare(primary)
    return Pair(primary=primary, standby=factory.standby(primary))


def _running(_pair: Pair) -> None:
    pass


def _clean(pair: Pair) -> None:
    pair.standby.restart()


def _immediate(pair: Pair) -> None:
    pair.standby.restart("immediate")


def _kill_all(pair: Pair) -> None:
    pair.standby.kill_all()
    pair.standby.start()


def _promote(pair: Pair) -> None:
    pair.standby.promote()


def _kill_and_promote(pair: Pair) -> None:
    pair.standby.kill_all()
    pair.standby.start()
    pair.standby.promote()


_CRASHES = (_immediate, _kill_all, _kill_and_promote)


@pytest.mark.parametrize(
    ("end", "checksums", "settings"),
    [
        pytest.param(_running, False, {}, id="running"),
        pytest.param(_clean, False, {}, id="clean restart"),
        pytest.param(_clean, True, {"full_page_writes": False}, id="clean restart, no fpw"),
        pytest.param(_immediate, True, {"full_page_writes": False}, id="immediate, no fpw"),
        pytest.param(_kill_all, True, {}, id="kill all"),
        pytest.param(_kill_all, False, {}, id="kill all, no checksums"),
        pytest.param(_promote, True, {}, id="promotion"),
        pytest.param(_promote, False, {}, id="promotion, no checksums"),
        pytest.param(_kill_and_promote, True, {"full_page_writes": False}, id="kill, promotion"),
    ],
)
def test_everything(
    factory: Factory,
    end: Callable[[Pair], None],
    *,
    checksums: bool,
    settings: dict[str, str | bool],
) -> None:
    pair = make_pair(factory, checksums=checksums, **settings)
    scenarios = workload.available(pair.primary)
    left_out: list[str] = []
    if end in _CRASHES and not pair.primary.install.replays_dropped_databases:
        left_out = [scenario.name for scenario in scenarios if scenario.databases]
        scenarios = [scenario for scenario in scenarios if not scenario.databases]
    workload.set_up(pair.primary, scenarios)
    snapshot = pair.snapshot()
    workload.change(pair.primary, scenarios)
    pair.standby.catch_up(pair.primary)
    pair.standby.evict()
    assert oracle.compare(snapshot, pair.standby.files(), []).changed > 300
    end(pair)
    if end not in (_promote, _kill_and_promote):
        pair.standby.catch_up(pair.primary)
    # a standby that stops without a new restartpoint forgets what it set hint bits on
    mask = not checksums and end not in (_running, _promote)
    oracle.look(snapshot, pair.standby, mask_hints=mask)
    pair.primary.checkpoint()
    oracle.check(snapshot, pair.standby, mask_hints=mask, changed=300)
    if not pair.standby.in_recovery:
        again = oracle.take(pair.standby)
        pair.standby.sql("UPDATE heap.t SET id = id + 1 WHERE id % 50 = 0")
        oracle.check(again, pair.standby)
    if left_out:
        version = pair.primary.install.version
        pytest.skip(
            f"all else holds, without {', '.join(left_out)}: PostgreSQL {version} does not recover "
            "a standby that crashed after it replayed them"
        )


def _clean_and_promote(pair: Pair) -> None:
    pair.standby.restart()
    pair.standby.catch_up(pair.primary)
    pair.standby.promote()


@pytest.mark.parametrize(
    ("end", "checksums"),
    [
        pytest.param(_clean, False, id="clean restart"),
        pytest.param(_promote, False, id="promotion"),
        pytest.param(_clean_and_promote, False, id="clean restart, promotion"),
        pytest.param(_clean_and_promote, True, id="clean restart, promotion, checksums"),
    ],
)
def test_free_space_and_visibility_map(
    factory: Factory, end: Callable[[Pair], None], *, checksums: bool
) -> None:
    """Written by a standby that makes no restartpoint: the marks of that are in no file.

    Their records name the heap's blocks. Pages of the free space map have LSNs of a time when hints
    were logged, and bits of the visibility map's second page are cleared, which is no new LSN: so
    no look at a page tells that it has changed, nor is it a first one, which is always reported.
    """
    pair = make_pair(factory, checksums=checksums, wal_log_hints=True)
    primary = pair.primary
    # heap blocks that a page of the map has bits for; where they are too many the first one does
    mapped = (primary.block_size - 24) * 4 if primary.block_size <= 8192 else 0
    width, rows = primary.block_size // 10, mapped + 40
    pages(primary)
    primary.script(
        [
            "VACUUM t",
            "CREATE TABLE wide (i int, x text) WITH (fillfactor = 10)",
            f"INSERT INTO wide SELECT i, repeat('x', {width}) FROM generate_series(1, {rows}) i",
            "VACUUM (FREEZE) wide",
        ]
    )
    pair.standby.catch_up(primary)
    for each in (primary, pair.standby):
        each.restart(wal_log_hints=False)
    standby = pair.standby
    snapshot = pair.snapshot()
    primary.sql("DELETE FROM t WHERE i % 2 = 0")
    primary.sql("VACUUM (TRUNCATE false) t")
    primary.sql(f"DELETE FROM wide WHERE ctid = '({mapped + 10}, 1)'")
    standby.catch_up(primary)
    oracle.evict(snapshot, standby, changed=20)
    changed = {("t", "fsm"): 2, ("wide", "vm"): mapped and 1}
    _forks_are_known(snapshot, standby, changed)
    assert standby.redo() == snapshot.lsn
    end(pair)
    if end is _clean:
        standby.catch_up(primary)
        assert standby.redo() == snapshot.lsn, "a restartpoint has flushed the marks"
    mask = not checksums and end is not _promote
    _forks_are_known(snapshot, standby, changed)
    oracle.look(snapshot, standby, mask_hints=mask)
    if end is _clean:
        primary.checkpoint()
        standby.catch_up(primary)
    oracle.check(snapshot, standby, changed=20, mask_hints=mask)
    _forks_are_known(snapshot, standby, changed)
    standby.restart()
    _forks_are_known(snapshot, standby, changed)
    oracle.look(snapshot, standby, mask_hints=mask)


def _forks_are_known(
    snapshot: Snapshot, cluster: Cluster, changed: Mapping[tuple[str, str], int]
) -> None:
    """A block of each fork has changed, and is in the answers under the name of its fork.

    changed: of a relation and its fork, the block.
    """
    found = {(one.path, one.block) for one in oracle.compare(snapshot, cluster.files(), []).lost}
    reported = {row.path: row.blocks() for row in cluster.pagemapset(snapshot.lsn)}
    query = (
        "SELECT relation::text, fork FROM ptrack_get_change_relation_stat(%s) "
        "WHERE database = current_database() AND pages > 0"
    )
    counted = cluster.sql(query, lsn.show(snapshot.lsn))
    for (relation, fork), number in changed.items():
        segment, block = divmod(number, cluster.segment_blocks)
        path = f"{cluster.path_of(relation)}_{fork}{f'.{segment}' if segment else ''}"
        assert (path, block) in found, f"block {number} of the {fork} has not changed"
        assert block in reported.get(path, []), f"block {number} of the {fork} is not reported"
        assert (relation, fork) in counted, f"the {fork} is not counted"


def test_restarts_without_restartpoint(factory: Factory) -> None:
    """Replay from the same redo point over and over: what is there already is skipped."""
    pair = make_pair(factory, full_page_writes=False)
    pair.primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 200) FROM generate_series(1, 900) i")
    snapshot = pair.snapshot()
    pair.primary.sql("UPDATE t SET i = -i WHERE i % 30 = 0")
    pair.standby.catch_up(pair.primary)
    for mode in ("immediate", "immediate", "fast"):
        pair.standby.evict()
        pair.standby.restart(mode)
        pair.standby.catch_up(pair.primary)
        oracle.look(snapshot, pair.standby)
    pair.standby.restartpoint(pair.primary)
    oracle.check(snapshot, pair.standby, changed=20)


def test_images_restored_over_newer_pages(factory: Factory) -> None:
    """Redo brings pages back in the buffer pool alone; on the disk they are ahead of it."""
    pair = make_pair(factory)
    pages(pair.primary)
    snapshot = pair.snapshot()
    pair.primary.sql("DELETE FROM t WHERE i % 8 = 3")  # none at the end of a file
    pair.standby.catch_up(pair.primary)
    pair.standby.evict()
    killed(pair.standby, pair.primary)
    assert oracle.look(snapshot, pair.standby).changed >= 5
    pair.standby.restartpoint(pair.primary)
    oracle.check(snapshot, pair.standby, changed=5)


def test_fresh_standby_is_a_parent_at_once(factory: Factory) -> None:
    """The map came with the base backup and is kept: nothing to wait for."""
    pair = make_pair(factory)
    assert pair.standby.init_lsn() == pair.primary.init_lsn()
    snapshot = oracle.take(pair.standby, checkpoint=False)
    pair.primary.sql("CREATE TABLE t AS SELECT generate_series(1, 2000)")
    pair.standby.restartpoint(pair.primary)
    oracle.check(snapshot, pair.standby)


def test_map_started_on_a_standby(factory: Factory) -> None:
    """Switched on on the standby only: usable from its next restartpoint on."""
    primary = factory.create(checksums=True, ptrack__map_size=0)
    standby = factory.standby(primary, ptrack__map_size=1)
    pair = Pair(primary=primary, standby=standby)
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 99) FROM generate_series(1, 3000) i")
    started = standby.position()
    snapshot = pair.snapshot()
    assert standby.init_lsn() <= snapshot.lsn
    assert standby.init_lsn() > 0
    assert snapshot.lsn >= started
    primary.sql("UPDATE t SET i = -i WHERE i % 77 = 0")
    standby.catch_up(primary)
    standby.evict()
    oracle.look(snapshot, standby)
    standby.restart("immediate")
    standby.catch_up(primary)
    pair.standby.restartpoint(pair.primary)
    oracle.check(snapshot, standby, changed=20)


def test_cascade_after_promotion(factory: Factory) -> None:
    """The old primary's parent serves on the new timeline, and on a standby of it."""
    pair = make_pair(factory)
    pair.primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 200) FROM generate_series(1, 900) i")
    pair.standby.restartpoint(pair.primary)
    parent = client.full(pair.standby)
    snapshot = oracle.take(pair.standby, checkpoint=False)
    pair.primary.sql("UPDATE t SET i = -i WHERE i % 9 = 0")
    pair.standby.catch_up(pair.primary)
    pair.primary.stop()
    pair.standby.promote()
    pair.standby.sql("UPDATE t SET i = i + 1 WHERE i % 5 = 0")
    oracle.check(snapshot, pair.standby, changed=20)
    third = client.restored(factory, client.incremental(pair.standby, parent), pair.standby)
    assert 0 < third.init_lsn() <= parent.start, lsn.show(parent.start)


def _pages_that_differ(cluster: Cluster, before: bytes) -> int:
    size = cluster.block_size
    now = cluster.relation_bytes("t")
    before = before.ljust(len(now), b"\0")  # pages that are new, and not written, are no change
    return sum(before[at : at + size] != now[at : at + size] for at in range(0, len(now), size))


def _promoted_and_killed(factory: Factory, *, images: bool) -> tuple[Cluster, Snapshot, int, int]:
    """A standby that has been; the parent, the end of its recovery and that of its WAL.

    pg_control's minRecoveryPoint is that of the promotion until a checkpoint has ended, and more
    is on disk.
    """
    primary = factory.create(checksums=True, full_page_writes=images)
    pages(primary, pages=60)
    pages(primary, "other", pages=60)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    primary.sql("UPDATE other SET i = -i")
    standby.catch_up(primary)
    primary.stop()  # a checkpoint, of which the standby makes no restartpoint yet
    redo = standby.redo()
    before = standby.relation_bytes("t")
    standby.promote()  # its checkpoint takes 0.1 s for each dirty page
    promoted = standby.flush_wal()
    standby.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
    end = standby.flush_wal()
    oracle.evict(snapshot, standby, changed=7)
    assert _pages_that_differ(standby, before) >= 14, "8 rows, the old ones and the new"
    standby.kill_all()
    assert lsn.parse(standby.control()["Latest checkpoint's REDO location"]) == redo, "it ended"
    standby.write("standby.signal", "")
    standby.configure(primary_conninfo="")
    return standby, snapshot, promoted, end


@pytest.mark.parametrize("images", [False, True], ids=["full_page_writes off", "on"])
def test_promoted_killed_and_a_standby_again(factory: Factory, *, images: bool) -> None:
    """Consistent at the end of its first recovery, it is behind its disk.

    While it is a standby the answer is everything; so it is asked as a primary, too, before and
    after what redo had to do is written.
    """
    standby, snapshot, _, end = _promoted_and_killed(factory, images=images)
    standby.start()
    standby.wait_for(lambda: standby.position() >= end, "replay")
    assert 0 < standby.init_lsn() <= snapshot.lsn
    oracle.look(snapshot, standby)
    standby.promote()
    found = oracle.look(snapshot, standby)
    assert found.reported < found.blocks / 2
    standby.evict()
    oracle.look(snapshot, standby)
    oracle.check(snapshot, standby, changed=7)


def _not_ended_again(_standby: Cluster) -> None:
    pass


def _killed_again(standby: Cluster) -> None:
    standby.kill_all()
    standby.start()


def _stopped(standby: Cluster) -> None:
    standby.restart()


def _crashed(standby: Cluster) -> None:
    standby.kill_child("client backend")


@pytest.mark.parametrize("end", [_not_ended_again, _killed_again, _stopped, _crashed])
def test_asked_before_redo_has_come_to_what_is_on_disk(
    factory: Factory, end: Callable[[Cluster], None]
) -> None:
    """However it ends once more before redo has come there."""
    standby, snapshot, promoted, written = _promoted_and_killed(factory, images=True)
    standby.configure(recovery_target_lsn=lsn.show(promoted), recovery_target_action="pause")
    standby.start()
    end(standby)
    assert standby.position() < written
    assert 0 < standby.init_lsn() <= snapshot.lsn
    oracle.look(snapshot, standby)
    assert "may be consistent before it has come to what is on disk" in standby.log_text()


def test_asked_early_after_a_restartpoint(factory: Factory) -> None:
    standby, snapshot, promoted, written = _promoted_and_killed(factory, images=True)
    standby.configure(recovery_target_lsn=lsn.show(promoted), recovery_target_action="pause")
    standby.start()
    redo = standby.redo()
    standby.checkpoint()
    assert standby.redo() > redo, "no restartpoint"
    _killed_again(standby)
    assert standby.position() < written
    assert 0 < standby.init_lsn() <= snapshot.lsn
    oracle.look(snapshot, standby)


def _stopped_in_crash_recovery(factory: Factory, cluster: Cluster) -> None:
    """Start after a kill, and stop when it has begun to recover: pg_control says that it has.

    The postmaster logs the request before it tells the startup process, which may come to the end
    of a short recovery between the two: that goes on when it has been told.
    """
    with Fault(cluster, factory.shared) as orders:
        orders.order("pg_control$", Kind.WRITE, Action.STOP_AFTER)
        cluster.start(wait=False)
        startup = orders.wait()
        system.stop(startup)
        with beside(lambda: cluster.stop("fast")):
            cluster.wait_for(lambda: system.awaits(startup, signal.SIGTERM), "the request")
            orders.clear()
            system.send(startup, signal.SIGCONT)
    assert cluster.control()["Database cluster state"] == "shut down in recovery"


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_stopped_in_recovery_and_asked_early_as_a_standby(factory: Factory) -> None:
    """It had been promoted, and killed."""
    standby, snapshot, promoted, written = _promoted_and_killed(factory, images=True)
    (standby.data / "standby.signal").unlink()
    _stopped_in_crash_recovery(factory, standby)
    standby.write("standby.signal", "")
    standby.configure(recovery_target_lsn=lsn.show(promoted), recovery_target_action="pause")
    standby.start()
    assert standby.position() < written
    assert 0 < standby.init_lsn() <= snapshot.lsn
    oracle.look(snapshot, standby)


def _killed_without_wal_of_its_own(first: Cluster, second: Cluster) -> None:
    """Kill a primary when its standby has all WAL that it has."""
    with first.paused("walwriter", "background writer", "checkpointer"):
        second.catch_up(first)
        first.kill_all()


def _follows(first: Cluster, second: Cluster) -> None:
    """Let a primary that was killed be the standby of what was its standby."""
    second.promote()
    first.write("standby.signal", "")
    first.configure(primary_conninfo=second.conninfo(), recovery_target_timeline="latest")
    first.start()
    first.catch_up(second)


@pytest.mark.parametrize("stopped", [False, True], ids=["at once", "after a stop in recovery"])
def test_killed_primary_as_a_standby_killed_again(factory: Factory, *, stopped: bool) -> None:
    """Its background writer, which asked while there was none, never moves minRecoveryPoint.

    A test cannot make it write a certain page: another process does, and pg_control is put back.
    """
    pair = make_pair(factory)
    first, second = pair.primary, pair.standby
    pages(first, pages=60)
    snapshot = oracle.take(first)
    _killed_without_wal_of_its_own(first, second)
    if stopped:
        if fault.compiler() is None:
            pytest.skip("needs a C compiler")
        _stopped_in_crash_recovery(factory, first)
    _follows(first, second)
    early = first.position()
    control = (first.data / "global/pg_control").read_bytes()
    second.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
    first.catch_up(second)
    oracle.evict(snapshot, first, changed=7)
    first.configure(primary_conninfo="")
    first.configure(recovery_target_lsn=lsn.show(early), recovery_target_action="pause")
    first.kill_all()
    (first.data / "global/pg_control").write_bytes(control)
    first.start()
    assert first.position() < second.position()
    oracle.look(snapshot, first)


def test_restored_of_a_killed_primary_as_a_standby(factory: Factory) -> None:
    """A base backup of it; a parent begins at a later restartpoint, and only then is it copied.

    Restored, it begins before that parent, and calls itself consistent before it has come to what
    was written after it. As above, pg_control is put back.
    """
    first = factory.create(checksums=True)
    second = factory.standby(first)
    pages(first, pages=60)
    _killed_without_wal_of_its_own(first, second)
    _follows(first, second)
    first.restartpoint(second)
    parents: list[Snapshot] = []
    positions: list[int] = []
    control = b""

    def early() -> None:
        nonlocal control
        parents.append(oracle.take(first, primary=second))
        positions.append(first.position())
        control = (first.data / "global/pg_control").read_bytes()
        second.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
        first.catch_up(second)
        positions.append(first.position())
        oracle.evict(parents[0], first, changed=7)

    backup = client.full(first, early=early)
    (snapshot,) = parents
    consistent, written = positions
    assert backup.start < snapshot.lsn
    other = {**backup.other, "global/pg_control": control}
    restored = factory.empty("restored")
    client.restore(dataclasses.replace(backup, other=other), restored)
    restored.configure(primary_conninfo="", recovery_target_lsn=lsn.show(consistent))
    restored.configure(recovery_target_inclusive=False, recovery_target_action="pause")
    restored.start()
    assert restored.position() < written
    assert 0 < restored.init_lsn() <= snapshot.lsn
    assert oracle.look(snapshot, restored).changed >= 7
    assert "may be consistent before it has come to what is on disk" in restored.log_text()


def _asked_at(standby: Cluster, snapshot: Snapshot, early: int, written: int) -> None:
    """Started with the library, and asked before redo has come to what is on disk."""
    standby.configure(shared_preload_libraries="ptrack", primary_conninfo="")
    standby.configure(recovery_target_lsn=lsn.show(early), recovery_target_action="pause")
    standby.start()
    assert standby.position() < written
    assert 0 < standby.init_lsn() <= snapshot.lsn
    assert oracle.look(snapshot, standby).changed >= 7


def test_killed_primary_as_a_standby_without_the_library(factory: Factory) -> None:
    """As above, and nobody was there to note what pg_control said before."""
    first = factory.create(checksums=True)
    second = factory.standby(first)
    pages(first, pages=60)
    snapshot = oracle.take(first)
    _killed_without_wal_of_its_own(first, second)
    first.configure(shared_preload_libraries="")
    _follows(first, second)
    early = first.position()
    control = (first.data / "global/pg_control").read_bytes()
    second.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
    first.catch_up(second)
    oracle.evict(snapshot, first, changed=7)
    first.kill_all()
    (first.data / "global/pg_control").write_bytes(control)
    _asked_at(first, snapshot, early, second.position())


def test_promoted_killed_and_a_standby_without_the_library(factory: Factory) -> None:
    """The map's file knows of the first recovery, and that something was written after it."""
    standby, snapshot, promoted, written = _promoted_and_killed(factory, images=True)
    standby.configure(shared_preload_libraries="")
    standby.configure(recovery_target_lsn=lsn.show(promoted), recovery_target_action="pause")
    standby.start()
    standby.kill_all()
    _asked_at(standby, snapshot, promoted, written)


def _held_up_at_the_end_of_recovery(standby: Cluster, orders: Fault) -> None:
    """Promote; sessions may write, and pg_control says that the server is in recovery."""
    orders.order("pg_control$", Kind.WRITE, Action.STOP_BEFORE)
    standby.sql("SELECT pg_promote(false)")
    orders.wait()
    while standby.in_recovery:
        orders.order("pg_control$", Kind.WRITE, Action.STOP_BEFORE)
        orders.wait()


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_promotion_killed_before_pg_control_tells(factory: Factory) -> None:
    primary = factory.create(checksums=True)
    pages(primary, pages=60)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    standby.stop()
    with Fault(standby, factory.shared) as orders:
        standby.start()
        # who begins another file of WAL waits for whoever writes pg_control
        primary.sql("SELECT pg_switch_wal()")
        standby.catch_up(primary)
        primary.stop()
        _held_up_at_the_end_of_recovery(standby, orders)
        promoted = standby.flush_wal()
        standby.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
        written = standby.flush_wal()
        oracle.evict(snapshot, standby, changed=7)
        assert orders.stopped
        standby.kill_all()
    assert standby.control()["Database cluster state"] == "in archive recovery"
    standby.write("standby.signal", "")
    _asked_at(standby, snapshot, promoted, written)


@pytest.mark.parametrize("end", [_clean, _immediate, _kill_all])
def test_what_a_standby_reports_is_less_than_all(
    factory: Factory, end: Callable[[Pair], None]
) -> None:
    pair = make_pair(factory)
    pages(pair.primary, pages=300)
    snapshot = pair.snapshot()
    pair.primary.sql("UPDATE t SET i = -i WHERE i % 80 = 3")
    pair.standby.catch_up(pair.primary)
    oracle.evict(snapshot, pair.standby, changed=3)
    end(pair)
    pair.standby.catch_up(pair.primary)
    found = oracle.look(snapshot, pair.standby)
    assert found.reported < found.blocks / 2


@pytest.mark.parametrize("end", [_clean, _immediate, _kill_all])
def test_what_a_fresh_standby_reports_is_less_than_all(
    factory: Factory, end: Callable[[Pair], None]
) -> None:
    """It has made no restartpoint: its start alone has noted that recovery began."""
    primary = factory.create(checksums=True)
    pages(primary, pages=300)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, checkpoint=False)
    primary.sql("UPDATE t SET i = -i WHERE i % 80 = 3")
    standby.catch_up(primary)
    oracle.evict(snapshot, standby, changed=3)
    end(Pair(primary=primary, standby=standby))
    standby.catch_up(primary)
    found = oracle.look(snapshot, standby)
    assert found.reported < found.blocks / 2


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_new_map_serves_its_first_restartpoint(factory: Factory, *, busy: bool) -> None:
    """A backup that begins at it is a parent: nothing was before this start but what it knows.

    Idle, it is where the replay before had ended, which pg_control tells of; busy, pages are
    written that are newer than it is.
    """
    pair = make_pair(factory)
    pair.primary.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 20000) i")
    ended, redo = 0, 1
    for _ in range(5):  # the primary may log its running transactions meanwhile
        pair.primary.checkpoint()
        pair.standby.catch_up(pair.primary)
        pair.standby.stop()
        pair.standby.map.unlink()
        ended = lsn.parse(pair.standby.control()["Minimum recovery ending location"])
        pair.standby.start()
        if busy:
            pair.primary.sql("UPDATE t SET i = -i WHERE i % 5 = 0")
        pair.primary.checkpoint()
        redo = pair.primary.redo()
        if busy or redo == ended:
            break
    if not busy and redo != ended:
        pytest.fail("the primary was never idle")  # no assertion: shows nothing of the map
    if busy:
        pair.primary.sql("UPDATE t SET i = -i WHERE i % 7 = 0")
    pair.standby.catch_up(pair.primary)
    pair.standby.checkpoint()
    assert pair.standby.redo() == redo
    parent = oracle.take(pair.standby, checkpoint=False)
    assert parent.lsn == redo
    assert 0 < pair.standby.init_lsn() <= redo
    pair.primary.sql("UPDATE t SET i = -i WHERE i % 3 = 0")
    pair.standby.catch_up(pair.primary)
    oracle.check(parent, pair.standby, changed=20)


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_promotion_that_the_header_cannot_be_told_of(factory: Factory) -> None:
    """Nor is there room for a new file: there must be none then that a start would accept."""
    primary = factory.create(checksums=True)
    pages(primary, pages=60)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    standby.stop()
    with Fault(standby, factory.shared) as orders:
        standby.start()
        standby.catch_up(primary)
        assert standby.map.exists()
        orders.order("global/ptrack.map", Kind.WRITE, Action.FAIL, error=errno.ENOSPC, onwards=True)
        mark = standby.log_size()
        standby.promote()
        standby.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
        oracle.evict(snapshot, standby, changed=7)
        assert "could not write map file" in standby.log_text(mark)
        assert not standby.map.exists()
        assert oracle.look(snapshot, standby).changed >= 7  # in memory all is known
        standby.kill_all()
    standby.start()
    refused(snapshot, standby)


@pytest.mark.major(until=18)  # from 19 on the end waits for the checkpointer, which is held up here
@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_what_the_end_of_recovery_costs(factory: Factory) -> None:
    """The first write after it waits for one page of the map's file, however much is marked."""
    primary = factory.create(checksums=True, fsync=True)
    pages(primary, pages=60)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    primary.sql("UPDATE t SET i = -i")
    standby.catch_up(primary)
    oracle.evict(snapshot, standby, changed=60)
    standby.stop("immediate")
    with Fault(standby, factory.shared) as orders:
        standby.start()
        standby.catch_up(primary)
        oracle.evict(snapshot, standby, changed=60)
        with standby.paused("checkpointer"):
            orders.order("global/ptrack.map", Kind.changes(), Action.COUNT)
            standby.promote()
            standby.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
            oracle.evict(snapshot, standby, changed=60)
            assert orders.count == 2, "a write and a sync"
    oracle.check(snapshot, standby, changed=60)
