"""The servers that are measured: copies of one cluster, with ptrack on and off."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks.engine import results, sampling
from ptrack_build import REPO, cache
from ptrack_build.compile import link_tree
from ptrack_build.run import call
from tests.harness import lsn, system
from tests.harness.cluster import Cluster
from tests.harness.install import Install

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg import Connection

    from tests.harness.cluster import Row, Value

MODULE = Path(__file__).parents[1] / "module"
GB = 2**30
#: Blocks of 8 kB in a gibibyte: what a segment file of a release build holds.
SEGMENT = GB // 8192
#: The relfilenumber of the relation that has files (holes) and no row in pg_class.
MADE_UP = 900_000_000

# The suite's settings are for tiny and quiet servers; these are the server's own defaults again,
# with WAL enough that no checkpoint comes but those that are asked for.
SETTINGS: dict[str, Value] = {
    "shared_buffers": "128MB",
    "max_connections": 100,
    "max_worker_processes": 8,
    "bgwriter_lru_maxpages": 100,
    "min_wal_size": "1GB",
    "max_wal_size": "8GB",
    "max_parallel_workers_per_gather": 0,
}

FUNCTIONS = (
    (
        "CREATE FUNCTION bench_marks(rel bigint, scattered bool, span bigint, space bigint, "
        "count bigint, seed bigint) RETURNS double precision "
        "AS '$libdir/ptrack_bench' LANGUAGE C STRICT"
    ),
    (
        "CREATE FUNCTION bench_mark_share(rel bigint, run bigint, space bigint, "
        "share double precision, seed bigint) RETURNS bigint "
        "AS '$libdir/ptrack_bench' LANGUAGE C STRICT"
    ),
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to run the server.

    map_mb: None for a server that does not load ptrack, 0 for one that does and has no map;
    public: ptrack 2.4, on its own server; unpatched: a server without the core patch.
    """

    name: str
    map_mb: int | None = None
    public: bool = False
    unpatched: bool = False

    @property
    def what(self) -> str:
        """For the name of a row."""
        return f"{self.name} map" if self.map_mb else self.name

    @property
    def settings(self) -> dict[str, Value]:
        """What goes to postgresql.conf."""
        if self.map_mb is None:
            return {"shared_preload_libraries": ""}
        return {"shared_preload_libraries": "ptrack", "ptrack.map_size": self.map_mb}


OFF = Arm(name="off")
#: Off once more: how far two servers lie apart that do not differ.
CONTROL = Arm(name="off again")
#: The library is loaded, and tracks nothing.
DISABLED = Arm(name="ptrack.map_size = 0", map_mb=0)
UNPATCHED = Arm(name="unpatched", unpatched=True)
#: The same once more, as CONTROL is for OFF.
UNPATCHED_CONTROL = Arm(name="unpatched again", unpatched=True)
#: Where 2.4 was not measured.
NONE_BEFORE: Mapping[int, str] = MappingProxyType({})


def row(
    what: str, arm: Arm, spread: sampling.Spread, limit: float | None,
    before: Mapping[int, str], *, unit: str = "ms", at_least: bool = False,
    medians: Mapping[str, float] | None = None,
) -> results.Row:  # fmt: skip
    """A number of a server with ptrack.

    before: what 2.4 reached, by the size of its map. Neither that nor the limit is told of 2.4
    itself.
    """
    judged = limit is not None and not arm.public
    return results.Row(
        what=what,
        spread=spread,
        unit=unit,
        limit=limit if judged else None,
        at_least=at_least,
        before=before.get(arm.map_mb or 0, "") if judged else "",
        medians=medians or {},
    )


def over_off(
    what: str, arm: Arm, times: Mapping[Arm, Sequence[float]], limit: float | None,
    before: Mapping[int, str],
) -> results.Row:  # fmt: skip
    """How much longer it takes than without ptrack."""
    return row(
        what, arm, sampling.difference(times[arm], times[OFF]), limit, before,
        medians={each.name: sampling.spread(times[each]).median for each in (OFF, arm)},
    )  # fmt: skip


def on(megabytes: int) -> Arm:
    """With a map of that size."""
    return Arm(name=f"{megabytes} MB", map_mb=megabytes)


def module(prefix: Path, place: Path) -> Install:
    """A copy of a prefix, by hard links, that also has the module of benchmarks/module."""
    copy, source = place / "prefix", place / "module"
    link_tree(prefix, copy)
    shutil.copytree(MODULE, source)
    call(
        ["make", "-C", source, f"PG_CONFIG={copy / 'bin' / 'pg_config'}",
         f"EXTENSION_SRC={REPO / 'extension' / 'src'}", "install"],
        log=cache.directory("log") / "bench-module.log", quiet=True,
    )  # fmt: skip
    return Install.at(copy)


@dataclass(kw_only=True)
class Bench:
    """Where all of it happens.

    place: a directory of the servers' user; scale: of the numbers of rounds, 1 for those that
    results are published from; public: an installation of ptrack 2.4 to measure beside;
    unpatched: one without the core patch, for the arms that are so.
    """

    install: Install
    place: Path
    scale: float = 1.0
    public: Install | None = None
    unpatched: Install | None = None
    _made: int = field(default=0, init=False)

    def rounds(self, count: int) -> int:
        """So many rounds, or fewer for a quick look; an even number, at least two."""
        return max(2, round(count * self.scale / 2) * 2)

    def tracking(self, *megabytes: int) -> tuple[Arm, ...]:
        """Arms with maps of these sizes, of 2.4 as well where that is measured."""
        theirs = [
            Arm(name=f"2.4, {size} MB", map_mb=size, public=True)
            for size in megabytes
            if self.public is not None
        ]
        return (*map(on, megabytes), *theirs)

    def installed(self, arm: Arm) -> Install:
        """Where an arm's server is."""
        install = self.public if arm.public else self.unpatched if arm.unpatched else self.install
        assert install is not None, f"there is no server for the arm {arm.name}"
        return install

    def _new(self, name: str, install: Install | None = None) -> Cluster:
        self._made += 1
        return Cluster(install or self.install, self.place / f"{self._made}-{_plain(name)}", name)

    @contextlib.contextmanager
    def template(self, statements: Sequence[str] = (), **settings: Value) -> Iterator[Cluster]:
        """A stopped cluster to make copies of, in which the statements were run."""
        cluster = self._new("template")
        try:
            cluster.init(checksums=False, segsize_mb=16)
            cluster.adopt()
            cluster.configure({**SETTINGS, **_no_kept_wal(cluster), **settings})
            cluster.start()
            cluster.script([*FUNCTIONS, *statements])
            cluster.stop()
            yield cluster
        finally:
            cluster.destroy()

    @contextlib.contextmanager
    def copies(self, template: Cluster, arms: Sequence[Arm]) -> Iterator[dict[Arm, Cluster]]:
        """Running copies of a stopped cluster, one an arm; gone at the end."""
        made: dict[Arm, Cluster] = {}
        try:
            for arm in arms:
                made[arm] = cluster = self._new(arm.name, self.installed(arm))
                system.make_dir(cluster.root)
                call(["cp", "-a", "--sparse=always", template.data, cluster.data], quiet=True)
                cluster.adopt()
                start(cluster, arm)
            settle()
            yield made
        finally:
            for cluster in made.values():
                cluster.destroy()

    def exchanged(self, clusters: dict[Arm, Cluster]) -> dict[Arm, Cluster]:
        """The same clusters, each the arm that the one before was; with a new map."""
        made = list(clusters.values())
        turned = dict(zip(clusters, [*made[1:], made[0]], strict=True))
        for arm, cluster in turned.items():
            cluster.stop()
            cluster.map.unlink(missing_ok=True)
            cluster.install = self.installed(arm)
            start(cluster, arm)
        settle()
        return turned


def _plain(name: str) -> str:
    """A name for a directory of sockets: a comma would make two of it, for server and client."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def _no_kept_wal(cluster: Cluster) -> dict[str, Value]:
    return {"wal_keep_size" if cluster.major >= 13 else "wal_keep_segments": 0}


def start(cluster: Cluster, arm: Arm) -> None:
    """Start a cluster as an arm, with the extension where that is loaded."""
    cluster.configure(arm.settings)
    cluster.start()
    if arm.map_mb:
        cluster.sql("CREATE EXTENSION IF NOT EXISTS ptrack")
        cluster.checkpoint()


def settle() -> None:
    """Have the kernel write what it still holds back, so that it does not in a measurement."""
    call(["sync"], quiet=True)


def timed(connection: Connection[Row], statement: str) -> float:
    """Milliseconds a statement takes, as a client sees it."""
    began = time.perf_counter()
    connection.execute(statement.encode())
    return (time.perf_counter() - began) * 1e3


def processor(cluster: Cluster) -> float:
    """Milliseconds on a core that a server's processes have had since its start, all together."""
    ticks = 0
    for pid in (cluster.pid, *system.children(cluster.pid)):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # utime and stime; of the postmaster also those of the children that have ended
            ticks += sum(int(field) for field in stat[11 : 15 if pid == cluster.pid else 13])
    return ticks * 1e3 / os.sysconf("SC_CLK_TCK")


def fill_map(cluster: Cluster, arm: Arm) -> None:
    """Marks all over the map, as it looks after a life; then a checkpoint that writes it out."""
    assert arm.map_mb
    if arm.public:  # writes all of its map in any case
        cluster.checkpoint()
        return
    # four lines for each one there is: next to none stays empty
    count = arm.map_mb * 2048 * 2
    cluster.sql(f"SELECT bench_marks(1, true, 64, 2147483648, {count}, 1)")
    cluster.checkpoint()
    settle()


def new_parent(cluster: Cluster) -> str:
    """An LSN since which nothing has changed: the redo point of a checkpoint, with WAL before."""
    cluster.checkpoint()
    cluster.flush_wal()
    cluster.checkpoint()
    return lsn.show(cluster.redo())


def grow(cluster: Cluster, blocks: int) -> None:
    """Bring the made-up relation to so many blocks, all of them holes, in segments of 1 GB."""
    database = cluster.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    folder = cluster.data / "base" / str(database)
    for segment in range(-(-blocks // SEGMENT)):
        file = folder / (f"{MADE_UP}.{segment}" if segment else f"{MADE_UP}")
        size = min(SEGMENT, blocks - segment * SEGMENT) * 8192
        if file.exists() and file.stat().st_size == size:
            continue
        with file.open("ab") as opened:
            opened.truncate(size)
        system.own(file)
