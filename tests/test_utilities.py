"""PostgreSQL's own programs on a cluster that has a map."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, mapfile, oracle, system, verify
from tests.harness.cluster import MAP, MAP_TMP
from tests.harness.grown import pages

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory
    from tests.harness.oracle import Snapshot

TABLE = "CREATE TABLE t AS SELECT i, repeat('x', 300) AS x FROM generate_series(1, 3000) i"
CHANGE = "UPDATE t SET i = -i WHERE i % 150 = 0"


def refused(snapshot: Snapshot, cluster: Cluster) -> None:
    """The map must not serve the parent, and works from now on."""
    cluster.checkpoint()
    assert cluster.init_lsn() > snapshot.lsn, "the parent is taken"
    again = oracle.take(cluster)
    cluster.sql("UPDATE t SET i = i + 1 WHERE abs(i) % 77 = 0")
    oracle.check(again, cluster)


# ---- pg_basebackup


def _changed_forks(snapshot: Snapshot, cluster: Cluster) -> None:
    """Free space map and visibility map of a table are others on disk, in some block each."""
    cluster.checkpoint()
    path = cluster.path_of("forks")
    for fork in ("fsm", "vm"):
        name = f"{path}_{fork}"
        assert (cluster.data / name).read_bytes() != snapshot.content[name], fork


@pytest.mark.parametrize("wal", ["fetch", "stream"])
def test_base_backup(factory: Factory, wal: str) -> None:
    """The map goes along, its temporary file does not; restored it is kept, for every fork."""
    cluster = factory.create(checksums=True)
    cluster.sql(TABLE)
    cluster.script(
        [
            # its free space map and visibility map are changed before the backup and after it
            "CREATE TABLE forks AS SELECT i, repeat('x', 300) AS x FROM generate_series(1, 3000) i",
            "VACUUM (FREEZE) forks",
            "CREATE UNLOGGED TABLE u (i int PRIMARY KEY, x text)",
            "INSERT INTO u SELECT i, repeat('x', 300) FROM generate_series(1, 600) i",
            "CREATE INDEX ON u USING hash (i)",  # its init fork has several blocks
            "VACUUM u",
        ]
    )
    cluster.evict()  # checkpoints leave unlogged tables out
    snapshot = oracle.take(cluster)
    parent = client.full(cluster)
    init = cluster.init_lsn()
    cluster.sql(CHANGE)
    cluster.script(
        [
            "DELETE FROM forks WHERE i % 3 = 0 AND i < 2000",
            "VACUUM forks",
            "CREATE UNLOGGED TABLE later (i int PRIMARY KEY, x text)",
            "INSERT INTO later SELECT i, repeat('x', 300) FROM generate_series(1, 600) i",
            "VACUUM later",
        ]
    )
    _changed_forks(snapshot, cluster)
    cluster.write(str(MAP_TMP), "half a map")
    cluster.write("global/ptrack.map.mmap", "from long ago")
    restored = factory.base_backup(cluster, "restored", "-X", wal)
    assert restored.map.exists()
    assert not (restored.data / MAP_TMP).exists()
    if cluster.major >= 13:
        manifest = json.loads((restored.data / "backup_manifest").read_text())
        names = [file["Path"] for file in manifest["Files"]]
        assert str(MAP) in names
        assert str(MAP_TMP) not in names
        # but for the settings, which the harness changed
        restored.run("pg_verifybackup", "-i", "postgresql.conf", restored.data)
    forks = restored.files()
    for name in ("u", "later"):  # it has them empty, to be made from their init forks
        path = cluster.path_of(name)
        assert path not in forks
        assert f"{path}_init" in forks
    restored.start()
    assert restored.init_lsn() == init
    oracle.check(snapshot, restored, changed=20)
    _changed_forks(snapshot, restored)
    client.same(client.incremental(restored, parent), restored)
    restored.sql("UPDATE t SET x = x || 'y' WHERE abs(i) % 99 = 0")
    for name in ("u", "later"):
        assert restored.value(f"SELECT count(*) FROM {name}") == 0
        restored.sql(f"INSERT INTO {name} SELECT i, repeat('y', 200) FROM generate_series(1, 99) i")
    restored.sql("DELETE FROM forks WHERE i % 3 = 1 AND i > 1000")
    restored.sql("VACUUM forks, u, later")
    restored.restart()
    assert restored.init_lsn() == init
    oracle.check(snapshot, restored, changed=20)
    again = client.restored(factory, client.incremental(restored, parent), restored)
    for name in ("u", "later"):
        assert again.value(f"SELECT count(*) FROM {name}") == 0


def test_base_backup_verifies_checksums(factory: Factory) -> None:
    """Those of pages, and the map has none."""
    cluster = factory.create(checksums=True)
    cluster.sql(TABLE)
    cluster.checkpoint()
    assert cluster.map.exists()
    target = factory.empty("copy")
    done = cluster.run("pg_basebackup", "-D", target.data, "-c", "fast", check=False)
    assert done.returncode == 0, done.stdout
    assert "checksum" not in done.stdout
    assert (target.data / MAP).read_bytes() == cluster.map.read_bytes()


def test_base_backup_as_tar(factory: Factory) -> None:
    cluster = factory.create()
    cluster.sql(TABLE)
    cluster.checkpoint()
    target = factory.empty("tar")
    cluster.run("pg_basebackup", "-D", target.data, "-Ft", "-X", "fetch", "-c", "fast")
    names = system.run(["tar", "tf", target.data / "base.tar"], cwd=target.root).stdout.split()
    assert str(MAP) in names


@pytest.mark.major(since=17)
def test_incremental_base_backup(factory: Factory) -> None:
    """PostgreSQL's own: the map of the last one serves what is combined of all."""
    cluster = factory.create(checksums=True, summarize_wal=True)
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    init = cluster.init_lsn()
    whole = factory.base_backup(cluster, "whole")
    cluster.sql(CHANGE)
    since = f"--incremental={whole.data / 'backup_manifest'}"
    increment = factory.base_backup(cluster, "increment", since)
    combined = factory.empty("combined")
    argv = (whole.data, increment.data, "-o", combined.data, "--no-sync")
    combined.run("pg_combinebackup", *argv)
    assert combined.map.read_bytes() == increment.map.read_bytes()
    combined.adopt()
    combined.start()
    assert combined.init_lsn() == init
    oracle.check(snapshot, combined, changed=20)


def test_point_in_time(factory: Factory) -> None:
    """To an older point and promoted: the map of the base backup stays valid."""
    cluster = factory.create(checksums=True)
    archive = system.make_dir(cluster.root / "archive")
    command = f"cp %p {archive}/part && mv {archive}/part {archive}/%f"  # whole, once it is there
    cluster.restart(archive_mode=True, archive_command=command)
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    restored = factory.base_backup(cluster, "restored", "-X", "none")
    cluster.sql("UPDATE t SET x = 'wanted' WHERE abs(i) % 40 = 0")
    cluster.sql("CREATE INDEX ON t (i)")
    cluster.sql("SELECT pg_create_restore_point('here')")
    cluster.sql("UPDATE t SET x = 'too late'")
    last = cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    cluster.sql("SELECT pg_switch_wal()")
    cluster.wait_for(lambda: (archive / last).exists(), "the archive")
    restored.configure(
        archive_mode=False,
        restore_command=f"cp {archive}/%f %p",
        recovery_target_name="here",
        recovery_target_action="promote",
    )
    restored.write("recovery.signal", "")
    restored.start()
    restored.wait_for(lambda: not restored.in_recovery, "the end of recovery")
    assert restored.value("SELECT count(*) FROM t WHERE x = 'wanted'") > 0
    assert restored.value("SELECT count(*) FROM t WHERE x = 'too late'") == 0
    oracle.check(snapshot, restored, changed=20)
    restored.sql("UPDATE t SET x = 'new life' WHERE abs(i) % 90 = 0")
    restored.restart("immediate")
    oracle.check(snapshot, restored, changed=20)


def _timeline(cluster: Cluster) -> int:
    """The timeline that the map names."""
    return mapfile.field(cluster.map.read_bytes(), "tli")


def test_point_in_time_killed_at_once(factory: Factory) -> None:
    """The checkpoint at the end of recovery began a timeline that the map does not name."""
    cluster = factory.create(checksums=True)
    cluster.sql(TABLE)
    cluster.sql("VACUUM (FREEZE) t")
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    restored = factory.base_backup(cluster, "restored", "-X", "fetch")
    restored.configure(restore_command="false", recovery_target_timeline="current")
    restored.write("recovery.signal", "")
    restored.start()
    restored.wait_for(lambda: not restored.in_recovery, "the end of recovery")
    restored.kill_all()
    assert restored.control()["Latest checkpoint's TimeLineID"] == "2"
    assert _timeline(restored) == 1
    restored.start()
    oracle.check(snapshot, restored, changed=20)


def test_backup_of_a_standby_that_replays_a_newer_timeline(factory: Factory) -> None:
    """Its restartpoint is of the older one; the history of the newer is in the archive alone."""
    primary = factory.create(checksums=True)
    primary.sql(TABLE)
    middle = factory.standby(primary, "middle", checkpoint_timeout="1h")
    cascade = factory.standby(middle, "cascade")
    snapshot = oracle.take(primary)
    primary.sql(CHANGE)
    primary.checkpoint()
    primary.sql("UPDATE t SET x = repeat('dirty', 20)")  # the promotion's checkpoint takes its time
    middle.catch_up(primary)
    cascade.catch_up(primary)
    primary.stop("immediate")
    middle.promote()
    middle.sql("CREATE TABLE after_promotion AS SELECT 1 AS i")
    cascade.catch_up(middle)
    cascade.checkpoint()
    assert _timeline(cascade) == 1
    restored = factory.base_backup(cascade, "restored", "-X", "none")
    assert "START TIMELINE: 1" in (restored.data / "backup_label").read_text()
    middle.sql("SELECT pg_switch_wal()")
    restored.configure(restore_command=f"cp {middle.data}/pg_wal/%f %p")
    (restored.data / "standby.signal").rename(restored.data / "recovery.signal")
    restored.start()
    restored.wait_for(lambda: not restored.in_recovery, "the end of recovery")
    assert restored.value("SELECT count(*) FROM after_promotion") == 1
    oracle.check(snapshot, restored, changed=20)


# ---- pg_rewind


def test_rewind(factory: Factory) -> None:
    """The old primary gets no map: its own would know nothing of what was rewound."""
    primary = factory.create(checksums=True)
    primary.sql(TABLE)
    standby = factory.standby(primary)
    primary.checkpoint()
    standby.catch_up(primary)
    snapshot = oracle.take(primary)
    standby.promote()
    standby.checkpoint()
    primary.sql("UPDATE t SET x = 'lost' WHERE i % 60 = 0")
    standby.sql("UPDATE t SET x = 'kept' WHERE i % 70 = 0")
    primary.stop()
    assert primary.map.exists()
    primary.run(
        "pg_rewind", "-D", primary.data, f"--source-server={standby.conninfo()}", "--no-sync"
    )
    assert not primary.map.exists()
    primary.adopt()
    primary.write("postgresql.auto.conf", "")  # the standby's, which names the old primary
    primary.configure(primary_conninfo=standby.conninfo())
    primary.write("standby.signal", "")
    primary.start()
    primary.catch_up(standby)
    standby.checkpoint()
    primary.catch_up(standby)
    primary.checkpoint()
    init = primary.init_lsn()
    assert init == 0 or init > snapshot.lsn

    fresh = oracle.take(primary, checkpoint=False)
    standby.sql("UPDATE t SET x = 'again' WHERE i % 80 = 0")
    standby.checkpoint()
    primary.catch_up(standby)
    oracle.check(fresh, primary)


def test_rewind_from_directory(factory: Factory) -> None:
    primary = factory.create(checksums=True)
    primary.sql(TABLE)
    standby = factory.standby(primary)
    standby.catch_up(primary)
    standby.promote()
    standby.checkpoint()
    primary.sql(CHANGE)
    primary.stop()
    standby.stop()
    source_map = standby.map.read_bytes()
    primary.run("pg_rewind", "-D", primary.data, f"--source-pgdata={standby.data}", "--no-sync")
    assert not primary.map.exists(), "the source's map is not the target's"
    assert standby.map.read_bytes() == source_map


def test_rewind_that_fails(factory: Factory) -> None:
    """Blocks are rewritten, and pg_control is not: nothing else would keep the map out."""
    primary = factory.create(checksums=True)
    pages(primary, pages=60)
    standby = factory.standby(primary)
    standby.catch_up(primary)
    path = primary.path_of("t")
    standby.promote()
    standby.sql("UPDATE t SET i = -i WHERE i % 8 = 3")
    standby.checkpoint()
    primary.sql("UPDATE t SET i = i + 1000000 WHERE i % 8 = 3")
    # segments of WAL of its own
    primary.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 4000000))")
    snapshot = oracle.take(primary)
    primary.stop()
    standby.stop()
    before = primary.files()
    argv = ("-D", primary.data, f"--source-pgdata={standby.data}", "--no-sync")
    primary.run("pg_rewind", *argv, "--dry-run")
    assert primary.map.exists(), "nothing was to be changed"
    (standby.data / f"{path}.6").chmod(0)  # servers and programs are never root's
    done = primary.run("pg_rewind", *argv, check=False)
    assert done.returncode != 0
    now = primary.files()
    assert [name for name in now if name.startswith(path) and now[name] != before.get(name)]
    assert not primary.map.exists()
    primary.adopt()
    primary.write("postgresql.auto.conf", "")
    primary.start()
    if primary.major >= 14:  # before, pg_control may be the source's by then
        assert primary.init_lsn() > snapshot.lsn


# ---- pg_checksums


def test_checksums_check(factory: Factory) -> None:
    cluster = factory.create(checksums=True)
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    for name in (str(MAP_TMP), "global/ptrack.map.mmap"):
        cluster.write(name, "x" * 20_000)
    done = cluster.run("pg_checksums", "--check", "-D", cluster.data, check=False)
    assert done.returncode == 0, done.stdout
    assert cluster.map.exists(), "checking changes nothing"
    cluster.start()
    oracle.check(snapshot, cluster, changed=20)


def test_checksums_enable(cluster: Cluster) -> None:
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.stop()
    cluster.run("pg_checksums", "--enable", "-D", cluster.data, "--no-sync")
    assert not cluster.map.exists()
    cluster.start()
    refused(snapshot, cluster)


def test_checksums_enable_then_disable(cluster: Cluster) -> None:
    """Leaves pages with a checksum and no trace of why."""
    cluster.sql(TABLE)
    path = cluster.path_of("t")
    snapshot = oracle.take(cluster)
    cluster.stop()
    assert (cluster.data / path).read_bytes() == snapshot.content[path]
    cluster.run("pg_checksums", "--enable", "-D", cluster.data, "--no-sync")
    cluster.run("pg_checksums", "--disable", "-D", cluster.data, "--no-sync")
    assert (cluster.data / path).read_bytes() != snapshot.content[path]
    cluster.start()
    refused(snapshot, cluster)


def test_checksums_enable_interrupted(cluster: Cluster) -> None:
    """It fails half way, at a broken file; pages before that are rewritten."""
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.stop()
    torn = cluster.data / "base" / "1" / "99999"
    cluster.write(str(torn.relative_to(cluster.data)), "not a page")
    stopped = cluster.files()
    done = cluster.run("pg_checksums", "--enable", "-D", cluster.data, check=False)
    assert done.returncode != 0
    rewritten = [path for path, now in cluster.files().items() if now != stopped[path]]
    assert rewritten, "it has failed before it changed a page"
    assert not cluster.map.exists()
    torn.unlink()
    cluster.start()
    refused(snapshot, cluster)


def test_checksums_disable(factory: Factory) -> None:
    """Only pg_control changes, no page is written: kept."""
    cluster = factory.create(checksums=True)
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    cluster.run("pg_checksums", "--disable", "-D", cluster.data)
    cluster.start()
    assert 0 < cluster.init_lsn() <= snapshot.lsn, "the map is kept"
    oracle.check(snapshot, cluster, changed=20)


# ---- pg_resetwal


def test_resetwal(cluster: Cluster) -> None:
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.stop()
    for name in (str(MAP_TMP), "global/ptrack.map.mmap"):
        cluster.write(name, "left over")
    cluster.run("pg_resetwal", "-n", cluster.data)
    assert cluster.map.exists(), "a dry run changes nothing"
    cluster.run("pg_resetwal", cluster.data)
    assert not cluster.map.exists()
    cluster.start()
    assert not list((cluster.data / "global").glob("ptrack.map.*"))
    refused(snapshot, cluster)


def test_resetwal_after_a_crash(cluster: Cluster) -> None:
    cluster.sql(TABLE)
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    oracle.evict(snapshot, cluster, changed=1)
    cluster.stop("immediate")
    cluster.run("pg_resetwal", "-f", cluster.data)
    assert not cluster.map.exists()
    cluster.start()
    refused(snapshot, cluster)


# ---- pg_upgrade


def test_upgrade(factory: Factory) -> None:
    """From one cluster to another of the same version: no map from before serves the new one.

    Nor does it where one gets there, such as the old cluster's by who restores its global/.
    """
    old = factory.create("old")
    old.sql(TABLE)
    before = oracle.take(old)
    old.sql(CHANGE)
    old.stop()
    foreign = old.map.read_bytes()
    new = factory.create("new", start=False)
    # an empty cluster is what it wants: as initdb made it
    shutil.rmtree(new.root)
    new.init(checksums=False)
    new.adopt()
    new.configure(shared_preload_libraries="ptrack", ptrack__map_size=1)
    new.start()
    new.checkpoint()
    new.stop()
    stale = new.map.read_bytes()
    assert stale
    bindir = new.install.bindir
    args: list[str | Path] = ["-b", bindir, "-B", bindir, "-d", old.data, "-D", new.data]
    if new.major >= 13:
        args += ["-s", new.root]
    new.run("pg_upgrade", "-U", "postgres", *args, "--copy" if new.major >= 16 else "--verbose")
    # pg_upgrade starts the server once more at its end: what is there now is from then
    assert new.map.read_bytes() != stale
    new.start()
    verify.whole(new)
    assert new.value("SELECT count(*) FROM t") == 3000
    refused(before, new)
    for copied in (stale, foreign):
        new.stop()
        new.map.write_bytes(copied)
        new.start()
        assert new.init_lsn() > before.lsn, "the parent is taken"
    snapshot = oracle.take(new)
    new.sql(CHANGE)
    oracle.check(snapshot, new, changed=20)


# ---- all of it in a row


def test_backup_chain_over_failover(factory: Factory) -> None:
    """Full on the primary, increments over a switch-over and back."""
    primary = factory.create(checksums=True)
    primary.sql(TABLE)
    backup = client.full(primary)
    standby = factory.standby(primary)
    primary.sql(CHANGE)
    standby.catch_up(primary)
    primary.stop()
    standby.promote()
    standby.sql("UPDATE t SET x = x || 'z' WHERE abs(i) % 100 = 0")
    backup = client.incremental(standby, backup)
    # the old primary, stopped cleanly, follows the new one
    primary.configure(primary_conninfo=standby.conninfo(), recovery_target_timeline="latest")
    primary.write("standby.signal", "")
    primary.start()
    standby.sql("UPDATE t SET x = x || 'w' WHERE abs(i) % 130 = 0")
    standby.checkpoint()
    primary.catch_up(standby)
    primary.checkpoint()
    backup = client.incremental(primary, backup)
    assert "standby.signal" in backup.other  # it is of a standby
    client.restored(factory, backup, standby, exact=False)
