"""Lives of a cluster without ptrack that leave pg_control's redo point where it was.

The map is kept: all WAL from that point on is replayed once more, and each block that it names is
marked. What it does not name is there, too: each of these lives truncates a table, and replayed
once more the truncation finds nothing to cut.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import oracle, system
from tests.harness.grown import (
    emptied,
    grow_and_lose,
    killed,
    lazy_cluster,
    pages,
    zeros_before_a_row,
)
from tests.harness.parent import safe

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot


@pytest.fixture
def emptied_cluster(factory: Factory) -> tuple[Cluster, Snapshot]:
    """A primary with an empty table of 40 blocks, and a parent from before they are cut off."""
    cluster = lazy_cluster(factory)
    pages(cluster)
    pages(cluster, "other")
    emptied(cluster)
    return cluster, oracle.take(cluster)


def _work(cluster: Cluster) -> None:
    """Cut a table off, and change another, on disk and in WAL."""
    cluster.sql("VACUUM t")
    assert cluster.value("SELECT pg_relation_size('t')") == 0
    cluster.sql("DELETE FROM other WHERE i % 2 = 0")
    cluster.flush_wal()


def _kept(snapshot: Snapshot, cluster: Cluster) -> None:
    """Nothing is missing, and nothing of what grows now will be."""
    assert cluster.init_lsn() <= snapshot.lsn, "the map was refused"
    oracle.look(snapshot, cluster)
    grow_and_lose(cluster, "t", 12)
    oracle.check(snapshot, cluster, changed=12)


def test_without_the_library_killed(emptied_cluster: tuple[Cluster, Snapshot]) -> None:
    """A start after a clean stop, and a crash: pg_control's redo point is the map's."""
    cluster, snapshot = emptied_cluster
    cluster.restart("fast", shared_preload_libraries="")
    _work(cluster)
    cluster.kill_all()
    cluster.configure(shared_preload_libraries="ptrack")
    cluster.start()
    _kept(snapshot, cluster)


def test_without_the_library_stopped(emptied_cluster: tuple[Cluster, Snapshot]) -> None:
    """A stop moves the redo point: what the life has changed is in no WAL that is replayed."""
    cluster, snapshot = emptied_cluster
    cluster.restart("fast", shared_preload_libraries="")
    _work(cluster)
    cluster.restart("fast", shared_preload_libraries="ptrack")
    assert cluster.init_lsn() > snapshot.lsn


@pytest.mark.parametrize("again", [False, True], ids=["stopped", "restarted"])
def test_stand_alone_without_the_library_killed(
    emptied_cluster: tuple[Cluster, Snapshot], *, again: bool
) -> None:
    """A stand-alone backend; right after a start of our own, or some time after it."""
    cluster, snapshot = emptied_cluster
    if again:
        cluster.restart("fast")
    cluster.stop("fast")
    cluster.single_user("VACUUM t", killed=True, shared_preload_libraries="")
    cluster.start()
    assert not cluster.value("SELECT pg_relation_size('t')")
    _kept(snapshot, cluster)


def test_without_the_library_after_a_start_that_failed(
    emptied_cluster: tuple[Cluster, Snapshot],
) -> None:
    """The start that failed had the library, and has changed nothing."""
    cluster, snapshot = emptied_cluster
    cluster.stop("fast")
    hba = cluster.data / "pg_hba.conf"
    good = hba.read_bytes()
    hba.write_bytes(b"nonsense\n")
    cluster.start_fails()
    hba.write_bytes(good)
    cluster.configure(shared_preload_libraries="")
    cluster.start()
    _work(cluster)
    cluster.kill_all()
    cluster.configure(shared_preload_libraries="ptrack")
    cluster.start()
    _kept(snapshot, cluster)


def test_recovery_without_the_library_interrupted(
    emptied_cluster: tuple[Cluster, Snapshot],
) -> None:
    """A crash, a recovery without it that does not come to its end, and one with it."""
    cluster, snapshot = emptied_cluster
    _work(cluster)
    cluster.sql("CREATE TABLE more AS SELECT repeat('x', 900) FROM generate_series(1, 20000)")
    cluster.kill_all()
    cluster.configure(shared_preload_libraries="")
    before = cluster.log_size()
    cluster.start(wait=False)
    cluster.wait_for(
        lambda: "redo starts" in cluster.log_text(before) or cluster.ready(), "the recovery", 30
    )
    cluster.kill_all()
    ended = "redo done" in cluster.log_text(before)
    cluster.configure(shared_preload_libraries="ptrack")
    cluster.start()
    if ended:  # and may have moved the redo point
        safe(snapshot, cluster)
    else:
        _kept(snapshot, cluster)


@pytest.mark.parametrize("end", ["fast", "immediate"])
def test_standby_without_the_library(factory: Factory, end: str) -> None:
    """A life without a restartpoint: the next begins to replay where the map ends."""
    primary = lazy_cluster(factory)
    pages(primary)
    standby = factory.standby(primary)
    emptied(primary)
    snapshot = oracle.take(standby, primary=primary)
    standby.restart("fast", shared_preload_libraries="")
    primary.sql("VACUUM t")
    standby.catch_up(primary)
    assert not standby.relation_bytes("t")
    standby.stop(end)
    standby.configure(shared_preload_libraries="ptrack")
    standby.start()
    standby.catch_up(primary)
    standby.restartpoint(primary)
    assert 0 < standby.init_lsn() <= snapshot.lsn, "the map was refused"
    zeros_before_a_row(primary)
    standby.catch_up(primary)
    assert len(standby.relation_bytes("t")) >= 6 * standby.block_size, "no zeros came to be"
    killed(standby, primary)
    oracle.check(snapshot, standby, changed=6)


def test_own_lives(emptied_cluster: tuple[Cluster, Snapshot]) -> None:
    """Kept over starts and crashes of all kinds, as long as the library was there."""
    cluster, snapshot = emptied_cluster
    _work(cluster)
    for mode in ("fast", "immediate", "immediate", "fast"):
        cluster.restart(mode)
        cluster.sql("SELECT 1")
    cluster.kill_all()
    cluster.start()
    cluster.kill_child("client backend")
    cluster.kill_child("checkpointer")
    cluster.kill_postmaster()
    cluster.start()
    _kept(snapshot, cluster)


def test_own_lives_without_a_loader(factory: Factory) -> None:
    """Nobody but the postmaster comes to tell the header, and its children crash."""
    cluster = factory.create(checksums=True, max_worker_processes=0)
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    oracle.evict(snapshot, cluster, changed=20)
    for _ in range(2):
        cluster.kill_all()
        cluster.start()
        cluster.kill_child("client backend")
        cluster.kill_child("background writer")
    cluster.restart("immediate")
    cluster.restart("fast")
    cluster.kill_child("client backend")  # after a clean stop, with nothing changed since
    cluster.restart("immediate")
    oracle.check(snapshot, cluster, changed=20)


def test_own_lives_of_a_standby(factory: Factory) -> None:
    primary = factory.create(checksums=True)
    pages(primary)
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    primary.sql("DELETE FROM t WHERE i % 2 = 0")
    standby.catch_up(primary)
    for mode in ("fast", "immediate", "fast"):
        standby.restart(mode)
        standby.catch_up(primary)
    killed(standby, primary)
    standby.restartpoint(primary)
    oracle.check(snapshot, standby, changed=20)


@pytest.mark.parametrize("option", ["-a", "-r"], ids=["all", "without times"])
def test_copy_of_a_killed_cluster(factory: Factory, option: str) -> None:
    """As snapshots and backups of file systems are, or with less."""
    cluster = factory.create(checksums=True)
    pages(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql("DELETE FROM t WHERE i % 2 = 0")
    cluster.kill_all()
    copy = factory.empty("copy")
    subprocess.run(["cp", option, "--reflink=auto", cluster.data, copy.data], check=True)
    if option == "-r":
        system.own_tree(copy.data)
    copy.adopt()
    copy.start()
    oracle.check(snapshot, copy, changed=20)
