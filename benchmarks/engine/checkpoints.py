"""What tracking adds to a checkpoint: an idle one, and one after scattered updates."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import OFF, Arm, fill_map, over_off, settle, timed
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
#: What 2.4 needed, by the size of its map.
IDLE_BEFORE = {64: "100 ms", 1024: "1340 ms"}
BUSY_BEFORE = {1024: "1350 ms"}


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
    arms = (OFF, *bench.tracking(64, 1024))
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    with (
        bench.template(TABLE, shared_buffers=BUFFERS) as template,
        bench.copies(template, arms) as clusters,
        contextlib.ExitStack() as stack,
    ):
        for arm in arms[1:]:
            fill_map(clusters[arm], arm)
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

            kinds = (
                ("idle checkpoint", "idle checkpoints", 30, idle, 2.0, IDLE_BEFORE),
                (f"checkpoint after {UPDATES:,} scattered page updates",
                 f"checkpoints after {UPDATES:,} scattered updates", 8 if fsync else 20, busy,
                 10.0, BUSY_BEFORE),
            )  # fmt: skip
            for title, titles, count, one, limit, before in kinds:
                with step(f"{titles}, {state}"):
                    times = sampling.rounds(arms, bench.rounds(count), one)
                series[f"{title}, {state}, ms"] = {a.name: times[a] for a in arms}
                rows += [
                    over_off(f"{title}, {arm.what}, {state}", arm, times,
                             None if fsync else limit, before)
                    for arm in arms[1:]
                ]  # fmt: skip
    return Family(
        name="checkpoint",
        about="Checkpoints. The time that tracking adds to one, over the same server without "
        "ptrack, both timed by the client that asks for it.",
        rows=rows,
        series=series,
    )
