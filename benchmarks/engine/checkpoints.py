"""What tracking adds to a checkpoint: an idle one, and one after scattered updates."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import OFF, Arm, fill_map, on, settle, timed
from ptrack_build.progress import step

if TYPE_CHECKING:
    from psycopg import Connection

    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Row as SqlRow

PAGES = 64_000
UPDATES = 1_000
#: One row a page, with room for its next version: an update dirties that page and no other.
TABLE = (
    "CREATE TABLE pages (id int PRIMARY KEY, n int, filler text) WITH (fillfactor = 50)",
    "ALTER TABLE pages ALTER filler SET STORAGE PLAIN",
    f"INSERT INTO pages SELECT i, 0, repeat('x', 3500) FROM generate_series(0, {PAGES - 1}) i",
    "VACUUM ANALYZE pages",
)
BUFFERS = "640MB"


def update(connection: Connection[SqlRow], number: int) -> None:
    """Update UPDATES rows on as many pages, no two of them in one chunk of 64 blocks."""
    step = PAGES // UPDATES
    done = connection.execute(
        "UPDATE pages SET n = n + 1 WHERE id = ANY "
        f"(SELECT i * {step} + {number * 7 % step} FROM generate_series(0, {UPDATES - 1}) i)"
        .encode()
    )  # fmt: skip
    assert done.rowcount == UPDATES, done.rowcount


def measure(bench: Bench) -> Family:
    """Idle and busy checkpoints, fsync off and on, maps of 64 and 1024 MB full of marks."""
    arms = (OFF, on(64), on(1024))
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    with (
        bench.template(TABLE, shared_buffers=BUFFERS) as template,
        bench.copies(template, arms) as clusters,
        contextlib.ExitStack() as stack,
    ):
        for arm in arms[1:]:
            fill_map(clusters[arm])
        for fsync in (False, True):
            for cluster in clusters.values():
                cluster.reload(fsync=fsync)
            settle()
            held = {
                arm: stack.enter_context(cluster.connect()) for arm, cluster in clusters.items()
            }
            for arm in arms:  # the first of each kind is not like the others
                update(held[arm], 0)
                held[arm].execute("CHECKPOINT")
            state = f"fsync {'on' if fsync else 'off'}"

            def idle(arm: Arm, number: int, held: dict[Arm, Connection[SqlRow]] = held) -> float:
                del number
                return timed(held[arm], "CHECKPOINT")

            def busy(arm: Arm, number: int, held: dict[Arm, Connection[SqlRow]] = held) -> float:
                update(held[arm], number + 1)
                return timed(held[arm], "CHECKPOINT")

            with step(f"idle checkpoints, {state}"):
                times = sampling.rounds(arms, bench.rounds(30), idle)
            series[f"idle checkpoint, {state}, ms"] = {a.name: times[a] for a in arms}
            for arm, before in ((arms[1], "100 ms"), (arms[2], "1340 ms")):
                rows.append(
                    _over_off(f"idle checkpoint, {arm.name} map, {state}", arm, times,
                              2.0, before, fsync=fsync)
                )  # fmt: skip
            with step(f"checkpoints after {UPDATES:,} scattered updates, {state}"):
                times = sampling.rounds(arms, bench.rounds(8 if fsync else 20), busy)
            title = f"checkpoint after {UPDATES:,} scattered page updates"
            series[f"{title}, {state}, ms"] = {a.name: times[a] for a in arms}
            for arm, before in ((arms[1], ""), (arms[2], "1350 ms")):
                rows.append(
                    _over_off(f"{title}, {arm.name} map, {state}", arm, times, 10.0, before,
                              fsync=fsync)
                )  # fmt: skip
    return Family(
        name="checkpoint",
        about="Checkpoints. The time that tracking adds to one, over the same server without "
        "ptrack, both timed by the client that asks for it.",
        rows=rows,
        series=series,
    )


def _over_off(
    what: str, arm: Arm, times: dict[Arm, list[float]], limit: float, before: str, *, fsync: bool
) -> Row:
    medians = {each.name: sampling.spread(times[each]).median for each in (OFF, arm)}
    return Row(
        what=what,
        spread=sampling.difference(times[arm], times[OFF]),
        unit="ms",
        limit=None if fsync else limit,
        before="" if fsync else before,
        medians=medians,
    )
