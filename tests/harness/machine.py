"""A state machine: hypothesis draws what happens to a cluster, the oracle looks after each step.

A run is some *examples*. An example is a fresh cluster with settings that are drawn, and then
some *steps*: SQL of every kind that touches relation files, checkpoints and evictions, backups,
ends of every kind and new starts, other sizes of the map, kills of single processes, a standby
and its promotion, an old primary that is rewound, restores, also to a point in time, and base
backups of the standby that take a cluster's place, lapses in which ptrack is away, backends that
stand alone, and damage to the map's file.

**What holds after each step.** :meth:`Machine.nothing_is_lost` compares the files of each
running cluster with every backup it has (a :class:`Parent`), as they are, with what is dirty
still in shared buffers; nothing waits for a checkpoint. No backup becomes useless
(``init_lsn`` passes it) but by a lapse or damage, and after either every one does, unless the lapse
is replayed. A standby has lapses of its own.

**Which backups a cluster has.** Its own, and those that were there when it was made by a base
backup or a restore: the map came with it. A backup of the primary that is younger than the
standby is none of the standby's: replay makes pages that are equal in content, not in bytes.

**Draws know nothing of the server.** Rules and arguments come from what was drawn before, never
from what a server answered, so that an example replays and shrinks. Hence the SQL works in any
state: tables are slots that are always there, indexes are dropped if they exist.

**Nothing is placed by the clock.** What a crash or a backup finds a writer at is drawn as a count:
the fifth call that changes a relation's file, say (:data:`PLACES`, :mod:`tests.harness.fault`). The
process that comes to it stands still there, or the work is over before anybody does. So the same
draws come to the same state, but for what the server does on its own now and then.

The simplest example costs nothing: the cluster starts with the first step that needs it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import re
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import hypothesis
import psycopg
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine, providers
from hypothesis.internal.constants_ast import Constants
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ptrack_build.host import switched_on
from tests.harness import client, fault, lsn, mapfile, oracle, system, verify
from tests.harness.cluster import MAP_TMP, PTRACK, NotInTime, StartFailed
from tests.harness.fault import Action, Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from tests.harness.client import Backup
    from tests.harness.cluster import Cluster, Row, Value
    from tests.harness.factory import Factory
    from tests.harness.install import Install
    from tests.harness.oracle import Snapshot

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

#: Steps of an example.
STEPS = 16
#: Backups a cluster has at most; the second oldest goes first.
PARENTS = 4

# ---- what is drawn

SLOTS = ("a", "b", "c")
SIZES = (1, 2, 3, 5, 7)  # MB; none divides another but by 1

_ROW = (
    "i, i % 97, md5(i::text), point(i % 991, i % 983), "
    "ARRAY[i % 100, i % 7, i], repeat(md5(i::text), 6), "
    "CASE WHEN i % 40 = 0 THEN repeat(md5(i::text), 100) END"
)
_INSERT = f"INSERT INTO {{t}} SELECT {_ROW} FROM generate_series({{first}}, {{last}}) i"
_CREATE = (
    (
        "CREATE {kind} TABLE {t} (id int, k int, s text, p point, v int[], f text, x text) "
        "WITH (fillfactor = {fill})"
    ),
    "ALTER TABLE {t} ALTER x SET STORAGE EXTERNAL",
)

#: Changes of rows. ``{n}`` is 0 to 9.
DML: Mapping[str, Sequence[str]] = {
    "insert one": (_INSERT.format(t="{t}", first="{n}", last="{n}"),),
    "insert some": (_INSERT.format(t="{t}", first="{n}0000", last="{n}0060"),),
    "insert many": (_INSERT.format(t="{t}", first="{n}1000", last="{n}1500"),),
    "copy": ("COPY {t} (id) FROM PROGRAM 'seq {n} 900'",),
    "update": ("UPDATE {t} SET k = k + 1 WHERE id % 23 = {n}",),
    "update one": ("UPDATE {t} SET k = k + 1 WHERE id = {n}0",),
    "update indexed": ("UPDATE {t} SET s = md5(s), p = p + point(1, 1) WHERE id % 29 = {n}",),
    "update wide": ("UPDATE {t} SET f = f || 'x' WHERE id % 50 < {n}",),
    "update toast": ("UPDATE {t} SET x = repeat(md5(id::text), 90) WHERE id % 70 = {n}",),
    "delete": ("DELETE FROM {t} WHERE id % 17 = {n}",),
    "delete the tail": ("DELETE FROM {t} WHERE id > {n}0",),
    "delete all": ("DELETE FROM {t}",),
    "aborted": ("BEGIN", _INSERT.format(t="{t}", first="1", last="{n}00"), "ROLLBACK"),
    "subtransactions": (
        (
            "DO $$ BEGIN FOR i IN 1..5 LOOP BEGIN UPDATE {t} SET k = -k WHERE id % 31 = i + {n}; "
            "RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; "
            "UPDATE {t} SET k = k + 2 WHERE id % 31 = {n}; END $$"
        ),
    ),
    "lock": ("SELECT count(*) FROM (SELECT * FROM {t} WHERE id % 19 = {n} FOR UPDATE) x",),
    "read": ("SELECT count(*) FROM {t}",),
    "read by index": (
        "SET enable_seqscan = off",
        "SELECT count(*) FROM {t} WHERE s > '{n}'",
        "SELECT count(*) FROM {t} WHERE p <@ box '(0,0),(500,500)'",
    ),
}

#: Vacuum and its relatives.
VACUUM: Mapping[str, Sequence[str]] = {
    "vacuum": ("VACUUM {t}",),
    "freeze": ("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) {t}",),
    "no truncation": ("VACUUM (TRUNCATE false) {t}",),
    "no index cleanup": ("VACUUM (INDEX_CLEANUP false) {t}",),
    "cut the tail": ("DELETE FROM {t} WHERE id > 40", "VACUUM {t}"),
    "cut and grow": (
        "DELETE FROM {t} WHERE id > 40",
        "VACUUM {t}",
        _INSERT.format(t="{t}", first="1", last="300"),
    ),
    "cut and copy": (
        "DELETE FROM {t} WHERE id > 40",
        "VACUUM {t}",
        "COPY {t} (id) FROM PROGRAM 'seq 1 3000'",
    ),
    "empty": ("DELETE FROM {t}", "VACUUM {t}"),
    "visibility map": ("SELECT pg_truncate_visibility_map('{t}')",),
    "analyze": ("ANALYZE {t}",),
    "catalog": ("VACUUM pg_catalog.pg_class", "VACUUM pg_catalog.pg_attribute"),
}

#: What a backend that stands alone is given, a statement a line.
STAND_ALONE: Mapping[str, Sequence[str]] = {**DML, **VACUUM}


def _in_transaction(*statements: str, rows: int, end: str = "COMMIT") -> Sequence[str]:
    return ("BEGIN", *statements, _INSERT.format(t="{t}", first="1", last=rows), end)


def _anew(kind: str, fill: int) -> Sequence[str]:
    made = (one.format(kind=kind, t="{t}", fill=fill) for one in _CREATE)
    return _in_transaction("DROP TABLE {t}", *made, rows=250)


#: What gives a table a new file or another kind.
REWRITE: Mapping[str, Sequence[str]] = {
    "vacuum full": ("VACUUM FULL {t}",),
    "cluster": ("CREATE INDEX IF NOT EXISTS {t}_id ON {t} (id)", "CLUSTER {t} USING {t}_id"),
    "to bigint": ("ALTER TABLE {t} ALTER k TYPE bigint",),
    "to int": ("ALTER TABLE {t} ALTER k TYPE int",),
    "volatile column": ("ALTER TABLE {t} ADD r float DEFAULT random()", "ALTER TABLE {t} DROP r"),
    "set unlogged": ("ALTER TABLE {t} SET UNLOGGED",),
    "set logged": ("ALTER TABLE {t} SET LOGGED",),
    "to ts": ("ALTER TABLE {t} SET TABLESPACE ts",),
    "to in_place": ("ALTER TABLE {t} SET TABLESPACE in_place",),
    "to pg_default": ("ALTER TABLE {t} SET TABLESPACE pg_default",),
    "truncate": ("TRUNCATE {t}",),
    "truncate and fill": _in_transaction("TRUNCATE {t}", rows=200),
    "truncate, aborted": _in_transaction("TRUNCATE {t}", rows=200, end="ROLLBACK"),
    "anew": _anew("", 100),
    "anew, unlogged": _anew("UNLOGGED", 60),
}

METHODS: Mapping[str, str] = {
    "btree": "s", "hash": "s", "gist": "p", "spgist": "s", "gin": "v", "brin": "id", "bloom": "id",
}  # fmt: skip

#: What is done to the index ``{t}_{m}``, of method ``{m}`` on column ``{c}``.
INDEX: Mapping[str, Sequence[str]] = {
    "build": ("DROP INDEX IF EXISTS {t}_{m}", "CREATE INDEX {t}_{m} ON {t} USING {m} ({c})"),
    "build concurrently": (
        "DROP INDEX CONCURRENTLY IF EXISTS {t}_{m}",
        "CREATE INDEX CONCURRENTLY {t}_{m} ON {t} USING {m} ({c})",
    ),
    "build in ts": (
        "DROP INDEX IF EXISTS {t}_{m}",
        "CREATE INDEX {t}_{m} ON {t} USING {m} ({c}) TABLESPACE ts",
    ),
    "build and abort": (
        "BEGIN",
        "DROP INDEX IF EXISTS {t}_{m}",
        "CREATE INDEX {t}_{m} ON {t} USING {m} ({c})",
        "ROLLBACK",
    ),
    "move": (
        "CREATE INDEX IF NOT EXISTS {t}_{m} ON {t} USING {m} ({c})",
        "ALTER INDEX {t}_{m} SET TABLESPACE ts",
    ),
    "reindex": ("REINDEX TABLE {t}",),
    "reindex concurrently": ("REINDEX TABLE CONCURRENTLY {t}",),
    "drop": ("DROP INDEX IF EXISTS {t}_{m}",),
    "drop concurrently": ("DROP INDEX CONCURRENTLY IF EXISTS {t}_{m}",),
}

#: Things beside the slots.
OTHER: Mapping[str, Sequence[str]] = {
    "sequence": ("SELECT count(nextval('q')) FROM generate_series(1, 40)",),
    "sequence reset": ("ALTER SEQUENCE q RESTART", "SELECT setval('q', 4711)"),
    "matview": ("REFRESH MATERIALIZED VIEW m",),
    "matview concurrently": (
        "UPDATE base SET s = md5(s) WHERE i % 9 = 0",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    ),
    "large object": ("SELECT lo_from_bytea(0, convert_to(repeat('large', 3000), 'UTF8'))",),
    "catalog": (
        (
            "DO $$ BEGIN FOR i IN 1..12 LOOP EXECUTE format("
            "'CREATE TABLE z%s (i int PRIMARY KEY, s text)', i); END LOOP; END $$"
        ),
        "DO $$ BEGIN FOR i IN 1..12 LOOP EXECUTE format('DROP TABLE z%s', i); END LOOP; END $$",
    ),
    "catalog rewritten": (
        "VACUUM FULL pg_catalog.pg_attrdef",
        "VACUUM FULL pg_catalog.pg_class",
        "REINDEX TABLE pg_catalog.pg_database",
    ),
    "temporary": (
        "CREATE TEMPORARY TABLE mine AS SELECT i, repeat('x', 200) FROM generate_series(1, 900) i",
        "CREATE INDEX ON mine (i)",
    ),
    "switch of WAL": ("SELECT pg_switch_wal()",),
}

#: Whole databases: ``d2`` is a copy of ``d1``. ``\\c`` goes on in another one.
#: Before these a standby that replays a move once more, after a crash, misses the directory that
#: the move removed, and does not start.
MOVES_REPLAYED = {12: 120012, 13: 130008, 14: 140005}

DATABASE: Mapping[str, Sequence[str]] = {
    "file_copy": ("DROP DATABASE IF EXISTS d2", "CREATE DATABASE d2 TEMPLATE d1 {file_copy}"),
    "wal_log": ("DROP DATABASE IF EXISTS d2", "CREATE DATABASE d2 TEMPLATE d1 {wal_log}"),
    "file_copy into ts": (
        "DROP DATABASE IF EXISTS d2",
        "CREATE DATABASE d2 TEMPLATE d1 TABLESPACE ts {file_copy}",
    ),
    "same oid": (
        "DROP DATABASE IF EXISTS d2",
        "CREATE DATABASE d2 TEMPLATE d1 {oid} {file_copy}",
    ),
    "same oid, wal_log": (
        "DROP DATABASE IF EXISTS d2",
        "CREATE DATABASE d2 TEMPLATE d1 {oid} {wal_log}",
    ),
    "to ts": ("ALTER DATABASE d2 SET TABLESPACE ts",),
    "out and back": (
        "ALTER DATABASE d2 SET TABLESPACE ts",
        "\\c d2",
        "UPDATE t SET i = -i WHERE i % 7 = 0",
        "\\c postgres",
        "ALTER DATABASE d2 SET TABLESPACE pg_default",
    ),
    "drop": ("DROP DATABASE IF EXISTS d2",),
    "change": (
        "\\c d1",
        "UPDATE t SET i = -i WHERE i % 9 = 0",
        "DELETE FROM t WHERE i % 50 = 0",
    ),
    "cut": ("\\c d1", "DELETE FROM t WHERE i > 40", "VACUUM t"),
    "grow": (
        "\\c d2",
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 500) i",
    ),
}

ENDS = ("clean", "immediate", "kill all", "kill postmaster")
CRASHES = ENDS[1:]
CHILDREN = (
    "client backend", "checkpointer", "background writer", "walwriter",
    "logical replication launcher",
)  # fmt: skip
STANDBY_CHILDREN = ("client backend", "checkpointer", "startup", "walreceiver")
REDO = "Latest checkpoint's REDO location"
#: What a life without ptrack is set to, and what ends it.
AWAY: Mapping[str, tuple[Mapping[str, Value], Mapping[str, Value]]] = {
    "off": ({"ptrack.map_size": 0}, {"ptrack.map_size": 2}),
    "unloaded": ({"shared_preload_libraries": ""}, {"shared_preload_libraries": "ptrack"}),
    "minimal": (
        {"shared_preload_libraries": "", "wal_level": "minimal", "max_wal_senders": 0},
        {"shared_preload_libraries": "ptrack", "wal_level": "replica", "max_wal_senders": 4},
    ),
}
#: What is done to the map's file while the server is down. It is whole after the first one alone.
DAMAGES = (
    "half a file beside it", "byte flipped", "header flipped", "page zeroed", "pages swapped",
    "cut short", "emptied", "grown", "older", "removed",
)  # fmt: skip
#: What becomes of a base backup of the standby.
COPIES = ("follows", "recovers", "starts")

FAMILIES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "dml": DML,
    "vacuum": VACUUM,
    "rewrite": REWRITE,
    "index": INDEX,
    "database": DATABASE,
    "writes": {
        "checkpoint": (*DML["update"], "CHECKPOINT"),
        "evict": (*DML["update"], "SELECT sum(pg_prewarm('filler')) FROM generate_series(1, 6)"),
    },
}

#: Work that takes long enough to be interrupted: family and name.
INTERRUPTED: Sequence[tuple[str, str]] = (
    ("dml", "insert many"), ("dml", "copy"), ("dml", "update wide"), ("vacuum", "cut and grow"),
    ("vacuum", "cut and copy"),
    ("vacuum", "cut the tail"), ("rewrite", "vacuum full"), ("rewrite", "cluster"),
    ("rewrite", "set logged"), ("rewrite", "set unlogged"), ("rewrite", "to ts"),
    ("rewrite", "truncate and fill"), ("rewrite", "anew"), ("index", "build"),
    ("index", "build concurrently"), ("index", "reindex concurrently"), ("database", "file_copy"),
    ("database", "wal_log"), ("database", "same oid"), ("database", "same oid, wal_log"),
    ("database", "grow"), ("database", "out and back"), ("writes", "checkpoint"),
    ("writes", "evict"),
)  # fmt: skip

#: Where a process can be stopped: on files with which texts in their paths, at which calls.
PLACES: Mapping[str, tuple[str, Kind]] = {
    "relation": ("base/|/PG_", Kind.WRITE | Kind.TRUNCATE | Kind.UNLINK),
    "global": ("global/", Kind.changes()),  # the map, pg_control, shared catalogs
    "WAL": ("pg_wal/", Kind.WRITE),
}
#: At which of them. Most work is over before the last ones.
NUMBERS = (1, 2, 3, 4, 6, 9, 14, 25)
#: Before which change of a file a start is killed, and at which read of the map its reader.
STARTS = (1, 2, 3, 4, 6, 9, 14, 22)
READS = (1, 2, 3, 4, 5)
#: Which write of the map fails first.
FAILS = (1, 2, 3, 5)

#: A backup may wait for a lock of the writer that is held.
_HOLD_SECONDS = 1.0
#: A standby that has replayed nothing for so long has nothing more to replay.
_SETTLED_SECONDS = 0.3
_POLL_SECONDS = 0.002

_LOG_TAIL = 6000

_SETTINGS: Mapping[str, Value] = {
    "max_prepared_transactions": 4,
    "lock_timeout": "20s",
    "statement_timeout": "60s",
    "wal_writer_delay": "10s",  # these two act by the clock
    "bgwriter_delay": "10s",
    "client_min_messages": "error",
}


# ---- counts


@dataclass(kw_only=True)
class Tally:
    """Sums over all examples of a run, for its summary.

    Attributes:
        steps: how often each rule ran.
        seconds: how long each took, without the looks after them, and these.
        counts: everything else, by its name in the summary.
    """

    steps: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Count what another process sends: :meth:`plain` of its tally."""
        self.steps.update(other["steps"])
        self.counts.update(other["counts"])
        for name, seconds in other["seconds"].items():
            self.seconds[name] += seconds

    def plain(self) -> dict[str, dict[str, Any]]:
        """As built-in types."""
        return {name: dict(counter) for name, counter in vars(self).items()}

    def lines(self) -> Iterator[str]:
        """A summary for people."""
        if not self.counts["examples"]:
            return
        total = {"steps": sum(self.steps.values())} | self.counts
        names = sorted(total, key=lambda name: (name not in ("examples", "steps"), name))
        yield "machine: " + ", ".join(f"{total[name]} {name}" for name in names)
        yield "machine: " + ", ".join(
            f"{name} {count} ({self.seconds[name] / count:.2f} s)"
            for name, count in sorted(self.steps.items())
        )
        yield f"machine: {self.seconds['looks']:.0f} s of looks"


TALLY = Tally()

#: What failed in this process: traceback, steps and logs of each example, in order.
FAILURES: list[str] = []

# Somebody ends the run: nothing for hypothesis to look into.
_STOPPED: list[BaseException] = []


# ---- what there is


@dataclass(kw_only=True)
class Parent:
    """A backup that a client could build an increment on.

    Attributes:
        snapshot: what it holds.
        backup: it as the reference client has it, if it was taken that way.
        content: rows of the cluster when it was taken, where ``backup`` is set.
        mask: hint bits may differ; set by what loses them.
        served: the map has not passed it. It stays listed, for draws know nothing of this.
        point: name of the restore point in WAL where ``content`` was read, "" where the cluster
            has not written all WAL since the backup began.
    """

    snapshot: Snapshot
    backup: Backup | None = None
    content: dict[str, tuple[int, str]] = field(default_factory=dict, repr=False)
    mask: bool = False
    served: bool = True
    point: str = ""

    def inherited(self, *, mask: bool) -> Parent:
        """The same backup as a parent for another cluster."""
        return Parent(
            snapshot=self.snapshot,
            backup=self.backup,
            content=self.content,
            mask=self.mask or mask,
            served=self.served,
        )


class Node:
    """A cluster, not started yet or running, and its backups.

    Attributes:
        parents: oldest first.
        hintable: hint bits are written without WAL.
        orders: who is to be stopped where.
    """

    def __init__(
        self, cluster: Cluster, shared: Path, parents: Sequence[Parent] = (), *, hintable: bool
    ) -> None:
        self.cluster = cluster
        self.parents = list(parents)
        self.hintable = hintable
        self.orders = Fault(cluster, shared)

    def snapshot(self) -> Snapshot:
        """The files as a backup has them that began with the last checkpoint or restartpoint."""
        return oracle.take(self.cluster, checkpoint=False)

    def forget_hints(self) -> None:
        """After a crash: a page with nothing but hint bits new may have lost its mark."""
        if self.hintable:
            for parent in self.parents:
                parent.mask = True

    def look(self, when: str) -> None:
        """Hold the promise against the files as they are.

        Raises:
            LostBlocks: it does not hold.
            AssertionError: the map was reset.
        """
        parents = [parent for parent in self.parents if parent.served]
        if not parents:
            return
        with self.cluster.connected():
            init = self.cluster.init_lsn()
            for parent in parents:
                assert 0 < init <= parent.snapshot.lsn, (
                    f"{self.cluster.name}, {when}: the map was reset: init LSN {lsn.show(init)}, "
                    f"parent {lsn.show(parent.snapshot.lsn)}"
                )
            current = self.cluster.files()
            for parent in parents:
                self._look(parent, current, when)

    def _look(self, parent: Parent, current: Mapping[str, bytes], when: str) -> None:
        found = oracle.look(
            parent.snapshot, self.cluster, mask_hints=parent.mask, when=when, current=current
        )
        TALLY.counts["looks"] += 1
        TALLY.counts["blocks compared"] += found.blocks
        TALLY.counts["blocks changed"] += found.changed
        TALLY.counts["hint bits only"] += found.hints

    def start(self, killed: Sequence[int] = ()) -> None:
        """Start, after starts that are killed before the change of a file with such a number."""
        for number in killed:
            fault.start_killed(self.cluster, self.orders, number)
            TALLY.counts["starts killed"] += 1
            self.forget_hints()
        self.cluster.start()

    def forgive(self) -> None:
        """The map may have begun anew; if so, what it serves no longer is known to its clients."""
        init = self.cluster.init_lsn()
        for parent in self.parents:
            if parent.served and init > parent.snapshot.lsn:
                TALLY.counts["parents lost with a map"] += 1
                parent.served = False

    def refused(self, when: str) -> None:
        """After a lapse that is not replayed: no parent can be served any more.

        Raises:
            AssertionError: one can.
        """
        init = self.cluster.init_lsn()
        for parent in self.parents:
            TALLY.counts["parents refused"] += 1
            assert init == 0 or init > parent.snapshot.lsn, (
                f"{when}: init LSN {lsn.show(init)}, and the parent of "
                f"{lsn.show(parent.snapshot.lsn)} is still served"
            )
        self.parents = []

    def keep(self, parent: Parent) -> None:
        """Have one more backup."""
        TALLY.counts["backups"] += 1
        self.parents.append(parent)
        if len(self.parents) > PARENTS:
            del self.parents[1]

    def end(self, how: str) -> None:
        """Stop, or kill: one of ENDS. Counts what a crash leaves behind."""
        match how:
            case "clean":
                self.cluster.stop("fast")
            case "immediate":
                self.cluster.stop("immediate")
            case "kill all":
                self.cluster.kill_all()
            case _:
                self.cluster.kill_postmaster(meanwhile=self.orders.clear)
        self.orders.clear()
        if how != "clean":
            self.crashed()

    def crashed(self) -> None:
        """It went down without a checkpoint, and is still down."""
        TALLY.counts["crashes"] += 1
        self.forget_hints()
        if self.parents:
            snapshot = self.parents[-1].snapshot
            found = oracle.compare(snapshot, self.cluster.files(), [])
            TALLY.counts["blocks changed on disk at a crash"] += found.changed

    def kill(self, process: str) -> None:
        """kill -9 one process, and see that the server is back."""
        before = self.cluster.log_size()
        self.cluster.kill_process(process)
        self._back(before, process)

    def start_and_kill_reader(self, number: int) -> None:
        """Start, and kill -9 who reads the map for the number-th time.

        It is the postmaster first, then recovery or a flush, if there is one, and the loader.
        """
        cluster = self.cluster
        if not cluster.map.exists():  # after a reset and a crash
            cluster.start()
            return
        before = cluster.log_size()
        self.orders.order("global/ptrack.map", Kind.READ, Action.STOP_BEFORE, number=number)
        cluster.start(wait=False)
        pid = self.orders.wait()
        TALLY.counts["readers killed"] += 1
        system.send(pid, signal.SIGKILL)
        self.orders.clear()
        self._back(before, "who reads the map")

    def _back(self, before: int, killed: str) -> None:
        """Wait until the server is back from a crash, or start it if it has ended."""
        cluster = self.cluster

        def over() -> bool:
            log = cluster.log_text(before)
            # with workers of its own for I/O a postmaster outlives a recovery that fails, for ever
            if "TRAP: " in log:
                time.sleep(0.2)  # until the lines that say where are there as well
                raise StartFailed(cluster.name, cluster.log_text(before))
            _, crashed, after = log.partition("all server processes term")
            return not cluster.running or ("ready to accept" in after if crashed else False)

        cluster.wait_for(over, f"the end of {killed}")
        TALLY.counts["crashes"] += 1
        self.forget_hints()
        if not cluster.running:
            cluster.start()

    # ---- while somebody is stopped

    def held(self, work: Work, at: Held) -> None:
        """Start the work, and wait until one of our processes is stopped, or the work is over."""
        text, kinds = PLACES[at.place]
        action = Action.STOP_AFTER if at.after else Action.STOP_BEFORE
        self.orders.order(text, kinds, action, number=at.number)
        work.start()
        while work.is_alive() and not self.orders.stopped:
            work.join(_POLL_SECONDS)

    def checkpoint_beside(self) -> None:
        """A checkpoint; if it waits for who is stopped, that one goes on."""
        (checkpointer,) = (
            pid for pid in system.children(self.cluster.pid) if b"checkpointer" in system.title(pid)
        )
        idle = system.switches(checkpointer)[-1]

        def waits() -> bool:
            told = system.switches(checkpointer)[-1] != idle  # until then it sleeps for nobody
            return self.orders.stopped == checkpointer or (told and system.sleeps(checkpointer))

        self._beside(self.cluster.checkpoint, waits)

    def snapshot_beside(self) -> Snapshot:
        """As :meth:`snapshot`, in the same way."""
        return self._beside(self.snapshot, lambda: False)

    def _beside(self, function: Callable[[], _Result], waits: Callable[[], bool]) -> _Result:
        deadline = time.monotonic() + _HOLD_SECONDS
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(function)
            while self.orders.stopped and not future.done():
                concurrent.futures.wait([future], _POLL_SECONDS)
                if not future.done() and (waits() or time.monotonic() > deadline):
                    TALLY.counts["writers waited for"] += 1
                    self.orders.clear()
            return future.result()


# ---- the cluster an example starts with


def _fill(cluster: Cluster) -> None:
    """Everything that the statements above take for granted."""
    in_place = "''" if cluster.install.has_in_place_tablespaces else None
    where = cluster.tablespace("in_place") if in_place is None else None
    cluster.script(
        [
            f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'",
            f"CREATE TABLESPACE in_place LOCATION {in_place or repr(str(where))}",
            "CREATE SEQUENCE q",
            "CREATE TABLE base AS SELECT i, md5(i::text) AS s FROM generate_series(1, 400) i",
            "CREATE MATERIALIZED VIEW m AS SELECT * FROM base WHERE i % 2 = 0",
            "CREATE UNIQUE INDEX ON m (i)",
        ]
    )
    for slot, kind, fill, rows, methods in (
        ("a", "", 100, 600, ("btree", "gin")),
        ("b", "", 60, 300, ("gist", "hash")),
        ("c", "UNLOGGED", 100, 200, ("spgist", "brin")),
    ):
        cluster.script(
            [
                *(one.format(kind=kind, t=slot, fill=fill) for one in _CREATE),
                _INSERT.format(t=slot, first=1, last=rows),
                *(
                    f"CREATE INDEX {slot}_{method} ON {slot} USING {method} ({METHODS[method]})"
                    for method in methods
                ),
                f"VACUUM {slot}",
            ]
        )
    cluster.sql("CREATE DATABASE d1")
    cluster.script(
        [
            "CREATE TABLE t AS SELECT i, repeat('x', 200) AS x FROM generate_series(1, 500) i",
            "CREATE INDEX ON t (i)",
        ],
        database="d1",
    )
    cluster.sql("CREATE DATABASE d2 TEMPLATE d1")
    cluster.script(  # less to read
        [
            "UPDATE pg_database SET datistemplate = false",
            "DROP DATABASE template0",
            "DROP DATABASE template1",
        ]
    )


def _template(factory: Factory, *, checksums: bool) -> Path:
    """A stopped cluster with all that, to copy; the workers of a run share it."""
    home = factory.shared / f"machine-{'checksums' if checksums else 'plain'}"
    with (factory.shared / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            cluster = factory.create(
                "template", checksums=checksums, start=False, ptrack__map_size=0
            )
            cluster.configure(_SETTINGS)
            cluster.start()
            _fill(cluster)
            cluster.stop()
            making = home.with_suffix(".making")
            subprocess.run(["cp", "-a", cluster.root, making], check=True)
            making.rename(home)
            factory.destroy_one(cluster)
    return home


def fresh(factory: Factory, *, checksums: bool) -> Cluster:
    """A copy of the template, not started."""
    home = _template(factory, checksums=checksums)
    cluster = factory.empty("primary")
    subprocess.run(["cp", "-a", "--reflink=auto", f"{home}/.", cluster.root], check=True)
    cluster.log.unlink()
    for link in (cluster.data / "pg_tblspc").iterdir():
        if link.is_symlink():
            location = cluster.root / link.readlink().name
            link.unlink()
            link.symlink_to(location)
    cluster.adopt()
    cluster.configure(PTRACK)
    return cluster


#: What a database's move or copy meets where a crash has cut another one short: its files, which
#: belong to no database.
_IN_THE_WAY = re.compile(
    r"are already in tablespace|data directory with the specified OID \d+ already exists"
)


class Held(NamedTuple):
    """What somebody is to be stopped in the middle of, and where.

    Attributes:
        what: one of :data:`INTERRUPTED`.
        place: one of :data:`PLACES`.
        number: of the call there.
        after: after the call, not before it.
    """

    what: tuple[str, str]
    slot: str
    method: str
    place: str
    number: int
    after: bool


class Work(threading.Thread):
    """Statements that run in a thread, in connections of their own; or right here, by run().

    Attributes:
        error: what went wrong, psycopg's.
    """

    def __init__(self, cluster: Cluster, statements: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        self.statements = statements
        self.error: psycopg.Error | None = None

    def run(self) -> None:
        """Run them; ``\\c`` connects anew.

        Raises:
            psycopg.Error: one failed, and this is no thread of its own.
        """
        connection: psycopg.Connection[Row] | None = None
        try:
            connection = self.cluster.connect()
            for statement in self.statements:
                if statement.startswith("\\c"):
                    connection.close()
                    connection = self.cluster.connect(statement[2:].strip())
                else:
                    connection.execute(statement.encode())
        except psycopg.Error as error:
            if _IN_THE_WAY.search(str(error)):
                return
            if threading.current_thread() is not self:
                raise
            self.error = error
        finally:
            if connection is not None:
                connection.close()

    def succeeded(self) -> None:
        """Raises: psycopg.Error, if it did not."""
        self.join()
        if self.error is not None:
            raise self.error


# ---- the machine


_slot = st.sampled_from(SLOTS)
_held = st.builds(
    Held,
    what=st.sampled_from(INTERRUPTED),
    slot=_slot,
    method=st.sampled_from(sorted(METHODS)),
    place=st.sampled_from(tuple(PLACES)),
    number=st.sampled_from(NUMBERS),
    after=st.booleans(),
)
_killed = st.lists(st.sampled_from(STARTS), max_size=2)


def _some(*parts: SearchStrategy[Any]) -> SearchStrategy[list[tuple[Any, ...]]]:
    """A few things of a kind for one step: a look costs more than they do."""
    return st.lists(st.tuples(*parts), min_size=1, max_size=4)


#: How it may be met that a server has gone down; its log says whether it has.
_DOWN = (StartFailed, NotInTime, system.ProgramFailed, psycopg.OperationalError)

#: What a server says that goes down by a fault of its own, with any PostgreSQL.
_NOT_OURS = re.compile(
    # a crash at some points of an unlogged table's rewrite leaves files that are in the way of the
    # reset of unlogged relations at the end of recovery
    r'FATAL:  could not create file "(base|pg_tblspc)/[^"]+": File exists'
    # killed between the state files of prepared transactions and the control file of one checkpoint
    r"|removing future two-phase state file [^\n]*\n[^\n]*TRAP: [^\n]*\(xid, XidFromFullTransaction"
    # from 16 on the init fork of an unlogged bloom index is not logged, and is zeros after a crash
    r"|TRAP: [^\n]*pd_special[^\n]*\n[^\n]*\n[^\n]*/bloom\.so"
    # a standby that is killed before a restartpoint replays a database's move once more, when what
    # it was moved from is gone: it empties the new place, and copies nothing
    r'|FATAL:  "(base|pg_tblspc)/[^"]+" is not a valid data directory'
)
#: And where full_page_writes has been off: a standby that calls itself consistent before it has
#: come to what is on disk finds a page missing that a later record has cut off.
_NOT_OURS_WITHOUT_IMAGES = re.compile(r"PANIC:  WAL contains references to invalid pages")


def _step(method: Callable[_Given, None]) -> Callable[_Given, None]:
    """Count and time a rule, keep it in the journal of the example, and look after it.

    The look is no invariant in hypothesis's sense: each would be a line between the steps shown.
    """
    name = method.__name__

    @functools.wraps(method)
    def wrapper(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        self = args[0]
        assert isinstance(self, Machine)
        shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        self.journal.append(f"{name}({shown})")
        began = time.monotonic()
        logged = {node.cluster.root: node.cluster.log_size() for node in self.nodes()}
        try:
            method(*args, **kwargs)
            TALLY.steps[name] += 1
            TALLY.seconds[name] += time.monotonic() - began
            self.nothing_is_lost(f"after {name}({shown})")
        except BaseException as error:
            if isinstance(error, _DOWN) and self._not_ours(logged):
                TALLY.counts["crashes PostgreSQL does not recover from"] += 1
                hypothesis.reject()
            self._failed(error)
            raise

    return wrapper


class Machine(RuleBasedStateMachine):
    """See the module's text. Subclasses say with which factory.

    Attributes:
        plain: whose server has the lives without the library, if not the one under test.
    """

    factory: ClassVar[Factory]
    plain: ClassVar[Install | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Value] = {}
        self.checksums = False
        self.standby: Node | None = None
        self.sessions: dict[str, psycopg.Connection[Row]] = {}
        self.journal: list[str] = []
        self.failed = False
        self.images = True  # full_page_writes has always been on
        self._lead: Node | None = None
        self._made = len(self.factory.made)
        self._points = 0
        TALLY.counts["examples"] += 1

    # ---- plumbing

    def _not_ours(self, logged: Mapping[Path, int]) -> bool:
        """Whether a server went down by a fault of PostgreSQL's; nothing else ends one so.

        Args:
            logged: how much the servers had logged before this step, by their directories.
        """
        known = [_NOT_OURS] if self.images else [_NOT_OURS, _NOT_OURS_WITHOUT_IMAGES]
        logs = [node.cluster.log_text(logged.get(node.cluster.root, 0)) for node in self.nodes()]
        return any(words.search(log) for words in known for log in logs)

    def _failed(self, error: BaseException) -> None:
        """Keep what led to it, for a failure that does not come again has no smaller example."""
        self.failed = True
        if isinstance(error, hypothesis.errors.HypothesisException):
            return
        if not isinstance(error, Exception):
            _STOPPED.append(error)
            return
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        lines = ["".join(traceback.format_exception(error)), settings, *self.journal]
        for node in self.nodes():
            cluster = node.cluster
            tail = cluster.log_text(max(0, cluster.log_size() - _LOG_TAIL))
            lines += [f"log of {cluster.name}:", tail]
        FAILURES.append("\n".join(lines))

    @property
    def lead(self) -> Node:
        """The primary, started when it is first asked for."""
        if self._lead is None:
            cluster = fresh(self.factory, checksums=self.checksums)
            cluster.configure(self.settings)
            self._lead = self._node(cluster, [], hintable=self._hintable)
            cluster.start()
            cluster.checkpoint()
            cluster.checkpoint()
            self._lead.keep(Parent(snapshot=self._lead.snapshot()))
        return self._lead

    @property
    def _hintable(self) -> bool:
        return not self.checksums and not self.settings.get("wal_log_hints", False)

    def teardown(self) -> None:
        """Remove every cluster of the example."""
        for session in self.sessions.values():
            session.close()
        self.factory.destroy(since=self._made, keep=self.failed and switched_on("PTRACK_KEEP"))

    def _node(self, cluster: Cluster, parents: Sequence[Parent], *, hintable: bool) -> Node:
        return Node(cluster, self.factory.shared, parents, hintable=hintable)

    def _drop(self, node: Node) -> None:
        self.factory.destroy_one(node.cluster)

    def _drop_standby(self) -> None:
        if self.standby is not None:
            self._drop(self.standby)
            self.standby = None

    def _leave(self) -> None:
        """The server went away, and its sessions with it."""
        for session in self.sessions.values():
            session.close()
        self.sessions = {}

    def _free(self, *slots: str) -> None:
        """End open and prepared transactions on some slots, or all."""
        for slot in slots or tuple(self.sessions):
            if slot in self.sessions:
                self.sessions.pop(slot).close()
        for (gid,) in self.lead.cluster.sql("SELECT gid FROM pg_prepared_xacts ORDER BY 1"):
            if not slots or gid[0] in slots:
                verb = "COMMIT" if gid.endswith("commit") else "ROLLBACK"
                self.lead.cluster.sql(f"{verb} PREPARED '{gid}'")

    def _run(self, statements: Sequence[str], **given: object) -> None:
        self.lead.cluster.script([one.format(**given) for one in statements])

    def _work(self, family: str, what: str, slot: str = "a", method: str = "btree") -> Work:
        """Statements that are to be run beside something else, or are in several databases."""
        cluster = self.lead.cluster
        given = {"t": slot, "m": method, "c": METHODS[method], "n": 3}
        strategies = cluster.major >= 15
        if family == "database":
            given = {
                "file_copy": "STRATEGY file_copy" if strategies else "",
                "wal_log": "STRATEGY wal_log" if strategies else "",
                "oid": "OID = 70007" if strategies else "",
            }
            moves = what in ("to ts", "out and back")
            if moves and int(cluster.value("SHOW server_version_num")) < MOVES_REPLAYED.get(
                cluster.major, 0
            ):
                self._drop_standby()
            exists = "SELECT FROM pg_database WHERE datname = 'd2'"
            if (moves or what == "grow") and not cluster.sql(exists):
                cluster.sql("CREATE DATABASE d2 TEMPLATE d1")
            if what.startswith("same oid") and self.standby is not None:
                TALLY.counts["OIDs reused beside a standby"] += 1
        return Work(cluster, [one.format(**given) for one in FAMILIES[family][what]])

    # ---- SQL

    @initialize(
        checksums=st.booleans(),
        wal_log_hints=st.booleans(),
        full_page_writes=st.booleans(),
        logical=st.booleans(),
        fsync=st.sampled_from([False, False, False, True]),
        map_size=st.sampled_from(SIZES),
        io_method=st.sampled_from(("worker", "sync")),
    )
    def begin(
        self,
        *,
        checksums: bool,
        wal_log_hints: bool,
        full_page_writes: bool,
        logical: bool,
        fsync: bool,
        map_size: int,
        io_method: str,
    ) -> None:
        """Choose the cluster."""
        self.checksums = checksums
        self.images = full_page_writes
        self.settings = {
            "wal_log_hints": wal_log_hints,
            "full_page_writes": full_page_writes,
            "wal_level": "logical" if logical else "replica",
            "fsync": fsync,
            "ptrack.map_size": map_size,
        }
        if self.factory.install.major >= 18:
            self.settings["io_method"] = io_method

    @rule(changes=_some(_slot, st.sampled_from(sorted(DML)), st.integers(0, 9)))
    @_step
    def dml(self, changes: list[tuple[str, str, int]]) -> None:
        """Change rows."""
        for slot, what, n in changes:
            if what.startswith(("update", "delete", "lock", "sub")):
                self._free(slot)
            self._run(DML[what], t=slot, n=n)

    @rule(vacuums=_some(_slot, st.sampled_from(sorted(VACUUM))))
    @_step
    def vacuum(self, vacuums: list[tuple[str, str]]) -> None:
        """Vacuum, with truncation where the tail is empty."""
        for slot, what in vacuums:
            self._free(slot)
            self._run(VACUUM[what], t=slot)

    @rule(rewrites=_some(_slot, st.sampled_from(sorted(REWRITE))))
    @_step
    def rewrite(self, rewrites: list[tuple[str, str]]) -> None:
        """Give a table another file."""
        for slot, what in rewrites:
            self._free(slot)
            self._run(REWRITE[what], t=slot)

    @rule(indexes=_some(_slot, st.sampled_from(sorted(INDEX)), st.sampled_from(sorted(METHODS))))
    @_step
    def index(self, indexes: list[tuple[str, str, str]]) -> None:
        """Build, move and drop indexes."""
        self._free()  # what is done concurrently waits for every transaction
        for slot, what, method in indexes:
            self._run(INDEX[what], t=slot, m=method, c=METHODS[method])

    @rule(what=st.sampled_from(sorted(OTHER)))
    @_step
    def other(self, what: str) -> None:
        """What is no table of ours."""
        if what == "catalog rewritten":
            self._free()
        self._run(OTHER[what])

    @rule(what=st.sampled_from(sorted(DATABASE)))
    @_step
    def database(self, what: str) -> None:
        """Copy, move, drop and change databases."""
        self._work("database", what).run()

    @rule(slot=_slot, prepare=st.booleans(), commit=st.booleans())
    @_step
    def transaction(self, slot: str, *, prepare: bool, commit: bool) -> None:
        """Open a transaction that stays, until something needs its table or the server ends."""
        self._free(slot)
        session = self.lead.cluster.connect(autocommit=True)
        for statement in (
            "BEGIN",
            _INSERT.format(t=slot, first=1, last=120),
            f"UPDATE {slot} SET k = k + 7 WHERE id % 13 = 5",
            "SAVEPOINT s",
            f"DELETE FROM {slot} WHERE id % 13 = 7",
            "ROLLBACK TO s",
        ):
            session.execute(statement.encode())
        if not prepare:
            self.sessions[slot] = session
            return
        session.execute(f"PREPARE TRANSACTION '{slot} {'commit' if commit else 'abort'}'".encode())
        session.close()

    @rule(commit=st.booleans())
    @_step
    def finish(self, *, commit: bool) -> None:
        """End every transaction that is open or prepared."""
        if commit:
            for session in self.sessions.values():
                session.execute("COMMIT")
        if self._lead is not None:
            self._free()

    # ---- what makes pages go to disk

    @rule()
    @_step
    def checkpoint(self) -> None:
        """One, where there is a server already: the simplest step is to cost nothing."""
        if self._lead is not None:
            self.lead.cluster.checkpoint()

    @rule()
    @_step
    def evict(self) -> None:
        """Write out every dirty page, without a checkpoint."""
        for node in self.nodes():
            node.cluster.evict()

    @rule(on=st.booleans())
    @_step
    def full_page_writes(self, *, on: bool) -> None:
        """On or off by a reload."""
        self.images = self.images and on
        self.lead.cluster.reload(full_page_writes=on)

    # ---- backups of the primary

    @rule(settle=st.booleans())
    @_step
    def backup(self, *, settle: bool) -> None:
        """A copy of the files at a checkpoint, which has something to write or has not."""
        cluster = self.lead.cluster
        if settle:
            cluster.checkpoint()
        cluster.checkpoint()
        self.lead.keep(Parent(snapshot=self.lead.snapshot()))

    @rule()
    @_step
    def full(self) -> None:
        """A full backup of the reference client."""
        self._keep(client.full(self.lead.cluster))

    @precondition(lambda self: self.restorable())
    @rule(which=st.integers(0, PARENTS - 1))
    @_step
    def increment(self, which: int) -> None:
        """An incremental backup of the reference client, over one of its own."""
        parents = self.restorable()
        parent = parents[which % len(parents)]
        assert parent.backup is not None
        try:
            backup = client.incremental(self.lead.cluster, parent.backup)
        except client.Refused:
            assert not parent.served, "a parent is refused that the map has not passed"
            self._keep(client.full(self.lead.cluster))
            return
        TALLY.counts["increments"] += 1
        self._keep(backup, mask=parent.mask)  # it has the parent's hint bits

    def _keep(self, backup: Backup, *, mask: bool = False) -> None:
        lead = self.lead
        snapshot = oracle.Snapshot(
            lsn=backup.start,
            content={name: client.image(backup, name) for name in backup.relations},
            block_size=backup.block_size,
        )
        content = verify.content(lead.cluster)
        self._points += 1
        point = f"point {self._points}"
        lead.cluster.sql("SELECT pg_create_restore_point(%s)", point)
        lead.cluster.flush_wal()  # it must outlive a crash
        lead.keep(Parent(snapshot=snapshot, backup=backup, content=content, mask=mask, point=point))

    def restorable(self) -> list[Parent]:
        """Backups of the primary that the reference client took."""
        lead = self._lead
        return [] if lead is None else [one for one in lead.parents if one.backup is not None]

    @precondition(lambda self: self.restorable())
    @rule(
        which=st.integers(0, PARENTS - 1),
        adopt=st.booleans(),
        amcheck=st.sampled_from([False, False, False, True]),
        map_size=st.sampled_from((None, *SIZES)),
        until=st.sampled_from((None, None, "end", *range(PARENTS))),
        pause=st.booleans(),
    )
    @_step
    def restore(
        self,
        which: int,
        *,
        adopt: bool,
        amcheck: bool,
        map_size: int | None,
        until: str | int | None,
        pause: bool,
    ) -> None:
        """Restore a backup with its increments elsewhere; perhaps go on with that cluster.

        As it was when the backup ended, or as it is now, or was right after another backup since.
        """
        old = self.lead
        parents = self.restorable()
        parent = parents[which % len(parents)]
        assert parent.backup is not None
        TALLY.counts["restores"] += 1
        cluster = self.factory.empty("restored")
        client.restore(parent.backup, cluster)
        if map_size is not None:
            cluster.configure(ptrack__map_size=map_size)
        # A page that was written with nothing but hint bits after the backup began is as after
        # a crash; what a chain of increments has of such pages is older still.
        upto = old.parents.index(parent) + 1
        kept = [one.inherited(mask=old.hintable) for one in old.parents[:upto]]
        node = self._node(cluster, kept, hintable=old.hintable)
        content = parent.content
        if until is None or not parent.point:
            cluster.start()
        else:
            since = [one for one in parents[parents.index(parent) :] if one.point]
            end = None if until == "end" else since[int(until) % len(since)]
            content = end.content if end else verify.content(old.cluster)
            self._recover(node, end.point if end else "", pause=pause)
        node.look("restored")
        found = verify.content(cluster)
        assert found == content, "a restored backup has other rows"
        if amcheck:
            TALLY.counts["amchecks"] += 1
            verify.whole(cluster)
        if not adopt:
            self._drop(node)
            return
        self._leave()
        self._drop_standby()
        self._drop(old)
        self._lead = node

    def _recover(self, node: Node, point: str, *, pause: bool) -> None:
        """Start a restored cluster with the WAL of the lead, up to a point or all of it.

        pause: it stands there for a while, before it is a primary.
        """
        TALLY.counts["recoveries"] += 1
        cluster, source = node.cluster, self.lead.cluster
        source.flush_wal()
        given: dict[str, Value] = {"restore_command": f"cp {source.data}/pg_wal/%f %p"}
        if point:
            given |= {
                "recovery_target_name": point,
                "recovery_target_action": "pause" if pause else "promote",
            }
        cluster.configure(given)
        cluster.write("recovery.signal", "")
        cluster.start()
        if point and pause:
            paused = "SELECT pg_is_wal_replay_paused()"
            cluster.wait_for(lambda: cluster.value(paused), "the recovery target")
            node.look("at a recovery target")
            cluster.sql("SELECT pg_wal_replay_resume()")  # which ends it
        cluster.wait_for(lambda: not cluster.in_recovery, "the end of recovery")
        cluster.configure(restore_command="", recovery_target_name="")  # it may be a standby later

    # ---- ends and starts of the primary

    @rule(
        how=st.sampled_from(ENDS),
        evict=st.booleans(),
        map_size=st.sampled_from((None, None, *SIZES)),
        killed=_killed,
    )
    @_step
    def restart(self, how: str, *, evict: bool, map_size: int | None, killed: list[int]) -> None:
        """End and start again, with a map of another size, after starts that are killed."""
        lead = self.lead
        if evict:
            lead.cluster.evict()
        lead.end(how)
        self._leave()
        self._start(lead, map_size, killed)

    def _start(self, node: Node, map_size: int | None, killed: Sequence[int]) -> None:
        self._resize(node.cluster, map_size)
        node.start(killed)

    def _resize(self, cluster: Cluster, map_size: int | None) -> None:
        if map_size is not None:
            TALLY.counts["resizes"] += 1
            cluster.configure(ptrack__map_size=map_size)

    @rule(process=st.sampled_from(CHILDREN), evict=st.booleans())
    @_step
    def kill(self, process: str, *, evict: bool) -> None:
        """kill -9 one process of the primary."""
        if evict:
            self.lead.cluster.evict()
        self.lead.kill(process)
        self._leave()

    @rule(
        how=st.sampled_from(ENDS),
        map_size=st.sampled_from((None, *SIZES)),
        number=st.sampled_from(READS),
    )
    @_step
    def kill_reader(self, how: str, map_size: int | None, number: int) -> None:
        """kill -9 who reads the map as the server starts."""
        lead = self.lead
        lead.end(how)
        self._leave()
        if map_size is not None:
            lead.cluster.configure(ptrack__map_size=map_size)
        lead.start_and_kill_reader(number)

    @rule(held=_held, how=st.sampled_from(CRASHES), standby=st.booleans())
    @_step
    def interrupt(self, held: Held, how: str, *, standby: bool) -> None:
        """Crash in the middle of something, the primary or the standby."""
        node = self.standby if standby and self.standby is not None else self.lead
        work = self._begin(node, held)
        node.end(how)
        if node is self.lead:
            work.join()
            self._leave()
        else:
            work.succeeded()
        node.cluster.start()
        self._tidy()

    @rule(
        what=st.sampled_from(INTERRUPTED),
        slot=_slot,
        method=st.sampled_from(sorted(METHODS)),
        number=st.sampled_from(FAILS),
        onwards=st.booleans(),
        how=st.sampled_from(("", *CRASHES)),
    )
    @_step
    def fail(
        self,
        what: tuple[str, str],
        slot: str,
        method: str,
        number: int,
        *,
        onwards: bool,
        how: str,
    ) -> None:
        """The map cannot be written while something happens; a good flush follows, or a crash."""
        self._free()
        lead = self.lead
        work = self._work(*what, slot, method)
        kinds = Kind.changes() & ~Kind.UNLINK  # without which it would be an error
        lead.orders.order(
            "global/ptrack.map", kinds, Action.FAIL, number=number, error=errno.EIO, onwards=onwards
        )
        work.run()
        lead.cluster.checkpoint()
        TALLY.counts["writes of the map failed"] += max(0, lead.orders.count - number + 1)
        lead.orders.clear()
        if not how:
            lead.cluster.checkpoint()
            return
        lead.end(how)
        self._leave()
        lead.cluster.start()
        lead.forgive()

    @rule(held=_held, still=st.booleans(), crash=st.booleans())
    @_step
    def backup_beside(self, held: Held, *, still: bool, crash: bool) -> None:
        """A backup begins in the middle of something that goes on, or stands still meanwhile."""
        lead = self.lead
        work = self._begin(lead, held)
        lead.checkpoint_beside()
        if not still:
            lead.orders.clear()
        if not lead.orders.stopped:
            work.join()
        lead.keep(Parent(snapshot=lead.snapshot_beside()))
        if crash:
            lead.end("kill all")
            work.join()
            self._leave()
            lead.cluster.start()
            self._tidy()
        else:
            lead.orders.clear()
            work.succeeded()

    def _begin(self, node: Node, held: Held) -> Work:
        """Work on the primary, until one of the node's processes is stopped or all is over."""
        self._free()
        work = self._work(*held.what, held.slot, held.method)
        node.held(work, held)
        if node is not self.lead and not node.orders.stopped:
            target = self.lead.cluster.flush_wal()
            node.cluster.wait_for(
                lambda: node.orders.stopped > 0 or node.cluster.position() >= target, "replay"
            )
        if node.orders.stopped:
            TALLY.counts["writers held"] += 1
        else:
            TALLY.counts["writers not held"] += 1
            node.orders.clear()  # nor is anybody later
        return work

    def _tidy(self) -> None:
        """A drop that was killed leaves a database that nobody can connect to."""
        cluster = self.lead.cluster
        for (name,) in cluster.sql("SELECT datname FROM pg_database WHERE datconnlimit = -2"):
            cluster.sql(f"DROP DATABASE {name}")

    # ---- a standby

    @precondition(lambda self: self.standby is None)
    @rule(map_size=st.sampled_from((None, *SIZES)))
    @_step
    def attach(self, map_size: int | None) -> None:
        """A streaming standby, by a base backup."""
        self._attach(map_size)

    def _attach(self, map_size: int | None = None) -> Node:
        lead = self.lead
        cluster = self.factory.base_backup(lead.cluster, "standby", "-R")
        if map_size is not None:
            cluster.configure(ptrack__map_size=map_size)
        kept = [one.inherited(mask=lead.hintable) for one in lead.parents]
        self.standby = self._node(cluster, kept, hintable=lead.hintable)
        cluster.start()
        TALLY.counts["standbys"] += 1
        return self.standby

    @precondition(lambda self: self.standby is not None)
    @rule(settle=st.booleans())
    @_step
    def backup_standby(self, *, settle: bool) -> None:
        """A copy of the standby's files at a restartpoint."""
        node = self._standby
        for _ in range(2 if settle else 1):
            node.cluster.restartpoint(self.lead.cluster)
        node.keep(Parent(snapshot=node.snapshot()))

    @precondition(lambda self: self.standby is not None)
    @rule(
        how=st.sampled_from(ENDS),
        evict=st.booleans(),
        map_size=st.sampled_from((None, None, *SIZES)),
        killed=_killed,
    )
    @_step
    def restart_standby(
        self, how: str, *, evict: bool, map_size: int | None, killed: list[int]
    ) -> None:
        """End the standby and start it again."""
        node = self._standby
        if evict:
            node.cluster.evict()
        node.end(how)
        node.forget_hints()  # a standby has no checkpoints of its own
        self._start(node, map_size, killed)

    @precondition(lambda self: self.standby is not None)
    @rule(process=st.sampled_from(STANDBY_CHILDREN), evict=st.booleans())
    @_step
    def kill_standby(self, process: str, *, evict: bool) -> None:
        """kill -9 one process of the standby."""
        if evict:
            self._standby.cluster.evict()
        self._standby.kill(process)

    @precondition(lambda self: self.standby is not None)
    @rule(how=st.sampled_from(ENDS), evict=st.booleans())
    @_step
    def promote(self, how: str, *, evict: bool) -> None:
        """The primary ends, and the standby takes its place."""
        node = self._standby
        if evict:
            node.cluster.evict()
        self.lead.end(how)
        self._leave()
        node.cluster.promote()
        self._drop(self.lead)
        self._lead, self.standby = node, None
        TALLY.counts["promotions"] += 1

    @precondition(lambda self: self._rewindable)
    @rule(how=st.sampled_from(ENDS), writes=st.booleans(), evict=st.booleans())
    @_step
    def rewind(self, how: str, *, writes: bool, evict: bool) -> None:
        """The standby is promoted, and the old primary, which went on, is rewound and follows it.

        It has no map then, and no parents. It ends cleanly at last: that done by pg_rewind itself
        needs template1. Where no standby is, one is attached.
        """
        node, old = self.standby or self._attach(), self.lead
        self._free()
        node.cluster.catch_up(old.cluster)
        node.cluster.promote()
        node.cluster.checkpoint()  # before, pg_rewind does not know of the new timeline
        if writes:
            self._run(DML["update"], t="b", n=3)
        if evict:
            old.cluster.evict()
        if how != "clean":
            old.end(how)
            old.start()
        old.end("clean")
        self._leave()
        source = f"--source-server={node.cluster.conninfo()}"
        old.cluster.run("pg_rewind", "-D", old.cluster.data, source, "--no-sync")
        assert not old.cluster.map.exists(), "the map outlives pg_rewind"
        node.cluster.flush_wal()  # the old one has to come to where the new one's WAL ended
        old.cluster.adopt()
        old.cluster.write("postgresql.auto.conf", "")
        old.cluster.configure(primary_conninfo=node.cluster.conninfo())
        old.cluster.write("standby.signal", "")
        old.parents = []
        old.cluster.start()
        self._lead, self.standby = node, old
        TALLY.counts["rewinds"] += 1

    @rule(
        how=st.sampled_from(CRASHES),
        evict=st.booleans(),
        killed=_killed,
        again=st.sampled_from((None, *ENDS)),
    )
    @_step
    def demote(self, how: str, *, evict: bool, killed: list[int], again: str | None) -> None:
        """The primary crashes, and is a standby of nobody until it is promoted."""
        self._drop_standby()
        lead = self.lead
        if evict:
            lead.cluster.evict()
        lead.end(how)
        self._leave()
        lead.cluster.write("standby.signal", "")
        lead.start(killed)
        self._all_replayed()
        if again is not None:
            lead.look("a standby again")
            lead.cluster.evict()
            lead.end(again)
            lead.forget_hints()
            lead.cluster.start()
            self._all_replayed()
        lead.look("a standby again, and replayed")
        lead.cluster.promote()
        TALLY.counts["demotions"] += 1

    def _all_replayed(self) -> None:
        """Wait until the lead, a standby of nobody, has gone through the WAL that it has."""
        cluster = self.lead.cluster

        def settled() -> bool:
            before = cluster.position()
            time.sleep(_SETTLED_SECONDS)
            return cluster.position() == before

        cluster.wait_for(settled, "the end of replay")

    @property
    def _rewindable(self) -> bool:
        """Whether pg_rewind takes this cluster: with images, and hint bits in WAL."""
        install = self.factory.install
        known = install.rewinds_in_place_tablespaces or not install.has_in_place_tablespaces
        return known and self.images and not self._hintable

    @property
    def _standby(self) -> Node:
        assert self.standby is not None
        return self.standby

    @precondition(lambda self: self.images)
    @rule(
        what=st.sampled_from(COPIES),
        evict=st.booleans(),
        map_size=st.sampled_from((None, *SIZES)),
        adopt=st.booleans(),
    )
    @_step
    def copy_standby(self, what: str, *, evict: bool, map_size: int | None, adopt: bool) -> None:
        """A base backup of the standby takes its place, or is a primary, and perhaps the lead's.

        Without images in all WAL there is none to be had. Where no standby is, one is attached.
        """
        node, old = self.standby or self._attach(), self.lead
        node.cluster.catch_up(old.cluster)
        if evict:
            node.cluster.evict()
        cluster = self.factory.base_backup(node.cluster, "copy")
        self._resize(cluster, map_size)
        kept = [one.inherited(mask=node.hintable) for one in node.parents]
        copy = self._node(cluster, kept, hintable=node.hintable)
        TALLY.counts[f"copies of a standby: {what}"] += 1
        if what == "follows":  # whom the standby follows
            self._drop_standby()
            self.standby = copy
            cluster.start()
            return
        (cluster.data / "standby.signal").unlink()
        if what == "recovers":
            self._recover(copy, "", pause=False)
            same = verify.content(cluster) == verify.content(old.cluster)
            assert same, "a copy of the standby has other rows"
        else:  # with no more WAL than it has
            cluster.start()
        copy.look("copied from the standby")
        if not adopt:
            self._drop(copy)
            return
        self._leave()
        self._drop_standby()
        self._drop(old)
        self._lead = copy

    # ---- without ptrack for a while

    @contextlib.contextmanager
    def _away(self, cluster: Cluster, what: str) -> Iterator[None]:
        """A life without ptrack, one of AWAY, which the body begins and ends."""
        away, back = AWAY[what]
        own = cluster.install
        cluster.configure(away)
        if self.plain is not None and "shared_preload_libraries" in away:
            cluster.install = self.plain
            TALLY.counts["lives under another server"] += 1
        try:
            yield
        finally:
            cluster.install = own
        cluster.configure(back)

    @rule(
        what=st.sampled_from((*sorted(AWAY), "checksums", "checksums twice", "resetwal")),
        crash_before=st.booleans(),
        crash_after=st.booleans(),
    )
    @_step
    def lapse(self, what: str, *, crash_before: bool, crash_after: bool) -> None:
        """A life that the map does not know of, or a program that goes past it."""
        if what.startswith("checksums"):
            self._switch_checksums(2 if what == "checksums twice" else 1)
            return
        if what == "resetwal":
            cluster = self._alone(crash=False)
            cluster.run("pg_resetwal", "-D", cluster.data)
            cluster.start()
            self._refused("pg_resetwal")
            return
        down = self._alone if what == "minimal" else self._down
        cluster = down(crash=crash_before)
        redo = cluster.control()[REDO]
        with self._away(cluster, what):
            cluster.start()
            self._run(DML["update"], t="a", n=4)
            cluster.evict()
            self.lead.end("immediate" if crash_after else "clean")
        kept = what == "unloaded" and cluster.control()[REDO] == redo
        cluster.start()
        self._lapsed(what, kept=kept, crash=crash_after)

    def _lapsed(self, when: str, *, kept: bool, crash: bool) -> None:
        if kept:  # all that was done meanwhile has been replayed
            TALLY.counts["lapses that lose nothing"] += 1
        else:
            self._refused(when, crash=crash)

    @precondition(lambda self: self.standby is not None)
    @rule(before=st.sampled_from(ENDS), after=st.sampled_from(ENDS), restartpoint=st.booleans())
    @_step
    def lapse_standby(self, before: str, after: str, *, restartpoint: bool) -> None:
        """The standby has a life without the library."""
        node, lead = self._standby, self.lead.cluster
        node.end(before)
        node.forget_hints()
        redo = node.cluster.control()[REDO]
        self._free("a")
        with self._away(node.cluster, "unloaded"):
            node.cluster.start()
            self._run(DML["update"], t="a", n=6)
            if restartpoint:
                node.cluster.restartpoint(lead)
            else:
                node.cluster.catch_up(lead)
            node.cluster.evict()
            node.end(after)
        kept = node.cluster.control()[REDO] == redo
        node.cluster.start()
        node.cluster.catch_up(lead)
        if kept:
            TALLY.counts["a standby's lapses that lose nothing"] += 1
        else:
            node.refused("a standby's lapse")

    @rule(
        works=_some(_slot, st.sampled_from(sorted(STAND_ALONE)), st.integers(0, 9)),
        loaded=st.booleans(),
        map_size=st.sampled_from((None, *SIZES)),
        crash=st.booleans(),
        killed=st.booleans(),
        evict=st.booleans(),
    )
    @_step
    def stand_alone(
        self,
        works: list[tuple[str, str, int]],
        *,
        loaded: bool,
        map_size: int | None,
        crash: bool,
        killed: bool,
        evict: bool,
    ) -> None:
        """A backend stands alone between two lives, with the library or without."""
        cluster = self._down(crash=crash)
        statements = [
            one.format(t=slot, n=n) for slot, what, n in works for one in STAND_ALONE[what]
        ]
        if evict:
            statements.append("SELECT sum(pg_prewarm('filler')) FROM generate_series(1, 6)")
        redo = cluster.control()[REDO]
        self._resize(cluster, map_size)
        if loaded:
            cluster.single_user(*statements, killed=killed)
        else:
            with self._away(cluster, "unloaded"):
                cluster.single_user(*statements, killed=killed)
        if killed:
            self.lead.crashed()
        known = loaded and cluster.major >= 15  # before, it preloads nothing
        kept = known or cluster.control()[REDO] == redo
        TALLY.counts["backends alone, with the library" if known else "backends alone"] += 1
        cluster.start()
        if not known:
            self._lapsed("a backend alone", kept=kept, crash=killed)

    def _switch_checksums(self, times: int) -> None:
        """pg_checksums: switching them on writes pages, off does not."""
        cluster = self._alone(crash=False)
        enabled = False
        for _ in range(times):
            self.checksums = not self.checksums
            option = "--enable" if self.checksums else "--disable"
            cluster.run("pg_checksums", option, "--no-sync", "-D", cluster.data)
            TALLY.counts[f"pg_checksums {option}"] += 1
            enabled = enabled or self.checksums
        cluster.start()
        self.lead.hintable = self._hintable
        if enabled:
            self._refused("checksums enabled")

    @rule(
        what=st.sampled_from(DAMAGES),
        where=st.integers(0, 7),
        crash=st.booleans(),
        map_size=st.sampled_from((None, *SIZES)),
    )
    @_step
    def damage(self, what: str, where: int, *, crash: bool, map_size: int | None) -> None:
        """Something is wrong with the map's file as the server starts, or its size is another."""
        old = self._outdated_map() if what == "older" else b""
        cluster = self._down(crash=crash)
        if what == "removed":
            cluster.map.unlink(missing_ok=True)
        elif what == "older":
            cluster.map.write_bytes(old)
        elif cluster.map.exists():  # none yet, after a reset and a crash
            content = cluster.map.read_bytes()
            if what == DAMAGES[0]:
                half = cluster.data / MAP_TMP
                half.write_bytes(content[: len(content) // 2])
                system.own(half)
            else:
                cluster.map.write_bytes(_damaged(content, what, where))
        TALLY.counts["maps damaged" if map_size is None else "maps damaged and resized"] += 1
        self._start(self.lead, map_size, ())
        if what != DAMAGES[0]:
            self._refused(what, crash=crash)

    def _outdated_map(self) -> bytes:
        """The map's file of a checkpoint that is not the last one."""
        cluster = self.lead.cluster
        self._free("a")
        cluster.checkpoint()
        old = cluster.map.read_bytes()
        self._run(DML["update"], t="a", n=5)
        cluster.checkpoint()
        return old

    def _refused(self, when: str, *, crash: bool = False) -> None:
        """No parent is served; the next backup is made at once, but after a crash."""
        self.lead.refused(when)
        if not crash:
            self.lead.cluster.checkpoint()
            self.lead.keep(Parent(snapshot=self.lead.snapshot()))

    def _down(self, *, crash: bool) -> Cluster:
        """End the primary, with all that it has written on disk."""
        self._free()
        self.lead.cluster.evict()
        self.lead.end("immediate" if crash else "clean")
        return self.lead.cluster

    def _alone(self, *, crash: bool) -> Cluster:
        """The same, and have no standby."""
        self._drop_standby()
        return self._down(crash=crash)

    # ---- what holds

    def nodes(self) -> list[Node]:
        """Every running cluster."""
        return [node for node in (self._lead, self.standby) if node is not None]

    def nothing_is_lost(self, when: str) -> None:
        """No cluster has a block that differs from a backup and is not reported."""
        began = time.monotonic()
        if self.standby is not None:
            self.standby.cluster.catch_up(self.lead.cluster)
        for node in self.nodes():
            node.look(when)
        TALLY.seconds["looks"] += time.monotonic() - began


def _damaged(content: bytes, how: str, where: int) -> bytes:
    """A map's file with something wrong, in its pages with marks if it has any.

    where: 0 to 7; in which of them, and where in it.
    """
    pages = [content[mapfile.at(page)] for page in range(len(content) // mapfile.PAGE)]
    used = mapfile.in_use(content)
    number = used[where % len(used)] if used else 1 + where
    match how:
        case "page zeroed" if used:
            pages[number] = bytes(mapfile.PAGE)
        case "pages swapped" if len(used) > 1:
            other = used[(where + 1) % len(used)]
            pages[number], pages[other] = pages[other], pages[number]
        case "cut short":
            del pages[-1]
        case "emptied":
            pages = []
        case "grown":
            pages.append(bytes(mapfile.PAGE))
        case _:
            number, step = (0, 11) if how == "header flipped" else (number, 512)
            page = bytearray(pages[number])
            page[where * step + 8] ^= 0x40
            pages[number] = bytes(page)
    return b"".join(pages)


# ---- runs


def run(
    factory: Factory,
    *,
    seed: int,
    examples: int,
    steps: int = STEPS,
    shrink_seconds: int = 300,
    blob: str | None = None,
    plain: Install | None = None,
) -> None:
    """Run the examples of one seed; what fails is shrunk, and shown as steps to replay.

    Args:
        shrink_seconds: how long to look for a smaller example.
        blob: replay this example and no other, as hypothesis printed it.
        plain: whose server has the lives without the library.

    Raises:
        LostBlocks, AssertionError: an example failed.
    """
    given = {"factory": factory, "plain": plain}
    made = hypothesis.seed(seed)(type("Machine", (Machine,), given))
    if blob is not None:
        _, _, text = blob.rpartition("b'")  # with or without what it was printed in
        encoded = text.rstrip("')").encode()
        made = hypothesis.reproduce_failure(hypothesis.__version__, encoded)(made)
    engine.MAX_SHRINKING_SECONDS = shrink_seconds
    # What is drawn would depend on the numbers in those modules of ours that happen to be loaded.
    providers._get_local_constants = Constants
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        print_blob=True,
    )
    before = len(FAILURES)
    try:
        run_state_machine_as_test(made, settings=settings)
    except Exception as error:
        if _STOPPED:
            raise _STOPPED[0] from None
        if FAILURES[before:]:
            error.add_note("the first example that failed, as it happened:\n" + FAILURES[before])
        raise
