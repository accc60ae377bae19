"""What tracking costs those who write: loads, single-row updates, new tables, index builds.

The effects looked for are below what tells two servers apart that are set up alike. So there are
four servers, two of them without ptrack; each in turn is each arm; and a ratio is to the mean of
the two without, round by round. How far those two lie apart is told as well.

What the core patch and the library cost where nothing is tracked is measured in the same way,
against two servers without the patch.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import (
    CONTROL,
    DISABLED,
    NONE_BEFORE,
    OFF,
    UNPATCHED,
    UNPATCHED_CONTROL,
    Arm,
    processor,
    row,
    settle,
    timed,
)
from ptrack_build.progress import step
from ptrack_build.run import call
from tests.harness import system

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Cluster
    from tests.harness.install import Install

LOAD_MB = 200
#: 35 rows a page
LOAD_ROWS = LOAD_MB * 128 * 35
CLIENTS = 2
SCALE = 20
TRANSACTIONS = 8_000
#: With fsync on, where each waits for the disk.
TRANSACTIONS_SYNCED = 1_000
#: 16 batches in each arm: 2,000 tables; half of that with fsync on
TABLES_A_BATCH = 125
INDEX_ROWS = 1_000_000

#: What 2.4 needed, by the size of its map.
LOAD_BEFORE = {64: "1.08", 1024: "1.34"}
UPDATES_BEFORE = {64: "0.97 to 0.99", 1024: "0.97 to 0.99"}

UPDATE = r"""\set aid random(1, 100000 * :scale)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
"""


def _load(cluster: Cluster, number: int) -> tuple[float, ...]:
    """Milliseconds of COPY, of COPY and the checkpoint after it, and of all cores for both."""
    del number
    with cluster.connect() as connection:
        connection.execute(b"CREATE TABLE load (id int, filler text)")
        used = processor(cluster)
        copy = timed(connection, f"COPY load FROM '{cluster.root.parent / 'load'}'")
        checkpoint = timed(connection, "CHECKPOINT")
        used = processor(cluster) - used
        connection.execute(b"DROP TABLE load")
        connection.execute(b"CHECKPOINT")
    return copy, copy + checkpoint, used


def _updates(cluster: Cluster, number: int, transactions: int = TRANSACTIONS) -> tuple[float, ...]:
    """Transactions a second, and milliseconds of all cores for a thousand."""
    cluster.checkpoint()
    used = processor(cluster)
    out = cluster.run(
        "pgbench", "-n", "-M", "prepared", "-f", cluster.root.parent / "update.sql",
        "-c", str(CLIENTS), "-j", "1", "-t", str(transactions), "-s", str(SCALE),
        f"--random-seed={number}", "postgres",
    ).stdout  # fmt: skip
    found = re.findall(r"^tps = ([0-9.]+)", out, re.MULTILINE)
    if not found:
        what = f"pgbench told no tps:\n{out}"
        raise AssertionError(what)
    used = (processor(cluster) - used) / (CLIENTS * transactions / 1000)
    return float(found[-1]), used  # the last one leaves out the time to connect


def _updates_synced(cluster: Cluster, number: int) -> tuple[float, ...]:
    """The same, of fewer transactions."""
    return _updates(cluster, number, TRANSACTIONS_SYNCED)


def _temporary(cluster: Cluster, number: int) -> tuple[float, ...]:
    """Milliseconds of COPY into a temporary table, of that and an UPDATE, and of all cores.

    temp_buffers holds a twenty-fifth of it: the rest is written, and read again.
    """
    del number
    with cluster.connect() as connection:
        connection.execute(b"CREATE TEMPORARY TABLE passing (id int, filler text)")
        used = processor(cluster)
        copy = timed(connection, f"COPY passing FROM '{cluster.root.parent / 'load'}'")
        update = timed(connection, "UPDATE passing SET id = -id")
        used = processor(cluster) - used
        connection.execute(b"DROP TABLE passing")
    return copy, copy + update, used


def _tables(cluster: Cluster, number: int) -> tuple[float, ...]:
    """Milliseconds of a CREATE TABLE with a primary key, in its own transaction."""
    del number
    with cluster.connect() as connection:
        connection.execute(b"CREATE SCHEMA many")
        total = sum(
            timed(connection, f"CREATE TABLE many.t{i} (id int PRIMARY KEY)")
            for i in range(TABLES_A_BATCH)
        )
        connection.execute(b"SET client_min_messages = error")
        connection.execute(b"DROP SCHEMA many CASCADE")
        connection.execute(b"VACUUM pg_class, pg_attribute, pg_index, pg_constraint, pg_depend")
        connection.execute(b"CHECKPOINT")
    return (total / TABLES_A_BATCH,)


def _index(cluster: Cluster, number: int) -> tuple[float, ...]:
    """Milliseconds of CREATE INDEX."""
    del number
    with cluster.connect() as connection:
        milliseconds = timed(connection, "CREATE INDEX built ON source (n)")
        connection.execute(b"DROP INDEX built")
        connection.execute(b"CHECKPOINT")
    return (milliseconds,)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One thing to do on every arm.

    titles: of the values that one returns; rounds: for each server as each arm; limits: by title;
    before: what 2.4 reached, by the size of its map.
    """

    titles: tuple[str, ...]
    unit: str
    one: Callable[[Cluster, int], tuple[float, ...]]
    fsync: bool
    rounds: int
    limits: tuple[float | None, ...] = ()
    before: Mapping[int, str] = field(default_factory=dict)
    at_least: bool = False


def _load_work(*, fsync: bool, rounds: int, before: Mapping[int, str] = NONE_BEFORE) -> Work:
    state, load = _state(fsync=fsync), f"load of {LOAD_MB} MB"
    return Work(
        titles=(
            f"{load}, {state}",
            f"{load} and a checkpoint, {state}",
            f"{load} and a checkpoint, {state}, processor time",
        ),
        unit="ms",
        one=_load,
        fsync=fsync,
        rounds=rounds,
        limits=() if fsync else (1.01, 1.01),
        before=before,
    )


def _updates_work(*, fsync: bool, rounds: int, before: Mapping[int, str] = NONE_BEFORE) -> Work:
    state = _state(fsync=fsync)
    return Work(
        titles=(
            f"single-row updates, pgbench with {CLIENTS} clients, {state}, tps",
            f"single-row updates, {state}, processor time",
        ),
        unit="1/s, ms",
        one=_updates_synced if fsync else _updates,
        fsync=fsync,
        rounds=rounds,
        limits=() if fsync else (0.995,),
        before=before,
        at_least=True,
    )


def _temporary_work() -> Work:
    title = f"temporary table, {LOAD_MB} MB of COPY"
    return Work(
        titles=(
            title,
            f"{title} and an UPDATE of all of it",
            f"{title} and UPDATE, processor time",
        ),
        unit="ms",
        one=_temporary,
        fsync=False,  # nothing of it is ever synced
        rounds=4,
        limits=(1.01, 1.01),
    )


def _state(*, fsync: bool) -> str:
    return f"fsync {'on' if fsync else 'off'}"


def _works() -> list[Work]:
    works = []
    for fsync in (False, True):
        rounds, state = 2 if fsync else 6, _state(fsync=fsync)
        works += [
            _load_work(fsync=fsync, rounds=rounds, before=LOAD_BEFORE),
            _updates_work(fsync=fsync, rounds=rounds, before=UPDATES_BEFORE),
        ]
        if not fsync:
            works.append(_temporary_work())
        works += [
            Work(titles=(title,), unit="ms", one=one, fsync=fsync, rounds=2 if fsync else 4)
            for title, one in (
                (f"CREATE TABLE (id int PRIMARY KEY), {state}", _tables),
                (f"CREATE INDEX on {INDEX_ROWS:,} rows, {state}", _index),
            )
        ]
    return works


def measure(bench: Bench) -> Family:
    """Tracking against the same server without: each of four servers being each arm in turn."""
    arms = (OFF, *bench.tracking(64, 1024), CONTROL)
    works = _works()
    found = _found(bench, arms, works)
    return _family(
        "write",
        "Writers. Ratios of a server with ptrack to the mean of two without, each of four "
        "servers being each in turn; off/off is what tells two servers apart that do not differ.",
        works,
        found,
        _Base(arms=(OFF, CONTROL), name="off", over=", on/off"),
    )


def disabled(bench: Bench) -> Family:
    """A server with the core patch and no tracking against one of the same source without it."""
    arms = (UNPATCHED, OFF, DISABLED, UNPATCHED_CONTROL)
    patched, pristine = (_configured(bench.installed(arm)) for arm in (OFF, UNPATCHED))
    assert patched == pristine, (patched, pristine)
    works = [
        _load_work(fsync=False, rounds=4),
        _updates_work(fsync=False, rounds=4),
        _temporary_work(),
    ]
    found = _found(bench, arms, works)
    return _family(
        "disabled",
        "Disabled. Ratios of a server with the core patch that does not track (off: the library is "
        "not loaded; ptrack.map_size = 0: it is, and has no map) to the mean of two without the "
        "patch, of the same source and flags, each of four clusters being each in turn.",
        works,
        found,
        _Base(arms=(UNPATCHED, UNPATCHED_CONTROL), name="unpatched", over="/unpatched"),
    )


def _configured(install: Install) -> list[str]:
    """How a server was compiled, as it says itself."""
    argv = [str(install.program("pg_config")), "--version", "--configure", "--cc", "--cflags"]
    return call(argv, capture=True, quiet=True).stdout.splitlines()


def _found(
    bench: Bench, arms: tuple[Arm, ...], works: Sequence[Work]
) -> list[dict[Arm, list[tuple[float, ...]]]]:
    """What each work returned, by arm, in the order of the rounds."""
    rows_to_load = f"SELECT i, repeat(chr(65 + i % 26), 190) FROM generate_series(1, {LOAD_ROWS}) i"
    source = (
        f"CREATE TABLE source AS SELECT hashint4(i) AS n FROM generate_series(1, {INDEX_ROWS}) i",
        "VACUUM ANALYZE source",
        f"COPY ({rows_to_load}) TO '{bench.place / 'load'}'",
    )
    script = bench.place / "update.sql"
    script.write_text(UPDATE)
    system.own(script)
    found: list[dict[Arm, list[tuple[float, ...]]]] = [{arm: [] for arm in arms} for _ in works]
    with contextlib.ExitStack() as stack:
        template = stack.enter_context(bench.template(source))
        template.start()
        template.run("pgbench", "-i", "-q", "-s", str(SCALE), "postgres")
        template.stop()
        clusters = stack.enter_context(bench.copies(template, arms))
        for turn in range(len(arms)):
            if turn > 0:
                clusters = bench.exchanged(clusters)
            with step(f"writers, turn {turn + 1} of {len(arms)}"):
                for work, values in zip(works, found, strict=True):
                    for arm, part in _turn(bench, work, clusters, turn).items():
                        values[arm] += part
    return found


def _turn(
    bench: Bench, work: Work, clusters: dict[Arm, Cluster], turn: int
) -> dict[Arm, list[tuple[float, ...]]]:
    for cluster in clusters.values():
        cluster.reload(fsync=work.fsync)
    settle()
    if not work.fsync:  # the first is not like the others; what comes later has had its first
        for cluster in clusters.values():
            work.one(cluster, 0)
    count = bench.rounds(work.rounds)
    return sampling.rounds(
        list(clusters), count, lambda arm, number: work.one(clusters[arm], turn * count + number)
    )


@dataclass(frozen=True, kw_only=True)
class _Base:
    """What the other arms are divided by.

    arms: two that do not differ; name: of their mean; over: what of that the name of a row says.
    """

    arms: tuple[Arm, Arm]
    name: str
    over: str


def _family(
    name: str, about: str, works: Sequence[Work],
    found: Sequence[dict[Arm, list[tuple[float, ...]]]], base: _Base,
) -> Family:  # fmt: skip
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    for work, values in zip(works, found, strict=True):
        columns = {arm: list(zip(*each, strict=True)) for arm, each in values.items()}
        for i, title in enumerate(work.titles):
            times = {arm: list(each[i]) for arm, each in columns.items()}
            series[f"{title}, {work.unit}"] = {arm.name: times[arm] for arm in times}
            limit = work.limits[i] if i < len(work.limits) else None
            rows += _rows(title, times, limit, work.before, base, at_least=work.at_least)
    return Family(name=name, about=about, rows=rows, series=series)


def _rows(
    what: str, times: dict[Arm, list[float]], limit: float | None,
    before: Mapping[int, str], base: _Base, *, at_least: bool,
) -> list[Row]:  # fmt: skip
    one, other = base.arms
    mean = sampling.mean(times[one], times[other])
    rows = [
        row(
            f"{what}, {arm.what}{base.over}",
            arm,
            sampling.ratio(times[arm], mean),
            limit,
            before,
            unit="x",
            at_least=at_least,
            medians={
                base.name: sampling.spread(mean).median,
                arm.name: sampling.spread(times[arm]).median,
            },
        )
        for arm in times
        if arm not in base.arms
    ]
    control = sampling.ratio(times[other], times[one])
    return [*rows, Row(what=f"{what}, {base.name}/{base.name}", spread=control, unit="x")]
