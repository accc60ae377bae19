"""What the map adds to a start, and when it is there to be asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import OFF, Arm, fill_map, new_parent, over_off
from ptrack_build.progress import step

if TYPE_CHECKING:
    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Cluster

LIMIT = 20.0
#: What 2.4 needed, by the size of its map.
BEFORE = {64: "32 ms", 1024: "507 ms"}


def started(cluster: Cluster) -> float:
    """Start a stopped cluster; milliseconds until postmaster.pid says that it is ready."""
    status = cluster.data / "postmaster.pid"
    began = time.perf_counter()
    cluster.start(wait=False)
    while True:
        # a fifth of a millisecond: to look is cheap, and does not take a core from the server
        time.sleep(0.0002)
        try:
            lines = status.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if len(lines) >= 8 and lines[7].strip() == "ready":
            return (time.perf_counter() - began) * 1e3
        if not cluster.running:
            what = f"{cluster.name} did not start: {cluster.log_text()[-2000:]}"
            raise AssertionError(what)


def measure(bench: Bench) -> Family:
    """Starts with full maps against starts without ptrack; then the first query."""
    arms = (OFF, *bench.tracking(64, 1024))
    first: dict[Arm, list[float]] = {arm: [] for arm in arms[1:]}
    with bench.template() as template, bench.copies(template, arms) as clusters:
        parents = {}
        for arm in arms[1:]:
            fill_map(clusters[arm], arm)
            parents[arm] = new_parent(clusters[arm])
        for cluster in clusters.values():
            cluster.stop()

        def one(arm: Arm, number: int) -> float:
            del number
            cluster = clusters[arm]
            milliseconds = started(cluster)
            if arm in first:
                began = time.perf_counter()
                cluster.sql(f"SELECT count(*) FROM ptrack_get_pagemapset('{parents[arm]}')")
                first[arm].append((time.perf_counter() - began) * 1e3)
            cluster.stop()
            return milliseconds

        with step("starts"):
            times = sampling.rounds(arms, bench.rounds(24), one)
    rows = [over_off(f"start, {arm.what}, over off", arm, times, LIMIT, BEFORE) for arm in arms[1:]]
    rows += [
        Row(
            what=f"first query right after a start, {arm.what}",
            spread=sampling.spread(first[arm]),
            unit="ms",
            note="waits for what of the map is not read yet",
        )
        for arm in arms[1:]
    ]
    return Family(
        name="start",
        about="Start. From the exec of postgres until it takes connections, after a clean stop, "
        "with a map that is full of marks and in the page cache.",
        rows=rows,
        series={
            "start, ms": {arm.name: times[arm] for arm in arms},
            "first query after a start, ms": {arm.name: first[arm] for arm in arms[1:]},
        },
    )
