"""The oracle: is every block that differs from a backup in the set that ptrack reports?

A :class:`Snapshot` is a byte-for-byte copy of all relation files (every fork, every segment,
every tablespace) with the redo point L it was taken at. :func:`compare` then does what an
incremental backup would do and nothing more: it takes the files of the snapshot, lays over
them the blocks reported as changed since L, read from the cluster's files as they are now,
cuts or extends each file to its present size (an extension is zeros), and compares every
byte with the present file. Each block that differs is one that a backup would have lost.

A file that was not there starts empty, so each of its blocks that is not all zero has to be
reported. A block that was cut off needs no report as long as the file stays shorter.

**Order.** The files are read first and the set is asked for afterwards. What was on disk
when the files were read was marked, or being written, by then, and a mark does not go away;
so a cluster at rest needs no checkpoint before a look, and :func:`check` looks twice, before
and after one. It is for clusters at rest: the present files are read without stopping writers.

**Hint bits.** Every look compares bytes strictly, unless it is told ``mask_hints``: only for a
cluster without checksums and ``wal_log_hints`` after a crash, see :mod:`tests.harness.hints`.
A page whose ``pd_lsn`` did not change gets no exemption anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.harness import files, hints, lsn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.harness.cluster import Cluster

_SHOWN = 25


@dataclass(frozen=True, kw_only=True)
class PageMap:
    """One row of the set: the changed blocks of one segment file.

    Attributes:
        path: relative to the data directory.
        pagecount: how many the row says there are.
        pagemap: a bit per block of the segment, least significant bit first.
    """

    path: str
    pagecount: int
    pagemap: bytes = field(repr=False)

    def blocks(self) -> list[int]:
        """The blocks, as numbers within the segment, ascending."""
        found = []
        for index, byte in enumerate(self.pagemap):
            if byte:
                found += [index * 8 + bit for bit in range(8) if byte >> bit & 1]
        return found

    @classmethod
    def of(cls, path: str, blocks: Iterable[int]) -> PageMap:
        """Make a row of block numbers."""
        numbers = sorted(set(blocks))
        bits = bytearray(numbers[-1] // 8 + 1 if numbers else 0)
        for number in numbers:
            bits[number // 8] |= 1 << number % 8
        return cls(path=path, pagecount=len(numbers), pagemap=bytes(bits))


class Provider(Protocol):
    """Where a set of changed blocks comes from: ptrack, or in the oracle's own tests a fake."""

    def __call__(self, since: int, /) -> list[PageMap]:
        """The blocks changed since an LSN."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a backup that started at ``lsn`` holds.

    Attributes:
        lsn: the redo point.
        content: path relative to the data directory to the bytes of that file.
        names: path to the name of the relation, as far as known.
        block_size: bytes of a block.
    """

    lsn: int
    content: Mapping[str, bytes] = field(repr=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    block_size: int = 8192


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A block that differs and was not reported.

    Attributes:
        block: its number within the segment file.
        before, after: the page in the backup and the page now; empty where there is none.
    """

    path: str
    block: int
    name: str
    before: bytes = field(repr=False)
    after: bytes = field(repr=False)

    def __str__(self) -> str:
        return (
            f"{self.path}:{self.block} {self.name}\n"
            f"    had {_describe(self.before)}\n    has {_describe(self.after)}"
            f"{_first_difference(self.before, self.after)}"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a look found.

    Attributes:
        since: the LSN that was asked for.
        lost: blocks that differ and were not reported. Empty is the promise.
        files: relation files there are.
        blocks: blocks there are.
        changed: blocks that differ from the snapshot or are new and not zero.
        reported: blocks reported, within the present files.
        hints: blocks that differ in nothing but hint bits and were not reported.
        relations: those with a block of the main fork that differs: the paths of first segments.
    """

    since: int
    lost: tuple[Lost, ...]
    files: int
    blocks: int
    changed: int
    reported: int
    hints: int
    relations: frozenset[str] = field(repr=False)

    @property
    def extra(self) -> int:
        """Blocks reported that do not differ."""
        return self.reported - (self.changed - len(self.lost) - self.hints)

    def __str__(self) -> str:
        return (
            f"since {lsn.show(self.since)}: {self.changed} of {self.blocks} blocks in "
            f"{self.files} files differ, {self.reported} reported, {self.extra} of them extra, "
            f"{len(self.lost)} lost"
        )


@dataclass(kw_only=True)
class Tally:
    """Sums over all looks at clusters of a run, for its summary."""

    looks: int = 0
    blocks: int = 0
    changed: int = 0
    reported: int = 0

    def add(self, other: Comparison | Tally) -> None:
        """Count one more look, or those of another process."""
        self.looks += other.looks if isinstance(other, Tally) else 1
        self.blocks += other.blocks
        self.changed += other.changed
        self.reported += other.reported

    def __str__(self) -> str:
        return (
            f"{self.looks} looks, {self.blocks} blocks compared, {self.changed} of them changed, "
            f"{self.reported} reported"
        )


TALLY = Tally()


class LostBlocks(AssertionError):
    """The set had holes. Attributes: comparison."""

    def __init__(self, comparison: Comparison, when: str) -> None:
        shown = [str(lost) for lost in comparison.lost[:_SHOWN]]
        more = len(comparison.lost) - len(shown)
        if more > 0:
            shown.append(f"... and {more} more")
        super().__init__("\n".join([f"{when}: {comparison}", *shown]))
        self.comparison = comparison


def evict(snapshot: Snapshot, cluster: Cluster, changed: int) -> int:
    """Have what changed since written out, before a crash; the number of blocks that differ then.

    Raises:
        AssertionError: there are fewer than ``changed``: the crash would test recovery alone.
    """
    cluster.evict()
    found = compare(snapshot, cluster.files(), []).changed
    assert found >= changed, f"{found} blocks were written out, and not {changed}"
    return found


def compare(
    snapshot: Snapshot,
    current: Mapping[str, bytes],
    reported: Iterable[PageMap],
    *,
    mask_hints: bool = False,
) -> Comparison:
    """Build what a client would have, and hold it against what there is.

    Raises:
        AssertionError: the set contradicts itself (a path twice, a wrong count).
    """
    maps: dict[str, set[int]] = {}
    for row in reported:
        numbers = row.blocks()
        assert row.path not in maps, f"{row.path} is reported twice"
        assert row.pagecount == len(numbers), f"{row.path}: {row.pagecount} is not the bit count"
        assert numbers, f"{row.path}: a row without a block"
        maps[row.path] = set(numbers)

    block_size = snapshot.block_size
    nothing: set[int] = set()
    lost: list[Lost] = []
    relations: set[str] = set()
    blocks = changed = hit = masked = 0
    for path, now in current.items():
        total = -(-len(now) // block_size)
        blocks += total
        marks = maps.get(path, nothing)
        if marks:
            hit += sum(1 for block in marks if block < total)
        old = snapshot.content.get(path, b"")
        if old == now:
            continue
        parsed = files.FileName.parse(path.rpartition("/")[2])
        relation = _base(path) if parsed and parsed.fork == "main" else None
        for block in range(total):
            start = block * block_size
            after = now[start : start + block_size]
            before = old[start : start + block_size]
            have = before + bytes(len(after) - len(before))
            if have == after:
                continue
            changed += 1
            if relation is not None:
                relations.add(relation)
            if block in marks:
                continue
            if mask_hints and _only_hints(path, before, after, block_size):
                masked += 1
                continue
            name = snapshot.names.get(path, "")
            lost.append(Lost(path=path, block=block, name=name, before=before, after=after))
    return Comparison(
        since=snapshot.lsn,
        lost=tuple(lost),
        files=len(current),
        blocks=blocks,
        changed=changed,
        reported=hit,
        hints=masked,
        relations=frozenset(relations),
    )


def take(
    cluster: Cluster,
    *,
    checkpoint: bool = True,
    primary: Cluster | None = None,
    since: int | None = None,
    usable: bool = True,
) -> Snapshot:
    """Copy all relation files at a redo point.

    Args:
        checkpoint: make one, whose redo point is the LSN of the snapshot.
        primary: of a standby, whose checkpoints are made there.
        since: the LSN, where the caller has one (of a backup it started).
        usable: insist that the map can serve a backup of this LSN.
    """
    with cluster.connected(), (primary or cluster).connected():
        if checkpoint:
            # What a checkpoint writes is marked past its own redo point. The first one writes, so
            # that at the second there is nothing left to write, and no mark that hides a loss.
            for _ in range(2):
                if primary is None:
                    cluster.checkpoint()
                else:
                    cluster.restartpoint(primary)
        at = cluster.redo() if since is None else since
        if usable:
            init = cluster.init_lsn()
            assert 0 < init <= at, f"init LSN {lsn.show(init)}, redo {lsn.show(at)}: unusable"
    return Snapshot(lsn=at, content=cluster.files(), block_size=cluster.block_size)


def look(
    snapshot: Snapshot,
    cluster: Cluster,
    *,
    mask_hints: bool = False,
    provider: Provider | None = None,
    when: str = "as it is",
    current: Mapping[str, bytes] | None = None,
) -> Comparison:
    """One look at a cluster at rest: no checkpoint, no restart.

    Args:
        current: the files, where they have just been read.

    Raises:
        LostBlocks: the promise does not hold.
    """
    if current is None:
        current = cluster.files()
    reported = (provider or cluster.pagemapset)(snapshot.lsn)
    comparison = compare(snapshot, current, reported, mask_hints=mask_hints)
    TALLY.add(comparison)
    if comparison.lost:
        named = cluster.relation_names()
        lost = (
            Lost(
                path=one.path,
                block=one.block,
                name=one.name or named.get(_base(one.path), "(gone or unknown)"),
                before=one.before,
                after=one.after,
            )
            for one in comparison.lost
        )
        comparison = Comparison(**{**vars(comparison), "lost": tuple(lost)})
        raise LostBlocks(comparison, f"{cluster.name}, {when}")
    return comparison


def check(
    snapshot: Snapshot,
    cluster: Cluster,
    *,
    mask_hints: bool = False,
    provider: Provider | None = None,
    changed: int = 1,
) -> Comparison:
    """Hold the promise against a cluster at rest: a look before and one after a checkpoint.

    Args:
        changed: at least so many blocks must differ, or the test did not test.

    Raises:
        LostBlocks: a block differs and was not reported.
        AssertionError: fewer than ``changed`` blocks differ, or the map cannot serve the LSN.
    """
    with cluster.connected():
        if provider is None:
            init = cluster.init_lsn()
            assert 0 < init <= snapshot.lsn, (
                f"the map was reset: init LSN {lsn.show(init)}, parent {lsn.show(snapshot.lsn)}"
            )
        look(
            snapshot, cluster, mask_hints=mask_hints, provider=provider, when="before a checkpoint"
        )
        cluster.checkpoint()
        comparison = look(
            snapshot, cluster, mask_hints=mask_hints, provider=provider, when="after a checkpoint"
        )
        if provider is None:
            init = cluster.init_lsn()
            assert 0 < init <= snapshot.lsn, "the map was reset meanwhile"
    assert comparison.changed >= changed, f"nothing to see: {comparison}"
    return comparison


def _only_hints(path: str, before: bytes, after: bytes, block_size: int) -> bool:
    name = files.FileName.parse(path.rpartition("/")[2])
    if name is None or name.fork != "main" or not len(before) == len(after) == block_size:
        return False
    return hints.only(before, after)


def _base(path: str) -> str:
    """Path of the first segment of the main fork."""
    directory, _, name = path.rpartition("/")
    parsed = files.FileName.parse(name)
    return f"{directory}/{parsed.rel}" if parsed else path


def _describe(page: bytes) -> str:
    if not page:
        return "nothing"
    if not any(page):
        return "zeros"
    if len(page) < 24:
        return f"{len(page)} bytes"
    high, low, checksum, flags, lower, upper, special = struct.unpack_from("=IIHHHHH", page)
    return (
        f"lsn {lsn.show(high << 32 | low)} checksum {checksum:04x} flags {flags:x} "
        f"lower {lower} upper {upper} special {special}"
    )


def _first_difference(before: bytes, after: bytes) -> str:
    if len(before) != len(after):
        return ""
    offsets = [at for at, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
    return f"\n    {len(offsets)} bytes differ, at {offsets[:12]}"
