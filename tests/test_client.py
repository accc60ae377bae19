"""The reference client: chains of a full and incremental backups, restored and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import client, oracle, verify, workload
from tests.harness.factory import committed
from tests.harness.parent import CHANGE, before

if TYPE_CHECKING:
    from tests.harness.factory import Factory
    from tests.harness.oracle import PageMap


def test_itself(factory: Factory) -> None:
    """Full and increment with a made-up exact set; needs no ptrack."""
    cluster = factory.create(ptrack=False)
    workload.prepare(cluster)
    cluster.sql("CREATE TABLE t TABLESPACE ts AS SELECT i FROM generate_series(1, 5000) i")
    made = cluster.data / "pg_wal/xlogtemp.1"
    made.touch()
    first = client.full(cluster)
    assert f"pg_wal/{made.name}" not in first.other
    made.unlink()
    before = {name: client.image(first, name) for name in first.relations}
    cluster.sql("UPDATE t SET i = -i WHERE i % 500 = 0")

    def exact(since: int) -> list[PageMap]:
        found = oracle.compare(
            oracle.Snapshot(lsn=since, content=before, block_size=cluster.block_size),
            cluster.files(),
            [],
        )
        rows: dict[str, list[int]] = {}
        for one in found.lost:
            rows.setdefault(one.path, []).append(one.block)
        return [oracle.PageMap.of(path, blocks) for path, blocks in rows.items()]

    cluster.init_lsn = lambda: 1  # type: ignore[method-assign]
    cluster.pagemapset = exact  # type: ignore[method-assign]
    second = client.incremental(cluster, first)
    assert 0 < second.blocks < first.blocks / 4
    client.restored(factory, second, cluster)
    cluster.init_lsn = lambda: first.start + 1  # type: ignore[method-assign]
    with pytest.raises(client.Refused):
        client.incremental(cluster, first)


def test_checkpoint_during_a_backup(factory: Factory) -> None:
    """The copy's pg_control is ahead of its map, and replay begins before either."""
    cluster = factory.create(checksums=True)
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    backup = client.full(cluster, late=cluster.checkpoint)
    assert backup.start < cluster.redo()
    target = client.restored(factory, backup, cluster)
    oracle.check(snapshot, target, changed=20)


def test_chain(factory: Factory, *, checksums: bool) -> None:
    cluster = factory.create(checksums=checksums)
    workload.prepare(cluster)
    scenarios = workload.available(cluster)
    workload.set_up(cluster, scenarios)
    backup = client.full(cluster)
    everything = backup.blocks
    workload.change(cluster, scenarios[::2])
    backup = client.incremental(cluster, backup)
    workload.change(cluster, scenarios[1::2])
    cluster.restart()
    backup = client.incremental(cluster, backup)
    cluster.sql("UPDATE heap.t SET id = id + 1 WHERE id % 400 = 0")
    backup = client.incremental(cluster, backup)
    assert backup.blocks < everything / 4
    target = client.restored(factory, backup, cluster)

    # and its map is good for the next increment, in its new life
    assert target.init_lsn() <= backup.start
    target.sql("UPDATE heap.t SET id = id + 1 WHERE id % 300 = 0")
    target.restart()
    backup = client.incremental(target, backup)
    assert backup.blocks < everything, "a replay adds, but not everything"
    client.restored(factory, backup, target)


def test_chain_from_a_standby(factory: Factory) -> None:
    primary = factory.create(checksums=True)
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i")
    standby = factory.standby(primary)
    primary.checkpoint()
    standby.catch_up(primary)
    standby.checkpoint()
    backup = client.full(standby)
    for _ in range(2):
        primary.sql("UPDATE t SET i = i + 1 WHERE i % 500 = 0")
        primary.checkpoint()
        standby.catch_up(primary)
        backup = client.incremental(standby, backup)
    client.restored(factory, backup, standby)


def test_under_load(factory: Factory) -> None:
    """Backups while rows change; what is restored has to be consistent."""
    cluster = factory.create(checksums=True, shared_buffers="2MB")
    cluster.run("pgbench", "-i", "-s", "1", "--quiet")
    clients = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"

    backup = client.full(cluster)
    for _ in range(3):
        with factory.pgbench(cluster, seconds=60, at_most=True):
            since = committed(cluster)
            backup = client.incremental(cluster, backup)
            assert committed(cluster) > since, "nothing changed during the backup"
    target = factory.empty("restored")
    client.restore(backup, target)
    target.start()
    verify.whole(target)
    balances = (
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = "
        "(SELECT sum(delta) FROM pgbench_history) AND "
        "(SELECT sum(bbalance) FROM pgbench_branches) = "
        "(SELECT sum(tbalance) FROM pgbench_tellers)"
    )
    assert target.value(balances)
    cluster.wait_for(lambda: cluster.value(clients) == 1, "the end of pgbench's backends")
    # at rest, an increment over what was copied in motion has every byte
    client.same(client.incremental(cluster, backup), cluster)


def test_parent_older_than_the_map_is_refused(factory: Factory) -> None:
    cluster = factory.create()
    parent = client.full(cluster)
    cluster.restart(ptrack__map_size=0)
    cluster.restart(ptrack__map_size=1)
    with pytest.raises(client.Refused):
        client.incremental(cluster, parent)
    client.same(client.incremental(cluster, client.full(cluster)), cluster)
