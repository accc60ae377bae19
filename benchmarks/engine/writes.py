"""What tracking costs those who write: loads, single-row updates, new tables, index builds.

The effects looked for are below what tells two servers apart that are set up alike. So there are
four servers, two of them without ptrack; each in turn is each arm; and a ratio is to the mean of
the two without, round by round. How far those two lie apart is told as well.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import CONTROL, OFF, Arm, processor, row, settle, timed
from ptrack_build.progress import step
from tests.harness import system

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Cluster

LOAD_MB = 200
#: 35 rows a page
LOAD_ROWS = LOAD_MB * 128 * 35
CLIENTS = 2
SCALE = 20
TRANSACTIONS = 8_000
#: 16 batches in each arm: 2,000 tables
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


def _updates(cluster: Cluster, number: int) -> tuple[float, ...]:
    """Transactions a second, and milliseconds of all cores for a thousand."""
    cluster.checkpoint()
    used = processor(cluster)
    out = cluster.run(
        "pgbench", "-n", "-M", "prepared", "-f", cluster.root.parent / "update.sql",
        "-c", str(CLIENTS), "-j", "1", "-t", str(TRANSACTIONS), "-s", str(SCALE),
        f"--random-seed={number}", "postgres",
    ).stdout  # fmt: skip
    found = re.findall(r"^tps = ([0-9.]+)", out, re.MULTILINE)
    if not found:
        what = f"pgbench told no tps:\n{out}"
        raise AssertionError(what)
    used = (processor(cluster) - used) / (CLIENTS * TRANSACTIONS / 1000)
    return float(found[-1]), used  # the last one leaves out the time to connect


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


def _works() -> list[Work]:
    works = []
    for fsync in (False, True):
        state = f"fsync {'on' if fsync else 'off'}"
        load = f"load of {LOAD_MB} MB"
        works.append(
            Work(
                titles=(
                    f"{load}, {state}",
                    f"{load} and a checkpoint, {state}",
                    f"{load} and a checkpoint, {state}, processor time",
                ),
                unit="ms",
                one=_load,
                fsync=fsync,
                rounds=2 if fsync else 6,
                limits=() if fsync else (1.01, 1.01),
                before=LOAD_BEFORE,
            )
        )
        if not fsync:
            works.append(
                Work(
                    titles=(
                        f"single-row updates, pgbench with {CLIENTS} clients, tps",
                        "single-row updates, processor time",
                    ),
                    unit="1/s, ms",
                    one=_updates,
                    fsync=fsync,
                    rounds=6,
                    limits=(0.995,),
                    before=UPDATES_BEFORE,
                    at_least=True,
                )
            )
        works += [
            Work(titles=(title,), unit="ms", one=one, fsync=fsync, rounds=4)
            for title, one in (
                (f"CREATE TABLE (id int PRIMARY KEY), {state}", _tables),
                (f"CREATE INDEX on {INDEX_ROWS:,} rows, {state}", _index),
            )
        ]
    return works


def measure(bench: Bench) -> Family:
    """All of it, each server being each arm in turn."""
    arms = (OFF, *bench.tracking(64, 1024), CONTROL)
    rows_to_load = f"SELECT i, repeat(chr(65 + i % 26), 190) FROM generate_series(1, {LOAD_ROWS}) i"
    source = (
        f"CREATE TABLE source AS SELECT hashint4(i) AS n FROM generate_series(1, {INDEX_ROWS}) i",
        "VACUUM ANALYZE source",
        f"COPY ({rows_to_load}) TO '{bench.place / 'load'}'",
    )
    script = bench.place / "update.sql"
    script.write_text(UPDATE)
    system.own(script)
    works = _works()
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

    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    for work, values in zip(works, found, strict=True):
        columns = {arm: list(zip(*values[arm], strict=True)) for arm in arms}
        for i, title in enumerate(work.titles):
            times = {arm: list(columns[arm][i]) for arm in arms}
            series[f"{title}, {work.unit}"] = {arm.name: times[arm] for arm in arms}
            limit = work.limits[i] if i < len(work.limits) else None
            rows += _rows(title, times, limit, work.before, at_least=work.at_least)
    return Family(
        name="write",
        about="Writers. Ratios of a server with ptrack to the mean of two without, each of four "
        "servers being each in turn; off/off is what tells two servers apart that do not differ.",
        rows=rows,
        series=series,
    )


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


def _rows(
    what: str, times: dict[Arm, list[float]], limit: float | None,
    before: Mapping[int, str], *, at_least: bool,
) -> list[Row]:  # fmt: skip
    off = sampling.mean(times[OFF], times[CONTROL])
    arms = [arm for arm in times if arm.map_mb is not None]
    rows = [
        row(
            f"{what}, {arm.what}, on/off",
            arm,
            sampling.ratio(times[arm], off),
            limit,
            before,
            unit="x",
            at_least=at_least,
            medians={
                "off": sampling.spread(off).median,
                arm.name: sampling.spread(times[arm]).median,
            },
        )
        for arm in arms
    ]
    control = sampling.ratio(times[CONTROL], times[OFF])
    return [*rows, Row(what=f"{what}, off/off", spread=control, unit="x")]
