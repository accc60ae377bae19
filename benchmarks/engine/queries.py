"""What a query for changed blocks takes: over 64 GB, and as the cluster grows to 10 TB."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.engine import checkpoints, sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import (
    MADE_UP,
    NONE_BEFORE,
    SEGMENT,
    Arm,
    fill_map,
    grow,
    new_parent,
    row,
    settle,
    timed,
)
from ptrack_build.progress import step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Cluster

GIB = 64
#: What 2.4 needed, by the size of its map.
NOTHING_BEFORE = {64: "475 ms", 1024: "730 ms"}
ALL_BEFORE = {64: "670 ms", 1024: "1040 ms"}
GROWTH_GIB = (64, 256, 1024, 4096, 10240)


def ask(cluster: Cluster, since: str) -> tuple[float, int]:
    """One query as a backup makes it: the milliseconds, and the blocks of the made-up relation.

    In a connection of its own, for a backup has one, and its process has not touched the map; but
    with the catalogs read, by planning the statement first.
    """
    query = (
        f"SELECT coalesce(sum(pagecount) FILTER (WHERE path LIKE '%/{MADE_UP}%'), 0), "
        f"sum(length(pagemap)) FROM ptrack_get_pagemapset('{since}')"
    )
    with cluster.connect() as connection:
        connection.execute(f"EXPLAIN {query}".encode())
        began = time.perf_counter()
        row = connection.execute(query.encode()).fetchone()
        milliseconds = (time.perf_counter() - began) * 1e3
    assert row is not None
    return milliseconds, int(row[0])


def measure(bench: Bench) -> Family:
    """Nothing changed, everything changed, and the client that knows of nothing."""
    arms = bench.tracking(64, 1024)
    blocks = GIB * SEGMENT
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    with (
        bench.template() as template,
        bench.copies(template, arms) as clusters,
    ):
        for arm, cluster in clusters.items():
            grow(cluster, blocks)
            fill_map(cluster, arm)

        def sampled(
            title: str, since: dict[Arm, str], expected: int,
            limit: float | None = None, before: Mapping[int, str] = NONE_BEFORE,
        ) -> None:  # fmt: skip
            def one(arm: Arm, number: int) -> float:
                del number
                milliseconds, found = ask(clusters[arm], since[arm])
                if found != expected:
                    what = f"{title}: {found:,} blocks were reported, {expected:,} are right"
                    raise AssertionError(what)
                return milliseconds

            with step(f"queries over {GIB} GiB, {title}"):
                times = sampling.rounds(arms, bench.rounds(20), one)
            series[f"query over {GIB} GiB, {title}, ms"] = {a.name: times[a] for a in arms}
            for arm in arms:
                what = f"query over {GIB} GiB, {title}, {arm.what}"
                rows.append(row(what, arm, sampling.spread(times[arm]), limit, before))

        since = {arm: new_parent(clusters[arm]) for arm in arms}
        sampled("nothing changed", since, 0, 15.0, NOTHING_BEFORE)

        for arm in arms:
            if arm.public:  # has none of the hooks; before its map's LSN it walks all the same
                since[arm] = "0/0"
                continue
            clusters[arm].sql(f"SELECT bench_marks({MADE_UP}, false, 1, {blocks}, {blocks}, 1)")
        sampled("every block marked and no checkpoint since", since, blocks, 60.0, ALL_BEFORE)
        for arm in arms:
            clusters[arm].checkpoint()
        sampled("every block marked", since, blocks, 60.0, ALL_BEFORE)

        sampled("from an LSN before the map's", dict.fromkeys(arms, "0/0"), blocks)
    return Family(
        name="query",
        about="Queries. ptrack_get_pagemapset over a relation of 64 GiB (holes: the query looks "
        "at names, sizes and the map), from a new connection each time, its rows summed up in the "
        "server. The map is full of older marks. The number of blocks reported is checked.",
        rows=rows,
        series=series,
    )


def growth(bench: Bench) -> Family:
    """The same server while its files grow: what follows the size, and what the changes."""
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    sized = Arm(name="1024 MB", map_mb=1024)
    large = Arm(name=f"{GROWTH_GIB[-1]} MB", map_mb=GROWTH_GIB[-1])
    with (
        bench.template(checkpoints.TABLE, shared_buffers=checkpoints.BUFFERS) as template,
        bench.copies(template, (sized,)) as clusters,
    ):
        cluster = clusters[sized]
        fill_map(cluster, sized)
        for arm, gibs in ((sized, GROWTH_GIB), (large, GROWTH_GIB[-1:])):
            if arm is not sized:
                cluster.restart(ptrack__map_size=arm.map_mb or 0)
                cluster.checkpoint()
                cluster.init_lsn()  # waits until the map is read
            for gib in gibs:
                with step(f"checkpoints and queries at {gib} GiB, {arm.name} map"):
                    found = _at(bench, cluster, gib)
                for title, values in found.items():
                    series.setdefault(f"{title}, {arm.name} map", {})[f"{gib} GiB"] = values
                    if gib in {GROWTH_GIB[0], 1024, GROWTH_GIB[-1]}:
                        spread = sampling.spread(values)
                        what = f"{title.removesuffix(', ms')}, {gib} GiB, {arm.name} map"
                        rows.append(Row(what=what, spread=spread, unit="ms"))
    return Family(
        name="growth",
        about="As the cluster grows. One server, to whose 0.5 GB files of holes are added; times "
        "of checkpoints include what the server needs without ptrack.",
        rows=rows,
        series=series,
    )


def _at(bench: Bench, cluster: Cluster, gib: int) -> dict[str, list[float]]:
    grow(cluster, gib * SEGMENT)
    settle()
    found: dict[str, list[float]] = {}

    def add(title: str, milliseconds: float) -> None:
        found.setdefault(title, []).append(milliseconds)

    for number in range(bench.rounds(8)):
        since = new_parent(cluster)
        with cluster.connect() as connection:
            add("idle checkpoint, ms", timed(connection, "CHECKPOINT"))
            milliseconds, blocks = ask(cluster, since)
            assert blocks == 0, blocks
            add("query, nothing changed, ms", milliseconds)
            checkpoints.update(connection, number)
            updates = f"{checkpoints.UPDATES:,} page updates"
            add(f"checkpoint after {updates}, ms", timed(connection, "CHECKPOINT"))
            add(f"query after {updates}, ms", ask(cluster, since)[0])
    return found
