"""The map's file: what it is kept through, and when it is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import client, fault, lsn, mapfile, oracle, system
from tests.harness.cluster import MAP_TMP
from tests.harness.fault import Fault
from tests.harness.parent import CHANGE, TABLE, before, refused, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

MB = 1 << 20


# ---- kept


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 7), (7, 5)])
def test_resize_keeps_marks(factory: Factory, old: int, new: int, mode: str) -> None:
    cluster = factory.create(checksums=True, full_page_writes=False, ptrack__map_size=old)
    snapshot = before(cluster)
    init = cluster.init_lsn()
    cluster.sql(CHANGE)
    cluster.restart(mode, ptrack__map_size=new)
    assert cluster.value("SHOW ptrack.map_size") == f"{new}MB"
    assert cluster.init_lsn() == init
    oracle.check(snapshot, cluster, changed=20)
    cluster.sql("UPDATE t SET x = x || 'y' WHERE abs(i) % 99 = 0")
    cluster.restart(mode, ptrack__map_size=old)
    assert cluster.init_lsn() == init
    oracle.check(snapshot, cluster, changed=20)
    assert not (cluster.data / MAP_TMP).exists()


def test_sizes_on_disk(factory: Factory) -> None:
    """At most the map's size and a header, and nothing beside it."""
    for size in (1, 32, 128):
        cluster = factory.create(ptrack__map_size=size)
        snapshot = before(cluster)
        cluster.sql(CHANGE)
        oracle.check(snapshot, cluster, changed=20)
        cluster.restart()
        assert size * MB - 64 <= cluster.map.stat().st_size <= size * MB + 8192
        assert stat.S_IMODE(cluster.map.stat().st_mode) == 0o600
        mine = [path.name for path in (cluster.data / "global").glob("*ptrack*")]
        assert mine == ["ptrack.map"]
        oracle.check(snapshot, cluster, changed=20)
        factory.destroy_one(cluster)


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restarts(cluster: Cluster, mode: str) -> None:
    snapshot = before(cluster)
    init = cluster.init_lsn()
    for third in range(3):
        cluster.sql(f"UPDATE t SET x = x || 'y' WHERE i % 90 = {third}")
        cluster.restart(mode)
        assert cluster.init_lsn() == init
    oracle.check(snapshot, cluster, changed=20, mask_hints=mode == "immediate")


def test_first_start_is_a_parent_at_its_first_checkpoint(cluster: Cluster) -> None:
    cluster.checkpoint()
    redo = cluster.redo()
    assert 0 < cluster.init_lsn() <= redo


def test_init_lsn_does_not_move(cluster: Cluster) -> None:
    cluster.checkpoint()
    init = cluster.init_lsn()
    for _ in range(3):
        cluster.sql("CREATE TABLE x AS SELECT generate_series(1, 1000)")
        cluster.sql("DROP TABLE x")
        cluster.checkpoint()
        assert cluster.init_lsn() == init


# ---- refused


def test_disabled_and_enabled(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.restart(ptrack__map_size=0)
    assert not cluster.map.exists()
    cluster.sql(CHANGE)
    cluster.restart(ptrack__map_size=1)
    refused(snapshot, cluster)


def test_disabled_and_enabled_over_crashes(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.restart("immediate", ptrack__map_size=0)
    cluster.sql(CHANGE)
    cluster.restart("immediate", ptrack__map_size=1)
    refused(snapshot, cluster)


@pytest.mark.parametrize(
    ("first", "second"), [("fast", "fast"), ("immediate", "fast"), ("immediate", "immediate")]
)
def test_library_out_and_in(cluster: Cluster, first: str, second: str) -> None:
    """Out of shared_preload_libraries for one life of the server, which changes things."""
    snapshot = before(cluster)
    cluster.restart(first, shared_preload_libraries="")
    cluster.sql(CHANGE)
    cluster.evict()
    assert cluster.map.exists(), "no one is there to remove it"
    cluster.restart(second, shared_preload_libraries="ptrack")
    refused(snapshot, cluster)


def test_library_out_crash_without_checkpoint(factory: Factory) -> None:
    """Out, changes, a crash in it before any checkpoint, in again: the redo point has not moved.

    So all of it is replayed, and the map is kept.
    """
    cluster = factory.create(checksums=True, full_page_writes=False)
    snapshot = before(cluster)
    cluster.restart(shared_preload_libraries="")
    redo = cluster.redo()
    cluster.sql(CHANGE)
    cluster.sql("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000)")
    cluster.sql("CREATE INDEX ON t (i)")
    cluster.evict()
    assert cluster.redo() == redo
    cluster.restart("immediate", shared_preload_libraries="ptrack")
    assert cluster.init_lsn() <= snapshot.lsn, "the map was refused"
    oracle.check(snapshot, cluster, changed=20)


@pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")
def test_library_out_during_recovery(factory: Factory) -> None:
    """Killed somewhere in the recovery of a server without it."""
    cluster = factory.create(start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        snapshot = before(cluster)
        cluster.sql(CHANGE)
        cluster.stop("immediate")
        cluster.configure(shared_preload_libraries="")
        for number in (1, 2, 9):
            assert fault.start_killed(cluster, orders, number), "recovery was over"
        cluster.configure(shared_preload_libraries="ptrack")
        cluster.start()
        safe(snapshot, cluster, mask_hints=True)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_library_out_and_wal_minimal(cluster: Cluster, mode: str) -> None:
    snapshot = before(cluster)
    cluster.restart(shared_preload_libraries="", wal_level="minimal", max_wal_senders=0)
    cluster.sql("BEGIN; CREATE TABLE m AS SELECT generate_series(1, 5000) i; COMMIT")
    cluster.sql(CHANGE)
    cluster.restart(mode, shared_preload_libraries="ptrack", wal_level="replica", max_wal_senders=4)
    refused(snapshot, cluster)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_single_user(cluster: Cluster, mode: str) -> None:
    """Before 15 single-user mode does not preload: kept or refused, nothing may be lost."""
    snapshot = before(cluster)
    cluster.stop(mode)
    cluster.single_user(CHANGE, "CREATE TABLE single AS SELECT 1")
    cluster.start()
    safe(snapshot, cluster, mask_hints=mode == "immediate")


def test_single_user_without_the_library(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.stop()
    cluster.single_user(CHANGE, shared_preload_libraries="")
    cluster.start()
    refused(snapshot, cluster)


def test_old_map_put_back(cluster: Cluster) -> None:
    """The file of an earlier checkpoint."""
    snapshot = before(cluster)
    cluster.stop()
    old = cluster.map.read_bytes()
    cluster.start()
    cluster.sql(CHANGE)
    cluster.stop()
    cluster.map.write_bytes(old)
    cluster.start()
    refused(snapshot, cluster)


def test_map_of_another_cluster(factory: Factory) -> None:
    """From a cluster with the same history but another system identifier."""
    cluster = factory.create()
    snapshot = before(cluster)
    other = factory.empty("other")
    other.root.rmdir()
    other.init(checksums=False)
    other.adopt()
    other.configure(shared_preload_libraries="ptrack", ptrack__map_size=1)
    other.start()
    other.sql("SELECT pg_switch_wal() FROM generate_series(1, 1)")
    for _ in range(30):
        other.sql("CREATE TABLE x (i int); DROP TABLE x; SELECT pg_switch_wal()")
    other.stop()
    cluster.stop()
    cluster.map.write_bytes(other.map.read_bytes())
    cluster.start()
    refused(snapshot, cluster)


# ---- of another timeline

SEGMENT = "SELECT pg_logical_emit_message(false, '', 'x'), pg_switch_wal()"


def _start(copy: Cluster) -> int:
    """Where a base backup begins to replay."""
    label = (copy.data / "backup_label").read_text()
    return lsn.parse(label.partition("START WAL LOCATION: ")[2].split()[0])


def _stopped(primary: Cluster, copy: Cluster) -> None:
    """Its map ends with a clean stop."""
    while primary.position() < _start(copy) + MB:
        primary.sql(SEGMENT)
    primary.stop()


def _recovered(primary: Cluster, copy: Cluster) -> None:
    """Its map ends with a recovery."""
    while primary.position() < _start(copy) + MB:
        primary.sql(SEGMENT)
    primary.restart("immediate")
    primary.kill_all()


def _same_place(primary: Cluster, copy: Cluster) -> None:
    """Its map ends where the new one's base backup began."""
    with primary.paused("background writer"):  # it tells of running transactions in WAL
        while primary.position() // MB < _start(copy) // MB:
            primary.sql(SEGMENT)
        primary.checkpoint()
        assert primary.redo() == _start(copy)
        primary.kill_all()


@pytest.mark.parametrize(
    "end", [_stopped, _recovered, _same_place], ids=["stopped", "recovered", "same place"]
)
def test_map_of_the_old_primary(factory: Factory, end: Callable[[Cluster, Cluster], None]) -> None:
    """The old primary gets all files of the new one but for the map.

    Its own is of a branch that they have not taken, however far it goes.
    """
    primary = factory.create(checksums=True)
    snapshot = before(primary)
    standby = factory.standby(primary)
    standby.catch_up(primary)
    standby.promote()
    standby.sql(CHANGE)
    for _ in range(4):
        standby.sql(SEGMENT)
    standby.checkpoint()
    with standby.paused("background writer"):
        copy = factory.base_backup(standby, "copy")
    end(primary, copy)
    copy.map.write_bytes(primary.map.read_bytes())
    copy.start()
    safe(snapshot, copy)


def test_map_of_a_promotion_that_was_given_up(factory: Factory) -> None:
    """The old primary stays: the map of a standby that was promoted comes to its files.

    They know the new timeline, and begin behind where it left theirs.
    """
    primary = factory.create(checksums=True)
    snapshot = before(primary)
    standby = factory.standby(primary)
    standby.catch_up(primary)
    standby.promote()
    for _ in range(8):
        standby.sql(SEGMENT)
    standby.stop()
    primary.sql(CHANGE)
    primary.stop()
    history = "pg_wal/00000002.history"
    primary.write(history, (standby.data / history).read_text())
    primary.map.write_bytes(standby.map.read_bytes())
    primary.configure(recovery_target_timeline="current")
    primary.start()
    safe(snapshot, primary)


# ---- of another shape, and damaged


@pytest.mark.parametrize("name", ["blcksz", "segment_blocks"])
def test_map_of_another_shape(cluster: Cluster, name: str) -> None:
    """Whose blocks are not these: its header is sound, and names others."""
    snapshot = before(cluster)
    cluster.stop()

    def double(content: bytearray) -> None:
        assert mapfile.crc(content) == mapfile.field(content, "crc")
        mapfile.put(content, name, mapfile.field(content, name) * 2)
        mapfile.put(content, "crc", mapfile.crc(content))

    mapfile.edit(cluster.map, double)
    mark = cluster.log_size()
    cluster.start()
    refused(snapshot, cluster)
    assert "belongs to another cluster" in cluster.log_text(mark)


def _flip(offset: int) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        content[offset] ^= 0x10

    return damage


def _zero(start: int, length: int) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        content[start : start + length] = bytes(length)

    return damage


def _cut(length: int) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        del content[length:]

    return damage


def _append(content: bytearray) -> None:
    content += bytes(mapfile.PAGE)


def _swap(content: bytearray) -> None:
    """Two different pages exchanged: each is right, but not where it is."""
    one = mapfile.at(mapfile.in_use(content)[0])
    pages = range(1, len(content) // mapfile.PAGE)
    two = next(at for at in map(mapfile.at, pages) if content[at] != content[one])
    content[one], content[two] = content[two], content[one]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flip(0), id="magic"),
        pytest.param(_flip(5), id="version"),
        pytest.param(_flip(9), id="header"),
        pytest.param(_flip(40), id="header 40"),
        pytest.param(_flip(-5), id="last page"),
        pytest.param(_cut(0), id="empty"),
        pytest.param(_cut(100), id="part of the header"),
        pytest.param(_cut(300_000), id="truncated"),
        pytest.param(_append, id="extended"),
        pytest.param(_zero(0, mapfile.PAGE), id="header zeroed"),
    ],
)
def test_damaged(cluster: Cluster, damage: Callable[[bytearray], None]) -> None:
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    mapfile.edit(cluster.map, damage)
    mark = cluster.log_size()
    cluster.start()
    refused(snapshot, cluster)
    assert "WARNING:  ptrack" in cluster.log_text(mark)


def test_header_that_claims_more(cluster: Cluster) -> None:
    """A byte of the init LSN is gone: the map seems to know what was before it began."""
    snapshot = before(cluster)
    cluster.restart(ptrack__map_size=0)
    cluster.sql(CHANGE)
    cluster.restart(ptrack__map_size=1)
    init = cluster.init_lsn()
    assert init > snapshot.lsn
    cluster.stop()
    assert mapfile.field(cluster.map.read_bytes(), "init_lsn") == init
    mapfile.edit(cluster.map, lambda content: mapfile.put(content, "init_lsn", init & 0xFFFF))
    cluster.start()
    refused(snapshot, cluster)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_flipped_byte_is_an_incorrect_checksum(cluster: Cluster, mode: str) -> None:
    """The text that pg_probackup's own tests look for, and 2.4's other line."""
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.checkpoint()
    cluster.stop(mode)
    content = bytearray(cluster.map.read_bytes())
    content[mapfile.first_mark(content)] ^= 0x40
    cluster.map.write_bytes(content)
    mark = cluster.log_size()
    cluster.start()
    refused(snapshot, cluster)
    expected = [
        f'WARNING:  ptrack read map: incorrect checksum of file "{cluster.map}"',
        f'WARNING:  ptrack init: broken map file "{cluster.map}", deleting',
    ]
    cluster.wait_for(
        lambda: all(each in cluster.log_text(mark) for each in expected), "the WARNINGs", 10
    )


def test_damage_is_told_to_the_log_alone(factory: Factory) -> None:
    """Not to the client whose query comes to it: it need not read, and the map's lock is held."""
    cluster = factory.create(max_worker_processes=0)  # no loader, which would come to it first
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    mapfile.edit(cluster.map, _last_mark)
    mark = cluster.log_size()
    cluster.start()
    notices: list[str | None] = []
    with cluster.connect() as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        connection.execute("SELECT ptrack_init_lsn()")
        assert not notices
        connection.execute("DO $$ BEGIN RAISE WARNING 'to the client'; END $$")
        assert notices == ["to the client"]
    assert "WARNING:  ptrack read map: incorrect checksum of file" in cluster.log_text(mark)
    assert "WARNING:  ptrack init: broken map file" in cluster.log_text(mark)
    refused(snapshot, cluster)


def _in_header(_: bytes) -> list[int]:
    """A byte of each field, and of the zeros behind them."""
    fields = [offset + size // 2 for offset, size in mapfile.FIELDS.values()]
    return [*fields, mapfile.HEADER, mapfile.PAGE - 1]


def _in_pages(content: bytes) -> list[int]:
    """Marks, zeros among them, what has the page's checksum or must not, and an unused page."""
    used = mapfile.in_use(content)
    page = used[0] * mapfile.PAGE
    unused = next(at for at in range(1, len(content) // mapfile.PAGE) if at not in used)
    marks = [at for at in range(page, page + mapfile.PAGE) if content[at]]
    zero = next(at for at in range(page + 88, page + mapfile.PAGE) if not content[at])
    return [page, page + 80, page + 88, zero, marks[len(marks) // 2], marks[-1],
            page + mapfile.PAGE - 1, unused * mapfile.PAGE + 100, len(content) - 1]  # fmt: skip


@pytest.mark.parametrize("where", [_in_header, _in_pages], ids=["header", "pages"])
def test_any_flipped_byte(cluster: Cluster, where: Callable[[bytes], list[int]]) -> None:
    """Every byte of the file is under a checksum.

    Each is tried on the same state: the server is killed before it has changed more than WAL behind
    its end and pg_control.
    """
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    control = cluster.data / "global" / "pg_control"
    stopped = control.read_bytes()
    sound = cluster.map.read_bytes()

    def init_lsn(content: bytes | bytearray) -> int:
        control.write_bytes(stopped)
        cluster.map.write_bytes(content)
        cluster.start()
        found = cluster.init_lsn()
        cluster.kill_all()
        return found

    for number, at in enumerate(where(sound)):
        content = bytearray(sound)
        content[at] ^= 1 << number % 8
        assert init_lsn(content) > snapshot.lsn, f"byte {at} is not looked at"
    assert 0 < init_lsn(sound) <= snapshot.lsn
    cluster.start()
    oracle.check(snapshot, cluster, changed=20)


def test_page_zeroed(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    mapfile.lay(cluster.map, mapfile.in_use(cluster.map.read_bytes())[:1])
    cluster.start()
    refused(snapshot, cluster)


def test_damage_that_a_flush_finds(factory: Factory) -> None:
    """The map begins anew within a checkpoint, and serves a backup that starts with it."""
    cluster = factory.create(checksums=True, max_worker_processes=0)  # so that no loader is first
    snapshot = before(cluster)
    cluster.stop()
    content = bytearray(cluster.map.read_bytes())
    for page in mapfile.in_use(content):
        content[page * mapfile.PAGE + 100] ^= 1
    cluster.map.write_bytes(content)
    cluster.start()
    cluster.sql(CHANGE)
    mark = cluster.log_size()
    cluster.checkpoint()
    assert "incorrect checksum of file" in cluster.log_text(mark)
    redo = cluster.redo()
    assert snapshot.lsn < cluster.init_lsn() <= redo
    again = oracle.take(cluster, checkpoint=False)
    cluster.sql(CHANGE)
    cluster.restart("immediate")
    oracle.check(again, cluster, changed=20)


def _last_mark(content: bytearray) -> None:
    """Of the last page with marks: all others have been taken over when it is found."""
    at = mapfile.at(mapfile.in_use(content)[-1])
    content[next(i for i in reversed(range(at.start, at.stop)) if content[i])] ^= 1


def _size_in_header(content: bytearray) -> None:
    """It seems to be of the size that is wanted now; the file has another."""
    mapfile.put(content, "nlines", mapfile.field(content, "nlines") // 2 * 3)


def _asked(_cluster: Cluster) -> None:
    """A query finds it."""


def _flushed(cluster: Cluster) -> None:
    """A flush finds it, which is to replace the file by one of the new size."""
    cluster.checkpoint()


def _killed(cluster: Cluster) -> None:
    """Nobody has come to it before the next start."""
    cluster.kill_all()
    cluster.start()


def _resized_again(cluster: Cluster) -> None:
    cluster.restart("immediate", ptrack__map_size=5)


@pytest.mark.parametrize("first", [_asked, _flushed, _killed, _resized_again])
@pytest.mark.parametrize(
    ("damage", "old", "new", "mode"),
    [
        pytest.param(_last_mark, 2, 7, "fast", id="grown"),
        pytest.param(_last_mark, 7, 2, "immediate", id="shrunk, crash"),
        pytest.param(_size_in_header, 2, 3, "fast", id="size in the header"),
    ],
)
def test_damaged_and_resized(
    factory: Factory,
    first: Callable[[Cluster], None],
    damage: Callable[[bytearray], None],
    old: int,
    new: int,
    mode: str,
) -> None:
    """At the same start. What is sound of the marks is of no use, and nothing is lost by that."""
    # no loader: it is found by whom the test is about
    cluster = factory.create(checksums=True, ptrack__map_size=old, max_worker_processes=0)
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop(mode)
    assert len(mapfile.in_use(cluster.map.read_bytes())) > 1
    mapfile.edit(cluster.map, damage)
    cluster.configure(ptrack__map_size=new)
    mark = cluster.log_size()
    cluster.start()
    cluster.sql("UPDATE t SET i = i + 1 WHERE i % 160 = 0")
    first(cluster)
    size = new if first is not _resized_again else 5
    assert cluster.value("SHOW ptrack.map_size") == f"{size}MB"
    found = oracle.look(snapshot, cluster)
    assert cluster.init_lsn() > snapshot.lsn, "it is trusted"
    assert found.reported == found.blocks
    assert found.changed >= 20
    assert "WARNING:  ptrack read map: incorrect checksum of file" in cluster.log_text(mark)
    if first is _flushed:  # it began anew in that, at the latest
        oracle.check(oracle.take(cluster, checkpoint=False), cluster, changed=0)
    refused(snapshot, cluster)
    again = oracle.take(cluster)
    cluster.sql("UPDATE t SET i = i + 1 WHERE i % 90 = 0")
    cluster.restart(mode, ptrack__map_size=old)
    found = oracle.check(again, cluster, changed=20)
    assert found.reported < found.blocks / 2


def test_pages_swapped(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop()
    mapfile.edit(cluster.map, _swap)
    cluster.start()
    refused(snapshot, cluster)


def test_temporary_file_left_behind(cluster: Cluster) -> None:
    """A crash between writing the new file and its rename."""
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.stop("immediate")
    cluster.write(str(MAP_TMP), "half a map")
    cluster.start()
    oracle.check(snapshot, cluster, changed=20, mask_hints=True)
    cluster.restart(ptrack__map_size=2)
    oracle.check(snapshot, cluster, changed=20, mask_hints=True)
    assert not (cluster.data / MAP_TMP).exists()


def test_removed_by_hand(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.stop()
    cluster.map.unlink()
    cluster.start()
    refused(snapshot, cluster)


# ---- writing it


def _small_disk_for_anybody(request: pytest.FixtureRequest) -> None:
    """Run this test once more with a small disk mounted, in a namespace of its own; skip if not.

    The outer namespace has the right to mount, the inner one has us for its user, as whom servers
    run. The disk cannot be put over a directory that is made later: a link leads to it.
    """
    with tempfile.TemporaryDirectory(prefix="pt-disk-") as place:
        mount = f"mount -t tmpfs -o size=4m,mode=777 tmpfs {place}"
        inner = f"unshare -U --map-user={os.getuid()} --map-group={os.getgid()}"
        words = ["unshare", "-Urm", "sh", "-c", f'{mount} && exec {inner} "$@"', "sh"]
        try:
            tried = subprocess.run([*words, "true"], check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            pytest.skip(f"no small file system: {error}")
        if tried.returncode != 0:
            pytest.skip(f"no small file system may be mounted: {tried.stderr.strip()}")
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            [*words, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0",
             f"{request.path}::{request.node.name}"],
            cwd=request.config.rootpath, env=env | {"PT_SMALL_DISK": place}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[system.SmallDisk | None]:
    """Put a directory on a small disk: one that is there already, or one that is mounted now."""
    given = os.environ.get("PT_SMALL_DISK")
    if given is None:
        with system.small_disk(path, megabytes=4) as disk:
            yield disk
        return
    subprocess.run(["cp", "-a", "--sparse=always", f"{path}/.", given], check=True)
    shutil.rmtree(path)
    path.symlink_to(given)
    yield system.SmallDisk(Path(given))


def test_full_disk(factory: Factory, request: pytest.FixtureRequest) -> None:
    """A flush that fails is a WARNING; checkpoints go on; it recovers with the disk."""
    if os.geteuid() != 0 and "PT_SMALL_DISK" not in os.environ:
        _small_disk_for_anybody(request)
        return
    cluster = factory.create(checksums=True, ptrack__map_size=8)
    snapshot = before(cluster)
    cluster.stop()
    with _small_disk(cluster.data / "global") as disk:
        if disk is None:
            pytest.skip("root may not mount a small file system here")
        try:
            cluster.start()
            cluster.sql("SELECT 1")  # has PostgreSQL write its own cache file there
            disk.fill()
            mark = cluster.log_size()
            cluster.sql("CREATE TABLE u AS SELECT repeat('x', 900) FROM generate_series(1, 9000)")
            cluster.sql(CHANGE)
            redo = cluster.redo()
            cluster.checkpoint()
            assert cluster.redo() > redo, "checkpoints go on"
            assert "WARNING:  ptrack" in cluster.log_text(mark)
            oracle.look(snapshot, cluster)
            cluster.kill_all()
            disk.free()
            cluster.start()
            safe(snapshot, cluster)
            parent = oracle.take(cluster)
            cluster.sql("UPDATE t SET i = i + 5 WHERE abs(i) % 90 = 0")
            cluster.restart()
            oracle.check(parent, cluster)
        finally:
            cluster.kill_all()


def test_map_that_cannot_be_written(cluster: Cluster) -> None:
    """The file made a directory: like a full disk, but for any user."""
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.map.unlink()
    system.make_dir(cluster.map)
    cluster.write("global/ptrack.map/x", "")
    redo = cluster.redo()
    cluster.checkpoint()
    assert cluster.redo() > redo, "checkpoints go on"
    oracle.look(snapshot, cluster)
    (cluster.map / "x").unlink()
    cluster.map.rmdir()
    cluster.sql("UPDATE t SET x = x || 'y' WHERE abs(i) % 80 = 0")
    cluster.checkpoint()
    oracle.check(snapshot, cluster, changed=20)
    cluster.restart()
    safe(snapshot, cluster)


def test_map_file_deleted_while_running(cluster: Cluster) -> None:
    snapshot = before(cluster)
    cluster.sql(CHANGE)
    cluster.map.unlink()
    cluster.checkpoint()
    oracle.check(snapshot, cluster, changed=20)
    cluster.sql("UPDATE t SET x = x || 'y' WHERE abs(i) % 80 = 0")
    cluster.restart()
    safe(snapshot, cluster)


def test_client_over_a_reset(cluster: Cluster) -> None:
    """Refused, then a full backup, then increments again."""
    cluster.sql(TABLE)
    parent = client.full(cluster)
    cluster.stop()
    content = bytearray(cluster.map.read_bytes())
    content[mapfile.first_mark(content)] ^= 1
    cluster.map.write_bytes(content)
    cluster.start()
    with pytest.raises(client.Refused):
        client.incremental(cluster, parent)
    parent = client.full(cluster)
    cluster.sql(CHANGE)
    assert client.incremental(cluster, parent).blocks > 0
