"""The measuring itself, in a Python that has the locked tools: run.py calls it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from benchmarks.engine import checkpoints, extra, marks, queries, results, starts, writes
from benchmarks.engine.run import FAMILIES, files
from benchmarks.engine.servers import Bench, module
from ptrack_build import cache, host
from ptrack_build.errors import PtrackError
from ptrack_build.progress import say
from ptrack_build.run import terminate_politely
from tests.harness.install import Install

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engine.results import Family

MEASURES: dict[str, Callable[[Bench], Family]] = {
    "checkpoint": checkpoints.measure,
    "query": queries.measure,
    "write": writes.measure,
    "disabled": writes.disabled,
    "start": starts.measure,
    "extra": extra.measure,
    "mark": marks.measure,
    "growth": queries.growth,
}
assert tuple(MEASURES) == FAMILIES
FAILURES = (AssertionError, PtrackError, psycopg.Error)


def main() -> int:
    """Measure, print, and write unless told not to."""
    options = argparse.ArgumentParser(prog="benchmarks.engine")
    options.add_argument("--prefix", type=Path, required=True)
    options.add_argument("--major", required=True)
    options.add_argument("--version", required=True)
    options.add_argument("--extension", required=True)
    options.add_argument("--public", type=Path)
    options.add_argument("--unpatched", type=Path)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--no-write", action="store_true")
    options.add_argument("families", nargs="*")
    given = options.parse_args()
    terminate_politely()

    failed: list[str] = []
    names = [name for name in FAMILIES if not given.families or name in given.families]
    with host.scratch("ptrack-bench-") as place:
        bench = Bench(
            install=module(given.prefix, place),
            place=place,
            scale=0.2 if given.quick else 1.0,
            public=Install.at(given.public) if given.public else None,
            unpatched=Install.at(given.unpatched) if given.unpatched else None,
        )
        for name in names:
            load, began = os.getloadavg()[0], time.monotonic()
            try:
                family = MEASURES[name](bench)
            except FAILURES as error:  # the others take long, and say as much without it
                say(f"{name} failed: {error}")
                failed.append(name)
                continue
            minutes = (time.monotonic() - began) / 60
            say("\n" + "\n".join(results.table([row.data() for row in family.rows])))
            say(f"\n{name}: {minutes:.1f} minutes\n")
            if not given.no_write:
                _store(family, given, load=load, minutes=minutes)
    if failed:
        say(f"the benchmark failed: {', '.join(failed)}; the lines above say why")
    return 1 if failed else 0


def _store(family: Family, given: argparse.Namespace, *, load: float, minutes: float) -> None:
    """Add a family to the results at once: what follows it may end early."""
    file, _ = files(given.major)
    about = {"postgresql": given.version, **results.machine()}
    tested = {"extension": given.extension, "load_before": round(load, 1)}
    tested["minutes"] = round(minutes, 1)
    data = results.merged(results.stored(file), about, [family], tested)
    data["families"] = {n: data["families"][n] for n in FAMILIES if n in data["families"]}
    cache.write(file, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FAILURES as error:
        sys.exit(f"the benchmark failed: {error}")
