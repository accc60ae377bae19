"""The oracle's own tests: it must see every kind of loss, and nothing else.

Made-up files first, then a real server with a made-up source of the set; none of them needs
ptrack.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.harness import files, hints, oracle
from tests.harness.oracle import LostBlocks, PageMap, Snapshot, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

B = 8192
OLD = b"o" * B
NEW = b"n" * B
ZERO = bytes(B)


def lost(
    before: Mapping[str, bytes], after: Mapping[str, bytes], *rows: PageMap
) -> list[tuple[str, int]]:
    found = compare(Snapshot(lsn=1, content=before), after, rows).lost
    return [(one.path, one.block) for one in found]


@pytest.mark.parametrize(
    ("before", "after", "blocks", "expected"),
    [
        pytest.param(OLD * 3, OLD * 3, [], [], id="nothing changed"),
        pytest.param(OLD * 3, OLD + NEW + OLD, [], [1], id="change unreported"),
        pytest.param(OLD * 3, OLD + NEW + OLD, [1], [], id="change reported"),
        pytest.param(OLD * 3, OLD + NEW + OLD, [0, 2], [1], id="neighbours reported"),
        pytest.param(OLD * 3, OLD, [], [], id="truncated"),
        pytest.param(OLD * 3, NEW, [], [0], id="truncated and changed"),
        pytest.param(OLD * 3, b"", [], [], id="truncated to nothing"),
        pytest.param(OLD, OLD + ZERO * 2, [], [], id="extended by zeros"),
        pytest.param(OLD, OLD + NEW + ZERO, [], [1], id="extended by content"),
        pytest.param(OLD, OLD + NEW + ZERO, [1], [], id="extension reported"),
        pytest.param(OLD * 2, OLD + ZERO, [], [1], id="turned to zeros"),
        pytest.param(b"", NEW * 2, [0], [1], id="half of a new file"),
        pytest.param(None, NEW * 2, [0], [1], id="half of a created file"),
        pytest.param(None, ZERO * 2, [], [], id="created file of zeros"),
        pytest.param(OLD, None, [], [], id="dropped"),
        pytest.param(OLD, OLD, [0, 7], [], id="reported too much"),
        pytest.param(OLD, OLD + b"half", [], [1], id="a torn end"),
    ],
)
def test_loss(
    before: bytes | None, after: bytes | None, blocks: list[int], expected: list[int]
) -> None:
    path = "base/5/16384.1"
    rows = [PageMap.of(path, blocks)] if blocks else []
    found = lost(
        {} if before is None else {path: before}, {} if after is None else {path: after}, *rows
    )
    assert found == [(path, block) for block in expected]


def test_one_bit_is_enough() -> None:
    page = bytearray(OLD)
    page[5000] ^= 1
    assert lost({"base/1/2": OLD}, {"base/1/2": bytes(page)}) == [("base/1/2", 0)]


def test_rows_go_by_path() -> None:
    before = {"base/1/2": OLD, "base/1/2_fsm": OLD}
    after = {"base/1/2": OLD, "base/1/2_fsm": NEW}
    assert lost(before, after, PageMap.of("base/1/2", [0])) == [("base/1/2_fsm", 0)]
    assert lost(before, after, PageMap.of("base/1/2_fsm", [0])) == []


def test_counts() -> None:
    snapshot = Snapshot(lsn=1, content={"base/1/2": OLD * 4})
    found = compare(
        snapshot, {"base/1/2": OLD + NEW + OLD + NEW}, [PageMap.of("base/1/2", [0, 1, 9])]
    )
    assert (found.changed, found.reported, found.extra, len(found.lost)) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([PageMap.of("a", [1]), PageMap.of("a", [2])], id="a path twice"),
        pytest.param([PageMap(path="a", pagecount=2, pagemap=b"\x01")], id="wrong count"),
        pytest.param([PageMap(path="a", pagecount=0, pagemap=b"\x00")], id="empty row"),
    ],
)
def test_contradictions(rows: list[PageMap]) -> None:
    with pytest.raises(AssertionError):
        compare(Snapshot(lsn=1, content={}), {}, rows)


def test_bits_count_from_the_least() -> None:
    assert PageMap(path="a", pagecount=3, pagemap=b"\x01\x80\x02\x00").blocks() == [0, 15, 17]
    assert PageMap.of("a", [0, 15, 17]).pagemap == b"\x01\x80\x02"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("16384", (16384, "main", 0)),
        ("16384.12", (16384, "main", 12)),
        ("16384_vm", (16384, "vm", 0)),
        ("16384_fsm.1", (16384, "fsm", 1)),
        ("16384_init", (16384, "init", 0)),
        ("t3_16384", None),
        ("t3_16384_fsm", None),
        ("PG_VERSION", None),
        ("pg_filenode.map", None),
        ("16384_tmp", None),
        ("ptrack.map", None),
        ("16384.", None),
    ],
)
def test_names(name: str, expected: tuple[int, str, int] | None) -> None:
    parsed = files.FileName.parse(name)
    assert (None if parsed is None else (parsed.rel, parsed.fork, parsed.segment)) == expected


# ---- hint bits


def heap_page(infomask: int = 0, flags: int = 0, prune: int = 0, data: bytes = b"row") -> bytes:
    """A heap page with one tuple."""
    page = bytearray(B)
    at = B - 64
    struct.pack_into("=IIHHHHHHI", page, 0, 0, 99, 0, flags, 28, at, B, B | 4, prune)
    struct.pack_into("=I", page, 24, at | 1 << 15 | 60 << 17)
    struct.pack_into("=H", page, at + 20, infomask)
    page[at + 24 : at + 24 + len(data)] = data
    return bytes(page)


def btree_page(item_flags: int, flags: int, level: int = 0, cycle: int = 0) -> bytes:
    """A btree page with one item."""
    page = bytearray(B)
    special = B - 16
    at = special - 16
    struct.pack_into("=IIHHHHHHI", page, 0, 0, 99, 0, 0, 28, at, special, B | 4, 0)
    struct.pack_into("=I", page, 24, at | item_flags << 15 | 16 << 17)
    struct.pack_into("=IIIHH", page, special, 1, 2, level, flags, cycle)
    return bytes(page)


def brin_page(page_type: int, flags: int = 0) -> bytes:
    """An empty page of a BRIN index."""
    page = bytearray(B)
    struct.pack_into("=IIHHHHHHI", page, 0, 0, 99, 0, 0, 24, B - 8, B - 8, B | 4, 0)
    struct.pack_into("=HHHH", page, B - 8, 0, 0, flags, page_type)
    return bytes(page)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        pytest.param(heap_page(), heap_page(infomask=0x0500), True, id="committed"),
        pytest.param(heap_page(), heap_page(infomask=0x0A00), True, id="aborted"),
        pytest.param(heap_page(), heap_page(infomask=0x0010), False, id="a lock bit"),
        pytest.param(heap_page(), heap_page(infomask=0x2000), False, id="HEAP_UPDATED"),
        pytest.param(heap_page(), heap_page(flags=3), True, id="full, free lines"),
        pytest.param(heap_page(), heap_page(flags=4), True, id="all visible"),
        pytest.param(heap_page(flags=4), heap_page(), False, id="all visible, taken away"),
        pytest.param(heap_page(), heap_page(flags=8), False, id="an unknown flag"),
        pytest.param(heap_page(), heap_page(prune=7), True, id="prune xid"),
        pytest.param(heap_page(), heap_page(data=b"roW"), False, id="data"),
        pytest.param(btree_page(1, 1), btree_page(3, 1 | 1 << 6), True, id="dead item"),
        pytest.param(btree_page(1, 1), btree_page(2, 1), False, id="another item flag"),
        pytest.param(btree_page(1, 1), btree_page(1, 2), False, id="another page flag"),
        pytest.param(btree_page(1, 1), btree_page(1, 1, level=2), False, id="level"),
        pytest.param(btree_page(1, 8), btree_page(3, 8), False, id="a metapage has no items"),
        pytest.param(btree_page(1, 1, cycle=7), btree_page(1, 1), True, id="cycle id"),
        pytest.param(btree_page(1, 1), btree_page(1, 1, cycle=7), False, id="cycle id, set"),
        pytest.param(btree_page(1, 1, cycle=9), btree_page(1, 1, cycle=7), False, id="another"),
        pytest.param(btree_page(1, 8, cycle=7), btree_page(1, 8), False, id="none in a metapage"),
        pytest.param(brin_page(0xF093), brin_page(0xF093, flags=1), True, id="being evacuated"),
        pytest.param(brin_page(0xF093, flags=1), brin_page(0xF093), False, id="no more"),
        pytest.param(brin_page(0xF093), brin_page(0xF093, flags=2), False, id="unknown to brin"),
        pytest.param(brin_page(0xF092), brin_page(0xF092, flags=1), False, id="brin's revmap"),
        pytest.param(OLD, NEW, False, id="no page at all"),
    ],
)
def test_hint_bits(one: bytes, two: bytes, *, same: bool) -> None:
    assert hints.only(one, two) is same
    before, after = {"base/1/2": one}, {"base/1/2": two}
    snapshot = Snapshot(lsn=1, content=before)
    assert compare(snapshot, after, []).lost, "strict means strict"
    assert bool(compare(snapshot, after, [], mask_hints=True).lost) is not same


def test_only_the_main_fork_has_hint_bits() -> None:
    one, two = heap_page(), heap_page(flags=3)
    snapshot = Snapshot(lsn=1, content={"base/1/2_vm": one})
    assert compare(snapshot, {"base/1/2_vm": two}, [], mask_hints=True).lost


def test_unchanged_page_lsn_is_no_excuse() -> None:
    changed = bytearray(heap_page())
    struct.pack_into("=H", changed, 8, 0xABCD)  # what pg_checksums does
    snapshot = Snapshot(lsn=1, content={"base/1/2": heap_page()})
    assert compare(snapshot, {"base/1/2": bytes(changed)}, [], mask_hints=True).lost


# ---- on a server, with a made-up set


class Exact:
    """A set made of what differs, less what a test takes out."""

    def __init__(self, cluster: Cluster, snapshot: Snapshot) -> None:
        self.cluster = cluster
        self.snapshot = snapshot
        self.leave_out: set[tuple[str, int]] = set()

    def __call__(self, since: int, /) -> list[PageMap]:
        assert since == self.snapshot.lsn
        found = compare(self.snapshot, self.cluster.files(), [])
        blocks: dict[str, list[int]] = {}
        for one in found.lost:
            if (one.path, one.block) not in self.leave_out:
                blocks.setdefault(one.path, []).append(one.block)
        return [PageMap.of(path, numbers) for path, numbers in blocks.items()]


def test_on_a_server(factory: Factory) -> None:
    cluster = factory.create(ptrack=False)
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i")
    snapshot = oracle.take(cluster, usable=False)
    exact = Exact(cluster, snapshot)
    assert cluster.path_of("t") in snapshot.content
    assert len(cluster.relation_bytes("t")) == cluster.value("SELECT pg_relation_size('t')")

    with pytest.raises(AssertionError, match="nothing to see"):
        oracle.check(snapshot, cluster, provider=exact, changed=1000)

    cluster.sql("UPDATE t SET i = -i WHERE i % 100 = 0")
    found = oracle.check(snapshot, cluster, provider=exact, changed=20)
    assert found.extra == 0

    # each block left out, one at a time, is missed: sampled
    everything = [(row.path, block) for row in exact(snapshot.lsn) for block in row.blocks()]
    for path, block in everything[:: max(1, len(everything) // 8)]:
        exact.leave_out = {(path, block)}
        with pytest.raises(LostBlocks) as caught:
            oracle.look(snapshot, cluster, provider=exact)
        assert [(one.path, one.block) for one in caught.value.comparison.lost] == [(path, block)]
    assert "postgres: t" in "".join(str(one) for one in compare_names(cluster, snapshot)), (
        "the report names relations"
    )

    with pytest.raises(LostBlocks):
        oracle.check(snapshot, cluster, provider=lambda _since: [])


def compare_names(cluster: Cluster, snapshot: Snapshot) -> tuple[oracle.Lost, ...]:
    with pytest.raises(LostBlocks) as caught:
        oracle.look(snapshot, cluster, provider=lambda _since: [])
    return caught.value.comparison.lost


def test_sees_a_file_changed_by_hand(factory: Factory) -> None:
    cluster = factory.create(ptrack=False)
    cluster.sql("CREATE TABLE t AS SELECT i FROM generate_series(1, 5000) i")
    snapshot = oracle.take(cluster, usable=False)
    path = cluster.path_of("t")
    cluster.stop()
    with (cluster.data / path).open("r+b") as file:
        file.seek(cluster.block_size * 3 + cluster.block_size // 2)
        file.write(b"!")
    cluster.start()
    with pytest.raises(LostBlocks) as caught:
        oracle.look(snapshot, cluster, provider=lambda _since: [])
    assert (path, 3) in {(one.path, one.block) for one in caught.value.comparison.lost}


def test_a_tablespace_is_part_of_it(factory: Factory) -> None:
    cluster = factory.create(ptrack=False)
    cluster.script(
        [
            f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'",
            "CREATE TABLE t TABLESPACE ts AS SELECT 1",
        ]
    )
    snapshot = oracle.take(cluster, usable=False)
    path = cluster.path_of("t")
    assert path.startswith("pg_tblspc/")
    assert path in snapshot.content
