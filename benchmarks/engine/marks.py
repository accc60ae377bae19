"""What a mark costs, alone and among writers, what a change without one does, and the memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import DISABLED, OFF, Arm, fill_map, on
from ptrack_build import host
from ptrack_build.progress import step

if TYPE_CHECKING:
    from benchmarks.engine.servers import Bench
    from tests.harness.cluster import Cluster

TB = 10**12 // 8192
WRITERS = (1, 2, 4, 8, 16)
#: title, blocks in a mark, blocks in the relation, scattered, marks to time
KINDS = (
    ("neighbouring blocks", 1, 100_000, False, 2_000_000),
    ("blocks scattered over 1 TB", 1, TB, True, 1_000_000),
    ("ranges of 16 blocks scattered over 1 TB", 16, TB, True, 500_000),
    ("ranges of 64 blocks scattered over 1 TB", 64, TB, True, 200_000),
    ("ranges of 1 GB", 131_072, TB, True, 100),
)


def _mark(cluster: Cluster, rel: int, kind: tuple[str, int, int, bool, int], seed: int) -> float:
    """Nanoseconds a mark, of the time that the process which makes them has a core."""
    _, span, space, scattered, count = kind
    nanoseconds = cluster.value(
        f"SELECT bench_marks({rel}, {scattered}, {span}, {space}, {count}, {seed})"
    )
    return float(nanoseconds) / count


def measure(bench: Bench) -> Family:
    """Nanoseconds a mark by kind and by number of writers, and bytes of shared memory."""
    arms = (OFF, on(64), on(1024))
    rows: list[Row] = []
    series: dict[str, dict[str, list[float]]] = {}
    with bench.template() as template, bench.copies(template, (*arms, DISABLED)) as clusters:
        for arm in arms[1:]:
            fill_map(clusters[arm], arm)
        for kind in KINDS:
            with step(f"marks of {kind[0]}"):
                times = sampling.rounds(
                    arms,
                    bench.rounds(10),
                    lambda arm, number, kind=kind: _mark(  # type: ignore[misc]
                        clusters[arm], 2, kind, number
                    ),
                )
            series[f"a mark, {kind[0]}, ns"] = {arm.name: times[arm] for arm in arms}
            rows += [_row(f"a mark, {kind[0]}, {arm.what}", arm, times) for arm in arms[1:]]

        # by the same calls: what is not tracked
        for title, rel, others in (
            ("a change of a temporary relation", -2, arms),
            ("a change that is not tracked", 2, (OFF, DISABLED)),
        ):
            with step(title.replace("a change", "changes")):
                times = sampling.rounds(
                    others,
                    bench.rounds(10),
                    lambda arm, number, rel=rel: _mark(  # type: ignore[misc]
                        clusters[arm], rel, KINDS[0], number
                    ),
                )
            for arm in others[1:]:
                what = f"{title}, neighbouring blocks, {arm.what}"
                series[f"{what}, ns"] = {each.name: times[each] for each in (OFF, arm)}
                rows.append(_row(what, arm, times))

        for title, kind, apart in (
            ("each in a relation of its own", KINDS[0], True),
            ("scattered over 1 TB", KINDS[1], True),
            ("all in one chunk of 64 blocks", ("", 1, 64, False, 1_000_000), False),
        ):
            for writers in WRITERS:

                def together(
                    arm: Arm, number: int, kind: tuple[str, int, int, bool, int] = kind,
                    writers: int = writers, *, apart: bool = apart,
                ) -> float:  # fmt: skip
                    with ThreadPoolExecutor(writers) as pool:
                        each = list(
                            pool.map(
                                lambda i: _mark(
                                    clusters[arm], 10 + i if apart else 2, kind, number * 100 + i
                                ),
                                range(writers),
                            )
                        )
                    return sum(each) / writers

                with step(f"{writers} writers, {title}"):
                    times = sampling.rounds(arms, bench.rounds(4), together)
                series[f"a mark, {writers} writers, {title}, ns"] = {
                    arm.name: times[arm] for arm in arms
                }
                if writers in {2, WRITERS[-1]}:  # the plot has the others
                    what = f"a mark, {writers} writers, {title}, {arms[-1].what}"
                    rows.append(_row(what, arms[-1], times))
        rows += _memory(clusters)
    return Family(
        name="mark",
        about="Marks. Nanoseconds on a core between the two hooks of md.c around a change, without "
        "the change, in a server process; a write of 8 kB into the page cache takes one to three "
        f"thousand. No more than {host.cpus()} writers run at a time here: these are the cores.",
        rows=rows,
        series=series,
    )


def _row(what: str, arm: Arm, times: dict[Arm, list[float]]) -> Row:
    return Row(
        what=what,
        spread=sampling.difference(times[arm], times[OFF]),
        unit="ns",
        medians={each.name: sampling.spread(times[each]).median for each in (OFF, arm)},
    )


def _memory(clusters: dict[Arm, Cluster]) -> list[Row]:
    rows = []
    for arm, cluster in clusters.items():
        if not arm.map_mb or cluster.major < 13:  # pg_shmem_allocations
            continue
        taken = int(
            cluster.value(
                "SELECT sum(allocated_size) FROM pg_shmem_allocations WHERE name LIKE 'ptrack%'"
            )
        )
        over = 100 * (taken / (arm.map_mb * 2**20) - 1)
        rows.append(
            Row(
                what=f"shared memory over map_size, {arm.what}",
                spread=sampling.spread([over]),
                unit="%",
                medians={"bytes over": taken - arm.map_mb * 2**20},
            )
        )
    return rows
