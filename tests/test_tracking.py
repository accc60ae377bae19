"""Each kind of change by itself, on a running cluster and over a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import oracle, workload
from tests.harness.grown import pages
from tests.harness.workload import SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

EACH = pytest.mark.parametrize("scenario", [pytest.param(one, id=one.name) for one in SCENARIOS])


class Shared:
    """A cluster that several tests use in turn; a broken one is replaced."""

    def __init__(self, factory: Factory, *, checksums: bool, full_page_writes: bool) -> None:
        self.factory = factory
        self.checksums = checksums
        self.full_page_writes = full_page_writes
        self.cluster: Cluster | None = None
        self.broken = False

    def get(self) -> Cluster:
        """A running cluster without leftovers."""
        if self.broken:
            self.destroy()
        if self.cluster is None:
            self.cluster = self.factory.create(
                "shared", checksums=self.checksums, full_page_writes=self.full_page_writes
            )
            workload.prepare(self.cluster)
        return self.cluster

    def destroy(self) -> None:
        """Destroy it; the next test makes a new one."""
        cluster, self.cluster, self.broken = self.cluster, None, False
        if cluster is not None:
            self.factory.destroy_one(cluster)


@pytest.fixture(scope="module")
def plain(session_factory: Factory) -> Iterator[Shared]:
    """Without checksums, full page writes on."""
    shared = Shared(session_factory, checksums=False, full_page_writes=True)
    yield shared
    shared.destroy()


@pytest.fixture(scope="module")
def bare(session_factory: Factory) -> Iterator[Shared]:
    """With checksums, so that nothing is masked, and without full page writes."""
    shared = Shared(session_factory, checksums=True, full_page_writes=False)
    yield shared
    shared.destroy()


def _skip_too_old(scenario: Scenario, cluster: Cluster) -> None:
    if not scenario.fits(cluster):
        pytest.skip(f"PostgreSQL {cluster.install.version} cannot do it")


@EACH
def test_running(plain: Shared, scenario: Scenario) -> None:
    cluster = plain.get()
    _skip_too_old(scenario, cluster)
    try:
        workload.set_up(cluster, [scenario])
        snapshot = oracle.take(cluster)
        workload.change(cluster, [scenario])
        found = oracle.check(snapshot, cluster)
        assert not workload.unwritten(cluster, [scenario], found.relations)
        workload.tear_down(cluster, [scenario])
    except BaseException:
        plain.broken = True
        raise


@EACH
def test_crash(bare: Shared, scenario: Scenario) -> None:
    """Stopped at once after everything was pushed out of the buffer pool, never checkpointed."""
    cluster = bare.get()
    _skip_too_old(scenario, cluster)
    try:
        workload.set_up(cluster, [scenario])
        snapshot = oracle.take(cluster)
        workload.change(cluster, [scenario])
        cluster.evict()
        on_disk = oracle.compare(snapshot, cluster.files(), [])
        assert not workload.unwritten(cluster, [scenario], on_disk.relations), "not evicted"
        cluster.stop("immediate")
        cluster.start()
        oracle.check(snapshot, cluster)
        workload.tear_down(cluster, [scenario])
    except BaseException:
        bare.broken = True
        raise


@pytest.mark.major(since=15)
def test_database_made_by_zeros(factory: Factory) -> None:
    """A file is extended by its last block; the others come to be zeros, their pages in the pool.

    The parent has the same names of files, and no crash comes. The pages of the unlogged table are
    not in WAL: nothing tells of them but what was marked when their file was extended.
    """
    cluster = factory.create(shared_buffers="16MB")
    cluster.sql("CREATE DATABASE source")
    pages(cluster, database="source")
    pages(cluster, "unlogged", database="source")
    cluster.sql("ALTER TABLE unlogged SET UNLOGGED", database="source")
    again = "CREATE DATABASE d OID = 20001 TEMPLATE source STRATEGY wal_log"
    cluster.sql(again)
    paths = [cluster.path_of(name, database="d") for name in ("t", "unlogged")]
    cluster.restart()  # the parent has its pages; a checkpoint does not write unlogged ones
    snapshot = oracle.take(cluster)
    cluster.sql("DROP DATABASE d")
    cluster.sql(again)
    current = cluster.files()
    found = oracle.compare(snapshot, current, []).lost
    zeros = {(one.path, one.block) for one in found if not any(one.after)}
    assert zeros >= {(path, 0) for path in paths}, "the pages were written already"
    oracle.look(snapshot, cluster, current=current)
    oracle.check(snapshot, cluster)


@pytest.mark.major(since=18)
@pytest.mark.parametrize("statement", ["CREATE DATABASE", "ALTER DATABASE"])
@pytest.mark.parametrize("crash", [False, True], ids=["running", "killed"])
def test_clone(factory: Factory, statement: str, *, crash: bool) -> None:
    """file_copy_method = clone, where the file system can; killed, no checkpoint comes after it."""
    cluster = factory.create(checksums=crash, file_copy_method="clone")
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")
    cluster.sql("CREATE DATABASE tmpl")
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000)", database="tmpl")
    snapshot = oracle.take(cluster)
    change = {
        "CREATE DATABASE": "CREATE DATABASE copy TEMPLATE tmpl STRATEGY file_copy",
        "ALTER DATABASE": "ALTER DATABASE tmpl SET TABLESPACE ts",
    }[statement]
    try:
        cluster.sql(change)
    except Exception as error:
        if "could not clone file" not in str(error):
            raise
        pytest.skip(f"the file system refuses: {error}")
    done = cluster.redo()
    name = "copy" if statement == "CREATE DATABASE" else "tmpl"
    cluster.sql("DELETE FROM t WHERE generate_series % 500 = 0", database=name)
    if crash:
        oracle.evict(snapshot, cluster, changed=100)
        assert cluster.redo() == done, "a checkpoint came after it"
        cluster.kill_all()
        cluster.start()
    oracle.check(snapshot, cluster, changed=100)
    assert cluster.value("SELECT count(*) FROM t", database=name) == 20000 - 40


def test_temporary_relations_are_not_reported(cluster: Cluster) -> None:
    before = cluster.redo()
    with cluster.connect() as connection:
        connection.execute("CREATE TEMPORARY TABLE x AS SELECT generate_series(1, 30000)")
        connection.execute("CREATE INDEX ON x (generate_series)")
        row = connection.execute("SELECT pg_relation_filepath('x')").fetchone()
        assert row is not None
        assert (cluster.data / row[0]).exists()
        for since in (0, before):
            paths = [found.path for found in cluster.pagemapset(since)]
            assert not [path for path in paths if "/t" in path]


def test_other_segments(cluster: Cluster) -> None:
    """One block in each segment file, among them the first and last block of one."""
    if cluster.segment_blocks > 1024:
        pytest.skip("needs a build with small segments")
    per = cluster.segment_blocks
    pages(cluster, pages=per * 6, first=0)
    snapshot = oracle.take(cluster)
    wanted = {0, per - 1, per, per * 2 + 3, per * 4 - 1, per * 5 + 1}
    for block in sorted(wanted):
        cluster.sql(f"DELETE FROM t WHERE i = {block}")
    oracle.check(snapshot, cluster, changed=len(wanted))
    assert wanted <= cluster.reported("t", snapshot.lsn)


def test_many_looks(cluster: Cluster) -> None:
    """Marks stay: each snapshot of a history is still served."""
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 300) FROM generate_series(1, 3000) i")
    snapshots = []
    for step in range(5):
        snapshots.append(oracle.take(cluster))
        cluster.sql(f"UPDATE t SET i = -i WHERE i % 200 = {step}")
        if step == 2:
            cluster.restart()
    for snapshot in snapshots:
        oracle.check(snapshot, cluster)


def test_precision(cluster: Cluster) -> None:
    """What did not change is not reported, but for what the parent's own checkpoint wrote."""
    pages(cluster, pages=2000, first=0)
    cluster.script(["CREATE INDEX ON t (i)", "CHECKPOINT"])
    snapshot = oracle.take(cluster)
    cluster.sql("UPDATE t SET x = x || 'y' WHERE i % 400 = 7")
    found = oracle.check(snapshot, cluster)
    assert found.blocks > 2000
    # a chunk of 64 blocks at the most for each that changed, collisions included
    assert found.reported < found.blocks / 2, str(found)
    assert found.reported - found.changed < 200, str(found)
