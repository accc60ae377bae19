"""Blocks that are reported though they did not change: counted, against the formula."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.engine import sampling
from benchmarks.engine.queries import ask
from benchmarks.engine.results import Family, Row
from benchmarks.engine.servers import MADE_UP, grow, new_parent, on
from ptrack_build.progress import step

if TYPE_CHECKING:
    from benchmarks.engine.servers import Bench

BLOCKS = 10**12 // 8192
MAP_MB = 1000
SHARES = (0.01, 0.10, 0.20)


def expected(share: float, slots: float) -> float:
    """Extra blocks, in percent of those that changed, of a map with two slots a block."""
    filled = (1 - math.exp(-2 * share * BLOCKS / slots)) ** 2
    return 100 * filled * (1 - share) / share


def measure(bench: Bench) -> Family:
    """1 TB, a map of 1000 MB, single blocks anywhere; and runs of 16 neighbours."""
    arm = on(MAP_MB)
    # 2.4 takes its header and checksum, 20 bytes, out of the map's size
    theirs, ours = (MAP_MB * 2**20 - 20) / 8, MAP_MB * 2**20 / 8
    rows = []
    with bench.template() as template, bench.copies(template, (arm,)) as clusters:
        cluster = clusters[arm]
        grow(cluster, BLOCKS)
        cases = [(share, 1) for share in SHARES] + [(0.10, 16)]
        for share, run in cases:
            what = f"{share:.0%} of 1 TB changed, {MAP_MB} MB map"
            if run > 1:
                what += f", in runs of {run}"
            found = []
            with step(what):
                for seed in range(1 if bench.scale < 1 else 3):
                    since = new_parent(cluster)
                    marked = int(
                        cluster.value(
                            f"SELECT bench_mark_share({MADE_UP}, {run}, {BLOCKS}, {share}, {seed})"
                        )
                    )
                    reported = ask(cluster, since)[1]
                    assert reported >= marked, (reported, marked)
                    # what is behind the tenth is chance, for the blocks are drawn by it
                    found.append(round(100 * (reported - marked) / marked, 1))
            before = expected(share, theirs)
            rows.append(
                Row(
                    what=f"extra blocks reported, {what}",
                    spread=sampling.spread(found),
                    unit="%",
                    limit=round(before, 1) if run == 1 else None,
                    before=f"{before:.1f} %",
                    medians={"our formula": expected(share, ours)},
                )
            )
    return Family(
        name="extra",
        about="Extra blocks. Counted over 122 million blocks, of which some are marked through "
        "the hooks; in percent of those that changed. For ptrack 2.4 stands what its formula, "
        "(1 - e^(-2n/N))^2 of the unchanged blocks, gives.",
        rows=rows,
    )
